#include "method/equivalent.h"

#include <math.h>
#include <stdio.h>

#include "base/size.h"

static const nb_pair pairs[NB_N_PAIRS] = {
    [NB_PAIR_QKV] = {.name = "qkv",
                     .input = NB_Q,
                     .norm = NB_NORM_ATTN,
                     .linear = -1,
                     .consumer = {NB_Q, NB_K, NB_V},
                     .n_consumers = 3},
    [NB_PAIR_O] = {.name = "o",
                   .input = NB_O,
                   .norm = -1,
                   .linear = NB_V,
                   .consumer = {NB_O},
                   .n_consumers = 1},
    [NB_PAIR_FFN] = {.name = "ffn",
                     .input = NB_UP,
                     .norm = NB_NORM_FFN,
                     .linear = -1,
                     .consumer = {NB_UP, NB_GATE},
                     .n_consumers = 2},
    [NB_PAIR_DOWN] = {.name = "down",
                      .input = NB_DOWN,
                      .norm = -1,
                      .linear = NB_UP,
                      .consumer = {NB_DOWN},
                      .n_consumers = 1},
};

/* NULL, or what stands against scaling behind this norm. */
static const char *refuse_norm(const nb_block_job *job, int norm)
{
    if (job->cfg->post_norm) return "norms stand behind the residual sums";
    if (!job->cfg->norm_affine || !job->block->norm[norm].weight) return "norms have no weights";
    return NULL;
}

const char *nb_pair_find(nb_pair *out, const nb_block_job *job, nb_pair_kind kind)
{
    const nb_host_linear *linear = job->block->linear;
    nb_pair p = pairs[kind];
    p.kind = kind;
    if (!linear[NB_GATE].name && kind == NB_PAIR_FFN) p.n_consumers = 1;
    p.n_in = linear[p.consumer[0]].w.n_in;
    p.n = p.norm >= 0 ? job->block->norm[p.norm].n : linear[p.linear].w.n_out;
    p.repeat = p.n_in / p.n;
    p.head = kind == NB_PAIR_O ? job->cfg->head_dim : p.n;
    const char *why = p.norm >= 0 ? refuse_norm(job, p.norm) : NULL;
    if (kind == NB_PAIR_DOWN && !linear[NB_GATE].name && job->cfg->act != NB_ACT_RELU) {
        why = "the activation between them is not ReLU";
    }
    if (kind == NB_PAIR_DOWN && job->block->rotation.down) {
        why = "a Hadamard transform stands between them";
    }
    *out = p;
    return why;
}

/* Channel of the producer that column `col` of the consumers reads. */
static int64_t channel_of(const nb_pair *p, int64_t col)
{
    return col / (p->head * p->repeat) * p->head + col % p->head;
}

void nb_pair_expand(const nb_pair *p, const float *by_channel, float *by_column)
{
    for (int64_t i = 0; i < p->n_in; i++) by_column[i] = by_channel[channel_of(p, i)];
}

void nb_pair_reduce(const nb_pair *p, const float *by_column, float *by_channel)
{
    for (int64_t c = 0; c < p->n; c++) by_channel[c] = 0;
    for (int64_t i = 0; i < p->n_in; i++) {
        int64_t c = channel_of(p, i);
        by_channel[c] = fmaxf(by_channel[c], by_column[i]);
    }
}

/* ---- scaling -------------------------------------------------------------------------------- */

static void divide(float *v, const float *s, int64_t n)
{
    for (int64_t i = 0; i < n; i++) v[i] /= s[i];
}

static void scale_producer(const nb_block_job *job, const nb_pair *p, const float *s)
{
    if (p->norm >= 0) {
        const nb_host_norm *norm = &job->block->norm[p->norm];
        divide((float *)(uintptr_t)norm->weight, s, p->n);
        if (norm->bias) divide((float *)(uintptr_t)norm->bias, s, p->n);
        return;
    }
    const nb_host_linear *l = &job->block->linear[p->linear];
    float *w = nb_block_weight(job, (nb_role)p->linear);
#pragma omp parallel for num_threads(job->be->threads) schedule(static)
    for (int64_t i = 0; i < p->n; i++) {
        for (int64_t j = 0; j < l->w.n_in; j++) w[i * l->w.n_in + j] /= s[i];
    }
    if (l->bias) divide((float *)(uintptr_t)l->bias, s, p->n);
}

/* by_column [n_in] */
static void scale_consumer(const nb_block_job *job, const nb_pair *p, nb_role role,
                           const float *by_column)
{
    float *w = nb_block_weight(job, role);
    int64_t n_out = job->block->linear[role].w.n_out;
#pragma omp parallel for num_threads(job->be->threads) schedule(static)
    for (int64_t r = 0; r < n_out; r++) {
        for (int64_t i = 0; i < p->n_in; i++) w[r * p->n_in + i] *= by_column[i];
    }
}

nb_status nb_pair_scale(const nb_block_job *job, const nb_pair *p, const float *s, nb_error *err)
{
    for (int64_t i = 0; i < p->n; i++) {
        if (isfinite(s[i]) && s[i] > 0) continue;
        return nb_fail(err, NB_ENUMERIC,
                       "blk.%d: pair %s: the factor of channel %lld is %g, expected a positive "
                       "finite number",
                       job->block->layer, p->name, (long long)i, (double)s[i]);
    }
    float *by_column = nb_arena_alloc(job->arena, (size_t)p->n_in, sizeof *by_column);
    if (!by_column) return nb_fail_memory(err, p->name, (size_t)p->n_in * sizeof *by_column);
    nb_pair_expand(p, s, by_column);
    scale_producer(job, p, s);
    for (int k = 0; k < p->n_consumers; k++) scale_consumer(job, p, p->consumer[k], by_column);
    return NB_OK;
}

/* ---- statistics ------------------------------------------------------------------------------ */

static nb_status check_finite(const nb_block_job *job, const nb_pair *p, const nb_input_stats *in,
                              nb_error *err)
{
    for (int64_t i = 0; i < p->n_in; i++) {
        float diagonal = in->hessian ? in->hessian[i * p->n_in + i] : 0;
        float sum = in->min[i] + in->max[i] + in->mean_abs[i] + diagonal;
        if (isfinite(sum)) continue;
        return nb_fail(err, NB_ENUMERIC,
                       "blk.%d: input of %s on the calibration text: channel %lld is not finite",
                       job->block->layer, nb_role_names[p->input], (long long)i);
    }
    return NB_OK;
}

nb_status nb_pair_measure(nb_pair_stats *out, const nb_block_job *job, const nb_pair *p,
                          nb_error *err)
{
    nb_input_stats in;
    NB_TRY(job->stats(job->stats_user, p->input, &in, err));
    NB_TRY(check_finite(job, p, &in, err));
    float *largest = nb_arena_alloc(job->arena, (size_t)p->n_in, sizeof *largest);
    float *max = nb_arena_alloc(job->arena, (size_t)p->n, sizeof *max);
    float *mean = nb_arena_alloc(job->arena, (size_t)p->n, sizeof *mean);
    if (!largest || !max || !mean) {
        return nb_fail_memory(err, p->name, (size_t)(p->n_in + 2 * p->n) * sizeof *max);
    }
    for (int64_t i = 0; i < p->n_in; i++) largest[i] = fmaxf(-in.min[i], in.max[i]);
    nb_pair_reduce(p, largest, max);
    nb_pair_reduce(p, in.mean_abs, mean);
    *out = (nb_pair_stats){max, mean, in.hessian};
    return NB_OK;
}

/* ---- all pairs --------------------------------------------------------------------------------
 */

/* One wanted pair; *said: for the report, or NULL. *refused is left alone if the pair is possible.
 */
static nb_status run_pair(nb_block_job *job, nb_pair_kind kind, nb_pair_fn fn, json_t **said,
                          const char **refused, nb_error *err)
{
    nb_pair p;
    const char *why = nb_pair_find(&p, job, kind);
    if (!why) return fn(job, &p, said, err);
    *refused = why;
    *said = json_sprintf("left out: %s", why);
    return NB_OK;
}

nb_status nb_pair_each(nb_block_job *job, const char *step, const bool wanted[NB_N_PAIRS],
                       nb_pair_fn fn, nb_error *err)
{
    json_t *report = json_object();
    const char *refused = NULL;
    bool any = false;
    nb_status st = NB_OK;
    for (int k = 0; k < NB_N_PAIRS && st == NB_OK; k++) {
        if (!wanted[k]) continue;
        json_t *said = NULL;
        const char *why = NULL;
        st = run_pair(job, (nb_pair_kind)k, fn, &said, &why, err);
        if (said) json_object_set_new(report, pairs[k].name, said);
        any = any || !why;
        refused = why ? why : refused;
        if (st == NB_OK && job->tick) st = job->tick(job->tick_user);
    }
    json_object_set_new(job->report, step, report);
    if (st != NB_OK || any) return st;
    return nb_fail(err, NB_EUSAGE, "step \"%s\": no pair of this model can be scaled: %s", step,
                   refused);
}
