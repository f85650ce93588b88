/* Transform: AWQ's search of scales. Weights that meet large inputs are scaled up before they are
 * rounded, their inputs down:
 *
 *   s_j = (mean|X_j|)^r / sqrt(max_j s_j min_j s_j),   r = 0, 1/20, ..., 19/20
 *
 * and of these the s with the least error of the consumers' outputs on the calibration text,
 *
 *   tr(E H E^T),   E = Q(W diag(s)) diag(s)^-1 - W,   H: X^T X as NB_NEED_HESSIAN has it
 *
 * for each pair on its own, with Q the format's own fit and rounding (nothing clipped). s = 1 is
 * the first candidate and ties keep the smaller r: no pair is made worse by this measure.
 *
 *   duo   s_j = (mean|X_j|)^r / (mean_i |W_ij| / max of its group)^(1 - r), normalised likewise
 *
 * The error of a consumer with more than MAX_ROWS rows is that of MAX_ROWS of them, evenly spaced.
 *
 * Sources: AWQ (arXiv 2306.00978, section 3.2) and mit-han-lab/llm-awq; duo as in AutoAWQ.
 * Deviations: the error is that of each consumer's own output (the released code takes the output
 * of the whole attention for q, k, v); v and o are scaled under grouped-query attention, too; a
 * channel that is 0 throughout the text keeps its scale. */
#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "method/equivalent.h"
#include "method/output_error.h"

enum { DUO };

enum { N_RATIOS = 20, MAX_ROWS = 512 };

static const nb_step_option options[] = {
    [DUO] = {"duo", NB_OPTION_FLAG, 0, 0, 1},
    {0},
};

typedef struct search {
    const nb_block_job *job;
    const nb_pair *p;
    nb_pair_stats stats;
    float *size;                /* duo: [n], else NULL */
    float *s, *best;            /* [n] */
    float *by_column;           /* [n_in] of s */
    float *importance;          /* [n_in]: diagonal of H behind the division by s */
    double row_error[MAX_ROWS]; /* of the consumer at work */
    double error, at_one;       /* of best; of s = 1 */
    double ratio;               /* of best */
} search;

/* What a thread works with. */
typedef struct piece {
    float *e, *scratch; /* [NB_ERROR_ROWS, n_in] */
    float *w;           /* [n_in] */
    uint8_t *codes;     /* [n_in] */
    nb_qparam *p;       /* [groups] */
} piece;

/* ---- error of a candidate ----------------------------------------------------------------------
 */

static bool make_piece(piece *c, const nb_format *f, int64_t n_in)
{
    size_t n = (size_t)n_in;
    c->e = malloc(NB_ERROR_ROWS * n * sizeof *c->e);
    c->scratch = malloc(NB_ERROR_ROWS * n * sizeof *c->scratch);
    c->w = malloc(n * sizeof *c->w);
    c->codes = malloc(n);
    c->p = calloc((size_t)nb_format_groups(f, n_in), sizeof *c->p);
    return c->e && c->scratch && c->w && c->codes && c->p;
}

static void free_piece(piece *c)
{
    free(c->e);
    free(c->scratch);
    free(c->w);
    free(c->codes);
    free(c->p);
}

/* e [n_in] = Q(w diag(s)) diag(s)^-1 - w */
static void round_row(const search *s, const nb_format *f, const float *w, piece *c, float *e)
{
    int64_t n_in = s->p->n_in, groups = nb_format_groups(f, n_in);
    for (int64_t i = 0; i < n_in; i++) c->w[i] = w[i] * s->by_column[i];
    nb_format_fit_row(f, c->w, s->importance, n_in, NULL, NULL, c->p);
    for (int64_t g = 0; g < groups; g++) {
        int64_t at = nb_group_begin(f, g), n = nb_group_length(f, n_in, g);
        f->family->encode(f, &c->p[g], c->w + at, n, c->codes + at);
        f->family->decode(f, &c->p[g], c->codes + at, n, e + at);
    }
    for (int64_t i = 0; i < n_in; i++) e[i] = e[i] / s->by_column[i] - w[i];
}

/* Sampled rows [k0, k0 + n) of n_rows. */
static void measure_rows(search *s, nb_role role, piece *c, int64_t k0, int64_t n, int64_t n_rows)
{
    const nb_block_job *job = s->job;
    const float *w = nb_block_weight(job, role);
    int64_t n_in = s->p->n_in, n_out = job->block->linear[role].w.n_out;
    for (int64_t k = 0; k < n; k++) {
        int64_t row = (k0 + k) * n_out / n_rows;
        round_row(s, &job->weights[role], w + row * n_in, c, c->e + k * n_in);
    }
    nb_output_error(s->row_error + k0, c->e, n, n_in, s->stats.hessian, n_in, c->scratch);
}

static nb_status add_consumer(search *s, nb_role role, double *sum, nb_error *err)
{
    const nb_block_job *job = s->job;
    const nb_format *f = &job->weights[role];
    int64_t n_out = job->block->linear[role].w.n_out, n_rows = nb_min_i64(n_out, MAX_ROWS);
    bool memory = true;
#pragma omp parallel num_threads(job->be->threads) reduction(&& : memory)
    {
        piece c = {0};
        memory = make_piece(&c, f, s->p->n_in);
#pragma omp for schedule(dynamic)
        for (int64_t k = 0; k < n_rows; k += NB_ERROR_ROWS) {
            if (memory) {
                measure_rows(s, role, &c, k, nb_min_i64(NB_ERROR_ROWS, n_rows - k), n_rows);
            }
        }
        free_piece(&c);
    }
    if (!memory) return nb_fail_memory(err, s->p->name, NB_ERROR_ROWS * (size_t)s->p->n_in * 8);
    double rows = 0;
    for (int64_t k = 0; k < n_rows; k++) rows += s->row_error[k];
    *sum += rows * (double)n_out / (double)n_rows;
    return NB_OK;
}

/* The error under s->s. */
static nb_status measure(search *s, double *error, nb_error *err)
{
    const nb_pair *p = s->p;
    *error = 0;
    nb_pair_expand(p, s->s, s->by_column);
    for (int64_t i = 0; i < p->n_in; i++) {
        float size = s->by_column[i];
        s->importance[i] = s->stats.hessian[i * (p->n_in + 1)] / (size * size);
    }
    for (int k = 0; k < p->n_consumers; k++) {
        if (!nb_format_is_quantized(&s->job->weights[p->consumer[k]])) continue;
        NB_TRY(add_consumer(s, p->consumer[k], error, err));
    }
    return NB_OK;
}

/* ---- candidates ---------------------------------------------------------------------------------
 */

/* size [n_in] += sum over rows of |w| / max |w| of its group */
static void add_sizes(const nb_block_job *job, nb_role role, float *size)
{
    const nb_matrix *m = &job->block->linear[role].w;
    const float *w = nb_block_weight(job, role);
    const nb_format *f = &job->weights[role];
    int64_t groups = nb_format_groups(f, m->n_in);
    for (int64_t r = 0; r < m->n_out; r++, w += m->n_in) {
        for (int64_t g = 0; g < groups; g++) {
            int64_t at = nb_group_begin(f, g), end = at + nb_group_length(f, m->n_in, g);
            float max = 0;
            for (int64_t i = at; i < end; i++) max = fmaxf(max, fabsf(w[i]));
            for (int64_t i = at; max > 0 && i < end; i++) size[i] += fabsf(w[i]) / max;
        }
    }
}

/* s->size, from the job's arena. */
static nb_status measure_sizes(search *s, nb_error *err)
{
    const nb_pair *p = s->p;
    float *by_column = nb_arena_alloc(s->job->arena, (size_t)p->n_in, sizeof *by_column);
    s->size = nb_arena_alloc(s->job->arena, (size_t)p->n, sizeof *s->size);
    if (!by_column || !s->size) return nb_fail_memory(err, p->name, (size_t)p->n_in * 8);
    int64_t rows = 0;
    for (int k = 0; k < p->n_consumers; k++) {
        add_sizes(s->job, p->consumer[k], by_column);
        rows += s->job->block->linear[p->consumer[k]].w.n_out;
    }
    for (int64_t i = 0; i < p->n_in; i++) by_column[i] /= (float)rows;
    nb_pair_reduce(p, by_column, s->size);
    return NB_OK;
}

/* s->s for ratio r: geometric mean of its extremes 1, dead channels 1. */
static void make_candidate(search *s, double r)
{
    double least = HUGE_VAL, most = 0;
    for (int64_t i = 0; i < s->p->n; i++) {
        double x = (double)s->stats.mean_abs[i], w = s->size ? (double)s->size[i] : 1;
        double size = x > 0 && w > 0 ? pow(x, r) / pow(w, 1 - r) : 0;
        s->s[i] = (float)size;
        if (!(s->s[i] > 0)) continue;
        least = fmin(least, size);
        most = fmax(most, size);
    }
    float middle = most > 0 ? (float)sqrt(least * most) : 1;
    for (int64_t i = 0; i < s->p->n; i++) s->s[i] = s->s[i] > 0 ? s->s[i] / middle : 1;
}

static nb_status try_all(search *s, nb_error *err)
{
    size_t bytes = (size_t)s->p->n * sizeof *s->s;
    for (int64_t i = 0; i < s->p->n; i++) s->s[i] = s->best[i] = 1;
    NB_TRY(measure(s, &s->at_one, err));
    if (!isfinite(s->at_one)) {
        return nb_fail(err, NB_ENUMERIC,
                       "blk.%d: pair %s: the error of rounding its consumers is not finite",
                       s->job->block->layer, s->p->name);
    }
    s->error = s->at_one;
    for (int i = s->size ? 0 : 1; i < N_RATIOS; i++) {
        double error, r = (double)i / N_RATIOS;
        make_candidate(s, r);
        NB_TRY(measure(s, &error, err));
        if (!(error < s->error)) continue;
        s->error = error;
        s->ratio = r;
        memcpy(s->best, s->s, bytes);
    }
    return NB_OK;
}

/* ---- the step
 * ------------------------------------------------------------------------------------ */

static bool any_quantized(const nb_block_job *job, const nb_pair *p)
{
    for (int k = 0; k < p->n_consumers; k++) {
        if (nb_format_is_quantized(&job->weights[p->consumer[k]])) return true;
    }
    return false;
}

static nb_status search_pair(nb_block_job *job, const nb_pair *p, json_t **report, nb_error *err)
{
    if (!any_quantized(job, p)) {
        *report = json_string("left out: its consumers are not quantized");
        return NB_OK;
    }
    search s = {.job = job, .p = p};
    NB_TRY(nb_pair_measure(&s.stats, job, p, err));
    float *scratch = nb_arena_alloc(job->arena, (size_t)(2 * p->n + 2 * p->n_in), sizeof *scratch);
    if (!scratch) return nb_fail_memory(err, p->name, (size_t)(p->n + p->n_in) * 8);
    s.s = scratch;
    s.best = s.s + p->n;
    s.by_column = s.best + p->n;
    s.importance = s.by_column + p->n_in;
    if (job->option[DUO] != 0) NB_TRY(measure_sizes(&s, err));
    int threads = openblas_get_num_threads();
    openblas_set_num_threads(1); /* the threads are ours, the order of its sums too */
    nb_status st = try_all(&s, err);
    openblas_set_num_threads(threads);
    NB_TRY(st);
    *report =
        json_pack("{s:f, s:f, s:f}", "ratio", s.ratio, "error", s.error, "error_before", s.at_one);
    return s.error < s.at_one ? nb_pair_scale(job, p, s.best, err) : NB_OK;
}

static nb_status run_awq(nb_block_job *job, nb_error *err)
{
    static const bool wanted[NB_N_PAIRS] = {true, true, true, true};
    return nb_pair_each(job, "awq", wanted, search_pair, err);
}

const nb_method nb_method_awq = {
    .name = "awq",
    .kind = NB_STEP_TRANSFORM,
    .needs = NB_NEED_RANGE | NB_NEED_HESSIAN,
    .options = options,
    .source = "AWQ (arXiv 2306.00978)",
    .run_block = run_awq,
};
