/* The row kernels over the vector type of vec_<isa>.h; included once by rows_<isa>.c, which
 * defines INIT_ROWS as the name of the function that fills the slots.
 *
 * Reductions keep four registers of partial sums (an FMA takes 4 cycles and two start in each);
 * they are added up in a fixed order. Tails go through the _n loads and stores. */
#include <math.h>

#include "kernel/kernel.h"
#include "kernel/x86/vec_exp.h"

/* Terms of a long sum that are added up in fp32 before double takes over. */
#define CHUNK 512

/* ---- sums ------------------------------------------------------------------------------ */

static inline float sum4(const vf s[4])
{
    return v_sum(v_add(v_add(s[0], s[1]), v_add(s[2], s[3])));
}

static float dot_f32(const float *a, const float *b, int64_t n)
{
    vf s[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)};
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
        s[0] = v_fma(v_load(a + i), v_load(b + i), s[0]);
        s[1] = v_fma(v_load(a + i + VLEN), v_load(b + i + VLEN), s[1]);
        s[2] = v_fma(v_load(a + i + 2 * VLEN), v_load(b + i + 2 * VLEN), s[2]);
        s[3] = v_fma(v_load(a + i + 3 * VLEN), v_load(b + i + 3 * VLEN), s[3]);
    }
    for (; i + VLEN <= n; i += VLEN) s[0] = v_fma(v_load(a + i), v_load(b + i), s[0]);
    if (i < n) s[1] = v_fma(v_load_n(a + i, n - i), v_load_n(b + i, n - i), s[1]);
    return sum4(s);
}

static float dot_bf16(const uint16_t *a, const float *b, int64_t n)
{
    vf s[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)};
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
        s[0] = v_fma(v_load_bf16(a + i), v_load(b + i), s[0]);
        s[1] = v_fma(v_load_bf16(a + i + VLEN), v_load(b + i + VLEN), s[1]);
        s[2] = v_fma(v_load_bf16(a + i + 2 * VLEN), v_load(b + i + 2 * VLEN), s[2]);
        s[3] = v_fma(v_load_bf16(a + i + 3 * VLEN), v_load(b + i + 3 * VLEN), s[3]);
    }
    for (; i + VLEN <= n; i += VLEN) s[0] = v_fma(v_load_bf16(a + i), v_load(b + i), s[0]);
    if (i < n) s[1] = v_fma(v_load_bf16_n(a + i, n - i), v_load_n(b + i, n - i), s[1]);
    return sum4(s);
}

/* sum (x - mean)^2 */
static float sum_squares(const float *x, float mean, int64_t n)
{
    vf s[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)}, m = v_set1(mean);
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
        for (int j = 0; j < 4; j++) {
            vf d = v_sub(v_load(x + i + j * VLEN), m);
            s[j] = v_fma(d, d, s[j]);
        }
    }
    for (; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf d = v_fill_n(v_sub(v_load_n(x + i, left), m), 0, left);
        s[0] = v_fma(d, d, s[0]);
    }
    return sum4(s);
}

static float sum(const float *x, int64_t n)
{
    vf s[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)};
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
        for (int j = 0; j < 4; j++) s[j] = v_add(s[j], v_load(x + i + j * VLEN));
    }
    for (; i + VLEN <= n; i += VLEN) s[0] = v_add(s[0], v_load(x + i));
    if (i < n) s[1] = v_add(s[1], v_load_n(x + i, n - i));
    return sum4(s);
}

/* ---- elementwise ----------------------------------------------------------------------- */

static void add(float *out, const float *a, const float *b, int64_t n)
{
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) v_store(out + i, v_add(v_load(a + i), v_load(b + i)));
    if (i == n) return;
    v_store_n(out + i, v_add(v_load_n(a + i, n - i), v_load_n(b + i, n - i)), n - i);
}

static void scale(float *out, float a, const float *x, int64_t n)
{
    vf f = v_set1(a);
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) v_store(out + i, v_mul(f, v_load(x + i)));
    if (i < n) v_store_n(out + i, v_mul(f, v_load_n(x + i, n - i)), n - i);
}

static void axpy(float *y, float a, const float *x, int64_t n)
{
    vf f = v_set1(a);
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) v_store(y + i, v_fma(f, v_load(x + i), v_load(y + i)));
    if (i == n) return;
    v_store_n(y + i, v_fma(f, v_load_n(x + i, n - i), v_load_n(y + i, n - i)), n - i);
}

/* Four registers of y stay where they are while all rows pass: one load per FMA, no store. */
static void sub_rows(float *y, const float *a, const float *x, int64_t ldx, int64_t k, int64_t n)
{
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
        vf s[4] = {v_load(y + i), v_load(y + i + VLEN), v_load(y + i + 2 * VLEN),
                   v_load(y + i + 3 * VLEN)};
        for (int64_t j = 0; j < k; j++) {
            const float *row = x + j * ldx + i;
            vf f = v_set1(a[j]);
            for (int r = 0; r < 4; r++) s[r] = v_fnma(f, v_load(row + r * VLEN), s[r]);
        }
        for (int r = 0; r < 4; r++) v_store(y + i + r * VLEN, s[r]);
    }
    for (; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf s = v_load_n(y + i, left);
        for (int64_t j = 0; j < k; j++)
            s = v_fnma(v_set1(a[j]), v_load_n(x + j * ldx + i, left), s);
        v_store_n(y + i, s, left);
    }
}

/* Columns [i, i + n) of add_rows, n <= VLEN. */
static inline void add_columns(float *out, const float *w, const float *x, int64_t ldx,
                               int64_t rows, int64_t n)
{
    vf s = v_set1(0);
    for (int64_t r = 0; r < rows; r++) s = v_fma(v_set1(w[r]), v_load_n(x + r * ldx, n), s);
    v_store_n(out, v_add(v_load_n(out, n), s), n);
}

static void add_rows(float *out, const float *w, const float *x, int64_t ldx, int64_t rows,
                     int64_t n)
{
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
        vf s[4] = {v_set1(0), v_set1(0), v_set1(0), v_set1(0)};
        for (int64_t r = 0; r < rows; r++) {
            const float *from = x + r * ldx + i;
            vf f = v_set1(w[r]);
            s[0] = v_fma(f, v_load(from), s[0]);
            s[1] = v_fma(f, v_load(from + VLEN), s[1]);
            s[2] = v_fma(f, v_load(from + 2 * VLEN), s[2]);
            s[3] = v_fma(f, v_load(from + 3 * VLEN), s[3]);
        }
        for (int j = 0; j < 4; j++) {
            v_store(out + i + j * VLEN, v_add(v_load(out + i + j * VLEN), s[j]));
        }
    }
    for (; i < n; i += VLEN) {
        add_columns(out + i, w, x + i, ldx, rows, n - i < VLEN ? n - i : VLEN);
    }
}

/* Distances within a register; the factor where there are no others. */
static void hadamard_lanes(float *x, int64_t n, int64_t block, vf factor)
{
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf a = v_load_n(x + i, left);
        for (int h = 1; h < VLEN && h < block; h *= 2) a = v_butterfly(a, h);
        v_store_n(x + i, block <= VLEN ? v_mul(a, factor) : a, left);
    }
}

static void hadamard(float *x, int64_t n, int64_t block)
{
    vf factor = v_set1((float)(1 / sqrt((double)block))), one = v_set1(1);
    hadamard_lanes(x, n, block, factor);
    for (int64_t h = VLEN; h < block; h *= 2) {
        vf f = 2 * h == block ? factor : one;
        for (int64_t i = 0; i < n; i += 2 * h) {
            for (int64_t j = i; j < i + h; j += VLEN) {
                vf a = v_load(x + j), b = v_load(x + j + h);
                v_store(x + j, v_mul(f, v_add(a, b)));
                v_store(x + j + h, v_mul(f, v_sub(a, b)));
            }
        }
    }
}

static void bf16_from_f32(uint16_t *out, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) v_store_bf16(out + i, v_load(x + i));
    if (i < n) v_store_bf16_n(out + i, v_load_n(x + i, n - i), n - i);
}

static void f32_from_bf16(float *out, const uint16_t *x, int64_t n)
{
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) v_store(out + i, v_load_bf16(x + i));
    if (i < n) v_store_n(out + i, v_load_bf16_n(x + i, n - i), n - i);
}

static inline vf silu_step(vf x) { return v_div(x, v_add(v_set1(1), v_exp(v_sub(v_set1(0), x)))); }

static void silu(float *out, const float *x, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf y = silu_step(v_load_n(x + i, left));
        if (up) y = v_mul(y, v_load_n(up + i, left));
        v_store_n(out + i, y, left);
    }
}

static void relu(float *out, const float *x, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf y = v_max(v_set1(0), v_load_n(x + i, left));
        if (up) y = v_mul(y, v_load_n(up + i, left));
        v_store_n(out + i, y, left);
    }
}

static void rope(float *x, const float *cos, const float *sin, int64_t half)
{
    for (int64_t i = 0; i < half; i += VLEN) {
        int64_t left = half - i < VLEN ? half - i : VLEN;
        vf a = v_load_n(x + i, left), b = v_load_n(x + half + i, left);
        vf c = v_load_n(cos + i, left), s = v_load_n(sin + i, left);
        v_store_n(x + i, v_fnma(b, s, v_mul(a, c)), left);
        v_store_n(x + half + i, v_fma(a, s, v_mul(b, c)), left);
    }
}

static void rope_interleaved(float *x, const float *cos, const float *sin, int64_t half)
{
    for (int64_t i = 0; i < half; i += VLEN / 2) {
        int64_t left = half - i < VLEN / 2 ? half - i : VLEN / 2;
        vf a = v_load_n(x + 2 * i, 2 * left);
        vf c = v_load_twice_n(cos + i, left), s = v_load_twice_n(sin + i, left);
        v_store_n(x + 2 * i, v_fma(v_swap_pairs(a), v_negate_even(s), v_mul(a, c)), 2 * left);
    }
}

/* ---- norms ----------------------------------------------------------------------------- */

/* out = (x - mean) r w + b */
static void apply_norm(float *out, const float *x, const float *w, const float *b, float mean,
                       float r, int64_t n)
{
    vf m = v_set1(mean), f = v_set1(r);
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf y = v_mul(v_sub(v_load_n(x + i, left), m), f);
        if (w) y = v_mul(y, v_load_n(w + i, left));
        if (b) y = v_add(y, v_load_n(b + i, left));
        v_store_n(out + i, y, left);
    }
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
    float mean = sum(x, n) / (float)n;
    float r = 1 / sqrtf(sum_squares(x, mean, n) / (float)n + eps);
    apply_norm(out, x, w, b, mean, r, n);
}

/* ---- softmax --------------------------------------------------------------------------- */

static float max(const float *x, int64_t n)
{
    vf low = v_set1(-INFINITY), s[4] = {low, low, low, low};
    int64_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
        for (int j = 0; j < 4; j++) s[j] = v_max(v_load(x + i + j * VLEN), s[j]);
    }
    for (; i + VLEN <= n; i += VLEN) s[0] = v_max(v_load(x + i), s[0]);
    if (i < n) s[1] = v_max(v_fill_n(v_load_n(x + i, n - i), -INFINITY, n - i), s[1]);
    return v_hmax(v_max(v_max(s[0], s[1]), v_max(s[2], s[3])));
}

/* The maximum first, then its place: both passes run at the speed of the cache. */
static int64_t argmax(const float *x, int64_t n)
{
    float m = max(x, n);
    int64_t i = 0;
    for (vf top = v_set1(m); i + VLEN <= n; i += VLEN) {
        unsigned hit = v_equal(v_load(x + i), top);
        if (hit) return i + __builtin_ctz(hit);
    }
    for (; i < n; i++) {
        if (x[i] == m) return i;
    }
    return 0; /* nothing but NaN */
}

/* exp(scale (x - max)) as 2^(c (x - max)): the exponent y is off by at most 3 roundings, so the
 * relative error is 2^-22 + |y| 2^-23. */
static float exp_sum(float *out, const float *x, float max, float scale, int64_t n)
{
    float factor = scale * 0x1.715476p+0f;
    vf c = v_set1(factor), m = v_set1(max), s[2] = {v_set1(0), v_set1(0)};
    int64_t i = 0;
    for (; i + 2 * VLEN <= n; i += 2 * VLEN) {
        for (int j = 0; j < 2; j++) {
            vf e = v_exp2(v_mul(v_sub(v_load(x + i + j * VLEN), m), c));
            v_store(out + i + j * VLEN, e);
            s[j] = v_add(s[j], e);
        }
    }
    for (; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf e = v_exp2(v_mul(v_sub(v_load_n(x + i, left), m), c));
        v_store_n(out + i, e, left);
        s[0] = v_add(s[0], v_fill_n(e, 0, left));
    }
    return v_sum(v_add(s[0], s[1]));
}

static inline float sum_exp(const float *x, vf m, int64_t n)
{
    vf s[2] = {v_set1(0), v_set1(0)}, c = v_set1(0x1.715476p+0f);
    int64_t i = 0;
    for (; i + 2 * VLEN <= n; i += 2 * VLEN) {
        s[0] = v_add(s[0], v_exp2(v_mul(v_sub(v_load(x + i), m), c)));
        s[1] = v_add(s[1], v_exp2(v_mul(v_sub(v_load(x + i + VLEN), m), c)));
    }
    for (; i < n; i += VLEN) {
        int64_t left = n - i < VLEN ? n - i : VLEN;
        vf e = v_exp2(v_mul(v_sub(v_load_n(x + i, left), m), c));
        s[0] = v_add(s[0], v_fill_n(e, 0, left));
    }
    return v_sum(v_add(s[0], s[1]));
}

static double logsumexp(const float *x, int64_t n)
{
    float m = max(x, n);
    double s = 0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        s += sum_exp(x + i, v_set1(m), n - i < CHUNK ? n - i : CHUNK);
    }
    return m + log(s);
}

/* As in rows_ref.c. The exponent stays positive by less than one rounding of lse_a. */
static double kl(const float *a, const float *b, double lse_a, double lse_b, int64_t n)
{
    vf m = v_set1((float)lse_a);
    double total = 0, diff = 0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        vf s = v_set1(0), d = v_set1(0);
        for (int64_t j = i; j < n && j < i + CHUNK; j += VLEN) {
            int64_t left = n - j < VLEN ? n - j : VLEN;
            vf x = v_load_n(a + j, left), y = v_load_n(b + j, left);
            vf e = v_fill_n(v_exp(v_sub(x, m)), 0, left);
            s = v_add(s, e);
            d = v_fma(e, v_sub(x, y), d);
        }
        total += v_sum(s);
        diff += v_sum(d);
    }
    return diff / total - (lse_a - lse_b);
}

void INIT_ROWS(nb_kernels *k)
{
    k->dot_f32 = dot_f32;
    k->dot_bf16 = dot_bf16;
    k->add = add;
    k->scale = scale;
    k->axpy = axpy;
    k->sub_rows = sub_rows;
    k->add_rows = add_rows;
    k->hadamard = hadamard;
    k->bf16_from_f32 = bf16_from_f32;
    k->f32_from_bf16 = f32_from_bf16;
    k->rms_norm = rms_norm;
    k->layer_norm = layer_norm;
    k->silu = silu;
    k->relu = relu;
    k->rope = rope;
    k->rope_interleaved = rope_interleaved;
    k->max = max;
    k->argmax = argmax;
    k->exp_sum = exp_sum;
    k->logsumexp = logsumexp;
    k->kl = kl;
}
