/* 16 floats in a register, under the names that rows_tmpl.h uses. _n: the first n lanes, n from 1
 * to VLEN; the others read as 0 and are not touched in memory. */
#ifndef NB_KERNEL_X86_VEC_AVX512_H
#define NB_KERNEL_X86_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

enum { VLEN = 16 };
typedef __m512 vf;

static inline __mmask16 v_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }

static inline vf v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vf v_load_n(const float *p, int64_t n)
{
    return _mm512_maskz_loadu_ps(v_lanes(n), p);
}
static inline void v_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
static inline void v_store_n(float *p, vf a, int64_t n) { _mm512_mask_storeu_ps(p, v_lanes(n), a); }

static inline vf v_set1(float a) { return _mm512_set1_ps(a); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); } /* b where either is NaN */
static inline vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a b + c */
static inline vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
static inline vf v_round(vf a) { return _mm512_roundscale_ps(a, 8); }           /* to even */

/* `fill` in all lanes from n on. */
static inline vf v_fill_n(vf a, float fill, int64_t n)
{
    return _mm512_mask_mov_ps(_mm512_set1_ps(fill), v_lanes(n), a);
}

/* n floats, each of them twice; n from 1 to VLEN / 2. */
static inline vf v_load_twice_n(const float *p, int64_t n)
{
    __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return _mm512_permutexvar_ps(twice, v_load_n(p, n));
}
static inline vf v_swap_pairs(vf a) { return _mm512_permute_ps(a, 0xb1); }
static inline vf v_negate_even(vf a) /* lanes 0, 2, ... */
{
    return _mm512_xor_ps(a, _mm512_castsi512_ps(_mm512_set1_epi64(0x80000000)));
}

/* a 2^n for whole n; underflow goes through the denormals to 0. */
static inline vf v_ldexp(vf a, vf n) { return _mm512_scalef_ps(a, n); }

static inline float v_sum(vf a) { return _mm512_reduce_add_ps(a); }
static inline float v_hmax(vf a) { return _mm512_reduce_max_ps(a); }

/* a[i] + a[i + h] in lane i, a[i] - a[i + h] in lane i + h, for every i without bit h; h 1, 2, 4,
 * 8. */
static inline vf v_butterfly(vf a, int h)
{
    vf other = h == 1   ? _mm512_permute_ps(a, 0xb1)
               : h == 2 ? _mm512_permute_ps(a, 0x4e)
               : h == 4 ? _mm512_shuffle_f32x4(a, a, 0xb1)
                        : _mm512_shuffle_f32x4(a, a, 0x4e);
    __mmask16 second = h == 1 ? 0xaaaa : h == 2 ? 0xcccc : h == 4 ? 0xf0f0 : 0xff00;
    return _mm512_mask_sub_ps(_mm512_add_ps(a, other), second, other, a);
}

/* Bit i: lane i equals b's. */
static inline unsigned v_equal(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }

/* Lanes by a condition, and those lanes of a, else 0. */
typedef __mmask16 vm;

static inline vm v_above(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline vm v_within(vf a, vf lo, vf hi)
{
    return _mm512_cmp_ps_mask(a, lo, _CMP_GE_OQ) & _mm512_cmp_ps_mask(a, hi, _CMP_LE_OQ);
}
static inline vf v_keep(vm m, vf a) { return _mm512_maskz_mov_ps(m, a); }

static inline vf v_load_bf16(const uint16_t *p)
{
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}

static inline vf v_load_bf16_n(const uint16_t *p, int64_t n)
{
    __m512i u = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(v_lanes(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}

/* The bits of nb_bf16_from_f32, in the low half of each lane. */
static inline __m512i v_round_bf16(vf a)
{
    __m512i u = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16);
}

static inline void v_store_bf16(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(v_round_bf16(a)));
}

static inline void v_store_bf16_n(uint16_t *p, vf a, int64_t n)
{
    _mm256_mask_storeu_epi16(p, v_lanes(n), _mm512_cvtepi32_epi16(v_round_bf16(a)));
}

#endif
