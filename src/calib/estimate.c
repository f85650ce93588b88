#include "calib/estimate.h"

#include <stdlib.h>

#include "base/clock.h"
#include "calib/block_steps.h"
#include "calib/convert.h"

/* Statistics of inputs that have nothing to do with one another: as much work as any others. */
static float *make_identity(nb_arena *arena, int64_t n)
{
    float *h = nb_arena_alloc(arena, (size_t)n * (size_t)n, sizeof *h);
    for (int64_t i = 0; h && i < n; i++) h[i * n + i] = 1;
    return h;
}

/* Steps on the linears of a block. */
static nb_status time_linears(const nb_calib *c, const nb_host_block *block, double *seconds,
                              nb_error *err)
{
    *seconds = 0;
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &block->linear[r];
        const nb_format *format = nb_recipe_weights(&c->recipe, (nb_role)r);
        nb_convert how = {.recipe = &c->recipe,
                          .arena = c->arena,
                          .scratch = c->scratch,
                          .threads = c->be->threads,
                          .cpu = c->be->cpu};
        nb_convert_info info;
        nb_matrix stored;
        if (!l->name) continue;
        if (nb_recipe_needs(&c->recipe) & NB_NEED_HESSIAN) {
            how.hessian = make_identity(c->arena, l->w.n_in);
            if (!how.hessian) return nb_fail_memory(err, l->name, (size_t)l->w.n_in * 4);
        }
        double start = nb_now();
        NB_TRY(nb_convert_matrix(&how, l->name, &l->w, format, false, &stored, &info, err));
        *seconds += nb_now() - start;
    }
    return NB_OK;
}

static nb_status go_on(void *user)
{
    NB_UNUSED(user);
    return NB_OK;
}

/* One window of any tokens: the steps on the block with it, and its way through the source's and
 * the stored block. */
static nb_status time_window(const nb_calib *c, nb_host_block *block, double *steps, double *window,
                             nb_error *err)
{
    const nb_config *cfg = nb_source_config(c->source);
    nb_samples one = {.n = 1, .seqlen = c->recipe.seqlen};
    nb_flow *flow = NULL;
    nb_host_ends ends;
    nb_host_block source = *block;
    nb_block_result result = {0};
    nb_flow_desc d = nb_flow_describe(&c->recipe, cfg);
    double start = 0, error;
    nb_status st;
    one.ids = calloc((size_t)one.seqlen, sizeof *one.ids);
    NB_GOTO(st, one.ids ? NB_OK : nb_fail_memory(err, "window", (size_t)one.seqlen * 4));
    NB_GOTO(st, nb_source_ends(c->source, c->arena, &ends, err));
    NB_GOTO(st, nb_flow_create(&flow, c->be, &d, &one, err));
    NB_GOTO(st, nb_flow_begin(flow, &ends, &ends, err));
    start = nb_now();
    NB_GOTO(st, nb_block_steps_run(&c->recipe, cfg, c->be, flow, c->arena, block, NULL, go_on, NULL,
                                   &result, err));
    *steps = nb_now() - start;
    start = nb_now();
    NB_GOTO(st, nb_flow_advance(flow, &source, block, go_on, NULL, &error, err));
    *window = nb_now() - start;
done:
    json_decref(result.report);
    nb_flow_free(flow);
    nb_samples_fini(&one);
    return st;
}

nb_status nb_estimate_seconds(const nb_calib *c, double *seconds, nb_error *err)
{
    nb_host_block block;
    const nb_recipe *r = &c->recipe;
    double linears, steps = 0, window = 0;
    NB_TRY(nb_source_block(c->source, 0, c->arena, &block, err));
    if (c->opt->n_calib > 0) NB_TRY(time_window(c, &block, &steps, &window, err));
    NB_TRY(time_linears(c, &block, &linears, err));
    /* A window's time is that of two forwards; statistics take a third, or one each. */
    if (nb_recipe_needs(r) & NB_NEED_HESSIAN) window *= r->sequential ? 3 : 1.5;
    /* Training goes with the windows (learned rounding with those of a step: at most that); what
     * searches hardly does. */
    if (nb_recipe_block_needs(r) & NB_NEED_STATES) steps *= r->samples;
    int n_layers = nb_source_config(c->source)->n_layers;
    *seconds = n_layers * (steps + linears + window * r->samples);
    return NB_OK;
}
