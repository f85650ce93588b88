/* Blocks of several rows (BlockDialect, appendix G): weights, activations, the steps and uses that
 * know them, what they lose. */
#include "dialect_util.h"
#include "method/method.h"
#include "op/common.h"

enum { ROWS = 22, COLS = 45 };

static const struct {
    const char *word;
    int rows, cols;
} tiles[] = {{"dialect:4x4", 4, 4}, {"dialect:4x8", 4, 8}, {"dialect:8x8", 8, 8}};

static void fill_matrix(nb_rng *rng, float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(nb_rng_normal(rng) * exp(nb_rng_normal(rng)));
    }
}

/* The tile at (r, c): cut out, encoded on its own, and put back. */
static void brute_force(const nb_dialect_rule *rule, int tile, const float *x, int64_t n_rows,
                        int64_t n, float *out)
{
    for (int64_t r = 0; r < n_rows; r += tiles[tile].rows) {
        for (int64_t c = 0; c < n; c += tiles[tile].cols) {
            float values[64];
            uint8_t codes[64];
            int k = 0;
            for (int64_t i = r; i < r + tiles[tile].rows && i < n_rows; i++) {
                for (int64_t j = c; j < c + tiles[tile].cols && j < n; j++) {
                    values[k++] = x[i * n + j];
                }
            }
            nb_dialect d = encode(rule, values, k, codes);
            k = 0;
            for (int64_t i = r; i < r + tiles[tile].rows && i < n_rows; i++) {
                for (int64_t j = c; j < c + tiles[tile].cols && j < n; j++) {
                    out[i * n + j] = (float)value_of(d, codes[k++]);
                }
            }
        }
    }
}

static void test_words(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(tiles); i++) {
        nb_format f = format_of(tiles[i].word);
        assert_string_equal(f.word, tiles[i].word);
        assert_int_equal(f.tile, tiles[i].rows);
        assert_int_equal(f.group, tiles[i].cols);
        assert_int_equal(f.family->uses(&f), NB_FOR_WEIGHTS | NB_FOR_ACTS);
    }
    static const char *const bad[] = {"dialect:8x4", "dialect:4x16", "dialect:4x8:", "dialect:4x",
                                      "dialect:4x8:2s:mse"};
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        nb_format f;
        assert_int_equal(nb_format_parse(&f, bad[i], NULL), NB_EUSAGE);
    }
}

static nb_status run_job(const nb_format *f, const char *method, float *w, nb_matrix *m,
                         nb_error *err)
{
    static uint8_t bytes[3][ROWS * COLS];
    static float clip[2][ROWS * COLS];
    for (int i = 0; i < ROWS * COLS; i++) clip[0][i] = clip[1][i] = 1;
    nb_step step;
    nb_job job = {.name = "layers.0.q", .format = f, .n_out = ROWS, .n_in = COLS, .w = w};
    job.threads = 3, job.clip_lo = clip[0], job.clip_hi = clip[1];
    *m = (nb_matrix){.format = *f, .n_out = ROWS, .n_in = COLS};
    for (int i = 0; i < 3; i++) m->plane[i] = job.plane[i] = bytes[i];
    assert_int_equal(nb_step_parse(&step, method, NULL), NB_OK);
    return nb_job_run(&job, &step, 1, err);
}

static void test_weights(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {1};
    for (int i = 0; i < (int)NB_COUNT(tiles); i++) {
        float w[ROWS * COLS], want[ROWS * COLS], got[ROWS * COLS];
        nb_format f = format_of(tiles[i].word);
        nb_matrix m;
        nb_error err = {0};
        fill_matrix(&rng, w, ROWS * COLS);
        assert_int_equal(run_job(&f, "nearest", w, &m, &err), NB_OK);
        nb_matrix_dequant(&m, 0, ROWS, got);
        brute_force(&rule_mse, i, w, ROWS, COLS, want);
        assert_memory_equal(got, want, sizeof got);
        assert_int_equal(run_job(&f, "mse", w, &m, &err), NB_EUSAGE);
        assert_non_null(strstr(err.message, "layers.0.q: step \"mse\""));
        assert_int_equal(run_job(&f, "gptq", w, &m, &err), NB_EUSAGE);
    }
}

static void check_backend(const char *device, int i, const float *x, int64_t n_rows,
                          const float *want, int64_t nonfinite)
{
    nb_options opt = {.device = device, .threads = 2, .cpumask = ~0u};
    nb_backend *be;
    float got[ROWS * COLS];
    assert_int_equal(nb_backend_create(&be, &opt, NULL), NB_OK);
    assert_int_equal(online_values(be, tiles[i].word, x, n_rows, COLS, got), nonfinite);
    for (int64_t k = 0; k < n_rows * COLS; k++) assert_true(got[k] == want[k]);
    nb_backend_free(be);
}

static void test_activations(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"ref", "ref64", "cpu"};
    nb_rng rng = {2};
    for (int i = 0; i < (int)NB_COUNT(tiles); i++) {
        for (int64_t n = 1; n <= ROWS; n += 7) {
            float x[ROWS * COLS], want[ROWS * COLS];
            fill_matrix(&rng, x, ROWS * COLS);
            brute_force(&rule_2s, i, x, n, COLS, want);
            for (int k = 0; k < 3; k++) check_backend(devices[k], i, x, n, want, 0);
            nb_format f = format_of(tiles[i].word);
            assert_int_equal(nb_fake_quant_rows(&f, x, COLS, n, COLS, x, COLS), 0); /* in place */
            assert_memory_equal(x, want, (size_t)(n * COLS) * sizeof *x);
        }
    }
    nb_format f = format_of("dialect:4x8");
    float x[4 * 8] = {1, INFINITY, [17] = NAN};
    assert_int_equal(nb_fake_quant_rows(&f, x, 8, 4, 8, x, 8), 2);
    for (int k = 0; k < 32; k++) assert_true(isfinite(x[k]));
}

/* Independent values do not see the shape: the figures of spec 2.3 for as many values in a row. */
static void test_loss(void **state)
{
    NB_UNUSED(state);
    enum { N = 1024 };
    static const double expected[3] = {8.25, 9.68, 10.72};
    static float x[N * N], y[N * N];
    nb_rng rng = {3};
    for (int i = 0; i < N * N; i++) x[i] = (float)nb_rng_normal(&rng);
    for (int i = 0; i < (int)NB_COUNT(tiles); i++) {
        nb_format f = format_of(tiles[i].word);
        double error = 0, power = 0;
        nb_fake_quant_rows(&f, x, N, N, N, y, N);
        for (int k = 0; k < N * N; k++) {
            error += ((double)x[k] - (double)y[k]) * ((double)x[k] - (double)y[k]);
            power += (double)x[k] * (double)x[k];
        }
        print_message("  %s: %.3f\n", tiles[i].word, 1000 * error / power);
        assert_true(fabs(1000 * error / power / expected[i] - 1) < 0.015);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
