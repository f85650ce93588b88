#include "calib/block_steps.h"

#include <math.h>
#include <stdio.h>

#include "base/size.h"
#include "calib/gram.h"
#include "calib/range.h"

enum { NEED_STATS = NB_NEED_RANGE | NB_NEED_HESSIAN };

typedef struct runner {
    const nb_recipe *recipe;
    nb_flow *flow;
    nb_block_job job;
    nb_format weights[NB_N_ROLES], acts[NB_N_ROLES];
    nb_attn_formats attn;
    const nb_step *step; /* at work */
    unsigned needs;      /* of all steps on the block */
    nb_ranges *ranges;   /* of the block as it is, or NULL */
    nb_grams *grams;
    bool keep; /* the source's states must stay for another pass */
    nb_error *err;
} runner;

/* ---- the job ------------------------------------------------------------------------------ */

static nb_status make_clips(nb_block_job *job, nb_role role, nb_error *err)
{
    const nb_host_linear *l = &job->block->linear[role];
    if (!nb_format_is_quantized(&job->weights[role])) return NB_OK;
    int64_t n = l->w.n_out * nb_format_groups(&job->weights[role], l->w.n_in);
    float *clips = nb_arena_alloc(job->arena, (size_t)n, 2 * sizeof *clips);
    if (!clips) return nb_fail_memory(err, l->name, (size_t)n * 2 * sizeof *clips);
    for (int64_t i = 0; i < 2 * n; i++) clips[i] = 1;
    job->clip_lo[role] = clips;
    job->clip_hi[role] = clips + n;
    return NB_OK;
}

/* The arena's memory is zero. */
static nb_status make_offsets(nb_block_job *job, nb_role role, nb_error *err)
{
    const nb_matrix *w = &job->block->linear[role].w;
    if (!nb_format_is_quantized(&job->weights[role])) return NB_OK;
    size_t n = (size_t)(w->n_out * w->n_in);
    job->offset[role] = nb_arena_alloc(job->arena, n, sizeof(float));
    if (job->offset[role]) return NB_OK;
    return nb_fail_memory(err, job->block->linear[role].name, n * sizeof(float));
}

static nb_status make_copies(runner *s)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        s->weights[r] = *nb_recipe_weights(s->recipe, (nb_role)r);
        s->acts[r] = nb_recipe_act(s->recipe, (nb_role)r);
        nb_host_linear *l = &s->job.block->linear[r];
        if (!l->name) continue;
        NB_TRY(nb_host_linear_expand(l, s->job.arena, s->job.be->threads, s->err));
        NB_TRY(make_clips(&s->job, (nb_role)r, s->err));
        if (s->needs & NB_NEED_OFFSETS) NB_TRY(make_offsets(&s->job, (nb_role)r, s->err));
    }
    return nb_block_check(&s->job, "of the source", s->err);
}

/* ---- statistics --------------------------------------------------------------------------- */

static void observe(void *user, nb_role role, nb_view x)
{
    runner *s = user;
    nb_ranges_observe(s->ranges, role, x);
    if (s->grams) nb_grams_observe(s->grams, role, x);
}

static void drop_stats(runner *s)
{
    nb_ranges_free(s->ranges);
    nb_grams_free(s->grams);
    s->ranges = NULL;
    s->grams = NULL;
}

/* Through the block as it stands. */
static nb_status gather(runner *s, bool keep)
{
    nb_block_job *job = &s->job;
    NB_TRY(nb_ranges_create(&s->ranges, job->be, job->block, job->seqlen, s->err));
    if (s->needs & NB_NEED_HESSIAN) {
        NB_TRY(nb_grams_create(&s->grams, job->be, job->block, NB_ALL_ROLES, false, s->err));
    }
    return nb_flow_observe(s->flow, job->block, keep, observe, s, job->tick, job->tick_user,
                           s->err);
}

static nb_status stats(void *user, nb_role role, nb_input_stats *out, nb_error *err)
{
    runner *s = user;
    const nb_host_linear *l = &s->job.block->linear[role];
    *out = (nb_input_stats){0};
    if (!s->flow || !(nb_step_needs(s->step) & NEED_STATS) || !l->name) {
        return nb_fail(err, NB_EUSAGE, "step \"%s\": no statistics of input \"%s\"",
                       s->step->method->name, nb_role_names[role]);
    }
    if (!s->ranges) NB_TRY(gather(s, s->keep));
    nb_ranges_take(s->ranges, role, out);
    for (int64_t i = 0; i < out->n; i++) {
        if (isfinite(out->mean_abs[i])) continue;
        return nb_fail(err, NB_ENUMERIC,
                       "%s: channel %lld of its input is not finite on the calibration text",
                       l->name, (long long)i);
    }
    if (!s->grams) return NB_OK;
    const float *diagonal;
    return nb_grams_take(s->grams, role, &out->hessian, &diagonal, err);
}

/* ---- the run ------------------------------------------------------------------------------ */

static int count_stat_steps(const nb_recipe *r)
{
    int n = 0;
    for (int i = 0; i < r->n_steps; i++) {
        n += r->steps[i].method->run_block && (nb_step_needs(&r->steps[i]) & NEED_STATS);
    }
    return n;
}

/* Hidden states, the target among them where a step trains: the source's states then stay. */
static nb_status begin_states(runner *s)
{
    nb_block_job *job = &s->job;
    nb_flow_states now = nb_flow_look(s->flow);
    job->n_windows = now.n_windows;
    job->seqlen = now.seqlen;
    job->rope = now.rope;
    job->spill = now.spill;
    if (!(s->needs & NB_NEED_STATES)) return NB_OK;
    job->x_source = now.source;
    job->x_stored = now.stored;
    job->target = now.target;
    s->keep = true;
    if (s->needs & NEED_STATS) return gather(s, false);
    return nb_flow_observe(s->flow, job->block, false, NULL, NULL, job->tick, job->tick_user,
                           s->err);
}

static nb_status run_steps(runner *s)
{
    char when[64];
    NB_TRY(make_copies(s));
    if (s->flow) NB_TRY(begin_states(s));
    for (int i = 0; i < s->recipe->n_steps; i++) {
        const nb_step *step = &s->recipe->steps[i];
        if (!step->method->run_block) continue;
        s->step = step;
        s->job.option = step->option;
        NB_TRY(step->method->run_block(&s->job, s->err));
        snprintf(when, sizeof when, "after step \"%s\"", step->method->name);
        NB_TRY(nb_block_check(&s->job, when, s->err));
        if (step->method->kind == NB_STEP_TRANSFORM) drop_stats(s);
    }
    return NB_OK;
}

static void take_result(nb_block_job *job, nb_block_result *out)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        out->clip_lo[r] = job->clip_lo[r];
        out->clip_hi[r] = job->clip_hi[r];
        out->offset[r] = job->offset[r];
    }
    if (json_object_size(job->report) == 0) return;
    out->report = job->report;
    job->report = NULL;
}

nb_status nb_block_steps_run(const nb_recipe *recipe, const nb_config *cfg, nb_backend *be,
                             nb_flow *flow, nb_arena *arena, nb_host_block *block,
                             const nb_training *training, nb_flow_tick tick, void *user,
                             nb_block_result *out, nb_error *err)
{
    *out = (nb_block_result){0};
    if (!nb_recipe_has_block_steps(recipe)) return NB_OK;
    runner s = {.recipe = recipe,
                .flow = flow,
                .needs = nb_recipe_block_needs(recipe),
                .keep = count_stat_steps(recipe) > 1,
                .attn = nb_recipe_attn(recipe),
                .err = err};
    s.job = (nb_block_job){.cfg = cfg,
                           .be = be,
                           .arena = arena,
                           .block = block,
                           .weights = s.weights,
                           .acts = s.acts,
                           .attn = &s.attn,
                           .stats = stats,
                           .stats_user = &s,
                           .training = training,
                           .epochs = recipe->epochs,
                           .batch = recipe->batch,
                           .seed = recipe->seed,
                           .report = json_object(),
                           .tick = tick,
                           .tick_user = user};
    nb_status st = s.job.report ? run_steps(&s) : nb_fail_memory(err, "report", 0);
    if (st == NB_OK) take_result(&s.job, out);
    drop_stats(&s);
    json_decref(s.job.report);
    return st;
}

/* Simulated weights, gradients and the backend's own copies; what a batch keeps for its backward
 * (spec: OmniQuant 7.2). */
static int64_t training_bytes(const nb_recipe *recipe, const nb_config *cfg, int64_t weights)
{
    int64_t C = cfg->n_embd, F = cfg->n_ffn, Q = (int64_t)cfg->n_heads * cfg->head_dim;
    int64_t rows = nb_min_i64(recipe->batch, recipe->samples) * (int64_t)recipe->seqlen;
    return 4 * (3 * weights + rows * (8 * C + 8 * Q + 6 * F));
}

int64_t nb_block_steps_bytes(const nb_recipe *recipe, const nb_config *cfg, int64_t weights)
{
    unsigned needs = nb_recipe_block_needs(recipe);
    if (!nb_recipe_has_block_steps(recipe)) return 0;
    int64_t bytes = 4 * weights;
    if (needs & NEED_STATS) bytes += nb_ranges_bytes(cfg, recipe->seqlen);
    if (needs & NB_NEED_HESSIAN) bytes += nb_grams_bytes(cfg);
    if (needs & NB_NEED_STATES) bytes += training_bytes(recipe, cfg, weights);
    /* what is handed over; offsets, their gradient and the best of them on the device */
    if (needs & NB_NEED_OFFSETS) bytes += 4 * 4 * weights;
    return bytes;
}
