/* Rotations by Walsh-Hadamard matrices: a block computes the same behind them, quantizers see what
 * they should, what is refused, and a directory that runs as it says. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "eval/eval.h"
#include "method/equivalent.h"
#include "omni_fixture.h"
#include "run/session.h"
#include "tiny_model.h"

static const omni_variant variants[] = {
    {"llama", 12, 4, 2, 8, 24, false, false, false, "int4:g8", NULL,
     NULL}, /* two heads share one of v */
    {"llama", 20, 3, 1, 4, 12, true, false, false, "int4:g8", NULL, NULL}, /* biases everywhere */
    {"qwen2", 12, 4, 2, 16, 40, true, false, true, "int4:g8", NULL, NULL},
    {"qwen3", 12, 4, 2, 8, 24, false, false, false, "int4:g8", NULL, NULL}, /* norms over heads */
    {"opt", 12, 3, 3, 4, 24, true, false, false, "int4:g8", NULL, NULL},
    {"opt", 12, 3, 3, 4, 32, true, true, false, "int4:g8", NULL, NULL}, /* norms behind the sums */
};

static const char *const steps[] = {"hadamard:vo", "hadamard:down", "hadamard:qk",
                                    "hadamard:vo:down:qk"};

static nb_status run_step(omni_fixture *f, const char *word, nb_error *err)
{
    nb_step step;
    assert_int_equal(nb_step_parse(&step, word, NULL), NB_OK);
    f->job.option = step.option;
    return step.method->run_block(&f->job, err);
}

/* [OMNI_R, C] of the block on x_source. */
static float *output(omni_fixture *f)
{
    int64_t n = (int64_t)OMNI_R * f->cfg.n_embd;
    float *y = nb_arena_alloc(f->arena, (size_t)n, sizeof *y);
    nb_view out = omni_view(f, OMNI_R, f->cfg.n_embd);
    omni_run_block(f, out, omni_all(f->job.x_source), false);
    f->be->ops->download(f->be, out, y, NB_F32);
    return y;
}

/* Largest difference over the largest value. */
static double distance(const float *a, const float *b, int64_t n)
{
    double size = 0, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        size = fmax(size, fabs((double)a[i]));
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    }
    return worst / size;
}

static float *copy_weight(omni_fixture *f, nb_role role)
{
    const nb_matrix *m = &f->block.linear[role].w;
    float *w = nb_arena_alloc(f->arena, (size_t)(m->n_out * m->n_in), sizeof *w);
    memcpy(w, m->plane[0], (size_t)(m->n_out * m->n_in) * sizeof *w);
    return w;
}

static bool changed(const omni_fixture *f, nb_role role, const float *before)
{
    const nb_matrix *m = &f->block.linear[role].w;
    return memcmp(m->plane[0], before, (size_t)(m->n_out * m->n_in) * sizeof *before) != 0;
}

/* ---- the same function ------------------------------------------------------------------------
 */

static void check_equivalence(const omni_variant *v, const char *word)
{
    omni_fixture f;
    nb_error err = {0};
    omni_begin(&f, v, "cpu", 2);
    float *before = output(&f), *o = copy_weight(&f, NB_O), *down = copy_weight(&f, NB_DOWN);
    float *q = copy_weight(&f, NB_Q);
    if (run_step(&f, word, &err) != NB_OK) fail_msg("%s", err.message);
    double d = distance(before, output(&f), (int64_t)OMNI_R * v->embd);
    if (!(d <= 1e-5)) fail_msg("%s, %s: %g", v->family, word, d);
    bool is_opt = strcmp(v->family, "opt") == 0;
    bool vo = strstr(word, ":vo"), ffn = strstr(word, ":down"), qk = strstr(word, ":qk");
    assert_int_equal(changed(&f, NB_O, o), vo);
    assert_int_equal(changed(&f, NB_DOWN, down), ffn);
    assert_int_equal(changed(&f, NB_Q, q), qk && is_opt);
    assert_int_equal(f.block.rotation.down, ffn ? v->ffn & -v->ffn : 0);
    assert_int_equal(f.block.rotation.qk, qk && !is_opt ? v->head_dim : 0);
    omni_end(&f);
}

static void test_equivalence(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(variants); i++) {
        for (size_t k = 0; k < NB_COUNT(steps); k++) check_equivalence(&variants[i], steps[k]);
    }
}

/* What the columns of o and down meet is rotated: an outlier is spread over its run. */
static void test_spreads(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    omni_begin(&f, &variants[0], "cpu", 1);
    float *v = nb_block_weight(&f.job, NB_V), *down = nb_block_weight(&f.job, NB_DOWN);
    for (int i = 0; i < 16 * 12; i++) v[i] = i / 12 == 5 ? 1 : 0; /* channel 5 of head 0 */
    for (int i = 0; i < 12 * 24; i++) down[i] = i % 24 == 13 ? 1 : 0;
    assert_int_equal(run_step(&f, "hadamard:vo:down", NULL), NB_OK);
    for (int i = 0; i < 16 * 12; i++) {
        float want = i / 12 < 8 ? (float)(1 / sqrt(8)) : 0;
        assert_float_equal(fabsf(v[i]), want, 1e-6);
    }
    for (int i = 0; i < 12 * 24; i++) {
        float want = i % 24 / 8 == 1 ? (float)(1 / sqrt(8)) : 0;
        assert_float_equal(fabsf(down[i]), want, 1e-6);
    }
    omni_end(&f);
}

/* The keys that are cached are the rotated ones: folded into q and k (OPT can) or online, the
 * quantizers see the same. */
static void test_quantized_keys(void **state)
{
    NB_UNUSED(state);
    float *y[3];
    omni_fixture f[3];
    for (int i = 0; i < 3; i++) { /* folded, online, not at all */
        omni_begin(&f[i], &variants[4], "cpu", 1);
        if (i == 0) assert_int_equal(run_step(&f[i], "hadamard:qk", NULL), NB_OK);
        if (i == 1) f[i].block.rotation.qk = f[i].cfg.head_dim;
        omni_parse(&f[i].block.attn.k, "int3:token:asym");
        omni_parse(&f[i].block.attn.q, "int3:token:asym");
        y[i] = output(&f[i]);
    }
    int64_t n = (int64_t)OMNI_R * f[0].cfg.n_embd;
    assert_true(distance(y[0], y[1], n) < 1e-5);
    assert_true(distance(y[0], y[2], n) > 1e-3);
    for (int i = 0; i < 3; i++) omni_end(&f[i]);
}

static void test_threads(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(variants); i++) {
        omni_fixture a, b;
        omni_begin(&a, &variants[i], "cpu", 1);
        omni_begin(&b, &variants[i], "cpu", 3);
        assert_int_equal(run_step(&a, "hadamard:vo:down:qk", NULL), NB_OK);
        assert_int_equal(run_step(&b, "hadamard:vo:down:qk", NULL), NB_OK);
        for (int r = 0; r < NB_N_ROLES; r++) {
            if (!a.block.linear[r].name) continue;
            assert_false(changed(&a, (nb_role)r, nb_block_weight(&b.job, (nb_role)r)));
        }
        assert_true(json_equal(a.job.report, b.job.report));
        omni_end(&a);
        omni_end(&b);
    }
}

/* ---- the hidden state -------------------------------------------------------------------------
 */

enum { STREAM_T = 24 };

/* Logits [STREAM_T, V] of a model of tests/golden; run > 0: rotated. */
static float *golden_logits(const char *model, int run, int *n_vocab)
{
    char path[100];
    nb_options opt;
    nb_source *src;
    nb_backend *be;
    nb_net *net;
    nb_error err = {0};
    int32_t ids[STREAM_T];
    snprintf(path, sizeof path, "tests/golden/%s", model);
    nb_options_default(&opt);
    assert_int_equal(nb_source_open(&src, path, NULL), NB_OK);
    assert_int_equal(nb_backend_create(&be, &opt, NULL), NB_OK);
    if (run) nb_source_rotate(src, run, 2, be->cpu);
    if (nb_net_create(&net, be, src, false, NULL, &err) != NB_OK) fail_msg("%s", err.message);
    *n_vocab = net->cfg.n_vocab;
    for (int i = 0; i < STREAM_T; i++) ids[i] = (i * 53 + 11) % net->cfg.n_vocab;
    float *out = malloc(sizeof *out * STREAM_T * (size_t)*n_vocab);
    assert_int_equal(nb_eval_logits(net, ids, STREAM_T, out, NULL), NB_OK);
    nb_net_free(net);
    nb_backend_free(be);
    nb_source_close(src);
    return out;
}

/* Tied and untied, biases behind o and down, norms over heads, rows that GGUF keeps in pairs. */
static void test_stream(void **state)
{
    NB_UNUSED(state);
    static const char *const models[] = {"llama-gqa",  "llama-tied",     "llama-bias",
                                         "qwen2",      "qwen3",          "mistral-window",
                                         "qwen2-tied", "llama-head-dim", "gguf-llama/model.gguf"};
    for (size_t i = 0; i < NB_COUNT(models); i++) {
        int n;
        float *a = golden_logits(models[i], 0, &n), *b = golden_logits(models[i], 8, &n);
        double d = distance(a, b, (int64_t)STREAM_T * n);
        if (!(d <= 1e-5)) fail_msg("%s: %g", models[i], d);
        assert_memory_not_equal(a, b, sizeof *a * (size_t)n);
        free(a), free(b);
    }
}

/* An outlier channel of the hidden state, as all blocks write it and read it. */
static void test_stream_spreads(void **state)
{
    NB_UNUSED(state);
    nb_source *s;
    nb_arena *arena;
    nb_host_block a, b;
    assert_int_equal(nb_source_open(&s, "tests/golden/llama-bias", NULL), NB_OK);
    assert_int_equal(nb_arena_create(&arena, NULL), NB_OK);
    assert_int_equal(nb_source_block(s, 1, arena, &a, NULL), NB_OK);
    nb_source_rotate(s, 8, 1, 0);
    assert_int_equal(nb_source_block(s, 1, arena, &b, NULL), NB_OK);
    for (int n = NB_NORM_ATTN; n <= NB_NORM_FFN; n++) {
        for (int i = 0; i < 40; i++) assert_true(b.norm[n].weight[i] == 1);
    }
    float bias[8] = {0};
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 8; j++) {
            float sign = __builtin_popcount((unsigned)(i & j)) % 2 ? -1 : 1;
            bias[i] += sign * a.linear[NB_O].bias[j] / sqrtf(8);
        }
        assert_float_equal(b.linear[NB_O].bias[i], bias[i], 1e-6);
    }
    nb_arena_free(arena);
    nb_source_close(s);
}

/* ---- with other steps --------------------------------------------------------------------------
 */

/* Training sees the rotated block, and what it folds leaves the function as it was. */
static void test_training_behind(void **state)
{
    NB_UNUSED(state);
    static const omni_variant trained[] = {
        {"llama", 32, 4, 2, 8, 48, false, false, false, "int4:row", "int4:token:asym",
         "int4:token:asym"},
        {"qwen3", 32, 4, 2, 8, 48, false, false, false, "int4:row", "int4:token:asym",
         "int4:token:asym"},
        {"opt", 32, 4, 4, 8, 48, true, false, false, "int4:row", "int4:token:asym",
         "int4:token:asym"},
    };
    for (size_t i = 0; i < NB_COUNT(trained); i++) {
        omni_fixture f;
        nb_error err = {0};
        omni_begin(&f, &trained[i], "cpu", 1);
        float *before = output(&f), *q = copy_weight(&f, NB_Q);
        f.job.epochs = 10;
        if (run_step(&f, "hadamard:vo:down:qk", &err) != NB_OK) fail_msg("%s", err.message);
        if (run_step(&f, "omniquant:let:lwc", &err) != NB_OK) fail_msg("%s", err.message);
        json_t *report = json_object_get(f.job.report, "omniquant");
        assert_string_equal(json_string_value(json_object_get(report, "kept")), "trained");
        assert_true(changed(&f, NB_Q, q));
        double d = distance(before, output(&f), (int64_t)OMNI_R * trained[i].embd);
        if (!(d <= 2e-5)) fail_msg("%s: %g", trained[i].family, d);
        omni_end(&f);
    }
}

/* Scales pass before the transform, not behind it. */
static void test_scaling_and_down(void **state)
{
    NB_UNUSED(state);
    omni_fixture f;
    nb_pair p;
    omni_begin(&f, &variants[0], "cpu", 1);
    assert_null(nb_pair_find(&p, &f.job, NB_PAIR_DOWN));
    assert_int_equal(run_step(&f, "hadamard:vo:down", NULL), NB_OK);
    assert_string_equal(nb_pair_find(&p, &f.job, NB_PAIR_DOWN),
                        "a Hadamard transform stands between them");
    assert_null(nb_pair_find(&p, &f.job, NB_PAIR_O));
    omni_end(&f);
}

static void test_refusals(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *steps[2], *message;
        int head_dim, ffn;
    } cases[] = {
        {{"hadamard"},
         "step \"hadamard\": nothing to rotate; say hadamard:stream, :vo, :down or :qk",
         8,
         24},
        {{"hadamard:stream:vo", "hadamard:stream"},
         "step \"hadamard\": stream: a second time",
         8,
         24},
        {{"hadamard:vo"},
         "step \"hadamard\": vo: heads of 10 channels, expected a power of two",
         10,
         24},
        {{"hadamard:qk"},
         "step \"hadamard\": qk: heads of 6 channels, expected a power of two",
         6,
         24},
        {{"hadamard:down"}, "step \"hadamard\": down: 25 channels, expected an even number", 8, 25},
        {{"hadamard:down", "hadamard:vo:down"}, "step \"hadamard\": down: a second time", 8, 24},
        {{"hadamard:qk", "hadamard:qk"}, "step \"hadamard\": qk: a second time", 8, 24},
    };
    for (size_t i = 0; i < NB_COUNT(cases); i++) {
        omni_variant v = variants[0];
        v.head_dim = cases[i].head_dim;
        v.ffn = cases[i].ffn;
        nb_config cfg = omni_config(&v);
        nb_step parsed[2];
        nb_rotation rotation;
        nb_error err = {0};
        int n = 0;
        while (n < 2 && cases[i].steps[n]) {
            assert_int_equal(nb_step_parse(&parsed[n], cases[i].steps[n], NULL), NB_OK);
            n++;
        }
        assert_int_equal(nb_steps_rotation(parsed, n, &cfg, &rotation, &err), NB_EUSAGE);
        assert_string_equal(err.message, cases[i].message);
        if (strstr(cases[i].steps[0], "stream")) continue; /* the source's, not the block's */
        omni_fixture f;
        omni_begin(&f, &v, "cpu", 1);
        for (int k = 0; k + 1 < n; k++) assert_int_equal(run_step(&f, cases[i].steps[k], NULL), 0);
        float *q = copy_weight(&f, NB_DOWN);
        assert_int_equal(run_step(&f, cases[i].steps[n - 1], &err), NB_EUSAGE);
        assert_false(changed(&f, NB_DOWN, q));
        omni_end(&f);
    }
}

static void test_stream_refused(void **state)
{
    NB_UNUSED(state);
    nb_config cfg = omni_config(&variants[4]), odd = omni_config(&variants[0]);
    nb_step step;
    nb_rotation rotation;
    nb_error err = {0};
    assert_int_equal(nb_step_parse(&step, "hadamard:stream", NULL), NB_OK);
    assert_int_equal(nb_steps_rotation(&step, 1, &cfg, &rotation, &err), NB_EUSAGE);
    assert_string_equal(err.message,
                        "step \"hadamard\": stream: the norms of \"opt\" take the mean "
                        "away; a rotation passes RMS norms alone");
    odd.n_embd = 13;
    assert_int_equal(nb_steps_rotation(&step, 1, &odd, &rotation, &err), NB_EUSAGE);
    assert_string_equal(err.message,
                        "step \"hadamard\": stream: 13 channels, expected an even number");
}

/* ---- a directory ------------------------------------------------------------------------------
 */

static char root[64];

static int make_root(void **state)
{
    NB_UNUSED(state);
    snprintf(root, sizeof root, "/tmp/nibble-hadamard-XXXXXX");
    return mkdtemp(root) && tiny_model_write(tiny_path(root, "source"), 5, NULL) ? 0 : -1;
}

static int remove_root(void **state)
{
    NB_UNUSED(state);
    return nb_remove_tree(root, NULL) == NB_OK ? 0 : -1;
}

static nb_status quantize(const char *out, const char *recipe, int threads, nb_error *err)
{
    nb_quantize_options o;
    nb_quantize_result r;
    nb_quantize_options_default(&o);
    o.model = tiny_path(root, "source");
    o.out = tiny_path(root, out);
    o.recipe = recipe;
    o.run.threads = threads;
    return nb_quantize(&o, &r, err);
}

enum { TOKENS = 48 };

static void make_ids(int32_t *ids)
{
    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 53 + i / 7) % TINY_VOCAB;
}

/* [TOKENS, TINY_VOCAB] */
static float *logits_of(const char *name, bool simulate)
{
    nb_options o;
    nb_model *m;
    nb_error err = {0};
    int32_t ids[TOKENS];
    nb_options_default(&o);
    o.simulate = simulate;
    make_ids(ids);
    if (nb_model_open(&m, tiny_path(root, name), &o, &err) != NB_OK) fail_msg("%s", err.message);
    float *out = malloc(sizeof(float) * TOKENS * TINY_VOCAB);
    assert_int_equal(nb_logits(m, ids, TOKENS, out, NULL), NB_OK);
    nb_model_close(m);
    return out;
}

/* Weights of 8 bits alone: the model is the source's within their error, which another rotation
 * than the one that config.json tells of would leave nothing of. */
static void test_directory(void **state)
{
    NB_UNUSED(state);
    static const char plain[] = "weights: int8:row\n";
    static const char rotated[] =
        "weights: int8:row\nmethod: [hadamard:stream:vo:down:qk, minmax, nearest]\n";
    assert_int_equal(quantize("plain", plain, 1, NULL), NB_OK);
    assert_int_equal(quantize("rotated", rotated, 1, NULL), NB_OK);
    float *source = logits_of("source", false), *a = logits_of("plain", false);
    float *b = logits_of("rotated", false), *c = logits_of("rotated", true);
    double usual = distance(source, a, TOKENS * TINY_VOCAB);
    double d = distance(source, b, TOKENS * TINY_VOCAB);
    if (!(d <= 2 * usual && d <= 0.02)) fail_msg("%g, without rotation %g", d, usual);
    assert_true(distance(b, c, TOKENS * TINY_VOCAB) <= 1e-5);
    nb_inspection *in;
    nb_verify_result v;
    nb_options o;
    nb_options_default(&o);
    assert_int_equal(nb_inspect(&in, tiny_path(root, "rotated"), NULL), NB_OK);
    assert_int_equal(in->info.hadamard_down, 8); /* of 72 */
    assert_int_equal(in->info.hadamard_qk, TINY_HEAD);
    assert_int_equal(in->info.hadamard_stream, TINY_EMBD);
    nb_inspection_free(in);
    assert_int_equal(nb_verify(tiny_path(root, "rotated"), &o, &v, NULL), NB_OK);
    free(source), free(a), free(b), free(c);
}

static void assert_same_file(const char *a, const char *b, const char *file)
{
    char *x, *y;
    size_t n, m;
    char path[2][200];
    snprintf(path[0], sizeof path[0], "%s/%s", tiny_path(root, a), file);
    snprintf(path[1], sizeof path[1], "%s/%s", tiny_path(root, b), file);
    assert_int_equal(nb_file_read(path[0], &x, &n, NULL), NB_OK);
    assert_int_equal(nb_file_read(path[1], &y, &m, NULL), NB_OK);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    nb_free(x), nb_free(y);
}

/* Everything quantized: the same bytes for any threads, the same logits by the simulation, and
 * token by token. */
static void test_full_path(void **state)
{
    NB_UNUSED(state);
    static const char recipe[] =
        "weights: dialect:b16\nacts: dialect:b16\nkv: dialect:b16\nquery: dialect:b16\n"
        "probs: dialect:b16\nmethod: [hadamard:stream:vo:down:qk, minmax, nearest]\n";
    assert_int_equal(quantize("one", recipe, 1, NULL), NB_OK);
    assert_int_equal(quantize("three", recipe, 3, NULL), NB_OK);
    static const char *const files[] = {"model-00001-of-00004.safetensors",
                                        "model-00002-of-00004.safetensors",
                                        "model-00003-of-00004.safetensors",
                                        "model-00004-of-00004.safetensors",
                                        "config.json",
                                        "report.json",
                                        "recipe.yaml"};
    for (size_t i = 0; i < NB_COUNT(files); i++) assert_same_file("one", "three", files[i]);
    float *at_once = logits_of("one", false), *simulated = logits_of("one", true);
    assert_true(distance(at_once, simulated, TOKENS * TINY_VOCAB) <= 1e-5);
    nb_options o;
    nb_backend *be;
    nb_source *src;
    nb_net *net;
    nb_session *s;
    int32_t ids[TOKENS];
    nb_options_default(&o);
    make_ids(ids);
    assert_int_equal(nb_backend_create(&be, &o, NULL), NB_OK);
    assert_int_equal(nb_source_open(&src, tiny_path(root, "one"), NULL), NB_OK);
    assert_int_equal(nb_net_create(&net, be, src, false, NULL, NULL), NB_OK);
    assert_int_equal(nb_session_create(&s, net, TOKENS, NULL), NB_OK);
    for (int i = 0; i < TOKENS; i++) {
        const float *logits;
        assert_int_equal(nb_session_append(s, ids + i, 1, &logits, NULL), NB_OK);
        double d = distance(at_once + i * TINY_VOCAB, logits, TINY_VOCAB);
        if (!(d <= 1e-5)) fail_msg("position %d: %g", i, d);
    }
    nb_session_free(s);
    nb_net_free(net);
    nb_source_close(src);
    nb_backend_free(be);
    free(at_once), free(simulated);
}

/* With text: the source's states are rotated as the stored ones are, so that what training and
 * reports compare is comparable. */
static void test_calibrated(void **state)
{
    NB_UNUSED(state);
    static const char *const recipes[] = {
        "weights: int8:row\nmethod: [hadamard:stream:vo:down:qk, smooth, minmax, gptq]\n"
        "samples: 4\nseqlen: 32\n",
        "weights: int8:row\nacts: int8:token\nepochs: 1\nsamples: 4\nseqlen: 32\n"
        "method: [hadamard:stream:down, omniquant:lwc:let, nearest]\n"};
    assert_true(tiny_write_text(root, "calib.txt"));
    char path[160];
    const char *text = path;
    snprintf(path, sizeof path, "%s", tiny_path(root, "calib.txt"));
    float *source = logits_of("source", false);
    for (size_t i = 0; i < NB_COUNT(recipes); i++) {
        nb_quantize_options o;
        nb_quantize_result r;
        nb_error err = {0};
        nb_quantize_options_default(&o);
        o.model = tiny_path(root, "source");
        o.out = tiny_path(root, "calibrated");
        o.recipe = recipes[i];
        o.calib = &text;
        o.n_calib = 1;
        o.force = true;
        if (nb_quantize(&o, &r, &err) != NB_OK) fail_msg("%s", err.message);
        float *y = logits_of("calibrated", false);
        double d = distance(source, y, TOKENS * TINY_VOCAB);
        if (!(d <= 0.05)) fail_msg("%s: %g", recipes[i], d);
        json_t *report = json_load_file(tiny_path(root, "calibrated/report.json"), 0, NULL);
        json_t *shard;
        size_t k;
        json_array_foreach (json_object_get(report, "shards"), k, shard) {
            json_t *error = json_object_get(shard, "output_error");
            assert_true((k == 0) == !error);
            if (error && !(json_real_value(error) < 1e-3)) fail_msg("%g", json_real_value(error));
        }
        json_decref(report);
        free(y);
    }
    free(source);
}

/* What config.json says of transforms, replaced. */
static void say(const char *from, const char *to)
{
    static const char name[] = "config.json";
    char *text, path[200];
    size_t n;
    nb_strbuf b;
    snprintf(path, sizeof path, "%s/%s", tiny_path(root, "said"), name);
    assert_int_equal(nb_file_read(path, &text, &n, NULL), NB_OK);
    char *at = strstr(text, from);
    assert_non_null(at);
    nb_strbuf_init(&b, 1 << 20);
    nb_strbuf_printf(&b, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    assert_true(tiny_write(tiny_path(root, "said"), name, b.data));
    nb_strbuf_fini(&b);
    nb_free(text);
}

static void test_bad_config(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *says, *message;
    } cases[] = {
        {"\"down\": 12", "quantization_config.hadamard.down: 12, expected a power of two that "
                         "divides 72"},
        {"\"down\": 16", "quantization_config.hadamard.down: 16, expected a power of two that "
                         "divides 72"},
        {"\"down\": \"8\"", "quantization_config.hadamard.down: 0, expected"},
        {"\"qk\": 16", "quantization_config.hadamard.qk: 16, expected a power of two that divides "
                       "8"},
        {"\"up\": 8", "quantization_config.hadamard: \"up\", expected down, qk or"},
    };
    static const char recipe[] = "weights: int8:row\nmethod: [hadamard:down, minmax, nearest]\n";
    assert_int_equal(quantize("said", recipe, 1, NULL), NB_OK);
    const char *now = "\"down\": 8";
    for (size_t i = 0; i < NB_COUNT(cases); i++) {
        nb_source *s;
        nb_error err = {0};
        say(now, cases[i].says);
        now = cases[i].says;
        assert_int_equal(nb_source_open(&s, tiny_path(root, "said"), &err), NB_EINPUT);
        if (!strstr(err.message, cases[i].message)) fail_msg("%s", err.message);
    }
}

/* Refused before any work. */
static void test_refused_early(void **state)
{
    NB_UNUSED(state);
    nb_error err = {0};
    static const char recipe[] = "weights: int4:g8\nmethod: [hadamard, minmax, nearest]\n";
    assert_int_equal(quantize("refused", recipe, 1, &err), NB_EUSAGE);
    assert_non_null(strstr(err.message, "nothing to rotate"));
    assert_int_equal(nb_file_bytes(tiny_path(root, "refused.partial")), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equivalence),     cmocka_unit_test(test_spreads),
        cmocka_unit_test(test_quantized_keys),  cmocka_unit_test(test_threads),
        cmocka_unit_test(test_training_behind), cmocka_unit_test(test_scaling_and_down),
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_directory),
        cmocka_unit_test(test_full_path),       cmocka_unit_test(test_bad_config),
        cmocka_unit_test(test_refused_early),   cmocka_unit_test(test_stream),
        cmocka_unit_test(test_stream_spreads),  cmocka_unit_test(test_stream_refused),
        cmocka_unit_test(test_calibrated),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
