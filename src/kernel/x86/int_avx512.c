/* Rows of uniform integers to fp32, 16 codes at a time whatever their width:
 *
 *   16 codes = 2 bits bytes, copied to the four 128-bit lanes
 *   shuffle    dword i gets bytes b, b + 1 with b = floor(i bits / 8): code i lies in them
 *   shift      by i bits mod 8, and mask
 *   value      up to 4 bits: a table of the 2^bits values (vpermps); else subtract, convert, scale
 *
 * About 5 instructions for 16 values. */
#include <immintrin.h>

#include "kernel/x86/int_param.h"

typedef struct unpacker {
    __m512i shuffle, shift, mask;
    int bits;
} unpacker;

static unpacker make_unpacker(int bits)
{
    uint8_t shuffle[64];
    uint32_t shift[16];
    for (int i = 0; i < 16; i++) {
        uint8_t byte = (uint8_t)(i * bits / 8);
        shuffle[4 * i] = byte;
        shuffle[4 * i + 1] = i * bits % 8 + bits > 8 ? (uint8_t)(byte + 1) : 0x80;
        shuffle[4 * i + 2] = shuffle[4 * i + 3] = 0x80; /* 0 */
        shift[i] = (uint32_t)(i * bits % 8);
    }
    return (unpacker){_mm512_loadu_si512(shuffle), _mm512_loadu_si512(shift),
                      _mm512_set1_epi32((1 << bits) - 1), bits};
}

/* The n codes (1 to 16) that begin at the whole byte src. */
static inline __m512i load_codes(const unpacker *u, const uint8_t *src, int n)
{
    int bytes = (n * u->bits + 7) / 8;
    __m128i raw = _mm_maskz_loadu_epi8((__mmask16)((1u << bytes) - 1), src);
    __m512i pairs = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(raw), u->shuffle);
    return _mm512_and_si512(_mm512_srlv_epi32(pairs, u->shift), u->mask);
}

static inline __m512 code_values(__m512i codes, __m512i zero, __m512 scale)
{
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, zero)), scale);
}

static void decode_table(const unpacker *u, const uint8_t *src, float scale, int32_t zero,
                         int64_t n, float *out)
{
    const __m512i all = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 table = code_values(all, _mm512_set1_epi32(zero), _mm512_set1_ps(scale));
    int64_t i = 0;
    for (; i + 16 <= n; i += 16, src += 2 * u->bits) {
        _mm512_storeu_ps(out + i, _mm512_permutexvar_ps(load_codes(u, src, 16), table));
    }
    if (i == n) return;
    int left = (int)(n - i);
    __m512 v = _mm512_permutexvar_ps(load_codes(u, src, left), table);
    _mm512_mask_storeu_ps(out + i, (__mmask16)((1u << left) - 1), v);
}

static void decode_scaled(const unpacker *u, const uint8_t *src, float scale, int32_t zero,
                          int64_t n, float *out)
{
    __m512i z = _mm512_set1_epi32(zero);
    __m512 s = _mm512_set1_ps(scale);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16, src += 2 * u->bits) {
        _mm512_storeu_ps(out + i, code_values(load_codes(u, src, 16), z, s));
    }
    if (i == n) return;
    int left = (int)(n - i);
    __m512 v = code_values(load_codes(u, src, left), z, s);
    _mm512_mask_storeu_ps(out + i, (__mmask16)((1u << left) - 1), v);
}

static void dequant_int(const nb_format *f, const uint8_t *const plane[], int64_t n, float *out)
{
    unpacker u = make_unpacker(f->bits);
    bool wide = int_scales_wide(f, n);
    int64_t groups = nb_format_groups(f, n);
    for (int64_t g = 0; g < groups; g++) {
        int64_t begin = nb_group_begin(f, g), length = nb_group_length(f, n, g);
        const uint8_t *src = plane[0] + begin * f->bits / 8;
        float scale = int_scale(plane[1], wide, g);
        int32_t zero = int_zero(f, plane[2], g);
        (f->bits <= 4 ? decode_table : decode_scaled)(&u, src, scale, zero, length, out + begin);
    }
}

void nb_kernels_init_int_avx512(nb_kernels *k) { k->dequant_int = dequant_int; }
