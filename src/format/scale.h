/* Range of a group and its scale: rounding to the stored type (fp16, or fp32 where `wide`), bytes.
 */
#ifndef NB_FORMAT_SCALE_H
#define NB_FORMAT_SCALE_H

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "format/half.h"

#define NB_F16_MAX  65504.0f /* largest finite fp16 */
#define NB_F16_TINY 0x1p-24f /* smallest positive fp16 */

/* Ends of a range stay a few roundings below FLT_MAX, so that the code there has a finite value. */
#define NB_RANGE_MAX (FLT_MAX * (1 - 0x1p-20f))

/* Bits of a float as an integer in the same order; its own inverse. Reductions of integers become
 * vector code, those of floats do not without -ffast-math. */
static inline int32_t nb_f32_order(int32_t bits) { return bits ^ (bits >> 31 & INT32_MAX); }

/* Range of the group, shrunk by the clip ratios and widened to contain 0. */
static inline void nb_group_range(const float *w, int64_t n, float clip_lo, float clip_hi,
                                  float *lo, float *hi)
{
    int32_t min = 0, max = 0;
#pragma omp simd reduction(min : min) reduction(max : max)
    for (int64_t i = 0; i < n; i++) {
        int32_t x = nb_f32_order((int32_t)nb_f32_bits(w[i]));
        min = x < min ? x : min;
        max = x > max ? x : max;
    }
    *lo = fmaxf(clip_lo * nb_f32_from_bits((uint32_t)nb_f32_order(min)), -NB_RANGE_MAX);
    *hi = fminf(clip_hi * nb_f32_from_bits((uint32_t)nb_f32_order(max)), NB_RANGE_MAX);
}

/* Larger end of that range. */
static inline float nb_group_absmax(const float *w, int64_t n, float clip_lo, float clip_hi)
{
    float lo, hi;
    nb_group_range(w, n, clip_lo, clip_hi, &lo, &hi);
    return fmaxf(-lo, hi);
}

/* A positive scale as it is stored: never 0, never infinite. */
static inline float nb_scale_round(float s, bool wide)
{
    if (wide) return fmaxf(fminf(s, FLT_MAX), FLT_MIN);
    return nb_f16_to_f32(nb_f16_from_f32(fmaxf(fminf(s, NB_F16_MAX), NB_F16_TINY)));
}

/* First of n scales of one byte, E8M0, that is NaN; -1: none. */
static inline int64_t nb_e8m0_find_nan(const uint8_t *scales, int64_t n)
{
    const uint8_t *at = memchr(scales, 255, (size_t)n);
    return at ? at - scales : -1;
}

static inline void nb_scale_save(uint8_t *plane, int64_t g, float s, bool wide)
{
    if (wide) {
        memcpy(plane + 4 * g, &s, sizeof s);
    } else {
        uint16_t h = nb_f16_from_f32(s);
        memcpy(plane + 2 * g, &h, sizeof h);
    }
}

static inline float nb_scale_load(const uint8_t *plane, int64_t g, bool wide)
{
    if (wide) {
        float s;
        memcpy(&s, plane + 4 * g, sizeof s);
        return s;
    }
    uint16_t h;
    memcpy(&h, plane + 2 * g, sizeof h);
    return nb_f16_to_f32(h);
}

#endif
