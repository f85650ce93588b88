/* DialectFP4, the block codec of BlockDialect: Jang and Tambe, "BlockDialect: Block-wise
 * Fine-grained Mixed Format Quantization for Energy-Efficient LLM Inference", ICML 2025
 * (arXiv 2501.01144v5), section 3. D1 ... D16 are this project's decisions where the paper is
 * silent (spec: BlockDialect section 3).
 *
 * A block of up to 128 values has a shared exponent SE and one of 16 dialects, each a set of eight
 * magnitudes in half units (0.5 * 2^SE); a value is one sign bit and an index into them:
 *
 *     x  ~  (-1)^s * half[id][idx] * 2^(SE - 1)          code = s << 3 | idx
 *
 * Values are aligned to SE and truncated to quarter units, q = min(31, floor(4 |x| / 2^SE)), and
 * every choice is made on integers: q holds all that rounding needs, since the midpoints between
 * magnitudes are whole quarters. Nothing here depends on the rounding mode, on flushing of
 * subnormals or on the order of sums. The layout of stored rows is drawn in dialect.c. */
#ifndef NB_FORMAT_DIALECT_CODEC_H
#define NB_FORMAT_DIALECT_CODEC_H

#include <stdbool.h>
#include <stdint.h>

#include "format/half.h"
#include "nibble.h"

#define NB_DIALECT_BLOCK_MAX 128

/* Range of SE: one byte SE + 127 (D7), and the 5 bits that the paper counts (D8). */
#define NB_DIALECT_SE_MIN     (-127)
#define NB_DIALECT_SE_MAX     127
#define NB_DIALECT_SE_MIN_BD5 (-16)
#define NB_DIALECT_SE_MAX_BD5 15

/* The formatbook (section 3.1, figure 4) and what follows from it. Dialects 2k and 2k + 1 share
 * their largest magnitude, 15 - k, and differ in one other. */
extern const int8_t nb_dialect_half[NB_DIALECTS][16];   /* half units by code; code 8 is 0, too */
extern const uint8_t nb_dialect_index[NB_DIALECTS][32]; /* index of the nearest by q, ties up */
extern const uint8_t nb_dialect_round[NB_DIALECTS][32]; /* half units of that index */

/* The q at which a dialect is strictly nearer than its partner: first .. first + count - 1
 * (section 3.2, figure 5c; D3 for the last pair). */
typedef struct nb_dialect_range {
    uint8_t first, count;
} nb_dialect_range;

extern const nb_dialect_range nb_dialect_benefit[NB_DIALECTS];

static inline NB_HD int nb_dialect_is_in(nb_dialect_range r, unsigned q)
{
    return q - r.first < r.count;
}

/* What a block is encoded with. */
typedef struct nb_dialect {
    int se; /* shared exponent */
    int id; /* 0 .. 15 */
} nb_dialect;

typedef struct nb_dialect_rule {
    bool least_error; /* weights: exact search of all dialects; else the two stages */
    int se_min, se_max;
} nb_dialect_rule;

/* Bits of |x|; Inf and NaN become the largest finite number (D6). */
static inline NB_HD uint32_t nb_dialect_magnitude(float x)
{
    uint32_t bits = nb_f32_bits(x) & 0x7fffffffu;
    return bits < 0x7f7fffffu ? bits : 0x7f7fffffu;
}

/* The parts of |x| = m 2^(e - 150), m < 2^24; subnormals have e = 1. */
typedef struct nb_dialect_parts {
    uint32_t m;
    int e;
} nb_dialect_parts;

static inline NB_HD nb_dialect_parts nb_dialect_split(uint32_t magnitude)
{
    uint32_t field = magnitude >> 23, is_normal = field > 0;
    uint32_t m = (magnitude & 0x7fffffu) | is_normal << 23;
    nb_dialect_parts parts = {m, (int)(field + (is_normal ^ 1u))};
    return parts;
}

/* q = min(31, floor(4 |x| / 2^se)) of a magnitude: m shifted right by 148 + se - e. That is less
 * than 0 only where e is so large that m >= 2^23 and q saturates anyway; beyond 31 nothing is left
 * of m. */
static inline NB_HD unsigned nb_dialect_align(uint32_t magnitude, int se)
{
    nb_dialect_parts x = nb_dialect_split(magnitude);
    int shift = 148 + se - x.e;
    shift = shift < 0 ? 0 : shift;
    shift = shift > 31 ? 31 : shift;
    uint32_t q = x.m >> shift;
    return q < 31 ? q : 31;
}

/* Largest magnitude of a block; 0 if n is 0. */
uint32_t nb_dialect_max(const float *x, int64_t n);

/* SE = floor(log2 max) - 2, so that max lies in [4, 8) units; clamped to [se_min, se_max]. */
static inline NB_HD int nb_dialect_exponent(uint32_t max, int se_min, int se_max)
{
    /* Zero and subnormals count as 2^-127, which every range clamps to its low end. */
    int se = (int)(max >> 23) - 127 - 2;
    se = se < se_min ? se_min : se;
    return se > se_max ? se_max : se;
}

/* Stage 1 of section 3.2: the even member of the pair whose largest magnitude is nearest to the
 * block's; beyond the book's 8 .. 15 half units the nearest of them (D2). */
static inline NB_HD int nb_dialect_even(uint32_t max, int se)
{
    int h = (int)(nb_dialect_align(max, se) + 1) >> 1;
    h = h < 8 ? 8 : h;
    return 2 * (15 - (h > 15 ? 15 : h));
}

/* Section 3.2, for data that arrives online: the block maximum names a pair, then its member with
 * the larger number of values in its beneficial range; the even one on a tie (D1). */
int nb_dialect_two_stage(const float *x, int64_t n, uint32_t max, int se);

/* The dialect of the least sum importance_i (x_i - value_i)^2, the lowest on a tie (D4);
 * importance [n] or NULL: 1. Without it, and with se from the block's own maximum, the sums are
 * exact in binary64, whatever their order: terms v (v - 4y) are multiples of 2^-23 below 2^9. */
int nb_dialect_least_error(const float *x, const float *importance, int64_t n, int se);

/* SE and dialect of a block whose largest magnitude is `max`, or should be taken for it: larger
 * values then saturate. If nothing reaches a quarter unit: se_min and dialect 0 (D5). */
nb_dialect nb_dialect_fit(const nb_dialect_rule *rule, const float *x, const float *importance,
                          int64_t n, uint32_t max);

/* Nearest codes, midpoints away from zero. Zeros have no sign: code 8 is never made (D5). */
void nb_dialect_encode(nb_dialect d, const float *x, int64_t n, uint8_t *codes);

/* Sum of the products of two blocks in quarter units: the product of their values is this times
 * 2^(SE_a + SE_b - 2). At most 225 n in magnitude: 16 bits hold it for every block size
 * (section 3.3). */
int32_t nb_dialect_dot(int id_a, const uint8_t *codes_a, int id_b, const uint8_t *codes_b,
                       int64_t n);

/* Bits of n values in blocks of `block` as the paper counts them (bd5): 4 per value, 4 for the
 * dialect and 5 for the exponent of a block (appendix I). Files take 12 per block. */
static inline int64_t nb_dialect_bits_bd5(int64_t n, int block)
{
    return 4 * n + 9 * ((n + block - 1) / block);
}

#endif
