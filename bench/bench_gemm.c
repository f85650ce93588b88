/* Speed of the cpu backend at the shapes of SmolLM2-135M, as shares of what oneDNN gives.
 *
 *   bench_gemm [tokens [threads]]
 *
 * First the floor: the rate of one large oneDNN product per thread. Then each op of a forward by
 * itself, then the ops of the whole model in their order: 30 blocks, head and loss. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/rng.h"
#include "floor.h"
#include "format/half.h"
#include "op/op.h"

enum { C = 576, F = 1536, H = 9, K = 3, D = 64, V = 49152, LAYERS = 30 };

#define HEAD_ROWS 256 /* tokens per head product: logits of all at once would not fit a cache */

static void die(const char *what)
{
    fprintf(stderr, "bench_gemm: %s\n", what);
    exit(1);
}

/* ---- a synthetic model ----------------------------------------------------------------- */

typedef struct bench {
    nb_backend *be;
    int64_t T;
    uint16_t *weights; /* F * C * 2 random bf16 values; every linear begins at the first */
    uint16_t *table;   /* [V, C] */
    nb_matrix m[8];
    uint8_t *packed; /* [F, C] int4:g64, all planes */
    nb_linear *qo, *kv, *up, *up4, *down, *head;
    nb_view x, y, q, k, v, gate, upv, logits, rope;
    nb_norm norm;
    double *nll;
    int32_t *ids;
} bench;

static nb_view make_view(bench *b, int64_t rows, int64_t cols)
{
    nb_buffer *buf;
    if (b->be->ops->buffer_create(b->be, rows * cols, &buf, NULL) != NB_OK) die("out of memory");
    nb_view v = nb_view_of(buf, rows, cols);
    float *x = malloc((size_t)(rows * cols) * sizeof *x);
    if (!x) die("out of memory");
    nb_rng r = {1};
    for (int64_t i = 0; i < rows * cols; i++) x[i] = (float)nb_rng_uniform(&r) - 0.5f;
    b->be->ops->upload(b->be, v, x, NB_F32);
    free(x);
    return v;
}

static uint16_t *make_bf16(int64_t n)
{
    uint16_t *w = malloc((size_t)n * sizeof *w);
    if (!w) die("out of memory");
    nb_rng r = {2};
    for (int64_t i = 0; i < n; i++) {
        w[i] = nb_bf16_from_f32((float)(nb_rng_uniform(&r) - 0.5) * 0.1f);
    }
    return w;
}

static nb_linear *make_linear(bench *b, nb_matrix *m, const uint16_t *w, int64_t n_out,
                              int64_t n_in)
{
    *m = (nb_matrix){.format = nb_format_plain(NB_BF16), .n_out = n_out, .n_in = n_in};
    m->plane[0] = (const uint8_t *)w;
    nb_linear *l;
    nb_linear_desc d = {.w = m};
    if (b->be->ops->linear_create(b->be, &d, &l, NULL) != NB_OK) die("out of memory");
    return l;
}

/* Any bytes will do: 0x3a3a is a harmless fp16 scale. */
static nb_linear *make_packed(bench *b, nb_matrix *m, int64_t n_out, int64_t n_in)
{
    *m = (nb_matrix){.n_out = n_out, .n_in = n_in};
    nb_plane_spec spec[NB_MAX_PLANES];
    if (nb_format_parse(&m->format, "int4:g64", NULL) != NB_OK) die("no int4:g64");
    int n = m->format.family->planes(&m->format, n_in, spec);
    b->packed = malloc((size_t)nb_matrix_bytes(m));
    if (!b->packed) die("out of memory");
    memset(b->packed, 0x3a, (size_t)nb_matrix_bytes(m));
    const uint8_t *p = b->packed;
    for (int i = 0; i < n; i++) {
        m->plane[i] = p;
        p += n_out * spec[i].row_bytes;
    }
    nb_linear *l;
    nb_linear_desc d = {.w = m};
    if (b->be->ops->linear_create(b->be, &d, &l, NULL) != NB_OK) die("out of memory");
    return l;
}

static void setup(bench *b)
{
    int64_t T = b->T;
    b->weights = make_bf16(F * C);
    b->table = make_bf16((int64_t)V * C);
    b->qo = make_linear(b, &b->m[0], b->weights, C, C);
    b->kv = make_linear(b, &b->m[1], b->weights, K * D, C);
    b->up = make_linear(b, &b->m[2], b->weights, F, C);
    b->down = make_linear(b, &b->m[3], b->weights, C, F);
    b->up4 = make_packed(b, &b->m[5], F, C);
    b->head = make_linear(b, &b->m[4], b->table, V, C);
    b->x = make_view(b, T, C), b->y = make_view(b, T, C), b->q = make_view(b, T, C);
    b->k = make_view(b, T, K * D), b->v = make_view(b, T, K * D), b->rope = make_view(b, T, D);
    b->gate = make_view(b, T, F), b->upv = make_view(b, T, F);
    b->logits = make_view(b, T < HEAD_ROWS ? T : HEAD_ROWS, V);
    b->norm = (nb_norm){.kind = NB_NORM_RMS, .eps = 1e-5f};
    b->nll = calloc((size_t)T, sizeof *b->nll);
    b->ids = calloc((size_t)T, sizeof *b->ids);
    if (!b->nll || !b->ids) die("out of memory");
}

static void teardown(bench *b)
{
    const nb_view views[] = {b->x, b->y, b->q, b->k, b->v, b->gate, b->upv, b->logits, b->rope};
    nb_linear *linears[] = {b->qo, b->kv, b->up, b->up4, b->down, b->head};
    for (size_t i = 0; i < NB_COUNT(views); i++) b->be->ops->buffer_free(b->be, views[i].buf);
    for (size_t i = 0; i < NB_COUNT(linears); i++) b->be->ops->linear_free(b->be, linears[i]);
    free(b->weights), free(b->packed), free(b->table), free(b->nll), free(b->ids);
    nb_backend_free(b->be);
}

/* ---- ops ------------------------------------------------------------------------------- */

static void op_embed(bench *b) { b->be->ops->embed_forward(b->be, b->y, b->head, b->ids); }
static void op_norm(bench *b) { b->be->ops->norm_forward(b->be, b->y, b->x, &b->norm); }
static void op_qo(bench *b) { b->be->ops->linear_forward(b->be, b->q, b->y, b->qo, false); }
static void op_k(bench *b) { b->be->ops->linear_forward(b->be, b->k, b->y, b->kv, false); }
static void op_up(bench *b) { b->be->ops->linear_forward(b->be, b->gate, b->y, b->up, false); }
static void op_up4(bench *b) { b->be->ops->linear_forward(b->be, b->gate, b->y, b->up4, false); }
static void op_down(bench *b) { b->be->ops->linear_forward(b->be, b->y, b->gate, b->down, true); }
static void op_glu(bench *b)
{
    b->be->ops->glu_forward(b->be, b->gate, b->gate, b->upv, NB_ACT_SILU);
}
static void op_rope(bench *b) { b->be->ops->rope_forward(b->be, b->q, H, b->rope, false); }

static void op_attention(bench *b)
{
    nb_attention a = {.n_heads = H, .n_kv_heads = K, .head_dim = D, .scale = 0.125f};
    b->be->ops->attention_forward(b->be, b->y, b->q, b->k, b->v, &a);
}

static nb_view head_rows(const bench *b, int64_t t)
{
    int64_t n = b->T - t < b->logits.rows ? b->T - t : b->logits.rows;
    return nb_view_rows(b->x, t, n);
}

static void op_head(bench *b)
{
    for (int64_t t = 0; t < b->T; t += b->logits.rows) {
        nb_view x = head_rows(b, t);
        b->be->ops->linear_forward(b->be, nb_view_rows(b->logits, 0, x.rows), x, b->head, false);
    }
}

static void op_nll(bench *b)
{
    for (int64_t t = 0; t < b->T; t += b->logits.rows) {
        nb_view l = nb_view_rows(b->logits, 0, head_rows(b, t).rows);
        b->be->ops->nll_forward(b->be, b->nll + t, l, b->ids + t);
    }
}

static void op_block(bench *b)
{
    op_norm(b);
    op_qo(b), op_k(b);
    b->be->ops->linear_forward(b->be, b->v, b->y, b->kv, false);
    op_rope(b);
    b->be->ops->rope_forward(b->be, b->k, K, b->rope, false);
    op_attention(b);
    b->be->ops->linear_forward(b->be, b->q, b->y, b->qo, true);
    op_norm(b);
    op_up(b);
    b->be->ops->linear_forward(b->be, b->upv, b->y, b->up, false);
    op_glu(b);
    op_down(b);
}

static void op_model(bench *b)
{
    op_embed(b);
    for (int i = 0; i < LAYERS; i++) op_block(b);
    op_norm(b);
    for (int64_t t = 0; t < b->T; t += b->logits.rows) {
        nb_view x = head_rows(b, t), l = nb_view_rows(b->logits, 0, x.rows);
        b->be->ops->linear_forward(b->be, l, x, b->head, false);
        b->be->ops->nll_forward(b->be, b->nll + t, l, b->ids + t);
    }
}

/* ---- table ----------------------------------------------------------------------------- */

static double time_op(bench *b, void (*run)(bench *), int times)
{
    double best = INFINITY;
    run(b);
    for (int i = 0; i < times; i++) {
        double t0 = nb_now();
        run(b);
        double t = nb_now() - t0;
        best = t < best ? t : best;
    }
    return best;
}

static void print_op(bench *b, const char *name, void (*run)(bench *), double flops, double bytes,
                     double floor, int times)
{
    double t = time_op(b, run, times);
    printf("%-12s %10.3f ms", name, t * 1e3);
    if (flops > 0) printf(" %8.1f GFLOP/s %5.1f %%", flops / t * 1e-9, flops / t * 1e-7 / floor);
    if (bytes > 0) printf(" %8.1f GB/s", bytes / t * 1e-9);
    printf("\n");
}

static void bench_compute(int64_t T, int threads, nb_compute compute)
{
    double floor = nb_gemm_floor(threads, compute == NB_COMPUTE_BF16);
    printf("\n%s, %d threads, %lld tokens: oneDNN %.1f GFLOP/s\n",
           compute == NB_COMPUTE_BF16 ? "bf16" : "fp32", threads, (long long)T, floor);
    nb_options opt = {.threads = threads, .compute = compute, .cpumask = ~0u};
    nb_error err;
    bench b = {.T = T};
    if (nb_backend_create(&b.be, &opt, &err) != NB_OK) {
        printf("%s\n", err.message);
        return;
    }
    setup(&b);
    double t = (double)T, pairs = t * (t + 1) / 2; /* (query, key) */
    double attention = 4 * pairs * H * D,
           linears = 2 * t * (2. * C * C + 2. * C * K * D + 3. * C * F);
    double head = 2 * t * C * V, model = LAYERS * (attention + linears) + head;
    print_op(&b, "q, o", op_qo, 2 * t * C * C, C * C * 2, floor, 9);
    print_op(&b, "k, v", op_k, 2 * t * C * K * D, C * K * D * 2, floor, 9);
    print_op(&b, "gate, up", op_up, 2 * t * C * F, C * F * 2, floor, 9);
    print_op(&b, "up int4:g64", op_up4, 2 * t * C * F, (double)nb_matrix_bytes(&b.m[5]), floor, 9);
    print_op(&b, "down", op_down, 2 * t * C * F, C * F * 2, floor, 9);
    print_op(&b, "head", op_head, head, (double)C * V * 2, floor, 3);
    print_op(&b, "attention", op_attention, attention, t * K * D * 8, floor, 9);
    print_op(&b, "embed", op_embed, 0, t * C * 6, floor, 9);
    print_op(&b, "norm", op_norm, 0, t * C * 8, floor, 9);
    print_op(&b, "rope", op_rope, 0, t * C * 8, floor, 9);
    print_op(&b, "glu", op_glu, 0, t * F * 12, floor, 9);
    print_op(&b, "nll", op_nll, 0, t * V * 4, floor, 3);
    print_op(&b, "block", op_block, attention + linears, 0, floor, 5);
    print_op(&b, "model", op_model, model, 0, floor, 2);
    if (b.be->ops->sync(b.be, &err) != NB_OK) die(err.message);
    teardown(&b);
}

int main(int argc, char **argv)
{
    int64_t T = argc > 1 ? atoll(argv[1]) : 2048;
    int threads = argc > 2 ? atoi(argv[2]) : nb_cpu_count();
    if (T < 1 || threads < 1) die("usage: bench_gemm [tokens [threads]]");
    bench_compute(T, threads, NB_COMPUTE_F32);
    bench_compute(T, threads, NB_COMPUTE_BF16);
    return 0;
}
