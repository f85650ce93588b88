#include "calib/estimate.h"

#include <stdlib.h>

#include "base/clock.h"
#include "calib/convert.h"

/* Statistics of inputs that have nothing to do with one another: as much work as any others. */
static float *make_identity(nb_arena *arena, int64_t n)
{
    float *h = nb_arena_alloc(arena, (size_t)n * (size_t)n, sizeof *h);
    for (int64_t i = 0; h && i < n; i++) h[i * n + i] = 1;
    return h;
}

static nb_status time_steps(const nb_calib *c, const nb_host_block *block, double *seconds,
                            nb_error *err)
{
    *seconds = 0;
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &block->linear[r];
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
        NB_TRY(nb_convert_matrix(&how, l->name, &l->w, &c->recipe.weights, false, &stored, &info,
                                 err));
        *seconds += nb_now() - start;
    }
    return NB_OK;
}

static nb_status go_on(void *user)
{
    NB_UNUSED(user);
    return NB_OK;
}

/* One window of any tokens, as the source's and as the stored block's would be. */
static nb_status time_window(const nb_calib *c, const nb_host_block *block, double *seconds,
                             nb_error *err)
{
    nb_samples one = {.n = 1, .seqlen = c->recipe.seqlen};
    nb_flow *flow = NULL;
    nb_host_ends ends;
    double start = 0, error;
    one.ids = calloc((size_t)one.seqlen, sizeof *one.ids);
    nb_status st = one.ids ? NB_OK : nb_fail_memory(err, "window", (size_t)one.seqlen * 4);
    if (st == NB_OK) st = nb_source_ends(c->source, c->arena, &ends, err);
    if (st == NB_OK) st = nb_flow_create(&flow, c->be, nb_source_config(c->source), &one, err);
    if (st == NB_OK) st = nb_flow_begin(flow, &ends, &ends, err);
    start = nb_now();
    if (st == NB_OK) st = nb_flow_advance(flow, block, block, go_on, NULL, &error, err);
    *seconds = nb_now() - start;
    nb_flow_free(flow);
    nb_samples_fini(&one);
    return st;
}

nb_status nb_estimate_seconds(const nb_calib *c, double *seconds, nb_error *err)
{
    nb_host_block block;
    double steps, window = 0;
    NB_TRY(nb_source_block(c->source, 0, c->arena, &block, err));
    NB_TRY(time_steps(c, &block, &steps, err));
    if (c->opt->n_calib > 0) NB_TRY(time_window(c, &block, &window, err));
    /* a window's time is that of two forwards; statistics take a third */
    if (nb_recipe_needs(&c->recipe) & NB_NEED_HESSIAN) window *= 1.5;
    int n_layers = nb_source_config(c->source)->n_layers;
    *seconds = n_layers * (steps + window * c->recipe.samples);
    return NB_OK;
}
