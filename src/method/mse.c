/* Clip: the ratios that minimise each group's squared error.
 *
 * Search over the grid {1, 1 - 1/64, ..., 1 - 47/64}: first both ends together, then one end at a
 * time around the best pair for formats with a zero point (one pass over the low end, one over the
 * high end; the error is nearly separable, so a full 48 x 48 search changes little). Error of a
 * candidate: sum_j importance_j (w_j - q(w_j))^2 with q exactly what the round step stores. The
 * full range is candidate 0, so the result is never worse than minmax; ties keep the wider range.
 * The idea is common (e.g. the search in GPTQ's quantizer, over 80 shrink factors). */
#include <math.h>

#include "method/method.h"

enum { N_RATIOS = 48 };

typedef struct search {
    const nb_format *f;
    const float *w, *importance; /* [n] of the group */
    int64_t n;
    float base;   /* of the row, nothing clipped */
    float lo, hi; /* best so far */
    double error;
} search;

static float ratio_at(int i) { return 1 - (float)i / 64; }

static void try_pair(search *s, float lo, float hi)
{
    nb_qparam p = {.base = s->base};
    s->f->family->fit(s->f, s->w, s->importance, s->n, lo, hi, &p);
    double error = nb_format_error(s->f, &p, s->w, s->importance, s->n);
    if (error < s->error) {
        s->error = error;
        s->lo = lo;
        s->hi = hi;
    }
}

static void search_group(search *s)
{
    s->error = HUGE_VAL;
    for (int i = 0; i < N_RATIOS; i++) try_pair(s, ratio_at(i), ratio_at(i));
    if (s->f->sym) return;
    float hi = s->hi;
    for (int i = 0; i < N_RATIOS; i++) try_pair(s, ratio_at(i), hi);
    float lo = s->lo;
    for (int i = 0; i < N_RATIOS; i++) try_pair(s, lo, ratio_at(i));
}

static void search_row(const nb_job *job, int64_t row)
{
    const float *w = job->w + row * job->n_in;
    int64_t groups = nb_format_groups(job->format, job->n_in);
    float base = nb_format_fit_base(job->format, w, job->importance, job->n_in, NULL, NULL);
    for (int64_t g = 0; g < groups; g++) {
        int64_t at = nb_group_begin(job->format, g);
        search s = {.f = job->format,
                    .w = w + at,
                    .importance = job->importance ? job->importance + at : NULL,
                    .n = nb_group_length(job->format, job->n_in, g),
                    .base = base};
        search_group(&s);
        job->clip_lo[row * groups + g] = s.lo;
        job->clip_hi[row * groups + g] = s.hi;
    }
}

static nb_status run_mse(nb_job *job, nb_error *err)
{
    NB_UNUSED(err);
#pragma omp parallel for num_threads(job->threads) schedule(static)
    for (int64_t row = 0; row < job->n_out; row++) search_row(job, row);
    return NB_OK;
}

const nb_method nb_method_mse = {
    .name = "mse",
    .kind = NB_STEP_CLIP,
    .source = "grid search for the least squared error per group",
    .run = run_mse,
};
