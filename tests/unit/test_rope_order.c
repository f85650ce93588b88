/* The order of rotary pairs in the heads of Q and K: rows move where they should, a model computes
 * the same in either order, and quantize turns one into the other. Runs in the root of the tree, on
 * the models of tests/golden, whose logits test_golden.c compares with Hugging Face's. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/size.h"
#include "eval/eval.h"
#include "model/family.h"
#include "run/session.h"

#define GOLDEN "tests/golden/"

static const char *const models[] = {"gguf-llama/model.gguf",
                                     "gguf-qwen2/model.gguf",
                                     "llama-mha",
                                     "llama-bias",
                                     "llama-head-dim",
                                     "llama-rope-llama3",
                                     "llama-tied",
                                     "mistral-window",
                                     "qwen2-window",
                                     "qwen3"};

enum { N = 40, MAX_VOCAB = 1024 };

static char root[64]; /* what quantize makes */

static const char *in_root(const char *name)
{
    static char path[4][128];
    static int i;
    i = (i + 1) % 4;
    snprintf(path[i], sizeof path[i], "%s/%s", root, name);
    return path[i];
}

static int make_root(void **state)
{
    NB_UNUSED(state);
    snprintf(root, sizeof root, "/tmp/nibble-rope-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    NB_UNUSED(state);
    return nb_remove_tree(root, NULL) == NB_OK ? 0 : -1;
}

static nb_source *open_source(const char *path)
{
    nb_source *s;
    nb_error err = {0};
    if (nb_source_open(&s, path, &err) != NB_OK) fail_msg("%s", err.message);
    return s;
}

static nb_source *open_golden(const char *model)
{
    char path[100];
    snprintf(path, sizeof path, GOLDEN "%s", model);
    return open_source(path);
}

static nb_source *open_interleaved(const char *model)
{
    nb_source *s = open_golden(model);
    assert_false(nb_source_config(s)->rope_interleaved);
    assert_int_equal(nb_source_set_rope(s, true, NULL), NB_OK);
    return s;
}

/* ---- rows --------------------------------------------------------------------------------- */

/* Rows of whole heads, a in halves, b interleaved. */
static void check_rows(const float *a, const float *b, int64_t n_rows, int64_t n_cols, int64_t D)
{
    for (int64_t h = 0; h < n_rows / D; h++) {
        for (int64_t i = 0; i < D / 2; i++) {
            for (int64_t j = 0; j < 2; j++) {
                assert_memory_equal(a + (h * D + j * D / 2 + i) * n_cols,
                                    b + (h * D + 2 * i + j) * n_cols, (size_t)n_cols * sizeof *a);
            }
        }
    }
}

static float *values_of(nb_arena *arena, const nb_matrix *m)
{
    float *v = nb_arena_alloc(arena, (size_t)(m->n_out * m->n_in), sizeof *v);
    nb_matrix_dequant(m, 0, m->n_out, v);
    return v;
}

static void check_linear(nb_arena *arena, const nb_host_linear *a, const nb_host_linear *b,
                         int64_t D)
{
    const float *x = values_of(arena, &a->w), *y = values_of(arena, &b->w);
    assert_memory_not_equal(x, y, (size_t)(a->w.n_out * a->w.n_in) * sizeof *x);
    check_rows(x, y, a->w.n_out, a->w.n_in, D);
    assert_int_equal(a->bias != NULL, b->bias != NULL);
    if (a->bias) check_rows(a->bias, b->bias, a->w.n_out, 1, D);
}

/* One block of a source in halves and of one that is interleaved. */
static void check_block(const nb_source *half, const nb_source *interleaved)
{
    nb_arena *arena;
    nb_host_block a, b;
    int64_t D = nb_source_config(half)->head_dim;
    assert_int_equal(nb_arena_create(&arena, NULL), NB_OK);
    assert_int_equal(nb_source_block(half, 1, arena, &a, NULL), NB_OK);
    assert_int_equal(nb_source_block(interleaved, 1, arena, &b, NULL), NB_OK);
    check_linear(arena, &a.linear[NB_Q], &b.linear[NB_Q], D);
    check_linear(arena, &a.linear[NB_K], &b.linear[NB_K], D);
    for (int r = NB_NORM_Q; r <= NB_NORM_K; r++) {
        if (a.norm[r].name) check_rows(a.norm[r].weight, b.norm[r].weight, D, 1, D);
    }
    const nb_matrix *v = &a.linear[NB_V].w; /* has no pairs */
    assert_memory_equal(values_of(arena, v), values_of(arena, &b.linear[NB_V].w),
                        (size_t)(v->n_out * v->n_in) * sizeof(float));
    nb_arena_free(arena);
}

static void test_rows(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(models); i++) {
        nb_source *half = open_golden(models[i]), *interleaved = open_interleaved(models[i]);
        check_block(half, interleaved);
        assert_int_equal(nb_source_set_rope(interleaved, false, NULL), NB_OK); /* and back */
        assert_int_equal(nb_source_set_rope(half, true, NULL), NB_OK);
        check_block(interleaved, half);
        nb_source_close(half);
        nb_source_close(interleaved);
    }
}

/* The llama architecture's GGUF files are interleaved: nothing is moved, nothing copied. */
static void test_file_order(void **state)
{
    NB_UNUSED(state);
    nb_arena *arena;
    nb_host_block b;
    nb_source *s = open_interleaved("gguf-llama/model.gguf");
    assert_int_equal(nb_arena_create(&arena, NULL), NB_OK);
    assert_int_equal(nb_source_block(s, 1, arena, &b, NULL), NB_OK);
    const nb_checkpoint *c = nb_source_checkpoint(s);
    assert_ptr_equal(b.linear[NB_Q].w.plane[0], nb_checkpoint_find(c, "blk.1.attn_q.weight")->data);
    assert_ptr_equal(b.linear[NB_K].w.plane[0], nb_checkpoint_find(c, "blk.1.attn_k.weight")->data);
    nb_arena_free(arena);
    nb_source_close(s);
}

/* ---- the whole model ---------------------------------------------------------------------- */

static int32_t ids[N];

/* logits [N, V] of random ids; *last: those of the last when ids come in pieces. */
static void run_model(const nb_source *s, const char *device, const nb_format *kv, float *logits,
                      float *last)
{
    nb_backend *be;
    nb_net *net;
    nb_session *session;
    const float *behind;
    nb_options opt;
    int64_t V = nb_source_config(s)->n_vocab;
    nb_rng rng = {4};
    assert_true(V <= MAX_VOCAB);
    for (int i = 0; i < N; i++) ids[i] = (int32_t)(nb_rng_next(&rng) % (uint64_t)V);
    nb_options_default(&opt);
    opt.device = device;
    opt.threads = 2;
    assert_int_equal(nb_backend_create(&be, &opt, NULL), NB_OK);
    assert_int_equal(nb_net_create(&net, be, s, false, kv, NULL), NB_OK);
    assert_int_equal(nb_eval_logits(net, ids, N, logits, NULL), NB_OK);
    assert_int_equal(nb_session_create(&session, net, N, NULL), NB_OK);
    assert_int_equal(nb_session_append(session, ids, N / 2, &behind, NULL), NB_OK);
    for (int i = N / 2; i < N; i++) {
        assert_int_equal(nb_session_append(session, ids + i, 1, &behind, NULL), NB_OK);
    }
    memcpy(last, behind, (size_t)V * sizeof *last);
    nb_session_free(session);
    nb_net_free(net);
    nb_backend_free(be);
}

static double relative_error(const float *a, const float *b, int64_t n)
{
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(diff / norm);
}

/* Of all logits, and of the last by way of the cache; the larger. */
static double distance(const nb_source *a, const nb_source *b, const char *device, const char *kv)
{
    static float x[N * MAX_VOCAB], y[N * MAX_VOCAB], last_x[MAX_VOCAB], last_y[MAX_VOCAB];
    nb_format f;
    int64_t V = nb_source_config(a)->n_vocab;
    if (kv) assert_int_equal(nb_format_parse(&f, kv, NULL), NB_OK);
    run_model(a, device, kv ? &f : NULL, x, last_x);
    run_model(b, device, kv ? &f : NULL, y, last_y);
    return fmax(relative_error(x, y, N * V), relative_error(last_x, last_y, V));
}

#define ROUNDING 4e-6 /* relative, of sums over the channels of a head in another order */

static void test_same_function(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"cpu", "ref"};
    for (size_t i = 0; i < NB_COUNT(models); i++) {
        nb_source *half = open_golden(models[i]), *interleaved = open_interleaved(models[i]);
        for (int d = 0; d < 2; d++) {
            double e = distance(half, interleaved, devices[d], NULL);
            if (!(e <= ROUNDING)) fail_msg("%s on %s: %g", models[i], devices[d], e);
        }
        nb_source_close(half);
        nb_source_close(interleaved);
    }
}

/* One scale for a whole head does not see the order; blocks of 16 in a head of 20 do. */
static void test_blocks_see_it(void **state)
{
    NB_UNUSED(state);
    nb_source *half = open_golden("llama-head-dim");
    nb_source *interleaved = open_interleaved("llama-head-dim");
    assert_true(distance(half, interleaved, "cpu", "fp8:token") <= ROUNDING);
    assert_true(distance(half, interleaved, "cpu", "dialect:b16") > 1e-3);
    nb_source_close(half);
    nb_source_close(interleaved);
}

/* ---- quantize ------------------------------------------------------------------------------ */

static nb_status quantize(const char *model, const char *out, const char *rope, nb_error *err)
{
    nb_quantize_options o;
    nb_quantize_result r;
    nb_quantize_options_default(&o);
    o.model = model;
    o.out = out;
    o.recipe = "weights: f32\nembedding: f32\n";
    o.rope = rope;
    o.run.threads = 1;
    return nb_quantize(&o, &r, err);
}

static void must_quantize(const char *model, const char *out, const char *rope)
{
    nb_error err = {0};
    if (quantize(model, out, rope, &err) != NB_OK) fail_msg("%s", err.message);
}

/* The directory as an ordinary checkpoint, of which one key tells the order. */
static void strip(const char *dir)
{
    char *path = nb_path_join(dir, "config.json");
    json_t *root_object = json_load_file(path, 0, NULL);
    assert_non_null(
        json_object_get(root_object, "quantization_config")); /* others must not run it */
    assert_true(json_is_true(json_object_get(root_object, "rope_interleave")));
    json_object_del(root_object, "quantization_config");
    assert_int_equal(json_dump_file(root_object, path, 0), 0);
    json_decref(root_object);
    free(path);
}

/* There, as a checkpoint of its own on the way, and back. */
static void check_there_and_back(const char *model)
{
    char path[100], there[128], back[128], stay[128];
    snprintf(path, sizeof path, GOLDEN "%s", model);
    snprintf(there, sizeof there, "%s", in_root("there"));
    snprintf(back, sizeof back, "%s", in_root("back"));
    snprintf(stay, sizeof stay, "%s", in_root("stay"));
    must_quantize(path, there, "interleaved");
    nb_source *half = open_source(path), *interleaved = open_source(there);
    assert_true(nb_source_config(interleaved)->rope_interleaved);
    check_block(half, interleaved);
    assert_true(distance(half, interleaved, "cpu", NULL) <= ROUNDING);
    nb_source_close(interleaved);
    strip(there);
    must_quantize(there, back, "half");
    must_quantize(there, stay, NULL);
    nb_source *again = open_source(back), *kept = open_source(stay);
    assert_false(nb_source_config(again)->rope_interleaved);
    assert_false(nb_source_is_quantized(again));
    assert_true(nb_source_config(kept)->rope_interleaved);
    check_block(half, kept);
    check_block(again, kept);
    assert_true(distance(half, again, "cpu", NULL) <= ROUNDING);
    nb_source_close(half);
    nb_source_close(again);
    nb_source_close(kept);
    const char *const dirs[] = {there, back, stay};
    for (int i = 0; i < 3; i++) assert_int_equal(nb_remove_tree(dirs[i], NULL), NB_OK);
}

static void test_there_and_back(void **state)
{
    NB_UNUSED(state);
    check_there_and_back("gguf-llama/model.gguf");
    check_there_and_back("llama-bias");
    check_there_and_back("qwen2-window");
    check_there_and_back("qwen3");
}

static void test_refused(void **state)
{
    NB_UNUSED(state);
    nb_error err = {0};
    const char *out = in_root("opt");
    assert_int_equal(quantize(GOLDEN "opt", out, "interleaved", &err), NB_EUSAGE);
    assert_string_equal(err.message, "rope: models of the family opt have no rotary positions");
    assert_int_equal(quantize(GOLDEN "opt", out, "half", NULL), NB_EUSAGE);
    assert_int_equal(quantize(GOLDEN "llama-mha", out, "pairs", &err), NB_EUSAGE);
    assert_string_equal(err.message, "rope: expected half or interleaved, found \"pairs\"");
    assert_true(nb_file_bytes(in_root("opt/config.json")) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),           cmocka_unit_test(test_file_order),
        cmocka_unit_test(test_same_function),  cmocka_unit_test(test_blocks_see_it),
        cmocka_unit_test(test_there_and_back), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
