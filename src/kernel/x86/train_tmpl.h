/* The training kernels over the vector type of vec_<isa>.h; included once by train_<isa>.c, which
 * defines INIT_TRAIN as the name of the function that fills the slots. */
#include <math.h>

#include "kernel/kernel.h"
#include "kernel/x86/vec_exp.h"

static void mul_add(float *y, const float *a, const float *b, int64_t n)
{
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) {
        v_store(y + i, v_fma(v_load(a + i), v_load(b + i), v_load(y + i)));
    }
    if (i == n) return;
    vf p = v_fma(v_load_n(a + i, n - i), v_load_n(b + i, n - i), v_load_n(y + i, n - i));
    v_store_n(y + i, p, n - i);
}

/* ---- activations ----------------------------------------------------------------------- */

/* The values of up are 1 where there are none. */
static inline void put_back(float *dx, float *dup, vf d, const float *up, vf value, vf slope,
                            int64_t left)
{
    vf g = v_mul(d, slope);
    if (up) g = v_mul(g, v_load_n(up, left));
    v_store_n(dx, g, left);
    if (dup) v_store_n(dup, v_mul(d, value), left);
}

static void silu_back(float *dx, float *dup, const float *dy, const float *x, const float *up,
                      int64_t n)
{
    vf one = v_set1(1);
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf a = v_load_n(x + i, left);
        vf s = v_div(one, v_add(one, v_exp(v_sub(v_set1(0), a))));
        vf slope = v_mul(s, v_fma(a, v_sub(one, s), one));
        put_back(dx + i, dup ? dup + i : NULL, v_load_n(dy + i, left), up ? up + i : NULL,
                 v_mul(a, s), slope, left);
    }
}

static void relu_back(float *dx, float *dup, const float *dy, const float *x, const float *up,
                      int64_t n)
{
    vf zero = v_set1(0);
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf a = v_load_n(x + i, left);
        vf slope = v_keep(v_above(a, zero), v_set1(1));
        put_back(dx + i, dup ? dup + i : NULL, v_load_n(dy + i, left), up ? up + i : NULL,
                 v_max(zero, a), slope, left);
    }
}

static void softmax_back(float *ds, const float *p, const float *dp, float own, float scale,
                         int64_t n)
{
    vf o = v_set1(own), s = v_set1(scale);
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf d = v_sub(v_load_n(dp + i, left), o);
        v_store_n(ds + i, v_mul(v_mul(s, v_load_n(p + i, left)), d), left);
    }
}

/* ---- quantization ---------------------------------------------------------------------- */

static void range(float *lo, float *hi, const float *x, int64_t n)
{
    vf min[2] = {v_set1(0), v_set1(0)}, max[2] = {v_set1(0), v_set1(0)};
    int64_t i = 0;
    for (; i + 2 * VLEN <= n; i += 2 * VLEN) {
        for (int j = 0; j < 2; j++) {
            vf a = v_load(x + i + j * VLEN);
            min[j] = v_min(a, min[j]);
            max[j] = v_max(a, max[j]);
        }
    }
    for (; i < n; i += VLEN) { /* lanes beyond the end are 0 */
        vf a = v_load_n(x + i, n - i < VLEN ? n - i : VLEN);
        min[0] = v_min(a, min[0]);
        max[0] = v_max(a, max[0]);
    }
    *lo = -v_hmax(v_sub(v_set1(0), v_min(min[0], min[1])));
    *hi = v_hmax(v_max(max[0], max[1]));
}

/* Adding 0 makes +0 of -0. */
static inline vf round_step(vf x, vf scale, vf lo, vf hi)
{
    vf y = v_min(hi, v_max(lo, v_div(x, scale)));
    return v_mul(v_add(v_round(y), v_set1(0)), scale);
}

static void round_uniform(float *out, const float *x, float scale, float lo, float hi, int64_t n)
{
    vf s = v_set1(scale), l = v_set1(lo), h = v_set1(hi);
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) v_store(out + i, round_step(v_load(x + i), s, l, h));
    if (i < n) v_store_n(out + i, round_step(v_load_n(x + i, n - i), s, l, h), n - i);
}

static float straight(float *pass, const float *g, const float *x, const float *back, float scale,
                      float lo, float hi, int64_t n)
{
    vf s = v_set1(scale), l = v_set1(lo), h = v_set1(hi), sum[2] = {v_set1(0), v_set1(0)};
    for (int64_t i = 0, j = 0; i < n; i += VLEN, j ^= 1) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf a = v_load_n(x + i, left), d = v_load_n(g + i, left);
        vm inside = v_within(v_div(a, s), l, h);
        sum[j] = v_fma(d, v_sub(v_load_n(back + i, left), v_keep(inside, a)), sum[j]);
        if (pass) v_store_n(pass + i, v_keep(inside, d), left);
    }
    return v_sum(v_add(sum[0], sum[1]));
}

void INIT_TRAIN(nb_kernels *k)
{
    k->mul_add = mul_add;
    k->silu_back = silu_back;
    k->relu_back = relu_back;
    k->softmax_back = softmax_back;
    k->range = range;
    k->round_uniform = round_uniform;
    k->straight = straight;
}
