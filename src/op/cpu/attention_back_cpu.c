/* Gradient of causal attention over tiles, after FlashAttention-2 (Dao 2023, algorithm 2): softmax
 * weights are made again from lse, nothing of size T x T is stored. For a tile of keys and each
 * tile of queries that sees any of them, with own = sum over D of dout * out, per row:
 *
 *   s [rows, keys] = q k^T, p = exp(scale s - lse), 0 where a row does not see the key
 *   dv += p^T dout      dp = dout v^T      ds = scale p (dp - own)      dk += ds^T q      dq += ds
 * k
 *
 * A task is one KV head and one lane of key tiles: dk and dv of a tile are finished in one task, dq
 * is summed per lane and the lanes are added up in their order. How tiles are dealt to lanes
 * depends on T alone, so results do not depend on the number of threads. */
#include <assert.h>
#include <string.h>

#include "op/cpu/attention_cpu.h"

#define KEY_TILE   128 /* keys per product */
#define LANES      4   /* most parts of a head that can be worked on at the same time */
#define PACK_BYTES ((int64_t)64 << 20) /* packed heads at one time */

typedef struct job {
    nb_backend *be;
    nb_view dq, dk, dv, dout, out, lse, q, k, v;
    const nb_attention *a;
    int64_t group, tokens, rows; /* heads per KV head; queries per tile: rows = group * tokens */
    int64_t q_tiles, k_tiles, lanes, size; /* size: bytes of an operand */
    char *packed;                          /* of each head: struct head */
    const nb_gemm_op *scores, *by_key, *by_query;
    char *scratch; /* a tile for each thread */
    size_t gemm_bytes, head_bytes, tile_bytes;
} job;

/* What is packed of one KV head. */
typedef struct head {
    char *q, *dout;     /* [q_tiles][rows, D] operands */
    char *k, *v;        /* [k_tiles * KEY_TILE, D] operands */
    float *shift, *own; /* [q_tiles][rows]: lse / scale, sum of dout * out */
    float *dq;          /* [lanes][q_tiles][rows, D] */
} head;

/* A thread's own memory. */
typedef struct tile {
    char *gemm;
    float *s, *dp;  /* [rows, KEY_TILE]: p and ds in the end */
    uint16_t *p16;  /* the same in bf16, first p, then ds; only in that mode */
    float *dk, *dv; /* [KEY_TILE, D] */
} tile;

/* Cuts n pieces of memory off base, or only measures if base is NULL; returns their bytes. */
static size_t cut_pieces(char *base, const size_t *bytes, size_t n, void **piece)
{
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        piece[i] = base ? base + used : NULL;
        used += nb_align_up(bytes[i], 64);
    }
    return used;
}

static size_t place_head(const job *j, char *base, head *h)
{
    size_t D = (size_t)j->a->head_dim, size = (size_t)j->size;
    size_t queries = (size_t)(j->q_tiles * j->rows), keys = (size_t)(j->k_tiles * KEY_TILE);
    const size_t bytes[] = {queries * D * size,
                            queries * D * size,
                            keys * D * size,
                            keys * D * size,
                            queries * 4,
                            queries * 4,
                            (size_t)j->lanes * queries * D * 4};
    void *p[NB_COUNT(bytes)];
    size_t used = cut_pieces(base, bytes, NB_COUNT(bytes), p);
    *h = (head){p[0], p[1], p[2], p[3], p[4], p[5], p[6]};
    return used;
}

static size_t place_tile(const job *j, char *base, tile *t)
{
    size_t D = (size_t)j->a->head_dim, area = (size_t)j->rows * KEY_TILE;
    const size_t bytes[] = {j->gemm_bytes, area * 4,         area * 4,
                            area * 2,      KEY_TILE * D * 4, KEY_TILE * D * 4};
    void *p[NB_COUNT(bytes)];
    size_t used = cut_pieces(base, bytes, NB_COUNT(bytes), p);
    *t = (tile){p[0], p[1], p[2], p[3], p[4], p[5]};
    return used;
}

/* ---- products -------------------------------------------------------------------------- */

static const nb_gemm_op *find_op(job *j, nb_gemm_desc d)
{
    d.bf16 = j->size == sizeof(uint16_t);
    const nb_gemm_op *op = nb_cpu_gemm(j->be, &d);
    size_t bytes = op ? nb_gemm_scratch(op) : 0;
    j->gemm_bytes = bytes > j->gemm_bytes ? bytes : j->gemm_bytes;
    return op;
}

static bool find_ops(job *j)
{
    int64_t D = j->a->head_dim, rows = j->rows;
    j->scores = find_op(
        j,
        (nb_gemm_desc){
            .m = rows, .n = KEY_TILE, .k = D, .lda = D, .ldb = D, .ldc = KEY_TILE, .b_rows = true});
    j->by_key = find_op(j, (nb_gemm_desc){.m = KEY_TILE,
                                          .n = D,
                                          .k = rows,
                                          .lda = KEY_TILE,
                                          .ldb = D,
                                          .ldc = D,
                                          .a_cols = true,
                                          .add = true});
    j->by_query = find_op(
        j, (nb_gemm_desc){
               .m = rows, .n = D, .k = KEY_TILE, .lda = KEY_TILE, .ldb = D, .ldc = D, .add = true});
    return j->scores && j->by_key && j->by_query;
}

/* ---- packing --------------------------------------------------------------------------- */

static head head_of(const job *j, int64_t i)
{
    head h;
    place_head(j, j->packed + (size_t)i * j->head_bytes, &h);
    return h;
}

static void pack_queries(const job *j, const head *h, int64_t kv_head, int64_t i)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    int64_t D = j->a->head_dim, t0 = i * j->tokens, n = nb_min_i64(j->tokens, j->q.rows - t0);
    int64_t offset = i * j->rows * D * j->size;
    nb_cpu_pack_queries(j->be, h->q + offset, j->q, j->a, kv_head, t0, n, j->tokens);
    nb_cpu_pack_queries(j->be, h->dout + offset, j->dout, j->a, kv_head, t0, n, j->tokens);
    for (int64_t r = 0; r < j->rows; r++) {
        int64_t t = t0 + r % j->tokens, q_head = kv_head * j->group + r / j->tokens;
        bool used = r % j->tokens < n;
        float *shift = h->shift + i * j->rows + r, *own = h->own + i * j->rows + r;
        *shift = used ? nb_cpu_row(j->lse, t)[q_head] / j->a->scale : 0;
        *own = used ? k->dot_f32(nb_cpu_row(j->dout, t) + q_head * D,
                                 nb_cpu_row(j->out, t) + q_head * D, D)
                    : 0;
    }
}

static void pack_key(const job *j, const head *h, int64_t kv_head, int64_t i)
{
    int64_t D = j->a->head_dim, bytes = D * j->size;
    const nb_view from[2] = {j->k, j->v};
    char *const to[2] = {h->k, h->v};
    for (int which = 0; which < 2; which++) {
        if (i < j->q.rows) {
            nb_cpu_store_operands(j->be, to[which] + i * bytes,
                                  nb_cpu_row(from[which], i) + kv_head * D, D);
        } else {
            memset(to[which] + i * bytes, 0, (size_t)bytes);
        }
    }
}

/* ---- one tile -------------------------------------------------------------------------- */

/* Row r: s [keys] becomes p, dp becomes ds, both 0 outside the keys [lo, hi) that the row sees. */
static void differentiate_row(const job *j, const head *h, float *s, float *dp, int64_t r,
                              int64_t lo, int64_t hi)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    if (lo >= hi) lo = hi = KEY_TILE;
    k->exp_sum(s + lo, s + lo, h->shift[r], j->a->scale, hi - lo);
    k->softmax_back(dp + lo, s + lo, dp + lo, h->own[r], j->a->scale, hi - lo);
    memset(s, 0, (size_t)lo * sizeof *s);
    memset(dp, 0, (size_t)lo * sizeof *dp);
    memset(s + hi, 0, (size_t)(KEY_TILE - hi) * sizeof *s);
    memset(dp + hi, 0, (size_t)(KEY_TILE - hi) * sizeof *dp);
}

/* The tile as operands. */
static const void *as_operands(const job *j, const tile *t, const float *x)
{
    if (j->size == sizeof(float)) return x;
    nb_cpu_of(j->be)->k.bf16_from_f32(t->p16, x, j->rows * KEY_TILE);
    return t->p16;
}

/* Keys of tile `kt` and queries of tile `qt`: adds to t's dk and dv, and to dq [rows, D]. */
static bool add_tile(const job *j, const tile *t, const head *h, int64_t kt, int64_t qt, float *dq)
{
    int64_t D = j->a->head_dim, key0 = kt * KEY_TILE, t0 = qt * j->tokens;
    int64_t key_off = key0 * D * j->size, q_off = qt * j->rows * D * j->size;
    bool ok = nb_gemm_run(j->scores, h->q + q_off, h->k + key_off, t->s, t->gemm) &&
              nb_gemm_run(j->scores, h->dout + q_off, h->v + key_off, t->dp, t->gemm);
    if (!ok) return false;
    for (int64_t r = 0; r < j->rows; r++) {
        int64_t pos = t0 + r % j->tokens;
        int64_t lo = nb_clamp_i64(nb_cpu_first_key(j->a, pos) - key0, 0, KEY_TILE);
        int64_t hi = pos < j->q.rows ? nb_clamp_i64(pos + 1 - key0, 0, KEY_TILE) : 0;
        differentiate_row(j, h, t->s + r * KEY_TILE, t->dp + r * KEY_TILE, qt * j->rows + r, lo,
                          hi);
    }
    const void *p = as_operands(j, t, t->s);
    if (!nb_gemm_run(j->by_key, p, h->dout + q_off, t->dv, t->gemm)) return false;
    const void *ds = as_operands(j, t, t->dp);
    return nb_gemm_run(j->by_key, ds, h->q + q_off, t->dk, t->gemm) &&
           nb_gemm_run(j->by_query, ds, h->k + key_off, dq, t->gemm);
}

static void store_keys(const job *j, const tile *t, int64_t kv_head, int64_t kt)
{
    int64_t D = j->a->head_dim, end = nb_min_i64((kt + 1) * KEY_TILE, j->q.rows);
    for (int64_t i = kt * KEY_TILE; i < end; i++) {
        int64_t from = (i - kt * KEY_TILE) * D;
        memcpy(nb_cpu_row(j->dk, i) + kv_head * D, t->dk + from, (size_t)D * sizeof(float));
        memcpy(nb_cpu_row(j->dv, i) + kv_head * D, t->dv + from, (size_t)D * sizeof(float));
    }
}

/* ---- tasks ----------------------------------------------------------------------------- */

/* Dealt to and fro, so that lanes have about the same work: the first tiles are seen most. */
static int64_t lane_of(const job *j, int64_t key_tile)
{
    int64_t i = key_tile % (2 * j->lanes);
    return i < j->lanes ? i : 2 * j->lanes - 1 - i;
}

static bool run_key_tile(const job *j, const tile *t, const head *h, int64_t kt, float *dq)
{
    int64_t D = j->a->head_dim, T = j->q.rows, key0 = kt * KEY_TILE;
    int64_t end = nb_min_i64(key0 + KEY_TILE, T); /* last query that sees a key, + 1: */
    end = j->a->window > 0 ? nb_min_i64(end + j->a->window - 1, T) : T;
    memset(t->dk, 0, (size_t)(KEY_TILE * D) * sizeof(float));
    memset(t->dv, 0, (size_t)(KEY_TILE * D) * sizeof(float));
    for (int64_t qt = key0 / j->tokens; qt * j->tokens < end; qt++) {
        if (!add_tile(j, t, h, kt, qt, dq + qt * j->rows * D)) return false;
    }
    return true;
}

static bool run_lane(const job *j, int64_t kv_head, int64_t packed_head, int64_t lane)
{
    tile t;
    place_tile(j, j->scratch + j->tile_bytes * (size_t)omp_get_thread_num(), &t);
    head h = head_of(j, packed_head);
    int64_t n = j->q_tiles * j->rows * j->a->head_dim;
    float *dq = h.dq + lane * n;
    memset(dq, 0, (size_t)n * sizeof *dq);
    for (int64_t kt = 0; kt < j->k_tiles; kt++) {
        if (lane_of(j, kt) != lane) continue;
        if (!run_key_tile(j, &t, &h, kt, dq)) return false;
        store_keys(j, &t, kv_head, kt);
    }
    return true;
}

/* Queries of tile i: the sum of the lanes. */
static void store_queries(const job *j, const head *h, int64_t kv_head, int64_t i)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    int64_t D = j->a->head_dim, n = j->q_tiles * j->rows * D;
    for (int64_t r = 0; r < j->rows; r++) {
        int64_t t = i * j->tokens + r % j->tokens;
        if (t >= j->q.rows) continue;
        float *to = nb_cpu_row(j->dq, t) + (kv_head * j->group + r / j->tokens) * D;
        const float *from = h->dq + (i * j->rows + r) * D;
        memcpy(to, from, (size_t)D * sizeof *to);
        for (int64_t lane = 1; lane < j->lanes; lane++) k->add(to, to, from + lane * n, D);
    }
}

/* KV heads first .. first+n-1. */
static void run_heads(const job *j, int64_t first, int64_t n)
{
    int64_t keys = j->k_tiles * KEY_TILE;
    bool ok = true;
#pragma omp parallel num_threads(j->be->threads) reduction(&& : ok)
    {
        omp_set_num_threads(1); /* this region's own copy: keeps oneDNN on this thread */
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < n * j->q_tiles; i++) {
            head h = head_of(j, i / j->q_tiles);
            pack_queries(j, &h, first + i / j->q_tiles, i % j->q_tiles);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n * keys; i++) {
            head h = head_of(j, i / keys);
            pack_key(j, &h, first + i / keys, i % keys);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n * j->lanes; i++) {
            ok = run_lane(j, first + i / j->lanes, i / j->lanes, i % j->lanes) && ok;
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n * j->q_tiles; i++) {
            head h = head_of(j, i / j->q_tiles);
            store_queries(j, &h, first + i / j->q_tiles, i % j->q_tiles);
        }
    }
    if (!ok) nb_cpu_fail_gemm(j->be);
}

static bool prepare(job *j)
{
    nb_gemm_trim(nb_cpu_of(j->be)->gemm);
    if (!find_ops(j)) return false;
    tile measured_tile;
    head measured_head;
    j->tile_bytes = place_tile(j, NULL, &measured_tile);
    j->head_bytes = place_head(j, NULL, &measured_head);
    j->scratch = nb_cpu_scratch(j->be, NB_CPU_THREAD, j->tile_bytes * (size_t)j->be->threads);
    return j->scratch != NULL;
}

void nb_cpu_attention_backward(nb_backend *be, nb_view dq, nb_view dk, nb_view dv, nb_view dout,
                               nb_view out, nb_view lse, nb_view q, nb_view k, nb_view v,
                               const nb_attention *a)
{
    assert(a->n_heads % a->n_kv_heads == 0 && a->pos0 == 0 && lse.cols == a->n_heads);
    if (q.rows == 0) return;
    job j = {.be = be,
             .dq = dq,
             .dk = dk,
             .dv = dv,
             .dout = dout,
             .out = out,
             .lse = lse,
             .q = q,
             .k = k,
             .v = v,
             .a = a};
    j.size = nb_cpu_operand_bytes(be);
    j.group = a->n_heads / a->n_kv_heads;
    j.tokens = nb_cpu_query_tokens(j.group, q.rows);
    j.rows = j.group * j.tokens;
    j.q_tiles = (q.rows + j.tokens - 1) / j.tokens;
    j.k_tiles = (q.rows + KEY_TILE - 1) / KEY_TILE;
    j.lanes = nb_min_i64(LANES, j.k_tiles);
    if (!prepare(&j)) return;
    int64_t heads = nb_clamp_i64(PACK_BYTES / (int64_t)j.head_bytes, 1, a->n_kv_heads);
    j.packed = nb_cpu_scratch(be, NB_CPU_PANEL, (size_t)heads * j.head_bytes);
    if (!j.packed) return;
    for (int64_t i = 0; i < a->n_kv_heads; i += heads) {
        run_heads(&j, i, nb_min_i64(heads, a->n_kv_heads - i));
    }
}
