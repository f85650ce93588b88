/* What linears make of their input, in every format that has one rule for it: backends have the
 * bits of "ref". */
#include "cuda_util.h"
#include "dialect_util.h"
#include "op/common.h"

enum { ROWS = 13, COLS = 150, EACH = 64 /* inputs per format */ };

static const char *const words[] = {
    "dialect:b16",     "dialect:b32", "dialect:b64",  "dialect:b128",    "dialect:b32:mse",
    "dialect:b16:bd5", "dialect:4x4", "dialect:4x8",  "dialect:8x8:mse", "mxfp4",
    "mxfp4:ceil",      "mxfp6",       "mxfp6e3m2",    "mxfp8",           "mxfp8e5m2",
    "mxint8",          "mxint8:ceil", "nvfp4",        "nvfp4:46",        "int4:token",
    "int8:token:asym", "fp8:token",   "fp8e5m2:token"};

/* Blocks of all sizes, with zeros and ties. */
static void fill_input(nb_rng *rng, float *x)
{
    int size = 0;
    for (int64_t i = 0; i < ROWS * COLS; i++) {
        if (i % 16 == 0) size = (int)(nb_rng_next(rng) % 5);
        double y = nb_rng_normal(rng);
        x[i] = (float)(size == 0   ? 0
                       : size == 1 ? rint(4 * y) / 4
                                   : y * exp(3 * nb_rng_normal(rng)));
        if (size == 4 && i % 7 == 0) x[i] *= 0x1p-140f;
    }
}

static void compare(const char *device, unsigned mask, const char *word)
{
    nb_options opt = {.device = device, .threads = 2, .cpumask = mask}, of_ref = {.device = "ref"};
    nb_backend *be, *ref;
    nb_rng rng = {5};
    of_ref.threads = 1;
    assert_int_equal(nb_backend_create(&be, &opt, NULL), NB_OK);
    assert_int_equal(nb_backend_create(&ref, &of_ref, NULL), NB_OK);
    for (int i = 0; i < EACH; i++) {
        static float x[ROWS * COLS], got[ROWS * COLS], want[ROWS * COLS];
        fill_input(&rng, x);
        bool bad = i % 8 == 7 && strncmp(word, "dialect", 7) == 0;
        if (bad) x[i] = INFINITY, x[i + COLS] = -NAN, x[i + COLS + 1] = -INFINITY;
        int64_t n = online_values(ref, word, x, ROWS, COLS, want);
        assert_int_equal(n, bad ? 3 : 0);
        assert_int_equal(online_values(be, word, x, ROWS, COLS, got), n);
        for (int k = 0; k < ROWS * COLS; k++) {
            if (got[k] == want[k]) continue;
            fail_msg("%s %s: %d: [%d, %d] %a becomes %a, expected %a", device, word, i, k / COLS,
                     k % COLS, (double)x[k], (double)got[k], (double)want[k]);
        }
    }
    nb_backend_free(be), nb_backend_free(ref);
}

static void test_backends_agree(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        compare("cpu", ~0u, words[i]);
        compare("cpu", 0, words[i]);
        if (has_cuda()) compare("cuda", ~0u, words[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_backends_agree)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
