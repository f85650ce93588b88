/* Learned rounding: the loss falls, what is stored is what was trained, to the bit, and what a run
 * promises when things go wrong. Gradients: test_straight.c (rounding), test_omniquant.c (block).
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "calib/calib.h"
#include "omni_fixture.h"
#include "tiny_model.h"

static const omni_variant w2 = {"llama", 32,    4,     2,          8,    48,
                                false,   false, false, "int2:g16", NULL, NULL};
static const omni_variant w4a4 = {
    "llama",          32, 4, 2, 8, 48, false, false, false, "int4:row", "int4:token:asym",
    "int4:token:asym"};

static const char *const words[] = {"int2:g16", "int3:row", "int4:row:sym", "int3:g8:f32",
                                    "fp4:g16",  "mxfp4",    "dialect:b32"};

static nb_step parse_step(const char *word)
{
    nb_step step;
    nb_error err = {0};
    if (nb_step_parse(&step, word, &err) != NB_OK) fail_msg("%s", err.message);
    return step;
}

static nb_status run(omni_fixture *f, const char *word, nb_error *err)
{
    nb_step step = parse_step(word);
    memcpy(f->option, step.option, sizeof f->option);
    return step.method->run_block(&f->job, err);
}

static json_t *reported(const omni_fixture *f, const char *key)
{
    return json_object_get(json_object_get(f->job.report, "signround"), key);
}

static double number(const omni_fixture *f, const char *key)
{
    return json_number_value(reported(f, key));
}

static const char *kept(const omni_fixture *f) { return json_string_value(reported(f, "kept")); }

/* ---- what is stored ----------------------------------------------------------------------- */

/* The weight of a linear through the step's second half, into back [n_out, n_in]. */
static void store(omni_fixture *f, nb_role r, float *back)
{
    const nb_host_linear *l = &f->block.linear[r];
    nb_step step = parse_step("signround");
    nb_plane_spec spec[NB_MAX_PLANES];
    int64_t n = l->w.n_in, groups = nb_format_groups(&f->weights[r], n);
    nb_job job = {.name = l->name,
                  .format = &f->weights[r],
                  .n_out = l->w.n_out,
                  .n_in = n,
                  .w = nb_block_weight(&f->job, r),
                  .clip_lo = f->job.clip_lo[r],
                  .clip_hi = f->job.clip_hi[r],
                  .offset = f->job.offset[r],
                  .threads = 2};
    nb_matrix m = {.format = f->weights[r], .n_out = l->w.n_out, .n_in = n};
    int n_planes = f->weights[r].family->planes(&f->weights[r], n, spec);
    assert_true(groups > 0);
    for (int i = 0; i < n_planes; i++) {
        job.plane[i] = nb_arena_alloc(f->arena, (size_t)l->w.n_out, (size_t)spec[i].row_bytes);
        m.plane[i] = job.plane[i];
    }
    assert_int_equal(nb_job_run(&job, &step, 1, NULL), NB_OK);
    nb_matrix_dequant(&m, 0, m.n_out, back);
}

/* As training sees it. */
static void simulate(omni_fixture *f, nb_role r, float *out)
{
    const nb_matrix *m = &f->block.linear[r].w;
    int64_t groups = nb_format_groups(&f->weights[r], m->n_in);
    nb_view w = omni_view(f, m->n_out, m->n_in), v = omni_view(f, m->n_out, m->n_in);
    nb_view hi = omni_view(f, m->n_out, groups), lo = omni_view(f, m->n_out, groups);
    f->be->ops->upload(f->be, w, m->plane[0], NB_F32);
    f->be->ops->upload(f->be, v, f->job.offset[r], NB_F32);
    f->be->ops->upload(f->be, hi, f->job.clip_hi[r], NB_F32);
    f->be->ops->upload(f->be, lo, f->job.clip_lo[r], NB_F32);
    f->be->ops->round_forward(f->be, w, w, v, hi, lo, &f->weights[r]);
    f->be->ops->download(f->be, w, out, NB_F32);
}

static double loss_as_it_is(omni_fixture *f)
{
    nb_format keep[NB_N_ROLES];
    nb_trainer t;
    nb_trainer_options o = {.step = "test"};
    double loss;
    memcpy(keep, f->weights, sizeof keep);
    memset(f->weights, 0, sizeof f->weights);
    assert_int_equal(nb_trainer_create(&t, &f->job, &o, NULL), NB_OK);
    assert_int_equal(nb_trainer_loss(&t, &loss, NULL), NB_OK);
    nb_trainer_free(&t);
    memcpy(f->weights, keep, sizeof keep);
    return loss;
}

static void test_stored_as_trained(void **state)
{
    NB_UNUSED(state);
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        omni_variant v = w4a4;
        omni_fixture f;
        v.weights = words[k];
        omni_begin(&f, &v, "cpu", 1);
        assert_int_equal(run(&f, "signround:iters=12:lr=0.05:batch=2", NULL), NB_OK);
        assert_string_equal(kept(&f), "trained");
        float back[NB_N_ROLES][48 * 32], seen[48 * 32];
        for (int r = 0; r < NB_N_ROLES; r++) store(&f, (nb_role)r, back[r]);
        for (int r = 0; r < NB_N_ROLES; r += NB_N_ROLES - 1) { /* the fixture has so many buffers */
            simulate(&f, (nb_role)r, seen);
            int64_t n = f.block.linear[r].w.n_out * f.block.linear[r].w.n_in;
            assert_memory_equal(seen, back[r], (size_t)n * sizeof *seen);
        }
        for (int r = 0; r < NB_N_ROLES; r++) {
            int64_t n = f.block.linear[r].w.n_out * f.block.linear[r].w.n_in;
            memcpy(nb_block_weight(&f.job, (nb_role)r), back[r], (size_t)n * sizeof(float));
        }
        assert_true(loss_as_it_is(&f) == number(&f, "loss_best"));
        omni_end(&f);
    }
}

/* A run of the whole loop with a step: relative output error of the first block as it is stored,
 * *before and *after: losses that training saw. */
static double run_loop(const char *root, const char *method, double *before, double *after)
{
    char model[160], out[160], path[200];
    snprintf(model, sizeof model, "%s", tiny_path(root, "model"));
    snprintf(out, sizeof out, "%s", tiny_path(root, method));
    snprintf(path, sizeof path, "%s/report.json", out);
    const char *text = tiny_path(root, "text.txt");
    nb_quantize_options opt;
    nb_quantize_result result;
    nb_error err = {0};
    nb_quantize_options_default(&opt);
    opt.model = model;
    opt.out = out;
    opt.weights = "int3:g32";
    opt.method = method;
    opt.calib = &text;
    opt.n_calib = 1;
    opt.samples = 3;
    opt.seqlen = 32;
    opt.run.threads = 1;
    if (nb_calib_run(&opt, &result, &err) != NB_OK) fail_msg("%s", err.message);
    json_t *report = json_load_file(path, 0, NULL);
    json_t *line = json_array_get(json_object_get(report, "shards"), 1);
    json_t *step = json_object_get(json_object_get(line, "steps"), "signround");
    double error = json_number_value(json_object_get(line, "output_error"));
    *before = json_number_value(json_object_get(step, "loss_start"));
    *after = json_number_value(json_object_get(step, "loss_best"));
    json_decref(report);
    return error;
}

/* The stored block has the error that training saw: the first one's input is the source's. */
static void test_whole_loop(void **state)
{
    NB_UNUSED(state);
    char root[] = "/tmp/nibble-signround-XXXXXX";
    double before, after;
    assert_non_null(mkdtemp(root));
    assert_true(tiny_model_write(tiny_path(root, "model"), 1, NULL));
    assert_true(tiny_write_text(root, "text.txt"));
    double nearest = run_loop(root, "nearest", &before, &after);
    double learned = run_loop(root, "signround:iters=20", &before, &after);
    assert_true(after < 0.9 * before);
    assert_true(fabs(learned / nearest - after / before) < 1e-4 * after / before);
    assert_int_equal(nb_remove_tree(root, NULL), NB_OK);
}

/* ---- learning ----------------------------------------------------------------------------- */

static void test_loss_falls(void **state)
{
    NB_UNUSED(state);
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        omni_variant v = k % 2 ? w4a4 : w2;
        omni_fixture f;
        v.weights = words[k];
        omni_begin(&f, &v, "cpu", 1);
        assert_int_equal(run(&f, "signround:iters=40", NULL), NB_OK);
        assert_string_equal(kept(&f), "trained");
        assert_true(number(&f, "loss_best") < 0.8 * number(&f, "loss_start"));
        assert_true(number(&f, "steps") == 40);
        assert_int_equal(json_array_size(reported(&f, "losses")), 10);
        assert_true(f.ticks >= 40 * OMNI_WINDOWS);
        assert_int_equal(nb_block_check(&f.job, "trained", NULL), NB_OK);
        omni_end(&f);
    }
}

/* No steps: what the clip step before it has left, rounded to nearest. */
static void test_no_steps(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    omni_begin(&f, &w2, "cpu", 1);
    f.job.clip_hi[NB_UP][3] = 0.75f;
    assert_int_equal(run(&f, "signround:iters=0", NULL), NB_OK);
    assert_string_equal(kept(&f), "start");
    assert_true(number(&f, "loss_best") == number(&f, "loss_start"));
    assert_true(f.job.clip_hi[NB_UP][3] == 0.75f && f.job.clip_hi[NB_UP][2] == 1);
    for (int i = 0; i < 48 * 32; i++) assert_true(f.job.offset[NB_UP][i] == 0);
    omni_end(&f);
}

/* Passes of one window, added up, are a pass of all. */
static void test_accumulation(void **state)
{
    NB_UNUSED(state);
    static float dv[2][48 * 32];
    double loss[2];
    for (int k = 0; k < 2; k++) {
        omni_fixture f;
        nb_trainer t;
        nb_trainer_options o = {.step = "test", .rounding = true, .batch = 8, .unit_tokens = true};
        bool finite;
        omni_begin(&f, &w2, "ref64", 1);
        f.job.batch = k ? OMNI_WINDOWS : 1;
        assert_int_equal(nb_trainer_create(&t, &f.job, &o, NULL), NB_OK);
        assert_int_equal(t.at_once, f.job.batch);
        assert_int_equal(nb_trainer_reset(&t, NB_LWC_JOB, true, NULL), NB_OK);
        assert_int_equal(nb_trainer_gradient(&t, 0, OMNI_WINDOWS, &loss[k], &finite, NULL), NB_OK);
        assert_true(finite);
        f.be->ops->download(f.be, t.rounding.dv[NB_GATE], dv[k], NB_F32);
        nb_trainer_free(&t);
        omni_end(&f);
    }
    assert_true(fabs(loss[0] - loss[1]) < 1e-12 * loss[0]);
    float top = 0;
    for (int i = 0; i < 48 * 32; i++) top = fmaxf(top, fabsf(dv[0][i]));
    for (int i = 0; i < 48 * 32; i++) assert_true(fabsf(dv[0][i] - dv[1][i]) <= 1e-6f * top);
    assert_true(top > 0);
}

static void test_thread_count(void **state)
{
    NB_UNUSED(state);
    static float offset[3][48 * 32], clip[3][48];
    for (int k = 0; k < 3; k++) {
        omni_fixture f;
        omni_begin(&f, &w4a4, "cpu", k + 1);
        assert_int_equal(run(&f, "signround:iters=6:batch=2", NULL), NB_OK);
        memcpy(offset[k], f.job.offset[NB_UP], sizeof offset[k]);
        memcpy(clip[k], f.job.clip_hi[NB_UP], sizeof clip[k]);
        omni_end(&f);
    }
    for (int k = 1; k < 3; k++) {
        assert_memory_equal(offset[0], offset[k], sizeof offset[0]);
        assert_memory_equal(clip[0], clip[k], sizeof clip[0]);
    }
}

/* ---- when things go wrong ------------------------------------------------------------------ */

/* A rate that throws every offset to an end: what is kept is no worse than nearest. */
static void test_wild_rate(void **state)
{
    NB_UNUSED(state);
    static const char *const wild[] = {"signround:iters=5:lr=1", "signround:iters=5:lr=1:batch=1"};
    for (int k = 0; k < 2; k++) {
        omni_fixture f;
        omni_begin(&f, &w4a4, "cpu", 1);
        assert_int_equal(run(&f, wild[k], NULL), NB_OK);
        bool better = number(&f, "loss_best") < number(&f, "loss_start");
        assert_string_equal(kept(&f), better ? "trained" : "start");
        if (!better) {
            for (int i = 0; i < 48 * 32; i++) assert_true(f.job.offset[NB_UP][i] == 0);
        }
        assert_int_equal(nb_block_check(&f.job, "trained", NULL), NB_OK);
        omni_end(&f);
    }
}

static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    nb_error err = {0};
    float nan = NAN;
    omni_begin(&f, &w2, "cpu", 1);
    f.be->ops->upload(f.be, nb_view_cols(nb_view_rows(omni_all(f.job.target), 2, 1), 3, 1), &nan,
                      NB_F32);
    assert_int_equal(run(&f, "signround:iters=2", &err), NB_ENUMERIC);
    assert_non_null(strstr(err.message, "blk.0"));
    omni_end(&f);
}

/* Targets whose gradient overflows in fp32 while the loss does not. */
static void test_faults(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    float target[OMNI_R * 32];
    for (int i = 0; i < OMNI_R * 32; i++) target[i] = i % 3 ? 3e38f : -3e38f;
    omni_begin(&f, &w4a4, "cpu", 1);
    f.be->ops->upload(f.be, omni_all(f.job.target), target, NB_F32);
    float *norm = (float *)(uintptr_t)f.block.norm[NB_NORM_FFN].weight;
    for (int i = 0; i < 32; i++) norm[i] *= 1e4f;
    assert_int_equal(run(&f, "signround:iters=9", NULL), NB_OK);
    json_t *faults = reported(&f, "fallbacks");
    assert_int_equal(json_array_size(faults), 3);
    json_t *last = json_array_get(faults, 2);
    assert_true(json_integer_value(json_object_get(last, "step")) == 3);
    assert_non_null(strstr(json_string_value(json_object_get(last, "not_finite")), "blk.0"));
    assert_string_equal(kept(&f), "start");
    omni_end(&f);
}

static void test_refused(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    omni_begin(&f, &w2, "cpu", 1);
    omni_parse(&f.acts[NB_K], "int8:token");
    assert_int_equal(run(&f, "signround:iters=1", NULL), NB_EUSAGE);
    omni_parse(&f.acts[NB_K], NULL);
    omni_parse(&f.weights[NB_UP], "fp4:g16:m2:matrix");
    assert_int_equal(run(&f, "signround:iters=1", NULL), NB_EUSAGE);
    omni_end(&f);
    omni_begin(&f, &w2, "cpu", 1);
    f.job.offset[NB_V][5] = 0.75f;
    assert_int_equal(nb_block_check(&f.job, "moved", NULL), NB_ENUMERIC);
    f.job.offset[NB_V][5] = NAN;
    assert_int_equal(nb_block_check(&f.job, "moved", NULL), NB_ENUMERIC);
    omni_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stored_as_trained), cmocka_unit_test(test_loss_falls),
        cmocka_unit_test(test_no_steps),          cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_thread_count),      cmocka_unit_test(test_wild_rate),
        cmocka_unit_test(test_not_finite),        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_refused),           cmocka_unit_test(test_whole_loop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
