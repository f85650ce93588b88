/* Steps of a recipe on one linear. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/rng.h"
#include "method/method.h"

enum { N_OUT = 37, N_IN = 200 };

typedef struct linear {
    nb_arena *arena;
    nb_format format;
    nb_job job;
    nb_plane_spec spec[NB_MAX_PLANES];
    int n_planes;
} linear;

static void begin_linear(linear *l, const char *word)
{
    *l = (linear){0};
    assert_int_equal(nb_arena_create(&l->arena, NULL), NB_OK);
    assert_int_equal(nb_format_parse(&l->format, word, NULL), NB_OK);
    size_t groups = (size_t)nb_format_groups(&l->format, N_IN);
    l->n_planes = l->format.family->planes(&l->format, N_IN, l->spec);
    l->job = (nb_job){.name = "layers.3.q", .format = &l->format, .n_out = N_OUT, .n_in = N_IN};
    l->job.threads = 2;
    l->job.w = nb_arena_alloc(l->arena, N_OUT * N_IN, sizeof(float));
    l->job.clip_lo = nb_arena_alloc(l->arena, N_OUT * groups, sizeof(float));
    l->job.clip_hi = nb_arena_alloc(l->arena, N_OUT * groups, sizeof(float));
    for (size_t i = 0; i < N_OUT * groups; i++) l->job.clip_lo[i] = l->job.clip_hi[i] = 1;
    for (int i = 0; i < l->n_planes; i++) {
        l->job.plane[i] = nb_arena_alloc(l->arena, N_OUT, (size_t)l->spec[i].row_bytes);
    }
    nb_rng rng = {11};
    for (int i = 0; i < N_OUT * N_IN; i++) {
        double x = nb_rng_normal(&rng);
        l->job.w[i] = (float)(x * x * x); /* heavy tails: clipping helps */
    }
}

static nb_status run_steps(linear *l, const char *clip, nb_error *err)
{
    nb_step steps[2];
    assert_int_equal(nb_step_parse(&steps[0], clip, NULL), NB_OK);
    assert_int_equal(nb_step_parse(&steps[1], "nearest", NULL), NB_OK);
    return nb_job_run(&l->job, steps, 2, err);
}

static double squared_error(const linear *l, const float *importance)
{
    nb_matrix m = {.format = l->format, .n_out = N_OUT, .n_in = N_IN};
    for (int i = 0; i < l->n_planes; i++) m.plane[i] = l->job.plane[i];
    float back[N_IN];
    double sum = 0;
    for (int r = 0; r < N_OUT; r++) {
        nb_matrix_dequant(&m, r, 1, back);
        for (int i = 0; i < N_IN; i++) {
            double d = (double)l->job.w[r * N_IN + i] - (double)back[i];
            sum += d * d * (importance ? (double)importance[i] : 1);
        }
    }
    return sum;
}

static void test_mse_beats_minmax(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int2:g64",    "int3:row",     "int4:g128",
                                        "int4:g8:sym", "int3:row:sym", "int8:g64"};
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        linear a, b;
        begin_linear(&a, words[i]);
        begin_linear(&b, words[i]);
        assert_int_equal(run_steps(&a, "minmax", NULL), NB_OK);
        assert_int_equal(run_steps(&b, "mse", NULL), NB_OK);
        double e_minmax = squared_error(&a, NULL), e_mse = squared_error(&b, NULL);
        assert_true(e_mse <= e_minmax);
        assert_true(a.format.bits >= 4 || e_mse < 0.9 * e_minmax);
        nb_arena_free(a.arena);
        nb_arena_free(b.arena);
    }
}

/* Importance moves the optimum towards the columns that count. */
static void test_mse_importance(void **state)
{
    NB_UNUSED(state);
    float importance[N_IN];
    for (int i = 0; i < N_IN; i++) importance[i] = i % 2 ? 100.0f : 0.01f;
    linear a, b;
    begin_linear(&a, "int3:g64");
    begin_linear(&b, "int3:g64");
    b.job.importance = importance;
    assert_int_equal(run_steps(&a, "mse", NULL), NB_OK);
    assert_int_equal(run_steps(&b, "mse", NULL), NB_OK);
    assert_true(squared_error(&b, importance) < squared_error(&a, importance));
    assert_true(squared_error(&b, NULL) > squared_error(&a, NULL));
    nb_arena_free(a.arena);
    nb_arena_free(b.arena);
}

static void test_threads_do_not_matter(void **state)
{
    NB_UNUSED(state);
    linear a, b;
    begin_linear(&a, "int3:g64");
    begin_linear(&b, "int3:g64");
    a.job.threads = 1;
    b.job.threads = 4;
    assert_int_equal(run_steps(&a, "mse", NULL), NB_OK);
    assert_int_equal(run_steps(&b, "mse", NULL), NB_OK);
    for (int i = 0; i < a.n_planes; i++) {
        assert_memory_equal(a.job.plane[i], b.job.plane[i], (size_t)(N_OUT * a.spec[i].row_bytes));
    }
    nb_arena_free(a.arena);
    nb_arena_free(b.arena);
}

static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        linear l;
        nb_error err = {0};
        begin_linear(&l, "int4:g64");
        l.job.w[36 * N_IN + 7] = bad[i];
        l.job.w[21 * N_IN + 133] = bad[i];
        assert_int_equal(run_steps(&l, "minmax", &err), NB_ENUMERIC);
        assert_non_null(strstr(err.message, "layers.3.q"));
        assert_non_null(strstr(err.message, "[21, 133]"));
        nb_arena_free(l.arena);
    }
}

/* Rows w [n_out, n_in], two groups each at most, through `nearest`. */
static void round_rows(const char *word, float *w, int64_t n_out, int64_t n_in,
                       uint8_t *const plane[3], char note[128])
{
    nb_format f;
    nb_step step;
    float clip[2][6] = {{1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}};
    assert_int_equal(nb_format_parse(&f, word, NULL), NB_OK);
    assert_string_equal(f.word, word);
    assert_int_equal(nb_step_parse(&step, "nearest", NULL), NB_OK);
    nb_job job = {.name = "layers.0.o",
                  .format = &f,
                  .n_out = n_out,
                  .n_in = n_in,
                  .w = w,
                  .clip_lo = clip[0],
                  .clip_hi = clip[1],
                  .plane = {plane[0], plane[1], plane[2]},
                  .threads = 2};
    assert_int_equal(nb_job_run(&job, &step, 1, NULL), NB_OK);
    assert_ptr_equal(job.format, &f);
    memcpy(note, job.note, sizeof job.note);
    nb_matrix m = {.format = f, .n_out = n_out, .n_in = n_in};
    for (int i = 0; i < 3; i++) m.plane[i] = plane[i];
    nb_matrix_dequant(&m, 0, n_out, w);
}

/* Three rows of two groups: scales 1 1/4 | 0 0 | 1/8 2^-16. */
static void run_three_rows(const char *word, uint8_t exponents[3], float bases[3], char note[128])
{
    static const float values[3 * 8] = {
        [0] = 6, [5] = -1.5f, [16] = 0.75f, [17] = 0.25, [23] = 6 * 0x1p-16f};
    float w[3 * 8];
    uint8_t codes[3 * 4];
    memcpy(w, values, sizeof w);
    round_rows(word, w, 3, 8, (uint8_t *[]){codes, exponents, (uint8_t *)bases}, note);
    assert_memory_equal(w, values, sizeof w); /* all of them lie on the grids of these scales */
}

/* M2 with one base: every row stores the largest, and one scale lies below base 2^-14. */
static void test_one_base_per_matrix(void **state)
{
    NB_UNUSED(state);
    uint8_t e[3];
    float base[3];
    char note[128];
    run_three_rows("fp4:g4:m2", e, base, note);
    assert_memory_equal(e, ((uint8_t[]){0x20, 0x00, 0xd0}), 3);
    assert_true(base[0] == 1 && base[1] == 1 && base[2] == 0.125f);
    assert_string_equal(note, "");
    run_three_rows("fp4:g4:m2:matrix", e, base, note);
    assert_memory_equal(e, ((uint8_t[]){0x20, 0x00, 0xe3}), 3);
    assert_true(base[0] == 1 && base[1] == 1 && base[2] == 1);
    assert_string_equal(note, "1 scales of 6 out of reach");
    run_three_rows("fp4:g4:m2:matrix:floor", e, base, note);
    assert_memory_equal(e, ((uint8_t[]){0x20, 0x00, 0xe3}), 3);
}

/* NVFP4 with one base: the scale of a small row moves from 448 to 1, where its values still lie on
 * the grid; activations have no such word. */
static void test_one_nvfp4_base_per_matrix(void **state)
{
    NB_UNUSED(state);
    static const float w[2][16] = {{2688, -448}, {6, -1.5f}};
    static const char *const words[] = {"nvfp4", "nvfp4:matrix"};
    static const uint8_t scales[][2] = {{0x7e, 0x7e}, {0x7e, 0x38}}; /* E4M3: 448, 1 */
    char note[128];
    for (int i = 0; i < 2; i++) {
        float copy[2 * 16], base[2];
        uint8_t codes[2 * 8], s[2];
        memcpy(copy, w, sizeof copy);
        round_rows(words[i], copy, 2, 16, (uint8_t *[]){codes, s, (uint8_t *)base}, note);
        assert_memory_equal(copy, w, sizeof copy);
        assert_memory_equal(s, scales[i], 2);
        assert_true(base[0] == 1 && base[1] == (i == 0 ? 6.0f / (6 * 448) : 1));
    }
    nb_format f;
    assert_int_equal(nb_format_parse(&f, "nvfp4:matrix", NULL), NB_OK);
    assert_int_equal(f.family->uses(&f), NB_FOR_WEIGHTS);
}

static void test_find(void **state)
{
    NB_UNUSED(state);
    const nb_method *m;
    nb_error err = {0};
    assert_int_equal(nb_method_find(&m, "rtnn", &err), NB_EUSAGE);
    assert_null(m);
    assert_non_null(strstr(err.message, "rtnn"));
    for (int i = 0; nb_methods[i]; i++) {
        assert_non_null(strstr(err.message, nb_methods[i]->name));
        assert_int_equal(nb_method_find(&m, nb_methods[i]->name, NULL), NB_OK);
        assert_ptr_equal(m, nb_methods[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mse_beats_minmax),
        cmocka_unit_test(test_mse_importance),
        cmocka_unit_test(test_threads_do_not_matter),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_one_base_per_matrix),
        cmocka_unit_test(test_one_nvfp4_base_per_matrix),
        cmocka_unit_test(test_find),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
