#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "eval/eval.h"

typedef struct run {
    const nb_net *net;
    nb_window *w;
    double *row;  /* [ctx] nll of one window's rows */
    double *mean; /* [windows] mean nll per window */
    nb_error *err;
} run;

/* Each window's first token is given, not predicted. */
static nb_status window_nll(run *r, const int32_t *ids, int64_t ctx, double *mean)
{
    NB_TRY(nb_window_forward(r->w, ids, ctx, r->err));
    nb_backend *be = r->net->be;
    for (int64_t t = 0; t < ctx - 1;) {
        int64_t n = ctx - 1 - t;
        nb_view logits;
        NB_TRY(nb_window_logits(r->w, t, &n, &logits, r->err));
        be->ops->nll_forward(be, r->row + t, logits, ids + t + 1);
        NB_TRY(be->ops->sync(be, r->err));
        t += n;
    }
    double sum = 0;
    for (int64_t t = 0; t < ctx - 1; t++) sum += r->row[t];
    *mean = sum / (double)(ctx - 1);
    return NB_OK;
}

static nb_status all_windows(run *r, const int32_t *tokens, int64_t ctx, int64_t n, nb_watch watch)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        NB_TRY(window_nll(r, tokens + i * ctx, ctx, &r->mean[i]));
        if (!isfinite(r->mean[i])) {
            return nb_fail(r->err, NB_ENUMERIC, "window %lld: the loss is not finite",
                           (long long)i);
        }
        sum += r->mean[i];
        char note[64];
        snprintf(note, sizeof note, "perplexity so far %.3f", exp(sum / (double)(i + 1)));
        nb_progress p = {.phase = "perplexity", .done = i + 1, .total = n, .note = note};
        if (watch.fn && !watch.fn(watch.user, &p)) {
            return nb_fail(r->err, NB_EINTERRUPTED, "perplexity: stopped after window %lld of %lld",
                           (long long)(i + 1), (long long)n);
        }
    }
    return NB_OK;
}

nb_status nb_eval_perplexity(const nb_net *net, const int32_t *tokens, size_t n_tokens,
                             const nb_eval_options *opt, nb_watch watch, nb_perplexity_result *out,
                             nb_error *err)
{
    *out = (nb_perplexity_result){0};
    int64_t n, ctx = opt->ctx;
    NB_TRY(nb_eval_windows(opt, n_tokens, &n, err));
    run r = {.net = net, .err = err};
    double start = nb_now();
    r.row = calloc((size_t)ctx, sizeof *r.row);
    r.mean = calloc((size_t)n, sizeof *r.mean);
    nb_status st = r.row && r.mean ? NB_OK : nb_fail_memory(err, "losses", (size_t)(ctx + n) * 8);
    if (st == NB_OK) st = nb_window_create(&r.w, net, ctx, opt->full_chunks, err);
    if (st == NB_OK) st = all_windows(&r, tokens, ctx, n, watch);
    if (st == NB_OK) {
        double error;
        nb_mean_error(r.mean, n, &out->nll, &error);
        out->perplexity = exp(out->nll);
        out->error = out->perplexity * error;
        out->windows = n;
        out->tokens = n * (ctx - 1);
        out->seconds = nb_now() - start;
        out->tokens_per_second = (double)(n * ctx) / out->seconds;
    }
    nb_window_free(r.w);
    free(r.row);
    free(r.mean);
    return st;
}
