/* What the two tests of BlockDialect share: the golden blocks, rules, random blocks. */
#ifndef NB_TESTS_DIALECT_UTIL_H
#define NB_TESTS_DIALECT_UTIL_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "format/dialect_codec.h"
#include "format/format.h"
#include "op/op.h"

#define N_MAX NB_DIALECT_BLOCK_MAX

typedef struct golden_result {
    int se, byte, q_max, id, n_even, n_odd;
    const char *codes, *packed; /* hex digits; codes NULL: no such result */
} golden_result;

typedef struct golden_block {
    const char *name;
    int n;
    golden_result two_stage, two_stage_bd5, mse;
    uint32_t x[N_MAX];
} golden_block;

typedef struct golden_dot {
    const char *a, *w;
    int32_t sum;
    double value;
} golden_dot;

#include "../golden/dialect_blocks/blocks.inc"

static const nb_dialect_rule rule_mse = {true, NB_DIALECT_SE_MIN, NB_DIALECT_SE_MAX};
static const nb_dialect_rule rule_2s = {false, NB_DIALECT_SE_MIN, NB_DIALECT_SE_MAX};
static const nb_dialect_rule rule_bd5 = {false, NB_DIALECT_SE_MIN_BD5, NB_DIALECT_SE_MAX_BD5};

static const int sizes[] = {16, 32, 64, 128};

static inline nb_format format_of(const char *word)
{
    nb_format f;
    nb_error err = {0};
    if (nb_format_parse(&f, word, &err) != NB_OK) fail_msg("%s", err.message);
    return f;
}

/* out [n_rows, n] = x times the unit matrix by a linear with inputs in this format: what its input
 * became. Returns how many values saturated that were not finite. */
static inline int64_t online_values(nb_backend *be, const char *word, const float *x,
                                    int64_t n_rows, int64_t n, float *out)
{
    float *unit = calloc((size_t)(n * n), sizeof *unit);
    for (int64_t k = 0; k < n; k++) unit[k * n + k] = 1;
    nb_matrix w = {.format = nb_format_plain(NB_F32), .n_out = n, .n_in = n};
    w.plane[0] = (const uint8_t *)unit;
    nb_linear_desc d = {.w = &w, .act = format_of(word)};
    nb_linear *l;
    nb_buffer *a, *b;
    nb_error err = {0};
    be->nonfinite = 0;
    assert_int_equal(be->ops->linear_create(be, &d, &l, NULL), NB_OK);
    assert_int_equal(be->ops->buffer_create(be, n_rows * n, &a, NULL), NB_OK);
    assert_int_equal(be->ops->buffer_create(be, n_rows * n, &b, NULL), NB_OK);
    nb_view in = nb_view_of(a, n_rows, n), to = nb_view_of(b, n_rows, n);
    be->ops->upload(be, in, x, NB_F32);
    be->ops->linear_forward(be, to, in, l, false);
    be->ops->download(be, to, out, NB_F32);
    if (be->ops->sync(be, &err) != NB_OK) fail_msg("%s", err.message);
    be->ops->buffer_free(be, a), be->ops->buffer_free(be, b);
    be->ops->linear_free(be, l);
    free(unit);
    return be->nonfinite;
}

static inline nb_dialect encode(const nb_dialect_rule *rule, const float *x, int64_t n,
                                uint8_t *codes)
{
    nb_dialect d = nb_dialect_fit(rule, x, NULL, n, nb_dialect_max(x, n));
    nb_dialect_encode(d, x, n, codes);
    return d;
}

static inline double value_of(nb_dialect d, uint8_t code)
{
    return ldexp(nb_dialect_half[d.id][code], d.se - 1);
}

static inline void load_golden(const golden_block *b, float *x)
{
    for (int i = 0; i < b->n; i++) x[i] = nb_f32_from_bits(b->x[i]);
}

static inline const golden_block *find_golden(const char *name)
{
    for (size_t i = 0; i < NB_COUNT(blocks); i++) {
        if (strcmp(blocks[i].name, name) == 0) return &blocks[i];
    }
    fail_msg("no golden block %s", name);
    return NULL;
}

enum { NORMAL, HEAVY, LATTICE, SUBNORMAL, N_KINDS };

static inline void fill_block(nb_rng *rng, int kind, float *x, int64_t n)
{
    int k = (int)(nb_rng_next(rng) % 60) - 30;
    for (int64_t i = 0; i < n; i++) {
        double v = nb_rng_normal(rng);
        if (kind == HEAVY) v = v * v * v;
        if (kind == LATTICE) v = (double)(int64_t)(nb_rng_next(rng) % 63 - 31) / 4;
        x[i] = (float)(kind == SUBNORMAL ? ldexp(v, -130) : ldexp(v, kind == LATTICE ? 0 : k));
    }
}

#endif
