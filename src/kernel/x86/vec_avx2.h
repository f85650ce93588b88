/* 8 floats in a register, under the names that rows_tmpl.h uses. _n: the first n lanes, n from 1
 * to VLEN; the others read as 0 and are not touched in memory. */
#ifndef NB_KERNEL_X86_VEC_AVX2_H
#define NB_KERNEL_X86_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { VLEN = 8 };
typedef __m256 vf;

/* All ones in the first n lanes. */
static inline __m256i v_lanes(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline vf v_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, v_lanes(n)); }
static inline void v_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
static inline void v_store_n(float *p, vf a, int64_t n) { _mm256_maskstore_ps(p, v_lanes(n), a); }

static inline vf v_set1(float a) { return _mm256_set1_ps(a); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); } /* b where either is NaN */
static inline vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }   /* a b + c */
static inline vf v_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); } /* c - a b */
static inline vf v_round(vf a) { return _mm256_round_ps(a, 8); }                /* to even */

/* `fill` in all lanes from n on. */
static inline vf v_fill_n(vf a, float fill, int64_t n)
{
    return _mm256_blendv_ps(_mm256_set1_ps(fill), a, _mm256_castsi256_ps(v_lanes(n)));
}

/* n floats, each of them twice; n from 1 to VLEN / 2. */
static inline vf v_load_twice_n(const float *p, int64_t n)
{
    vf a = _mm256_castps128_ps256(_mm_maskload_ps(p, _mm256_castsi256_si128(v_lanes(n))));
    return _mm256_permutevar8x32_ps(a, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}
static inline vf v_swap_pairs(vf a) { return _mm256_permute_ps(a, 0xb1); }
static inline vf v_negate_even(vf a) /* lanes 0, 2, ... */
{
    return _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi64x(0x80000000)));
}

/* 2^n for whole n in [-126, 127]: the exponent field. */
static inline vf v_pow2(vf n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}

/* a 2^n for whole n in about [-250, 250], in two halves; underflow goes through the denormals. */
static inline vf v_ldexp(vf a, vf n)
{
    vf lo = _mm256_set1_ps(-252), hi = _mm256_set1_ps(254);
    n = _mm256_min_ps(_mm256_max_ps(n, lo), hi);
    vf half = v_round(_mm256_mul_ps(n, _mm256_set1_ps(0.5f)));
    return v_mul(v_mul(a, v_pow2(half)), v_pow2(v_sub(n, half)));
}

static inline float v_sum(vf a)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline float v_hmax(vf a)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* a[i] + a[i + h] in lane i, a[i] - a[i + h] in lane i + h, for every i without bit h; h 1, 2, 4.
 */
static inline vf v_butterfly(vf a, int h)
{
    vf other = h == 1   ? _mm256_permute_ps(a, 0xb1)
               : h == 2 ? _mm256_permute_ps(a, 0x4e)
                        : _mm256_permute2f128_ps(a, a, 1);
    __m256i bit = _mm256_set1_epi32(h), lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    vf second = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(lane, bit), bit));
    return _mm256_blendv_ps(_mm256_add_ps(a, other), _mm256_sub_ps(other, a), second);
}

/* Bit i: lane i equals b's. */
static inline unsigned v_equal(vf a, vf b)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}

/* Lanes by a condition, and those lanes of a, else 0. */
typedef __m256 vm;

static inline vm v_above(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
static inline vm v_within(vf a, vf lo, vf hi)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, lo, _CMP_GE_OQ), _mm256_cmp_ps(a, hi, _CMP_LE_OQ));
}
static inline vf v_keep(vm m, vf a) { return _mm256_and_ps(m, a); }

static inline vf v_load_bf16(const uint16_t *p)
{
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}

static inline vf v_load_bf16_n(const uint16_t *p, int64_t n)
{
    uint16_t full[8] = {0};
    memcpy(full, p, (size_t)n * sizeof *p);
    return v_load_bf16(full);
}

/* The bits of nb_bf16_from_f32, in the low half of each lane. */
static inline __m256i v_round_bf16(vf a)
{
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    vf nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    vf r = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan);
    return _mm256_srli_epi32(_mm256_castps_si256(r), 16);
}

static inline __m128i v_pack16(__m256i u)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1));
}

static inline void v_store_bf16(uint16_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, v_pack16(v_round_bf16(a)));
}

static inline void v_store_bf16_n(uint16_t *p, vf a, int64_t n)
{
    uint16_t full[8];
    v_store_bf16(full, a);
    memcpy(p, full, (size_t)n * sizeof *p);
}

#endif
