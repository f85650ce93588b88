/* Walks windows of a text through a model without keeping logits of a whole window. */
#include <math.h>
#include <stdlib.h>

#include "eval/eval.h"

/* Rows of logits at a time: [128, 49152] fp32 are 24 MiB, which a last-level cache still holds. */
#define LOGIT_ROWS 128

struct nb_window {
    const nb_net *net;
    nb_cache *cache;
    nb_workspace *ws;
    nb_buffer *x, *logits;
    int64_t ctx, n, rows; /* rows of logits at a time */
};

nb_status nb_window_create(nb_window **out, const nb_net *net, int64_t ctx, bool full_chunks,
                           nb_error *err)
{
    *out = NULL;
    nb_window *w = calloc(1, sizeof *w);
    if (!w) return nb_fail_memory(err, "window", sizeof *w);
    nb_backend *be = net->be;
    w->net = net;
    w->ctx = ctx;
    w->rows = ctx < LOGIT_ROWS ? ctx : LOGIT_ROWS;
    unsigned flags = NB_CACHE_SHARED | (full_chunks ? NB_CACHE_PAPER : 0);
    nb_status st = nb_cache_create(&w->cache, net, ctx, flags, err);
    if (st == NB_OK) st = nb_workspace_create(be, &net->cfg, ctx, &w->ws, err);
    if (st == NB_OK) st = be->ops->buffer_create(be, ctx * net->cfg.n_embd, &w->x, err);
    if (st == NB_OK) {
        st = be->ops->buffer_create(be, w->rows * net->cfg.n_vocab, &w->logits, err);
    }
    if (st != NB_OK) {
        nb_window_free(w);
        return st;
    }
    *out = w;
    return NB_OK;
}

void nb_window_free(nb_window *w)
{
    if (!w) return;
    nb_backend *be = w->net->be;
    nb_cache_free(w->cache);
    nb_workspace_free(w->ws);
    be->ops->buffer_free(be, w->x);
    be->ops->buffer_free(be, w->logits);
    free(w);
}

nb_status nb_window_forward(nb_window *w, const int32_t *ids, int64_t n, nb_error *err)
{
    w->n = n;
    nb_view x = nb_view_of(w->x, n, w->net->cfg.n_embd);
    return nb_net_forward(w->net, w->ws, w->cache, x, ids, 0, err);
}

nb_status nb_window_logits(nb_window *w, int64_t row, int64_t *n_rows, nb_view *logits,
                           nb_error *err)
{
    if (*n_rows > w->rows) *n_rows = w->rows;
    *logits = nb_view_of(w->logits, *n_rows, w->net->cfg.n_vocab);
    nb_view x = nb_view_rows(nb_view_of(w->x, w->n, w->net->cfg.n_embd), row, *n_rows);
    return nb_ends_logits(w->net->ends, w->ws, *logits, x, err);
}

nb_status nb_eval_logits(const nb_net *net, const int32_t *tokens, int64_t n_tokens, float *out,
                         nb_error *err)
{
    if (n_tokens <= 0) return nb_fail(err, NB_EUSAGE, "logits need at least one token");
    nb_window *w;
    NB_TRY(nb_window_create(&w, net, n_tokens, false, err));
    nb_status st = nb_window_forward(w, tokens, n_tokens, err);
    for (int64_t t = 0; t < n_tokens && st == NB_OK;) {
        int64_t n = n_tokens - t;
        nb_view logits;
        st = nb_window_logits(w, t, &n, &logits, err);
        if (st != NB_OK) break;
        net->be->ops->download(net->be, logits, out + t * net->cfg.n_vocab, NB_F32);
        st = net->be->ops->sync(net->be, err);
        t += n;
    }
    nb_window_free(w);
    return st;
}

nb_status nb_eval_windows(const nb_eval_options *opt, size_t n_tokens, int64_t *n, nb_error *err)
{
    if (opt->ctx < 2) return nb_fail(err, NB_EUSAGE, "ctx %d: expected at least 2", opt->ctx);
    if (opt->n_windows < 0) {
        return nb_fail(err, NB_EUSAGE, "windows %lld: expected 1 or more, or 0 for all",
                       (long long)opt->n_windows);
    }
    *n = (int64_t)(n_tokens / (size_t)opt->ctx);
    if (*n == 0) {
        return nb_fail(err, NB_EUSAGE, "the text has %zu tokens: not one window of %d", n_tokens,
                       opt->ctx);
    }
    if (opt->n_windows > 0 && opt->n_windows < *n) *n = opt->n_windows;
    return NB_OK;
}

void nb_mean_error(const double *x, int64_t n, double *mean, double *error)
{
    double sum = 0, sq = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    *mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) sq += (x[i] - *mean) * (x[i] - *mean);
    *error = n > 1 ? sqrt(sq / (double)(n - 1) / (double)n) : 0;
}
