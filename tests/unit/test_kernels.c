/* Every slot of every CPU level against the scalar reference: all small sizes, real shapes, hard
 * data. Sums may differ by their rounding (k eps sum |terms|), exp by its stated bound,
 * conversions and dequantization not at all. Arrays end where the heap block ends (ASan), outputs
 * are followed by canaries. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "kernel/kernel.h"

#define CANARY   8
#define EPS      ((double)FLT_EPSILON)
#define TINY     0x1p-126 /* below this, results may be flushed or rounded coarsely */
#define MAX_TILE 64       /* most values that any kernel takes at once */

static const struct {
    const char *name;
    unsigned cpu;
} levels[] = {{"avx2", NB_CPU_AVX2}, {"avx512", NB_CPU_AVX2 | NB_CPU_AVX512}};

typedef enum data_kind { NORMAL, ZERO, OUTLIER, ALTERNATING, DENORMAL, N_KINDS } data_kind;

/* Where a check is: printed when it fails. */
static struct {
    const char *level, *slot;
    int64_t n;
    int kind;
} at;

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond))                                                                               \
            fail_msg("%s %s n=%d data=%d: %s", at.level, at.slot, (int)at.n, at.kind, #cond);      \
    } while (0)

static void fill(float *x, int64_t n, data_kind kind, uint64_t seed)
{
    nb_rng r = {seed};
    for (int64_t i = 0; i < n; i++) {
        float v = (float)nb_rng_normal(&r);
        switch (kind) {
        case NORMAL:
            x[i] = v;
            break;
        case ZERO:
            x[i] = 0;
            break;
        case OUTLIER:
            x[i] = i == n / 2 ? 1000 * v : v;
            break;
        case ALTERNATING:
            x[i] = i % 2 ? 60.0f : -60.0f;
            break;
        default:
            x[i] = v * 0x1p-130f;
            break;
        }
    }
}

static float *make(int64_t n, data_kind kind, uint64_t seed)
{
    float *x = malloc((size_t)n * sizeof *x + (n == 0));
    fill(x, n, kind, seed);
    return x;
}

static void *make_out(int64_t n_bytes)
{
    unsigned char *p = malloc((size_t)n_bytes + CANARY);
    memset(p, 0xa5, (size_t)n_bytes + CANARY);
    return p;
}

static void check_canary(const void *out, int64_t n_bytes)
{
    const unsigned char *p = (const unsigned char *)out + n_bytes;
    for (int i = 0; i < CANARY; i++) CHECK(p[i] == 0xa5);
}

/* ---- sums ------------------------------------------------------------------------------ */

static void check_dot(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *a = make(n, kind, 1), *b = make(n, kind, 2);
    uint16_t *h = malloc((size_t)n * 2 + 1);
    ref->bf16_from_f32(h, a, n);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += fabs((double)a[i] * b[i]) * (1 + 0x1p-7);
    double bound = (double)n * EPS * sum + (double)n * 0x1p-149;
    CHECK(fabs((double)ref->dot_f32(a, b, n) - k->dot_f32(a, b, n)) <= bound);
    CHECK(fabs((double)ref->dot_bf16(h, b, n) - k->dot_bf16(h, b, n)) <= bound);
    free(a);
    free(b);
    free(h);
}

typedef void (*norm_kernel)(float *, const float *, const float *, const float *, float, int64_t);

static void check_norm(norm_kernel ref, norm_kernel k, int64_t n, data_kind kind, bool affine)
{
    if (n == 0) return;
    float *x = make(n, kind, 1), *w = make(n, NORMAL, 2), *b = make(n, NORMAL, 3);
    float *y = make_out(n * 4), *z = make_out(n * 4), eps = 1e-5f;
    double mean = 0, sq = 0, abs = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i] / (double)n, abs += fabs(x[i]) / (double)n;
    for (int64_t i = 0; i < n; i++) sq += (x[i] - mean) * (x[i] - mean) / (double)n;
    ref(y, x, affine ? w : NULL, affine ? b : NULL, eps, n);
    k(z, x, affine ? w : NULL, affine ? b : NULL, eps, n);
    check_canary(z, n * 4);
    for (int64_t i = 0; i < n; i++) {
        double wi = affine ? fabs(w[i]) : 1, bi = affine ? fabs(b[i]) : 0;
        double size = (fabs(x[i]) + abs) * wi / sqrt(sq + eps) + bi;
        CHECK(fabs((double)y[i] - z[i]) <= (double)(n + 16) * EPS * size + 0x1p-149);
    }
    k(x, x, affine ? w : NULL, affine ? b : NULL, eps, n); /* in place */
    CHECK(memcmp(x, z, (size_t)n * 4) == 0);
    free(x), free(w), free(b), free(y), free(z);
}

static void check_norms(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    for (int affine = 0; affine < 2; affine++) {
        check_norm(ref->rms_norm, k->rms_norm, n, kind, affine);
        check_norm(ref->layer_norm, k->layer_norm, n, kind, affine);
    }
}

/* ---- elementwise ----------------------------------------------------------------------- */

static void check_exact(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *a = make(n, kind, 1), *b = make(n, kind, 2);
    float *y = make_out(n * 4), *z = make_out(n * 4);
    ref->add(y, a, b, n), k->add(z, a, b, n);
    check_canary(z, n * 4);
    CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    ref->scale(y, 0.3f, a, n), k->scale(z, 0.3f, a, n);
    check_canary(z, n * 4);
    CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    ref->relu(y, a, b, n), k->relu(z, a, b, n);
    check_canary(z, n * 4);
    CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    uint16_t *g = make_out(n * 2), *h = make_out(n * 2);
    ref->bf16_from_f32(g, a, n), k->bf16_from_f32(h, a, n);
    check_canary(h, n * 2);
    CHECK(memcmp(g, h, (size_t)n * 2) == 0);
    ref->f32_from_bf16(y, g, n), k->f32_from_bf16(z, g, n);
    check_canary(z, n * 4);
    CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    free(a), free(b), free(y), free(z), free(g), free(h);
}

static void check_axpy(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *x = make(n, kind, 1), *start = make(n, kind, 2);
    float *y = make_out(n * 4), *z = make_out(n * 4);
    memcpy(y, start, (size_t)n * 4), memcpy(z, start, (size_t)n * 4);
    ref->axpy(y, 0.7f, x, n), k->axpy(z, 0.7f, x, n);
    check_canary(z, n * 4);
    for (int64_t i = 0; i < n; i++) {
        double size = fabs(start[i]) + fabs(0.7 * x[i]);
        CHECK(fabs((double)y[i] - z[i]) <= EPS * size + 0x1p-149);
    }
    free(x), free(start), free(y), free(z);
}

/* out += w x for 5 rows of n columns, one of them between the rows. With whole numbers the sums are
 * exact, whatever their order. */
static void check_add_rows(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    enum { ROWS = 5 };
    float *x = make(ROWS * (n + 1), kind, 1), *start = make(n, kind, 2);
    float *y = make_out(n * 4), *z = make_out(n * 4);
    float w[ROWS] = {0.7f, -1, 0, 3, 0.1f};
    memcpy(y, start, (size_t)n * 4), memcpy(z, start, (size_t)n * 4);
    ref->add_rows(y, w, x, n + 1, ROWS, n), k->add_rows(z, w, x, n + 1, ROWS, n);
    check_canary(z, n * 4);
    for (int64_t i = 0; i < n; i++) {
        double size = fabs(start[i]);
        for (int r = 0; r < ROWS; r++) size += fabs((double)w[r] * x[r * (n + 1) + i]);
        CHECK(fabs((double)y[i] - z[i]) <= ROWS * EPS * size + 0x1p-148);
    }
    for (int64_t i = 0; i < ROWS * (n + 1); i++) x[i] = (float)(int)fmodf(x[i], 100);
    for (int r = 0; r < ROWS; r++) w[r] = (float)(r - 2);
    memcpy(y, start, (size_t)n * 4), memcpy(z, start, (size_t)n * 4);
    ref->add_rows(y, w, x, n + 1, ROWS, n), k->add_rows(z, w, x, n + 1, ROWS, n);
    CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    free(x), free(start), free(y), free(z);
}

static void check_rope(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *x = make(2 * n, kind, 1), *c = make(n, NORMAL, 2), *s = make(n, NORMAL, 3);
    float *y = make_out(n * 8), *z = make_out(n * 8);
    memcpy(y, x, (size_t)n * 8), memcpy(z, x, (size_t)n * 8);
    ref->rope(y, c, s, n), k->rope(z, c, s, n);
    check_canary(z, n * 8);
    for (int64_t i = 0; i < n; i++) {
        double size = (fabs(x[i]) + fabs(x[n + i])) * (fabs(c[i]) + fabs(s[i]));
        CHECK(fabs((double)y[i] - z[i]) <= 2 * EPS * size + 0x1p-148);
        CHECK(fabs((double)y[n + i] - z[n + i]) <= 2 * EPS * size + 0x1p-148);
    }
    for (int64_t i = 0; i < 2 * n; i++) y[i] = x[i % 2 * n + i / 2];
    k->rope_interleaved(y, c, s, n);
    check_canary(y, n * 8);
    for (int64_t i = 0; i < 2 * n; i++) CHECK(memcmp(y + i, z + i % 2 * n + i / 2, 4) == 0);
    free(x), free(c), free(s), free(y), free(z);
}

/* Blocks of every order that fits. */
static void check_hadamard(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *x = make(n, kind, 1);
    for (int64_t block = 1; block <= n && block <= 1024; block *= 2) {
        int64_t whole = n - n % block;
        float *y = make_out(whole * 4), *z = make_out(whole * 4);
        memcpy(y, x, (size_t)whole * 4), memcpy(z, x, (size_t)whole * 4);
        ref->hadamard(y, whole, block), k->hadamard(z, whole, block);
        check_canary(z, whole * 4);
        CHECK(memcmp(y, z, (size_t)whole * 4) == 0);
        free(y), free(z);
    }
    free(x);
}

static double true_act(int act, double x)
{
    return act == 0 ? x / (1 + exp(-x)) : 0.5 * x * (1 + erf(x * sqrt(0.5)));
}

/* Against the truth: the rounding of exp (2^-22) and of a few operations around it. */
static void check_acts(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    NB_UNUSED(ref);
    float *x = make(n, kind, 1), *up = make(n, NORMAL, 2), *z = make_out(n * 4);
    for (int act = 0; act < 2; act++) {
        for (int with_up = 0; with_up < 2; with_up++) {
            (act == 0 ? k->silu : k->gelu)(z, x, with_up ? up : NULL, n);
            check_canary(z, n * 4);
            for (int64_t i = 0; i < n; i++) {
                double y = true_act(act, x[i]) * (with_up ? up[i] : 1);
                /* gelu: 1 + erf cancels for negative x */
                double size = act == 0 ? fabs(y) : fabs((double)x[i] * (with_up ? up[i] : 1));
                CHECK(fabs(y - z[i]) <= 0x1p-20 * size + TINY);
            }
        }
    }
    free(x), free(up), free(z);
}

/* ---- softmax --------------------------------------------------------------------------- */

static void check_max(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *x = make(n, kind, 1);
    CHECK(ref->max(x, n) == k->max(x, n));
    if (n > 0) CHECK(ref->argmax(x, n) == k->argmax(x, n));
    free(x);
}

static void check_exp_sum(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *x = make(n, kind, 1), *z = make_out(n * 4), scale = 0.125f, max = ref->max(x, n);
    double sum = 0, slack = 0;
    float got = k->exp_sum(z, x, max, scale, n);
    check_canary(z, n * 4);
    for (int64_t i = 0; i < n; i++) {
        double y = (double)scale * ((double)x[i] - max), e = exp(y);
        double bound = (0x1p-22 + fabs(y) * 0x1p-22) * e + TINY;
        CHECK(fabs(e - z[i]) <= bound);
        sum += e;
        slack += bound;
    }
    CHECK(fabs(sum - got) <= (double)n * EPS * sum + slack);
    free(x), free(z);
}

/* Relative error of a sum of exponentials, which is the absolute one of its logarithm. */
static const double exp_sum_error = 512 * FLT_EPSILON + 0x1p-20;

static void check_logsumexp(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    if (n == 0) return;
    float *x = make(n, kind, 1);
    double max = ref->max(x, n), sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - max);
    CHECK(fabs(k->logsumexp(x, n) - (max + log(sum))) <= exp_sum_error);
    free(x);
}

static void check_kl(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    if (n == 0) return;
    float *a = make(n, kind, 1), *b = make(n, kind, 2);
    double lse_a = ref->logsumexp(a, n), lse_b = ref->logsumexp(b, n), size = 0, want = 0;
    for (int64_t i = 0; i < n; i++) {
        double p = exp(a[i] - lse_a), d = (double)a[i] - b[i];
        size += p * fabs(d);
        want += p * d;
    }
    want -= lse_a - lse_b;
    /* lse_a is the reference's own: off by exp_sum_error itself */
    double bound = 3 * exp_sum_error * (1 + size) + EPS * fabs(lse_a) * size;
    CHECK(fabs(k->kl(a, b, lse_a, lse_b, n) - want) <= bound);
    free(a), free(b);
}

/* Bit for bit, for strides beyond n and no rows at all. */
static void check_sub_rows(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    enum { ROWS = 5 };
    int64_t ldx = n + 3;
    float *x = make(ROWS * ldx, kind, 1), *a = make(ROWS, NORMAL, 2), *start = make(n, kind, 3);
    float *y = make_out(n * 4), *z = make_out(n * 4);
    for (int rows = 0; rows <= ROWS; rows += ROWS) {
        memcpy(y, start, (size_t)n * 4), memcpy(z, start, (size_t)n * 4);
        ref->sub_rows(y, a, x, ldx, rows, n), k->sub_rows(z, a, x, ldx, rows, n);
        check_canary(z, n * 4);
        CHECK(memcmp(y, z, (size_t)n * 4) == 0);
        if (rows == 0) CHECK(memcmp(y, start, (size_t)n * 4) == 0);
    }
    if (n > 0 && kind == NORMAL) {
        double want = (double)start[n - 1];
        for (int j = 0; j < ROWS; j++) want -= (double)a[j] * (double)x[j * ldx + n - 1];
        CHECK(fabs(want - (double)z[n - 1]) < 1e-4);
    }
    free(x), free(a), free(start), free(y), free(z);
}

/* ---- training -------------------------------------------------------------------------- */

static void check_mul_add(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *a = make(n, kind, 1), *b = make(n, kind, 2), *start = make(n, kind, 3);
    float *y = make_out(n * 4), *z = make_out(n * 4);
    memcpy(y, start, (size_t)n * 4), memcpy(z, start, (size_t)n * 4);
    ref->mul_add(y, a, b, n), k->mul_add(z, a, b, n);
    check_canary(z, n * 4);
    for (int64_t i = 0; i < n; i++) {
        double size = fabs(start[i]) + fabs((double)a[i] * b[i]);
        CHECK(fabs((double)y[i] - z[i]) <= EPS * size + 0x1p-149);
    }
    free(a), free(b), free(start), free(y), free(z);
}

static double true_slope(int act, double x)
{
    double s = 1 / (1 + exp(-x));
    if (act == 0) return s * (1 + x * (1 - s));
    if (act == 1) return x > 0;
    return 0.5 * (1 + erf(x * sqrt(0.5))) + x * exp(-0.5 * x * x) * 0.39894228040143267794;
}

static void check_back(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    NB_UNUSED(ref);
    float *x = make(n, kind, 1), *up = make(n, NORMAL, 2), *d = make(n, NORMAL, 3);
    float *dx = make_out(n * 4), *dup = make_out(n * 4);
    for (int act = 0; act < 3; act++) {
        for (int gated = 0; gated < 2; gated++) {
            (act == 0   ? k->silu_back
             : act == 1 ? k->relu_back
                        : k->gelu_back)(dx, gated ? dup : NULL, d, x, gated ? up : NULL, n);
            check_canary(dx, n * 4), check_canary(dup, n * 4);
            for (int64_t i = 0; i < n; i++) {
                double u = gated ? up[i] : 1, size = (1 + fabs(x[i])) * fabs(d[i]);
                double value = act == 1 ? fmax(x[i], 0) : true_act(act, x[i]);
                CHECK(fabs(d[i] * u * true_slope(act, x[i]) - dx[i]) <=
                      0x1p-20 * size * fabs(u) + TINY);
                if (gated) CHECK(fabs(d[i] * value - dup[i]) <= 0x1p-20 * size + TINY);
            }
        }
    }
    free(x), free(up), free(d), free(dx), free(dup);
}

static void check_softmax_back(const nb_kernels *ref, const nb_kernels *k, int64_t n,
                               data_kind kind)
{
    float *p = make(n, kind, 1), *dp = make(n, kind, 2), *y = make_out(n * 4), *z = make_out(n * 4);
    ref->softmax_back(y, p, dp, 0.3f, 0.125f, n), k->softmax_back(z, p, dp, 0.3f, 0.125f, n);
    check_canary(z, n * 4);
    CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    free(p), free(dp), free(y), free(z);
}

/* Ranges, extremes and rounding are exact. */
static void check_grid(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *x = make(n, kind, 1), *y = make(n, NORMAL, 2), *z = make_out(n * 4), lo[2], hi[2];
    for (int64_t i = 0; i < n; i += 5) x[i] = x[0]; /* ties */
    memcpy(z, y, (size_t)n * 4);
    ref->range(&lo[0], &hi[0], x, n), k->range(&lo[1], &hi[1], x, n);
    CHECK(lo[0] == lo[1] && hi[0] == hi[1] && lo[0] <= 0 && hi[0] >= 0);
    if (n > 0 && x[0] != 0) {
        ref->add_where(y, x, x[0], 0.7f, n), k->add_where(z, x, x[0], 0.7f, n);
        check_canary(z, n * 4);
        CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    }
    for (int bits = 2; bits <= 8; bits += 3) {
        float scale = fmaxf((hi[0] - lo[0]) / (float)(1 << bits), FLT_MIN);
        float bottom = -(float)(1 << (bits - 2)), top = (float)(1 << (bits - 1));
        ref->round_uniform(y, x, scale, bottom, top, n);
        k->round_uniform(z, x, scale, bottom, top, n);
        check_canary(z, n * 4);
        CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    }
    free(x), free(y), free(z);
}

static void check_straight(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind)
{
    float *x = make(n, kind, 1), *g = make(n, NORMAL, 2), *back = make(n, kind, 3);
    float *y = make_out(n * 4), *z = make_out(n * 4);
    double size = 0;
    for (int64_t i = 0; i < n; i++) size += fabs((double)g[i]) * (fabs(x[i]) + fabs(back[i]));
    double bound = (double)(n + 1) * EPS * size + (double)n * 0x1p-148;
    for (int i = 0; i < 2; i++) {
        float scale = i ? 0 : 0.5f; /* 0: a block of zeros, nothing is inside */
        float want = ref->straight(y, g, x, back, scale, -1.5f, 2, n);
        CHECK(fabs(want - k->straight(z, g, x, back, scale, -1.5f, 2, n)) <= bound);
        check_canary(z, n * 4);
        CHECK(memcmp(y, z, (size_t)n * 4) == 0);
        CHECK(fabs(want - k->straight(NULL, g, x, back, scale, -1.5f, 2, n)) <= bound);
    }
    free(x), free(g), free(back), free(y), free(z);
}

/* ---- walking the slots ----------------------------------------------------------------- */

typedef void (*slot_check)(const nb_kernels *ref, const nb_kernels *k, int64_t n, data_kind kind);

static const struct {
    const char *name;
    slot_check check;
} checks[] = {
    {"dot", check_dot},
    {"norm", check_norms},
    {"exact", check_exact},
    {"axpy", check_axpy},
    {"rope", check_rope},
    {"hadamard", check_hadamard},
    {"act", check_acts},
    {"max", check_max},
    {"exp_sum", check_exp_sum},
    {"logsumexp", check_logsumexp},
    {"kl", check_kl},
    {"mul_add", check_mul_add},
    {"back", check_back},
    {"softmax_back", check_softmax_back},
    {"grid", check_grid},
    {"straight", check_straight},
    {"sub_rows", check_sub_rows},
    {"add_rows", check_add_rows},
};

static void check_level(const nb_kernels *k)
{
    nb_kernels ref;
    nb_kernels_init(&ref, 0);
    const int64_t shapes[] = {576, 1536, 49152};
    for (size_t c = 0; c < NB_COUNT(checks); c++) {
        at.slot = checks[c].name;
        for (int kind = 0; kind < N_KINDS; kind++) {
            at.kind = kind;
            for (at.n = 0; at.n <= 2 * MAX_TILE + 1; at.n++) {
                checks[c].check(&ref, k, at.n, (data_kind)kind);
            }
            for (size_t i = 0; i < NB_COUNT(shapes); i++) {
                at.n = shapes[i];
                checks[c].check(&ref, k, at.n, (data_kind)kind);
            }
        }
    }
}

static void test_slots(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(levels); i++) {
        if ((levels[i].cpu & nb_cpu_features()) != levels[i].cpu) continue;
        at.level = levels[i].name;
        nb_kernels k;
        nb_kernels_init(&k, levels[i].cpu);
        check_level(&k);
    }
    at.level = "ref"; /* bounds hold for the reference itself */
    nb_kernels k;
    nb_kernels_init(&k, 0);
    check_level(&k);
}

/* The stated error of exp over its whole range, value by value. */
static void test_exp_range(void **state)
{
    NB_UNUSED(state);
    at.slot = "exp_sum range";
    for (size_t l = 0; l < NB_COUNT(levels); l++) {
        if ((levels[l].cpu & nb_cpu_features()) != levels[l].cpu) continue;
        at.level = levels[l].name;
        nb_kernels k;
        nb_kernels_init(&k, levels[l].cpu);
        float x[1000], e[1000];
        for (int piece = 0; piece < 120; piece++) {
            at.n = piece;
            for (int i = 0; i < 1000; i++) x[i] = -(float)piece - (float)i * 0.001f;
            k.exp_sum(e, x, 0, 1, 1000);
            for (int i = 0; i < 1000; i++) {
                double want = exp(x[i]);
                CHECK(fabs(e[i] - want) <= (0x1p-22 + fabs(x[i]) * 0x1p-23) * want + TINY);
            }
        }
    }
}

static void test_not_a_number(void **state)
{
    NB_UNUSED(state);
    for (size_t l = 0; l < NB_COUNT(levels); l++) {
        if ((levels[l].cpu & nb_cpu_features()) != levels[l].cpu) continue;
        nb_kernels k;
        nb_kernels_init(&k, levels[l].cpu);
        float x[40] = {0}, y[40];
        uint16_t h[40];
        x[17] = NAN;
        x[35] = NAN;
        assert_true(isnan(k.logsumexp(x, 40)));
        k.silu(y, x, NULL, 40);
        assert_true(isnan(y[17]) && isnan(y[35]) && !isnan(y[0]));
        k.relu(y, x, NULL, 40);
        assert_true(isnan(y[17]) && isnan(y[35]));
        k.bf16_from_f32(h, x, 40);
        k.f32_from_bf16(y, h, 40);
        assert_true(isnan(y[17]) && isnan(y[35]) && y[0] == 0);
    }
}

/* ---- dequantization -------------------------------------------------------------------- */

static void check_dequant(const nb_kernels *ref, const nb_kernels *k, const nb_format *f, int64_t n)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    uint8_t *plane[NB_MAX_PLANES] = {0};
    int n_planes = f->family->planes(f, n, spec);
    nb_rng r = {(uint64_t)n};
    for (int i = 0; i < n_planes; i++) {
        plane[i] = malloc((size_t)spec[i].row_bytes);
        for (int64_t j = 0; j < spec[i].row_bytes; j++) plane[i][j] = (uint8_t)nb_rng_next(&r);
        /* finite scales: the exponent's high bit off */
        int64_t size = spec[i].dtype == NB_F32 ? 4 : 2;
        for (int64_t j = size - 1; i == 1 && j < spec[i].row_bytes; j += size) plane[i][j] &= 0xbf;
    }
    float *y = make_out(n * 4), *z = make_out(n * 4);
    ref->dequant_int(f, (const uint8_t *const *)plane, n, y);
    k->dequant_int(f, (const uint8_t *const *)plane, n, z);
    check_canary(z, n * 4);
    CHECK(memcmp(y, z, (size_t)n * 4) == 0);
    for (int i = 0; i < n_planes; i++) free(plane[i]);
    free(y), free(z);
}

static void test_dequant_int(void **state)
{
    NB_UNUSED(state);
    static const char *const tails[] = {"row",   "row:sym",    "g8",     "g64",        "g128:sym",
                                        "token", "token:asym", "g8:f32", "g64:sym:f32"};
    nb_kernels ref, k;
    nb_kernels_init(&ref, 0);
    for (size_t l = 0; l < NB_COUNT(levels); l++) {
        if ((levels[l].cpu & nb_cpu_features()) != levels[l].cpu) continue;
        at.level = levels[l].name;
        nb_kernels_init(&k, levels[l].cpu);
        for (int bits = 2; bits <= 8; bits++) {
            for (size_t i = 0; i < NB_COUNT(tails); i++) {
                char word[NB_FORMAT_WORD];
                nb_format f;
                snprintf(word, sizeof word, "int%d:%s", bits, tails[i]);
                assert_int_equal(nb_format_parse(&f, word, NULL), NB_OK);
                at.slot = word;
                for (at.n = 1; at.n <= 2 * MAX_TILE + 1; at.n++) check_dequant(&ref, &k, &f, at.n);
                check_dequant(&ref, &k, &f, at.n = 576);
                check_dequant(&ref, &k, &f, at.n = 1536);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_exp_range),
        cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_dequant_int),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
