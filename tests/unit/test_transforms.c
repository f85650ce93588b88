/* Transforms and AWQ's clip search: a block computes the same behind equivalent scaling, the
 * formulas on numbers made by hand, searches against slow ones, and what can go wrong. Runs in the
 * root of the tree, on the blocks of tests/golden. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "method/equivalent.h"
#include "model/family.h"

enum { T = 48 };

/* One block as the calibration loop hands it to a step. */
typedef struct rig {
    nb_source *src;
    nb_arena *arena;
    nb_backend *be;
    nb_host_block block;
    nb_format weights[NB_N_ROLES];
    nb_block_job job;
    nb_input_stats stats[NB_N_ROLES];
    float *seen[NB_N_ROLES]; /* [T, n] */
} rig;

static float *copy_vector(rig *r, const float *v, int64_t n)
{
    float *out = nb_arena_alloc(r->arena, (size_t)n, sizeof *out);
    memcpy(out, v, (size_t)n * sizeof *out);
    return out;
}

/* fp32 copies in the arena. */
static void copy_block(rig *r)
{
    for (int i = 0; i < NB_N_ROLES; i++) {
        nb_host_linear *l = &r->block.linear[i];
        if (!l->name) continue;
        float *w = nb_arena_alloc(r->arena, (size_t)(l->w.n_out * l->w.n_in), sizeof *w);
        nb_matrix_dequant(&l->w, 0, l->w.n_out, w);
        l->w.format = nb_format_plain(NB_F32);
        l->w.plane[0] = (const uint8_t *)w;
        if (l->bias) l->bias = copy_vector(r, l->bias, l->w.n_out);
    }
    for (int i = 0; i < NB_N_NORMS; i++) {
        nb_host_norm *n = &r->block.norm[i];
        if (n->weight) n->weight = copy_vector(r, n->weight, n->n);
        if (n->bias) n->bias = copy_vector(r, n->bias, n->n);
    }
}

static nb_status give_stats(void *user, nb_role role, nb_input_stats *out, nb_error *err)
{
    NB_UNUSED(err);
    *out = ((rig *)user)->stats[role];
    return NB_OK;
}

static void open_rig(rig *r, const char *model, const char *weights, int threads)
{
    char path[100];
    nb_options opt;
    *r = (rig){0};
    snprintf(path, sizeof path, "tests/golden/%s", model);
    nb_options_default(&opt);
    opt.threads = threads;
    assert_int_equal(nb_source_open(&r->src, path, NULL), NB_OK);
    assert_int_equal(nb_arena_create(&r->arena, NULL), NB_OK);
    assert_int_equal(nb_backend_create(&r->be, &opt, NULL), NB_OK);
    assert_int_equal(nb_source_block(r->src, 1, r->arena, &r->block, NULL), NB_OK);
    copy_block(r);
    for (int i = 0; i < NB_N_ROLES; i++) {
        assert_int_equal(nb_format_parse(&r->weights[i], weights, NULL), NB_OK);
    }
    r->job = (nb_block_job){.cfg = nb_source_config(r->src),
                            .be = r->be,
                            .arena = r->arena,
                            .block = &r->block,
                            .weights = r->weights,
                            .stats = give_stats,
                            .stats_user = r,
                            .report = json_object()};
}

static void close_rig(rig *r)
{
    json_decref(r->job.report);
    nb_backend_free(r->be);
    nb_arena_free(r->arena);
    nb_source_close(r->src);
}

static nb_status run_step(rig *r, const char *word, nb_error *err)
{
    nb_step step;
    assert_int_equal(nb_step_parse(&step, word, NULL), NB_OK);
    r->job.option = step.option;
    return step.method->run_block(&r->job, err);
}

/* ---- forward and its statistics
 * ------------------------------------------------------------------ */

static void keep_input(void *user, nb_role role, nb_view x)
{
    rig *r = user;
    r->seen[role] = nb_arena_alloc(r->arena, (size_t)(x.rows * x.cols), sizeof(float));
    r->be->ops->download(r->be, x, r->seen[role], NB_F32);
}

/* out [T, C] = the block on x [T, C]. */
static void forward(rig *r, const float *x, float *out)
{
    const nb_config *c = r->job.cfg;
    const nb_ops *op = r->be->ops;
    nb_block *b;
    nb_workspace *ws;
    nb_buffer *xb;
    nb_kv *kv;
    nb_view rope;
    assert_int_equal(nb_block_create(r->be, c, &r->block, &b, NULL), NB_OK);
    assert_int_equal(nb_workspace_create(r->be, c, T, &ws, NULL), NB_OK);
    assert_int_equal(op->buffer_create(r->be, T * c->n_embd, &xb, NULL), NB_OK);
    nb_kv_desc d = nb_block_kv(b, T);
    assert_int_equal(op->kv_create(r->be, &d, &kv, NULL), NB_OK);
    assert_int_equal(nb_rope_table(r->be, c, T, &rope, NULL), NB_OK);
    nb_view xv = nb_view_of(xb, T, c->n_embd);
    op->upload(r->be, xv, x, NB_F32);
    nb_workspace_observe(ws, keep_input, r);
    nb_block_forward(b, ws, xv, kv, rope, 0);
    op->download(r->be, xv, out, NB_F32);
    assert_int_equal(op->sync(r->be, NULL), NB_OK);
    op->buffer_free(r->be, xb);
    op->kv_free(r->be, kv);
    op->buffer_free(r->be, rope.buf);
    nb_workspace_free(ws);
    nb_block_free(b);
}

/* Statistics of x [T, n] as the loop gives them. */
static void measure(rig *r, nb_role role, const float *x, int64_t n)
{
    float *min = nb_arena_alloc(r->arena, (size_t)n, sizeof *min);
    float *max = nb_arena_alloc(r->arena, (size_t)n, sizeof *max);
    float *mean = nb_arena_alloc(r->arena, (size_t)n, sizeof *mean);
    float *h = nb_arena_alloc(r->arena, (size_t)(n * n), sizeof *h);
    for (int64_t i = 0; i < n; i++) {
        min[i] = max[i] = x[i];
        for (int64_t t = 0; t < T; t++) {
            float v = x[t * n + i];
            min[i] = fminf(min[i], v);
            max[i] = fmaxf(max[i], v);
            mean[i] += fabsf(v) / T;
            for (int64_t j = i; j < n; j++) h[i * n + j] += v * x[t * n + j];
        }
        for (int64_t j = 0; j < i; j++) h[i * n + j] = NAN; /* not to be read */
    }
    r->stats[role] = (nb_input_stats){n, min, max, mean, h};
}

/* A random x [T, C] whose channels 5 and 17 are large, through the block. */
static float *run_random(rig *r, uint64_t seed, float *out)
{
    nb_rng rng = {seed};
    int64_t n = r->job.cfg->n_embd;
    float *x = nb_arena_alloc(r->arena, (size_t)(T * n), sizeof *x);
    for (int64_t i = 0; i < T * n; i++) {
        x[i] = (float)nb_rng_normal(&rng) * (i % n == 5 || i % n == 17 ? 30 : 1);
    }
    forward(r, x, out);
    for (int i = 0; i < NB_N_ROLES; i++) {
        if (r->seen[i]) measure(r, (nb_role)i, r->seen[i], r->block.linear[i].w.n_in);
    }
    return x;
}

static float *new_output(rig *r)
{
    return nb_arena_alloc(r->arena, (size_t)(T * r->job.cfg->n_embd), sizeof(float));
}

static void assert_near(const float *a, const float *b, int64_t n, const char *what)
{
    float size = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        size = fmaxf(size, fabsf(a[i]));
        worst = fmaxf(worst, fabsf(a[i] - b[i]));
    }
    if (!(worst <= 1e-5f * size)) fail_msg("%s: %g of %g", what, (double)worst, (double)size);
}

/* ---- equivalence --------------------------------------------------------------------------------
 */

static const char *const models[] = {"llama-gqa", "llama-bias", "qwen2", "qwen3", "opt"};

static void check_equivalence(const char *model, nb_pair_kind kind)
{
    rig r;
    nb_pair p;
    open_rig(&r, model, "int4:g32", 2);
    float *before = new_output(&r), *after = new_output(&r);
    float *x = run_random(&r, 3, before);
    const float *input = r.seen[NB_DOWN];
    assert_null(nb_pair_find(&p, &r.job, kind));
    float *s = nb_arena_alloc(r.arena, (size_t)p.n, sizeof *s);
    nb_rng rng = {7 + (uint64_t)kind};
    for (int64_t i = 0; i < p.n; i++) s[i] = (float)exp2(4 * nb_rng_uniform(&rng) - 2);
    assert_int_equal(nb_pair_scale(&r.job, &p, s, NULL), NB_OK);
    const float *old = kind == NB_PAIR_DOWN ? input : r.seen[p.input];
    forward(&r, x, after);
    char what[80];
    snprintf(what, sizeof what, "%s, %s", model, p.name);
    assert_near(before, after, T * r.job.cfg->n_embd, what);
    /* and something was scaled: the consumers read other numbers */
    assert_memory_not_equal(old, r.seen[p.input], (size_t)(T * p.n_in) * sizeof *old);
    close_rig(&r);
}

static void test_equivalence(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(models); i++) {
        for (int k = 0; k < NB_N_PAIRS; k++) check_equivalence(models[i], (nb_pair_kind)k);
    }
    check_equivalence("opt-nobias", NB_PAIR_O);
    check_equivalence("opt-350m", NB_PAIR_O);
    check_equivalence("opt-350m", NB_PAIR_DOWN);
}

/* The steps themselves, with every pair they have. */
static void test_steps_are_equivalent(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"smooth:out:down", "smooth:alpha=0.8", "awq", "awq:duo"};
    for (size_t i = 0; i < NB_COUNT(models); i++) {
        for (size_t k = 0; k < NB_COUNT(steps); k++) {
            rig r;
            nb_error err = {0};
            open_rig(&r, models[i], "int3:g32", 2);
            float *before = new_output(&r), *after = new_output(&r);
            float *x = run_random(&r, 11, before);
            if (run_step(&r, steps[k], &err) != NB_OK) fail_msg("%s", err.message);
            forward(&r, x, after);
            assert_near(before, after, T * r.job.cfg->n_embd, steps[k]);
            close_rig(&r);
        }
    }
}

/* ---- smooth
 * --------------------------------------------------------------------------------------- */

static void fill(float *v, int64_t n, float x)
{
    for (int64_t i = 0; i < n; i++) v[i] = x;
}

static float *edit(const float *v) { return (float *)(uintptr_t)v; }

/* Every |x| <= 4, but channel 3 from -9 to 2; every weight 1/4, but column 3 of k 1. */
static void test_smooth_by_hand(void **state)
{
    NB_UNUSED(state);
    rig r;
    open_rig(&r, "llama-gqa", "int8:row:sym", 2);
    float *out = new_output(&r);
    run_random(&r, 1, out);
    nb_host_linear *l = r.block.linear;
    int64_t n = l[NB_Q].w.n_in;
    for (int i = 0; i < 3; i++) {
        static const nb_role roles[] = {NB_Q, NB_K, NB_V};
        fill(nb_block_weight(&r.job, roles[i]), l[roles[i]].w.n_out * n, 0.25f);
    }
    nb_block_weight(&r.job, NB_K)[7 * n + 3] = -1;
    nb_block_weight(&r.job, NB_V)[2 * n + 3] = 0.5f;
    float *norm = edit(r.block.norm[NB_NORM_ATTN].weight);
    fill(norm, n, 2);
    fill(edit(r.stats[NB_Q].min), n, -4);
    fill(edit(r.stats[NB_Q].max), n, 1);
    edit(r.stats[NB_Q].min)[3] = -9;
    edit(r.stats[NB_Q].max)[8] = edit(r.stats[NB_Q].min)[8] = 0; /* dead */
    assert_int_equal(run_step(&r, "smooth:alpha=0.5", NULL), NB_OK);
    for (int64_t i = 0; i < n; i++) {
        float s = i == 3 ? 3 : i == 8 ? 1 : 4; /* sqrt(9 / 1), -, sqrt(4 / 0.25) */
        assert_float_equal(norm[i], 2 / s, 1e-6);
        assert_float_equal(nb_block_weight(&r.job, NB_Q)[i], 0.25f * s, 1e-6);
    }
    assert_float_equal(nb_block_weight(&r.job, NB_K)[7 * n + 3], -3, 1e-6);
    assert_float_equal(nb_block_weight(&r.job, NB_V)[2 * n + 3], 1.5, 1e-6);
    json_t *said = json_object_get(json_object_get(r.job.report, "smooth"), "qkv");
    assert_float_equal(json_number_value(json_object_get(said, "most")), 4, 1e-6);
    close_rig(&r);
}

/* Two query heads read KV head 0: the larger of their inputs counts, and both columns are scaled.
 */
static void test_smooth_shared_heads(void **state)
{
    NB_UNUSED(state);
    rig r;
    open_rig(&r, "llama-gqa", "int8:row:sym", 2);
    float *out = new_output(&r);
    run_random(&r, 1, out);
    const nb_config *c = r.job.cfg;
    int64_t n = (int64_t)c->n_heads * c->head_dim, n_out = r.block.linear[NB_O].w.n_out;
    int64_t n_v = r.block.linear[NB_V].w.n_in, d = c->head_dim;
    float *o = nb_block_weight(&r.job, NB_O), *v = nb_block_weight(&r.job, NB_V);
    fill(o, n_out * n, 1);
    fill(v, r.block.linear[NB_V].w.n_out * n_v, 8);
    fill(edit(r.stats[NB_O].min), n, -1);
    fill(edit(r.stats[NB_O].max), n, 1);
    edit(r.stats[NB_O].max)[d + 2] = 16;    /* head 1, channel 2 */
    edit(r.stats[NB_O].max)[2 * d + 3] = 4; /* head 2: the other KV head */
    assert_int_equal(run_step(&r, "smooth:out", NULL), NB_OK);
    for (int64_t i = 0; i < n; i++) {
        float s = i == 2 || i == d + 2 ? 4 : i == 2 * d + 3 || i == 3 * d + 3 ? 2 : 1;
        assert_float_equal(o[n + i], s, 1e-6);
    }
    for (int64_t i = 0; i < r.block.linear[NB_V].w.n_out; i++) {
        float s = i == 2 ? 4 : i == d + 3 ? 2 : 1;
        /* columns of v: scaled with q and k before */
        assert_float_equal(v[i * n_v] / v[0], 1 / s, 1e-6);
    }
    close_rig(&r);
}

/* ---- awq
 * -------------------------------------------------------------------------------------------- */

/* sum over tokens of |x (Q(w s) / s - w)^T|^2, w' = w s given. */
static double slow_error(const rig *r, const nb_format *f, nb_role role, const float *x,
                         const float *scaled, const float *s)
{
    const nb_matrix *m = &r->block.linear[role].w;
    int64_t n = m->n_in, groups = nb_format_groups(f, n);
    nb_qparam *p = calloc((size_t)groups, sizeof *p);
    uint8_t *codes = malloc((size_t)n);
    float *back = malloc((size_t)n * sizeof *back), *weight = calloc((size_t)n, sizeof *weight);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t t = 0; t < T; t++) weight[i] += x[t * n + i] / s[i] * x[t * n + i] / s[i];
    }
    for (int64_t o = 0; o < m->n_out; o++) {
        const float *w = scaled + o * n;
        nb_format_fit_row(f, w, weight, n, NULL, NULL, p);
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = nb_group_begin(f, g), len = nb_group_length(f, n, g);
            f->family->encode(f, &p[g], w + at, len, codes + at);
            f->family->decode(f, &p[g], codes + at, len, back + at);
        }
        for (int64_t t = 0; t < T; t++) {
            double y = 0;
            for (int64_t i = 0; i < n; i++) {
                y += (double)x[t * n + i] * ((double)back[i] - (double)w[i]) / (double)s[i];
            }
            sum += y * y;
        }
    }
    free(p), free(codes), free(back), free(weight);
    return sum;
}

/* Error of q, k, v by the weights as they are, s [n]. */
static double slow_qkv(const rig *r, const float *s)
{
    static const nb_role roles[] = {NB_Q, NB_K, NB_V};
    double sum = 0;
    for (int i = 0; i < 3; i++) {
        sum += slow_error(r, &r->weights[NB_Q], roles[i], r->seen[NB_Q],
                          nb_block_weight(&r->job, roles[i]), s);
    }
    return sum;
}

static double reported(const rig *r, const char *pair, const char *key)
{
    json_t *said = json_object_get(json_object_get(r->job.report, "awq"), pair);
    return json_number_value(json_object_get(said, key));
}

static void check_awq(const char *model, const char *word, const char *step)
{
    rig r;
    nb_error err = {0};
    open_rig(&r, model, word, 2);
    float *out = new_output(&r);
    run_random(&r, 21, out);
    /* the norm takes large channels away where its weights are small: put one behind it */
    int64_t n = r.job.cfg->n_embd;
    for (int64_t t = 0; t < T; t++) r.seen[NB_Q][t * n + 9] *= 40;
    measure(&r, NB_Q, r.seen[NB_Q], n);
    r.weights[NB_O] = nb_format_plain(NB_F32); /* or the rows of v would be scaled, too */
    float *s = new_output(&r), *old = copy_vector(&r, r.block.norm[NB_NORM_ATTN].weight, n);
    fill(s, n, 1);
    double before = slow_qkv(&r, s);
    if (run_step(&r, step, &err) != NB_OK) fail_msg("%s: %s", word, err.message);
    for (int64_t i = 0; i < n; i++) s[i] = old[i] / r.block.norm[NB_NORM_ATTN].weight[i];
    double after = slow_qkv(&r, s);
    static const char *const names[] = {"qkv", "ffn", "down"};
    for (size_t i = 0; i < NB_COUNT(names); i++) {
        assert_true(reported(&r, names[i], "error") <= reported(&r, names[i], "error_before"));
    }
    /* fp32 divisions may round a weight near a tie the other way */
    double told = reported(&r, "qkv", "error");
    if (fabs(reported(&r, "qkv", "error_before") - before) > 1e-3 * before ||
        fabs(told - after) > 1e-3 * after || after > 0.8 * before) {
        fail_msg("%s %s %s: %g to %g, reported %g to %g", model, word, step, before, after,
                 reported(&r, "qkv", "error_before"), told);
    }
    close_rig(&r);
}

static void test_awq_search(void **state)
{
    NB_UNUSED(state);
    check_awq("llama-gqa", "int4:g32", "awq");
    check_awq("llama-gqa", "int4:g32", "awq:duo");
    check_awq("qwen2", "int3:row:sym", "awq");
    check_awq("qwen3", "fp4:g32", "awq");
    check_awq("opt", "int4:g16", "awq");
    check_awq("llama-gqa", "fp4:g16:m2", "awq");
    check_awq("llama-gqa", "nvfp4", "awq");
}

/* Consumers that stay fp32 give no reason to scale. */
static void test_awq_leaves_floats(void **state)
{
    NB_UNUSED(state);
    rig r;
    open_rig(&r, "llama-gqa", "int4:g32", 2);
    float *out = new_output(&r);
    run_random(&r, 2, out);
    int64_t n = r.job.cfg->n_embd;
    float *old = copy_vector(&r, r.block.norm[NB_NORM_ATTN].weight, n);
    r.weights[NB_Q] = r.weights[NB_K] = r.weights[NB_V] = nb_format_plain(NB_F16);
    assert_int_equal(run_step(&r, "awq", NULL), NB_OK);
    assert_memory_equal(old, r.block.norm[NB_NORM_ATTN].weight, (size_t)n * sizeof *old);
    json_t *said = json_object_get(json_object_get(r.job.report, "awq"), "qkv");
    assert_non_null(strstr(json_string_value(said), "left out"));
    close_rig(&r);
}

/* ---- awq_clip
 * ---------------------------------------------------------------------------------------- */

enum { OUT = 70, IN = 72 };

typedef struct clip_problem {
    nb_format format;
    float w[OUT * IN], h[IN * IN], importance[IN], lo[OUT * IN], hi[OUT * IN];
    nb_job job;
} clip_problem;

static void begin_clip(clip_problem *p, const char *word, int threads)
{
    nb_rng rng = {5};
    *p = (clip_problem){0};
    assert_int_equal(nb_format_parse(&p->format, word, NULL), NB_OK);
    for (int i = 0; i < OUT * IN; i++) {
        double x = nb_rng_normal(&rng);
        p->w[i] = (float)(x * x * x); /* long tails */
        p->lo[i] = p->hi[i] = 1;
    }
    for (int t = 0; t < 3 * IN; t++) {
        float x[IN], common = (float)nb_rng_normal(&rng);
        for (int i = 0; i < IN; i++)
            x[i] = (i % 9 == 4 ? 5 : 1) * ((float)nb_rng_normal(&rng) + common);
        for (int i = 0; i < IN; i++) {
            for (int j = 0; j < IN; j++)
                p->h[i * IN + j] = j < i ? NAN : p->h[i * IN + j] + x[i] * x[j];
        }
    }
    for (int i = 0; i < IN; i++) p->importance[i] = p->h[i * (IN + 1)];
    p->job = (nb_job){.name = "layers.3.up",
                      .format = &p->format,
                      .n_out = OUT,
                      .n_in = IN,
                      .w = p->w,
                      .importance = p->importance,
                      .hessian = p->h,
                      .clip_lo = p->lo,
                      .clip_hi = p->hi,
                      .threads = threads};
}

static nb_status run_clip(clip_problem *p, const char *word)
{
    nb_step step;
    assert_int_equal(nb_step_parse(&step, word, NULL), NB_OK);
    return nb_job_run(&p->job, &step, 1, NULL);
}

static double slow_clip_error(const clip_problem *p, int64_t row, int64_t g, float lo, float hi)
{
    const nb_format *f = &p->format;
    int64_t at = nb_group_begin(f, g), n = nb_group_length(f, IN, g);
    const float *w = p->w + row * IN;
    nb_qparam q = {.base = nb_format_fit_base(f, w, p->importance, IN, NULL, NULL)};
    uint8_t codes[IN];
    float back[IN];
    double sum = 0;
    f->family->fit(f, w + at, p->importance + at, n, lo, hi, &q);
    f->family->encode(f, &q, w + at, n, codes);
    f->family->decode(f, &q, codes, n, back);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            int64_t a = at + (i < j ? i : j), b = at + (i < j ? j : i);
            sum += (double)(back[i] - w[at + i]) * (double)p->h[a * IN + b] *
                   (double)(back[j] - w[at + j]);
        }
    }
    return sum;
}

static void check_clip(const char *word)
{
    static clip_problem p;
    begin_clip(&p, word, 2);
    assert_int_equal(run_clip(&p, "awq_clip"), NB_OK);
    int64_t groups = nb_format_groups(&p.format, IN), clipped = 0;
    for (int64_t i = 0; i < OUT * groups; i++) {
        double best = HUGE_VAL, first = 0;
        for (int k = 0; k <= 20; k++) {
            float ratio = 1 - (float)k / 40;
            double e = slow_clip_error(&p, i / groups, i % groups, ratio, ratio);
            best = fmin(best, e);
            if (k == 0) first = e;
        }
        double got = slow_clip_error(&p, i / groups, i % groups, p.lo[i], p.hi[i]);
        assert_true(p.lo[i] == p.hi[i] && p.lo[i] >= 0.5f && p.lo[i] <= 1);
        if (got > best * 1.0001 + 1e-9) fail_msg("%s: %g, least %g", word, got, best);
        assert_true(got <= first);
        clipped += p.lo[i] < 1;
    }
    assert_true(clipped > 0);
}

static void test_clip_search(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int4:g32",   "int3:row", "int4:g16:sym", "fp4:g32",
                                        "fp4:g32:m2", "mxfp4",    "nvfp4"};
    for (size_t i = 0; i < NB_COUNT(words); i++) check_clip(words[i]);
}

static void test_clip_without_statistics(void **state)
{
    NB_UNUSED(state);
    static clip_problem p;
    begin_clip(&p, "int3:g32", 2);
    p.job.hessian = NULL;
    assert_int_equal(run_clip(&p, "awq_clip"), NB_OK);
    for (int i = 0; i < OUT * 3; i++) assert_true(p.lo[i] == 1 && p.hi[i] == 1);
}

/* ---- laws
 * -------------------------------------------------------------------------------------------- */

static void assert_same_block(const rig *a, const rig *b)
{
    for (int i = 0; i < NB_N_ROLES; i++) {
        const nb_host_linear *x = &a->block.linear[i], *y = &b->block.linear[i];
        if (!x->name) continue;
        assert_memory_equal(x->w.plane[0], y->w.plane[0],
                            (size_t)(x->w.n_out * x->w.n_in) * sizeof(float));
    }
    for (int i = 0; i < NB_N_NORMS; i++) {
        const nb_host_norm *x = &a->block.norm[i], *y = &b->block.norm[i];
        if (x->weight) assert_memory_equal(x->weight, y->weight, (size_t)x->n * sizeof(float));
    }
}

static void test_threads(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"smooth:out:down", "awq", "awq:duo"};
    for (size_t i = 0; i < NB_COUNT(steps); i++) {
        rig a, b;
        open_rig(&a, "qwen2", "int3:g32", 1);
        open_rig(&b, "qwen2", "int3:g32", 3);
        float *out = new_output(&a);
        run_random(&a, 9, out);
        memcpy(b.stats, a.stats, sizeof a.stats);
        assert_int_equal(run_step(&a, steps[i], NULL), NB_OK);
        assert_int_equal(run_step(&b, steps[i], NULL), NB_OK);
        assert_same_block(&a, &b);
        assert_true(json_equal(a.job.report, b.job.report));
        close_rig(&a);
        close_rig(&b);
    }
    static clip_problem p, q;
    begin_clip(&p, "int3:g32", 1);
    begin_clip(&q, "int3:g32", 3);
    assert_int_equal(run_clip(&p, "awq_clip"), NB_OK);
    assert_int_equal(run_clip(&q, "awq_clip"), NB_OK);
    assert_memory_equal(p.lo, q.lo, sizeof p.lo);
}

/* ---- what can go wrong
 * --------------------------------------------------------------------------------- */

static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"smooth", "awq"};
    static const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 4; i++) {
        rig r;
        nb_error err = {0};
        open_rig(&r, "llama-gqa", "int4:g32", 2);
        float *out = new_output(&r);
        run_random(&r, 2, out);
        edit(r.stats[NB_UP].max)[4] = bad[i / 2];
        assert_int_equal(run_step(&r, steps[i % 2], &err), NB_ENUMERIC);
        assert_string_equal(err.message, "blk.1: input of up on the calibration text: channel 4 is "
                                         "not finite");
        close_rig(&r);
    }
    rig r;
    nb_error err = {0};
    open_rig(&r, "llama-gqa", "int4:g32", 2);
    float *out = new_output(&r);
    run_random(&r, 2, out);
    edit(r.stats[NB_Q].hessian)[3] = NAN; /* off the diagonal */
    assert_int_equal(run_step(&r, "awq", &err), NB_ENUMERIC);
    assert_non_null(strstr(err.message, "blk.1: pair qkv"));
    close_rig(&r);
    for (int i = 0; i < 2; i++) {
        static clip_problem p;
        begin_clip(&p, "int3:g32", 2);
        p.h[40 * IN + 45] = bad[i];
        assert_int_equal(run_clip(&p, "awq_clip"), NB_ENUMERIC);
    }
}

static void test_bad_factor(void **state)
{
    NB_UNUSED(state);
    static const float bad[] = {0, -1, NAN, INFINITY};
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        rig a, b;
        nb_pair p;
        nb_error err = {0};
        float s[40];
        open_rig(&a, "llama-gqa", "int4:g32", 2);
        open_rig(&b, "llama-gqa", "int4:g32", 2);
        assert_null(nb_pair_find(&p, &a.job, NB_PAIR_QKV));
        fill(s, 40, 2);
        s[39] = bad[i];
        assert_int_equal(nb_pair_scale(&a.job, &p, s, &err), NB_ENUMERIC);
        assert_non_null(strstr(err.message, "channel 39"));
        assert_same_block(&a, &b);
        close_rig(&a);
        close_rig(&b);
    }
}

static const char *said_of(const rig *r, const char *step, const char *pair)
{
    return json_string_value(json_object_get(json_object_get(r->job.report, step), pair));
}

/* Norms behind the sums, without weights; an activation that scaling does not pass. */
static void test_impossible_pairs(void **state)
{
    NB_UNUSED(state);
    rig r;
    nb_error err = {0};
    open_rig(&r, "opt-350m", "int4:g32", 2);
    float *out = new_output(&r);
    run_random(&r, 2, out);
    assert_int_equal(run_step(&r, "smooth", &err), NB_EUSAGE);
    assert_non_null(strstr(err.message, "behind the residual sums"));
    assert_int_equal(run_step(&r, "smooth:down", NULL), NB_OK);
    assert_non_null(strstr(said_of(&r, "smooth", "qkv"), "behind the residual sums"));
    assert_int_equal(run_step(&r, "awq", NULL), NB_OK);
    assert_non_null(strstr(said_of(&r, "awq", "ffn"), "behind the residual sums"));
    nb_config cfg = *r.job.cfg;
    cfg.post_norm = cfg.norm_affine = false;
    cfg.act = NB_ACT_GELU;
    r.job.cfg = &cfg;
    assert_int_equal(run_step(&r, "smooth:down", &err), NB_EUSAGE);
    assert_non_null(strstr(said_of(&r, "smooth", "ffn"), "no weights"));
    assert_non_null(strstr(said_of(&r, "smooth", "down"), "not ReLU"));
    assert_int_equal(run_step(&r, "smooth:out", NULL), NB_OK);
    close_rig(&r);
}

static nb_status stop(void *user)
{
    NB_UNUSED(user);
    return NB_EINTERRUPTED;
}

static void test_interrupted(void **state)
{
    NB_UNUSED(state);
    rig r;
    open_rig(&r, "llama-gqa", "int4:g32", 2);
    float *out = new_output(&r);
    run_random(&r, 2, out);
    r.job.tick = stop;
    assert_int_equal(run_step(&r, "awq", NULL), NB_EINTERRUPTED);
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equivalence),    cmocka_unit_test(test_steps_are_equivalent),
        cmocka_unit_test(test_smooth_by_hand), cmocka_unit_test(test_smooth_shared_heads),
        cmocka_unit_test(test_awq_search),     cmocka_unit_test(test_awq_leaves_floats),
        cmocka_unit_test(test_clip_search),    cmocka_unit_test(test_clip_without_statistics),
        cmocka_unit_test(test_threads),        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_bad_factor),     cmocka_unit_test(test_impossible_pairs),
        cmocka_unit_test(test_interrupted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
