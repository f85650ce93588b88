/* Rows of dialect blocks, 32 values at a time; blocks are 16 values or a multiple of 32, and the
 * last one of a row may have any length.
 *
 *   product   |w| is unsigned and a takes the sign of w: pairs of products stay below 2^15. Sums of
 *             16 products lie in one 128-bit lane: blocks of 16 are lanes, larger ones their sums
 *   decode    one shuffle with the dialect's 16 signed values
 *   quantize  q = floor(4 |x| 2^-SE) in fp32 is exact down to SE = -124; the reference takes over
 *             below, and where the rule is not that of the two stages */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "format/dialect.h"
#include "format/dialect_codec.h"
#include "kernel/kernel.h"

enum { PIECE = 1024 }; /* values at a time: a multiple of two of the largest blocks */

/* ---- product --------------------------------------------------------------------------- */

/* Sums of four products each: 4 + 4 for the lanes of 16 values. */
static inline __m256i products(const int8_t *a, const int8_t *w)
{
    __m256i x = _mm256_loadu_si256((const __m256i *)a), y = _mm256_loadu_si256((const __m256i *)w);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(y), _mm256_sign_epi8(x, y));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* 128 values -> 128 / block sums. */
static inline void sum_128(const int8_t *a, const int8_t *w, int block, int32_t *sums)
{
    __m256i s01 = _mm256_hadd_epi32(products(a, w), products(a + 32, w + 32));
    __m256i s23 = _mm256_hadd_epi32(products(a + 64, w + 64), products(a + 96, w + 96));
    __m256i s = _mm256_hadd_epi32(s01, s23); /* first lanes of the four, then second lanes */
    if (block == 16) {
        s = _mm256_permutevar8x32_epi32(s, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)sums, s);
        return;
    }
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    if (block >= 64) t = _mm_hadd_epi32(t, t);
    if (block >= 128) t = _mm_hadd_epi32(t, t);
    _mm_storeu_si128((__m128i *)sums, t); /* those behind the last one are overwritten or ignored */
}

/* sums: room for PIECE / block and three more */
static void sum_blocks(const int8_t *a, const int8_t *w, int64_t n, int block, int32_t *sums)
{
    int64_t at = 0;
    int step = 128 / block;
    for (; at + 128 <= n; at += 128, sums += step) sum_128(a + at, w + at, block, sums);
    if (at == n) return;
    int8_t last[2][128] = {{0}};
    memcpy(last[0], a + at, (size_t)(n - at));
    memcpy(last[1], w + at, (size_t)(n - at));
    sum_128(last[0], last[1], block, sums);
}

/* y + sums[i] 2^(ea[i] + ew[i] - 256), in ascending order. The power is split in two factors: both
 * are normal numbers, and only the second product can round, to a subnormal. */
static float add_scaled(float y, const int32_t *sums, const uint8_t *ea, const uint8_t *ew,
                        int64_t n)
{
    for (int64_t i = 0; i < n; i += 8) {
        size_t m = n - i < 8 ? (size_t)(n - i) : 8;
        uint64_t a = 0, w = 0;
        memcpy(&a, ea + i, m);
        memcpy(&w, ew + i, m);
        __m256i e = _mm256_add_epi32(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)a)),
                                     _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)w)));
        e = _mm256_sub_epi32(e, _mm256_set1_epi32(256));
        e = _mm256_max_epi32(e, _mm256_set1_epi32(-252)); /* 2^15 times that is 0 already */
        __m256i e1 = _mm256_max_epi32(e, _mm256_set1_epi32(-126));
        e1 = _mm256_min_epi32(e1, _mm256_set1_epi32(127));
        __m256i bias = _mm256_set1_epi32(127), e2 = _mm256_sub_epi32(e, e1);
        __m256 f1 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e1, bias), 23));
        __m256 f2 = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e2, bias), 23));
        __m256 s = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(sums + i)));
        float term[8];
        _mm256_storeu_ps(term, _mm256_mul_ps(_mm256_mul_ps(s, f1), f2));
        for (size_t j = 0; j < m; j++) y += term[j];
    }
    return y;
}

static float dialect_dot(const int8_t *a, const uint8_t *exponent_a, const int8_t *w,
                         const uint8_t *exponent_w, int64_t n, int block)
{
    float y = 0;
    for (int64_t at = 0; at < n; at += PIECE) {
        int32_t sums[PIECE / 16 + 8];
        int64_t m = n - at < PIECE ? n - at : PIECE, g = at / block;
        sum_blocks(a + at, w + at, m, block, sums);
        y = add_scaled(y, sums, exponent_a + g, exponent_w + g, (m + block - 1) / block);
    }
    return y;
}

/* ---- decoding -------------------------------------------------------------------------- */

/* 32 values from 16 bytes of codes; the first 16 are of dialect id0. */
static inline void decode_32(const uint8_t *codes, int id0, int id1, int8_t *half)
{
    __m128i c = _mm_loadu_si128((const __m128i *)codes), mask = _mm_set1_epi8(15);
    __m128i even = _mm_and_si128(c, mask), odd = _mm_and_si128(_mm_srli_epi16(c, 4), mask);
    __m128i t0 = _mm_loadu_si128((const __m128i *)nb_dialect_half[id0]);
    __m128i t1 = _mm_loadu_si128((const __m128i *)nb_dialect_half[id1]);
    _mm_storeu_si128((__m128i *)half, _mm_shuffle_epi8(t0, _mm_unpacklo_epi8(even, odd)));
    _mm_storeu_si128((__m128i *)(half + 16), _mm_shuffle_epi8(t1, _mm_unpackhi_epi8(even, odd)));
}

static inline int id_of(const uint8_t *ids, int64_t g) { return ids[g / 2] >> g % 2 * 4 & 15; }

static void dialect_decode(const nb_format *f, const uint8_t *const plane[], int64_t n,
                           int8_t *half, uint8_t *exponent)
{
    int64_t i = 0;
    int shift = __builtin_ctz((unsigned)f->group);
    for (; i + 32 <= n; i += 32) {
        int64_t g = i >> shift, h = (i + 16) >> shift;
        decode_32(plane[0] + i / 2, id_of(plane[2], g), id_of(plane[2], h), half + i);
    }
    for (; i < n; i++) {
        const int8_t *values = nb_dialect_half[id_of(plane[2], i >> shift)];
        half[i] = values[plane[0][i / 2] >> i % 2 * 4 & 15];
    }
    memcpy(exponent, plane[1], (size_t)nb_format_groups(f, n));
}

static void dialect_value(const int8_t *half, const uint8_t *exponent, int64_t n, int block,
                          float *out)
{
    for (int64_t g = 0, at = 0; at < n; g++, at += block) {
        float scale = nb_dialect_scale(exponent[g]);
        int64_t end = n - at < block ? n : at + block, i = at;
        for (; i + 8 <= end; i += 8) {
            __m128i h = _mm_loadl_epi64((const __m128i *)(half + i));
            __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(h));
            _mm256_storeu_ps(out + i, _mm256_mul_ps(v, _mm256_set1_ps(scale)));
        }
        for (; i < end; i++) out[i] = (float)half[i] * scale;
    }
}

static void dequant_dialect(const nb_format *f, const uint8_t *const plane[], int64_t n, float *out)
{
    int8_t half[PIECE];
    uint8_t exponent[PIECE / 16];
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t m = n - at < PIECE ? n - at : PIECE, g = at / f->group;
        const uint8_t *const piece[] = {plane[0] + at / 2, plane[1] + g, plane[2] + g / 2, NULL};
        dialect_decode(f, piece, m, half, exponent);
        dialect_value(half, exponent, m, f->group, out + at);
    }
}

/* ---- quantizing ------------------------------------------------------------------------ */

/* Magnitude bits of the largest |x|; Inf and NaN count as the largest number. */
static uint32_t max_of(const float *x, int64_t n)
{
    __m256i max = _mm256_setzero_si256(), mask = _mm256_set1_epi32(INT32_MAX);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(x + i));
        max = _mm256_max_epi32(max, _mm256_and_si256(v, mask));
    }
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    uint32_t most = (uint32_t)_mm_cvtsi128_si32(m), rest = nb_dialect_max(x + i, n - i);
    most = most < 0x7f7fffffu ? most : 0x7f7fffffu;
    return most > rest ? most : rest;
}

/* Bytes of four vectors of small integers, in order. */
static inline __m256i pack_bytes(__m256i a, __m256i b, __m256i c, __m256i d)
{
    __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* q = min(31, trunc(4 |x| 2^-SE)): `four` is 2^(2 - SE). NaN is not below 31. */
static inline __m256i align_8(const float *x, __m256 four)
{
    __m256 v = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x));
    return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_mul_ps(v, four), _mm256_set1_ps(31)));
}

static inline __m256i sign_8(const float *x)
{
    return _mm256_srai_epi32(_mm256_loadu_si256((const __m256i *)x), 31);
}

static inline int count_in(nb_dialect_range r, __m256i q)
{
    __m256i d = _mm256_sub_epi8(q, _mm256_set1_epi8((char)r.first));
    __m256i last = _mm256_set1_epi8((char)(r.count - 1));
    __m256i in = _mm256_cmpeq_epi8(_mm256_min_epu8(d, last), d);
    return __builtin_popcount((unsigned)_mm256_movemask_epi8(in));
}

/* A table of 32 bytes by q. */
static inline __m256i look_up(const uint8_t table[32], __m256i q)
{
    __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + 16)));
    __m256i is_high = _mm256_cmpgt_epi8(q, _mm256_set1_epi8(15));
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(low, q), _mm256_shuffle_epi8(high, q), is_high);
}

/* q of 32 values, or of 16 and zeros: those are in no beneficial range. */
static inline __m256i align_bytes(const float *x, bool full, __m256 four)
{
    __m256i zero = _mm256_setzero_si256();
    return pack_bytes(align_8(x, four), align_8(x + 8, four), full ? align_8(x + 16, four) : zero,
                      full ? align_8(x + 24, four) : zero);
}

/* 0 or -1 */
static inline __m256i sign_bytes(const float *x, bool full)
{
    __m256i zero = _mm256_setzero_si256();
    return pack_bytes(sign_8(x), sign_8(x + 8), full ? sign_8(x + 16) : zero,
                      full ? sign_8(x + 24) : zero);
}

/* n a multiple of 16. */
static void quantize_block(const float *x, int64_t n, uint32_t max, int se, int8_t *half)
{
    __m256 four = _mm256_set1_ps(ldexpf(1, 2 - se));
    __m256i q[NB_DIALECT_BLOCK_MAX / 32];
    int even = nb_dialect_even(max, se), odd_lead = 0;
    for (int64_t i = 0; i < n; i += 32) {
        q[i / 32] = align_bytes(x + i, i + 32 <= n, four);
        odd_lead += count_in(nb_dialect_benefit[even + 1], q[i / 32]);
        odd_lead -= count_in(nb_dialect_benefit[even], q[i / 32]);
    }
    const uint8_t *round = nb_dialect_round[even + (odd_lead > 0)];
    for (int64_t i = 0; i < n; i += 32) {
        bool full = i + 32 <= n;
        __m256i s = sign_bytes(x + i, full);
        __m256i h = _mm256_sub_epi8(_mm256_xor_si256(look_up(round, q[i / 32]), s), s);
        if (full) {
            _mm256_storeu_si256((__m256i *)(half + i), h);
        } else {
            _mm_storeu_si128((__m128i *)(half + i), _mm256_castsi256_si128(h));
        }
    }
}

static void quantize_any(const float *x, int64_t n, uint32_t max, int se, int8_t *half)
{
    if (n % 16 == 0) {
        quantize_block(x, n, max, se, half);
        return;
    }
    float padded[NB_DIALECT_BLOCK_MAX] = {0};
    int8_t out[NB_DIALECT_BLOCK_MAX];
    memcpy(padded, x, (size_t)n * sizeof *x);
    quantize_block(padded, (n + 15) / 16 * 16, max, se, out);
    memcpy(half, out, (size_t)n);
}

static void dialect_quantize(const nb_format *f, const float *x, int64_t n, int8_t *half,
                             uint8_t *exponent)
{
    nb_dialect_rule rule = nb_dialect_online_rule(f);
    if (rule.least_error) {
        nb_dialect_quantize_row(f, x, n, half, exponent);
        return;
    }
    for (int64_t g = 0, at = 0; at < n; g++, at += f->group) {
        int64_t m = n - at < f->group ? n - at : f->group;
        uint32_t max = max_of(x + at, m);
        int se = nb_dialect_exponent(max, rule.se_min, rule.se_max);
        if (se < -124 || nb_dialect_align(max, se) == 0) {
            nb_dialect_quantize_row(f, x + at, m, half + at, exponent + g);
            continue;
        }
        quantize_any(x + at, m, max, se, half + at);
        exponent[g] = (uint8_t)(se + 127);
    }
}

void nb_kernels_init_dialect_avx2(nb_kernels *k)
{
    k->dialect_quantize = dialect_quantize;
    k->dialect_decode = dialect_decode;
    k->dialect_value = dialect_value;
    k->dialect_dot = dialect_dot;
    k->dequant_dialect = dequant_dialect;
}
