/* The training step: gradients of every parameter, equivalence of what is folded, and what a run
 * promises. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "method/trainer_state.h"
#include "omni_fixture.h"
#include "omni_ref.h"

enum { LWC, LET, AUG, SHIFT, LWC_LR, LET_LR, ALPHA };

static const omni_variant variants[] = {
    {"llama", 12, 4, 2, 4, 20, false, false, false, "int3:row", "int4:token:asym",
     "int4:token:asym"},
    {"llama", 12, 3, 1, 4, 20, false, false, false, "int2:g8", NULL, NULL},
    {"llama", 12, 4, 2, 6, 16, true, false, true, "int4:g8", "int6:token:asym", "int6:token:asym"},
    {"qwen3", 12, 4, 2, 6, 20, false, false, true, NULL, "int6:token:asym", "int4:token:asym"},
    {"qwen2", 12, 4, 2, 4, 16, true, false, false, "int4:g8", "int6:token:asym", "int6:token:asym"},
    {"qwen3", 12, 4, 2, 6, 20, false, false, false, "int4:row", "int6:token:asym",
     "int4:token:asym"},
    {"opt", 12, 3, 3, 4, 20, true, false, false, "int3:g8", "int4:token:asym", "int6:token:asym"},
    {"opt", 12, 3, 3, 4, 20, true, false, false, "int4:row", "int6:token:asym", NULL},
    {"llama", 12, 4, 2, 4, 20, false, false, false, NULL, "int3:token:asym", "int4:token:asym"},
    {"qwen3", 12, 4, 2, 6, 20, false, false, false, NULL, "int4:token:asym", "int3:token:asym"},
    {"opt", 12, 3, 3, 4, 20, true, false, false, NULL, "int4:token:asym", "int3:token:asym"},
};

static nb_trainer_options all_options(const omni_fixture *f)
{
    bool layer = f->cfg.family->norm == NB_NORM_LAYER;
    nb_trainer_options o = {.lwc = true, .let = true, .start = {.alpha = 0.5, .shift = layer}};
    o.start.pair[NB_LET_QKV] = o.start.pair[NB_LET_OUT] = o.start.pair[NB_LET_FC1] = true;
    o.start.pair[NB_LET_QKT] = nb_format_is_quantized(&f->attn.q);
    return o;
}

/* Random parameters in the trainer and, the same, in the reference. */
static void randomize(nb_trainer *t, ref_theta *theta, nb_rng *rng)
{
    memset(theta, 0, sizeof *theta);
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        for (int i = 0; i < 64; i++) theta->scale[p][i] = 1;
        for (int64_t i = 0; t->let.scale[p] && i < t->let.width[p]; i++) {
            double s = 0.5 + 1.5 * nb_rng_uniform(rng);
            theta->scale[p][i] = t->let.scale[p][i] = nb_rng_uniform(rng) < 0.1 ? -s : s;
            if (t->let.shift[p]) theta->shift[p][i] = t->let.shift[p][i] = 0.3 * nb_rng_normal(rng);
        }
    }
    nb_backend *be = t->job->be;
    for (int r = 0; r < NB_N_ROLES; r++) {
        int64_t n = t->lwc.hi[r].buf ? t->lwc.hi[r].rows * t->lwc.hi[r].cols : 0;
        assert_true(n <= REF_WIDE);
        for (int64_t i = 0; i < n; i++) {
            theta->hi[r][i] = (double)(float)(2 + nb_rng_normal(rng));
            theta->lo[r][i] = (double)(float)(2 + nb_rng_normal(rng));
        }
        if (n) be->ops->upload(be, t->lwc.hi[r], theta->hi[r], NB_F64);
        if (n) be->ops->upload(be, t->lwc.lo[r], theta->lo[r], NB_F64);
    }
}

static double difference(ref_block *b, double *p)
{
    const double h = 1e-5, keep = *p;
    *p = keep + h;
    double up = ref_loss(b);
    *p = keep - h;
    double down = ref_loss(b);
    *p = keep;
    return (up - down) / (2 * h);
}

/* Errors relative to the largest component, and absolute. */
static void check_gradient(ref_block *b, double *param, const double *got, int64_t n,
                           double relative, double absolute)
{
    double *want = calloc((size_t)n, sizeof *want), top = 0;
    for (int64_t i = 0; i < n; i++) {
        want[i] = difference(b, param + i);
        top = fmax(top, fabs(want[i]));
    }
    for (int64_t i = 0; i < n; i++) {
        assert_true(fabs(got[i] - want[i]) <= relative * top + absolute);
    }
    assert_true(top > 1e-6);
    free(want);
}

/* Of what the backend decides and stores in fp32. */
#define RELATIVE 4e-6
#define ABSOLUTE 1e-9

/* Producer rows see the step of a weight as proportional to the row (specification, section 7.5);
 * it is, but for its rounding to fp16, which the differences see. */
static void check_let_gradients(nb_trainer *t, ref_block *b, ref_theta *theta)
{
    bool rounded = nb_format_is_quantized(&t->job->weights[NB_V]);
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        bool rows = rounded && (p == NB_LET_OUT || p == NB_LET_QKT);
        if (!t->let.scale[p]) continue;
        const double *g = t->let.grad + (t->let.scale[p] - t->let.param);
        int64_t n = t->let.width[p];
        check_gradient(b, theta->scale[p], g, n, rows ? 1e-2 : RELATIVE, rows ? 5e-5 : ABSOLUTE);
        if (t->let.shift[p]) check_gradient(b, theta->shift[p], g + n, n, RELATIVE, ABSOLUTE);
    }
}

static void check_lwc_gradients(nb_trainer *t, ref_block *b, ref_theta *theta)
{
    double g[REF_WIDE];
    nb_backend *be = t->job->be;
    for (int r = 0; r < NB_N_ROLES; r++) {
        nb_view hi = t->lwc.dhi[r], lo = t->lwc.dlo[r];
        if (!hi.buf) continue;
        be->ops->download(be, hi, g, NB_F64);
        check_gradient(b, theta->hi[r], g, hi.rows * hi.cols, RELATIVE, ABSOLUTE);
        be->ops->download(be, lo, g, NB_F64);
        check_gradient(b, theta->lo[r], g, lo.rows * lo.cols, RELATIVE, ABSOLUTE);
    }
}

static void test_gradients(void **state)
{
    NB_UNUSED(state);
    static ref_frozen frozen;
    static ref_theta theta;
    for (size_t k = 0; k < NB_COUNT(variants); k++) {
        omni_fixture f;
        nb_trainer t;
        nb_rng rng = {k + 1};
        omni_begin(&f, &variants[k], "ref64", 1);
        nb_trainer_options o = all_options(&f);
        o.aug = k % 2;
        o.unit_tokens = k % 3 == 0;
        f.job.batch = OMNI_WINDOWS;
        assert_int_equal(nb_trainer_create(&t, &f.job, &o, NULL), NB_OK);
        randomize(&t, &theta, &rng);
        ref_block b = {
            .f = &f, .t = &theta, .frozen = &frozen, .aug = o.aug, .unit = o.unit_tokens};
        if (o.aug) {
            double own[OMNI_R * 12];
            f.be->ops->download(f.be, omni_all(t.own), own, NB_F64);
            for (int i = 0; i < OMNI_R * 12; i++) b.own[i / 12][i % 12] = own[i];
        }
        double loss;
        bool finite;
        assert_int_equal(nb_trainer_gradient(&t, 0, OMNI_WINDOWS, &loss, &finite, NULL), NB_OK);
        assert_true(finite);
        frozen.recording = true;
        double want = ref_loss(&b);
        frozen.recording = false;
        assert_true(fabs(loss - want) < 1e-6 * want);
        check_let_gradients(&t, &b, &theta);
        check_lwc_gradients(&t, &b, &theta);
        nb_trainer_free(&t);
        omni_end(&f);
    }
}

/* ---- equivalence ---------------------------------------------------------------------------- */

/* With nothing quantized and random parameters, on the device and folded. */
static void check_equivalence(const omni_variant *v, const char *device, double tolerance)
{
    static ref_theta theta;
    omni_fixture f;
    nb_trainer t;
    nb_rng rng = {5};
    double want[OMNI_R * 12], got[OMNI_R * 12], loss;
    omni_begin(&f, v, device, 1);
    nb_trainer_options o = all_options(&f);
    o.start.pair[NB_LET_QKT] = true;
    o.start.pair[NB_LET_QKV] = o.start.pair[NB_LET_FC1] = !v->post_norm;
    nb_view x = omni_all(f.job.x_stored), out = omni_view(&f, OMNI_R, v->embd);
    f.job.x_stored = f.job.x_source;
    assert_int_equal(nb_trainer_create(&t, &f.job, &o, NULL), NB_OK);
    randomize(&t, &theta, &rng);
    assert_int_equal(nb_trainer_loss(&t, &loss, NULL), NB_OK);
    assert_true(sqrt(loss) < tolerance * 8); /* the largest output is near 8 */
    omni_run_block(&f, out, x, false);
    f.be->ops->download(f.be, out, want, NB_F64);
    assert_int_equal(nb_let_fold(&t.let, &f.job, NULL), NB_OK);
    omni_run_block(&f, out, x, false);
    f.be->ops->download(f.be, out, got, NB_F64);
    for (int i = 0; i < OMNI_R * v->embd; i++) { /* folded in fp32 */
        assert_true(fabs(got[i] - want[i]) < 1e-5 * (1 + fabs(want[i])));
    }
    nb_trainer_free(&t);
    omni_end(&f);
}

static void test_equivalence(void **state)
{
    NB_UNUSED(state);
    static const omni_variant plain[] = {
        {"llama", 12, 4, 2, 4, 20, false, false, false, NULL, NULL, NULL},
        {"llama", 12, 4, 2, 4, 20, true, false, true, NULL, NULL, NULL},
        {"qwen3", 12, 4, 2, 6, 20, false, false, true, NULL, NULL, NULL},
        {"qwen2", 12, 4, 4, 4, 20, true, false, false, NULL, NULL, NULL},
        {"qwen3", 12, 4, 2, 6, 20, false, false, false, NULL, NULL, NULL},
        {"opt", 12, 3, 3, 4, 20, true, false, false, NULL, NULL, NULL},
        {"opt", 12, 3, 3, 4, 20, true, true, false, NULL, NULL, NULL},
    };
    for (size_t i = 0; i < NB_COUNT(plain); i++) {
        check_equivalence(&plain[i], "ref64", 1e-12);
        check_equivalence(&plain[i], "ref", 1e-5);
        check_equivalence(&plain[i], "cpu", 1e-5);
    }
}

/* ---- runs ----------------------------------------------------------------------------------- */

static const omni_variant w4a4 = {
    "llama",          32, 4, 2, 8, 48, false, false, false, "int4:row", "int4:token:asym",
    "int4:token:asym"};
static const omni_variant w2 = {"llama", 32,    4,     2,          8,    48,
                                false,   false, false, "int2:g16", NULL, NULL};

/* Runs a step word; the block's linears and clips are left in f. */
static nb_status run(omni_fixture *f, const char *word, int epochs, nb_error *err)
{
    nb_step step;
    assert_int_equal(nb_step_parse(&step, word, NULL), NB_OK);
    memcpy(f->option, step.option, sizeof f->option);
    f->job.epochs = epochs;
    return step.method->run_block(&f->job, err);
}

static double reported(const omni_fixture *f, const char *key)
{
    return json_number_value(json_object_get(json_object_get(f->job.report, "omniquant"), key));
}

static const char *kept(const omni_fixture *f)
{
    return json_string_value(json_object_get(json_object_get(f->job.report, "omniquant"), "kept"));
}

static void test_loss_falls(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const omni_variant *v;
        const char *word;
    } runs[] = {{&w2, "omniquant:lwc"},
                {&w2, "omniquant:lwc:aug"},
                {&w2, "omniquant:lwc:unit_tokens"},
                {&w2, "omniquant:lwc:awq_clip"},
                {&w2, "omniquant:lwc:zero_point"},
                {&w4a4, "omniquant:let"},
                {&w4a4, "omniquant:lwc:let"}};
    for (size_t i = 0; i < NB_COUNT(runs); i++) {
        omni_fixture f;
        omni_begin(&f, runs[i].v, "cpu", 1);
        assert_int_equal(run(&f, runs[i].word, 10, NULL), NB_OK);
        assert_true(reported(&f, "loss_best") < 0.98 * reported(&f, "loss_start"));
        assert_true(reported(&f, "loss_best") < reported(&f, "loss_minmax"));
        assert_string_equal(kept(&f), "trained");
        assert_true((int)reported(&f, "steps") == 10 * OMNI_WINDOWS);
        assert_true(f.ticks >= 10 * OMNI_WINDOWS);
        assert_int_equal(nb_block_check(&f.job, "trained", NULL), NB_OK);
        omni_end(&f);
    }
}

/* let on named pairs alone: the others' weights and norms stay as they are. */
static void test_pairs(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    omni_begin(&f, &w4a4, "cpu", 1);
    const float *q = (const float *)f.block.linear[NB_Q].w.plane[0];
    const float *up = (const float *)f.block.linear[NB_UP].w.plane[0];
    float q0 = q[1], up0 = up[1], attn0 = f.block.norm[NB_NORM_ATTN].weight[1];
    assert_int_equal(run(&f, "omniquant:let:fc1", 2, NULL), NB_OK);
    json_t *report = json_object_get(f.job.report, "omniquant");
    json_t *pairs = json_object_get(report, "let");
    assert_int_equal(json_array_size(pairs), 1);
    assert_string_equal(json_string_value(json_array_get(pairs, 0)), "fc1");
    assert_true(q[1] == q0 && f.block.norm[NB_NORM_ATTN].weight[1] == attn0);
    assert_true(up[1] != up0);
    omni_end(&f);
    nb_error err;
    omni_begin(&f, &w4a4, "cpu", 1);
    assert_int_equal(run(&f, "omniquant:lwc:qkv", 1, &err), NB_EUSAGE);
    assert_non_null(strstr(err.message, "pairs are of let"));
    omni_end(&f);
}

/* Min-max at sigmoid(4), with the scales of SmoothQuant folded. */
static void test_no_epochs(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    omni_begin(&f, &w4a4, "cpu", 1);
    float w[32], colmax = 0;
    const float *q = (const float *)f.block.linear[NB_Q].w.plane[0];
    for (int j = 0; j < 32; j++) w[j] = q[j];
    for (int i = 0; i < 32; i++) colmax = fmaxf(colmax, fabsf(q[i * 32 + 1]));
    float actmax = fmaxf(-f.min[NB_Q][1], f.max[NB_Q][1]);
    float s = sqrtf(actmax / colmax), norm = f.block.norm[NB_NORM_ATTN].weight[1];
    assert_int_equal(run(&f, "omniquant:lwc:let", 0, NULL), NB_OK);
    assert_string_equal(kept(&f), "start");
    assert_true(fabsf(q[1] - w[1] * s) < 1e-6f * fabsf(q[1]) + 1e-9f);
    assert_true(fabsf(f.block.norm[NB_NORM_ATTN].weight[1] * s - norm) < 1e-6f);
    for (int i = 0; i < 32; i++) {
        assert_true(fabsf(f.job.clip_hi[NB_Q][i] - 0.98201379f) < 1e-6f);
        assert_true(fabsf(f.job.clip_lo[NB_Q][i] - 0.98201379f) < 1e-6f);
    }
    omni_end(&f);
}

/* Ratios that the search of the step "awq_clip" leaves, but no wider than the paper's start. */
static void test_awq_clip_start(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    nb_step search;
    float hi[48 * 2], lo[48 * 2];
    nb_input_stats stats;
    int clipped = 0;
    assert_int_equal(nb_step_parse(&search, "awq_clip", NULL), NB_OK);
    omni_begin(&f, &w2, "cpu", 1);
    assert_int_equal(f.job.stats(f.job.stats_user, NB_UP, &stats, NULL), NB_OK);
    for (int i = 0; i < 48 * 2; i++) hi[i] = lo[i] = 1;
    nb_job job = {.format = &f.weights[NB_UP],
                  .n_out = 48,
                  .n_in = 32,
                  .w = nb_block_weight(&f.job, NB_UP),
                  .clip_lo = lo,
                  .clip_hi = hi,
                  .hessian = stats.hessian,
                  .threads = 1};
    assert_int_equal(nb_job_run(&job, &search, 1, NULL), NB_OK);
    assert_int_equal(run(&f, "omniquant:lwc:awq_clip", 0, NULL), NB_OK);
    for (int i = 0; i < 48 * 2; i++) {
        clipped += hi[i] < 0.97f;
        assert_true(fabsf(f.job.clip_hi[NB_UP][i] - fminf(hi[i], 0.98201379f)) < 1e-6f);
        assert_true(fabsf(f.job.clip_lo[NB_UP][i] - fminf(lo[i], 0.98201379f)) < 1e-6f);
    }
    assert_true(clipped > 10);
    omni_end(&f);
}

/* What the round step will store is what training saw. */
static void test_stored_as_trained(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int4:row", "int2:g16", "fp4:g16", "mxfp4", "dialect:b32"};
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        omni_variant v = w4a4;
        omni_fixture f;
        v.weights = words[k];
        omni_begin(&f, &v, "cpu", 1);
        assert_int_equal(run(&f, "omniquant:lwc:let", 3, NULL), NB_OK);
        double best = fmin(reported(&f, "loss_best"), reported(&f, "loss_start"));
        best = fmin(best, reported(&f, "loss_minmax"));
        /* folded and rounded, as a block without training */
        for (int r = 0; r < NB_N_ROLES; r++) {
            nb_host_linear *l = &f.block.linear[r];
            nb_qparam p[8];
            float *w = nb_block_weight(&f.job, (nb_role)r);
            int64_t n = l->w.n_in, groups = nb_format_groups(&f.weights[r], n);
            for (int64_t i = 0; i < l->w.n_out; i++, w += n) {
                nb_format_fit_row(&f.weights[r], w, NULL, n, f.job.clip_lo[r] + i * groups,
                                  f.job.clip_hi[r] + i * groups, p);
                for (int64_t g = 0; g < groups; g++) {
                    uint8_t codes[64];
                    int64_t at = nb_group_begin(&f.weights[r], g);
                    int64_t m = nb_group_length(&f.weights[r], n, g);
                    f.weights[r].family->encode(&f.weights[r], p + g, w + at, m, codes);
                    f.weights[r].family->decode(&f.weights[r], p + g, codes, m, w + at);
                }
            }
        }
        for (int r = 0; r < NB_N_ROLES; r++) f.weights[r] = (nb_format){0};
        nb_trainer t;
        nb_trainer_options o = {0};
        double loss;
        assert_int_equal(nb_trainer_create(&t, &f.job, &o, NULL), NB_OK);
        assert_int_equal(nb_trainer_loss(&t, &loss, NULL), NB_OK);
        assert_true(fabs(loss - best) <= 1e-6 * best);
        nb_trainer_free(&t);
        omni_end(&f);
    }
}

static void test_thread_count(void **state)
{
    NB_UNUSED(state);
    static float w[3][48 * 32], clip[3][48];
    for (int k = 0; k < 3; k++) {
        omni_fixture f;
        omni_begin(&f, &w4a4, "cpu", k + 1);
        assert_int_equal(run(&f, "omniquant:lwc:let", 3, NULL), NB_OK);
        memcpy(w[k], f.block.linear[NB_UP].w.plane[0], sizeof w[k]);
        memcpy(clip[k], f.job.clip_hi[NB_UP], sizeof clip[k]);
        omni_end(&f);
    }
    for (int k = 1; k < 3; k++) {
        assert_memory_equal(w[0], w[k], sizeof w[0]);
        assert_memory_equal(clip[0], clip[k], sizeof clip[0]);
    }
}

static void test_wild_rates(void **state)
{
    NB_UNUSED(state);
    const omni_variant *const runs[] = {&w2, &w4a4};
    for (int i = 0; i < 2; i++) {
        omni_fixture f;
        omni_begin(&f, runs[i], "cpu", 1);
        assert_int_equal(run(&f, "omniquant:lwc:let:lwc_lr=1:let_lr=0.5", 4, NULL), NB_OK);
        double start = reported(&f, "loss_start"), minmax = reported(&f, "loss_minmax");
        double best = reported(&f, "loss_best");
        if (best > fmin(start, minmax)) assert_string_not_equal(kept(&f), "trained");
        assert_int_equal(nb_block_check(&f.job, "trained", NULL), NB_OK);
        omni_end(&f);
    }
}

/* ---- what is kept --------------------------------------------------------------------------- */

static void read_back(const nb_trainer *t, double *v)
{
    int64_t n = t->let.n, m = t->lwc.logits.cols;
    const nb_view views[] = {t->lwc.logits, t->lwc.m, t->lwc.v, t->lwc.best};
    const double *const vectors[] = {t->let.param, t->let.m, t->let.v, t->let_best};
    for (int i = 0; i < 4; i++, v += n + m) {
        t->job->be->ops->download(t->job->be, views[i], v, NB_F64);
        memcpy(v + m, vectors[i], (size_t)n * sizeof *v);
    }
}

/* In the middle of a ladder, with faults: all of it comes back, to the bit, and the next epoch is
 * that of the trainer that went on. */
static void check_kept(const char *device, const char *dir)
{
    static double want[20000], got[20000];
    nb_training place = {.dir = dir, .run = "the run"};
    nb_train_mark at = {.level = 1, .epoch = 2, .faults = 2, .best = 1.0 / 3}, back = {0};
    nb_trainer t[2];
    double loss[2];
    bool finite, found;
    omni_fixture f;
    omni_begin(&f, &w4a4, device, 1);
    nb_trainer_options o = all_options(&f);
    json_t *report = json_pack("{s:f}", "loss", 0.1), *other = json_object();
    f.job.training = &place;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nb_trainer_create(&t[i], &f.job, &o, NULL), NB_OK);
        assert_int_equal(nb_trainer_reset(&t[i], NB_LWC_PAPER, false, NULL), NB_OK);
    }
    assert_int_equal(nb_trainer_recall(&t[1], "step", &back, other, &found, NULL), NB_OK);
    assert_false(found);
    t[0].train_lwc = t[0].train_let = true;
    t[0].lwc_rate = 0.01 / 3;
    t[0].let_rate = 0.005 / 3;
    nb_trainer_save(&t[0]);
    assert_int_equal(nb_trainer_epoch(&t[0], &loss[0], &finite, NULL), NB_OK);
    assert_int_equal(nb_trainer_keep(&t[0], "step", &at, report, NULL), NB_OK);
    assert_int_equal(nb_trainer_recall(&t[1], "other", &back, other, &found, NULL), NB_OK);
    assert_false(found);
    assert_int_equal(nb_trainer_recall(&t[1], "step", &back, other, &found, NULL), NB_OK);
    assert_true(found && json_equal(report, other));
    assert_true(back.level == 1 && back.epoch == 2 && back.faults == 2 && back.best == at.best);
    assert_true(t[1].train_lwc && t[1].train_let && t[1].step == t[0].step);
    assert_true(t[1].lwc_rate == t[0].lwc_rate && t[1].let_rate == t[0].let_rate);
    assert_int_equal(t[1].total, OMNI_WINDOWS);
    assert_true(4 * (t[0].let.n + t[0].lwc.logits.cols) <= (int64_t)NB_COUNT(want));
    for (int epoch = 0; epoch < 2; epoch++) {
        read_back(&t[0], want);
        read_back(&t[1], got);
        assert_memory_equal(want, got, sizeof want);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(nb_trainer_epoch(&t[i], &loss[i], &finite, NULL), NB_OK);
        }
        assert_true(finite && loss[0] == loss[1]);
    }
    for (int i = 0; i < 2; i++) nb_trainer_free(&t[i]);
    json_decref(report);
    json_decref(other);
    omni_end(&f);
}

static void test_kept(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"cpu", "ref64"};
    for (int i = 0; i < 2; i++) {
        char dir[] = "/tmp/nibble-kept-XXXXXX";
        assert_non_null(mkdtemp(dir));
        check_kept(devices[i], dir);
        assert_int_equal(nb_remove_tree(dir, NULL), NB_OK);
    }
}

/* A target with a NaN: no level of training helps, and min-max itself is not finite. */
static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    nb_error err = {0};
    float nan = NAN;
    omni_begin(&f, &w2, "cpu", 1);
    f.be->ops->upload(f.be, nb_view_cols(nb_view_rows(omni_all(f.job.target), 2, 1), 3, 1), &nan,
                      NB_F32);
    assert_int_equal(run(&f, "omniquant:lwc", 2, &err), NB_ENUMERIC);
    assert_non_null(strstr(err.message, "blk.0"));
    omni_end(&f);
}

/* Targets whose gradient overflows in fp32 while the loss does not: every level is given up after
 * three faults. */
static void test_ladder(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    float target[OMNI_R * 32];
    for (int i = 0; i < OMNI_R * 32; i++) target[i] = i % 3 ? 3e38f : -3e38f;
    omni_begin(&f, &w4a4, "cpu", 1);
    f.be->ops->upload(f.be, omni_all(f.job.target), target, NB_F32);
    assert_int_equal(run(&f, "omniquant:lwc:let", 2, NULL), NB_OK);
    json_t *faults = json_object_get(json_object_get(f.job.report, "omniquant"), "fallbacks");
    assert_int_equal(json_array_size(faults), 9);
    json_t *last = json_array_get(faults, 8);
    assert_string_equal(json_string_value(json_object_get(last, "training")), "lwc alone");
    assert_non_null(strstr(json_string_value(json_object_get(last, "not_finite")), "blk.0"));
    assert_string_not_equal(kept(&f), "trained");
    assert_int_equal(nb_block_check(&f.job, "trained", NULL), NB_OK);
    omni_end(&f);
}

static void test_refused(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    omni_begin(&f, &w2, "cpu", 1);
    assert_int_equal(run(&f, "omniquant", 2, NULL), NB_EUSAGE);
    assert_int_equal(run(&f, "omniquant:let:awq_clip", 2, NULL), NB_EUSAGE);
    omni_parse(&f.acts[NB_K], "int8:token");
    assert_int_equal(run(&f, "omniquant:lwc", 2, NULL), NB_EUSAGE);
    omni_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),         cmocka_unit_test(test_equivalence),
        cmocka_unit_test(test_loss_falls),        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_no_epochs),         cmocka_unit_test(test_awq_clip_start),
        cmocka_unit_test(test_stored_as_trained), cmocka_unit_test(test_thread_count),
        cmocka_unit_test(test_wild_rates),        cmocka_unit_test(test_kept),
        cmocka_unit_test(test_not_finite),        cmocka_unit_test(test_ladder),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
