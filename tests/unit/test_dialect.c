/* BlockDialect's codec: tables against the paper's rules, golden blocks, both choices of a dialect
 * against brute force, relation to other formats. */
#include "dialect_util.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formatbook),
        cmocka_unit_test(test_nearest_index),
        cmocka_unit_test(test_beneficial_ranges),
        cmocka_unit_test(test_golden_blocks),
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
