/* Both models over the same text, window by window; logits never leave the scratch of a few rows.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "eval/eval.h"

/* Sums of one window, and everything that is kept: one KL value per token, a few means per
 * window. */
typedef struct run {
    const nb_net *net[2]; /* model, reference */
    nb_window *w[2];
    int64_t ctx, n_windows;
    double *nll[2];                            /* [ctx] scratch */
    uint8_t *same;                             /* [ctx] scratch */
    double *kl;                                /* [windows * (ctx - 1)] */
    double *m_kl, *m_same, *m_nll[2], *m_diff; /* [windows] means */
    nb_error *err;
} run;

static nb_status rows(run *r, const int32_t *ids, int64_t t, int64_t *n, double *kl)
{
    nb_view logits[2];
    for (int m = 0; m < 2; m++) {
        NB_TRY(nb_window_logits(r->w[m], t, n, &logits[m], r->err));
        nb_backend *be = r->net[m]->be;
        be->ops->nll_forward(be, r->nll[m] + t, logits[m], ids + t + 1);
        NB_TRY(be->ops->sync(be, r->err));
    }
    nb_backend *be = r->net[0]->be;
    be->ops->kl_forward(be, kl + t, r->same + t, logits[1], logits[0]);
    return be->ops->sync(be, r->err);
}

static double mean_of(const double *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum / (double)n;
}

static nb_status window(run *r, const int32_t *ids, int64_t i)
{
    int64_t n_rows = r->ctx - 1, agree = 0;
    double *kl = r->kl + i * n_rows;
    for (int m = 0; m < 2; m++) NB_TRY(nb_window_forward(r->w[m], ids, r->ctx, r->err));
    for (int64_t t = 0; t < n_rows;) {
        int64_t n = n_rows - t;
        NB_TRY(rows(r, ids, t, &n, kl));
        t += n;
    }
    for (int64_t t = 0; t < n_rows; t++) agree += r->same[t];
    r->m_kl[i] = mean_of(kl, n_rows);
    r->m_same[i] = (double)agree / (double)n_rows;
    for (int m = 0; m < 2; m++) r->m_nll[m][i] = mean_of(r->nll[m], n_rows);
    r->m_diff[i] = r->m_nll[0][i] - r->m_nll[1][i];
    if (!isfinite(r->m_kl[i]) || !isfinite(r->m_diff[i])) {
        return nb_fail(r->err, NB_ENUMERIC, "window %lld: the divergence is not finite",
                       (long long)i);
    }
    return NB_OK;
}

static nb_status all_windows(run *r, const int32_t *tokens, nb_watch watch)
{
    for (int64_t i = 0; i < r->n_windows; i++) {
        NB_TRY(window(r, tokens + i * r->ctx, i));
        char note[64];
        snprintf(note, sizeof note, "KL so far %.5f", mean_of(r->m_kl, i + 1));
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

static void summarise(run *r, nb_compare_result *out)
{
    int64_t n = r->n_windows, n_tokens = n * (r->ctx - 1);
    double nll[2], error[2], diff, diff_error;
    nb_mean_error(r->m_kl, n, &out->kl_mean, &out->kl_mean_error);
    nb_mean_error(r->m_same, n, &out->top1_agreement, &out->top1_agreement_error);
    for (int m = 0; m < 2; m++) nb_mean_error(r->m_nll[m], n, &nll[m], &error[m]);
    nb_mean_error(r->m_diff, n, &diff, &diff_error);
    out->perplexity = exp(nll[0]);
    out->perplexity_error = out->perplexity * error[0];
    out->perplexity_reference = exp(nll[1]);
    out->perplexity_reference_error = out->perplexity_reference * error[1];
    out->perplexity_ratio = exp(diff);
    out->perplexity_ratio_error = out->perplexity_ratio * diff_error;
    qsort(r->kl, (size_t)n_tokens, sizeof *r->kl, ascending);
    out->kl_p99 = quantile(r->kl, n_tokens, 0.99, &out->kl_p99_error);
    out->kl_median = quantile(r->kl, n_tokens, 0.5, NULL);
    out->kl_max = r->kl[n_tokens - 1];
    out->windows = n;
    out->tokens = n_tokens;
}

static nb_status reserve(run *r)
{
    size_t n = (size_t)r->n_windows, ctx = (size_t)r->ctx;
    double *block = calloc(5 * n + 2 * ctx + n * (ctx - 1), sizeof *block);
    r->same = calloc(ctx, 1);
    if (!block || !r->same) {
        free(block);
        return nb_fail_memory(r->err, "divergences", n * ctx * sizeof *block);
    }
    r->m_kl = block;
    r->m_same = block + n;
    r->m_nll[0] = block + 2 * n;
    r->m_nll[1] = block + 3 * n;
    r->m_diff = block + 4 * n;
    r->nll[0] = block + 5 * n;
    r->nll[1] = r->nll[0] + ctx;
    r->kl = r->nll[1] + ctx;
    return NB_OK;
}

nb_status nb_eval_compare(const nb_net *net, const nb_net *ref, const int32_t *tokens,
                          size_t n_tokens, const nb_eval_options *opt, nb_watch watch,
                          nb_compare_result *out, nb_error *err)
{
    *out = (nb_compare_result){0};
    if (net->be->ops != ref->be->ops) {
        return nb_fail(err, NB_EUSAGE, "compare: both models must be on one device, not %s and %s",
                       net->be->ops->name, ref->be->ops->name);
    }
    if (net->cfg.n_vocab != ref->cfg.n_vocab) {
        return nb_fail(err, NB_EUSAGE, "vocabularies differ: %d and %d tokens", net->cfg.n_vocab,
                       ref->cfg.n_vocab);
    }
    run r = {.net = {net, ref}, .ctx = opt->ctx, .err = err};
    NB_TRY(nb_eval_windows(opt, n_tokens, &r.n_windows, err));
    double start = nb_now();
    int64_t nonfinite = net->be->nonfinite;
    nb_status st = reserve(&r);
    for (int m = 0; m < 2 && st == NB_OK; m++) {
        st = nb_window_create(&r.w[m], r.net[m], r.ctx, opt->full_chunks, err);
    }
    if (st == NB_OK) st = all_windows(&r, tokens, watch);
    if (st == NB_OK) {
        summarise(&r, out);
        out->seconds = nb_now() - start;
        out->tokens_per_second = (double)(r.n_windows * r.ctx) / out->seconds;
        out->nonfinite_activations = net->be->nonfinite - nonfinite;
    }
    for (int m = 0; m < 2; m++) nb_window_free(r.w[m]);
    free(r.m_kl);
    free(r.same);
    return st;
}
