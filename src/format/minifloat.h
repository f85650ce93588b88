/* Floats of 4 to 8 bits: exact conversions from and to fp32.
 *
 * A code is  s e..e m..m  (sign the highest bit), worth ±2^(e - bias) (1 + m/2^M), or
 * ±2^(1 - bias) m/2^M where e = 0:
 *
 *            code        positive values                           least       largest
 *   E2M1     seem        0 0.5 1 1.5 2 3 4 6                       0.5         6
 *   E3M0     seee        0 0.25 0.5 1 2 4 8 16                     0.25        16
 *   E2M3     seemmm      0 0.125 ... 7.5                           0.125       7.5
 *   E3M2     seeemm      0 0.0625 ... 28                           0.0625      28
 *   E4M3     seeeemmm    s1111111 is NaN, no Inf                   2^-9        448
 *   E5M2     seeeeemm    s11111mm is Inf (m = 0) and NaN           2^-16       57344
 *
 * Two ways of rounding (ZeroQuant-FP):
 *   hw      nearest, ties to the even code; beyond the largest value ±largest; the sign of zero is
 *           kept; NaN becomes 0x7f of the 8-bit types and +largest of the others. What CUDA's
 *           cvt.rn.satfinite does.
 *   paper   QPyTorch's float_quantize, "nearest": half an ulp is added to the magnitude and the
 *           rest cut off (ties away from zero); no code stands for Inf or NaN, so that E4M3 reaches
 *           480 and E5M2 114688; a result of zero is +0. Below the smallest normal number it adds
 *           that number first, in fp32, and so rounds twice: the float under 2^-10 becomes 2^-9.
 *
 * Sources: OCP OFP8 and OCP Microscaling Formats v1.0 (values); QPyTorch, float_kernel.cu. */
#ifndef NB_FORMAT_MINIFLOAT_H
#define NB_FORMAT_MINIFLOAT_H

#include "format/format.h"

typedef enum nb_minifloat {
    NB_E2M1,
    NB_E3M0,
    NB_E2M3,
    NB_E3M2,
    NB_E4M3,
    NB_E5M2,
    NB_N_MINIFLOATS,
} nb_minifloat;

typedef struct nb_minifloat_info {
    const char *name;
    int8_t bits, m_bits, bias;
    uint8_t max_code; /* largest finite code in "hw"; in "paper" all ones but the sign */
    uint8_t inf_code; /* 0: none */
    uint8_t nan_code; /* what a NaN becomes in "hw" */
    float max, max_paper;
} nb_minifloat_info;

extern const nb_minifloat_info nb_minifloats[NB_N_MINIFLOATS];

/* One value; bits of `code` above the type's are ignored. */
uint8_t nb_minifloat_encode(nb_minifloat t, float x);
uint8_t nb_minifloat_encode_paper(nb_minifloat t, float x);
float nb_minifloat_decode(nb_minifloat t, uint8_t code);
float nb_minifloat_decode_paper(nb_minifloat t, uint8_t code);

/* codes[i] = encode(w[i] / scale) and w[i] = decode(codes[i]) * scale, in "hw". IEEE division, not
 * a product with 1/scale: 0.775 / (2.8/448) lies below a tie in E4M3, 0.775 (448/2.8) on it. */
void nb_minifloat_encode_row(nb_minifloat t, float scale, const float *w, int64_t n,
                             uint8_t *codes);
void nb_minifloat_decode_row(nb_minifloat t, float scale, const uint8_t *codes, int64_t n,
                             float *w);
/* Both, of n values with scales of their own: nb_format_family.round_each. */
void nb_minifloat_round_each(nb_minifloat t, const nb_qparam *p, const float *w, int64_t n,
                             uint8_t *codes, float *back);

#endif
