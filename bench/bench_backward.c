/* Speed of the training ops at the shapes of a SmolLM2-135M block, as shares of what oneDNN gives.
 *
 *   bench_backward [tokens [threads]]
 *
 * Products and attention are forward and backward together. The last line adds up what a step of
 * learned weight clipping costs (OmniQuant W4A16, section 7.2 without gradients of the inputs of q,
 * k, v): every op as often as the step needs it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/rng.h"
#include "floor.h"
#include "op/op.h"

enum { C = 576, F = 1536, H = 9, K = 3, D = 64 };

typedef struct bench {
    nb_backend *be;
    int64_t T;
    nb_format weight, act;
    nb_view x, dx, y, q, dq, k, dk, v, dv, lse; /* [T, C] ... [T, K*D] ... [T, H] */
    nb_view gate, up, dgate, dup;               /* [T, F] */
    nb_view w, wq, dw, u, l, du, dl, sum;       /* [F, C] ... [F, groups] ... [1, C] */
    nb_view table;                              /* [T, D] */
    nb_norm norm;
} bench;

static void die(const char *what)
{
    fprintf(stderr, "bench_backward: %s\n", what);
    exit(1);
}

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

static void setup(bench *b)
{
    const struct {
        nb_view *v;
        int64_t rows, cols;
    } all[] = {
        {&b->x, b->T, C},      {&b->dx, b->T, C},    {&b->y, b->T, C},     {&b->q, b->T, C},
        {&b->dq, b->T, C},     {&b->k, b->T, K * D}, {&b->v, b->T, K * D}, {&b->dk, b->T, K * D},
        {&b->dv, b->T, K * D}, {&b->lse, b->T, H},   {&b->gate, b->T, F},  {&b->up, b->T, F},
        {&b->dgate, b->T, F},  {&b->dup, b->T, F},   {&b->w, F, C},        {&b->wq, F, C},
        {&b->dw, F, C},        {&b->sum, 1, C},      {&b->table, b->T, D}};
    for (size_t i = 0; i < NB_COUNT(all); i++) *all[i].v = make_view(b, all[i].rows, all[i].cols);
    b->norm = (nb_norm){.kind = NB_NORM_RMS, .eps = 1e-5f};
    if (nb_format_parse(&b->act, "int4:token:asym", NULL) != NB_OK) die("no format");
}

/* ---- ops ------------------------------------------------------------------------------- */

/* x W^T, dy W, dy^T x of a linear C -> F. */
static void op_forward(bench *b)
{
    b->be->ops->product(b->be, b->gate, b->x, false, b->wq, true, false);
}
static void op_input(bench *b)
{
    b->be->ops->product(b->be, b->dx, b->dgate, false, b->wq, false, false);
}
static void op_weight(bench *b)
{
    b->be->ops->product(b->be, b->dw, b->dgate, true, b->x, false, false);
}

static const nb_attention attention = {
    .n_heads = H, .n_kv_heads = K, .head_dim = D, .scale = 0.125f};

static void op_attention(bench *b)
{
    b->be->ops->attention_train(b->be, b->y, b->lse, b->q, b->k, b->v, &attention);
}
static void op_attention_back(bench *b)
{
    b->be->ops->attention_backward(b->be, b->dq, b->dk, b->dv, b->dx, b->y, b->lse, b->q, b->k,
                                   b->v, &attention);
}
static void op_clip(bench *b)
{
    nb_view no = {0};
    b->be->ops->clip_forward(b->be, b->wq, b->w, no, no, b->u, b->l, &b->weight);
}
static void op_clip_back(bench *b)
{
    nb_view no = {0};
    b->be->ops->clip_backward(b->be, b->du, b->dl, no, b->dw, b->w, no, no, b->u, b->l, false,
                              &b->weight);
}
static void op_clip_back_col(bench *b)
{
    nb_view no = {0}, col = nb_view_rows(b->x, 0, 1);
    b->be->ops->clip_backward(b->be, b->du, b->dl, b->sum, b->dw, b->w, no, col, b->u, b->l, false,
                              &b->weight);
}
static void op_norm_back(bench *b)
{
    b->be->ops->norm_backward(b->be, b->dx, b->y, b->x, &b->norm, true);
}
static void op_rope_back(bench *b) { b->be->ops->rope_backward(b->be, b->dq, H, b->table, false); }
static void op_glu_back(bench *b)
{
    b->be->ops->glu_backward(b->be, b->dgate, b->dup, b->dup, b->gate, b->up, NB_ACT_SILU);
}
static void op_quant(bench *b) { b->be->ops->quant_forward(b->be, b->dgate, b->gate, &b->act); }
static void op_quant_back(bench *b)
{
    b->be->ops->quant_backward(b->be, b->dgate, b->dup, b->gate, &b->act);
}
static void op_mse(bench *b)
{
    b->be->ops->mse_backward(b->be, b->dx, b->y, b->x, false, 1e-6, false);
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

static double print_op(bench *b, const char *name, void (*run)(bench *), double flops, double bytes,
                       double floor)
{
    double t = time_op(b, run, 9);
    printf("%-22s %9.3f ms", name, t * 1e3);
    if (flops > 0) printf(" %8.1f GFLOP/s %5.1f %%", flops / t * 1e-9, flops / t * 1e-7 / floor);
    if (bytes > 0) printf(" %8.1f GB/s", bytes / t * 1e-9);
    printf("\n");
    return t;
}

static double bench_clip(bench *b, const char *word)
{
    if (nb_format_parse(&b->weight, word, NULL) != NB_OK) die("no format");
    int64_t groups = nb_format_groups(&b->weight, C);
    nb_view *v[] = {&b->u, &b->l, &b->du, &b->dl};
    for (int i = 0; i < 4; i++) *v[i] = make_view(b, F, groups);
    printf("weights %s\n", word);
    double bytes = 2. * F * C * sizeof(float);
    double t = print_op(b, "  clip", op_clip, 0, bytes, 0);
    t += print_op(b, "  clip back", op_clip_back, 0, bytes, 0);
    print_op(b, "  clip back, columns", op_clip_back_col, 0, bytes, 0);
    for (int i = 0; i < 4; i++) b->be->ops->buffer_free(b->be, v[i]->buf);
    return t;
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
    double t = (double)T, linear = 2 * t * C * F, pairs = t * (t + 1) / 2 * H * D;
    double block = 2. * C * C + 2. * C * K * D + 3. * C * F; /* weights */
    double qkv = 1. * C * C + 2. * C * K * D, unit = 1. * C * F;
    double clip = bench_clip(&b, "int4:row");
    bench_clip(&b, "int4:g64"), bench_clip(&b, "fp4:g64"), bench_clip(&b, "mxfp4");
    double step = clip * block / unit;
    step += print_op(&b, "x W^T", op_forward, linear, 0, floor) * block / unit;
    step += print_op(&b, "dy W", op_input, linear, 0, floor) * (block - qkv) / unit;
    step += print_op(&b, "dy^T x", op_weight, linear, 0, floor) * block / unit;
    step += print_op(&b, "attention", op_attention, 4 * pairs, 0, floor);
    step += print_op(&b, "attention back", op_attention_back, 10 * pairs, 0, floor);
    step += 2 * print_op(&b, "norm back", op_norm_back, 0, t * C * 16, 0);
    step += 4. / 3 * print_op(&b, "rope back", op_rope_back, 0, t * C * 8, 0);
    step += 1.5 * print_op(&b, "glu back", op_glu_back, 0, t * F * 20, 0); /* and forward */
    print_op(&b, "quant int4", op_quant, 0, t * F * 8, 0);
    print_op(&b, "quant back int4", op_quant_back, 0, t * F * 12, 0);
    step += print_op(&b, "mse", op_mse, 0, t * C * 12, 0);
    printf("%-22s %9.3f ms %8.1f us per token\n", "LWC step, sum", step * 1e3, step / t * 1e6);
    if (b.be->ops->sync(b.be, &err) != NB_OK) die(err.message);
    nb_backend_free(b.be);
}

int main(int argc, char **argv)
{
    int64_t T = argc > 1 ? atoll(argv[1]) : 2048;
    int threads = argc > 2 ? atoi(argv[2]) : nb_cpu_count();
    if (T < 1 || threads < 1) die("usage: bench_backward [tokens [threads]]");
    bench_compute(T, threads, NB_COMPUTE_F32);
    bench_compute(T, threads, NB_COMPUTE_BF16);
    return 0;
}
