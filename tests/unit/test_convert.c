/* Matrices on their way into the form in which they are stored. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "calib/clipped.h"
#include "calib/convert.h"
#include "format/half.h"

/* ---- matrices that are left alone ---------------------------------------------------------- */

static void fill_q8_0(uint8_t *block, uint16_t d, int lowest, nb_rng *rng)
{
    memcpy(block, &d, 2);
    for (int i = 0; i < 32; i++) {
        int q = (int)(nb_rng_next(rng) % (uint64_t)(128 - lowest)) + lowest;
        block[2 + i] = (uint8_t)(int8_t)q;
    }
}

/* Any bytes that Q8_0 can hold give the same numbers in int8:g32:sym, -128 included. */
static void test_q8_0(void **state)
{
    NB_UNUSED(state);
    enum { ROWS = 5, BLOCKS = 40 };
    static uint8_t bytes[ROWS * BLOCKS * 34];
    static float before[BLOCKS * 32], after[BLOCKS * 32];
    nb_rng rng = {17};
    for (int i = 0; i < ROWS * BLOCKS; i++) {
        uint16_t d = (uint16_t)(nb_rng_next(&rng) % 0x7c00 | (nb_rng_next(&rng) & 0x8000));
        fill_q8_0(bytes + 34 * i, d, i % 3 == 0 ? -128 : i % 3 == 1 ? -127 : 0, &rng);
    }
    nb_convert how = {.threads = 2};
    assert_int_equal(nb_arena_create(&how.arena, NULL), NB_OK);
    assert_int_equal(nb_arena_create(&how.scratch, NULL), NB_OK);
    nb_matrix in = {.format = nb_format_plain(NB_Q8_0), .n_out = ROWS, .n_in = BLOCKS * 32}, out;
    in.plane[0] = bytes;
    nb_format f = nb_convert_default(&in);
    nb_convert_info info;
    assert_int_equal(nb_convert_matrix(&how, "x", &in, &f, true, &out, &info, NULL), NB_OK);
    assert_string_equal(out.format.word, "int8:g32:sym");
    for (int r = 0; r < ROWS; r++) {
        nb_matrix_dequant(&in, r, 1, before);
        nb_matrix_dequant(&out, r, 1, after);
        for (int i = 0; i < BLOCKS * 32; i++) assert_true(before[i] == after[i]);
    }
    bytes[34 * (BLOCKS * 3 + 1) + 1] |= 0x7c; /* an Inf or NaN as scale */
    nb_error err = {0};
    assert_int_equal(nb_convert_matrix(&how, "x", &in, &f, true, &out, &info, &err), NB_ENUMERIC);
    assert_non_null(strstr(err.message, "row 3"));
    nb_arena_free(how.arena);
    nb_arena_free(how.scratch);
}

/* In pieces of rows or whole: the same. */
static void test_by_rows(void **state)
{
    NB_UNUSED(state);
    enum { COLS = 1024 };
    int64_t rows = NB_CHUNK_ELEMS / COLS + 3; /* a second, short piece */
    float *w = malloc((size_t)rows * COLS * sizeof *w);
    assert_non_null(w);
    nb_rng rng = {4};
    for (int64_t i = 0; i < rows * COLS; i++) w[i] = (float)nb_rng_uniform(&rng) - 0.5f;
    nb_recipe recipe;
    nb_recipe_default(&recipe);
    nb_convert how = {.recipe = &recipe, .threads = 2};
    assert_int_equal(nb_arena_create(&how.arena, NULL), NB_OK);
    assert_int_equal(nb_arena_create(&how.scratch, NULL), NB_OK);
    nb_matrix in = {.format = nb_format_plain(NB_F32), .n_out = rows, .n_in = COLS}, a, b;
    in.plane[0] = (const uint8_t *)w;
    nb_format f;
    assert_int_equal(nb_format_parse(&f, "int4:g128", NULL), NB_OK);
    nb_convert_info info_a, info_b;
    assert_int_equal(nb_convert_matrix(&how, "x", &in, &f, true, &a, &info_a, NULL), NB_OK);
    assert_int_equal(nb_convert_matrix(&how, "x", &in, &f, false, &b, &info_b, NULL), NB_OK);
    assert_memory_equal(a.plane[0], b.plane[0], (size_t)rows * COLS / 2);
    assert_memory_equal(a.plane[1], b.plane[1], (size_t)rows * COLS / 128 * 2);
    assert_true(info_a.error == info_b.error);
    w[(rows - 1) * COLS + 5] = INFINITY;
    nb_error err = {0};
    assert_int_equal(nb_convert_matrix(&how, "x", &in, &f, true, &a, &info_a, &err), NB_ENUMERIC);
    char where[40];
    snprintf(where, sizeof where, "[%lld, 5]", (long long)rows - 1);
    assert_non_null(strstr(err.message, where));
    nb_arena_free(how.arena);
    nb_arena_free(how.scratch);
    free(w);
}

/* ---- what lies beyond the grid ----------------------------------------------------------------
 */

/* int4 with both ends of the range cut to a half: what is beyond the last code by more than half a
 * step. Ratios of a step on the block are taken over row by row. */
static void test_clipped(void **state)
{
    NB_UNUSED(state);
    enum { ROWS = 3, COLS = 8 };
    static const float w[ROWS][COLS] = {
        {-8, -4, -3, -2, -1, 3, 4, 7}, {-8, -4, -3, -2, -1, 3, 4, 7}, {0}};
    static const float lo[ROWS] = {1, 0.5f, 1}, hi[ROWS] = {1, 0.5f, 1};
    nb_recipe r;
    nb_format f;
    nb_recipe_default(&r);
    nb_convert how = {.recipe = &r, .threads = 2, .clip_lo = lo, .clip_hi = hi};
    r.n_steps = 1;
    assert_int_equal(nb_step_parse(&r.steps[0], "nearest", NULL), NB_OK);
    assert_int_equal(nb_arena_create(&how.arena, NULL), NB_OK);
    assert_int_equal(nb_arena_create(&how.scratch, NULL), NB_OK);
    assert_int_equal(nb_format_parse(&f, "int4:row", NULL), NB_OK);
    nb_matrix out, in = {.format = nb_format_plain(NB_F32),
                         .n_out = ROWS,
                         .n_in = COLS,
                         .plane = {(const uint8_t *)w}};
    nb_convert_info info;
    assert_int_equal(nb_convert_matrix(&how, "x", &in, &f, false, &out, &info, NULL), NB_OK);
    /* row 1: a step is 0.5 and the last codes are -4 and 3.5; -8, 4 and 7 are beyond them */
    assert_true(info.clipped == 3.0 / (ROWS * COLS));
    float back[COLS];
    nb_matrix_dequant(&out, 1, 1, back);
    assert_true(back[0] > -4.6f && back[7] < 4.1f);
    int64_t count = 0;
    assert_int_equal(nb_clipped_add(&out, w[0], 0, 1, 1, &count, NULL), NB_OK);
    assert_int_equal(count, 0);
    how.clip_lo = how.clip_hi = NULL;
    assert_int_equal(nb_convert_matrix(&how, "x", &in, &f, false, &out, &info, NULL), NB_OK);
    assert_true(info.clipped == 0);
    nb_arena_free(how.arena);
    nb_arena_free(how.scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q8_0),
        cmocka_unit_test(test_by_rows),
        cmocka_unit_test(test_clipped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
