/* Quality of a model on a text: perplexity, and divergence from a reference. */
#ifndef NB_EVAL_EVAL_H
#define NB_EVAL_EVAL_H

#include "model/model.h"

typedef struct nb_watch {
    nb_progress_fn fn; /* or NULL */
    void *user;
} nb_watch;

/* Hidden states of one window at a time, and logits of a few rows at a time: what every metric
 * walks over. */
typedef struct nb_window nb_window;
/* full_chunks: as in nb_eval_options. */
nb_status nb_window_create(nb_window **out, const nb_net *net, int64_t ctx, bool full_chunks,
                           nb_error *err);
void nb_window_free(nb_window *w);
/* Runs the window's ids through all blocks. */
nb_status nb_window_forward(nb_window *w, const int32_t *ids, int64_t n, nb_error *err);
/* Logits of rows [row, row + *n_rows) of the window; *n_rows is cut to what fits the scratch. */
nb_status nb_window_logits(nb_window *w, int64_t row, int64_t *n_rows, nb_view *logits,
                           nb_error *err);

nb_status nb_eval_perplexity(const nb_net *net, const int32_t *tokens, size_t n_tokens,
                             const nb_eval_options *opt, nb_watch watch, nb_perplexity_result *out,
                             nb_error *err);
/* out [n_nets]; the reference runs once for all. */
nb_status nb_eval_compare(const nb_net *const *nets, size_t n_nets, const nb_net *ref,
                          const int32_t *tokens, size_t n_tokens, const nb_eval_options *opt,
                          nb_watch watch, nb_compare_result *out, nb_error *err);
/* out [n_tokens, V], host memory. */
nb_status nb_eval_logits(const nb_net *net, const int32_t *tokens, int64_t n_tokens, float *out,
                         nb_error *err);

/* Windows that fit, cut to opt->n_windows; NB_EUSAGE if there is none. */
nb_status nb_eval_windows(const nb_eval_options *opt, size_t n_tokens, int64_t *n, nb_error *err);

/* Mean of per-window means and its standard error: windows are the independent units (tokens in a
 * window are not). With one window the error is not known: 0. */
void nb_mean_error(const double *x, int64_t n, double *mean, double *error);

#endif
