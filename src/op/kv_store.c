#include "op/kv_store.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "format/dialect.h"
#include "format/half.h"
#include "op/common.h"

/* ---- formats --------------------------------------------------------------------------- */

/* fp32 as a word means the same as no word. */
static bool is_plain_f32(const nb_format *f)
{
    return !f->family || (!nb_format_is_quantized(f) && f->variant == NB_F32);
}

bool nb_kv_is_quantized(const nb_attn_formats *f)
{
    return !is_plain_f32(&f->k) || !is_plain_f32(&f->v) || nb_format_is_quantized(&f->q) ||
           nb_format_is_quantized(&f->p);
}

nb_status nb_kv_check(const nb_kv_desc *d, nb_error *err)
{
    const struct {
        const nb_format *f;
        const char *what;
    } all[] = {{&d->formats.k, "keys"},
               {&d->formats.v, "values"},
               {&d->formats.q, "queries"},
               {&d->formats.p, "softmax weights"}};
    for (size_t i = 0; i < NB_COUNT(all); i++) {
        const nb_format *f = all[i].f;
        if (!f->family || f->family->uses(f) & NB_FOR_KV) continue;
        return nb_fail(err, NB_EUSAGE, "format \"%s\": not one for %s", f->word, all[i].what);
    }
    return NB_OK;
}

static int64_t block_of(const nb_format *v) { return nb_format_is_quantized(v) ? v->group : 0; }

static nb_kv_rows rows_of(const nb_format *f, int64_t n)
{
    nb_kv_rows r = {.format = f->family ? *f : nb_format_plain(NB_F32), .n = n};
    nb_plane_spec spec[NB_MAX_PLANES];
    int n_planes = r.format.family->planes(&r.format, n, spec);
    for (int i = 0; i < n_planes; i++) {
        r.off[i] = r.bytes;
        r.bytes += spec[i].row_bytes;
    }
    return r;
}

static void measure(const nb_kv_desc *d, nb_kv_rows *k, nb_kv_rows *v, int64_t *block)
{
    *block = block_of(&d->formats.v);
    *k = rows_of(&d->formats.k, d->head_dim);
    *v = rows_of(&d->formats.v, d->head_dim * (*block ? *block : 1));
}

double nb_kv_token_bytes(const nb_kv_desc *d)
{
    nb_kv_rows k, v;
    int64_t block;
    measure(d, &k, &v, &block);
    return d->n_kv_heads * ((double)k.bytes + (double)v.bytes / (double)(block ? block : 1));
}

/* ---- life ------------------------------------------------------------------------------ */

nb_status nb_kv_store_create(nb_kv_store **out, const nb_kv_desc *d, nb_error *err)
{
    *out = NULL;
    nb_kv_store *s = calloc(1, sizeof *s);
    if (!s) return nb_fail_memory(err, "KV cache", sizeof *s);
    s->d = *d;
    measure(d, &s->k, &s->v, &s->block);
    *out = s;
    return NB_OK;
}

void nb_kv_store_free(nb_kv_store *s)
{
    if (!s) return;
    free(s->k.data);
    free(s->v.data);
    free(s->recent);
    free(s);
}

static int64_t width(const nb_kv_store *s) { return (int64_t)s->d.n_kv_heads * s->d.head_dim; }

static int64_t v_records(const nb_kv_store *s, int64_t tokens)
{
    return s->block ? tokens / s->block : tokens;
}

size_t nb_kv_store_bytes(const nb_kv_store *s)
{
    int64_t records = s->tokens * s->k.bytes + v_records(s, s->tokens) * s->v.bytes;
    return (size_t)(records * s->d.n_kv_heads) +
           (size_t)(s->recent_rows * width(s)) * sizeof *s->recent;
}

/* ---- memory ---------------------------------------------------------------------------- */

static nb_status resize(void **data, int64_t n, int64_t size, nb_error *err)
{
    size_t bytes;
    if (!nb_mul_size((size_t)n, (size_t)size, &bytes)) bytes = SIZE_MAX;
    void *p = bytes < SIZE_MAX ? realloc(*data, bytes ? bytes : 1) : NULL;
    if (!p) return nb_fail_memory(err, "KV cache", bytes);
    *data = p;
    return NB_OK;
}

static nb_status grow(nb_kv_store *s, int64_t need, nb_error *err)
{
    if (need <= s->tokens) return NB_OK;
    int64_t tokens = (need + NB_KV_PAGE - 1) / NB_KV_PAGE * NB_KV_PAGE;
    void *k = s->k.data, *v = s->v.data;
    nb_status st = resize(&k, tokens, s->d.n_kv_heads * s->k.bytes, err);
    s->k.data = k;
    if (st == NB_OK) st = resize(&v, v_records(s, tokens), s->d.n_kv_heads * s->v.bytes, err);
    s->v.data = v;
    if (st == NB_OK) s->tokens = tokens;
    return st;
}

static nb_status resize_recent(nb_kv_store *s, int64_t rows, nb_error *err)
{
    void *p = s->recent;
    NB_TRY(resize(&p, rows * width(s), sizeof *s->recent, err));
    s->recent = p;
    s->recent_rows = rows;
    return NB_OK;
}

/* Room for fp16 values of positions [first, end); those that were there stay. */
static nb_status hold_recent(nb_kv_store *s, int64_t first, int64_t end, nb_error *err)
{
    if (!s->block) return NB_OK;
    int64_t rows = nb_max_i64(s->block, end - first), kept = s->recent_rows;
    if (rows > kept) NB_TRY(resize_recent(s, rows, err));
    if (first > s->recent_pos && kept > 0) {
        int64_t gone = nb_min_i64(first - s->recent_pos, kept);
        memmove(s->recent, s->recent + gone * width(s),
                (size_t)((kept - gone) * width(s)) * sizeof *s->recent);
    }
    s->recent_pos = first;
    return rows < kept ? resize_recent(s, rows, err) : NB_OK;
}

nb_status nb_kv_store_begin(nb_kv_store *s, int64_t pos0, int64_t T, int64_t *first,
                            int64_t *n_chunks, nb_error *err)
{
    if (pos0 != 0 && pos0 != s->length) {
        return nb_fail(err, NB_EUSAGE, "KV cache: position %lld, expected 0 or %lld",
                       (long long)pos0, (long long)s->length);
    }
    if (T > s->d.capacity - pos0) {
        return nb_fail(err, NB_ERESOURCE, "KV cache: %lld positions, capacity %lld",
                       (long long)(pos0 + T), (long long)s->d.capacity);
    }
    NB_TRY(grow(s, pos0 + T, err));
    *first = *n_chunks = 0;
    if (s->block) {
        *first = pos0 / s->block;
        *n_chunks = (pos0 + T) / s->block - *first;
        NB_TRY(hold_recent(s, *first * s->block, pos0 + T, err));
    }
    s->length = pos0 + T;
    return NB_OK;
}

void nb_kv_store_end(nb_kv_store *s)
{
    if (!s->block) return;
    int64_t first = s->length / s->block * s->block;
    hold_recent(s, first, first, NULL); /* to give memory back does not fail; if it did: kept */
}

/* ---- writing --------------------------------------------------------------------------- */

typedef struct scratch {
    float *x; /* a record's values */
    uint8_t *codes;
    nb_qparam *p;
} scratch;

static scratch place_scratch(const nb_kv_store *s, char *base, size_t *bytes)
{
    size_t n = (size_t)nb_max_i64(s->k.n, s->v.n);
    size_t x = nb_align_up(n * sizeof(float), 64), codes = nb_align_up(n, 64);
    size_t groups = (size_t)nb_max_i64(nb_format_groups(&s->k.format, s->k.n),
                                       nb_format_groups(&s->v.format, s->v.n));
    *bytes = nb_align_up(x + codes + groups * sizeof(nb_qparam), 64);
    if (!base) return (scratch){0};
    return (scratch){(float *)base, (uint8_t *)base + x, (nb_qparam *)(base + x + codes)};
}

size_t nb_kv_store_scratch(const nb_kv_store *s)
{
    size_t bytes;
    place_scratch(s, NULL, &bytes);
    return bytes;
}

static uint8_t *record(const nb_kv_store *s, const nb_kv_rows *r, int64_t i, int64_t head)
{
    return r->data + (i * s->d.n_kv_heads + head) * r->bytes;
}

void nb_kv_planes(const nb_kv_store *s, const nb_kv_rows *r, int64_t i, int64_t head,
                  const uint8_t *plane[NB_MAX_PLANES])
{
    const uint8_t *at = record(s, r, i, head);
    for (int j = 0; j < NB_MAX_PLANES; j++) plane[j] = at + r->off[j];
}

static void write_plain(nb_dtype type, const float *x, int64_t n, uint8_t *out)
{
    if (type == NB_F32) {
        memcpy(out, x, (size_t)n * sizeof *x);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = type == NB_F16 ? nb_f16_from_f32(x[i]) : nb_bf16_from_f32(x[i]);
        memcpy(out + 2 * i, &h, sizeof h);
    }
}

/* Returns how many values saturated. */
static int64_t write_record(const nb_kv_store *s, const nb_kv_rows *r, int64_t i, int64_t head,
                            const float *x, scratch *t)
{
    uint8_t *at = record(s, r, i, head), *plane[NB_MAX_PLANES];
    if (!nb_format_is_quantized(&r->format)) {
        write_plain((nb_dtype)r->format.variant, x, r->n, at);
        return 0;
    }
    for (int j = 0; j < NB_MAX_PLANES; j++) plane[j] = at + r->off[j];
    int64_t bad = nb_quant_row(&r->format, x, r->n, t->codes, t->p);
    r->format.family->pack_row(&r->format, t->codes, t->p, r->n, plane);
    return bad;
}

static uint16_t *recent_row(const nb_kv_store *s, int64_t pos, int64_t head)
{
    return s->recent + (pos - s->recent_pos) * width(s) + head * s->d.head_dim;
}

int64_t nb_kv_store_put(nb_kv_store *s, int64_t pos, int64_t head, const float *k, const float *v,
                        void *mem)
{
    size_t bytes;
    scratch t = place_scratch(s, mem, &bytes);
    int64_t bad = write_record(s, &s->k, pos, head, k, &t);
    if (!s->block) return bad + write_record(s, &s->v, pos, head, v, &t);
    bool any = nb_format_is_dialect(&s->v.format);
    uint16_t *to = recent_row(s, pos, head);
    for (int c = 0; c < s->d.head_dim; c++) to[c] = nb_kv_half(v[c], any);
    return bad + (any ? nb_count_nonfinite(v, s->d.head_dim) : 0);
}

void nb_kv_store_seal(nb_kv_store *s, int64_t chunk, int64_t head, void *mem)
{
    size_t bytes;
    scratch t = place_scratch(s, mem, &bytes);
    for (int64_t i = 0; i < s->block; i++) {
        const uint16_t *from = recent_row(s, chunk * s->block + i, head);
        for (int c = 0; c < s->d.head_dim; c++) t.x[c * s->block + i] = nb_f16_to_f32(from[c]);
    }
    write_record(s, &s->v, chunk, head, t.x, &t);
}

/* ---- reading --------------------------------------------------------------------------- */

void nb_kv_store_recent(const nb_kv_store *s, int64_t pos, int64_t head, float *v)
{
    const uint16_t *from = recent_row(s, pos, head);
    for (int c = 0; c < s->d.head_dim; c++) v[c] = nb_f16_to_f32(from[c]);
}

nb_kv_sight nb_kv_sight_of(const nb_kv_store *s, int64_t pos, int window)
{
    const nb_format *p = &s->d.formats.p;
    return nb_kv_sight_at(pos, window, s->block, s->d.paper ? s->length : pos,
                          p->group > 0 ? p->group : 1);
}
