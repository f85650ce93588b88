/* Rows of dialect blocks as integers: what the integer matrix product works on (BlockDialect,
 * section 3.3). A row of n values in blocks of f->group is
 *
 *   half      [n] int8          signed half units, -15 .. 15
 *   exponent  [blocks] uint8    SE + 127: value = half * 2^(exponent - 128)
 *
 * and two blocks a, w have the product (sum half_a half_w) * 2^(exponent_a + exponent_w - 256). The
 * sum is an integer below 2^15 and exact; only adding up the blocks' products rounds. */
#ifndef NB_FORMAT_DIALECT_H
#define NB_FORMAT_DIALECT_H

#include "format/dialect_codec.h"
#include "format/format.h"

bool nb_format_is_dialect(const nb_format *f);

/* True if both are dialect formats of one block size: their product can be taken on integers. */
bool nb_dialect_is_pair(const nb_format *a, const nb_format *b);

/* How data that arrives online is fitted. */
nb_dialect_rule nb_dialect_online_rule(const nb_format *f);

/* 2^(exponent - 128); NaN for the byte 255. */
float nb_dialect_scale(unsigned exponent);

/* x [n] by the format's rule for data that arrives online; Inf and NaN saturate (D6). */
void nb_dialect_quantize_row(const nb_format *f, const float *x, int64_t n, int8_t *half,
                             uint8_t *exponent);

/* A packed row. */
void nb_dialect_decode_row(const nb_format *f, const uint8_t *const plane[], int64_t n,
                           int8_t *half, uint8_t *exponent);

/* Adds the blocks of m by their dialect; nothing if m is of another format. Blocks of several rows
 * count once. */
void nb_dialect_count(const nb_matrix *m, int64_t count[NB_DIALECTS]);

/* sum a_i b_i over a block. */
static inline int32_t nb_dialect_dot_half(const int8_t *a, const int8_t *b, int64_t n)
{
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

#endif
