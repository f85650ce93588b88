/* Floats with a scale per group: golden rows of the ZeroQuant-FP specification (section 13), the
 * laws of power-of-two scales, bytes of every layout, sizes of the errors. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "format/fp4_cast.h"
#include "format/half.h"
#include "format_util.h"

/* ---- 13.1: one vector, every format ------------------------------------------------------- */

static const float golden_x[8] = {0, 0.125f, -0.375f, 0.625f, -1.25f, 1.75f, -2.5f, 3};

static void test_golden_vector(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        uint32_t scale;
        float q[8]; /* value in units of the scale, or the code less its zero */
    } golden[] = {
        {"fp4:token", 0x3f000000, {0, 0, -1, 1, -2, 4, -4, 6}},
        {"fp4:token:paper", 0x3f000000, {0, 0.5f, -1, 1.5f, -3, 4, -6, 6}},
        {"fp4e3m0:token", 0x3e400000, {0, 0.5f, -2, 4, -8, 8, -16, 16}},
        {"fp4e3m0:token:paper", 0x3e400000, {0, 0.5f, -2, 4, -8, 8, -16, 16}},
        {"fp8:token", 0x3bdb6db7, {0, 18, -56, 96, -192, 256, -384, 448}},
        {"fp8:token:paper", 0x3bcccccd, {0, 20, -60, 104, -208, 288, -416, 480}},
        {"fp8e5m2:token", 0x385b6db7, {0, 2560, -7168, 12288, -24576, 32768, -49152, 57344}},
        {"fp8e5m2:token:paper",
         0x37db6db7,
         {0, 5120, -14336, 24576, -49152, 65536, -98304, 114688}},
        {"int8:token", 0x3cc18306, {0, 5, -16, 26, -53, 74, -106, 127}},
        {"int8:token:asym", 0x3cb0b0b1, {0, 6, -17, 29, -58, 81, -116, 139}},
        {"int4:token", 0x3edb6db7, {0, 0, -1, 1, -3, 4, -6, 7}},
        {"int4:token:asym", 0x3ebbbbbc, {0, 0, -1, 2, -3, 5, -7, 8}},
    };
    static row r;
    for (size_t k = 0; k < NB_COUNT(golden); k++) {
        load_row(&r, golden[k].word, golden_x, 8);
        assert_int_equal(nb_f32_bits(r.p[0].scale), golden[k].scale);
        for (int i = 0; i < 8; i++) assert_true(r.back[i] == golden[k].q[i] * r.p[0].scale);
    }
}

static void test_golden_vector_codes(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        uint8_t codes[8];
    } golden[] = {
        {"fp4:token", {0, 0, 0xA, 2, 0xC, 6, 0xE, 7}},
        {"fp4e3m0:token", {0, 2, 0xC, 5, 0xE, 6, 0xF, 7}},
        {"fp8:token", {0x00, 0x59, 0xE6, 0x6C, 0xF4, 0x78, 0xFC, 0x7E}},
        {"fp8e5m2:token", {0x00, 0x69, 0xEF, 0x72, 0xF6, 0x78, 0xFA, 0x7B}},
        {"int8:token:asym", {116, 122, 99, 145, 58, 197, 0, 255}},
        {"int4:token:asym", {7, 7, 6, 9, 4, 12, 0, 15}},
    };
    static const struct {
        const char *word;
        double error;
    } errors[] = {{"int8:token", 1.96656e-4},
                  {"int8:token:asym", 1.06449e-4},
                  {"int4:token", 0.0647321},
                  {"int4:token:asym", 0.0657639}};
    static const float e5m2_paper[8] = {
        0, 0.133928567f, -0.375f, 0.642857134f, -1.28571427f, 1.71428573f, -2.57142854f, 3};
    static row r;
    for (size_t k = 0; k < NB_COUNT(golden); k++) {
        load_row(&r, golden[k].word, golden_x, 8);
        assert_memory_equal(r.codes, golden[k].codes, 8);
    }
    for (size_t k = 0; k < NB_COUNT(errors); k++) {
        load_row(&r, errors[k].word, golden_x, 8);
        assert_near(row_error(&r, 0, 8), errors[k].error, 3e-6);
    }
    load_row(&r, "fp8e5m2:token:paper", golden_x, 8);
    for (int i = 0; i < 8; i++) assert_true(r.back[i] == e5m2_paper[i]);
    load_row(&r, "fp8:token:paper", golden_x, 8);
    assert_true(r.back[3] == 0.650000036f);
}

/* ZeroQuant-FP, Fig. 2, its row "INT8 asym". */
static void test_int8_of_figure_2(void **state)
{
    NB_UNUSED(state);
    static const float in[15] = {-0.4f, -0.3f, -0.2f, -0.1f, -0.001f, 0,  0.001f, 0.1f,
                                 0.2f,  0.3f,  0.4f,  0.5f,  1,       10, 100};
    static const float out[15] = {-.394f, -.394f, -.394f, 0,     0,      0,      0,       0,
                                  .394f,  .394f,  .394f,  .394f, 1.181f, 9.843f, 100.006f};
    static row r;
    load_row(&r, "int8:token:asym", in, 15);
    assert_near(r.p[0].scale, 0.39372548, 1e-6);
    assert_int_equal(r.p[0].zero, 1);
    for (int i = 0; i < 15; i++) assert_true(fabsf(r.back[i] - out[i]) <= 0.000501f);
}

/* ---- 13.2: M1, M2, fold, dot -------------------------------------------------------------- */

enum { N_MX2 = 18 };

static const float golden_w[N_MX2] = {3.75f,   -1.2f,    0.4f,    2,      0.9f,   0.07f,
                                      -0.12f,  0.2f,     0.48f,   0.31f,  -0.16f, 0.04f,
                                      0.0015f, -0.0007f, 0.0002f, 0.001f, 0,      0};
static const float golden_token[N_MX2] = {7,       -0.5f, 0.3f,  1.1f, -2.6f, 0.05f,
                                          0,       3.3f,  -0.9f, 0.7f, 1.9f,  -4.4f,
                                          1.5625f, 0.01f, -6.1f, 2.2f, 1,     -1};

static void test_free_scales(void **state)
{
    NB_UNUSED(state);
    static const float s[4] = {0.625f, 0.15f, 0.08f, 0.00025f};
    static row r;
    load_row(&r, "fp4:g4", golden_w, N_MX2);
    for (int g = 0; g < 4; g++) {
        assert_true(r.p[g].scale == nb_f16_to_f32(nb_f16_from_f32(s[g])));
    }
    assert_true(r.p[4].scale == 1);
    assert_int_equal(r.codes[16] | r.codes[17], 0);
}

/* Errors of both candidates of every group, and the choice. */
static void test_golden_exponents(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        double error[4]; /* 0: the same as that of the other rule */
        int exponent[5];
        float base;
    } golden[] = {
        {"fp4:g4:m1:floor", {0.6125, 0.0227375, 0.0154578, 4.78486e-9}, {1, 2, 3, 11, 0}, 0.5f},
        {"fp4:g4:m1:ceil", {0.1125, 0.01555, 0.0052625, 4.78486e-9}, {0, 2, 3, 11, 0}, 1},
        {"fp4:g4:m1", {0.1125, 0.01555, 0.0052625, 4.78486e-9}, {0, 2, 3, 11, 0}, 1},
        {"fp4:g4:m2:floor",
         {0.0257812, 0.00396797, 0.00160039, 9.54271e-8},
         {0, 2, 2, 11, 0},
         0.625f},
        {"fp4:g4:m2:ceil", {0.0257812, 0.187232, 1.47754e-4, 3.57615e-7}, {0, 3, 3, 12, 0}, 0.625f},
        {"fp4:g4:m2", {0.0257812, 0.00396797, 1.47754e-4, 9.54271e-8}, {0, 2, 3, 11, 0}, 0.625f},
    };
    static row r;
    for (size_t k = 0; k < NB_COUNT(golden); k++) {
        load_row(&r, golden[k].word, golden_w, N_MX2);
        bool floor_m1 = k == 0; /* floor(log2 S) = -1, -3, -4, -12 under its base 2^-1 */
        for (int g = 0; g < 5; g++) {
            assert_true(r.p[g].base == golden[k].base);
            assert_int_equal(r.p[g].id, golden[k].exponent[g] - (floor_m1 && g == 0));
            assert_true(r.p[g].scale == ldexpf(golden[k].base, -r.p[g].id));
            if (g < 4) assert_near(row_error(&r, 4 * g, 4 * g + 4), golden[k].error[g], 3e-6);
        }
    }
}

static void test_importance(void **state)
{
    NB_UNUSED(state);
    float d[N_MX2];
    static row r;
    for (int i = 0; i < N_MX2; i++) d[i] = i == 4 ? 0.001f : 1;
    begin_row(&r, "fp4:g4:m2", N_MX2);
    memcpy(r.w, golden_w, sizeof golden_w);
    nb_format_fit_row(&r.f, r.w, d, N_MX2, NULL, NULL, r.p);
    static const uint8_t exponents[5] = {0, 3, 3, 11, 0};
    for (int g = 0; g < 5; g++) assert_int_equal(r.p[g].id, exponents[g]);
    nb_qparam p = r.p[1];
    assert_near(nb_format_error(&r.f, &p, r.w + 4, d + 4, 4), 0.00144154, 3e-6);
    p.scale *= 2;
    assert_near(nb_format_error(&r.f, &p, r.w + 4, d + 4, 4), 0.00256312, 3e-6);
}

static void test_golden_planes(void **state)
{
    NB_UNUSED(state);
    static const uint8_t codes[N_MX2] = {7, 0xC, 1, 5, 7,   1, 0xA, 3, 7,
                                         6, 0xC, 1, 6, 0xC, 1, 5,   0, 0};
    static const uint8_t bytes[9] = {0xC7, 0x51, 0x17, 0x3A, 0x67, 0x1C, 0xC6, 0x51, 0x00};
    static const uint8_t e4m3[N_MX2] = {0x7C, 0xF0, 0x60, 0x74, 0x6C, 0x50, 0xD8, 0x5C, 0x64,
                                        0x60, 0xD8, 0x48, 0x20, 0x98, 0x08, 0x1C, 0x00, 0x00};
    static row r;
    load_row(&r, "fp4:g4:m2", golden_w, N_MX2);
    assert_memory_equal(r.codes, codes, sizeof codes);
    assert_memory_equal(r.bytes[0], bytes, sizeof bytes);
    assert_memory_equal(r.bytes[1], "\x20\xb3\x00", 3); /* e = 0 2 | 3 11 | 0 */
    assert_memory_equal(r.bytes[2], "\x00\x00\x20\x3f", 4);
    assert_int_equal(r.n_planes, 3);
    uint8_t out[N_MX2];
    float scale;
    assert_true(nb_fp4_cast_row(&r.f, r.codes, r.p, N_MX2, NB_E4M3, out, &scale));
    assert_memory_equal(out, e4m3, sizeof e4m3);
    assert_true(scale == 0.009765625f);

    load_row(&r, "fp4:g4:m1", golden_w, N_MX2);
    assert_memory_equal(r.bytes[1], "\x00\xfe\xfd\xf5\x00", 5); /* k = 0 -2 -3 -11 0 */
    assert_int_equal(r.n_planes, 2);
}

static void test_golden_dot(void **state)
{
    NB_UNUSED(state);
    static const uint8_t x8[N_MX2] = {0x7E, 0xE0, 0x5A, 0x69, 0xF2, 0x45, 0x00, 0x75, 0xE6,
                                      0x63, 0x6F, 0xF9, 0x6C, 0x32, 0xFC, 0x71, 0x68, 0xE8};
    static const int sym[N_MX2] = {127, -9, 5,   20, -47, 1,    0,  60, -16,
                                   13,  34, -80, 28, 0,   -111, 40, 18, -18};
    static const uint8_t asym[N_MX2] = {255, 109, 125, 140, 68,  120, 119, 183, 101,
                                        133, 156, 33,  149, 119, 0,   162, 138, 100};
    static row w, x;
    load_row(&w, "fp4:g4:m2", golden_w, N_MX2);
    load_row(&x, "fp8:token", golden_token, N_MX2);
    assert_true(x.p[0].scale == 0.015625f);
    assert_memory_equal(x.codes, x8, sizeof x8);
    uint8_t v[N_MX2];
    float scale;
    assert_true(nb_fp4_cast_row(&w.f, w.codes, w.p, N_MX2, NB_E4M3, v, &scale));
    double sum = 0, plain = 0;
    for (int i = 0; i < N_MX2; i++) {
        sum += (double)nb_minifloat_decode(NB_E4M3, v[i]) *
               (double)nb_minifloat_decode(NB_E4M3, x.codes[i]);
        plain += (double)w.back[i] * (double)x.back[i];
    }
    assert_true(sum == 22517435.0 / 128);
    assert_near(sum * (double)scale * (double)x.p[0].scale, 26.842874289, 1e-10);
    assert_near(plain, 26.842874289, 1e-10);

    load_row(&x, "int8:token", golden_token, N_MX2);
    assert_near(x.p[0].scale, 0.05511811, 1e-7);
    for (int i = 0; i < N_MX2; i++) assert_int_equal(x.codes[i] - x.p[0].zero, sym[i]);
    load_row(&x, "int8:token:asym", golden_token, N_MX2);
    assert_near(x.p[0].scale, 0.05137255, 1e-7);
    assert_int_equal(x.p[0].zero, 119);
    assert_memory_equal(x.codes, asym, sizeof asym);
}

/* ---- laws of power-of-two scales ----------------------------------------------------------- */

/* The best of both is no worse than either (under the same base). */
static void test_best_is_best(void **state)
{
    NB_UNUSED(state);
    static const char *const words[][3] = {
        {"fp4:g32:m2", "fp4:g32:m2:floor", "fp4:g32:m2:ceil"},
        {"fp4:g32:m1", "fp4:g32:m1:floor", "fp4:g32:m1:ceil"},
        {"fp4e3m0:g32:m2", "fp4e3m0:g32:m2:floor", "fp4e3m0:g32:m2:ceil"},
    };
    static row r[3];
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        for (uint64_t seed = 0; seed < 50; seed++) {
            for (int i = 0; i < 3; i++) {
                begin_row(&r[i], words[k][i], 640);
                fill_groups(&r[i], seed, 32, 1);
                quantize_row(&r[i], 1, 1);
            }
            for (int64_t g = 0; g < 20; g++) {
                double best = group_error(&r[0], g);
                assert_true(best <= group_error(&r[1], g) && best <= group_error(&r[2], g));
            }
        }
    }
}

/* M1 is M2 with a power of two as base. */
static void test_m1_is_m2(void **state)
{
    NB_UNUSED(state);
    static row m1, m2;
    for (uint64_t seed = 0; seed < 50; seed++) {
        begin_row(&m1, "fp4:g32:m1", 640);
        fill_groups(&m1, seed, 32, 3);
        quantize_row(&m1, 1, 1);
        begin_row(&m2, "fp4:g32:m2", 640);
        for (int64_t g = 0; g < 20; g++) {
            m2.p[g].base = m1.p[0].base;
            m2.f.family->fit(&m2.f, m1.w + 32 * g, NULL, 32, 1, 1, &m2.p[g]);
            assert_int_equal(m1.p[g].id, m2.p[g].id);
            assert_true(m1.p[g].scale == m2.p[g].scale && m1.p[g].base == m2.p[g].base);
        }
    }
}

/* Ratios beyond the range of the cast stop at its end. */
static void test_exponent_limits(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        int e;
    } words[] = {
        {"fp4:g32:m1", 14}, {"fp4:g32:m2", 14}, {"fp4e3m0:g32:m1", 11}, {"fp4e3m0:g32:m2", 11}};
    static row r;
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        begin_row(&r, words[k].word, 64);
        for (int i = 0; i < 64; i++) r.w[i] = i < 32 ? 1.0f : 1e-6f;
        quantize_row(&r, 1, 1);
        assert_int_equal(r.p[1].id, words[k].e);
        begin_row(&r, words[k].word, 64); /* no scale below the normal numbers */
        for (int i = 0; i < 64; i++) r.w[i] = i < 32 ? 1e-35f : 1e-44f;
        quantize_row(&r, 1, 1);
        assert_true(r.p[1].scale >= FLT_MIN && r.p[1].scale < 4 * FLT_MIN);
    }
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static void test_golden_bytes(void **state)
{
    NB_UNUSED(state);
    static const uint8_t codes[5] = {1, 2, 3, 4, 5};
    static const struct {
        const char *word;
        nb_qparam p;
        uint8_t plane[3][5];
        int bytes[3];
        nb_dtype dtype[3];
    } golden[] = {
        {"fp4:row", {.scale = 1}, {{0x21, 0x43, 0x05}, {0x00, 0x3c}}, {3, 2}, {NB_U8, NB_F16}},
        {"fp4:row:m1", {.scale = 0.25f}, {{0x21, 0x43, 0x05}, {0xfe}}, {3, 1}, {NB_U8, NB_I8}},
        {"fp4:row:m2",
         {.scale = 0.5f, .base = 2, .id = 2},
         {{0x21, 0x43, 0x05}, {0x02}, {0, 0, 0, 0x40}},
         {3, 1, 4},
         {NB_U8, NB_U8, NB_F32}},
        {"fp6:token",
         {.scale = 1},
         {{0x81, 0x30, 0x10, 0x05}, {0, 0, 0x80, 0x3f}},
         {4, 4},
         {NB_U8, NB_F32}},
        {"fp8:row", {.scale = 1}, {{1, 2, 3, 4, 5}, {0x00, 0x3c}}, {5, 2}, {NB_F8_E4M3, NB_F16}},
        {"fp8e5m2:row",
         {.scale = 1},
         {{1, 2, 3, 4, 5}, {0x00, 0x3c}},
         {5, 2},
         {NB_F8_E5M2, NB_F16}},
        {"mxfp4", {.id = 130}, {{0x21, 0x43, 0x05}, {130}}, {3, 1}, {NB_U8, NB_U8}},
        {"mxfp6", {.id = 1}, {{0x81, 0x30, 0x10, 0x05}, {1}}, {4, 1}, {NB_U8, NB_U8}},
        {"mxfp8", {.id = 2}, {{1, 2, 3, 4, 5}, {2}}, {5, 1}, {NB_F8_E4M3, NB_U8}},
        {"mxint8", {.id = 3}, {{1, 2, 3, 4, 5}, {3}}, {5, 1}, {NB_I8, NB_U8}},
        {"nvfp4",
         {.base = 2, .id = 0x38},
         {{0x21, 0x43, 0x05}, {0x38}, {0, 0, 0, 0x40}},
         {3, 1, 4},
         {NB_U8, NB_F8_E4M3, NB_F32}},
    };
    static row r;
    for (size_t k = 0; k < NB_COUNT(golden); k++) {
        begin_row(&r, golden[k].word, 5);
        r.f.family->pack_row(&r.f, codes, &golden[k].p, 5, r.plane);
        for (int i = 0; i < 3; i++) {
            if (i < r.n_planes) assert_int_equal(r.spec[i].dtype, golden[k].dtype[i]);
            int64_t bytes = i < r.n_planes ? r.spec[i].row_bytes : 0;
            assert_int_equal(bytes, golden[k].bytes[i]);
            assert_memory_equal(r.bytes[i], golden[k].plane[i], (size_t)bytes);
        }
    }
}

/* Bits per weight of a row of 4096, as the specifications count them. */
static void test_bits_per_weight(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        double bits;
    } t[] = {{"fp4:g256", 4.0625},
             {"fp4:g128", 4.125},
             {"fp4:g64", 4.25},
             {"fp4:g32", 4.5},
             {"fp4:g256:m1", 4.03125},
             {"fp4:g256:m2", 4.0234375},
             {"fp4:g128:m2", 4.0390625},
             {"fp4:g32:m2", 4.1328125},
             {"mxfp4", 4.25},
             {"mxfp6", 6.25},
             {"mxfp8", 8.25},
             {"mxint8", 8.25},
             {"nvfp4", 4.5 + 32.0 / 4096}};
    for (size_t i = 0; i < NB_COUNT(t); i++) {
        nb_format f;
        assert_int_equal(nb_format_parse(&f, t[i].word, NULL), NB_OK);
        assert_true((double)nb_format_row_bytes(&f, 4096) * 8 / 4096 == t[i].bits);
    }
}

static void test_uses(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        unsigned uses;
    } t[] = {{"fp4:g256:m2", NB_FOR_WEIGHTS},
             {"fp8:row", NB_FOR_WEIGHTS},
             {"fp8:token", NB_FOR_ACTS | NB_FOR_KV},
             {"fp8e5m2:token:paper", NB_FOR_ACTS | NB_FOR_KV},
             {"mxfp4", NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV},
             {"nvfp4", NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV}};
    for (size_t i = 0; i < NB_COUNT(t); i++) {
        nb_format f;
        assert_int_equal(nb_format_parse(&f, t[i].word, NULL), NB_OK);
        assert_int_equal(f.family->uses(&f), t[i].uses);
    }
}

/* A last group that is short is the same group padded with zeros. */
static void test_partial_group(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"fp4:g64", "fp4:g64:m1", "fp4:g64:m2", "fp6:g64",
                                        "fp8:g64", "mxfp4",      "mxint8",     "mxfp6",
                                        "nvfp4",   "nvfp4:46"};
    static row shorter, padded;
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        begin_row(&padded, words[k], 192);
        fill_normal(&padded, k + 1, 0.02);
        memset(padded.w + 135, 0, 57 * sizeof(float));
        begin_row(&shorter, words[k], 135);
        memcpy(shorter.w, padded.w, 135 * sizeof(float));
        quantize_row(&padded, 1, 1);
        quantize_row(&shorter, 1, 1);
        assert_memory_equal(shorter.codes, padded.codes, 135);
        for (int64_t g = 0; g < nb_format_groups(&shorter.f, 135); g++) {
            assert_true(shorter.p[g].scale == padded.p[g].scale);
        }
    }
}

/* ---- size of the errors ------------------------------------------------------------------------
 */

/* 256 groups of 256 normal values with lognormal(0.4) sizes, M2 over rows of two. */
static double scale_error(const char *word)
{
    static row r;
    double error = 0;
    for (uint64_t k = 0; k < 256; k++) {
        begin_row(&r, word, 512);
        fill_groups(&r, k + 1, 256, 0.4);
        quantize_row(&r, 1, 1);
        for (int64_t g = 0; g < 2; g++) {
            double power = 0;
            for (int64_t i = 256 * g; i < 256 * g + 256; i++) power += (double)r.w[i] * r.w[i];
            error += group_error(&r, g) / power / 512;
        }
    }
    return error;
}

static void test_scale_anchors(void **state)
{
    NB_UNUSED(state);
    assert_near(scale_error("fp4:g256"), 0.0125, 0.02);
    assert_near(scale_error("fp4e3m0:g256"), 0.0379, 0.02);
    assert_near(scale_error("int4:g256"), 0.0119, 0.02);
    assert_near(scale_error("int4:g256:sym"), 0.0159, 0.02);
    assert_near(scale_error("fp4:g256:m1:ceil"), 0.0166, 0.03);
    assert_near(scale_error("fp4:g256:m1"), 0.0137, 0.03);
    double best = scale_error("fp4:g256:m2"), floor = scale_error("fp4:g256:m2:floor");
    assert_true(best < floor && floor < scale_error("fp4:g256:m2:ceil"));
    assert_true(best > 0.0125 && best < 0.0137);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_vector),    cmocka_unit_test(test_golden_vector_codes),
        cmocka_unit_test(test_int8_of_figure_2), cmocka_unit_test(test_free_scales),
        cmocka_unit_test(test_golden_exponents), cmocka_unit_test(test_importance),
        cmocka_unit_test(test_golden_planes),    cmocka_unit_test(test_golden_dot),
        cmocka_unit_test(test_best_is_best),     cmocka_unit_test(test_m1_is_m2),
        cmocka_unit_test(test_exponent_limits),  cmocka_unit_test(test_golden_bytes),
        cmocka_unit_test(test_bits_per_weight),  cmocka_unit_test(test_uses),
        cmocka_unit_test(test_partial_group),    cmocka_unit_test(test_scale_anchors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
