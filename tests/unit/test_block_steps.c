/* Steps on a whole block, made up for this test: what they are shown, what becomes of what they
 * leave, and what they are refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "calib/block_steps.h"
#include "calib/recipe.h"
#include "calib/shard.h"
#include "model/family.h"
#include "tiny_model.h"

enum { N_WINDOWS = 3, SEQLEN = 16, TOKENS = N_WINDOWS * SEQLEN };

static char root[64];

static int make_root(void **state)
{
    NB_UNUSED(state);
    snprintf(root, sizeof root, "/tmp/nibble-steps-XXXXXX");
    return mkdtemp(root) && tiny_model_write(root, 5, NULL) ? 0 : -1;
}

static int remove_root(void **state)
{
    NB_UNUSED(state);
    return nb_remove_tree(root, NULL) == NB_OK ? 0 : -1;
}

/* One block of the tiny model with three windows in front of it. */
typedef struct bench {
    nb_backend *be;
    nb_arena *arena;
    nb_source *source;
    nb_samples samples;
    nb_flow *flow;
    nb_recipe recipe;
    nb_host_block original, block;
    nb_block_result result;
    nb_error err;
} bench;

static nb_status go_on(void *user)
{
    NB_UNUSED(user);
    return NB_OK;
}

static void begin(bench *b, int threads, const nb_method *const *methods, int n_methods)
{
    *b = (bench){.samples = {.n = N_WINDOWS, .seqlen = SEQLEN}};
    nb_options opt = {.device = "cpu", .threads = threads, .cpumask = ~0u};
    assert_int_equal(nb_backend_create(&b->be, &opt, NULL), NB_OK);
    assert_int_equal(nb_arena_create(&b->arena, NULL), NB_OK);
    assert_int_equal(nb_source_open(&b->source, root, NULL), NB_OK);
    b->samples.ids = calloc(TOKENS, sizeof *b->samples.ids);
    for (int i = 0; i < TOKENS; i++) b->samples.ids[i] = (i * 37 + i / 5) % TINY_VOCAB;
    nb_recipe_default(&b->recipe);
    assert_int_equal(nb_format_parse(&b->recipe.weights, "int4:g32", NULL), NB_OK);
    b->recipe.n_steps = n_methods;
    for (int i = 0; i < n_methods; i++) b->recipe.steps[i] = (nb_step){.method = methods[i]};
    nb_host_ends ends;
    nb_flow_desc d = nb_flow_describe(&b->recipe, nb_source_config(b->source));
    assert_int_equal(nb_flow_create(&b->flow, b->be, &d, &b->samples, NULL), NB_OK);
    assert_int_equal(nb_source_ends(b->source, b->arena, &ends, NULL), NB_OK);
    assert_int_equal(nb_flow_begin(b->flow, &ends, &ends, NULL), NB_OK);
    assert_int_equal(nb_source_block(b->source, 0, b->arena, &b->original, NULL), NB_OK);
    assert_int_equal(nb_source_block(b->source, 0, b->arena, &b->block, NULL), NB_OK);
}

static nb_status run(bench *b)
{
    return nb_block_steps_run(&b->recipe, nb_source_config(b->source), b->be, b->flow, b->arena,
                              &b->block, NULL, go_on, NULL, &b->result, &b->err);
}

static void end(bench *b)
{
    json_decref(b->result.report);
    nb_flow_free(b->flow);
    free(b->samples.ids);
    nb_source_close(b->source);
    nb_arena_free(b->arena);
    nb_backend_free(b->be);
}

/* ---- editing ------------------------------------------------------------------------------ */

/* Doubles up, halves down, gives down a bias, clips q's second group, changes a norm. */
static nb_status edit(nb_block_job *job, nb_error *err)
{
    NB_UNUSED(err);
    float *up = nb_block_weight(job, NB_UP), *down = nb_block_weight(job, NB_DOWN);
    for (int i = 0; i < TINY_FFN * TINY_EMBD; i++) {
        up[i] *= 2;
        down[i] /= 2;
    }
    float *bias = nb_arena_alloc(job->arena, TINY_EMBD, sizeof *bias);
    for (int i = 0; i < TINY_EMBD; i++) bias[i] = (float)i;
    job->block->linear[NB_DOWN].bias = bias;
    job->clip_lo[NB_Q][1] = 0.5f;
    job->clip_hi[NB_Q][TINY_EMBD - 1] = 0.25f;
    ((float *)(uintptr_t)job->block->norm[NB_NORM_FFN].weight)[3] = 7;
    json_object_set_new(job->report, "edit", json_integer(42));
    return NB_OK;
}

static const nb_method edit_method = {.name = "edit", .kind = NB_STEP_TRANSFORM, .run_block = edit};

static nb_format word(const char *text)
{
    nb_format f;
    assert_int_equal(nb_format_parse(&f, text, NULL), NB_OK);
    return f;
}

/* Weights are fp32 copies that a step edits; without such a step the block stays as it is. */
static void test_edit(void **state)
{
    NB_UNUSED(state);
    bench b;
    const nb_method *const one[] = {&edit_method};
    begin(&b, 2, one, 1);
    b.recipe.linear[NB_K].weights = word("f16");
    assert_int_equal(run(&b), NB_OK);
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_matrix *was = &b.original.linear[r].w, *is = &b.block.linear[r].w;
        assert_int_equal(is->format.variant, NB_F32);
        float before[TINY_FFN], after[TINY_FFN], factor = r == NB_UP ? 2 : r == NB_DOWN ? 0.5f : 1;
        for (int64_t row = 0; row < was->n_out; row++) {
            nb_matrix_dequant(was, row, 1, before);
            nb_matrix_dequant(is, row, 1, after);
            for (int64_t i = 0; i < was->n_in; i++) assert_true(after[i] == factor * before[i]);
        }
        assert_true((b.result.clip_lo[r] == NULL) == (r == NB_K));
    }
    assert_true(b.result.clip_lo[NB_Q][1] == 0.5f && b.result.clip_lo[NB_Q][0] == 1);
    assert_true(b.result.clip_hi[NB_Q][TINY_EMBD - 1] == 0.25f);
    assert_true(b.block.linear[NB_DOWN].bias[5] == 5 && b.block.norm[NB_NORM_FFN].weight[3] == 7);
    assert_int_equal(json_integer_value(json_object_get(b.result.report, "edit")), 42);
    end(&b);

    begin(&b, 2, one, 1);
    b.recipe.weights = word("f16"); /* converted only: no step runs */
    assert_int_equal(run(&b), NB_OK);
    assert_ptr_equal(b.block.linear[NB_UP].w.plane[0], b.original.linear[NB_UP].w.plane[0]);
    assert_null(b.result.report);
    end(&b);
}

/* A linear's new bias is found again in the file by its name in `biases`, and only so. */
static void test_bias(void **state)
{
    NB_UNUSED(state);
    bench b;
    const nb_method *const one[] = {&edit_method};
    begin(&b, 1, one, 1);
    assert_int_equal(run(&b), NB_OK);
    nb_shard shard = {.arena = b.arena};
    for (int r = 0; r < NB_N_ROLES; r++) {
        assert_int_equal(nb_shard_add_linear(&shard, &b.block.linear[r], NULL), NB_OK);
    }
    for (int r = 0; r < NB_N_NORMS; r++) {
        assert_int_equal(nb_shard_add_norm(&shard, &b.block.norm[r], NULL), NB_OK);
    }
    char path[96], hash[NB_HASH_CHARS];
    int64_t n_bytes;
    snprintf(path, sizeof path, "%s/part.safetensors", root);
    assert_int_equal(nb_shard_write(&shard, path, hash, &n_bytes, NULL), NB_OK);
    const char *name = b.block.linear[NB_DOWN].name;
    for (int listed = 0; listed < 2; listed++) {
        json_t *q = json_pack("{s:s,s:i,s:{},s:s,s:s,s:{s:s}}", "quant_method", "nibble",
                              "format_version", 1, "modules", "kv", "fp8:token", "query", "mxfp8",
                              "act_modules", name, "int8:token");
        if (listed) json_object_set_new(q, "biases", json_pack("[s]", name));
        nb_source *part;
        nb_host_block back;
        assert_int_equal(nb_source_open_part(&part, path, b.source, q, &b.err), NB_OK);
        assert_int_equal(nb_source_block(part, 0, b.arena, &back, &b.err), NB_OK);
        assert_true((back.linear[NB_DOWN].bias != NULL) == listed);
        if (listed) assert_true(back.linear[NB_DOWN].bias[31] == 31);
        assert_null(back.linear[NB_UP].bias);
        assert_true(back.norm[NB_NORM_FFN].weight[3] == 7);
        assert_string_equal(back.linear[NB_DOWN].act.word, "int8:token");
        assert_null(back.linear[NB_UP].act.family); /* it is not quantized */
        assert_string_equal(nb_source_attn(part)->k.word, "fp8:token");
        assert_string_equal(back.attn.q.word, "mxfp8");
        nb_source_close(part);
        json_decref(q);
    }
    end(&b);
}

/* ---- statistics --------------------------------------------------------------------------- */

typedef struct seen {
    float min[TINY_FFN], max[TINY_FFN], mean[TINY_FFN], h[TINY_FFN * TINY_FFN];
} seen;

static seen first, second; /* of the input of down, by two steps */

static nb_status take(nb_block_job *job, seen *out, nb_error *err)
{
    nb_input_stats s;
    NB_TRY(job->stats(job->stats_user, NB_DOWN, &s, err));
    assert_int_equal(s.n, TINY_FFN);
    memcpy(out->min, s.min, sizeof out->min);
    memcpy(out->max, s.max, sizeof out->max);
    memcpy(out->mean, s.mean_abs, sizeof out->mean);
    memcpy(out->h, s.hessian, sizeof out->h);
    return NB_OK;
}

static nb_status look_and_edit(nb_block_job *job, nb_error *err)
{
    NB_TRY(take(job, &first, err));
    return edit(job, err);
}

static nb_status look(nb_block_job *job, nb_error *err) { return take(job, &second, err); }

static const nb_method first_method = {.name = "first",
                                       .kind = NB_STEP_TRANSFORM,
                                       .needs = NB_NEED_RANGE | NB_NEED_HESSIAN,
                                       .run_block = look_and_edit};
static const nb_method second_method = {
    .name = "second", .kind = NB_STEP_CLIP, .needs = NB_NEED_HESSIAN, .run_block = look};

/* The second step sees the block as the first left it; numbers agree with each other: the edit
 * doubles the input of down. */
static void check_seen(void)
{
    for (int i = 0; i < TINY_FFN; i++) {
        assert_true(first.min[i] <= first.max[i] && first.mean[i] > 0);
        assert_true(first.mean[i] <= fmaxf(first.max[i], -first.min[i]));
        double power = (double)first.h[i * TINY_FFN + i] * N_WINDOWS / 2; /* sum x^2 */
        assert_true(power >= TOKENS * (double)first.mean[i] * (double)first.mean[i] * 0.9999);
        double most = fmax((double)first.max[i], -(double)first.min[i]);
        assert_true(power <= TOKENS * most * most * 1.0001 && power >= most * most * 0.9999);
    }
}

static void test_stats(void **state)
{
    NB_UNUSED(state);
    seen kept[2];
    const nb_method *const both[] = {&first_method, &second_method};
    for (int threads = 1; threads <= 2; threads++) {
        bench b;
        begin(&b, threads, both, 2);
        assert_int_equal(run(&b), NB_OK);
        check_seen();
        double ratio = 0;
        for (int i = 0; i < TINY_FFN; i++) ratio += (double)(second.mean[i] / first.mean[i]);
        /* the norm's changed weight also moves it a little */
        assert_true(ratio / TINY_FFN > 1.6 && ratio / TINY_FFN < 6);
        kept[threads - 1] = second;
        end(&b);
    }
    assert_memory_equal(&kept[0], &kept[1], sizeof kept[0]);
}

/* Who asks without having said so, or without text, is told. */
static void test_not_announced(void **state)
{
    NB_UNUSED(state);
    static const nb_method silent = {.name = "silent", .kind = NB_STEP_CLIP, .run_block = look};
    const nb_method *const one[] = {&silent};
    bench b;
    begin(&b, 1, one, 1);
    assert_int_equal(run(&b), NB_EUSAGE);
    assert_non_null(strstr(b.err.message, "silent"));
    end(&b);
}

/* ---- hidden states ------------------------------------------------------------------------ */

static float target[TOKENS * TINY_EMBD], inputs[TOKENS * TINY_EMBD];

static void download(nb_backend *be, nb_states *s, float *out)
{
    nb_view x;
    assert_int_equal(nb_states_load(s, 0, N_WINDOWS, &x, NULL), NB_OK);
    be->ops->download(be, x, out, NB_F32);
    assert_int_equal(be->ops->sync(be, NULL), NB_OK);
}

static nb_status train(nb_block_job *job, nb_error *err)
{
    assert_int_equal(job->n_windows, N_WINDOWS);
    assert_int_equal(job->seqlen, SEQLEN);
    assert_int_equal(job->rope.rows, SEQLEN);
    download(job->be, job->target, target);
    download(job->be, job->x_source, inputs);
    return edit(job, err);
}

static const nb_method train_method = {.name = "train",
                                       .kind = NB_STEP_TRANSFORM,
                                       .needs = NB_NEED_STATES | NB_NEED_HESSIAN,
                                       .run_block = train};

/* The target is what the source block makes of the source's states, which stay until the block is
 * done; then the target is in their place. The same figures as without any step. */
static void test_states(void **state)
{
    NB_UNUSED(state);
    static float plain[TOKENS * TINY_EMBD], before[TOKENS * TINY_EMBD], after[TOKENS * TINY_EMBD];
    double error[2];
    bench b;
    begin(&b, 2, NULL, 0);
    download(b.be, nb_flow_look(b.flow).source, before);
    assert_int_equal(
        nb_flow_advance(b.flow, &b.original, &b.original, go_on, NULL, &error[0], NULL), NB_OK);
    download(b.be, nb_flow_look(b.flow).source, plain);
    end(&b);

    const nb_method *const steps[] = {&train_method, &second_method};
    begin(&b, 2, steps, 2);
    assert_int_equal(run(&b), NB_OK);
    assert_memory_equal(inputs, before, sizeof before);
    assert_memory_equal(target, plain, sizeof plain);
    download(b.be, nb_flow_look(b.flow).source, after);
    assert_memory_equal(after, before, sizeof before);
    assert_int_equal(
        nb_flow_advance(b.flow, &b.original, &b.original, go_on, NULL, &error[1], NULL), NB_OK);
    download(b.be, nb_flow_look(b.flow).source, after);
    assert_memory_equal(after, plain, sizeof plain);
    assert_true(error[0] == 0 && error[1] == 0);
    end(&b);
}

/* ---- faults ------------------------------------------------------------------------------- */

static int fault;

static nb_status spoil(nb_block_job *job, nb_error *err)
{
    NB_UNUSED(err);
    static float ones[TINY_FFN];
    switch (fault) {
    case 0:
        nb_block_weight(job, NB_O)[3 * TINY_EMBD + 2] = NAN;
        break;
    case 1:
        job->block->norm[NB_NORM_ATTN].bias = ones;
        break;
    case 2:
        ones[4] = INFINITY;
        job->block->linear[NB_GATE].bias = ones;
        break;
    case 3:
        job->clip_hi[NB_V][0] = 0;
        break;
    default:
        ((float *)(uintptr_t)job->block->norm[NB_NORM_ATTN].weight)[1] = NAN;
        break;
    }
    return NB_OK;
}

static void test_faults(void **state)
{
    NB_UNUSED(state);
    static const nb_method method = {
        .name = "spoil", .kind = NB_STEP_TRANSFORM, .run_block = spoil};
    const nb_method *const one[] = {&method};
    static const struct {
        nb_status status;
        const char *what;
    } want[] = {
        {NB_ENUMERIC, "o_proj: weight [3, 2] after step \"spoil\" is nan"},
        {NB_EUSAGE, "input_layernorm: has a bias after step \"spoil\""},
        {NB_ENUMERIC, "gate_proj: bias [4] after step \"spoil\" is inf"},
        {NB_ENUMERIC, "v_proj: the clip ratio of row 0, group 0 after step \"spoil\" is 0"},
        {NB_ENUMERIC, "input_layernorm: weight [1] after step \"spoil\" is nan"},
    };
    for (fault = 0; fault < (int)NB_COUNT(want); fault++) {
        bench b;
        begin(&b, 1, one, 1);
        assert_int_equal(run(&b), want[fault].status);
        if (!strstr(b.err.message, want[fault].what)) fail_msg("%s", b.err.message);
        end(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_edit),   cmocka_unit_test(test_bias),
        cmocka_unit_test(test_stats),  cmocka_unit_test(test_not_announced),
        cmocka_unit_test(test_states), cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
