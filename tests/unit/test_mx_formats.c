/* OCP Microscaling formats and NVFP4 against their definitions, and the size of their errors. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "format/dtype_ggml.h"
#include "format/minifloat.h"
#include "op/common.h"

#include "format_util.h"

/* ---- MX -------------------------------------------------------------------------------------- */

/* Exponent of the scale for a block whose largest magnitude is max. */
static int mx_exponent(const char *word, float max)
{
    static row r;
    begin_row(&r, word, 32);
    for (int i = 0; i < 32; i++) r.w[i] = i == 20 ? -max : max / 3;
    quantize_row(&r, 1, 1);
    assert_true(r.p[0].scale == ldexpf(1, r.p[0].id - 127));
    return r.p[0].id - 127;
}

static void test_mx_scales(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        float max;
        int e;
    } t[] = {
        {"mxfp4", 4, 0},
        {"mxfp4", 7.99f, 0},
        {"mxfp4", 8, 1},
        {"mxfp4:ceil", 6, 0},
        {"mxfp4:ceil", 6.01f, 1},
        {"mxfp4:ceil", 3, -1},
        {"mxfp6", 4, 0},
        {"mxfp6e3m2", 16, 0},
        {"mxfp8", 256, 0},
        {"mxfp8", 511, 0},
        {"mxfp8:ceil", 449, 1},
        {"mxfp8e5m2", 32768, 0},
        {"mxint8", 1, 0},
        {"mxint8", 1.999f, 0},
        {"mxint8:ceil", 1.999f, 1},
        {"mxfp4", 0, -127},
        {"mxint8", 0, -126},
        {"mxfp4", FLT_TRUE_MIN, -127},
        {"mxfp4:ceil", FLT_TRUE_MIN, -127},
        {"mxint8", FLT_TRUE_MIN, -127},
        {"mxfp4", FLT_MAX, 125},
        {"mxfp4:ceil", FLT_MAX, 125},
        {"mxint8", FLT_MAX, 127},
    };
    for (size_t i = 0; i < NB_COUNT(t); i++) {
        assert_int_equal(mx_exponent(t[i].word, t[i].max), t[i].e);
    }
}

/* Elements: u = w / scale rounded to a multiple of 2^(max(floor(log2 |u|), 1 - bias) - M), ties to
 * even, and saturated (the text of the Microscaling paper's reference, in double). */
static double mx_element(nb_minifloat t, double u)
{
    const nb_minifloat_info *i = &nb_minifloats[t];
    int e = u == 0 ? -1000 : ilogb(u);
    double step = ldexp(1, (e < 1 - i->bias ? 1 - i->bias : e) - i->m_bits);
    double v = rint(u / step) * step;
    return fmax(fmin(v, (double)i->max), -(double)i->max);
}

static void test_mx_elements(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        nb_minifloat type;
    } t[] = {{"mxfp4", NB_E2M1},     {"mxfp6", NB_E2M3},     {"mxfp6e3m2", NB_E3M2},
             {"mxfp8", NB_E4M3},     {"mxfp8e5m2", NB_E5M2}, {"mxint8", NB_N_MINIFLOATS},
             {"mxfp4:ceil", NB_E2M1}};
    static row r;
    nb_rng rng = {8};
    for (size_t k = 0; k < NB_COUNT(t); k++) {
        for (int round = 0; round < 40; round++) {
            begin_row(&r, t[k].word, 650);
            for (int i = 0; i < r.n; i++) { /* a coarse lattice, so that ties occur */
                r.w[i] = (float)rint(nb_rng_normal(&rng) * 64) / 64;
            }
            quantize_row(&r, 1, 1);
            r.f.family->dequant_row(&r.f, (const uint8_t *const *)r.plane, r.n, r.back);
            for (int i = 0; i < r.n; i++) {
                double s = (double)r.p[i / 32].scale, u = (double)r.w[i] / s, v;
                if (t[k].type == NB_N_MINIFLOATS) {
                    v = fmax(fmin(rint(u * 64), 127), -127) / 64;
                } else {
                    v = mx_element(t[k].type, u);
                }
                assert_true((double)r.back[i] == v * s);
            }
        }
    }
}

/* The same numbers as in GGUF's block, whose nibbles lie in another order. */
static void test_mxfp4_is_ggml(void **state)
{
    NB_UNUSED(state);
    static row r;
    begin_row(&r, "mxfp4", 32);
    nb_rng rng = {4};
    for (int byte = 0; byte < 255; byte++) {
        nb_block_mxfp4 block = {.e = (uint8_t)byte};
        for (int i = 0; i < 16; i++) block.qs[i] = (uint8_t)nb_rng_next(&rng);
        for (int i = 0; i < 16; i++) {
            r.codes[i] = block.qs[i] & 15;
            r.codes[i + 16] = block.qs[i] >> 4;
        }
        float expected[32];
        nb_decode_mxfp4(&block, 32, expected);
        r.p[0].id = (uint8_t)byte;
        r.f.family->pack_row(&r.f, r.codes, r.p, 32, r.plane);
        r.f.family->dequant_row(&r.f, (const uint8_t *const *)r.plane, 32, r.back);
        for (int i = 0; i < 32; i++) assert_true(r.back[i] == expected[i]);
    }
}

/* ---- NVFP4 ------------------------------------------------------------------------------------
 */

static void test_nvfp4_by_hand(void **state)
{
    NB_UNUSED(state);
    /* largest value of the row 2688 = 6 * 448, so g = 1 and s = E4M3(b / 6) */
    float w[50] = {
        [0] = 2688, [1] = -1000, [20] = 6.3f, [21] = -2.2f, [22] = 0.2f, [40] = 0.005f, [49] = 60};
    static row r;
    load_row(&r, "nvfp4", w, 50);
    assert_true(r.p[0].base == 1 && r.p[3].base == 1);
    assert_true(r.p[0].scale == 448 && r.p[1].scale == 1 && r.p[2].scale == 0 &&
                r.p[3].scale == 10);
    assert_true(r.back[0] == 2688 && r.back[1] == -896 && r.back[20] == 6 && r.back[21] == -2);
    assert_true(r.back[22] == 0 && r.back[40] == 0 && r.back[49] == 60);
    for (int i = 32; i < 48; i++) assert_int_equal(r.codes[i], 0); /* s = 0: a block of zeros */
    assert_memory_equal(r.bytes[1], "\x7e\x38\x00\x52", 4);

    /* "46": g = 2688 / (6 * 256) = 1.75; 7, 3.5, 1.75 lie on the grid whose 4 is the maximum */
    float v[32] = {[0] = 2688, [16] = 7, [17] = 5.25f, [18] = 3.5f, [19] = -1.75f};
    load_row(&r, "nvfp4:46", v, 32);
    assert_true(r.p[0].base == 1.75f && r.p[0].scale == 448 && r.p[1].scale == 1.75f);
    for (int i = 0; i < 32; i++) assert_true(r.back[i] == v[i]);
}

static void test_46_is_no_worse(void **state)
{
    NB_UNUSED(state);
    static row r;
    begin_row(&r, "nvfp4:46", 640);
    fill_normal(&r, 77, 1);
    quantize_row(&r, 1, 1);
    int fours = 0;
    for (int64_t g = 0; g < 40; g++) {
        float max = 0;
        for (int64_t i = 16 * g; i < 16 * g + 16; i++) max = fmaxf(max, fabsf(r.w[i]));
        uint8_t s = nb_minifloat_encode(NB_E4M3, max / 6 / r.p[g].base);
        nb_qparam six = {.scale = nb_minifloat_decode(NB_E4M3, s) * r.p[g].base};
        double e6 = nb_format_error(&r.f, &six, r.w + 16 * g, NULL, 16), e = group_error(&r, g);
        assert_true(r.p[g].id == s ? e == e6 : e < e6);
        fours += r.p[g].id != s;
    }
    assert_in_range(fours, 5, 35);
}

/* Activations take the same way as weights, the base of the row included. */
static void test_online_is_offline(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"nvfp4", "nvfp4:46", "mxfp4", "mxint8", "fp8:token"};
    static row r;
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        begin_row(&r, words[k], 650);
        fill_groups(&r, k + 1, 16, 2);
        quantize_row(&r, 1, 1);
        r.f.family->dequant_row(&r.f, (const uint8_t *const *)r.plane, r.n, r.back);
        nb_fake_quant_row(&r.f, r.w, r.n, r.w);
        assert_memory_equal(r.w, r.back, (size_t)r.n * sizeof(float));
    }
}

/* ---- size of the errors ---------------------------------------------------------------- */

static double draw(nb_rng *rng, int kind)
{
    if (kind == 0) return nb_rng_normal(rng);
    double x = -log(1 - nb_rng_uniform(rng));
    return nb_rng_next(rng) & 1 ? x : -x;
}

/* sum err^2 / sum w^2 over 1024 rows of 640 values. */
static double relative_error(const char *word, int kind)
{
    static row r;
    nb_rng rng = {2024};
    double error = 0, power = 0;
    for (int k = 0; k < 1024; k++) {
        begin_row(&r, word, 640);
        for (int64_t i = 0; i < 640; i++) r.w[i] = (float)draw(&rng, kind);
        quantize_row(&r, 1, 1);
        r.f.family->dequant_row(&r.f, (const uint8_t *const *)r.plane, 640, r.back);
        error += row_error(&r, 0, 640);
        for (int64_t i = 0; i < 640; i++) power += (double)r.w[i] * (double)r.w[i];
    }
    return error / power;
}

/* Anchors of the specifications, computed there by other programs on other samples. */
static void test_error_anchors(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        int kind; /* 0 normal, 1 Laplace */
        double error;
    } t[] = {
        {"mxfp4", 0, 0.01322},      {"mxfp4", 1, 0.01608},    {"mxfp4:ceil", 0, 0.01332},
        {"mxfp4:ceil", 1, 0.01744}, {"nvfp4", 0, 0.00903},    {"nvfp4", 1, 0.00860},
        {"nvfp4:46", 0, 0.00756},   {"nvfp4:46", 1, 0.00760},
    };
    for (size_t i = 0; i < NB_COUNT(t); i++) {
        assert_near(relative_error(t[i].word, t[i].kind), t[i].error, 0.02);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mx_scales),      cmocka_unit_test(test_mx_elements),
        cmocka_unit_test(test_mxfp4_is_ggml),  cmocka_unit_test(test_nvfp4_by_hand),
        cmocka_unit_test(test_46_is_no_worse), cmocka_unit_test(test_online_is_offline),
        cmocka_unit_test(test_error_anchors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
