/* The block loop end to end on a tiny random model: same bytes for any number of threads and after
 * any interruption; every way in which it must refuse. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "calib/gram.h"
#include "calib/plan.h"
#include "calib_util.h"

static int make_root(void **state)
{
    NB_UNUSED(state);
    snprintf(root, sizeof root, "/tmp/nibble-calib-XXXXXX");
    if (!mkdtemp(root)) return -1;
    bool ok = tiny_model_write(in_root("model"), 1, NULL) &&
              tiny_model_write(in_root("other"), 2, NULL) && tiny_write_text(root, "text.txt") &&
              tiny_write(root, "more.txt", "another text\n");
    return ok ? 0 : -1;
}

static int remove_root(void **state)
{
    NB_UNUSED(state);
    return nb_remove_tree(root, NULL) == NB_OK ? 0 : -1;
}

/* ---- what comes out ----------------------------------------------------------------------- */

static void test_output(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_command(&c, "output");
    must_run(&c);
    assert_int_equal(c.result.n_blocks, TINY_LAYERS);
    assert_int_equal(c.result.n_resumed, 0);
    assert_false(nb_path_exists(in_root("output.partial")));
    assert_false(nb_path_exists(in_root("output/journal.jsonl")));
    assert_true(nb_path_exists(in_root("output/tokenizer.json")));

    nb_source *source, *stored;
    nb_arena *arena;
    assert_int_equal(nb_arena_create(&arena, NULL), NB_OK);
    assert_int_equal(nb_source_open(&source, c.model, NULL), NB_OK);
    assert_int_equal(nb_source_open(&stored, c.out, &c.err), NB_OK);
    assert_true(nb_source_is_quantized(stored));
    double bits = 0, weights = 0;
    for (int i = 0; i < TINY_LAYERS; i++) {
        nb_host_block a, b;
        assert_int_equal(nb_source_block(source, i, arena, &a, NULL), NB_OK);
        assert_int_equal(nb_source_block(stored, i, arena, &b, &c.err), NB_OK);
        for (int r = 0; r < NB_N_ROLES; r++) {
            const nb_matrix *w = &b.linear[r].w;
            assert_string_equal(w->format.word, "int3:g32");
            bits += 8.0 * (double)nb_matrix_bytes(w);
            weights += (double)(w->n_out * w->n_in);
            float before[TINY_FFN], after[TINY_FFN];
            double error = 0, power = 0;
            for (int64_t row = 0; row < w->n_out; row++) {
                nb_matrix_dequant(&a.linear[r].w, row, 1, before);
                nb_matrix_dequant(w, row, 1, after);
                for (int64_t k = 0; k < w->n_in; k++) {
                    double d = (double)(after[k] - before[k]);
                    error += d * d;
                    power += (double)(before[k] * before[k]);
                }
            }
            /* A group of 32 normals spans about 4.1 sigma: (4.1/7)^2/12 = 0.029 */
            assert_true(error > 0.01 * power && error < 0.05 * power);
        }
    }
    assert_true(fabs(c.result.bits_per_weight - bits / weights) < 1e-9);
    assert_int_equal(c.result.n_quantized, (int64_t)weights);
    nb_source_close(source);
    nb_source_close(stored);
    nb_arena_free(arena);
}

/* Without text, with text that is only followed, with steps that need it, with steps on whole
 * blocks and every linear's statistics behind what is rounded before it, and with training. */
enum { PLAIN, FOLLOWED, NEEDED, MOVED, LEARNED, N_KINDS };

static void begin_kind(command *c, const char *out, int kind)
{
    begin_command(c, out);
    c->opt.method = "mse,nearest";
    if (kind == PLAIN) return;
    with_text(c);
    if (kind == FOLLOWED) return;
    c->opt.method = kind == NEEDED ? "mse,gptq:act_order" : "smooth,awq_clip,gptq,lorc:rank=2";
    c->opt.acts = "int8:token";
    if (kind == LEARNED) {
        c->opt.method = "awq,omniquant:lwc:awq_clip,signround:iters=3:batch=2,lorc:rank=2";
        c->opt.epochs = 1;
    }
    if (kind == MOVED) {
        c->opt.recipe = "sequential: true\nkv: int8:token\nquery: fp8:token\n"
                        "linears: {down: {weights: int4:g32, acts: int8:token:asym}, "
                        "k: {acts: none}, v: {weights: f16}}\n";
    }
}

static void run_variant(const char *out, int threads, int kind)
{
    command c;
    begin_kind(&c, out, kind);
    c.opt.run.threads = threads;
    must_run(&c);
}

static void test_threads(void **state)
{
    NB_UNUSED(state);
    for (int kind = 0; kind < N_KINDS; kind++) {
        run_variant("t1", 1, kind);
        run_variant("t2", 2, kind);
        run_variant("t4", 4, kind);
        assert_same_dirs(in_root("t1"), in_root("t2"));
        assert_same_dirs(in_root("t1"), in_root("t4"));
        for (int t = 1; t <= 4; t *= 2) {
            char name[8];
            snprintf(name, sizeof name, "t%d", t);
            assert_int_equal(nb_remove_tree(in_root(name), NULL), NB_OK);
        }
    }
}

/* Stops at the k-th progress call for every k, goes on, and compares. */
static void interrupt_everywhere(int kind)
{
    command whole;
    begin_kind(&whole, "whole", kind);
    must_run(&whole);
    for (int k = 1; k <= whole.calls; k++) {
        command c;
        begin_kind(&c, "parts", kind);
        c.stop_at = k;
        nb_status st = run_command(&c);
        assert_int_equal(st, NB_EINTERRUPTED);
        assert_false(nb_path_exists(c.out));
        assert_int_equal(nb_path_exists(in_root("parts.partial")), k > 1); /* 1: nothing begun */
        c.stop_at = 0;
        c.opt.resume = true;
        must_run(&c);
        assert_same_dirs(whole.out, c.out);
        assert_int_equal(nb_remove_tree(c.out, NULL), NB_OK);
    }
    assert_int_equal(nb_remove_tree(whole.out, NULL), NB_OK);
}

static void test_interrupt(void **state)
{
    NB_UNUSED(state);
    interrupt_everywhere(PLAIN);
}

static void test_interrupt_calibrated(void **state)
{
    NB_UNUSED(state);
    interrupt_everywhere(FOLLOWED);
    interrupt_everywhere(NEEDED);
    interrupt_everywhere(MOVED);
    interrupt_everywhere(LEARNED);
}

/* At most one block is done again. */
static void test_resume_count(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_command(&c, "count");
    c.stop_at = 2 + 2 + 2 * (7 + 1) + 3; /* start; ends; two blocks; three linears of the third */
    assert_int_equal(run_command(&c), NB_EINTERRUPTED);
    c.stop_at = 0;
    c.opt.resume = true;
    must_run(&c);
    assert_int_equal(c.result.n_resumed, 2);
    /* Resuming what is whole is no error and does nothing. */
    c.calls = 0;
    must_run(&c);
    assert_int_equal(c.calls, 1);
    assert_int_equal(c.result.n_resumed, TINY_LAYERS);
    assert_true(c.result.bytes > 0);
}

/* ---- refusing ----------------------------------------------------------------------------- */

/* ---- steps that need statistics ------------------------------------------------------------ */

static json_t *read_report(const char *dir)
{
    char *path = nb_path_join(dir, "report.json");
    json_t *report = json_load_file(path, 0, NULL);
    free(path);
    assert_non_null(report);
    return report;
}

static double output_error(const json_t *report, int block)
{
    json_t *shard = json_array_get(json_object_get(report, "shards"), (size_t)block + 1);
    return json_real_value(json_object_get(shard, "output_error"));
}

/* GPTQ changes the output of every block less than rounding to nearest does, its loss is in the
 * report, and matrices outside the blocks are rounded without it. */
static void test_gptq(void **state)
{
    NB_UNUSED(state);
    static const char *const methods[] = {"nearest", "gptq"};
    json_t *report[2];
    for (int i = 0; i < 2; i++) {
        command c;
        begin_command(&c, methods[i]);
        with_text(&c);
        c.opt.samples = 8;
        c.opt.recipe = "embedding: int8:g32\n";
        c.opt.method = methods[i];
        must_run(&c);
        report[i] = read_report(c.out);
    }
    for (int i = 0; i < TINY_LAYERS; i++) {
        double nearest = output_error(report[0], i), gptq = output_error(report[1], i);
        assert_true(nearest > 0 && gptq > 0 && gptq < 0.8 * nearest);
    }
    for (int shard = 0; shard < 2; shard++) {
        json_t *linears = json_object_get(
            json_array_get(json_object_get(report[1], "shards"), (size_t)shard), "linears");
        size_t i;
        json_t *one;
        json_array_foreach (linears, i, one) {
            assert_int_equal(json_object_get(one, "loss") != NULL, shard == 1);
            assert_null(json_object_get(one, "note"));
        }
    }
    json_decref(report[0]);
    json_decref(report[1]);
}

/* Formats of single linears and of attention come back from config.json, block by block. */
static void test_linear_formats(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_kind(&c, "formats", MOVED);
    must_run(&c);
    nb_source *stored;
    nb_arena *arena;
    nb_host_block b;
    assert_int_equal(nb_arena_create(&arena, NULL), NB_OK);
    assert_int_equal(nb_source_open(&stored, c.out, &c.err), NB_OK);
    for (int i = 0; i < TINY_LAYERS; i++) {
        assert_int_equal(nb_source_block(stored, i, arena, &b, &c.err), NB_OK);
        assert_string_equal(b.linear[NB_Q].w.format.word, "int3:g32");
        assert_string_equal(b.linear[NB_Q].act.word, "int8:token");
        assert_null(b.linear[NB_K].act.family);
        assert_string_equal(b.linear[NB_V].w.format.word, "f16");
        assert_null(b.linear[NB_V].act.family);
        assert_string_equal(b.linear[NB_DOWN].w.format.word, "int4:g32");
        assert_string_equal(b.linear[NB_DOWN].act.word, "int8:token:asym");
    }
    nb_source_close(stored);
    nb_arena_free(arena);
    json_t *report = read_report(c.out);
    json_t *shard = json_array_get(json_object_get(report, "shards"), 1);
    assert_non_null(json_object_get(json_object_get(shard, "steps"), "smooth"));
    json_t *q = json_array_get(json_object_get(shard, "linears"), 0);
    double clipped = json_real_value(json_object_get(q, "clipped"));
    assert_true(clipped > 0 && clipped < 0.2); /* by the clip search */
    json_decref(report);
}

/* With weights in fp32 only what is quantized online errs; left out of the flow, nothing does. */
static void test_calib_acts(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *recipe;
        bool exact;
    } cases[] = {{"", true},
                 {"rope: interleaved\n", true},
                 {"linears: {up: {acts: int4:token}}\n", false},
                 {"linears: {up: {acts: int4:token}}\ncalib_acts: fp\n", true},
                 {"kv: int4:token\n", false},
                 {"kv: int4:token\ncalib_acts: fp\n", true}};
    for (size_t i = 0; i < NB_COUNT(cases); i++) {
        command c;
        char out[16];
        snprintf(out, sizeof out, "acts-%zu", i);
        begin_command(&c, out);
        with_text(&c);
        c.opt.weights = "f32";
        c.opt.recipe = cases[i].recipe;
        if (!*cases[i].recipe) c.opt.recipe = NULL;
        must_run(&c);
        json_t *report = read_report(c.out);
        assert_true((output_error(report, 0) == 0) == cases[i].exact);
        json_decref(report);
    }
}

/* The statistics of what comes later see what was rounded earlier: o differs, q does not. */
static void test_sequential(void **state)
{
    NB_UNUSED(state);
    nb_source *s[2];
    nb_arena *arena;
    nb_host_block b[2];
    assert_int_equal(nb_arena_create(&arena, NULL), NB_OK);
    for (int i = 0; i < 2; i++) {
        command c;
        begin_command(&c, i ? "in-order" : "at-once");
        with_text(&c);
        c.opt.recipe = i ? "sequential: true\n" : NULL;
        c.opt.method = "gptq";
        must_run(&c);
        assert_int_equal(nb_source_open(&s[i], c.out, NULL), NB_OK);
        assert_int_equal(nb_source_block(s[i], 0, arena, &b[i], NULL), NB_OK);
    }
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_matrix *x = &b[0].linear[r].w, *y = &b[1].linear[r].w;
        size_t n = (size_t)(x->n_out * (x->n_in * 3 / 8));
        bool same = memcmp(x->plane[0], y->plane[0], n) == 0;
        assert_int_equal(same, r == NB_Q || r == NB_K || r == NB_V);
    }
    for (int i = 0; i < 2; i++) nb_source_close(s[i]);
    nb_arena_free(arena);
}

static void test_needs_text(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_command(&c, "needs");
    c.opt.method = "minmax,gptq";
    must_fail(&c, NB_EUSAGE, "method", "needs calibration text");
    c.opt.weights = "f16"; /* converted only: no step runs */
    must_run(&c);
}

/* Keeps what is shown, and passes it on. */
typedef struct watcher {
    nb_backend *be;
    nb_grams *grams;
    int count[NB_N_ROLES];
    double sum[TINY_FFN * TINY_FFN]; /* of the inputs of `role` */
    nb_role role;
    bool raw; /* tokens as they are; else each with a mean square of 1 */
} watcher;

static void watch(void *user, nb_role role, nb_view x)
{
    watcher *w = user;
    float rows[16 * TINY_FFN];
    w->count[role]++;
    nb_grams_observe(w->grams, role, x);
    if (role != w->role) return;
    assert_true(x.rows <= 16 && x.cols <= TINY_FFN);
    w->be->ops->download(w->be, x, rows, NB_F32);
    for (int64_t t = 0; t < x.rows; t++) {
        const float *v = rows + t * x.cols;
        double square = 0;
        for (int64_t i = 0; i < x.cols; i++) square += (double)v[i] * (double)v[i];
        double weight = w->raw ? 1 : (double)x.cols / square;
        for (int64_t i = 0; i < x.cols * x.cols; i++) {
            w->sum[i] += weight * (double)v[i / x.cols] * (double)v[i % x.cols];
        }
    }
}

/* Two windows through block 1 with `role` watched: H of every linear with that input is 2/2 X^T X.
 */
static void check_statistics(nb_role role, nb_role same, int64_t n, bool raw)
{
    enum { T = 16 };
    nb_options opt = {.device = "cpu", .threads = 2, .cpumask = ~0u};
    nb_source *source;
    nb_arena *arena;
    nb_host_block host;
    nb_block *block;
    nb_workspace *ws;
    nb_view rope;
    nb_buffer *buf;
    nb_kv *kv;
    static watcher w;
    w = (watcher){.role = role, .raw = raw};
    assert_int_equal(nb_backend_create(&w.be, &opt, NULL), NB_OK);
    assert_int_equal(nb_arena_create(&arena, NULL), NB_OK);
    assert_int_equal(nb_source_open(&source, in_root("model"), NULL), NB_OK);
    const nb_config *cfg = nb_source_config(source);
    assert_int_equal(nb_source_block(source, 1, arena, &host, NULL), NB_OK);
    assert_int_equal(nb_block_create(w.be, cfg, &host, &block, NULL), NB_OK);
    assert_int_equal(nb_workspace_create(w.be, cfg, T, &ws, NULL), NB_OK);
    assert_int_equal(nb_rope_table(w.be, cfg, T, &rope, NULL), NB_OK);
    assert_int_equal(nb_grams_create(&w.grams, w.be, &host, NB_ALL_ROLES, raw, NULL), NB_OK);
    assert_int_equal(w.be->ops->buffer_create(w.be, T * TINY_EMBD, &buf, NULL), NB_OK);
    nb_kv_desc d = nb_block_kv(block, T);
    assert_int_equal(w.be->ops->kv_create(w.be, &d, &kv, NULL), NB_OK);
    nb_workspace_observe(ws, watch, &w);
    nb_rng rng = {17};
    nb_view x = nb_view_of(buf, T, TINY_EMBD);
    for (int window = 0; window < 2; window++) {
        float v[T * TINY_EMBD];
        for (int i = 0; i < T * TINY_EMBD; i++) v[i] = (float)nb_rng_normal(&rng);
        w.be->ops->upload(w.be, x, v, NB_F32);
        nb_block_forward(block, ws, x, kv, rope, 0);
    }
    static const int shown[NB_N_ROLES] = {
        [NB_Q] = 2, [NB_O] = 2, [NB_UP] = 2, [NB_DOWN] = 2}; /* per window once */
    assert_memory_equal(w.count, shown, sizeof shown);
    const float *h, *again, *diagonal;
    assert_int_equal(nb_grams_take(w.grams, role, &h, &diagonal, NULL), NB_OK);
    assert_int_equal(nb_grams_take(w.grams, same, &again, &diagonal, NULL), NB_OK);
    assert_ptr_equal(h, again);
    for (int64_t i = 0; i < n; i++) {
        double size = w.sum[i * n + i];
        assert_true(diagonal[i] == h[i * n + i] && size > 0);
        for (int64_t j = i; j < n; j++) {
            double bound = 1e-5 * sqrt(size * w.sum[j * n + j]);
            assert_true(fabs((double)h[i * n + j] - w.sum[i * n + j]) <= bound);
        }
    }
    w.be->ops->kv_free(w.be, kv);
    w.be->ops->buffer_free(w.be, buf);
    w.be->ops->buffer_free(w.be, rope.buf);
    nb_grams_free(w.grams);
    nb_workspace_free(ws);
    nb_block_free(block);
    nb_source_close(source);
    nb_arena_free(arena);
    nb_backend_free(w.be);
}

static void test_statistics(void **state)
{
    NB_UNUSED(state);
    for (int raw = 0; raw < 2; raw++) {
        check_statistics(NB_Q, NB_V, TINY_EMBD, raw);
        check_statistics(NB_O, NB_O, TINY_HEADS * TINY_HEAD, raw);
        check_statistics(NB_UP, NB_GATE, TINY_EMBD, raw);
        check_statistics(NB_DOWN, NB_DOWN, TINY_FFN, raw);
    }
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void test_nan(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_command(&c, "nan");
    snprintf(c.model, sizeof c.model, "%s", in_root("bad"));
    assert_true(tiny_model_write(c.model, 1, "model.layers.1.mlp.up_proj.weight"));
    must_fail(&c, NB_ENUMERIC, "block 1", "model.layers.1.mlp.up_proj");
    assert_non_null(strstr(c.err.message, "[36, 0]"));
    c.opt.resume = true; /* and again: the same, not worse */
    must_fail(&c, NB_ENUMERIC, "block 1", "model.layers.1.mlp.up_proj");
}

static void test_in_the_way(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_command(&c, "way");
    c.stop_at = 12;
    assert_int_equal(run_command(&c), NB_EINTERRUPTED);
    c.stop_at = 0;
    must_fail(&c, NB_EUSAGE, "way.partial", "--resume");
    c.opt.force = true;
    must_run(&c);
    assert_int_equal(c.result.n_resumed, 0);
    c.opt.force = false;
    must_fail(&c, NB_EUSAGE, "exists", "--force");
    c.opt.force = true;
    c.opt.weights = "int4:g64";
    must_run(&c);
    assert_false(nb_path_exists(in_root("way.replaced")));
    /* A directory that is none of ours is never replaced. */
    snprintf(c.out, sizeof c.out, "%s", in_root("other"));
    must_fail(&c, NB_EUSAGE, "no quantized model", "other");
    assert_true(nb_path_exists(in_root("other/model.safetensors")));
}

static void interrupted(command *c, const char *out)
{
    begin_command(c, out);
    with_text(c);
    c->stop_at = 30;
    assert_int_equal(run_command(c), NB_EINTERRUPTED);
    c->stop_at = 0;
    c->opt.resume = true;
}

static void test_other_run(void **state)
{
    NB_UNUSED(state);
    command c;
    interrupted(&c, "run");
    c.opt.weights = "int4:g32";
    must_fail(&c, NB_EUSAGE, "another recipe", "--force");
    c.opt.weights = "int3:g32";
    c.opt.seed = 3;
    must_fail(&c, NB_EUSAGE, "another recipe", "--force");
    c.opt.seed = -1;
    c.texts[1] = in_root("more.txt");
    c.opt.n_calib = 2;
    must_fail(&c, NB_EUSAGE, "another calibration", "--force");
    c.opt.n_calib = 1;
    snprintf(c.model, sizeof c.model, "%s", in_root("other"));
    must_fail(&c, NB_EUSAGE, "another source", "--force");
    snprintf(c.model, sizeof c.model, "%s", in_root("model"));
    must_run(&c);
}

static void test_damage(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_command(&c, "damage");
    c.stop_at = 2 + 2 + 8 + 4;
    assert_int_equal(run_command(&c), NB_EINTERRUPTED);
    c.stop_at = 0;
    c.opt.resume = true;
    const char *shard = in_root("damage.partial/model-00002-of-00004.safetensors");
    assert_int_equal(truncate(shard, nb_file_bytes(shard) - 1), 0);
    must_fail(&c, NB_EVERIFY, "model-00002-of-00004.safetensors", "--force");
    assert_int_equal(unlink(shard), 0);
    must_fail(&c, NB_EVERIFY, "model-00002-of-00004.safetensors", "--force");
    assert_true(tiny_write(in_root("damage.partial"), "journal.jsonl", "{\"a\":1}\n{\"b"));
    must_fail(&c, NB_EUSAGE, "journal.jsonl", "--force");
    assert_int_equal(unlink(in_root("damage.partial/journal.jsonl")), 0);
    must_run(&c); /* without a journal nothing counts as finished */
    assert_int_equal(c.result.n_resumed, 0);
}

static void test_limits(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_command(&c, "limits");
    with_text(&c);
    c.opt.memory = 1 << 20;
    must_fail(&c, NB_ERESOURCE, "memory", "MiB");
    c.opt.memory = 0;
    c.opt.run.device = "abacus";
    must_fail(&c, NB_EUSAGE, "device", "abacus");
    c.opt.run.device = "cpu";
    c.opt.seqlen = TINY_CTX + 1;
    must_fail(&c, NB_EUSAGE, "seqlen", "64");
    c.opt.seqlen = 32;
    c.texts[0] = in_root("more.txt");
    must_fail(&c, NB_EUSAGE, "calibration text", "13 tokens");
    c.texts[0] = in_root("missing.txt");
    must_fail(&c, NB_EINPUT, "missing.txt", "");
    assert_false(nb_path_exists(in_root("limits.partial")));
    c.opt.dry_run = true;
    c.texts[0] = in_root("text.txt");
    must_run(&c);
    assert_false(nb_path_exists(in_root("limits.partial")));
    assert_true(c.result.bits_per_weight > 3 && c.result.estimated_memory > 0);
    assert_true(c.result.estimated_seconds > 0);
}

static void test_quantized_source(void **state)
{
    NB_UNUSED(state);
    command c;
    begin_command(&c, "twice");
    must_run(&c);
    snprintf(c.model, sizeof c.model, "%s", in_root("twice"));
    snprintf(c.out, sizeof c.out, "%s", in_root("thrice"));
    must_fail(&c, NB_EUSAGE, "already", "twice");
}

/* ---- values for a second reader -------------------------------------------------------------- */

static bool dump_matrix(const char *dir, const char *module, const char *tail, const nb_matrix *w)
{
    size_t n = (size_t)w->n_out * (size_t)w->n_in;
    float *v = malloc(n * sizeof *v);
    char name[200];
    snprintf(name, sizeof name, "%s.weight%s.f32", module, tail);
    char *path = nb_path_join(dir, name);
    if (v) nb_matrix_dequant(w, 0, w->n_out, v);
    bool ok = v && path && nb_write_file(path, v, n * sizeof *v, NULL) == NB_OK;
    free(path);
    free(v);
    return ok;
}

static const char *word_of(const nb_format *f)
{
    return nb_format_is_quantized(f) ? f->word : "none";
}

static void add_formats(nb_strbuf *b, const nb_host_block *block)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &block->linear[r];
        if (!l->name) continue;
        nb_strbuf_printf(b, "%s %s %s %d\n", l->name, word_of(&l->w.format), word_of(&l->act),
                         l->bias != NULL);
    }
}

/* Lines MODULE WEIGHTS ACTS BIAS, and one of attention, the order of rotary pairs, and transforms:
 * Q K V P ORDER DOWN QK STREAM. */
static bool dump_formats(const char *dir, nb_strbuf *b, const nb_source *s)
{
    const nb_attn_formats *a = nb_source_attn(s);
    nb_rotation t = nb_source_rotation(s);
    const char *order = nb_source_config(s)->rope_interleaved ? "interleaved" : "half";
    nb_strbuf_printf(b, "%s %s %s %s %s %d %d %d\n", word_of(&a->q), word_of(&a->k), word_of(&a->v),
                     word_of(&a->p), order, t.down, t.qk, t.stream);
    return tiny_write(dir, "formats", b->data);
}

/* test_calib MODEL DIR: every matrix of MODEL as raw fp32 in DIR, and `formats`
 * (tests/e2e/format.sh). */
static int dump_model(const char *model, const char *dir)
{
    nb_source *s;
    nb_arena *arena;
    nb_host_ends e;
    nb_error err = {0};
    if (nb_arena_create(&arena, &err) != NB_OK || nb_source_open(&s, model, &err) != NB_OK ||
        nb_source_ends(s, arena, &e, &err) != NB_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    nb_strbuf formats;
    nb_strbuf_init(&formats, 1 << 20);
    bool ok = dump_matrix(dir, e.embed.name, "", &e.embed.w);
    if (e.head.name) ok = ok && dump_matrix(dir, e.head.name, "", &e.head.w);
    for (int i = 0; ok && i < nb_source_config(s)->n_layers; i++) {
        nb_host_block b;
        ok = nb_source_block(s, i, arena, &b, &err) == NB_OK;
        for (int r = 0; ok && r < NB_N_ROLES; r++) {
            const nb_host_linear *l = &b.linear[r];
            if (l->name) ok = dump_matrix(dir, l->name, "", &l->w);
            if (l->lorc.rank == 0) continue;
            ok = ok && dump_matrix(dir, l->name, ".lorc_a", &l->lorc.a) &&
                 dump_matrix(dir, l->name, ".lorc_b", &l->lorc.b);
        }
        if (ok) add_formats(&formats, &b);
    }
    ok = ok && dump_formats(dir, &formats, s);
    nb_strbuf_fini(&formats);
    nb_source_close(s);
    nb_arena_free(arena);
    return ok ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 3) return dump_model(argv[1], argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output),           cmocka_unit_test(test_threads),
        cmocka_unit_test(test_interrupt),        cmocka_unit_test(test_interrupt_calibrated),
        cmocka_unit_test(test_resume_count),     cmocka_unit_test(test_nan),
        cmocka_unit_test(test_in_the_way),       cmocka_unit_test(test_other_run),
        cmocka_unit_test(test_damage),           cmocka_unit_test(test_limits),
        cmocka_unit_test(test_quantized_source), cmocka_unit_test(test_gptq),
        cmocka_unit_test(test_linear_formats),   cmocka_unit_test(test_calib_acts),
        cmocka_unit_test(test_sequential),       cmocka_unit_test(test_needs_text),
        cmocka_unit_test(test_statistics),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
