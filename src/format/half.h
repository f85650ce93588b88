/* Exact conversions between fp32 and 16-bit floats; rounding is to nearest, ties to even. */
#ifndef NB_FORMAT_HALF_H
#define NB_FORMAT_HALF_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define NB_HD __host__ __device__ /* kernels call it, too */
#else
#define NB_HD
#endif

static inline NB_HD uint32_t nb_f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline NB_HD float nb_f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float nb_bf16_to_f32(uint16_t h) { return nb_f32_from_bits((uint32_t)h << 16); }

static inline uint16_t nb_bf16_from_f32(float x)
{
    uint32_t u = nb_f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u); /* keep NaN a NaN */
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* fp16: s eeeee mmmmmmmmmm, bias 15. Masks in place of branches: loops over it become vector code
 * (gcc does not turn a choice between a float result and an integer one into a blend). */
static inline NB_HD float nb_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, a = h & 0x7fffu;
    uint32_t is_special = 0u - (uint32_t)(a >= 0x7c00u); /* Inf, NaN: exponent stays all ones */
    uint32_t normal = (a << 13) + (112u << 23) + (is_special & 112u << 23);
    float subnormal = nb_f32_from_bits(0x3f000000u | a) - 0.5f; /* ulp of [0.5, 1) is 2^-24 */
    uint32_t is_small = 0u - (uint32_t)(a < 0x0400u);
    return nb_f32_from_bits(sign | (is_small & nb_f32_bits(subnormal)) | (~is_small & normal));
}

static inline NB_HD uint16_t nb_f16_from_f32(float x)
{
    uint32_t u = nb_f32_bits(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to 65536 or more: Inf */
    if (a < 0x38800000u) {                                   /* below 2^-14: subnormal */
        float r = nb_f32_from_bits(a) + 0.5f;                /* ulp of [0.5, 1) is 2^-24 */
        return (uint16_t)(sign | (nb_f32_bits(r) - 0x3f000000u));
    }
    a += 0xfffu + (a >> 13 & 1u);
    return (uint16_t)(sign | (a - 0x38000000u) >> 13);
}

#endif
