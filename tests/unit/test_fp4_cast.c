/* The cast of 4-bit codes to FP8: the table of the ZeroQuant-FP specification (section 5), every
 * code at every exponent, whole rows. */
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

static void test_cast_table(void **state)
{
    NB_UNUSED(state);
    static const uint8_t e4m3[15][8] = {
        {0x00, 0x01, 0x02, 0x03, 0x04, 0x06, 0x08, 0x0C}, /* j = -8 */
        {0x00, 0x02, 0x04, 0x06, 0x08, 0x0C, 0x10, 0x14},
        {0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C},
        {0x00, 0x08, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24},
        {0x00, 0x10, 0x18, 0x1C, 0x20, 0x24, 0x28, 0x2C},
        {0x00, 0x18, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34},
        {0x00, 0x20, 0x28, 0x2C, 0x30, 0x34, 0x38, 0x3C},
        {0x00, 0x28, 0x30, 0x34, 0x38, 0x3C, 0x40, 0x44},
        {0x00, 0x30, 0x38, 0x3C, 0x40, 0x44, 0x48, 0x4C}, /* 0 */
        {0x00, 0x38, 0x40, 0x44, 0x48, 0x4C, 0x50, 0x54},
        {0x00, 0x40, 0x48, 0x4C, 0x50, 0x54, 0x58, 0x5C},
        {0x00, 0x48, 0x50, 0x54, 0x58, 0x5C, 0x60, 0x64},
        {0x00, 0x50, 0x58, 0x5C, 0x60, 0x64, 0x68, 0x6C},
        {0x00, 0x58, 0x60, 0x64, 0x68, 0x6C, 0x70, 0x74},
        {0x00, 0x60, 0x68, 0x6C, 0x70, 0x74, 0x78, 0x7C}, /* 6 */
    };
    static const uint8_t e5m2[2][8] = {{0x00, 0x38, 0x3C, 0x3E, 0x40, 0x42, 0x44, 0x46},  /* 0 */
                                       {0x00, 0x01, 0x02, 0x03, 0x04, 0x06, 0x08, 0x0A}}; /* -15 */
    float value[16];
    uint8_t out[16];
    nb_fp4_values(value, NB_E2M1);
    for (int j = -8; j <= 6; j++) {
        assert_true(nb_fp4_cast(out, value, NB_E4M3, j));
        assert_memory_equal(out, e4m3[j + 8], 8);
        for (int i = 0; i < 8; i++) assert_int_equal(out[i + 8], out[i] | 0x80);
    }
    assert_true(nb_fp4_cast(out, value, NB_E5M2, 0));
    assert_memory_equal(out, e5m2[0], 8);
    assert_true(nb_fp4_cast(out, value, NB_E5M2, -15));
    assert_memory_equal(out, e5m2[1], 8);
    for (int c = 0; c < 16; c++) { /* the bit shifts */
        nb_fp4_cast(out, value, NB_E4M3, -6);
        assert_int_equal(out[c], (c >> 3) << 7 | (c & 7) << 2);
        nb_fp4_cast(out, value, NB_E5M2, -14);
        assert_int_equal(out[c], (c >> 3) << 7 | (c & 7) << 1);
    }
}

/* Every code, every j from far below to far above: exact inside the limits, and nowhere else. */
static void check_range(const float value[16], nb_minifloat to, int lo, int hi)
{
    for (int j = -40; j <= 40; j++) {
        uint8_t out[16];
        assert_int_equal(nb_fp4_cast(out, value, to, j), j >= lo && j <= hi);
        if (j < lo || j > hi) continue;
        for (int c = 0; c < 16; c++) {
            double v = (double)nb_minifloat_decode(to, out[c]);
            assert_true(v == ldexp((double)value[c], j));
        }
    }
}

static void test_cast_ranges(void **state)
{
    NB_UNUSED(state);
    static const int limits[2][2][2] = {{{-8, 6}, {-15, 13}}, {{-7, 4}, {-14, 11}}};
    float value[16];
    for (int from = 0; from < 2; from++) {
        nb_fp4_values(value, from);
        for (int to = 0; to < 2; to++) {
            nb_minifloat type = to ? NB_E5M2 : NB_E4M3;
            nb_fp4_cast_range range = nb_fp4_cast_limits(from, type);
            assert_int_equal(range.lo, limits[from][to][0]);
            assert_int_equal(range.hi, limits[from][to][1]);
            check_range(value, type, range.lo, range.hi);
        }
    }
    nb_int4_values(value, 7); /* -7 .. 8 */
    check_range(value, NB_E4M3, -9, 5);
    value[15] = 7; /* symmetric: |q| <= 7 */
    check_range(value, NB_E4M3, -9, 6);
    for (int zero = 0; zero <= 15; zero++) {
        int most = zero > 15 - zero ? zero : 15 - zero;
        nb_int4_values(value, zero);
        check_range(value, NB_E4M3, -9, most == 15 ? 4 : 5); /* 14 * 2^5 = 448 */
    }
}

/* Expanded bytes times one scale are the decoded weights, bit for bit. */
static void test_cast_rows(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"fp4:g32:m1", "fp4:g32:m2", "fp4:row:m2", "fp4e3m0:g64:m1",
                                        "fp4e3m0:g64:m2"};
    static row r;
    uint8_t v[N_MAX];
    float scale;
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        for (int to = NB_E4M3; to <= NB_E5M2; to++) {
            begin_row(&r, words[k], 650);
            fill_groups(&r, k + 7, 32, 4);
            quantize_row(&r, 1, 1);
            const uint8_t *const *plane = (const uint8_t *const *)r.plane;
            r.f.family->unpack_row(&r.f, plane, r.n, r.again, r.p_again);
            r.f.family->dequant_row(&r.f, plane, r.n, r.back);
            assert_true(nb_fp4_cast_row(&r.f, r.again, r.p_again, r.n, to, v, &scale));
            for (int i = 0; i < r.n; i++) {
                float w = nb_minifloat_decode(to, v[i]) * scale;
                assert_int_equal(nb_f32_bits(w), nb_f32_bits(r.back[i]));
            }
        }
    }
    r.p_again[3].id = 15;
    assert_false(nb_fp4_cast_row(&r.f, r.again, r.p_again, r.n, NB_E4M3, v, &scale));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cast_table),
        cmocka_unit_test(test_cast_ranges),
        cmocka_unit_test(test_cast_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
