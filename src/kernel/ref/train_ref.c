/* Scalar definitions of the training kernels. */
#include <math.h>

#include "kernel/kernel.h"

static void mul_add(float *y, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] += a[i] * b[i];
}

/* ---- activations ----------------------------------------------------------------------- */

/* value and slope are act(x) and act'(x). */
static inline void put_back(float *dx, float *dup, const float *dy, const float *up, int64_t i,
                            float value, float slope)
{
    float d = dy[i], u = up ? up[i] : 1;
    dx[i] = d * u * slope;
    if (dup) dup[i] = d * value;
}

static void silu_back(float *dx, float *dup, const float *dy, const float *x, const float *up,
                      int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float s = 1 / (1 + expf(-x[i]));
        put_back(dx, dup, dy, up, i, x[i] * s, s * (1 + x[i] * (1 - s)));
    }
}

static void relu_back(float *dx, float *dup, const float *dy, const float *x, const float *up,
                      int64_t n)
{
    for (int64_t i = 0; i < n; i++) put_back(dx, dup, dy, up, i, x[i] < 0 ? 0 : x[i], x[i] > 0);
}

static void gelu_back(float *dx, float *dup, const float *dy, const float *x, const float *up,
                      int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float p = 0.5f * (1 + erff(x[i] * 0.70710678f));
        float slope = p + x[i] * expf(-0.5f * x[i] * x[i]) * 0.39894228f;
        put_back(dx, dup, dy, up, i, x[i] * p, slope);
    }
}

static void softmax_back(float *ds, const float *p, const float *dp, float own, float scale,
                         int64_t n)
{
    for (int64_t i = 0; i < n; i++) ds[i] = scale * p[i] * (dp[i] - own);
}

/* ---- quantization ---------------------------------------------------------------------- */

static void range(float *lo, float *hi, const float *x, int64_t n)
{
    *lo = *hi = 0;
    for (int64_t i = 0; i < n; i++) {
        *lo = x[i] < *lo ? x[i] : *lo;
        *hi = x[i] > *hi ? x[i] : *hi;
    }
}

/* The addition leaves no fraction bits: rintf, but +0 for what rounds to 0. */
static inline float round_even(float x)
{
    const float magic = 0x1.8p23f;
    return (x + magic) - magic;
}

static void round_uniform(float *out, const float *x, float scale, float lo, float hi, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float y = x[i] / scale;
        y = y < lo ? lo : y;
        y = y > hi ? hi : y;
        out[i] = round_even(y) * scale;
    }
}

static float straight(float *pass, const float *g, const float *x, const float *back, float scale,
                      float lo, float hi, int64_t n)
{
    float sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float y = x[i] / scale;
        bool inside = lo <= y && y <= hi;
        sum += g[i] * (back[i] - (inside ? x[i] : 0));
        if (pass) pass[i] = inside ? g[i] : 0;
    }
    return sum;
}

void nb_kernels_init_train_ref(nb_kernels *k)
{
    k->mul_add = mul_add;
    k->silu_back = silu_back;
    k->relu_back = relu_back;
    k->gelu_back = gelu_back;
    k->softmax_back = softmax_back;
    k->range = range;
    k->round_uniform = round_uniform;
    k->straight = straight;
}
