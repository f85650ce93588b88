#include "calib/estimate.h"

#include <stdlib.h>

#include "base/clock.h"
#include "calib/convert.h"

static nb_status time_steps(const nb_calib *c, const nb_host_block *block, double *seconds,
                            nb_error *err)
{
    nb_convert how = {
        .recipe = &c->recipe, .arena = c->arena, .scratch = c->scratch, .threads = c->be->threads};
    double start = nb_now(), error;
    nb_matrix stored;
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &block->linear[r];
        if (!l->name) continue;
        NB_TRY(nb_convert_matrix(&how, l->name, &l->w, &c->recipe.weights, false, &stored, &error,
                                 err));
    }
    *seconds = nb_now() - start;
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
    int n_layers = nb_source_config(c->source)->n_layers;
    *seconds = n_layers * (steps + window * c->recipe.samples);
    return NB_OK;
}
