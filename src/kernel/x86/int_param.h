/* Side data of a row in the "int" format (drawn in format/int.c), shared by the x86 kernels. */
#ifndef NB_KERNEL_X86_INT_PARAM_H
#define NB_KERNEL_X86_INT_PARAM_H

#include <immintrin.h>
#include <string.h>

#include "kernel/kernel.h"

static inline bool int_scales_wide(const nb_format *f, int64_t n)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    f->family->planes(f, n, spec);
    return spec[1].dtype == NB_F32;
}

static inline float int_scale(const uint8_t *scales, bool wide, int64_t group)
{
    if (wide) {
        float s;
        memcpy(&s, scales + 4 * group, sizeof s);
        return s;
    }
    uint16_t h;
    memcpy(&h, scales + 2 * group, sizeof h);
    return _cvtsh_ss(h);
}

static inline int32_t int_zero(const nb_format *f, const uint8_t *zeros, int64_t group)
{
    if (f->sym) return (1 << (f->bits - 1)) - 1;
    int64_t bit = group * f->bits;
    int shift = (int)(bit % 8);
    int32_t v = zeros[bit / 8] >> shift;
    if (shift + f->bits > 8) v |= zeros[bit / 8 + 1] << (8 - shift);
    return v & ((1 << f->bits) - 1);
}

#endif
