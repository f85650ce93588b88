/* Rows of uniform integers to fp32, 8 codes at a time whatever their width; steps as in
 * int_avx512.c without the table of values. */
#include <immintrin.h>

#include "kernel/x86/int_param.h"

typedef struct unpacker {
    __m256i shuffle, shift, mask;
    int bits;
} unpacker;

static unpacker make_unpacker(int bits)
{
    uint8_t shuffle[32];
    uint32_t shift[8];
    for (int i = 0; i < 8; i++) {
        uint8_t byte = (uint8_t)(i * bits / 8);
        shuffle[4 * i] = byte;
        shuffle[4 * i + 1] = i * bits % 8 + bits > 8 ? (uint8_t)(byte + 1) : 0x80;
        shuffle[4 * i + 2] = shuffle[4 * i + 3] = 0x80; /* 0 */
        shift[i] = (uint32_t)(i * bits % 8);
    }
    return (unpacker){_mm256_loadu_si256((const __m256i *)shuffle),
                      _mm256_loadu_si256((const __m256i *)shift),
                      _mm256_set1_epi32((1 << bits) - 1), bits};
}

/* The values of the 8 codes in the low bytes of raw. */
static inline __m256 code_values(const unpacker *u, uint64_t raw, __m256i zero, __m256 scale)
{
    __m256i pairs = _mm256_shuffle_epi8(_mm256_set1_epi64x((int64_t)raw), u->shuffle);
    __m256i codes = _mm256_and_si256(_mm256_srlv_epi32(pairs, u->shift), u->mask);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero)), scale);
}

static void decode_scaled(const unpacker *u, const uint8_t *src, float scale, int32_t zero,
                          int64_t n, float *out)
{
    __m256i z = _mm256_set1_epi32(zero);
    __m256 s = _mm256_set1_ps(scale);
    const uint8_t *end = src + (n * u->bits + 7) / 8;
    int64_t i = 0;
    for (; i + 8 <= n && end - src >= 8; i += 8, src += u->bits) { /* may read past 8 codes */
        uint64_t raw;
        memcpy(&raw, src, sizeof raw);
        _mm256_storeu_ps(out + i, code_values(u, raw, z, s));
    }
    for (; i < n; i += 8, src += u->bits) {
        uint64_t raw = 0;
        float last[8];
        memcpy(&raw, src, (size_t)(end - src < u->bits ? end - src : u->bits));
        _mm256_storeu_ps(last, code_values(u, raw, z, s));
        memcpy(out + i, last, (size_t)(n - i < 8 ? n - i : 8) * sizeof *out);
    }
}

static void dequant_int(const nb_format *f, const uint8_t *const plane[], int64_t n, float *out)
{
    unpacker u = make_unpacker(f->bits);
    bool wide = int_scales_wide(f, n);
    int64_t groups = nb_format_groups(f, n);
    for (int64_t g = 0; g < groups; g++) {
        int64_t begin = nb_group_begin(f, g);
        const uint8_t *src = plane[0] + begin * f->bits / 8;
        decode_scaled(&u, src, int_scale(plane[1], wide, g), int_zero(f, plane[2], g),
                      nb_group_length(f, n, g), out + begin);
    }
}

void nb_kernels_init_int_avx2(nb_kernels *k) { k->dequant_int = dequant_int; }
