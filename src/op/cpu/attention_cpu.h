/* What attention and its gradient share: who sees what, and operands in rows.
 *
 * The queries of the H/K heads of a KV head are rows of one matrix, by tiles of a few tokens: row
 * h * tokens + i is token i of the tile, head h of the group. */
#ifndef NB_OP_CPU_ATTENTION_CPU_H
#define NB_OP_CPU_ATTENTION_CPU_H

#include <string.h>

#include "base/size.h"
#include "op/cpu/backend_cpu.h"

#define NB_CPU_QUERY_ROWS   256 /* most rows of a tile */
#define NB_CPU_QUERY_TOKENS 128 /* most tokens */

/* First key that the query at position pos sees. */
static inline int64_t nb_cpu_first_key(const nb_attention *a, int64_t pos)
{
    return a->window > 0 ? nb_max_i64(0, pos + 1 - a->window) : 0;
}

/* Tokens per tile: a power of two, no more than there are. */
static inline int64_t nb_cpu_query_tokens(int64_t group, int64_t T)
{
    int64_t n = 16;
    while (2 * n * group <= NB_CPU_QUERY_ROWS && n < NB_CPU_QUERY_TOKENS && n < T) n *= 2;
    return n;
}

/* Bytes of an operand of products. */
static inline int64_t nb_cpu_operand_bytes(const nb_backend *be)
{
    return be->compute == NB_COMPUTE_BF16 ? sizeof(uint16_t) : sizeof(float);
}

static inline void nb_cpu_store_operands(const nb_backend *be, void *out, const float *x, int64_t n)
{
    if (be->compute == NB_COMPUTE_BF16) {
        nb_cpu_of(be)->k.bf16_from_f32(out, x, n);
    } else {
        memcpy(out, x, (size_t)n * sizeof *x);
    }
}

/* out [group * tokens, D] operands: rows of x [T, H*D] for tokens t0 .. t0+n-1 of KV head `head`;
 * rows without a token are zero. */
static inline void nb_cpu_pack_queries(const nb_backend *be, char *out, nb_view x,
                                       const nb_attention *a, int64_t head, int64_t t0, int64_t n,
                                       int64_t tokens)
{
    int64_t D = a->head_dim, bytes = D * nb_cpu_operand_bytes(be),
            group = a->n_heads / a->n_kv_heads;
    for (int64_t r = 0; r < group * tokens; r++) {
        int64_t h = r / tokens, i = r % tokens;
        char *to = out + r * bytes;
        if (i < n) {
            nb_cpu_store_operands(be, to, nb_cpu_row(x, t0 + i) + (head * group + h) * D, D);
        } else {
            memset(to, 0, (size_t)bytes);
        }
    }
}

#endif
