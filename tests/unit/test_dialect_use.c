/* Which dialects a matrix uses: blocks made for a dialect each, rounded as a model is, and counted
 * from their planes. */
#include "dialect_util.h"
#include "format/dialect.h"
#include "method/method.h"

/* 136 = 1 + 2 + ... + 16 blocks: t + 1 of dialect t, so that no two numbers are the same. An odd
 * number of groups leaves half a byte behind the ids of a row. */
enum { STRIPS = 8, GROUPS = 17, COLS_MAX = GROUPS * 128, ROWS_MAX = STRIPS * 8 };

static uint8_t bytes[3][ROWS_MAX * COLS_MAX];
static float w[ROWS_MAX * COLS_MAX], clip[2][STRIPS * GROUPS * 8];

static int dialect_of_block(int64_t k)
{
    int t = 0;
    while ((t + 1) * (t + 2) / 2 <= k) t++;
    return t;
}

/* Blocks are made of the three largest magnitudes of their dialect, which no other has all of. The
 * last group of a row has 3 values, and the last strip lacks a row where blocks have several. */
static void fill_matrix(const nb_format *f, int64_t n_out, int64_t n_in)
{
    int64_t tile = f->tile > 0 ? f->tile : 1;
    for (int64_t r = 0; r < n_out; r++) {
        for (int64_t i = 0; i < n_in; i++) {
            int64_t in_block = i % f->group, k = r / tile * GROUPS + i / f->group;
            int half = nb_dialect_half[dialect_of_block(k)][7 - in_block % 3];
            w[r * n_in + i] = (float)ldexp(in_block % 2 ? half : -half, (int)(k % 9) - 4);
        }
    }
}

static void round_matrix(const nb_format *f, int64_t n_out, int64_t n_in, nb_matrix *m)
{
    nb_step step;
    nb_error err;
    nb_job job = {.name = "w", .format = f, .n_out = n_out, .n_in = n_in, .w = w, .threads = 2};
    *m = (nb_matrix){.format = *f, .n_out = n_out, .n_in = n_in};
    for (int i = 0; i < 3; i++) m->plane[i] = job.plane[i] = bytes[i];
    for (size_t i = 0; i < NB_COUNT(clip[0]); i++) clip[0][i] = clip[1][i] = 1;
    job.clip_lo = clip[0], job.clip_hi = clip[1];
    assert_int_equal(nb_step_parse(&step, "nearest", NULL), NB_OK);
    if (nb_job_run(&job, &step, 1, &err) != NB_OK) fail_msg("%s", err.message);
}

/* Bits behind the last id mean nothing. */
static void spoil_padding(const nb_format *f, int64_t n_out, int64_t n_in)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    assert_int_equal(f->family->planes(f, n_in, spec), 3);
    for (int64_t r = 0; r < n_out; r++) bytes[2][(r + 1) * spec[2].row_bytes - 1] |= 0xf0;
}

static void test_counts(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"dialect:b16",  "dialect:b32",    "dialect:b64",
                                        "dialect:b128", "dialect:4x4",    "dialect:4x8",
                                        "dialect:8x8",  "dialect:b32:bd5"};
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        nb_format f = format_of(words[i]);
        nb_matrix m;
        int64_t count[NB_DIALECTS] = {[15] = 1000}; /* added to, not set */
        int64_t n_out = f.tile > 0 ? STRIPS * f.tile - 1 : STRIPS;
        int64_t n_in = (GROUPS - 1) * f.group + 3;
        fill_matrix(&f, n_out, n_in);
        round_matrix(&f, n_out, n_in, &m);
        spoil_padding(&f, n_out, n_in);
        nb_dialect_count(&m, count);
        for (int t = 0; t < NB_DIALECTS; t++) {
            assert_int_equal(count[t], t + 1 + (t == 15) * 1000);
        }
    }
}

static void test_others(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int4:g32", "mxfp4", "nvfp4", "f32"};
    memset(bytes, 0x77, sizeof bytes);
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        nb_matrix m = {.format = format_of(words[i]), .n_out = 4, .n_in = 64};
        for (int p = 0; p < 3; p++) m.plane[p] = bytes[p];
        int64_t count[NB_DIALECTS] = {0};
        nb_dialect_count(&m, count);
        for (int t = 0; t < NB_DIALECTS; t++) assert_int_equal(count[t], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
