/* Storage types of tensors in files: scalars and GGML's blocks.
 *
 * A block type holds `block_elems` consecutive values of a row in `block_bytes` bytes; scalars are
 * blocks of one. Layouts are drawn in dtype_ggml.c. */
#ifndef NB_FORMAT_DTYPE_H
#define NB_FORMAT_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum nb_dtype {
    NB_F32,
    NB_F64,
    NB_F16,
    NB_BF16,
    NB_F8_E4M3,
    NB_F8_E5M2,
    NB_I8,
    NB_U8,
    NB_I16,
    NB_U16,
    NB_I32,
    NB_U32,
    NB_I64,
    NB_U64,
    NB_BOOL,
    NB_Q4_0,
    NB_Q4_1,
    NB_Q5_0,
    NB_Q5_1,
    NB_Q8_0,
    NB_Q2_K,
    NB_Q3_K,
    NB_Q4_K,
    NB_Q5_K,
    NB_Q6_K,
    NB_IQ4_NL,
    NB_MXFP4,
    NB_N_DTYPES,
} nb_dtype;

typedef struct nb_dtype_info {
    const char *name;        /* lower case, as in format words: "bf16", "q4_1"               */
    const char *safetensors; /* "BF16"; NULL: not a safetensors type                         */
    int ggml;                /* id in GGUF files; -1: not a GGUF type                        */
    uint16_t block_elems, block_bytes;
    /* n values (a whole number of blocks) to fp32; NULL: not a weight type (BOOL, I64, ...) */
    void (*decode)(const void *src, int64_t n, float *dst);
} nb_dtype_info;

extern const nb_dtype_info nb_dtypes[NB_N_DTYPES];

/* -1 if unknown. */
int nb_dtype_by_name(const char *name);
int nb_dtype_by_safetensors(const char *name);
int nb_dtype_by_ggml(int64_t id);

#endif
