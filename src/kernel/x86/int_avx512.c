/* Rows of uniform integers to fp32, 16 codes at a time whatever their width:
 *
 *   16 codes = 2 bits bytes, copied to the four 128-bit lanes
 *   shuffle    dword i gets bytes b, b + 1 with b = floor(i bits / 8): code i lies in them
 *   shift      by i bits mod 8, and mask
 *   value      up to 4 bits: a table of the 2^bits values (vpermps); else subtract, convert, scale
 *
 * Five instructions for 16 values; with short groups their parameters cost as much again. */
#include <immintrin.h>

#include "kernel/x86/int_param.h"

/* Constants of a width; small enough to stay in registers. */
typedef struct unpacker {
    __m512i shuffle, shift, mask;
    int bits;
} unpacker;

static inline __m512i lane_index(void)
{
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

/* Where a code ends in its first byte, the second one is masked away: it may be any. */
static inline unpacker make_unpacker(int bits)
{
    __m512i bit = _mm512_mullo_epi32(lane_index(), _mm512_set1_epi32(bits));
    __m512i byte = _mm512_srli_epi32(bit, 3);
    __m512i next =
        _mm512_and_si512(_mm512_add_epi32(byte, _mm512_set1_epi32(1)), _mm512_set1_epi32(15));
    __m512i pair = _mm512_or_si512(byte, _mm512_slli_epi32(next, 8));
    return (unpacker){_mm512_or_si512(pair, _mm512_set1_epi32((int)0x80800000u)), /* 0x80: 0 */
                      _mm512_and_si512(bit, _mm512_set1_epi32(7)),
                      _mm512_set1_epi32((1 << bits) - 1), bits};
}

static inline __m512i split_codes(unpacker u, __m128i raw)
{
    __m512i pairs = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(raw), u.shuffle);
    return _mm512_and_si512(_mm512_srlv_epi32(pairs, u.shift), u.mask);
}

/* The n codes (1 to 16) that begin at the whole byte src. */
static inline __m512i load_codes(unpacker u, const uint8_t *src, int n)
{
    int bytes = (n * u.bits + 7) / 8;
    return split_codes(u, _mm_maskz_loadu_epi8((__mmask16)((1u << bytes) - 1), src));
}

/* One group: what turns codes into values. */
typedef struct grid {
    __m512i zero;
    __m512 scale, table;
} grid;

static inline __m512 scaled_values(const grid *g, __m512i codes)
{
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, g->zero)), g->scale);
}

static inline __m512 code_values(const grid *g, int bits, __m512i codes)
{
    return bits <= 4 ? _mm512_permutexvar_ps(codes, g->table) : scaled_values(g, codes);
}

static inline void decode_group(unpacker u, const uint8_t *src, grid g, int64_t n, float *out)
{
    int64_t i = 0;
    for (; (n - i) * u.bits >= 128; i += 16, src += 2 * u.bits) { /* 16 bytes may be read */
        __m512i codes = split_codes(u, _mm_loadu_si128((const __m128i *)src));
        _mm512_storeu_ps(out + i, code_values(&g, u.bits, codes));
    }
    for (; i < n; i += 16, src += 2 * u.bits) {
        int left = n - i < 16 ? (int)(n - i) : 16;
        __m512 v = code_values(&g, u.bits, load_codes(u, src, left));
        _mm512_mask_storeu_ps(out + i, (__mmask16)((1u << left) - 1), v);
    }
}

static void dequant_int(const nb_format *f, const uint8_t *const plane[], int64_t n, float *out)
{
    unpacker u = make_unpacker(f->bits);
    bool wide = int_scales_wide(f, n);
    int64_t groups = nb_format_groups(f, n);
    for (int64_t i = 0; i < groups; i++) {
        int64_t begin = nb_group_begin(f, i), length = nb_group_length(f, n, i);
        grid g = {.zero = _mm512_set1_epi32(int_zero(f, plane[2], i)),
                  .scale = _mm512_set1_ps(int_scale(plane[1], wide, i))};
        g.table = scaled_values(&g, lane_index());
        decode_group(u, plane[0] + begin * f->bits / 8, g, length, out + begin);
    }
}

void nb_kernels_init_int_avx512(nb_kernels *k) { k->dequant_int = dequant_int; }
