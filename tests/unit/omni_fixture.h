/* A random block with its job, as the calibration loop would hand it to a step. */
#ifndef NB_TESTS_OMNI_FIXTURE_H
#define NB_TESTS_OMNI_FIXTURE_H

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "base/size.h"
#include "method/trainer.h"
#include "model/family.h"

enum { OMNI_T = 6, OMNI_WINDOWS = 3, OMNI_R = OMNI_T * OMNI_WINDOWS };

typedef struct omni_variant {
    const char *family;
    int embd, heads, kv_heads, head_dim, ffn;
    bool bias, post_norm, interleaved;
    const char *weights, *acts, *heads_format; /* words, or NULL */
} omni_variant;

typedef struct omni_fixture {
    nb_backend *be;
    nb_arena *arena;
    nb_config cfg;
    nb_host_block block;
    nb_format weights[NB_N_ROLES], acts[NB_N_ROLES];
    nb_attn_formats attn;
    nb_block_job job;
    double option[NB_MAX_OPTIONS];
    nb_buffer *buf[12];
    nb_states *states[3]; /* x_source, x_stored, target */
    int n_bufs, ticks;
    float *min[NB_N_ROLES], *max[NB_N_ROLES];
    nb_rng rng;
} omni_fixture;

static float *omni_random(omni_fixture *f, int64_t n, double mean, double std)
{
    float *v = nb_arena_alloc(f->arena, (size_t)n, sizeof *v);
    for (int64_t i = 0; i < n; i++) v[i] = (float)(mean + std * nb_rng_normal(&f->rng));
    return v;
}

static nb_view omni_view(omni_fixture *f, int64_t rows, int64_t cols)
{
    nb_buffer *b;
    assert_int_equal(f->be->ops->buffer_create(f->be, rows * cols, &b, NULL), NB_OK);
    f->buf[f->n_bufs++] = b;
    return nb_view_of(b, rows, cols);
}

/* All windows of states in memory. */
static nb_view omni_all(nb_states *s)
{
    nb_view v;
    assert_int_equal(nb_states_load(s, 0, OMNI_WINDOWS, &v, NULL), NB_OK);
    return v;
}

static void omni_linear(omni_fixture *f, nb_role r, int64_t n_out, int64_t n_in, bool bias)
{
    float *w = omni_random(f, n_out * n_in, 0, 1 / sqrt((double)n_in));
    w[0] *= 4; /* something to clip */
    f->block.linear[r] = (nb_host_linear){.name = "linear",
                                          .w = {.format = nb_format_plain(NB_F32),
                                                .n_out = n_out,
                                                .n_in = n_in,
                                                .plane = {(const uint8_t *)w}},
                                          .bias = bias ? omni_random(f, n_out, 0, 0.2) : NULL};
    if (!nb_format_is_quantized(&f->weights[r])) return;
    int64_t n = n_out * nb_format_groups(&f->weights[r], n_in);
    f->job.clip_lo[r] = nb_arena_alloc(f->arena, (size_t)n, sizeof(float));
    f->job.clip_hi[r] = nb_arena_alloc(f->arena, (size_t)n, sizeof(float));
    f->job.offset[r] = nb_arena_alloc(f->arena, (size_t)(n_out * n_in), sizeof(float));
    for (int64_t i = 0; i < n; i++) f->job.clip_lo[r][i] = f->job.clip_hi[r][i] = 1;
}

static void omni_block(omni_fixture *f, const omni_variant *v)
{
    const nb_config *c = &f->cfg;
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    int64_t C = c->n_embd, F = c->n_ffn;
    omni_linear(f, NB_Q, q, C, v->bias);
    omni_linear(f, NB_K, kv, C, v->bias);
    omni_linear(f, NB_V, kv, C, v->bias);
    omni_linear(f, NB_O, C, q, v->bias);
    if (c->family->linear[NB_GATE]) omni_linear(f, NB_GATE, F, C, v->bias);
    omni_linear(f, NB_UP, F, C, v->bias);
    omni_linear(f, NB_DOWN, C, F, v->bias);
    for (int r = 0; r < NB_N_NORMS; r++) {
        if (r > NB_NORM_FFN && !c->family->qk_norm) continue;
        int64_t n = r > NB_NORM_FFN ? c->head_dim : C;
        bool bias = c->family->norm == NB_NORM_LAYER;
        f->block.norm[r] = (nb_host_norm){"norm", n, omni_random(f, n, 1, 0.2),
                                          bias ? omni_random(f, n, 0, 0.2) : NULL};
    }
}

static void omni_observe(void *user, nb_role role, nb_view x)
{
    omni_fixture *f = user;
    double *v = nb_arena_alloc(f->arena, (size_t)(x.rows * x.cols), sizeof *v);
    f->be->ops->download(f->be, x, v, NB_F64);
    if (!f->min[role]) {
        f->min[role] = nb_arena_alloc(f->arena, (size_t)x.cols, sizeof(float));
        f->max[role] = nb_arena_alloc(f->arena, (size_t)x.cols, sizeof(float));
        for (int64_t c = 0; c < x.cols; c++) f->min[role][c] = INFINITY;
        for (int64_t c = 0; c < x.cols; c++) f->max[role][c] = -INFINITY;
    }
    for (int64_t i = 0; i < x.rows * x.cols; i++) {
        int64_t c = i % x.cols;
        f->min[role][c] = fminf(f->min[role][c], (float)v[i]);
        f->max[role][c] = fmaxf(f->max[role][c], (float)v[i]);
    }
}

/* out = the block's output on x, nothing quantized; ranges of the linears' inputs. */
static void omni_run_block(omni_fixture *f, nb_view out, nb_view x, bool observe)
{
    nb_block *block;
    nb_workspace *ws;
    nb_kv *cache;
    assert_int_equal(nb_block_create(f->be, &f->cfg, &f->block, &block, NULL), NB_OK);
    nb_kv_desc d = nb_block_kv(block, OMNI_T);
    assert_int_equal(f->be->ops->kv_create(f->be, &d, &cache, NULL), NB_OK);
    assert_int_equal(nb_workspace_create(f->be, &f->cfg, OMNI_T, &ws, NULL), NB_OK);
    if (observe) nb_workspace_observe(ws, omni_observe, f);
    f->be->ops->copy(f->be, out, x);
    for (int t = 0; t < OMNI_R; t += OMNI_T) {
        nb_block_forward(block, ws, nb_view_rows(out, t, OMNI_T), cache, f->job.rope, 0);
    }
    assert_int_equal(f->be->ops->sync(f->be, NULL), NB_OK);
    nb_workspace_free(ws);
    f->be->ops->kv_free(f->be, cache);
    nb_block_free(block);
}

static nb_status omni_stats(void *user, nb_role role, nb_input_stats *out, nb_error *err)
{
    omni_fixture *f = user;
    NB_UNUSED(err);
    int64_t n = f->block.linear[role].w.n_in;
    float *unit = nb_arena_alloc(f->arena, (size_t)(n * n), sizeof *unit); /* inputs like noise */
    for (int64_t i = 0; i < n; i++) unit[i * n + i] = 1;
    *out = (nb_input_stats){.n = n, .min = f->min[role], .max = f->max[role], .hessian = unit};
    return NB_OK;
}

static nb_status omni_tick(void *user)
{
    ((omni_fixture *)user)->ticks++;
    return NB_OK;
}

static void omni_parse(nb_format *f, const char *word)
{
    *f = (nb_format){0};
    if (word) assert_int_equal(nb_format_parse(f, word, NULL), NB_OK);
}

static nb_config omni_config(const omni_variant *v)
{
    const nb_family *family = nb_family_by_model_type(v->family);
    return (nb_config){.family = family,
                       .n_layers = 1,
                       .n_embd = v->embd,
                       .n_ffn = v->ffn,
                       .n_heads = v->heads,
                       .n_kv_heads = v->kv_heads,
                       .head_dim = v->head_dim,
                       .n_ctx = 32,
                       .norm_eps = 1e-5f,
                       .act = family->linear[NB_GATE] ? NB_ACT_SILU : NB_ACT_RELU,
                       .rope_interleaved = v->interleaved,
                       .rope_theta = 100,
                       .post_norm = v->post_norm,
                       .norm_affine = true};
}

static void omni_begin(omni_fixture *f, const omni_variant *v, const char *device, int threads)
{
    *f = (omni_fixture){.rng = {3}};
    nb_options opt;
    nb_options_default(&opt);
    opt.device = device;
    opt.threads = threads;
    assert_int_equal(nb_backend_create(&f->be, &opt, NULL), NB_OK);
    assert_int_equal(nb_arena_create(&f->arena, NULL), NB_OK);
    f->cfg = omni_config(v);
    for (int r = 0; r < NB_N_ROLES; r++) {
        omni_parse(&f->weights[r], v->weights);
        omni_parse(&f->acts[r], v->acts);
    }
    omni_parse(&f->attn.q, v->heads_format);
    f->attn.k = f->attn.v = f->attn.q;
    omni_block(f, v);
    assert_int_equal(nb_rope_table(f->be, &f->cfg, OMNI_T, &f->job.rope, NULL), NB_OK);
    nb_view x[3];
    nb_states_desc d = {OMNI_WINDOWS, OMNI_T, v->embd, OMNI_WINDOWS, NULL};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(nb_states_create(&f->states[i], f->be, &d, NULL), NB_OK);
        x[i] = omni_all(f->states[i]);
    }
    float *source = omni_random(f, OMNI_R * v->embd, 0, 1);
    for (int i = 0; i < OMNI_R; i++) source[i * v->embd] *= 8; /* an outlier channel */
    f->be->ops->upload(f->be, x[0], source, NB_F32);
    for (int i = 0; i < OMNI_R * v->embd; i++) {
        source[i] += 0.05f * (float)nb_rng_normal(&f->rng);
    }
    f->be->ops->upload(f->be, x[1], source, NB_F32);
    omni_run_block(f, x[2], x[0], true);
    f->job.cfg = &f->cfg;
    f->job.be = f->be;
    f->job.arena = f->arena;
    f->job.block = &f->block;
    f->job.weights = f->weights;
    f->job.acts = f->acts;
    f->job.attn = &f->attn;
    f->job.stats = omni_stats;
    f->job.stats_user = f;
    f->job.n_windows = OMNI_WINDOWS;
    f->job.seqlen = OMNI_T;
    f->job.x_source = f->states[0];
    f->job.x_stored = f->states[1];
    f->job.target = f->states[2];
    f->job.batch = 1;
    f->job.option = f->option;
    f->job.report = json_object();
    f->job.tick = omni_tick;
    f->job.tick_user = f;
}

static void omni_end(omni_fixture *f)
{
    for (int i = 0; i < f->n_bufs; i++) f->be->ops->buffer_free(f->be, f->buf[i]);
    for (int i = 0; i < 3; i++) nb_states_free(f->states[i]);
    f->be->ops->buffer_free(f->be, f->job.rope.buf);
    json_decref(f->job.report);
    nb_arena_free(f->arena);
    nb_backend_free(f->be);
}

#endif
