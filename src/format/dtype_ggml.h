/* GGML's block types: the structs as they lie in a GGUF file, and their values.
 *
 * Members are bytes only, so a block has alignment 1 and may start anywhere in a mapping; 16-bit
 * floats are little-endian. The layouts are drawn in dtype_ggml.c. */
#ifndef NB_FORMAT_DTYPE_GGML_H
#define NB_FORMAT_DTYPE_GGML_H

#include <stdint.h>

#define NB_QK   32  /* values per block of the plain types     */
#define NB_QK_K 256 /* values per super-block of the "K" types */

typedef struct nb_block_q4_0 {
    uint8_t d[2];
    uint8_t qs[NB_QK / 2];
} nb_block_q4_0;

typedef struct nb_block_q4_1 {
    uint8_t d[2], m[2];
    uint8_t qs[NB_QK / 2];
} nb_block_q4_1;

typedef struct nb_block_q5_0 {
    uint8_t d[2];
    uint8_t qh[4];
    uint8_t qs[NB_QK / 2];
} nb_block_q5_0;

typedef struct nb_block_q5_1 {
    uint8_t d[2], m[2];
    uint8_t qh[4];
    uint8_t qs[NB_QK / 2];
} nb_block_q5_1;

typedef struct nb_block_q8_0 {
    uint8_t d[2];
    int8_t qs[NB_QK];
} nb_block_q8_0;

typedef struct nb_block_q2_k {
    uint8_t scales[NB_QK_K / 16];
    uint8_t qs[NB_QK_K / 4];
    uint8_t d[2], dmin[2];
} nb_block_q2_k;

typedef struct nb_block_q3_k {
    uint8_t hmask[NB_QK_K / 8];
    uint8_t qs[NB_QK_K / 4];
    uint8_t scales[12];
    uint8_t d[2];
} nb_block_q3_k;

typedef struct nb_block_q4_k {
    uint8_t d[2], dmin[2];
    uint8_t scales[12];
    uint8_t qs[NB_QK_K / 2];
} nb_block_q4_k;

typedef struct nb_block_q5_k {
    uint8_t d[2], dmin[2];
    uint8_t scales[12];
    uint8_t qh[NB_QK_K / 8];
    uint8_t qs[NB_QK_K / 2];
} nb_block_q5_k;

typedef struct nb_block_q6_k {
    uint8_t ql[NB_QK_K / 2];
    uint8_t qh[NB_QK_K / 4];
    int8_t scales[NB_QK_K / 16];
    uint8_t d[2];
} nb_block_q6_k;

typedef struct nb_block_iq4_nl {
    uint8_t d[2];
    uint8_t qs[NB_QK / 2];
} nb_block_iq4_nl;

typedef struct nb_block_mxfp4 {
    uint8_t e;
    uint8_t qs[NB_QK / 2];
} nb_block_mxfp4;

/* Sizes of the GGUF specification; a padded or mistyped struct does not compile. */
_Static_assert(sizeof(nb_block_q4_0) == 18, "q4_0: f16 + 32 x 4 bits");
_Static_assert(sizeof(nb_block_q4_1) == 20, "q4_1: 2 f16 + 32 x 4 bits");
_Static_assert(sizeof(nb_block_q5_0) == 22, "q5_0: f16 + 32 x 5 bits");
_Static_assert(sizeof(nb_block_q5_1) == 24, "q5_1: 2 f16 + 32 x 5 bits");
_Static_assert(sizeof(nb_block_q8_0) == 34, "q8_0: f16 + 32 x 8 bits");
_Static_assert(sizeof(nb_block_q2_k) == 84, "q2_k: 2 f16 + 16 x 8 bits + 256 x 2 bits");
_Static_assert(sizeof(nb_block_q3_k) == 110, "q3_k: f16 + 16 x 6 bits + 256 x 3 bits");
_Static_assert(sizeof(nb_block_q4_k) == 144, "q4_k: 2 f16 + 16 x 6 bits + 256 x 4 bits");
_Static_assert(sizeof(nb_block_q5_k) == 176, "q5_k: 2 f16 + 16 x 6 bits + 256 x 5 bits");
_Static_assert(sizeof(nb_block_q6_k) == 210, "q6_k: f16 + 16 x 8 bits + 256 x 6 bits");
_Static_assert(sizeof(nb_block_iq4_nl) == 18, "iq4_nl: f16 + 32 x 4 bits");
_Static_assert(sizeof(nb_block_mxfp4) == 17, "mxfp4: e8m0 + 32 x 4 bits");

/* n values (a whole number of blocks) to fp32, with the operations and rounding of the reference
 * dequantizer (gguf-py quants.py): equal to it bit for bit. */
void nb_decode_q4_0(const void *src, int64_t n, float *dst);
void nb_decode_q4_1(const void *src, int64_t n, float *dst);
void nb_decode_q5_0(const void *src, int64_t n, float *dst);
void nb_decode_q5_1(const void *src, int64_t n, float *dst);
void nb_decode_q8_0(const void *src, int64_t n, float *dst);
void nb_decode_q2_k(const void *src, int64_t n, float *dst);
void nb_decode_q3_k(const void *src, int64_t n, float *dst);
void nb_decode_q4_k(const void *src, int64_t n, float *dst);
void nb_decode_q5_k(const void *src, int64_t n, float *dst);
void nb_decode_q6_k(const void *src, int64_t n, float *dst);
void nb_decode_iq4_nl(const void *src, int64_t n, float *dst);
void nb_decode_mxfp4(const void *src, int64_t n, float *dst);

#endif
