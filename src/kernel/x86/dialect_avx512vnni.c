/* Product of rows of dialect blocks, 256 values at a time: sums of 16 products, of which larger
 * blocks take two, four or eight. The rest is dialect_avx2.c. */
#include <immintrin.h>

#include "kernel/kernel.h"

enum { PIECE = 1024 }; /* values whose sums are made before they are scaled */

/* Bytes of a row at p of which `left` are there: the others read as 0. */
static inline __m512i load(const int8_t *p, int64_t left)
{
    if (left >= 64) return _mm512_loadu_si512(p);
    return left > 0 ? _mm512_maskz_loadu_epi8(((__mmask64)1 << left) - 1, p)
                    : _mm512_setzero_si512();
}

/* Sums of four products. The first factor of the instruction is unsigned: |w|; the second takes the
 * sign of w. */
static inline __m512i products(const int8_t *a, const int8_t *w, int64_t left)
{
    __m512i x = load(a, left), y = load(w, left);
    x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(y), _mm512_setzero_si512(), x);
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_abs_epi8(y), x);
}

/* The 16 sums of 16 products, in order. */
static inline __m512i sum_256(const int8_t *a, const int8_t *w, int64_t left)
{
    __m512i p0 = products(a, w, left), p1 = products(a + 64, w + 64, left - 64);
    __m512i p2 = products(a + 128, w + 128, left - 128);
    __m512i p3 = products(a + 192, w + 192, left - 192);
    __m512i s01 = _mm512_add_epi32(_mm512_unpacklo_epi32(p0, p1), _mm512_unpackhi_epi32(p0, p1));
    __m512i s23 = _mm512_add_epi32(_mm512_unpacklo_epi32(p2, p3), _mm512_unpackhi_epi32(p2, p3));
    __m512i s = _mm512_add_epi32(_mm512_unpacklo_epi64(s01, s23), _mm512_unpackhi_epi64(s01, s23));
    /* s holds in lane i, place k the sum of lane i of pk */
    __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, s);
}

/* Neighbours added up, in the lower half; the upper one is 0. */
static inline __m512i halve(__m512i s)
{
    s = _mm512_add_epi32(s, _mm512_srli_epi64(s, 32));
    return _mm512_zextsi256_si512(_mm512_cvtepi64_epi32(s));
}

/* sums: room for PIECE / 16 and 16 more */
static inline void sum_blocks(const int8_t *a, const int8_t *w, int64_t n, int block, int32_t *sums)
{
    int step = 256 / block;
    for (int64_t at = 0; at < n; at += 256, sums += step) {
        __m512i s = sum_256(a + at, w + at, n - at);
        for (int b = 16; b < block; b *= 2) s = halve(s);
        _mm512_storeu_si512(sums, s); /* ascending: the next one overwrites zeros */
    }
}

static float add_scaled(float y, const int32_t *sums, const uint8_t *ea, const uint8_t *ew,
                        int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        int m = n - i < 16 ? (int)(n - i) : 16;
        __mmask16 mask = (__mmask16)((1u << m) - 1);
        __m512i e = _mm512_add_epi32(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, ea + i)),
                                     _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, ew + i)));
        e = _mm512_sub_epi32(e, _mm512_set1_epi32(256));
        __m512 s = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, sums + i));
        float term[16];
        _mm512_storeu_ps(term, _mm512_scalef_ps(s, _mm512_cvtepi32_ps(e)));
        for (int j = 0; j < m; j++) y += term[j];
    }
    return y;
}

static float dialect_dot(const int8_t *a, const uint8_t *exponent_a, const int8_t *w,
                         const uint8_t *exponent_w, int64_t n, int block)
{
    float y = 0;
    for (int64_t at = 0; at < n; at += PIECE) {
        int32_t sums[PIECE / 16 + 16];
        int64_t m = n - at < PIECE ? n - at : PIECE, g = at / block;
        sum_blocks(a + at, w + at, m, block, sums);
        y = add_scaled(y, sums, exponent_a + g, exponent_w + g, (m + block - 1) / block);
    }
    return y;
}

void nb_kernels_init_dialect_avx512vnni(nb_kernels *k) { k->dialect_dot = dialect_dot; }
