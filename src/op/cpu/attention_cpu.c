/* Causal attention over tiles, after FlashAttention (Dao et al. 2022, algorithm 1): nothing of
 * size T x S is stored.
 *
 * A task is one tile of queries of one KV head: the queries of its H/K heads are rows of one
 * matrix. For each tile of keys that any of them sees:
 *
 *   s [rows, keys] = q [rows, D] k^T          oneDNN
 *   m' = max(m, max s)                        per row, over the keys that the row sees
 *   p = exp(scale (s - m')), 0 elsewhere      l = l exp(scale (m - m')) + sum p
 *   o = o exp(scale (m - m')) + p v           oneDNN
 *
 * and out = o / l in the end. Keys and values are first copied to contiguous rows per KV head, in
 * the operand type and with zeros up to a whole tile, so that products have a few fixed shapes. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "op/cpu/attention_cpu.h"

#define KEY_TILE   256 /* keys per product */
#define KEY_UNIT   64  /* the last product of a tile of queries: the fewest such units */
#define N_UNITS    (KEY_TILE / KEY_UNIT)
#define PACK_BYTES ((int64_t)16 << 20) /* packed keys and values at one time */

typedef struct job {
    nb_backend *be;
    nb_view out, lse, q, k, v; /* lse.buf NULL: not wanted */
    const nb_attention *a;
    int64_t group, tokens; /* heads per KV head; queries per task: rows = group * tokens */
    int64_t key0, n_keys;  /* first key that anyone sees; keys from there, in whole tiles */
    int64_t size;          /* bytes of an operand */
    char *packed;          /* [heads at one time][2][n_keys, D] operands */
    const nb_gemm_op *qk[N_UNITS], *pv[N_UNITS]; /* by units of keys - 1 */
    char *scratch;
    size_t gemm_bytes, thread_bytes;
} job;

/* A task's own memory, cut from the thread's scratch. */
typedef struct tile {
    char *gemm, *q;   /* q [rows, D] operands */
    float *s, *o;     /* [rows, KEY_TILE], [rows, D] */
    uint16_t *p;      /* [rows, KEY_TILE], bf16 only */
    float *max, *sum; /* [rows] */
} tile;

static int64_t rows_of(const job *j) { return j->group * j->tokens; }

/* Lays the pieces of a tile out; returns their bytes. base NULL: only measures. */
static size_t place_tile(const job *j, char *base, tile *t)
{
    size_t rows = (size_t)rows_of(j), used = 0, D = (size_t)j->a->head_dim;
    const size_t bytes[] = {j->gemm_bytes, rows * D * (size_t)j->size, rows * KEY_TILE * 4,
                            rows * D * 4,  rows * KEY_TILE * 2,        rows * 4,
                            rows * 4};
    char *piece[NB_COUNT(bytes)];
    for (size_t i = 0; i < NB_COUNT(bytes); i++) {
        piece[i] = base ? base + used : NULL;
        used += nb_align_up(bytes[i], 64);
    }
    *t = (tile){piece[0],
                piece[1],
                (float *)piece[2],
                (float *)piece[3],
                (uint16_t *)piece[4],
                (float *)piece[5],
                (float *)piece[6]};
    return used;
}

/* ---- shapes ---------------------------------------------------------------------------- */

static const nb_gemm_op *find_op(job *j, nb_gemm_desc d)
{
    d.m = rows_of(j);
    d.bf16 = j->size == sizeof(uint16_t);
    const nb_gemm_op *op = nb_cpu_gemm(j->be, &d);
    size_t bytes = op ? nb_gemm_scratch(op) : 0;
    j->gemm_bytes = bytes > j->gemm_bytes ? bytes : j->gemm_bytes;
    return op;
}

static bool find_ops(job *j)
{
    int64_t D = j->a->head_dim;
    for (int i = 0; i < N_UNITS; i++) {
        int64_t n = (i + 1) * KEY_UNIT;
        j->qk[i] = find_op(
            j, (nb_gemm_desc){.n = n, .k = D, .lda = D, .ldb = D, .ldc = KEY_TILE, .b_rows = true});
        j->pv[i] = find_op(
            j, (nb_gemm_desc){.n = D, .k = n, .lda = KEY_TILE, .ldb = D, .ldc = D, .add = true});
        if (!j->qk[i] || !j->pv[i]) return false;
    }
    return true;
}

/* ---- packing --------------------------------------------------------------------------- */

static char *packed_rows(const job *j, int64_t head, int which)
{
    return j->packed + (2 * head + which) * j->n_keys * j->a->head_dim * j->size;
}

/* Row i of the packed keys and values of KV head first + head. */
static void pack_row(const job *j, int64_t first, int64_t head, int64_t i)
{
    int64_t D = j->a->head_dim, bytes = D * j->size, col = (first + head) * D;
    const nb_view from[2] = {j->k, j->v};
    for (int which = 0; which < 2; which++) {
        char *to = packed_rows(j, head, which) + i * bytes;
        if (j->key0 + i < j->a->pos0 + j->q.rows) {
            nb_cpu_store_operands(j->be, to, nb_cpu_row(from[which], j->key0 + i) + col, D);
        } else {
            memset(to, 0, (size_t)bytes);
        }
    }
}

/* ---- softmax --------------------------------------------------------------------------- */

/* One row over the n keys of a tile, of which it sees [lo, hi). */
static void softmax_row(const job *j, const tile *t, int64_t r, int64_t n, int64_t lo, int64_t hi)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    float *s = t->s + r * KEY_TILE, *o = t->o + r * j->a->head_dim, scale = j->a->scale;
    if (lo < hi) {
        float max = fmaxf(t->max[r], k->max(s + lo, hi - lo));
        float keep = expf(scale * (t->max[r] - max)); /* 0 at first: max is -Inf */
        t->sum[r] = t->sum[r] * keep + k->exp_sum(s + lo, s + lo, max, scale, hi - lo);
        t->max[r] = max;
        if (keep != 1) k->scale(o, keep, o, j->a->head_dim);
    } else {
        lo = hi = n;
    }
    memset(s, 0, (size_t)lo * sizeof *s);
    memset(s + hi, 0, (size_t)(n - hi) * sizeof *s);
    if (j->size == sizeof(uint16_t)) k->bf16_from_f32(t->p + r * KEY_TILE, s, n);
}

/* Keys key .. key+n-1 for the tile of queries; head: index into the packed ones. */
static bool add_keys(const job *j, const tile *t, int64_t head, int64_t t0, int64_t n_tokens,
                     int64_t key, int64_t n)
{
    int64_t unit = (n + KEY_UNIT - 1) / KEY_UNIT - 1;
    int64_t offset = (key - j->key0) * j->a->head_dim * j->size;
    n = (unit + 1) * KEY_UNIT;
    if (!nb_gemm_run(j->qk[unit], t->q, packed_rows(j, head, 0) + offset, t->s, t->gemm)) {
        return false;
    }
    for (int64_t r = 0; r < rows_of(j); r++) {
        int64_t i = r % j->tokens, pos = j->a->pos0 + t0 + i;
        int64_t lo = nb_clamp_i64(nb_cpu_first_key(j->a, pos) - key, 0, n),
                hi = nb_clamp_i64(pos + 1 - key, 0, n);
        softmax_row(j, t, r, n, lo, i < n_tokens ? hi : 0);
    }
    const void *p = j->size == sizeof(float) ? (const void *)t->s : t->p;
    return nb_gemm_run(j->pv[unit], p, packed_rows(j, head, 1) + offset, t->o, t->gemm);
}

static void store_out(const job *j, const tile *t, int64_t head, int64_t t0, int64_t n)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    int64_t D = j->a->head_dim;
    for (int64_t r = 0; r < rows_of(j); r++) {
        int64_t h = r / j->tokens, i = r % j->tokens;
        if (i >= n) continue;
        float *to = nb_cpu_row(j->out, t0 + i) + (head * j->group + h) * D;
        k->scale(to, 1 / t->sum[r], t->o + r * D, D);
        if (j->lse.buf) {
            float lse = j->a->scale * t->max[r] + logf(t->sum[r]);
            nb_cpu_row(j->lse, t0 + i)[head * j->group + h] = lse;
        }
    }
}

static bool run_task(const job *j, int64_t first_head, int64_t head, int64_t i)
{
    tile t;
    place_tile(j, j->scratch + j->thread_bytes * (size_t)omp_get_thread_num(), &t);
    int64_t t0 = i * j->tokens, n = nb_min_i64(j->tokens, j->q.rows - t0), rows = rows_of(j);
    nb_cpu_pack_queries(j->be, t.q, j->q, j->a, first_head + head, t0, n, j->tokens);
    for (int64_t r = 0; r < rows; r++) t.max[r] = -INFINITY;
    memset(t.sum, 0, (size_t)rows * sizeof *t.sum);
    memset(t.o, 0, (size_t)(rows * j->a->head_dim) * sizeof *t.o);
    int64_t begin = nb_cpu_first_key(j->a, j->a->pos0 + t0), end = j->a->pos0 + t0 + n;
    int64_t key = j->key0 + (begin - j->key0) / KEY_TILE * KEY_TILE;
    for (; key < end; key += KEY_TILE) {
        if (!add_keys(j, &t, head, t0, n, key, nb_min_i64(end - key, KEY_TILE))) return false;
    }
    store_out(j, &t, first_head + head, t0, n);
    return true;
}

/* ---- the op ---------------------------------------------------------------------------- */

/* KV heads first .. first+n-1. The last queries see most: they go first. */
static void run_heads(const job *j, int64_t first, int64_t n)
{
    int64_t tiles = (j->q.rows + j->tokens - 1) / j->tokens;
    bool ok = true;
#pragma omp parallel num_threads(j->be->threads) reduction(&& : ok)
    {
        omp_set_num_threads(1); /* this region's own copy: keeps oneDNN on this thread */
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n * j->n_keys; i++)
            pack_row(j, first, i / j->n_keys, i % j->n_keys);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n * tiles; i++) {
            ok = run_task(j, first, i % n, tiles - 1 - i / n) && ok;
        }
    }
    if (!ok) nb_cpu_fail_gemm(j->be);
}

void nb_cpu_attention_train(nb_backend *be, nb_view out, nb_view lse, nb_view q, nb_view k,
                            nb_view v, const nb_attention *a)
{
    assert(a->n_heads % a->n_kv_heads == 0 && a->scale > 0);
    assert(k.rows >= a->pos0 + q.rows && v.rows >= a->pos0 + q.rows);
    if (q.rows <= NB_CPU_FEW_ROWS) {
        nb_cpu_attention_few(be, out, lse, q, k, v, a);
        return;
    }
    job j = {.be = be, .out = out, .lse = lse, .q = q, .k = k, .v = v, .a = a};
    j.size = be->compute == NB_COMPUTE_BF16 ? sizeof(uint16_t) : sizeof(float);
    j.group = a->n_heads / a->n_kv_heads;
    j.tokens = nb_cpu_query_tokens(j.group, q.rows);
    j.key0 = nb_cpu_first_key(a, a->pos0);
    int64_t keys = a->pos0 + q.rows - j.key0;
    j.n_keys = (keys + KEY_TILE - 1) / KEY_TILE * KEY_TILE;
    nb_gemm_trim(nb_cpu_of(be)->gemm);
    if (!find_ops(&j)) return;
    tile measured;
    j.thread_bytes = place_tile(&j, NULL, &measured);
    j.scratch = nb_cpu_scratch(be, NB_CPU_THREAD, j.thread_bytes * (size_t)be->threads);
    int64_t head_bytes = 2 * j.n_keys * a->head_dim * j.size;
    int64_t heads = nb_clamp_i64(PACK_BYTES / head_bytes, 1, a->n_kv_heads);
    j.packed = nb_cpu_scratch(be, NB_CPU_PANEL, (size_t)(heads * head_bytes));
    if (!j.scratch || !j.packed) return;
    for (int64_t i = 0; i < a->n_kv_heads; i += heads) {
        run_heads(&j, i, nb_min_i64(heads, a->n_kv_heads - i));
    }
}

void nb_cpu_attention_forward(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                              const nb_attention *a)
{
    nb_cpu_attention_train(be, out, (nb_view){0}, q, k, v, a);
}
