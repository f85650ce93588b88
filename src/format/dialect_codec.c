/* The formatbook, the two rules that choose from it, and codes of a block. Reference: one value at
 * a time, fixed tables, no branch inside a loop over values. */
#include "format/dialect_codec.h"

#include <assert.h>
#include <math.h>

/* ---- tables ---------------------------------------------------------------------------- */

/* Per dialect the magnitudes of indices 5 to 7 in half units; indices 0 to 4 are 0 to 4. Then the
 * first and last q of its beneficial range: for pairs 0 to 6 the odd member's range ends where the
 * even one's begins; the members of pair 7 share the neighbour 6 (3.0), and between the two ranges
 * both round to it. */
#define FORMATBOOK(ROW)                                                                            \
    ROW(6, 11, 15, 20, 25)                                                                         \
    ROW(6, 9, 15, 15, 19)                                                                          \
    ROW(6, 11, 14, 20, 24)                                                                         \
    ROW(6, 9, 14, 15, 19)                                                                          \
    ROW(6, 10, 13, 18, 22)                                                                         \
    ROW(6, 8, 13, 14, 17)                                                                          \
    ROW(6, 10, 12, 18, 21)                                                                         \
    ROW(6, 8, 12, 14, 17) /* FP4 E2M1 */                                                           \
    ROW(6, 9, 11, 16, 19)                                                                          \
    ROW(6, 7, 11, 13, 15)                                                                          \
    ROW(6, 9, 10, 16, 18)                                                                          \
    ROW(6, 7, 10, 13, 15)                                                                          \
    ROW(6, 8, 9, 15, 16)                                                                           \
    ROW(6, 7, 9, 13, 14)                                                                           \
    ROW(6, 7, 8, 13, 14)                                                                           \
    ROW(5, 6, 8, 9, 10)

/* Number of midpoints at or below q; in quarter units a midpoint is the sum of its neighbours. */
#define INDEX(q, h5, h6, h7)                                                                       \
    ((q >= 1) + (q >= 3) + (q >= 5) + (q >= 7) + (q >= 4 + h5) + (q >= h5 + h6) + (q >= h6 + h7))
#define ROUND(q, h5, h6, h7)                                                                       \
    ((q >= 1) + (q >= 3) + (q >= 5) + (q >= 7) + (q >= 4 + h5) * (h5 - 4) +                        \
     (q >= h5 + h6) * (h6 - h5) + (q >= h6 + h7) * (h7 - h6))
#define EIGHT_Q(F, q, ...)                                                                         \
    F(q, __VA_ARGS__), F(q + 1, __VA_ARGS__), F(q + 2, __VA_ARGS__), F(q + 3, __VA_ARGS__),        \
        F(q + 4, __VA_ARGS__), F(q + 5, __VA_ARGS__), F(q + 6, __VA_ARGS__), F(q + 7, __VA_ARGS__)
#define EACH_Q(F, ...)                                                                             \
    {EIGHT_Q(F, 0, __VA_ARGS__), EIGHT_Q(F, 8, __VA_ARGS__), EIGHT_Q(F, 16, __VA_ARGS__),          \
     EIGHT_Q(F, 24, __VA_ARGS__)},

#define HALF_ROW(h5, h6, h7, first, last)                                                          \
    {0, 1, 2, 3, 4, h5, h6, h7, 0, -1, -2, -3, -4, -h5, -h6, -h7},
#define INDEX_ROW(h5, h6, h7, first, last)   EACH_Q(INDEX, h5, h6, h7)
#define ROUND_ROW(h5, h6, h7, first, last)   EACH_Q(ROUND, h5, h6, h7)
#define BENEFIT_ROW(h5, h6, h7, first, last) {first, last - first + 1},

const int8_t nb_dialect_half[NB_DIALECTS][16] = {FORMATBOOK(HALF_ROW)};
const uint8_t nb_dialect_index[NB_DIALECTS][32] = {FORMATBOOK(INDEX_ROW)};
const uint8_t nb_dialect_round[NB_DIALECTS][32] = {FORMATBOOK(ROUND_ROW)};
const nb_dialect_range nb_dialect_benefit[NB_DIALECTS] = {FORMATBOOK(BENEFIT_ROW)};

/* ---- shared exponent ------------------------------------------------------------------- */

uint32_t nb_dialect_max(const float *x, int64_t n)
{
    uint32_t max = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t m = nb_dialect_magnitude(x[i]);
        max = m > max ? m : max;
    }
    return max;
}

/* ---- choice of the dialect ------------------------------------------------------------- */

int nb_dialect_two_stage(const float *x, int64_t n, uint32_t max, int se)
{
    int even = nb_dialect_even(max, se), odd_lead = 0;
    nb_dialect_range e = nb_dialect_benefit[even], o = nb_dialect_benefit[even + 1];
    for (int64_t i = 0; i < n; i++) {
        unsigned q = nb_dialect_align(nb_dialect_magnitude(x[i]), se);
        odd_lead += nb_dialect_is_in(o, q) - nb_dialect_is_in(e, q);
    }
    return even + (odd_lead > 0);
}

/* A block as the search reads it. */
typedef struct aligned {
    uint8_t q[NB_DIALECT_BLOCK_MAX];
    double y4[NB_DIALECT_BLOCK_MAX]; /* 4 |x| / 2^SE: q before it is truncated */
    double weight[NB_DIALECT_BLOCK_MAX];
} aligned;

static void align_block(aligned *a, const float *x, const float *importance, int64_t n, int se)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = nb_dialect_magnitude(x[i]);
        nb_dialect_parts parts = nb_dialect_split(magnitude);
        a->q[i] = (uint8_t)nb_dialect_align(magnitude, se);
        a->y4[i] = ldexp(parts.m, parts.e - 148 - se);
        a->weight[i] = importance ? (double)importance[i] : 1;
    }
}

/* sum weight (2y - v)^2 less its part that is common to all dialects. */
static double score(const aligned *a, int64_t n, const uint8_t round[32])
{
    double s = 0;
    for (int64_t i = 0; i < n; i++) {
        double v = round[a->q[i]];
        s += a->weight[i] * (v * (v - a->y4[i]));
    }
    return s;
}

int nb_dialect_least_error(const float *x, const float *importance, int64_t n, int se)
{
    assert(n <= NB_DIALECT_BLOCK_MAX);
    aligned a;
    align_block(&a, x, importance, n, se);
    int best = 0;
    double least = HUGE_VAL;
    for (int id = 0; id < NB_DIALECTS; id++) {
        double s = score(&a, n, nb_dialect_round[id]);
        best = s < least ? id : best;
        least = s < least ? s : least;
    }
    return best;
}

nb_dialect nb_dialect_fit(const nb_dialect_rule *rule, const float *x, const float *importance,
                          int64_t n, uint32_t max)
{
    nb_dialect d = {.se = nb_dialect_exponent(max, rule->se_min, rule->se_max)};
    if (nb_dialect_align(max, d.se) == 0) return (nb_dialect){.se = rule->se_min};
    d.id = rule->least_error ? nb_dialect_least_error(x, importance, n, d.se)
                             : nb_dialect_two_stage(x, n, max, d.se);
    return d;
}

/* ---- codes ----------------------------------------------------------------------------- */

void nb_dialect_encode(nb_dialect d, const float *x, int64_t n, uint8_t *codes)
{
    const uint8_t *index = nb_dialect_index[d.id];
    for (int64_t i = 0; i < n; i++) {
        unsigned idx = index[nb_dialect_align(nb_dialect_magnitude(x[i]), d.se)];
        unsigned sign = nb_f32_bits(x[i]) >> 31 & (idx != 0);
        codes[i] = (uint8_t)(sign << 3 | idx);
    }
}

int32_t nb_dialect_dot(int id_a, const uint8_t *codes_a, int id_b, const uint8_t *codes_b,
                       int64_t n)
{
    const int8_t *a = nb_dialect_half[id_a], *b = nb_dialect_half[id_b];
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[codes_a[i]] * b[codes_b[i]];
    return sum;
}
