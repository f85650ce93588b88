/* GGML's block types. Source: ggml's ggml-common.h (block structs) and gguf-py's quants.py, which
 * defines the values; tests/unit/test_dtype.c pins golden blocks made with the latter.
 *
 * In the drawings a byte is written with its high bits first, v[i] is the code of value i, and a
 * row of the drawing is one field of the block, in file order. Inner loops have a fixed length and
 * restricted pointers, so that the compiler turns each into vector code. */
#include "format/dtype_ggml.h"

#include "format/half.h"

static float f16_at(const uint8_t p[2]) { return nb_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }

/* ---- blocks of 32 ------------------------------------------------------------------------ */

/* q4_0:  d      f16
 *        qs[i]  v[16+i] (4) | v[i] (4)        i = 0..15
 *        value = d * (v - 8) */
void nb_decode_q4_0(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q4_0 *b = src;
    for (int64_t i = 0; i < n; i += NB_QK, b++, dst += NB_QK) {
        float d = f16_at(b->d);
        for (int k = 0; k < NB_QK / 2; k++) {
            dst[k] = d * (float)((b->qs[k] & 15) - 8);
            dst[k + NB_QK / 2] = d * (float)((b->qs[k] >> 4) - 8);
        }
    }
}

/* q4_1:  d, m   f16 each
 *        qs[i]  v[16+i] (4) | v[i] (4)        i = 0..15
 *        value = d * v + m */
void nb_decode_q4_1(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q4_1 *b = src;
    for (int64_t i = 0; i < n; i += NB_QK, b++, dst += NB_QK) {
        float d = f16_at(b->d), m = f16_at(b->m);
        for (int k = 0; k < NB_QK / 2; k++) {
            dst[k] = d * (float)(b->qs[k] & 15) + m;
            dst[k + NB_QK / 2] = d * (float)(b->qs[k] >> 4) + m;
        }
    }
}

static uint32_t u32_at(const uint8_t p[4])
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Codes of q5_0 and q5_1: bit i of the little-endian word qh is the fifth bit of v[i]. */
static void unpack_q5(const uint8_t qh[4], const uint8_t qs[NB_QK / 2], int v[NB_QK])
{
    uint32_t h = u32_at(qh);
    for (int k = 0; k < NB_QK / 2; k++) {
        v[k] = (int)((qs[k] & 15) | (h >> k & 1) << 4);
        v[k + NB_QK / 2] = (int)(qs[k] >> 4 | (h >> (k + NB_QK / 2) & 1) << 4);
    }
}

/* q5_0:  d      f16
 *        qh     v[31] (bit 4 of each) ... v[0], one bit each, little-endian
 *        qs[i]  v[16+i] (4) | v[i] (4)        i = 0..15: low four bits
 *        value = d * (v - 16) */
void nb_decode_q5_0(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q5_0 *b = src;
    for (int64_t i = 0; i < n; i += NB_QK, b++, dst += NB_QK) {
        float d = f16_at(b->d);
        int v[NB_QK];
        unpack_q5(b->qh, b->qs, v);
        for (int k = 0; k < NB_QK; k++) dst[k] = d * (float)(v[k] - 16);
    }
}

/* q5_1:  d, m   f16 each; qh, qs as in q5_0
 *        value = d * v + m */
void nb_decode_q5_1(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q5_1 *b = src;
    for (int64_t i = 0; i < n; i += NB_QK, b++, dst += NB_QK) {
        float d = f16_at(b->d), m = f16_at(b->m);
        int v[NB_QK];
        unpack_q5(b->qh, b->qs, v);
        for (int k = 0; k < NB_QK; k++) dst[k] = d * (float)v[k] + m;
    }
}

/* q8_0:  d      f16
 *        qs[i]  v[i], signed                  i = 0..31
 *        value = d * v */
void nb_decode_q8_0(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q8_0 *b = src;
    for (int64_t i = 0; i < n; i += NB_QK, b++, dst += NB_QK) {
        float d = f16_at(b->d);
        for (int k = 0; k < NB_QK; k++) dst[k] = d * (float)b->qs[k];
    }
}

/* Levels of iq4_nl (ggml: kvalues_iq4nl) and of twice e2m1 (OCP MX v1.0, table 5; ggml doubles the
 * levels and halves the scale). */
static const float iq4_nl_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};
static const float e2m1_levels_x2[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static void decode_levels(const uint8_t qs[NB_QK / 2], const float levels[16], float d,
                          float *restrict dst)
{
    for (int k = 0; k < NB_QK / 2; k++) {
        dst[k] = d * levels[qs[k] & 15];
        dst[k + NB_QK / 2] = d * levels[qs[k] >> 4];
    }
}

/* iq4_nl: d     f16
 *        qs[i]  v[16+i] (4) | v[i] (4)        i = 0..15
 *        value = d * level[v] */
void nb_decode_iq4_nl(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_iq4_nl *b = src;
    for (int64_t i = 0; i < n; i += NB_QK, b++, dst += NB_QK) {
        decode_levels(b->qs, iq4_nl_levels, f16_at(b->d), dst);
    }
}

/* 2^(e - 128): half of the e8m0 scale; e < 2 is subnormal in fp32. ggml does not treat 255 as the
 * NaN that the MX specification makes of it, and neither do we. */
static float e8m0_half(uint8_t e)
{
    return nb_f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* mxfp4: e      e8m0: scale 2^(e - 127)
 *        qs[i]  v[16+i] (4) | v[i] (4)        i = 0..15, each e2m1: sign, 2 exponent, 1 mantissa
 *        value = scale * e2m1(v) */
void nb_decode_mxfp4(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_mxfp4 *b = src;
    for (int64_t i = 0; i < n; i += NB_QK, b++, dst += NB_QK) {
        decode_levels(b->qs, e2m1_levels_x2, e8m0_half(b->e), dst);
    }
}

/* ---- super-blocks of 256 ----------------------------------------------------------------- */

/* q2_k:  scales[s]       min (4) | scale (4)               s = 0..15: of v[16s .. 16s+15]
 *        qs[32h + l]     v[128h+96+l] | v[128h+64+l] | v[128h+32+l] | v[128h+l]   (2 each)
 *                                                          h = 0..1, l = 0..31
 *        d, dmin         f16 each
 *        value = (d * scale) * v - (dmin * min) */
void nb_decode_q2_k(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q2_k *b = src;
    for (int64_t i = 0; i < n; i += NB_QK_K, b++) {
        float d = f16_at(b->d), dmin = f16_at(b->dmin);
        for (int s = 0; s < 16; s++, dst += 16) {
            float scale = d * (float)(b->scales[s] & 15), min = dmin * (float)(b->scales[s] >> 4);
            const uint8_t *qs = b->qs + 32 * (s / 8) + 16 * (s % 2);
            int shift = s / 2 % 4 * 2;
            for (int k = 0; k < 16; k++) dst[k] = scale * (float)(qs[k] >> shift & 3) - min;
        }
    }
}

/* q3_k:  hmask[l]        bit 4h+j: high bit of v[128h+32j+l]   h = 0..1, j = 0..3, l = 0..31
 *        qs[32h + l]     v[128h+96+l] | v[128h+64+l] | v[128h+32+l] | v[128h+l]   (low 2 each)
 *        scales[0..7]    s[8+i] (low 4) | s[i] (low 4)         i = 0..7
 *        scales[8..11]   s[12+i] | s[8+i] | s[4+i] | s[i]      (high 2 each), i = 0..3
 *        d               f16
 *        value = (d * (s - 32)) * (v - 4), s of v[16s .. 16s+15] */
void nb_decode_q3_k(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q3_k *b = src;
    for (int64_t i = 0; i < n; i += NB_QK_K, b++) {
        float d = f16_at(b->d);
        for (int s = 0; s < 16; s++, dst += 16) {
            int low = b->scales[s % 8] >> (s / 8 * 4) & 15;
            int high = b->scales[8 + s % 4] >> (s / 4 * 2) & 3;
            float scale = d * (float)((low | high << 4) - 32);
            const uint8_t *qs = b->qs + 32 * (s / 8) + 16 * (s % 2), *hm = b->hmask + 16 * (s % 2);
            int shift = s / 2 % 4 * 2, bit = s / 2;
            for (int k = 0; k < 16; k++) {
                int v = (qs[k] >> shift & 3) | (hm[k] >> bit & 1) << 2;
                dst[k] = scale * (float)(v - 4);
            }
        }
    }
}

/* 6-bit scales and mins of q4_k and q5_k; sub-block j = 0..7:
 *        scales[0..3]    sc[4+i] (high 2) | sc[i] (6)          i = 0..3
 *        scales[4..7]    min[4+i] (high 2) | min[i] (6)
 *        scales[8..11]   min[4+i] (low 4) | sc[4+i] (low 4) */
static void unpack_scale_min(const uint8_t s[12], int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

/* q4_k:  d, dmin         f16 each
 *        scales          sixteen 6-bit numbers, above
 *        qs[32c + l]     v[64c+32+l] (4) | v[64c+l] (4)        c = 0..3, l = 0..31
 *        value = (d * sc) * v - (dmin * min), sc and min of v[32j .. 32j+31] */
void nb_decode_q4_k(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q4_k *b = src;
    for (int64_t i = 0; i < n; i += NB_QK_K, b++) {
        float d = f16_at(b->d), dmin = f16_at(b->dmin);
        for (int j = 0; j < 8; j++, dst += 32) {
            int sc, mn;
            unpack_scale_min(b->scales, j, &sc, &mn);
            float scale = d * (float)sc, min = dmin * (float)mn;
            const uint8_t *qs = b->qs + 32 * (j / 2);
            int shift = j % 2 * 4;
            for (int k = 0; k < 32; k++) dst[k] = scale * (float)(qs[k] >> shift & 15) - min;
        }
    }
}

/* q5_k:  d, dmin         f16 each
 *        scales          sixteen 6-bit numbers, as in q4_k
 *        qh[l]           bit j: high bit of v[32j+l]           j = 0..7, l = 0..31
 *        qs[32c + l]     v[64c+32+l] (low 4) | v[64c+l] (low 4)   c = 0..3
 *        value = (d * sc) * v - (dmin * min), sc and min of v[32j .. 32j+31] */
void nb_decode_q5_k(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q5_k *b = src;
    for (int64_t i = 0; i < n; i += NB_QK_K, b++) {
        float d = f16_at(b->d), dmin = f16_at(b->dmin);
        for (int j = 0; j < 8; j++, dst += 32) {
            int sc, mn;
            unpack_scale_min(b->scales, j, &sc, &mn);
            float scale = d * (float)sc, min = dmin * (float)mn;
            const uint8_t *qs = b->qs + 32 * (j / 2), *qh = b->qh;
            int shift = j % 2 * 4;
            for (int k = 0; k < 32; k++) {
                int v = (qs[k] >> shift & 15) | (qh[k] >> j & 1) << 4;
                dst[k] = scale * (float)v - min;
            }
        }
    }
}

/* q6_k:  ql[64h + l]     v[128h+64+l] (low 4) | v[128h+l] (low 4)   h = 0..1, l = 0..63
 *        qh[32h + l]     v[128h+96+l] | v[128h+64+l] | v[128h+32+l] | v[128h+l]  (high 2 each)
 *        scales[s]       signed                                s = 0..15: of v[16s .. 16s+15]
 *        d               f16
 *        value = (d * scale) * (v - 32) */
void nb_decode_q6_k(const void *src, int64_t n, float *restrict dst)
{
    const nb_block_q6_k *b = src;
    for (int64_t i = 0; i < n; i += NB_QK_K, b++) {
        float d = f16_at(b->d);
        for (int s = 0; s < 16; s++, dst += 16) {
            float scale = d * (float)b->scales[s];
            const uint8_t *ql = b->ql + 64 * (s / 8) + 16 * (s % 4);
            const uint8_t *qh = b->qh + 32 * (s / 8) + 16 * (s % 2);
            int shift_l = s / 4 % 2 * 4, shift_h = s / 2 % 4 * 2;
            for (int k = 0; k < 16; k++) {
                int v = (ql[k] >> shift_l & 15) | (qh[k] >> shift_h & 3) << 4;
                dst[k] = scale * (float)(v - 32);
            }
        }
    }
}
