/* Models and their reference over the same text, window by window; logits never leave the scratch
 * of a few rows, and those of the reference are made once for all models.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "eval/eval.h"

/* One model, and everything of it that is kept: means per window, and of a measured model one KL
 * value per token. */
typedef struct side {
    const nb_net *net;
    nb_window *w;
    double *nll;   /* [ctx] of one window */
    double *m_nll; /* [windows] */
    /* Of measured models only. */
    uint8_t *same;                  /* [ctx] of one window */
    double *kl;                     /* [windows * (ctx - 1)] */
    double *m_kl, *m_same, *m_diff; /* [windows] */
} side;

typedef struct run {
    side ref, *models;
    size_t n_models;
    int64_t ctx, n_windows;
    nb_error *err;
} run;

static nb_status side_logits(run *r, side *s, const int32_t *ids, int64_t t, int64_t *n,
                             nb_view *logits)
{
    NB_TRY(nb_window_logits(s->w, t, n, logits, r->err));
    nb_backend *be = s->net->be;
    be->ops->nll_forward(be, s->nll + t, *logits, ids + t + 1);
    return be->ops->sync(be, r->err);
}

/* Rows [t, t + *n) of window i. */
static nb_status rows(run *r, const int32_t *ids, int64_t i, int64_t t, int64_t *n)
{
    nb_view want, got;
    NB_TRY(side_logits(r, &r->ref, ids, t, n, &want));
    for (size_t m = 0; m < r->n_models; m++) {
        side *s = &r->models[m];
        nb_backend *be = s->net->be;
        NB_TRY(side_logits(r, s, ids, t, n, &got));
        be->ops->kl_forward(be, s->kl + i * (r->ctx - 1) + t, s->same + t, want, got);
        NB_TRY(be->ops->sync(be, r->err));
    }
    return NB_OK;
}

static double mean_of(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum / (double)n;
}

static nb_status end_window(run *r, size_t m, int64_t i)
{
    side *s = &r->models[m];
    int64_t n_rows = r->ctx - 1, agree = 0;
    for (int64_t t = 0; t < n_rows; t++) agree += s->same[t];
    s->m_kl[i] = mean_of(s->kl + i * n_rows, n_rows);
    s->m_same[i] = (double)agree / (double)n_rows;
    s->m_nll[i] = mean_of(s->nll, n_rows);
    s->m_diff[i] = s->m_nll[i] - r->ref.m_nll[i];
    if (isfinite(s->m_kl[i]) && isfinite(s->m_diff[i])) return NB_OK;
    return nb_fail(r->err, NB_ENUMERIC,
                   "window %lld, model %zu of %zu: the divergence is not finite", (long long)i,
                   m + 1, r->n_models);
}

static nb_status window(run *r, const int32_t *ids, int64_t i)
{
    int64_t n_rows = r->ctx - 1;
    NB_TRY(nb_window_forward(r->ref.w, ids, r->ctx, r->err));
    for (size_t m = 0; m < r->n_models; m++) {
        NB_TRY(nb_window_forward(r->models[m].w, ids, r->ctx, r->err));
    }
    for (int64_t t = 0; t < n_rows;) {
        int64_t n = n_rows - t;
        NB_TRY(rows(r, ids, i, t, &n));
        t += n;
    }
    r->ref.m_nll[i] = mean_of(r->ref.nll, n_rows);
    for (size_t m = 0; m < r->n_models; m++) NB_TRY(end_window(r, m, i));
    return NB_OK;
}

/* "KL so far 0.10000 0.20000", as many models as the line takes. */
static void note_of(const run *r, int64_t n, char *out, size_t size)
{
    size_t at = (size_t)snprintf(out, size, "KL so far");
    for (size_t m = 0; m < r->n_models && at + 12 < size; m++) {
        at += (size_t)snprintf(out + at, size - at, " %.5f", mean_of(r->models[m].m_kl, n));
    }
}

static nb_status all_windows(run *r, const int32_t *tokens, nb_watch watch)
{
    for (int64_t i = 0; i < r->n_windows; i++) {
        NB_TRY(window(r, tokens + i * r->ctx, i));
        char note[64];
        note_of(r, i + 1, note, sizeof note);
        nb_progress p = {.phase = "compare", .done = i + 1, .total = r->n_windows, .note = note};
        if (watch.fn && !watch.fn(watch.user, &p)) {
            return nb_fail(r->err, NB_EINTERRUPTED, "compare: stopped after window %lld of %lld",
                           (long long)(i + 1), (long long)r->n_windows);
        }
    }
    return NB_OK;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Quantile by rank; its error is half the distance between the order statistics one standard
 * deviation of the binomial rank away (tokens taken as independent). */
static double quantile(const double *sorted, int64_t n, double p, double *error)
{
    double rank = p * (double)(n - 1), sd = sqrt((double)n * p * (1 - p));
    int64_t lo = (int64_t)fmax(0, rank - sd), hi = (int64_t)fmin((double)(n - 1), rank + sd);
    if (error) *error = (sorted[hi] - sorted[lo]) / 2;
    return sorted[(int64_t)(rank + 0.5)];
}

static void summarise(const run *r, side *s, nb_compare_result *out)
{
    int64_t n = r->n_windows, n_tokens = n * (r->ctx - 1);
    double nll, ref_nll, error, ref_error, diff, diff_error;
    nb_mean_error(s->m_kl, n, &out->kl_mean, &out->kl_mean_error);
    nb_mean_error(s->m_same, n, &out->top1_agreement, &out->top1_agreement_error);
    nb_mean_error(s->m_nll, n, &nll, &error);
    nb_mean_error(r->ref.m_nll, n, &ref_nll, &ref_error);
    nb_mean_error(s->m_diff, n, &diff, &diff_error);
    out->perplexity = exp(nll);
    out->perplexity_error = out->perplexity * error;
    out->perplexity_reference = exp(ref_nll);
    out->perplexity_reference_error = out->perplexity_reference * ref_error;
    out->perplexity_ratio = exp(diff);
    out->perplexity_ratio_error = out->perplexity_ratio * diff_error;
    qsort(s->kl, (size_t)n_tokens, sizeof *s->kl, ascending);
    out->kl_p99 = quantile(s->kl, n_tokens, 0.99, &out->kl_p99_error);
    out->kl_median = quantile(s->kl, n_tokens, 0.5, NULL);
    out->kl_max = s->kl[n_tokens - 1];
    out->windows = n;
    out->tokens = n_tokens;
}

/* ---- sides ------------------------------------------------------------------------------- */

static void free_side(side *s)
{
    nb_window_free(s->w);
    free(s->nll);
    free(s->same);
}

static nb_status create_side(run *r, side *s, const nb_net *net, bool is_measured, bool full_chunks)
{
    size_t n = (size_t)r->n_windows, ctx = (size_t)r->ctx;
    size_t count = ctx + n + (is_measured ? 3 * n + n * (ctx - 1) : 0);
    s->net = net;
    s->nll = calloc(count, sizeof *s->nll);
    s->same = calloc(ctx, 1);
    if (!s->nll || !s->same) {
        return nb_fail_memory(r->err, "divergences", count * sizeof *s->nll);
    }
    s->m_nll = s->nll + ctx;
    if (is_measured) {
        s->m_kl = s->m_nll + n;
        s->m_same = s->m_kl + n;
        s->m_diff = s->m_same + n;
        s->kl = s->m_diff + n;
    }
    return nb_window_create(&s->w, net, r->ctx, full_chunks, r->err);
}

static nb_status check_pair(const nb_net *net, const nb_net *ref, nb_error *err)
{
    if (net->be->ops != ref->be->ops) {
        return nb_fail(err, NB_EUSAGE, "compare: both models must be on one device, not %s and %s",
                       net->be->ops->name, ref->be->ops->name);
    }
    if (net->cfg.n_vocab != ref->cfg.n_vocab) {
        return nb_fail(err, NB_EUSAGE, "vocabularies differ: %d and %d tokens", net->cfg.n_vocab,
                       ref->cfg.n_vocab);
    }
    return NB_OK;
}

static nb_status create_sides(run *r, const nb_net *const *nets, const nb_net *ref,
                              bool full_chunks)
{
    r->models = calloc(r->n_models, sizeof *r->models);
    if (!r->models) return nb_fail_memory(r->err, "models", r->n_models * sizeof *r->models);
    NB_TRY(create_side(r, &r->ref, ref, false, full_chunks));
    for (size_t m = 0; m < r->n_models; m++) {
        NB_TRY(create_side(r, &r->models[m], nets[m], true, full_chunks));
    }
    return NB_OK;
}

static nb_status measure(run *r, const int32_t *tokens, nb_watch watch, nb_compare_result *out)
{
    double start = nb_now();
    for (size_t m = 0; m < r->n_models; m++) {
        out[m].nonfinite_activations = -r->models[m].net->be->nonfinite;
    }
    NB_TRY(all_windows(r, tokens, watch));
    double seconds = nb_now() - start;
    for (size_t m = 0; m < r->n_models; m++) {
        summarise(r, &r->models[m], &out[m]);
        out[m].seconds = seconds;
        out[m].tokens_per_second = (double)(r->n_windows * r->ctx) / seconds;
        out[m].nonfinite_activations += r->models[m].net->be->nonfinite;
    }
    return NB_OK;
}

nb_status nb_eval_compare(const nb_net *const *nets, size_t n_nets, const nb_net *ref,
                          const int32_t *tokens, size_t n_tokens, const nb_eval_options *opt,
                          nb_watch watch, nb_compare_result *out, nb_error *err)
{
    for (size_t m = 0; m < n_nets; m++) {
        out[m] = (nb_compare_result){0};
        NB_TRY(check_pair(nets[m], ref, err));
    }
    run r = {.n_models = n_nets, .ctx = opt->ctx, .err = err};
    NB_TRY(nb_eval_windows(opt, n_tokens, &r.n_windows, err));
    nb_status st = create_sides(&r, nets, ref, opt->full_chunks);
    if (st == NB_OK) st = measure(&r, tokens, watch, out);
    for (size_t m = 0; m < n_nets && r.models; m++) free_side(&r.models[m]);
    free_side(&r.ref);
    free(r.models);
    return st;
}
