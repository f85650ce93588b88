/* Scalar definitions of the row kernels: sums run from left to right in fp32. */
#include <math.h>

#include "format/half.h"
#include "kernel/kernel.h"

/* Terms of a long sum that are added up in fp32 before double takes over. */
#define CHUNK 512

static float dot_f32(const float *a, const float *b, int64_t n)
{
    float s = 0;
    for (int64_t i = 0; i < n; i++) s += a[i] * b[i];
    return s;
}

static float dot_bf16(const uint16_t *a, const float *b, int64_t n)
{
    float s = 0;
    for (int64_t i = 0; i < n; i++) s += nb_bf16_to_f32(a[i]) * b[i];
    return s;
}

static void add(float *out, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}

static void scale(float *out, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = a * x[i];
}

static void axpy(float *y, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void sub_rows(float *y, const float *a, const float *x, int64_t ldx, int64_t k, int64_t n)
{
    for (int64_t j = 0; j < k; j++) {
        for (int64_t i = 0; i < n; i++) y[i] = fmaf(-a[j], x[j * ldx + i], y[i]);
    }
}

static void add_rows(float *out, const float *w, const float *x, int64_t ldx, int64_t rows,
                     int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float s = 0;
        for (int64_t r = 0; r < rows; r++) s += w[r] * x[r * ldx + i];
        out[i] += s;
    }
}

static void hadamard(float *x, int64_t n, int64_t block)
{
    float factor = (float)(1 / sqrt((double)block));
    for (int64_t h = 1; h < block; h *= 2) {
        for (int64_t i = 0; i < n; i++) {
            if (i & h) continue; /* the second of a pair */
            float a = x[i], b = x[i + h];
            x[i] = a + b;
            x[i + h] = a - b;
        }
    }
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

static void bf16_from_f32(uint16_t *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = nb_bf16_from_f32(x[i]);
}

static void f32_from_bf16(float *out, const uint16_t *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = nb_bf16_to_f32(x[i]);
}

/* out = (x - mean) r w + b */
static void apply_norm(float *out, const float *x, const float *w, const float *b, float mean,
                       float r, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float y = (x[i] - mean) * r;
        if (w) y *= w[i];
        if (b) y += b[i];
        out[i] = y;
    }
}

static float sum_squares(const float *x, float mean, int64_t n)
{
    float s = 0;
    for (int64_t i = 0; i < n; i++) s += (x[i] - mean) * (x[i] - mean);
    return s;
}

static void rms_norm(float *out, const float *x, const float *w, const float *b, float eps,
                     int64_t n)
{
    float r = 1 / sqrtf(sum_squares(x, 0, n) / (float)n + eps);
    apply_norm(out, x, w, b, 0, r, n);
}

static void layer_norm(float *out, const float *x, const float *w, const float *b, float eps,
                       int64_t n)
{
    float mean = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= (float)n;
    float r = 1 / sqrtf(sum_squares(x, mean, n) / (float)n + eps);
    apply_norm(out, x, w, b, mean, r, n);
}

static void silu(float *out, const float *x, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = x[i] / (1 + expf(-x[i])) * (up ? up[i] : 1);
}

static void relu(float *out, const float *x, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = (x[i] < 0 ? 0 : x[i]) * (up ? up[i] : 1);
}

static void gelu(float *out, const float *x, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float y = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678f));
        out[i] = y * (up ? up[i] : 1);
    }
}

static void rope(float *x, const float *cos, const float *sin, int64_t half)
{
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

static void rope_interleaved(float *x, const float *cos, const float *sin, int64_t half)
{
    for (int64_t i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cos[i] - b * sin[i];
        x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
}

static float max(const float *x, int64_t n)
{
    float m = -INFINITY;
    for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

static int64_t argmax(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) best = x[i] > x[best] ? i : best;
    return best;
}

static float exp_sum(float *out, const float *x, float max, float scale, int64_t n)
{
    float s = 0;
    for (int64_t i = 0; i < n; i++) s += out[i] = expf(scale * (x[i] - max));
    return s;
}

static double logsumexp(const float *x, int64_t n)
{
    float m = max(x, n);
    double sum = 0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        float s = 0;
        for (int64_t j = i; j < n && j < i + CHUNK; j++) s += expf(x[j] - m);
        sum += s;
    }
    return m + log(sum);
}

/* sum e (a - b) / sum e - (lse_a - lse_b) with e = exp(a - lse_a): dividing by sum e takes the
 * rounding of lse_a to fp32 out. */
static double kl(const float *a, const float *b, double lse_a, double lse_b, int64_t n)
{
    float m = (float)lse_a;
    double sum = 0, diff = 0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        float s = 0, d = 0;
        for (int64_t j = i; j < n && j < i + CHUNK; j++) {
            float e = expf(a[j] - m);
            s += e;
            d += e * (a[j] - b[j]);
        }
        sum += s;
        diff += d;
    }
    return diff / sum - (lse_a - lse_b);
}

static void dequant_int(const nb_format *f, const uint8_t *const plane[], int64_t n, float *out)
{
    f->family->dequant_row(f, plane, n, out);
}

void nb_kernels_init_ref(nb_kernels *k)
{
    *k = (nb_kernels){
        .dot_f32 = dot_f32,
        .dot_bf16 = dot_bf16,
        .add = add,
        .scale = scale,
        .axpy = axpy,
        .sub_rows = sub_rows,
        .add_rows = add_rows,
        .hadamard = hadamard,
        .bf16_from_f32 = bf16_from_f32,
        .f32_from_bf16 = f32_from_bf16,
        .rms_norm = rms_norm,
        .layer_norm = layer_norm,
        .silu = silu,
        .relu = relu,
        .gelu = gelu,
        .rope = rope,
        .rope_interleaved = rope_interleaved,
        .max = max,
        .argmax = argmax,
        .exp_sum = exp_sum,
        .logsumexp = logsumexp,
        .kl = kl,
        .dequant_int = dequant_int,
    };
}
