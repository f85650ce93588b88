/* Row-level kernels: single-threaded, no heap, no state.
 *
 * A table of slots is filled from the scalar reference (ref/) and overridden by what the CPU can
 * do (x86/). The reference says what a slot gives; an override may differ only by the rounding of
 * sums and of exp, dequantization not at all. Contract of every slot: any n >= 0, no alignment
 * beyond the element's own, nothing is read or written past n, inputs and outputs either coincide
 * or are disjoint. test_kernels.c compares every override with the reference. */
#ifndef NB_KERNEL_KERNEL_H
#define NB_KERNEL_KERNEL_H

#include "base/cpu.h"
#include "format/format.h"

typedef struct nb_kernels {
    /* sum a[i] b[i]; the bf16 form reads weights as they lie in a file */
    float (*dot_f32)(const float *a, const float *b, int64_t n);
    float (*dot_bf16)(const uint16_t *a, const float *b, int64_t n);

    void (*add)(float *out, const float *a, const float *b, int64_t n); /* a + b */
    void (*scale)(float *out, float a, const float *x, int64_t n);      /* a x */
    void (*axpy)(float *y, float a, const float *x, int64_t n);         /* y += a x */
    /* y[i] -= sum a[j] x[j ldx + i] over k rows of x: one fused step per row, in their order, so
     * that every level gives the same bits. */
    void (*sub_rows)(float *y, const float *a, const float *x, int64_t ldx, int64_t k, int64_t n);
    /* out[i] += sum over r of w[r] x[r ldx + i], i < n; the sum is made first, from r = 0 up, so
     * that it is exact where every partial sum is. */
    void (*add_rows)(float *out, const float *w, const float *x, int64_t ldx, int64_t rows,
                     int64_t n);

    /* Each run of `block` values, a power of two that divides n, times the Walsh-Hadamard matrix
     * over sqrt(block): sums and differences at distances 1, 2, 4 ..., then the factor; bit-exact.
     */
    void (*hadamard)(float *x, int64_t n, int64_t block);

    /* Round to nearest, ties to even; exact the other way. */
    void (*bf16_from_f32)(uint16_t *out, const float *x, int64_t n);
    void (*f32_from_bf16)(float *out, const uint16_t *x, int64_t n);

    /* w x / sqrt(mean x^2 + eps) + b, and w (x - mean) / sqrt(var + eps) + b;
     * w [n] or NULL: 1; b [n] or NULL: 0. */
    void (*rms_norm)(float *out, const float *x, const float *w, const float *b, float eps,
                     int64_t n);
    void (*layer_norm)(float *out, const float *x, const float *w, const float *b, float eps,
                       int64_t n);

    /* act(x) * up; up [n] or NULL: 1. silu: x / (1 + e^-x). gelu: x/2 (1 + erf(x / sqrt 2)). */
    void (*silu)(float *out, const float *x, const float *up, int64_t n);
    void (*relu)(float *out, const float *x, const float *up, int64_t n);
    void (*gelu)(float *out, const float *x, const float *up, int64_t n);

    /* Pairs (x[i], x[half + i]) turned by the angle with cos[i], sin[i]; and (x[2i], x[2i + 1]),
     * the same bits in another place. */
    void (*rope)(float *x, const float *cos, const float *sin, int64_t half);
    void (*rope_interleaved)(float *x, const float *cos, const float *sin, int64_t half);

    float (*max)(const float *x, int64_t n);      /* -Inf for n = 0 */
    int64_t (*argmax)(const float *x, int64_t n); /* lowest index on a tie; n > 0 */

    /* out = exp(scale (x - max)) for scale > 0, max >= every x; returns the sum of out. */
    float (*exp_sum)(float *out, const float *x, float max, float scale, int64_t n);
    /* log sum exp(x), n > 0. Partial sums of 512 terms are added up in double. */
    double (*logsumexp)(const float *x, int64_t n);
    /* sum p log(p/q) for p = softmax(a), q = softmax(b), given the log-sum-exp of both. */
    double (*kl)(const float *a, const float *b, double lse_a, double lse_b, int64_t n);

    /* One row of the "int" family (format/int.c), bit-exact with its dequant_row. */
    void (*dequant_int)(const nb_format *f, const uint8_t *const plane[], int64_t n, float *out);

    /* Rows of dialect blocks as half units and exponents (format/dialect.h), all bit-exact:
     * online quantization, decoding of a packed row, values half * 2^(exponent - 128), and the row
     * product y += (sum half_a half_w) * 2^(exponent_a + exponent_w - 256) from 0, block by block
     * in ascending order. */
    void (*dialect_quantize)(const nb_format *f, const float *x, int64_t n, int8_t *half,
                             uint8_t *exponent);
    void (*dialect_decode)(const nb_format *f, const uint8_t *const plane[], int64_t n,
                           int8_t *half, uint8_t *exponent);
    void (*dialect_value)(const int8_t *half, const uint8_t *exponent, int64_t n, int block,
                          float *out);
    float (*dialect_dot)(const int8_t *a, const uint8_t *exponent_a, const int8_t *w,
                         const uint8_t *exponent_w, int64_t n, int block);
    void (*dequant_dialect)(const nb_format *f, const uint8_t *const plane[], int64_t n,
                            float *out);

    /* -- training -- */

    void (*mul_add)(float *y, const float *a, const float *b, int64_t n); /* y += a b */

    /* Backward of act(x) up: dx = dy up act'(x), dup = dy act(x); up and dup [n], or both NULL.
     * Outputs may be any of the inputs, but not each other. */
    void (*silu_back)(float *dx, float *dup, const float *dy, const float *x, const float *up,
                      int64_t n);
    void (*relu_back)(float *dx, float *dup, const float *dy, const float *x, const float *up,
                      int64_t n);
    void (*gelu_back)(float *dx, float *dup, const float *dy, const float *x, const float *up,
                      int64_t n);

    /* Backward of a row of softmax weights p: ds = scale p (dp - own), own = sum p dp. */
    void (*softmax_back)(float *ds, const float *p, const float *dp, float own, float scale,
                         int64_t n);

    /* Least and greatest of x and 0. */
    void (*range)(float *lo, float *hi, const float *x, int64_t n);
    /* y += share / (how many x equal value) where x equals value, which is not 0. */
    void (*add_where)(float *y, const float *x, float value, float share, int64_t n);
    /* Fake quantization on a uniform grid (format/ste.h): scale times the whole number nearest to
     * x / scale, limited to [lo, hi] first; ties to even; |lo|, |hi| < 2^22; bit-exact. */
    void (*round_uniform)(float *out, const float *x, float scale, float lo, float hi, int64_t n);
    /* Straight-through on any grid, back = x quantized: pass = g where x / scale is in [lo, hi],
     * else 0; returns sum of g (back - x) there and g back elsewhere. pass [n] or NULL. */
    float (*straight)(float *pass, const float *g, const float *x, const float *back, float scale,
                      float lo, float hi, int64_t n);
} nb_kernels;

/* cpu: NB_CPU_... that may be used; 0: the reference. */
void nb_kernels_init(nb_kernels *k, unsigned cpu);

/* What decodes a row of the format: the slot of its family, or the family's own dequant_row. */
typedef void (*nb_dequant_fn)(const nb_format *f, const uint8_t *const plane[], int64_t n,
                              float *out);
nb_dequant_fn nb_kernels_find_dequant(const nb_kernels *k, const nb_format *f);

/* The steps of nb_kernels_init. */
void nb_kernels_init_ref(nb_kernels *k);
void nb_kernels_init_train_ref(nb_kernels *k);
void nb_kernels_init_dialect_ref(nb_kernels *k);
#if defined(__x86_64__)
void nb_kernels_init_avx2(nb_kernels *k);
void nb_kernels_init_avx512(nb_kernels *k);
void nb_kernels_init_int_avx2(nb_kernels *k);
void nb_kernels_init_int_avx512(nb_kernels *k);
void nb_kernels_init_train_avx2(nb_kernels *k);
void nb_kernels_init_train_avx512(nb_kernels *k);
void nb_kernels_init_dialect_avx2(nb_kernels *k);
void nb_kernels_init_dialect_avx512vnni(nb_kernels *k);
#endif

#endif
