/* Packed keys and values in host memory, for the backends that live there.
 *
 * A record is one row of a format, its planes one behind the other. Of each KV head there is
 *
 *   K     a record of D values per token
 *   V     a record of D values per token; or, where the format has blocks of B values, a record per
 *         chunk of B tokens at a multiple of B: D channels of B values, each channel one block
 *
 * so that a block runs along what its product sums over (BlockDialect section 5.3). Values of
 * tokens behind the last full chunk, and those that came with the last append, are kept in fp16. */
#ifndef NB_OP_KV_STORE_H
#define NB_OP_KV_STORE_H

#include <math.h>

#include "format/half.h"
#include "op/op.h"

#define NB_KV_PAGE 256 /* tokens; a multiple of every block size */

typedef struct nb_kv_rows {
    nb_format format; /* plain fp32 where the cache has no format */
    int64_t n;        /* values of a record */
    int64_t bytes;    /* of a record */
    int64_t off[NB_MAX_PLANES];
    uint8_t *data; /* [tokens or chunks][K][bytes] */
} nb_kv_rows;

typedef struct nb_kv_store {
    nb_kv_desc d;
    int64_t block;  /* tokens of a chunk of V; 0: a record per token */
    int64_t length; /* tokens */
    int64_t tokens; /* there is memory for: whole pages */
    nb_kv_rows k, v;
    uint16_t *recent; /* [recent_rows][K*D] fp16: values from position recent_pos on; block > 0 */
    int64_t recent_pos, recent_rows;
} nb_kv_store;

/* True if keys, values or what meets them have a format; false: two fp32 matrices serve. */
bool nb_kv_is_quantized(const nb_attn_formats *f);
/* NB_EUSAGE names a format that no cache can have. */
nb_status nb_kv_check(const nb_kv_desc *d, nb_error *err);

nb_status nb_kv_store_create(nb_kv_store **out, const nb_kv_desc *d, nb_error *err);
void nb_kv_store_free(nb_kv_store *s);
size_t nb_kv_store_bytes(const nb_kv_store *s);

/* Memory for T tokens at pos0, which then count: put each, then seal the chunks from *first on. */
nb_status nb_kv_store_begin(nb_kv_store *s, int64_t pos0, int64_t T, int64_t *first,
                            int64_t *n_chunks, nb_error *err);
/* Nobody asks for fp16 values of full chunks any more. */
void nb_kv_store_end(nb_kv_store *s);

/* Scratch of the two calls below; one per thread. */
size_t nb_kv_store_scratch(const nb_kv_store *s);
/* k, v [D] of one token and head; tokens and heads in any order, by any thread. Returns how many
 * values were not finite and saturated, for nb_backend.nonfinite. */
int64_t nb_kv_store_put(nb_kv_store *s, int64_t pos, int64_t head, const float *k, const float *v,
                        void *scratch);
void nb_kv_store_seal(nb_kv_store *s, int64_t chunk, int64_t head, void *scratch);

/* Planes of the record of token (or chunk) i. */
void nb_kv_planes(const nb_kv_store *s, const nb_kv_rows *r, int64_t i, int64_t head,
                  const uint8_t *plane[NB_MAX_PLANES]);
/* v [D] in fp16 of a position from recent_pos on. */
void nb_kv_store_recent(const nb_kv_store *s, int64_t pos, int64_t head, float *v);

/* Values of the queries' own sight: keys [begin, end); values below `split` come from records,
 * those from there on in fp16. Softmax weights are quantized over [from, to), aligned to their
 * blocks; beyond begin and end they are zero. */
typedef struct nb_kv_sight {
    int64_t begin, end, split, from, to;
} nb_kv_sight;

/* Of the query at pos: chunks of `block` values (0: none) are full up to position `full`; weights
 * are quantized in blocks of `unit`. */
static inline NB_HD nb_kv_sight nb_kv_sight_at(int64_t pos, int window, int64_t block, int64_t full,
                                               int64_t unit)
{
    int64_t end = pos + 1, begin = window > 0 && end > window ? end - window : 0;
    int64_t split = block ? full / block * block : end;
    if (split < begin) split = begin; /* its window lies in fp16 values alone */
    int64_t from = begin / unit * unit, to = (end + unit - 1) / unit * unit;
    nb_kv_sight w = {begin, end, split, from < split ? from : split, to < split ? to : split};
    return w;
}

nb_kv_sight nb_kv_sight_of(const nb_kv_store *s, int64_t pos, int window);

/* A value in fp16. Finite values stay finite; Inf and NaN as well where the format takes any
 * values (D6). */
static inline NB_HD uint16_t nb_kv_half(float x, bool any)
{
    const float most = 65504; /* the largest */
    uint32_t magnitude = nb_f32_bits(x) & 0x7fffffffu;
    bool stays = magnitude < 0x7f800000u || any;
    if (stays && magnitude > nb_f32_bits(most)) x = copysignf(most, x);
    return nb_f16_from_f32(x);
}

#endif
