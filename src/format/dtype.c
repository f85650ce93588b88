/* The table of storage types, and the values of the scalar ones. */
#include "format/dtype.h"

#include <string.h>

#include "format/dtype_ggml.h"
#include "format/half.h"

/* Files are little-endian and read in place. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "nibble runs on little-endian machines");

/* Elements may lie at any address (safetensors does not align), hence memcpy; `omp simd` because
 * the element count is not known to be a multiple of a vector. */

static void decode_f32(const void *src, int64_t n, float *restrict dst)
{
    memcpy(dst, src, (size_t)n * sizeof *dst);
}

static void decode_f64(const void *src, int64_t n, float *restrict dst)
{
    const uint8_t *p = src;
    for (int64_t i = 0; i < n; i++) {
        double x;
        memcpy(&x, p + 8 * i, sizeof x);
        dst[i] = (float)x;
    }
}

static void decode_f16(const void *src, int64_t n, float *restrict dst)
{
    const uint8_t *p = src;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        dst[i] = nb_f16_to_f32(h);
    }
}

static void decode_bf16(const void *src, int64_t n, float *restrict dst)
{
    const uint8_t *p = src;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        dst[i] = nb_bf16_to_f32(h);
    }
}

/* E4M3 (OCP OFP8): s eeee mmm, bias 7, no infinities, NaN is s1111111. Seven places to the left
 * it is an fp16 with bias 15: too small by 2^8. */
static void decode_f8_e4m3(const void *src, int64_t n, float *restrict dst)
{
    const uint8_t *p = src;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint32_t sign = p[i] & 0x80u, a = p[i] & 0x7fu;
        float x = nb_f16_to_f32((uint16_t)(sign << 8 | a << 7)) * 256.0f;
        dst[i] = a == 0x7f ? nb_f32_from_bits(sign << 24 | 0x7fc00000u) : x;
    }
}

/* E5M2 (OCP OFP8): the upper byte of an fp16. */
static void decode_f8_e5m2(const void *src, int64_t n, float *restrict dst)
{
    const uint8_t *p = src;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dst[i] = nb_f16_to_f32((uint16_t)(p[i] << 8));
}

static void decode_i8(const void *src, int64_t n, float *restrict dst)
{
    const int8_t *p = src;
    for (int64_t i = 0; i < n; i++) dst[i] = (float)p[i];
}

static void decode_u8(const void *src, int64_t n, float *restrict dst)
{
    const uint8_t *p = src;
    for (int64_t i = 0; i < n; i++) dst[i] = (float)p[i];
}

static void decode_i16(const void *src, int64_t n, float *restrict dst)
{
    const uint8_t *p = src;
    for (int64_t i = 0; i < n; i++) {
        int16_t x;
        memcpy(&x, p + 2 * i, sizeof x);
        dst[i] = (float)x;
    }
}

static void decode_i32(const void *src, int64_t n, float *restrict dst)
{
    const uint8_t *p = src;
    for (int64_t i = 0; i < n; i++) {
        int32_t x;
        memcpy(&x, p + 4 * i, sizeof x);
        dst[i] = (float)x;
    }
}

const nb_dtype_info nb_dtypes[NB_N_DTYPES] = {
    /* name, safetensors, ggml, block_elems, block_bytes, decode */
    [NB_F32] = {"f32", "F32", 0, 1, 4, decode_f32},
    [NB_F64] = {"f64", "F64", 28, 1, 8, decode_f64},
    [NB_F16] = {"f16", "F16", 1, 1, 2, decode_f16},
    [NB_BF16] = {"bf16", "BF16", 30, 1, 2, decode_bf16},
    [NB_F8_E4M3] = {"f8_e4m3", "F8_E4M3", -1, 1, 1, decode_f8_e4m3},
    [NB_F8_E5M2] = {"f8_e5m2", "F8_E5M2", -1, 1, 1, decode_f8_e5m2},
    [NB_I8] = {"i8", "I8", 24, 1, 1, decode_i8},
    [NB_U8] = {"u8", "U8", -1, 1, 1, decode_u8},
    [NB_I16] = {"i16", "I16", 25, 1, 2, decode_i16},
    [NB_U16] = {"u16", "U16", -1, 1, 2, NULL},
    [NB_I32] = {"i32", "I32", 26, 1, 4, decode_i32},
    [NB_U32] = {"u32", "U32", -1, 1, 4, NULL},
    [NB_I64] = {"i64", "I64", 27, 1, 8, NULL},
    [NB_U64] = {"u64", "U64", -1, 1, 8, NULL},
    [NB_BOOL] = {"bool", "BOOL", -1, 1, 1, NULL},
    [NB_Q4_0] = {"q4_0", NULL, 2, NB_QK, sizeof(nb_block_q4_0), nb_decode_q4_0},
    [NB_Q4_1] = {"q4_1", NULL, 3, NB_QK, sizeof(nb_block_q4_1), nb_decode_q4_1},
    [NB_Q5_0] = {"q5_0", NULL, 6, NB_QK, sizeof(nb_block_q5_0), nb_decode_q5_0},
    [NB_Q5_1] = {"q5_1", NULL, 7, NB_QK, sizeof(nb_block_q5_1), nb_decode_q5_1},
    [NB_Q8_0] = {"q8_0", NULL, 8, NB_QK, sizeof(nb_block_q8_0), nb_decode_q8_0},
    [NB_Q2_K] = {"q2_k", NULL, 10, NB_QK_K, sizeof(nb_block_q2_k), nb_decode_q2_k},
    [NB_Q3_K] = {"q3_k", NULL, 11, NB_QK_K, sizeof(nb_block_q3_k), nb_decode_q3_k},
    [NB_Q4_K] = {"q4_k", NULL, 12, NB_QK_K, sizeof(nb_block_q4_k), nb_decode_q4_k},
    [NB_Q5_K] = {"q5_k", NULL, 13, NB_QK_K, sizeof(nb_block_q5_k), nb_decode_q5_k},
    [NB_Q6_K] = {"q6_k", NULL, 14, NB_QK_K, sizeof(nb_block_q6_k), nb_decode_q6_k},
    [NB_IQ4_NL] = {"iq4_nl", NULL, 20, NB_QK, sizeof(nb_block_iq4_nl), nb_decode_iq4_nl},
    [NB_MXFP4] = {"mxfp4", NULL, 39, NB_QK, sizeof(nb_block_mxfp4), nb_decode_mxfp4},
};

int nb_dtype_by_name(const char *name)
{
    for (int i = 0; i < NB_N_DTYPES; i++) {
        if (strcmp(nb_dtypes[i].name, name) == 0) return i;
    }
    return -1;
}

int nb_dtype_by_safetensors(const char *name)
{
    for (int i = 0; i < NB_N_DTYPES; i++) {
        const char *s = nb_dtypes[i].safetensors;
        if (s && strcmp(s, name) == 0) return i;
    }
    return -1;
}

int nb_dtype_by_ggml(int64_t id)
{
    for (int i = 0; i < NB_N_DTYPES; i++) {
        if (nb_dtypes[i].ggml >= 0 && nb_dtypes[i].ggml == id) return i;
    }
    return -1;
}
