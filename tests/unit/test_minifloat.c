/* Minifloats against definitions that share nothing with the code: a search over all values, sums
 * in double, and the paper's own table. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "base/status.h"
#include "format/half.h"
#include "format/minifloat.h"

static int mag_codes(nb_minifloat t) { return 1 << (nb_minifloats[t].bits - 1); }

static int exponent_bits(nb_minifloat t)
{
    return nb_minifloats[t].bits - 1 - nb_minifloats[t].m_bits;
}

/* Value of a magnitude by the formula of the header, no code reserved. */
static double plain_value(nb_minifloat t, int code)
{
    int m_bits = nb_minifloats[t].m_bits, bias = (1 << (exponent_bits(t) - 1)) - 1;
    int e = code >> m_bits, m = code & ((1 << m_bits) - 1);
    if (e == 0) return ldexp(m, 1 - bias - m_bits);
    return ldexp((1 << m_bits) + m, e - bias - m_bits);
}

static void test_values(void **state)
{
    NB_UNUSED(state);
    static const float e2m1[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    static const float e3m0[8] = {0, 0.25f, 0.5f, 1, 2, 4, 8, 16};
    static const double least[] = {0.5, 0.25, 0.125, 0.0625, 0x1p-9, 0x1p-16};
    for (int i = 0; i < 8; i++) {
        assert_true(nb_minifloat_decode(NB_E2M1, (uint8_t)i) == e2m1[i]);
        assert_true(nb_minifloat_decode(NB_E3M0, (uint8_t)i) == e3m0[i]);
    }
    for (int t = 0; t < NB_N_MINIFLOATS; t++) {
        const nb_minifloat_info *info = &nb_minifloats[t];
        int n = mag_codes(t);
        assert_true(nb_minifloat_decode(t, 1) == least[t]);
        assert_true(nb_minifloat_decode(t, info->max_code) == info->max);
        assert_true(nb_minifloat_decode_paper(t, (uint8_t)(n - 1)) == info->max_paper);
        for (int c = 0; c < n; c++) {
            float v = (float)plain_value(t, c);
            assert_true(nb_minifloat_decode_paper(t, (uint8_t)c) == v);
            assert_true(nb_minifloat_decode_paper(t, (uint8_t)(c + n)) == -v);
            if (c > info->max_code) continue;
            assert_true(nb_minifloat_decode(t, (uint8_t)c) == v);
            assert_true(nb_minifloat_decode(t, (uint8_t)(c + n)) == -v);
        }
    }
    assert_true(isnan(nb_minifloat_decode(NB_E4M3, 0x7f)) &&
                isnan(nb_minifloat_decode(NB_E4M3, 0xff)));
    assert_true(nb_minifloat_decode(NB_E5M2, 0x7c) == INFINITY);
    assert_true(nb_minifloat_decode(NB_E5M2, 0xfc) == -INFINITY);
    for (int c = 0x7d; c <= 0x7f; c++) assert_true(isnan(nb_minifloat_decode(NB_E5M2, (uint8_t)c)));
}

static void test_codes_return(void **state)
{
    NB_UNUSED(state);
    for (int t = 0; t < NB_N_MINIFLOATS; t++) {
        int n = mag_codes(t);
        for (int c = 0; c < 2 * n; c++) {
            float v = nb_minifloat_decode(t, (uint8_t)c);
            if (isfinite(v)) assert_int_equal(nb_minifloat_encode(t, v), c);
            int expected = c == n ? 0 : c; /* the paper's rounding has no -0 */
            v = nb_minifloat_decode_paper(t, (uint8_t)c);
            assert_int_equal(nb_minifloat_encode_paper(t, v), expected);
        }
    }
}

/* ---- every float against an oracle ----------------------------------------------------- */

/* Nearest finite value, ties to the even code. (1e6: beyond every type, and differences are exact.)
 */
static int nearest_code(nb_minifloat t, float x)
{
    int best = 0;
    double error = HUGE_VAL, a = fmin(fabs((double)x), 1e6);
    for (int c = 0; c <= nb_minifloats[t].max_code; c++) {
        double d = fabs(plain_value(t, c) - a);
        if (d < error || (d == error && c % 2 == 0)) {
            best = c;
            error = d;
        }
    }
    return signbit(x) ? best + mag_codes(t) : best;
}

/* QPyTorch's rule in the words of its documentation, in double but for the one fp32 addition. */
static double paper_value(nb_minifloat t, float x)
{
    int m_bits = nb_minifloats[t].m_bits, min_exp = -((1 << (exponent_bits(t) - 1)) - 2), e;
    float a = fabsf(x), min = ldexpf(1, min_exp);
    double y;
    if (a < min) {
        volatile float sum = a + min;
        double step = ldexp(1, min_exp - m_bits);
        y = floor((double)sum / step + 0.5) * step - (double)min;
    } else {
        frexp(a, &e);
        double step = ldexp(1, e - 1 - m_bits), max = plain_value(t, mag_codes(t) - 1);
        y = fmin(floor((double)a / step + 0.5) * step, max);
    }
    return x < 0 ? -y : y;
}

static void check_float(nb_minifloat t, float x)
{
    for (int sign = 0; sign < 2; sign++, x = -x) {
        int code = nb_minifloat_encode(t, x), expected = nearest_code(t, x);
        if (code != expected) fail_msg("%s hw %a: %#x", nb_minifloats[t].name, (double)x, code);
        double v = (double)nb_minifloat_decode_paper(t, nb_minifloat_encode_paper(t, x));
        double paper = paper_value(t, x);
        if (v != paper) fail_msg("%s paper %a: %a", nb_minifloats[t].name, (double)x, v);
        assert_false(v == 0 && signbit(v));
    }
}

static void test_midpoints(void **state)
{
    NB_UNUSED(state);
    for (int t = 0; t < NB_N_MINIFLOATS; t++) {
        for (int c = 0; c + 1 < mag_codes(t); c++) {
            float lo = (float)plain_value(t, c), hi = (float)plain_value(t, c + 1);
            const float at[] = {lo, lo + (hi - lo) / 2, hi};
            for (int i = 0; i < 3; i++) {
                check_float(t, at[i]);
                check_float(t, nextafterf(at[i], 0));
                check_float(t, nextafterf(at[i], FLT_MAX));
            }
        }
        static const float far[] = {465, 496, 1e6f, FLT_MAX, FLT_MIN, FLT_TRUE_MIN, 0};
        for (size_t i = 0; i < NB_COUNT(far); i++) check_float(t, far[i]);
        check_float(t, nb_minifloats[t].max * 1.25f);
    }
}

static void test_random_floats(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {1};
    for (int t = 0; t < NB_N_MINIFLOATS; t++) {
        for (int i = 0; i < 20000; i++) {
            double x = ldexp(1 + nb_rng_uniform(&rng), (int)(nb_rng_next(&rng) % 40) - 22);
            check_float(t, (float)x);
        }
    }
}

static void test_specials(void **state)
{
    NB_UNUSED(state);
    static const uint8_t nan_code[] = {0x07, 0x07, 0x1f, 0x1f, 0x7f, 0x7f};
    for (int t = 0; t < NB_N_MINIFLOATS; t++) {
        int n = mag_codes(t), max = nb_minifloats[t].max_code;
        assert_int_equal(nb_minifloat_encode(t, NAN), nan_code[t]);
        assert_int_equal(nb_minifloat_encode(t, -NAN), nan_code[t]);
        assert_int_equal(nb_minifloat_encode(t, INFINITY), max);
        assert_int_equal(nb_minifloat_encode(t, -INFINITY), max + n);
        assert_int_equal(nb_minifloat_encode_paper(t, INFINITY), n - 1);
        assert_int_equal(nb_minifloat_encode_paper(t, -INFINITY), 2 * n - 1);
        assert_int_equal(nb_minifloat_encode(t, 0.0f), 0);
        assert_int_equal(nb_minifloat_encode(t, -0.0f), n);
        assert_int_equal(nb_minifloat_encode_paper(t, -0.0f), 0);
    }
    assert_int_equal(nb_minifloat_encode(NB_E2M1, -0.1f), 8);
    /* rounded twice by the paper's rule, once by hardware */
    float below = nextafterf(0x1p-10f, 0);
    assert_int_equal(nb_minifloat_encode(NB_E4M3, below), 0);
    assert_int_equal(nb_minifloat_encode_paper(NB_E4M3, below), 1);
}

/* ---- tables of the specification -------------------------------------------------------- */

/* ZeroQuant-FP, Fig. 2: a direct cast of 15 numbers. */
static const float cast_in[15] = {-0.4f, -0.3f, -0.2f, -0.1f, -0.001f, 0,  0.001f, 0.1f,
                                  0.2f,  0.3f,  0.4f,  0.5f,  1,       10, 100};
static const struct cast {
    nb_minifloat type;
    float printed[15];
    double exact[15];
    uint8_t hw[15];
} casts[] = {
    {NB_E4M3,
     {-.406f, -.312f, -.203f, -.102f, -.002f, 0, .002f, .102f, .203f, .312f, .406f, .5f, 1, 10,
      104},
     {-0.40625, -0.3125, -0.203125, -0.1015625, -0x1p-9, 0, 0x1p-9, 0.1015625, 0.203125, 0.3125,
      0.40625, 0.5, 1, 10, 104},
     {0xAD, 0xAA, 0xA5, 0x9D, 0x81, 0, 1, 0x1D, 0x25, 0x2A, 0x2D, 0x30, 0x38, 0x52, 0x6C}},
    {NB_E5M2,
     {-.375f, -.312f, -.188f, -.094f, -.001f, 0, .001f, .094f, .188f, .312f, .375f, .5f, 1, 10, 96},
     {-0.375, -0.3125, -0.1875, -0.09375, -0x1p-10, 0, 0x1p-10, 0.09375, 0.1875, 0.3125, 0.375, 0.5,
      1, 10, 96},
     {0xB6, 0xB5, 0xB2, 0xAE, 0x94, 0, 0x14, 0x2E, 0x32, 0x35, 0x36, 0x38, 0x3C, 0x49, 0x56}},
};

static void test_paper_figure_2(void **state)
{
    NB_UNUSED(state);
    int different = 0;
    for (size_t k = 0; k < NB_COUNT(casts); k++) {
        const struct cast *c = &casts[k];
        for (int i = 0; i < 15; i++) {
            uint8_t code = nb_minifloat_encode_paper(c->type, cast_in[i]);
            double v = (double)nb_minifloat_decode_paper(c->type, code);
            assert_true(v == c->exact[i]);
            assert_true(fabs(v - (double)c->printed[i]) <= 0.0005000001);
            code = nb_minifloat_encode(c->type, cast_in[i]);
            assert_int_equal(code, c->hw[i]);
            different += (double)nb_minifloat_decode(c->type, code) != c->exact[i];
        }
    }
    assert_int_equal(different, 1); /* 100 in E4M3: 96 by hardware */
    assert_true(nb_minifloat_decode(NB_E4M3, 0x6C) == 96);
}

static void test_ties_and_overflow(void **state)
{
    NB_UNUSED(state);
    static const struct {
        nb_minifloat type;
        float in, hw, paper;
    } t[] = {
        {NB_E2M1, 0.25f, 0, 0.5f},
        {NB_E2M1, 0.75f, 1, 1},
        {NB_E2M1, 1.25f, 1, 1.5f},
        {NB_E2M1, 1.75f, 2, 2},
        {NB_E2M1, 2.5f, 2, 3},
        {NB_E2M1, 3.5f, 4, 4},
        {NB_E2M1, 5, 4, 6},
        {NB_E2M1, 7, 6, 6},
        {NB_E3M0, 0.125f, 0, 0.25f},
        {NB_E3M0, 0.375f, 0.5f, 0.5f},
        {NB_E3M0, 0.75f, 0.5f, 1},
        {NB_E3M0, 1.5f, 2, 2},
        {NB_E3M0, 3, 2, 4},
        {NB_E3M0, 6, 8, 8},
        {NB_E3M0, 12, 8, 16},
        {NB_E3M0, 20, 16, 16},
        {NB_E4M3, 0x1p-10f, 0, 0x1p-9f},
        {NB_E4M3, 0x3p-10f, 0x1p-8f, 0x1p-8f},
        {NB_E4M3, 17, 16, 18},
        {NB_E4M3, 19, 20, 20},
        {NB_E4M3, 100, 96, 104},
        {NB_E4M3, 464, 448, 480},
        {NB_E4M3, 465, 448, 480},
        {NB_E4M3, 496, 448, 480},
        {NB_E5M2, 0x1p-17f, 0, 0x1p-16f},
        {NB_E5M2, 0x3p-17f, 0x1p-15f, 0x1p-15f},
        {NB_E5M2, 9, 8, 10},
        {NB_E5M2, 11, 12, 12},
        {NB_E5M2, 100, 96, 96},
        {NB_E5M2, 57344, 57344, 57344},
        {NB_E5M2, 61440, 57344, 65536},
        {NB_E5M2, 120000, 57344, 114688},
    };
    for (size_t i = 0; i < NB_COUNT(t); i++) {
        nb_minifloat type = t[i].type;
        float hw = nb_minifloat_decode(type, nb_minifloat_encode(type, t[i].in));
        float paper = nb_minifloat_decode_paper(type, nb_minifloat_encode_paper(type, t[i].in));
        assert_true(hw == t[i].hw);
        assert_true(paper == t[i].paper);
    }
}

/* ---- rows -------------------------------------------------------------------------------- */

static void test_rows(void **state)
{
    NB_UNUSED(state);
    enum { N = 77 };
    float w[N + 1], back[N + 1];
    uint8_t codes[N + 1];
    nb_rng rng = {2};
    for (int t = 0; t < NB_N_MINIFLOATS; t++) {
        for (int n = 0; n <= N; n += 7) {
            for (int i = 0; i < n; i++) w[i] = (float)(nb_rng_normal(&rng) * 3);
            if (n > 9) w[9] = NAN;
            codes[n] = 0xA5;
            back[n] = 42;
            nb_minifloat_encode_row(t, 0.3f, w, n, codes);
            nb_minifloat_decode_row(t, 0.3f, codes, n, back);
            for (int i = 0; i < n; i++) {
                assert_int_equal(codes[i], nb_minifloat_encode(t, w[i] / 0.3f));
                uint32_t value = nb_f32_bits(nb_minifloat_decode(t, codes[i]) * 0.3f);
                assert_int_equal(nb_f32_bits(back[i]), value);
            }
            assert_int_equal(codes[n], 0xA5);
            assert_true(back[n] == 42);
        }
    }
    static const float pair[2] = {2.8f, 0.775f}; /* 123.99999 by division, 124 by the reciprocal */
    nb_minifloat_encode_row(NB_E4M3, 2.8f / 448, pair, 2, codes);
    assert_true(nb_minifloat_decode(NB_E4M3, codes[0]) == 448);
    assert_true(nb_minifloat_decode(NB_E4M3, codes[1]) == 120);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_codes_return),
        cmocka_unit_test(test_midpoints),
        cmocka_unit_test(test_random_floats),
        cmocka_unit_test(test_specials),
        cmocka_unit_test(test_paper_figure_2),
        cmocka_unit_test(test_ties_and_overflow),
        cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
