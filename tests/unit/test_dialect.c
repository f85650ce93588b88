/* BlockDialect: tables against the paper's rules, golden blocks, both choices of a dialect against
 * brute force, rows, and what the format costs and loses. */
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
#include "method/method.h"
#include "op/common.h"

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

static nb_format format_of(const char *word)
{
    nb_format f;
    nb_error err = {0};
    if (nb_format_parse(&f, word, &err) != NB_OK) fail_msg("%s", err.message);
    return f;
}

static nb_dialect encode(const nb_dialect_rule *rule, const float *x, int64_t n, uint8_t *codes)
{
    nb_dialect d = nb_dialect_fit(rule, x, NULL, n, nb_dialect_max(x, n));
    nb_dialect_encode(d, x, n, codes);
    return d;
}

static double value_of(nb_dialect d, uint8_t code)
{
    return ldexp(nb_dialect_half[d.id][code], d.se - 1);
}

/* ---- tables ---------------------------------------------------------------------------- */

/* spec 1.1, closed form. */
static int closed_form(int id, int idx)
{
    static const int idx6[] = {11, 9, 11, 9, 10, 8, 10, 8, 9, 7, 9, 7, 8, 7, 7, 6};
    if (idx == 5) return 6 - (id == 15);
    if (idx == 6) return idx6[id];
    return idx == 7 ? 15 - (id >> 1) : idx;
}

static void test_formatbook(void **state)
{
    NB_UNUSED(state);
    for (int id = 0; id < NB_DIALECTS; id++) {
        for (int idx = 0; idx < 8; idx++) {
            assert_int_equal(nb_dialect_half[id][idx], closed_form(id, idx));
            assert_int_equal(nb_dialect_half[id][idx | 8], -closed_form(id, idx));
        }
    }
}

/* Every q of a dialect goes to the nearest magnitude, wherever in its cell [q, q + 1) the value
 * lies; at a midpoint (the lower end of a cell) to the larger one. */
static void test_nearest_index(void **state)
{
    NB_UNUSED(state);
    for (int id = 0; id < NB_DIALECTS; id++) {
        for (int q = 0; q < 32; q++) {
            int at = nb_dialect_index[id][q], h = nb_dialect_half[id][at];
            assert_int_equal(nb_dialect_round[id][q], h);
            for (int idx = 0; idx < 8; idx++) { /* in eighths: both ends of the cell */
                int other = 4 * nb_dialect_half[id][idx], lower = 2 * q, upper = 2 * q + 2;
                assert_true(abs(4 * h - lower) <= abs(other - lower));
                assert_true(abs(4 * h - upper) <= abs(other - upper));
                if (idx > at) assert_true(abs(4 * h - lower) < abs(other - lower));
            }
        }
    }
}

static void test_beneficial_ranges(void **state)
{
    NB_UNUSED(state);
    for (int id = 0; id < NB_DIALECTS; id++) {
        nb_dialect_range r = nb_dialect_benefit[id];
        for (int q = 0; q < 32; q++) { /* error at the middle of the cell, in eighths */
            int own = abs(4 * nb_dialect_round[id][q] - (2 * q + 1));
            int partner = abs(4 * nb_dialect_round[id ^ 1][q] - (2 * q + 1));
            assert_int_equal(own < partner, q >= r.first && q < r.first + r.count);
        }
    }
}

/* ---- golden ---------------------------------------------------------------------------- */

static void load_golden(const golden_block *b, float *x)
{
    for (int i = 0; i < b->n; i++) x[i] = nb_f32_from_bits(b->x[i]);
}

static const golden_block *find_golden(const char *name)
{
    for (size_t i = 0; i < NB_COUNT(blocks); i++) {
        if (strcmp(blocks[i].name, name) == 0) return &blocks[i];
    }
    fail_msg("no golden block %s", name);
    return NULL;
}

static int count_in(nb_dialect_range r, const float *x, int n, int se)
{
    int count = 0;
    for (int i = 0; i < n; i++) {
        int q = (int)nb_dialect_align(nb_dialect_magnitude(x[i]), se);
        count += q >= r.first && q < r.first + r.count;
    }
    return count;
}

static void check_golden(const golden_block *b, const golden_result *r, const nb_dialect_rule *rule)
{
    float x[N_MAX];
    uint8_t codes[N_MAX];
    if (!r->codes) return;
    load_golden(b, x);
    nb_dialect d = encode(rule, x, b->n, codes);
    assert_int_equal(d.se, r->se);
    assert_int_equal(d.se - rule->se_min, r->byte);
    assert_int_equal(d.id, r->id);
    assert_int_equal(nb_dialect_align(nb_dialect_max(x, b->n), d.se), r->q_max);
    if (r->n_even >= 0) {
        const nb_dialect_range *pair = &nb_dialect_benefit[d.id & ~1];
        assert_int_equal(count_in(pair[0], x, b->n, d.se), r->n_even);
        assert_int_equal(count_in(pair[1], x, b->n, d.se), r->n_odd);
    }
    for (int i = 0; i < b->n; i++) assert_int_equal("0123456789abcdef"[codes[i]], r -> codes[i]);
}

static void test_golden_blocks(void **state)
{
    NB_UNUSED(state);
    assert_int_equal(NB_COUNT(blocks), 42);
    for (size_t i = 0; i < NB_COUNT(blocks); i++) {
        print_message("  %s\n", blocks[i].name);
        check_golden(&blocks[i], &blocks[i].two_stage, &rule_2s);
        check_golden(&blocks[i], &blocks[i].two_stage_bd5, &rule_bd5);
        check_golden(&blocks[i], &blocks[i].mse, &rule_mse);
    }
}

/* The same through the family: bytes of the three planes. */
static void check_planes(const golden_block *b, const golden_result *r, const char *rule)
{
    char word[32];
    float x[N_MAX];
    uint8_t codes[N_MAX], bytes[3][N_MAX];
    uint8_t *plane[] = {bytes[0], bytes[1], bytes[2], NULL};
    int s = 0;
    while (sizes[s] < b->n) s++;
    snprintf(word, sizeof word, "dialect:b%d%s", sizes[s], rule);
    nb_format f = format_of(word);
    load_golden(b, x);
    for (int online = 0; online < 2; online++) {
        nb_qparam p;
        if (!*rule && online != (r == &b->two_stage)) continue;       /* the rule of the use */
        if (!online && r == &b->two_stage && !b->mse.codes) continue; /* weights are finite */
        if (online) f.family->fit_online(&f, x, b->n, &p);
        if (!online) f.family->fit(&f, x, NULL, b->n, 1, 1, &p);
        f.family->encode(&f, &p, x, b->n, codes);
        f.family->pack_row(&f, codes, &p, b->n, plane);
        assert_int_equal(bytes[1][0], r->byte);
        assert_int_equal(bytes[2][0], r->id);
        for (int i = 0; i < (b->n + 1) / 2; i++) {
            char hex[3] = {r->packed[2 * i], r->packed[2 * i + 1], 0};
            assert_int_equal(bytes[0][i], strtol(hex, NULL, 16));
        }
    }
}

static void test_golden_planes(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(blocks); i++) {
        check_planes(&blocks[i], &blocks[i].two_stage, "");
        check_planes(&blocks[i], &blocks[i].two_stage, ":2s");
        if (!blocks[i].mse.codes) continue;
        check_planes(&blocks[i], &blocks[i].mse, "");
        check_planes(&blocks[i], &blocks[i].mse, ":mse");
    }
}

static void test_golden_dots(void **state)
{
    NB_UNUSED(state);
    assert_int_equal(NB_COUNT(dots), 7);
    for (size_t i = 0; i < NB_COUNT(dots); i++) {
        const golden_block *a = find_golden(dots[i].a), *w = find_golden(dots[i].w);
        float x[N_MAX];
        uint8_t codes_a[N_MAX], codes_w[N_MAX];
        load_golden(a, x);
        nb_dialect da = encode(&rule_2s, x, a->n, codes_a);
        load_golden(w, x);
        nb_dialect dw = encode(&rule_mse, x, w->n, codes_w);
        int32_t sum = nb_dialect_dot(da.id, codes_a, dw.id, codes_w, a->n);
        assert_int_equal(sum, dots[i].sum);
        assert_true(ldexp(sum, da.se + dw.se - 2) == dots[i].value);
        double expected = 0; /* and it is the product of the values */
        for (int k = 0; k < a->n; k++)
            expected += value_of(da, codes_a[k]) * value_of(dw, codes_w[k]);
        assert_true(expected == dots[i].value);
    }
}

/* ---- alignment and exponent ------------------------------------------------------------ */

static void test_alignment(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {1};
    for (int i = 0; i < 1000000; i++) {
        uint64_t r = nb_rng_next(&rng);
        uint32_t bits = (uint32_t)r & (i % 4 ? 0x7fffffffu : 0x00ffffffu); /* and subnormals */
        if (bits > 0x7f7fffffu) continue;
        int se =
            i % 4 ? (int)(bits >> 23) - 129 + (int)(r >> 32) % 9 - 3 : -127 + (int)(r >> 32) % 3;
        double q = floor(ldexp((double)nb_f32_from_bits(bits), 2 - se));
        if (se < -127 || se > 127) continue;
        assert_int_equal(nb_dialect_align(bits, se), q < 31 ? q : 31);
    }
    assert_int_equal(nb_dialect_align(0x7f7fffffu, -127), 31);
    assert_int_equal(nb_dialect_align(1, 127), 0);
}

static void test_exponent(void **state)
{
    NB_UNUSED(state);
    for (int k = -149; k < 128; k++) {
        int expected = k - 2 > -127 ? k - 2 : -127;
        float least = ldexpf(1, k), most = nextafterf(ldexpf(1, k + 1), 0);
        if (k == 127) most = nextafterf(INFINITY, 0);
        assert_int_equal(nb_dialect_exponent(nb_dialect_max(&least, 1), -127, 127), expected);
        assert_int_equal(nb_dialect_exponent(nb_dialect_max(&most, 1), -127, 127), expected);
    }
    assert_int_equal(nb_dialect_exponent(0, -127, 127), -127);
    assert_int_equal(nb_dialect_max((float[]){1, -INFINITY, 2}, 3), 0x7f7fffff);
    assert_int_equal(nb_dialect_max((float[]){1, -NAN, 2}, 3), 0x7f7fffff);
}

/* ---- random blocks --------------------------------------------------------------------- */

enum { NORMAL, HEAVY, LATTICE, SUBNORMAL, N_KINDS };

static void fill_block(nb_rng *rng, int kind, float *x, int64_t n)
{
    int k = (int)(nb_rng_next(rng) % 60) - 30;
    for (int64_t i = 0; i < n; i++) {
        double v = nb_rng_normal(rng);
        if (kind == HEAVY) v = v * v * v;
        if (kind == LATTICE) v = (double)(int64_t)(nb_rng_next(rng) % 63 - 31) / 4;
        x[i] = (float)(kind == SUBNORMAL ? ldexp(v, -130) : ldexp(v, kind == LATTICE ? 0 : k));
    }
}

/* spec 12, item 1: encode(decode(block)) gives the block, with the same rule. */
static void test_encode_inverts_decode(void **state)
{
    NB_UNUSED(state);
    static const nb_dialect_rule *const rules[] = {&rule_2s, &rule_mse, &rule_bd5};
    nb_rng rng = {2};
    for (int round = 0; round < 60000; round++) {
        float x[N_MAX], back[N_MAX];
        uint8_t codes[N_MAX], again[N_MAX];
        int64_t n = round % 2 ? sizes[round / 2 % 4] : 1 + (int64_t)(nb_rng_next(&rng) % N_MAX);
        const nb_dialect_rule *rule = rules[round % 3];
        fill_block(&rng, round / 3 % N_KINDS, x, n);
        nb_dialect d = encode(rule, x, n, codes);
        for (int64_t i = 0; i < n; i++) back[i] = (float)value_of(d, codes[i]);
        nb_dialect e = encode(rule, back, n, again);
        assert_int_equal(d.se, e.se);
        assert_int_equal(d.id, e.id);
        assert_memory_equal(codes, again, (size_t)n);
    }
}

/* Squared error of the nearest of eight magnitudes, in units of 2^-40: |x| < 8 is a multiple of
 * 2^-20 and SE is 0, so all of it is integers. Nothing of the codec's tables is used. */
static int64_t error_of(int id, const float *x, const int64_t *importance, int n)
{
    int64_t sum = 0;
    for (int i = 0; i < n; i++) {
        int64_t y = (int64_t)(fabsf(x[i]) * 0x1p20f), least = INT64_MAX;
        for (int idx = 0; idx < 8; idx++) {
            int64_t d = y - ((int64_t)closed_form(id, idx) << 19);
            least = d * d < least ? d * d : least;
        }
        sum += importance[i] * least;
    }
    return sum;
}

static void test_least_error_is_exact(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {3};
    int used[NB_DIALECTS] = {0};
    for (int round = 0; round < 20000; round++) {
        int n = sizes[round % 4] - (round % 8 < 4 ? 0 : (int)(nb_rng_next(&rng) % 16));
        float x[N_MAX], importance[N_MAX];
        int64_t whole[N_MAX], least = INT64_MAX;
        bool weighted = round % 5 == 0;
        double spread = 1 + 3 * nb_rng_uniform(&rng);
        for (int i = 0; i < n; i++) {
            double v = spread * nb_rng_normal(&rng);
            if (round % 3 == 0) v = rint(4 * v) / 4; /* many ties */
            if (round % 3 == 1) v *= fabs(v) / 4;
            x[i] = (float)(rint(fmin(fmax(v, -7.99), 7.99) * 0x1p20) * 0x1p-20);
            whole[i] = weighted ? (int64_t)(nb_rng_next(&rng) % 8) : 1;
            importance[i] = (float)whole[i];
        }
        x[0] = (float)(4 + floor(nb_rng_uniform(&rng) * 16) / 4); /* SE = 0 */
        int best = 0;
        for (int id = 0; id < NB_DIALECTS; id++) {
            int64_t e = error_of(id, x, whole, n);
            if (e >= least) continue;
            least = e;
            best = id;
        }
        used[best]++;
        assert_int_equal(nb_dialect_least_error(x, weighted ? importance : NULL, n, 0), best);
    }
    for (int id = 0; id < NB_DIALECTS; id++) assert_true(used[id] > 20);
}

/* The sums behind the choice are exact, so the order of the values and the scale of the block
 * cannot matter, not even where two dialects are a hair apart. */
static void test_choice_ignores_order_and_scale(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {4};
    for (int round = 0; round < 5000; round++) {
        float x[N_MAX], y[N_MAX];
        int n = sizes[round % 4], k = (int)(nb_rng_next(&rng) % 120) - 60;
        fill_block(&rng, round % 3, x, n);
        for (int i = 0; i < n; i++) y[i] = ldexpf(x[i], k); /* exact: nothing is near 2^-126 */
        for (int i = n - 1; i > 0; i--) {
            int j = (int)(nb_rng_next(&rng) % (uint64_t)(i + 1));
            float t = y[i];
            y[i] = y[j];
            y[j] = t;
        }
        nb_dialect a = nb_dialect_fit(&rule_mse, x, NULL, n, nb_dialect_max(x, n));
        nb_dialect b = nb_dialect_fit(&rule_mse, y, NULL, n, nb_dialect_max(y, n));
        assert_int_equal(a.id, b.id);
        assert_int_equal(a.se + k, b.se);
    }
}

/* Distance of y to the nearest magnitude, in half units. */
static double distance(int id, double y)
{
    double least = 100;
    for (int idx = 0; idx < 8; idx++) least = fmin(least, fabs(y - closed_form(id, idx)));
    return least;
}

/* spec 2.1: the pair by intervals of the maximum, the members by who is nearer how often (D1). */
static int two_stage_by_intervals(const float *x, int64_t n)
{
    static const double lower[8] = {7.25, 6.75, 6.25, 5.75, 5.25, 4.75, 4.25, 0};
    double max = 0;
    for (int64_t i = 0; i < n; i++) max = fmax(max, fabs((double)x[i]));
    double scale = ldexp(1, 2 - ilogb(max));
    int pair = 0, odd_lead = 0;
    while (max * scale < lower[pair]) pair++;
    for (int64_t i = 0; i < n; i++) {
        double quarters = floor(4 * fabs((double)x[i]) * scale), y = (quarters + 0.5) / 2;
        double even = distance(2 * pair, y), odd = distance(2 * pair + 1, y);
        odd_lead += (odd < even) - (even < odd);
    }
    return 2 * pair + (odd_lead > 0);
}

static void test_two_stage_is_the_text(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {5};
    int used[NB_DIALECTS] = {0};
    for (int round = 0; round < 20000; round++) {
        float x[N_MAX];
        int n = sizes[round % 4];
        fill_block(&rng, round / 4 % 3, x, n);
        nb_dialect d = nb_dialect_fit(&rule_2s, x, NULL, n, nb_dialect_max(x, n));
        assert_int_equal(d.id, two_stage_by_intervals(x, n));
        used[d.id]++;
    }
    for (int id = 0; id < NB_DIALECTS; id++) assert_true(used[id] > 20);
}

/* ---- relation to other formats --------------------------------------------------------- */

/* MX element E2M1 with rounding half away (spec 10.1): u to a multiple of
 * 2^(max(floor(log2 u), 1 - bias) - 1), then saturated. */
static double mx_e2m1(double u)
{
    int e = u > 0 ? ilogb(u) : 0;
    double step = ldexp(1, (e > 0 ? e : 0) - 1);
    return fmin(floor(u / step + 0.5) * step, 6);
}

static void test_dialect_7_is_mxfp4(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {6};
    for (int q = 0; q < 32; q++) {
        for (int i = 0; i < 100; i++) { /* both ends of the cell and places between */
            float y = (float)(q + 0.999 * nb_rng_uniform(&rng)) / 4;
            if (i == 0) y = (float)q / 4;
            if (i == 1) y = nextafterf((float)(q + 1) / 4, 0);
            uint8_t code[2];
            nb_dialect_encode((nb_dialect){.se = 0, .id = 7}, (float[]){y, -y}, 2, code);
            assert_true(value_of((nb_dialect){0, 7}, code[0]) == mx_e2m1((double)y));
            assert_true(value_of((nb_dialect){0, 7}, code[1]) == -mx_e2m1((double)y));
        }
    }
}

/* True if |v| is a finite minifloat with e exponent bits, m mantissa bits and this bias. */
static bool is_minifloat(double v, int e_bits, int m_bits, int bias, double max)
{
    if (v == 0) return true;
    int e = ilogb(v) < 1 - bias ? 1 - bias : ilogb(v);
    double units = ldexp(v, m_bits - e);
    return v <= max && ilogb(v) <= (1 << e_bits) - 1 - bias && units == floor(units);
}

/* spec 7.4: which products h 2^k fit E4M3, and that every value is an E2M3 number. */
static void test_values_fit_fp8_and_fp6(void **state)
{
    NB_UNUSED(state);
    for (int id = 0; id < NB_DIALECTS; id++) {
        int k_max = id < 2 ? 4 : 5;
        for (int k = -12; k <= 8; k++) {
            bool all = true;
            for (int idx = 0; idx < 8; idx++) {
                all = all && is_minifloat(ldexp(nb_dialect_half[id][idx], k), 4, 3, 7, 448);
            }
            assert_int_equal(all, k >= -9 && k <= k_max);
        }
        for (int idx = 0; idx < 8; idx++) {
            assert_true(is_minifloat(nb_dialect_half[id][idx] / 2.0, 2, 3, 1, 7.5));
        }
    }
}

/* spec section 6. */
static void test_integer_bounds(void **state)
{
    NB_UNUSED(state);
    for (int i = 0; i < NB_DIALECTS * 16; i++) {
        assert_true(abs(nb_dialect_half[i / 16][i % 16]) <= 15);
    }
    uint8_t most[N_MAX], least[N_MAX];
    memset(most, 7, sizeof most);
    memset(least, 15, sizeof least);
    for (size_t s = 0; s < NB_COUNT(sizes); s++) {
        assert_int_equal(nb_dialect_dot(0, most, 1, most, sizes[s]), 225 * sizes[s]);
        assert_int_equal(nb_dialect_dot(0, most, 1, least, sizes[s]), -225 * sizes[s]);
    }
    assert_true(225 * N_MAX <= INT16_MAX);
}

/* ---- loss and size --------------------------------------------------------------------- */

static double draw(nb_rng *rng, int distribution)
{
    double x = nb_rng_normal(rng), square = 0;
    if (distribution == 0) return x;
    if (distribution == 1) { /* Laplace */
        double u = nb_rng_uniform(rng) - 0.5;
        return u < 0 ? log1p(2 * u) : -log1p(-2 * u);
    }
    for (int i = 0; i < 5; i++) { /* Student's t with 5 degrees of freedom */
        double z = nb_rng_normal(rng);
        square += z * z;
    }
    return x / sqrt(square / 5);
}

enum { BY_TWO_STAGE, BY_MSE, BY_ID_7 };

/* Relative mean squared error in thousandths. */
static double loss_of(const float *x, int64_t n, int block, int how)
{
    double error = 0, power = 0;
    for (int64_t at = 0; at < n; at += block) {
        uint8_t codes[N_MAX];
        nb_dialect d = nb_dialect_fit(how == BY_MSE ? &rule_mse : &rule_2s, x + at, NULL, block,
                                      nb_dialect_max(x + at, block));
        if (how == BY_ID_7) d.id = 7;
        nb_dialect_encode(d, x + at, block, codes);
        for (int i = 0; i < block; i++) {
            double v = (double)x[at + i], e = v - value_of(d, codes[i]);
            error += e * e;
            power += v * v;
        }
    }
    return 1000 * error / power;
}

/* spec 2.3: within 1.5 %. */
static void test_loss(void **state)
{
    NB_UNUSED(state);
    enum { N = 1 << 20 };
    static const double two_stage[3][4] = {
        {8.25, 9.68, 10.72, 12.00}, {8.13, 10.92, 13.54, 15.72}, {8.14, 10.87, 13.94, 17.22}};
    static const double mse[3][4] = {
        {7.26, 8.58, 9.55, 10.58}, {7.49, 10.06, 12.58, 14.79}, {7.50, 10.07, 13.04, 16.30}};
    static const double mxfp4[3] = {13.22, 16.08, 15.84};
    static float x[N];
    nb_rng rng = {7};
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < N; i++) x[i] = (float)draw(&rng, k);
        for (int s = 0; s < 4; s++) {
            double a = loss_of(x, N, sizes[s], BY_TWO_STAGE), b = loss_of(x, N, sizes[s], BY_MSE);
            print_message("  %d b%d: two-stage %.3f, least error %.3f\n", k, sizes[s], a, b);
            assert_true(fabs(a / two_stage[k][s] - 1) < 0.015);
            assert_true(fabs(b / mse[k][s] - 1) < 0.015);
        }
        double c = loss_of(x, N, 32, BY_ID_7);
        print_message("  %d b32: dialect 7 alone %.3f\n", k, c);
        assert_true(fabs(c / mxfp4[k] - 1) < 0.015);
    }
}

/* Bits of one layer's operands per value, with a block size for each linear. */
typedef struct shapes {
    int64_t width, kv, ffn, heads;
} shapes;

typedef struct sizes_of {
    int qkv, o, gate_up, down, q_act, k_act, rest; /* rest: P and V */
} sizes_of;

static double bits_of(int64_t n, int block, bool bd5)
{
    char word[16];
    snprintf(word, sizeof word, "dialect:b%d", block);
    nb_format f = format_of(word);
    return bd5 ? (double)nb_dialect_bits_bd5(n, block) : 8.0 * (double)nb_format_row_bytes(&f, n);
}

static double weight_bits(const shapes *m, const sizes_of *b, bool bd5)
{
    double rows_qkv = (double)(m->width + 2 * m->kv), w = (double)m->width, f = (double)m->ffn;
    double bits = rows_qkv * bits_of(m->width, b->qkv, bd5) + w * bits_of(m->width, b->o, bd5) +
                  2 * f * bits_of(m->width, b->gate_up, bd5) + w * bits_of(m->ffn, b->down, bd5);
    return bits / (rows_qkv * w + w * w + 3 * f * w);
}

/* Each use counts; with rest > 0 also Q, K, V and P = heads x 2048. */
static double act_bits(const shapes *m, const sizes_of *b, bool bd5)
{
    double bits = 3 * bits_of(m->width, b->qkv, bd5) + bits_of(m->width, b->o, bd5) +
                  2 * bits_of(m->width, b->gate_up, bd5) + bits_of(m->ffn, b->down, bd5);
    double n = (double)(6 * m->width + m->ffn);
    if (b->rest) {
        bits += bits_of(m->width, b->q_act, bd5) + bits_of(m->kv, b->k_act, bd5) +
                bits_of(m->kv, b->rest, bd5) + bits_of(m->heads * 2048, b->rest, bd5);
        n += (double)(m->width + 2 * m->kv + m->heads * 2048);
    }
    return bits / n;
}

/* spec 4.3: every value that the paper prints, in its accounting and in the file's. */
static void test_accounting(void **state)
{
    NB_UNUSED(state);
    static const double per_value[4][2] = {
        {4.5625, 4.75}, {4.28125, 4.375}, {4.140625, 4.1875}, {4.0703125, 4.09375}};
    for (int s = 0; s < 4; s++) {
        assert_true(bits_of(4096, sizes[s], true) / 4096 == per_value[s][0]);
        assert_true(bits_of(4096, sizes[s], false) / 4096 == per_value[s][1]);
    }
    static const shapes models[] = {{4096, 1024, 14336, 32}, {4096, 4096, 11008, 32}};
    static const struct {
        sizes_of b;
        double bits[2][4]; /* per model: W and A in bd5, W and A in bd8 */
    } recipes[] = {
        {{64, 64, 64, 16, 0, 0, 0}, {{4.25, 4.30, 4.34, 4.39}, {4.23, 4.27, 4.31, 4.36}}},
        {{64, 16, 64, 64, 0, 0, 0}, {{4.17, 4.19, 4.23, 4.25}, {4.18, 4.19, 4.23, 4.25}}},
        {{16, 64, 64, 64, 0, 0, 0}, {{4.19, 4.27, 4.25, 4.37}, {4.25, 4.29, 4.33, 4.38}}},
        {{64, 64, 64, 16, 16, 16, 64}, {{4.25, 4.21, 4.34, 4.29}, {4.23, 4.21, 4.31, 4.28}}},
    };
    for (size_t r = 0; r < NB_COUNT(recipes); r++) {
        for (int m = 0; m < 2; m++) {
            for (int bd8 = 0; bd8 < 2; bd8++) {
                double w = weight_bits(&models[m], &recipes[r].b, !bd8);
                double a = act_bits(&models[m], &recipes[r].b, !bd8);
                assert_true(fabs(w - recipes[r].bits[m][2 * bd8]) <= 0.005 + 1e-9);
                assert_true(fabs(a - recipes[r].bits[m][2 * bd8 + 1]) <= 0.005 + 1e-9);
            }
        }
    }
    assert_int_equal(nb_dialect_bits_bd5(80, 32), 4 * 80 + 9 * 3); /* D10: 32 + 32 + 16 */
}

/* ---- rows ------------------------------------------------------------------------------ */

/* Each block of a row stands for itself, the short one at the end with its own exponent and id. */
static void test_blocks_of_a_row(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {8};
    for (size_t s = 0; s < NB_COUNT(sizes); s++) {
        for (int n = 1; n <= 300; n += n < 40 ? 1 : 13) {
            char word[16];
            float x[300], row[300];
            uint8_t codes[N_MAX];
            snprintf(word, sizeof word, "dialect:b%d", sizes[s]);
            nb_format f = format_of(word);
            fill_block(&rng, HEAVY, x, n);
            nb_fake_quant_row(&f, x, n, row);
            for (int at = 0; at < n; at += sizes[s]) {
                int m = n - at < sizes[s] ? n - at : sizes[s];
                nb_dialect d = encode(&rule_2s, x + at, m, codes);
                for (int i = 0; i < m; i++) assert_true(row[at + i] == value_of(d, codes[i]));
            }
        }
    }
}

static void test_zero_blocks(void **state)
{
    NB_UNUSED(state);
    for (int n = 1; n <= N_MAX; n++) {
        float x[N_MAX];
        uint8_t codes[N_MAX], zeros[N_MAX] = {0};
        for (int i = 0; i < n; i++) x[i] = i % 3 == 0 ? -0.0f : i % 3 == 1 ? 0x1p-130f : -0x1p-149f;
        for (int least = 0; least < 2; least++) {
            nb_dialect d = encode(least ? &rule_mse : &rule_2s, x, n, codes);
            assert_int_equal(d.se, -127);
            assert_int_equal(d.id, 0);
            assert_memory_equal(codes, zeros, (size_t)n);
        }
    }
}

/* Clipping to half of the maximum shrinks the exponent by one, at every length; what lies beyond
 * takes the largest magnitude. Ratios work on their own side alone. */
static void test_clip(void **state)
{
    NB_UNUSED(state);
    nb_format f = format_of("dialect:b32");
    float x[32] = {6, -1, 2.5f, -2.25f, 1.5f};
    uint8_t codes[32];
    nb_qparam p, q;
    f.family->fit(&f, x, NULL, 32, 1, 0.5f, &q);
    f.family->encode(&f, &q, x, 32, codes);
    assert_true(q.scale == 0.25f);
    assert_int_equal(codes[0], 7);
    f.family->fit(&f, x, NULL, 32, 0.25f, 1, &p);
    assert_true(p.scale == 0.5f);
    f.family->fit(&f, x, NULL, 32, 1, 0.25f, &q); /* the negative side decides now: 2.25 */
    assert_true(q.scale == 0.25f);
    f = format_of("dialect:b32:2s"); /* stage 1 sees the clipped maximum: 6 * 0.75 = 4.5 */
    f.family->fit(&f, x, NULL, 32, 1, 0.75f, &q);
    assert_int_equal(q.id / 2, 6);
}

/* All exponent bytes, ids and codes: unpack and pack give the bytes back; 255 is NaN, code 8 is 0.
 */
static void test_every_byte(void **state)
{
    NB_UNUSED(state);
    nb_format f = format_of("dialect:b16");
    for (int byte = 0; byte < 256; byte++) {
        uint8_t bytes[3][8], again[3][8], codes[16];
        uint8_t *plane[] = {again[0], again[1], again[2], NULL};
        const uint8_t *source[] = {bytes[0], bytes[1], bytes[2], NULL};
        float w[16];
        nb_qparam p;
        for (int i = 0; i < 8; i++) bytes[0][i] = (uint8_t)(2 * i | (2 * i + 1) << 4);
        bytes[1][0] = (uint8_t)byte;
        bytes[2][0] = (uint8_t)(byte & 15);
        f.family->unpack_row(&f, source, 16, codes, &p);
        f.family->pack_row(&f, codes, &p, 16, plane);
        assert_memory_equal(again[0], bytes[0], 8);
        assert_int_equal(again[1][0], byte);
        assert_int_equal(again[2][0], byte & 15);
        f.family->dequant_row(&f, source, 16, w);
        for (int i = 0; i < 16; i++) {
            if (byte == 255) {
                assert_true(isnan(w[i]));
                continue;
            }
            double expected = value_of((nb_dialect){byte - 127, byte & 15}, (uint8_t)i);
            assert_true(w[i] == (float)expected);
        }
        if (byte < 253) assert_int_equal(nb_f32_bits(w[8]), 0);
        if (byte < 253) assert_true(isfinite(w[7]) && w[7] > 0);
        f.family->encode(&f, &p, w, 16, codes); /* defined for whatever was unpacked */
        for (int i = 0; i < 16; i++) assert_in_range(codes[i], 0, 15);
    }
}

static void test_layout(void **state)
{
    NB_UNUSED(state);
    nb_format f = format_of("dialect:b16");
    nb_plane_spec spec[NB_MAX_PLANES];
    uint8_t codes[35], bytes[3][32];
    uint8_t *plane[] = {bytes[0], bytes[1], bytes[2], NULL};
    nb_qparam p[3] = {
        {.scale = 0.5f, .id = 1}, {.scale = 2, .id = 14}, {.scale = 0x1p-128f, .id = 9}};
    for (int i = 0; i < 35; i++) codes[i] = (uint8_t)(i % 16);
    assert_int_equal(f.family->planes(&f, 35, spec), 3);
    assert_string_equal(spec[0].suffix, "codes");
    assert_string_equal(spec[1].suffix, "scales");
    assert_string_equal(spec[2].suffix, "dialects");
    f.family->pack_row(&f, codes, p, 35, plane);
    assert_int_equal(spec[0].row_bytes, 18);
    assert_memory_equal(
        bytes[0], "\x10\x32\x54\x76\x98\xba\xdc\xfe\x10\x32\x54\x76\x98\xba\xdc\xfe\x10\x02", 18);
    assert_int_equal(spec[1].row_bytes, 3);
    assert_memory_equal(bytes[1], "\x7f\x81\x00", 3);
    assert_int_equal(spec[2].row_bytes, 2);
    assert_memory_equal(bytes[2], "\xe1\x09", 2);
}

/* ---- words and faults ------------------------------------------------------------------ */

static void test_words(void **state)
{
    NB_UNUSED(state);
    static const char *const good[] = {"dialect:b16",     "dialect:b32",         "dialect:b64",
                                       "dialect:b128",    "dialect:b32:mse",     "dialect:b32:2s",
                                       "dialect:b32:bd5", "dialect:b128:mse:bd5"};
    for (size_t i = 0; i < NB_COUNT(good); i++) {
        nb_format f = format_of(good[i]);
        assert_string_equal(f.word, good[i]);
        assert_int_equal(f.bits, 4);
        assert_int_equal(f.group, atoi(good[i] + strlen("dialect:b")));
        assert_int_equal(f.family->uses(&f), NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV);
    }
    static const char *const bad[] = {
        "dialect",
        "dialect:",
        "dialect:32",
        "dialect:b",
        "dialect:b8",
        "dialect:b1",
        "dialect:b12",
        "dialect:b129",
        "dialect:b256",
        "dialect:b32:",
        "dialect:b32:mse:2s",
        "dialect:b32:bd5:mse",
        "dialect:b32 ",
        "dialect:b32:mse:mse",
        "dialects:b32",
        "dialect:b32:bd8",
    };
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        nb_format f;
        nb_error err = {0};
        assert_int_equal(nb_format_parse(&f, bad[i], &err), NB_EUSAGE);
        assert_non_null(strstr(err.message, bad[i]));
    }
}

/* Weights by the least error, online data by the two stages: golden block count_tie tells them
 * apart. NaN and Inf are data online (D6); a limited exponent saturates. */
static void test_rule_follows_use(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        int weights, online;
    } rules[] = {{"dialect:b32", 8, 4}, {"dialect:b32:mse", 8, 8}, {"dialect:b32:2s", 4, 4}};
    float x[N_MAX];
    load_golden(find_golden("count_tie"), x);
    for (size_t i = 0; i < NB_COUNT(rules); i++) {
        nb_format f = format_of(rules[i].word);
        nb_qparam p;
        f.family->fit(&f, x, NULL, 32, 1, 1, &p);
        assert_int_equal(p.id, rules[i].weights);
        f.family->fit_online(&f, x, 32, &p);
        assert_int_equal(p.id, rules[i].online);
    }
    nb_format f = format_of("dialect:b16:bd5");
    float y[16] = {INFINITY, 1, -NAN}, z[16];
    nb_fake_quant_row(&f, y, 16, z);
    assert_true(z[0] == 7.5f * 0x1p15f && z[1] == 0 && z[2] == -z[0]);
}

static void test_nan_weight_is_named(void **state)
{
    NB_UNUSED(state);
    nb_format f = format_of("dialect:b16");
    float w[2 * 20] = {0}, clip[4] = {1, 1, 1, 1};
    uint8_t bytes[3][64];
    nb_error err = {0};
    w[20 + 17] = NAN;
    memset(bytes, 0xa5, sizeof bytes);
    nb_job job = {.name = "layers.3.q",
                  .format = &f,
                  .n_out = 2,
                  .n_in = 20,
                  .w = w,
                  .threads = 1,
                  .clip_lo = clip,
                  .clip_hi = clip,
                  .plane = {bytes[0], bytes[1], bytes[2]}};
    const nb_method *step;
    assert_int_equal(nb_method_find(&step, "nearest", NULL), NB_OK);
    assert_int_equal(nb_job_run(&job, &step, 1, &err), NB_ENUMERIC);
    assert_non_null(strstr(err.message, "layers.3.q: weight [1, 17]"));
    for (size_t i = 0; i < sizeof bytes; i++) assert_int_equal(bytes[i / 64][i % 64], 0xa5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formatbook),
        cmocka_unit_test(test_nearest_index),
        cmocka_unit_test(test_beneficial_ranges),
        cmocka_unit_test(test_golden_blocks),
        cmocka_unit_test(test_golden_planes),
        cmocka_unit_test(test_golden_dots),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_exponent),
        cmocka_unit_test(test_encode_inverts_decode),
        cmocka_unit_test(test_least_error_is_exact),
        cmocka_unit_test(test_choice_ignores_order_and_scale),
        cmocka_unit_test(test_two_stage_is_the_text),
        cmocka_unit_test(test_dialect_7_is_mxfp4),
        cmocka_unit_test(test_values_fit_fp8_and_fp6),
        cmocka_unit_test(test_integer_bounds),
        cmocka_unit_test(test_loss),
        cmocka_unit_test(test_accounting),
        cmocka_unit_test(test_blocks_of_a_row),
        cmocka_unit_test(test_zero_blocks),
        cmocka_unit_test(test_clip),
        cmocka_unit_test(test_every_byte),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_rule_follows_use),
        cmocka_unit_test(test_nan_weight_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
