/* 4-bit codes as 8-bit floats: value(code) * 2^j as one byte, without rounding.
 *
 * This is what power-of-two scales (m1, m2) are for: with scale_g = base 2^-e_g the factor 2^-e_g
 * goes into the byte and one fp32 number per row is left,
 *
 *   w = value(byte) * (base 2^-hi),   byte = value(code) * 2^(hi - e_g),   hi: the largest exact j
 *
 * which is the form that FP8 matrix products with one scale per row take. The bit shift of the code
 * is the row j = -6 of E2M1 to E4M3 (j = -14 to E5M2); adding j to the exponent field is wrong
 * where that field is 0. Source: ZeroQuant-FP, section 5 of its specification. */
#ifndef NB_FORMAT_FP4_CAST_H
#define NB_FORMAT_FP4_CAST_H

#include <stdbool.h>

#include "format/format.h"
#include "format/minifloat.h"

typedef struct nb_fp4_cast_range {
    int8_t lo, hi; /* exact for every code where lo <= j <= hi */
} nb_fp4_cast_range;

/* from: NB_E2M1 or NB_E3M0; to: NB_E4M3 or NB_E5M2. */
nb_fp4_cast_range nb_fp4_cast_limits(nb_minifloat from, nb_minifloat to);

/* value[i] of code i. The integers: i - zero. */
void nb_fp4_values(float value[16], nb_minifloat from);
void nb_int4_values(float value[16], int zero);

/* out[i] = value[i] * 2^j; false if one of them is not exact. */
bool nb_fp4_cast(uint8_t out[16], const float value[16], nb_minifloat to, int j);

/* A row of an m1 or m2 format: codes and p as unpacked, out [n_in] bytes and *scale such that
 * value(out[i]) * *scale is the decoded weight bit for bit. False if an exponent is out of range,
 * which no fit makes. */
bool nb_fp4_cast_row(const nb_format *f, const uint8_t *codes, const nb_qparam *p, int64_t n_in,
                     nb_minifloat to, uint8_t *out, float *scale);

#endif
