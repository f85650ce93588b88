/* The laws that hold for every word of every quantized family, and the bytes of each layout. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "format/half.h"
#include "format_util.h"

static const char *const grains[] = {"row", "g8", "g64", "g128", "token"};
/* Words of the families that are no integers. */
static const char *const others[] = {
    "dialect:b16",
    "dialect:b32",
    "dialect:b64",
    "dialect:b128",
    "dialect:b32:mse",
    "dialect:b64:2s",
    "dialect:b128:2s:bd5",
    "fp4:row",
    "fp4:g2",
    "fp4:g256",
    "fp4:g256:paper",
    "fp4:token",
    "fp4:row:m1",
    "fp4:g64:m1",
    "fp4:g64:m1:floor",
    "fp4:g64:m1:ceil",
    "fp4:g4:m2",
    "fp4:g256:m2",
    "fp4:g64:m2:floor",
    "fp4:g64:m2:ceil",
    "fp4:g32:m2:paper",
    "fp4e3m0:g128",
    "fp4e3m0:g16:m1",
    "fp4e3m0:g16:m2",
    "fp6:row",
    "fp6:g4",
    "fp6:token",
    "fp6e3m2:g64",
    "fp8:row",
    "fp8:g1",
    "fp8:token",
    "fp8:token:paper",
    "fp8e5m2:g128",
    "fp8e5m2:token:paper",
    "mxfp4",
    "mxfp4:ceil",
    "mxfp6",
    "mxfp6e3m2",
    "mxfp8",
    "mxfp8:ceil",
    "mxfp8e5m2",
    "mxint8",
    "mxint8:ceil",
    "nvfp4",
    "nvfp4:46",
};
static const int64_t lengths[] = {1, 7, 8, 9, 64, 130, 576, N_MAX};

static void check_laws(row *r)
{
    const nb_format *f = &r->f;
    const uint8_t *const *plane = (const uint8_t *const *)r->plane;
    quantize_row(r, 1, 1);
    f->family->unpack_row(f, plane, r->n, r->again, r->p_again);
    assert_memory_equal(r->codes, r->again, (size_t)r->n);
    for (int64_t g = 0; g < nb_format_groups(f, r->n); g++) {
        assert_memory_equal(&r->p[g].scale, &r->p_again[g].scale, sizeof(float));
        assert_memory_equal(&r->p[g].base, &r->p_again[g].base, sizeof(float));
        assert_int_equal(r->p[g].zero, r->p_again[g].zero);
        assert_int_equal(r->p[g].id, r->p_again[g].id);
    }
    float expected[N_MAX];
    decode_row(f, r->codes, r->p, r->n, expected);
    f->family->dequant_row(f, plane, r->n, r->back);
    assert_memory_equal(expected, r->back, (size_t)r->n * sizeof(float));
    int64_t total = 0;
    for (int i = 0; i < r->n_planes; i++) {
        total += r->spec[i].row_bytes;
        assert_int_equal(r->bytes[i][r->spec[i].row_bytes], 0xA5); /* nothing beyond the row */
    }
    assert_int_equal(total, nb_format_row_bytes(f, r->n));
    for (int64_t g = 0; g < nb_format_groups(f, r->n); g++) { /* encode inverts decode */
        int64_t at = nb_group_begin(f, g), m = nb_group_length(f, r->n, g);
        f->family->encode(f, &r->p[g], r->back + at, m, r->again + at);
    }
    assert_memory_equal(r->codes, r->again, (size_t)r->n);
}

static void each_int(void (*check)(row *r, const char *word))
{
    static row r;
    for (int bits = 2; bits <= 8; bits++) {
        for (size_t g = 0; g < NB_COUNT(grains); g++) {
            for (int sym = 0; sym < 2; sym++) {
                char word[64];
                snprintf(word, sizeof word, "int%d:%s:%s", bits, grains[g], sym ? "sym" : "asym");
                check(&r, word);
                if (strcmp(grains[g], "token") != 0) check(&r, strcat(word, ":f32"));
            }
        }
    }
}

static void each_word(void (*check)(row *r, const char *word))
{
    static row r;
    each_int(check);
    for (size_t i = 0; i < NB_COUNT(others); i++) check(&r, others[i]);
}

static void laws_of_word(row *r, const char *word)
{
    static const double stds[] = {1, 0.02, 1000, 1e-6, 0};
    for (size_t l = 0; l < NB_COUNT(lengths); l++) {
        for (size_t s = 0; s < NB_COUNT(stds); s++) {
            begin_row(r, word, lengths[l]);
            fill_normal(r, l + 100 * s + 1, stds[s]);
            check_laws(r);
        }
    }
}

static void test_laws(void **state)
{
    NB_UNUSED(state);
    each_word(laws_of_word);
}

/* A group of one sign, a lone outlier, values that overflow fp16, the ends of fp32. */
static void hard_rows_of_word(row *r, const char *word)
{
    for (int kind = 0; kind < 6; kind++) {
        begin_row(r, word, 130);
        fill_normal(r, 5, 1);
        for (int64_t i = 0; i < r->n; i++) {
            if (kind == 0) r->w[i] = fabsf(r->w[i]) + 3;
            if (kind == 1) r->w[i] = -fabsf(r->w[i]) - 3;
            if (kind == 2) r->w[i] *= i == 77 ? 1e4f : 1e-3f;
            if (kind == 3) r->w[i] *= 1e8f;
            if (kind == 4) r->w[i] = i % 7 == 0 ? FLT_MAX : -r->w[i];
            if (kind == 5) r->w[i] *= 1e-40f;
        }
        check_laws(r);
        for (int64_t g = 0; g < nb_format_groups(&r->f, r->n); g++) {
            assert_true(isfinite(r->p[g].scale)); /* NVFP4 has a scale 0 for blocks of zeros */
            assert_true(r->p[g].scale > 0 || (r->p[g].scale == 0 && r->p[g].base > 0));
            assert_in_range(r->p[g].zero, 0, (1 << r->f.bits) - 1);
        }
        for (int64_t i = 0; i < r->n; i++) assert_true(isfinite(r->back[i]));
    }
}

static void test_hard_rows(void **state)
{
    NB_UNUSED(state);
    each_word(hard_rows_of_word);
}

static void random_bytes_of_word(row *r, const char *word)
{
    nb_rng rng = {99};
    for (int round = 0; round < 20; round++) {
        begin_row(r, word, 130);
        for (int i = 0; i < r->n_planes; i++) {
            for (int64_t k = 0; k < r->spec[i].row_bytes; k++) {
                r->bytes[i][k] = (uint8_t)nb_rng_next(&rng);
            }
        }
        const uint8_t *const *plane = (const uint8_t *const *)r->plane;
        r->f.family->unpack_row(&r->f, plane, r->n, r->codes, r->p);
        float expected[N_MAX];
        decode_row(&r->f, r->codes, r->p, r->n, expected);
        r->f.family->dequant_row(&r->f, plane, r->n, r->back);
        for (int64_t i = 0; i < r->n; i++) {
            assert_true(expected[i] == r->back[i] || (isnan(expected[i]) && isnan(r->back[i])));
            assert_in_range(r->codes[i], 0, (1 << r->f.bits) - 1);
        }
    }
}

static void test_random_bytes(void **state)
{
    NB_UNUSED(state);
    each_word(random_bytes_of_word);
}

/* Uniform rounding errs by at most half a step, plus the clamp at the ends where the scale was
 * rounded down to fp16 (2^-11 of the range) or the zero point was rounded (half a step). Over a
 * group, (scale/2)^2 bounds the mean, scale^2/12 is its size; ends add little. */
static void error_of_word(row *r, const char *word)
{
    begin_row(r, word, 640);
    fill_normal(r, 7, 1);
    quantize_row(r, 1, 1);
    r->f.family->dequant_row(&r->f, (const uint8_t *const *)r->plane, r->n, r->back);
    double error = 0, expected = 0;
    for (int64_t i = 0; i < r->n; i++) {
        double h = r->p[r->f.group ? i / r->f.group : 0].scale, d = (double)r->w[i] - r->back[i];
        double range = h * ((1 << r->f.bits) - 1);
        assert_true(fabs(d) <= h * (r->f.sym ? 0.5 : 1.0) + range * 0x1p-11);
        error += d * d;
        expected += h * h / 12;
    }
    /* 2-bit grids are too coarse for the uniform-error model: there the bound is (h/2)^2. */
    assert_true(error <= expected * (r->f.bits == 2 ? 3.0 : 1.4));
}

static void test_error(void **state)
{
    NB_UNUSED(state);
    each_int(error_of_word);
}

/* w[i] = (i mod 2^bits) - zero with scale 1: the codes are 0, 1, 2, ... and the bytes follow from
 * the drawing alone. */
/* Parameters that change from value to value: the same codes and values as one by one. */
static void each_of_word(row *r, const char *word)
{
    enum { N = 70 };
    float w[N], back[N], one;
    nb_qparam p[N];
    uint8_t codes[N], code;
    nb_rng rng = {77};
    begin_row(r, word, N_MAX);
    for (int i = 0; i < N; i++) {
        float group[8], size = ldexpf(1, i % 9 - 4);
        for (int k = 0; k < 8; k++) group[k] = i % 11 == 0 ? 0 : size * (float)nb_rng_normal(&rng);
        p[i] = (nb_qparam){0};
        r->f.family->fit(&r->f, group, NULL, 8, 1, 1, &p[i]);
        w[i] = group[0] * (i % 5 == 0 ? 4 : 1); /* beyond the range, too */
    }
    nb_format_round_each(&r->f, p, w, N, codes, back);
    for (int i = 0; i < N; i++) {
        r->f.family->encode(&r->f, &p[i], &w[i], 1, &code);
        r->f.family->decode(&r->f, &p[i], &code, 1, &one);
        if (code != codes[i] || memcmp(&one, &back[i], 4) != 0) {
            fail_msg("%s: %g with scale %g: code %d, %g, expected %d, %g", word, (double)w[i],
                     (double)p[i].scale, codes[i], (double)back[i], code, (double)one);
        }
    }
}

static void test_round_each(void **state)
{
    NB_UNUSED(state);
    each_word(each_of_word);
}

static void test_golden_bytes(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        uint8_t codes[9], n_codes;
    } golden[] = {
        {"int2:g8", {0xe4, 0xe4, 0x00}, 3},
        {"int3:g8", {0x88, 0xc6, 0xfa, 0x00}, 4},
        {"int4:g8", {0x10, 0x32, 0x54, 0x76, 0x08}, 5},
        {"int5:g8", {0x20, 0x88, 0x41, 0x8a, 0x39, 0x08}, 6},
        {"int6:g8", {0x40, 0x20, 0x0c, 0x44, 0x61, 0x1c, 0x08}, 7},
        {"int7:g8", {0x80, 0x80, 0x60, 0x40, 0x28, 0x18, 0x0e, 0x08}, 8},
        {"int8:g8", {0, 1, 2, 3, 4, 5, 6, 7, 8}, 9},
    };
    static row r;
    for (size_t k = 0; k < NB_COUNT(golden); k++) {
        begin_row(&r, golden[k].word, 9);
        int q = (1 << r.f.bits) - 1;
        for (int i = 0; i < 9; i++) r.codes[i] = (uint8_t)(i & q);
        r.p[0] = (nb_qparam){.scale = 1, .zero = q};
        r.p[1] = (nb_qparam){.scale = -0.5f, .zero = 1};
        r.f.family->pack_row(&r.f, r.codes, r.p, 9, r.plane);
        assert_int_equal(r.spec[0].row_bytes, golden[k].n_codes);
        assert_memory_equal(r.bytes[0], golden[k].codes, golden[k].n_codes);
        assert_memory_equal(r.bytes[1], "\x00\x3c\x00\xb8", 4); /* fp16 1, -0.5 */
        int zeros = q | 1 << r.f.bits;
        assert_int_equal(r.bytes[2][0], zeros & 255);
        assert_int_equal(r.spec[2].row_bytes, (2 * r.f.bits + 7) / 8);
        if (r.spec[2].row_bytes == 2) assert_int_equal(r.bytes[2][1], zeros >> 8);
    }
}

/* spec: OmniQuant section 3, "Golden", and section 5. */
static void test_golden_omniquant(void **state)
{
    NB_UNUSED(state);
    static const float w[6] = {-1, -0.4f, 0.1f, 0.7f, 1.5f, 0.2f};
    static row r;
    begin_row(&r, "int2:token:asym", 6);
    memcpy(r.w, w, sizeof w);
    float clip_hi = 1 / (1 + expf(-1.0f)), clip_lo = 1 / (1 + expf(-0.5f));
    quantize_row(&r, clip_lo, clip_hi);
    assert_true(fabsf(r.p[0].scale - 0.57301573f) < 1e-7f);
    assert_int_equal(r.p[0].zero, 1);
    assert_memory_equal(r.codes, ((uint8_t[]){0, 0, 1, 2, 3, 1}), 6);

    begin_row(&r, "int4:token:asym", 6);
    memcpy(r.w, w, sizeof w);
    quantize_row(&r, 1, 1);
    assert_true(fabsf(r.p[0].scale - 1 / 6.0f) < 1e-7f);
    assert_int_equal(r.p[0].zero, 6);

    begin_row(&r, "int2:row", 6); /* the same with the scale as it is stored */
    memcpy(r.w, w, sizeof w);
    quantize_row(&r, clip_lo, clip_hi);
    assert_true(r.p[0].scale == nb_f16_to_f32(nb_f16_from_f32(0.57301573f)));
    assert_memory_equal(r.codes, ((uint8_t[]){0, 0, 1, 2, 3, 1}), 6);
}

/* Values d * q with |q| <= 127 and one |q| = 127 come back exactly, for every fp16 d: GGUF's Q8_0
 * fits into int8:g32:sym without loss. */
static void test_q8_0_is_exact(void **state)
{
    NB_UNUSED(state);
    static row r;
    nb_rng rng = {3};
    for (uint32_t bits = 1; bits < 0x7c00; bits++) {
        float d = nb_f16_to_f32((uint16_t)bits);
        begin_row(&r, "int8:g32:sym", 32);
        for (int i = 0; i < 32; i++) r.w[i] = d * (float)((int)(nb_rng_next(&rng) % 255) - 127);
        r.w[nb_rng_next(&rng) % 32] = 127 * d;
        quantize_row(&r, 1, 1);
        assert_true(r.p[0].scale == d);
        r.f.family->dequant_row(&r.f, (const uint8_t *const *)r.plane, r.n, r.back);
        for (int i = 0; i < 32; i++) assert_true(r.w[i] == r.back[i]);
    }
}

static void test_zero_group(void **state)
{
    NB_UNUSED(state);
    static row r;
    begin_row(&r, "int4:g8", 9);
    quantize_row(&r, 1, 1);
    assert_true(r.p[0].scale == 1);
    assert_int_equal(r.p[0].zero, 0);
    assert_memory_equal(r.codes, ((uint8_t[9]){0}), 9);
}

static const char *const canonical[][2] = {
    {"int4:g128", "int4:g128"},
    {"int4:g128:asym", "int4:g128"},
    {"int4:row:sym", "int4:row:sym"},
    {"int4:row:asym:f32", "int4:row:f32"},
    {"int8:g65536:sym:f32", "int8:g65536:sym:f32"},
    {"int8:token", "int8:token"},
    {"int8:token:sym", "int8:token"},
    {"int8:token:asym", "int8:token:asym"},
    {"fp4:g256", "fp4:g256"},
    {"fp4:g256:m2", "fp4:g256:m2"},
    {"fp4e3m0:g65536:m2:floor:paper", "fp4e3m0:g65536:m2:floor:paper"},
    {"fp4:row:m1:ceil", "fp4:row:m1:ceil"},
    {"fp6:g4", "fp6:g4"},
    {"fp6e3m2:token", "fp6e3m2:token"},
    {"fp8:token", "fp8:token"},
    {"fp8e5m2:token:paper", "fp8e5m2:token:paper"},
    {"mxfp4", "mxfp4"},
    {"mxfp8e5m2:ceil", "mxfp8e5m2:ceil"},
    {"nvfp4:46", "nvfp4:46"},
    {"f32", "f32"},
    {"bf16", "bf16"},
    {"q4_1", "q4_1"},
    {"none", "none"},
};

static const char *const bad[] = {
    "",
    "int",
    "int4",
    "int1:row",
    "int9:row",
    "int16:row",
    "int4:",
    "int4:g",
    "int4:g0",
    "int4:g12",
    "int4:g-8",
    "int4:g08",
    "int4:g9999999999",
    "int4:g65544",
    "int4:row:",
    "int4:row:sym:sym",
    "int4:row:f32:sym",
    "int4:row:f16",
    "int8:token:f32",
    "int4:rows",
    "int4:g128 ",
    "INT4:row",
    "fp99",
    "fp4",
    "fp4:",
    "fp4:g3",
    "fp4:g0",
    "fp4:g65538",
    "fp6:g6",
    "fp4:token:m2",
    "fp8:row:m1",
    "fp6:g64:m2",
    "fp4:g64:m1:m2",
    "fp4:g64:floor",
    "fp4:g64:m2:floor:ceil",
    "fp4:g64:paper:m2",
    "fp8:row:paper",
    "fp8e5m2:g64:paper",
    "fp16:row",
    "int4:g64:m2",
    "mxfp4:",
    "mxfp4:floor",
    "mxfp5",
    "mxfp4:g32",
    "nvfp4:",
    "nvfp4:64",
    "nvfp40",
    "bool",
    "i64",
};

static void test_words(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(canonical); i++) {
        nb_format f;
        assert_int_equal(nb_format_parse(&f, canonical[i][0], NULL), NB_OK);
        assert_string_equal(f.word, canonical[i][1]);
    }
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        nb_format f;
        nb_error err = {0};
        assert_int_equal(nb_format_parse(&f, bad[i], &err), NB_EUSAGE);
        assert_null(f.family);
        assert_non_null(strstr(err.message, bad[i]));
    }
}

static void test_matrix(void **state)
{
    NB_UNUSED(state);
    static const float values[6] = {1, 2, 3, 4, 5, 6};
    nb_matrix m = {.format = nb_format_plain(NB_F32), .n_out = 2, .n_in = 3};
    m.plane[0] = (const uint8_t *)values;
    float out[3];
    nb_matrix_dequant(&m, 1, 1, out);
    assert_memory_equal(out, values + 3, sizeof out);
    assert_int_equal(nb_matrix_bytes(&m), 24);
    assert_false(nb_format_is_quantized(&m.format));
    nb_format q8 = nb_format_plain(NB_Q8_0);
    assert_int_equal(nb_format_row_bytes(&q8, 64), 68);
    assert_string_equal(q8.word, "q8_0");
    nb_format block = nb_format_plain(NB_MXFP4), planes; /* one word, two layouts */
    assert_false(nb_format_is_quantized(&block));
    assert_int_equal(nb_format_parse(&planes, block.word, NULL), NB_OK);
    assert_true(nb_format_is_quantized(&planes));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_laws),          cmocka_unit_test(test_hard_rows),
        cmocka_unit_test(test_random_bytes),  cmocka_unit_test(test_error),
        cmocka_unit_test(test_golden_bytes),  cmocka_unit_test(test_golden_omniquant),
        cmocka_unit_test(test_q8_0_is_exact), cmocka_unit_test(test_zero_group),
        cmocka_unit_test(test_words),         cmocka_unit_test(test_matrix),
        cmocka_unit_test(test_round_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
