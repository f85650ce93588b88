/* Clip: AWQ's search. Of each group the shrink ratio 1, 1 - 1/40, ..., 1/2 (both ends alike) with
 * the least error of the group's share of the output on the calibration text,
 *
 *   e_g H_gg e_g^T,   e_g = q(w_g) - w_g,   H_gg: the group's part of H
 *
 * with q exactly what "nearest" stores. Ties keep the wider range, so nothing is clipped where it
 * does not help (formats whose scale hardly follows the range). A matrix without statistics
 * (outside the blocks) keeps its range.
 *
 * Source: AWQ (arXiv 2306.00978) and mit-han-lab/llm-awq (auto_clip). Deviations: all rows and all
 * tokens count, by their second moments; a finer grid; the ends shrink towards 0 each, not to one
 * symmetric bound; q and k are clipped, too. Figures for the last, and for a search of each end by
 * itself, which brings nothing: docs/methods.md. */
#include <cblas.h>
#include <math.h>
#include <stdlib.h>

#include "base/size.h"
#include "method/awq_clip.h"
#include "method/output_error.h"

enum { N_RATIOS = 21 };

static float ratio_at(int i) { return 1 - (float)i / 40; }

/* What a thread works on: at most NB_ERROR_ROWS rows. */
typedef struct piece {
    const nb_job *job;
    int64_t row0, n_rows, groups;
    bool finite;                 /* every group had an error that is a number */
    int64_t g, at, n;            /* the group at work, its first column and length */
    float base[NB_ERROR_ROWS];   /* of the rows, nothing clipped */
    double error[NB_ERROR_ROWS]; /* of the candidate */
    double least[NB_ERROR_ROWS]; /* of the best so far */
    float *e, *scratch;          /* [NB_ERROR_ROWS, widest group] */
    uint8_t *codes;              /* [widest group] */
} piece;

/* One candidate for the group at work, in all rows. */
static void try_ratio(piece *c, float ratio)
{
    const nb_job *job = c->job;
    const nb_format *f = job->format;
    for (int64_t r = 0; r < c->n_rows; r++) {
        const float *w = job->w + (c->row0 + r) * job->n_in + c->at;
        float *e = c->e + r * c->n;
        nb_qparam p = {.base = c->base[r]};
        f->family->fit(f, w, job->importance ? job->importance + c->at : NULL, c->n, ratio, ratio,
                       &p);
        f->family->encode(f, &p, w, c->n, c->codes);
        f->family->decode(f, &p, c->codes, c->n, e);
        for (int64_t i = 0; i < c->n; i++) e[i] -= w[i];
    }
    nb_output_error(c->error, c->e, c->n_rows, c->n, job->hessian + c->at * (job->n_in + 1),
                    job->n_in, c->scratch);
    for (int64_t r = 0; r < c->n_rows; r++) {
        int64_t at = (c->row0 + r) * c->groups + c->g;
        if (!(c->error[r] < c->least[r])) continue;
        c->least[r] = c->error[r];
        job->clip_lo[at] = job->clip_hi[at] = ratio;
    }
}

static void search_group(piece *c, int64_t g)
{
    const nb_job *job = c->job;
    c->g = g;
    c->at = nb_group_begin(job->format, g);
    c->n = nb_group_length(job->format, job->n_in, g);
    for (int64_t r = 0; r < c->n_rows; r++) c->least[r] = HUGE_VAL;
    for (int i = 0; i < N_RATIOS; i++) try_ratio(c, ratio_at(i));
    for (int64_t r = 0; r < c->n_rows; r++) c->finite = c->finite && c->least[r] < HUGE_VAL;
}

static void search_rows(piece *c, int64_t row0)
{
    const nb_job *job = c->job;
    c->row0 = row0;
    c->n_rows = nb_min_i64(NB_ERROR_ROWS, job->n_out - row0);
    for (int64_t r = 0; r < c->n_rows; r++) {
        c->base[r] = nb_format_fit_base(job->format, job->w + (row0 + r) * job->n_in,
                                        job->importance, job->n_in, NULL, NULL);
    }
    for (int64_t g = 0; g < c->groups; g++) search_group(c, g);
}

static bool make_piece(piece *c, const nb_job *job)
{
    size_t n = (size_t)nb_group_length(job->format, job->n_in, 0);
    *c = (piece){.job = job, .groups = nb_format_groups(job->format, job->n_in), .finite = true};
    c->e = malloc(NB_ERROR_ROWS * n * sizeof *c->e);
    c->scratch = malloc(NB_ERROR_ROWS * n * sizeof *c->scratch);
    c->codes = malloc(n);
    return c->e && c->scratch && c->codes;
}

static nb_status run_awq_clip(nb_job *job, nb_error *err)
{
    if (!job->hessian) return NB_OK;
    bool memory = true, finite = true;
    int threads = openblas_get_num_threads();
    openblas_set_num_threads(1); /* the threads are ours, the order of its sums too */
#pragma omp parallel num_threads(job->threads) reduction(&& : memory, finite)
    {
        piece c;
        memory = make_piece(&c, job);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < job->n_out; row += NB_ERROR_ROWS) {
            if (memory) search_rows(&c, row);
        }
        finite = c.finite;
        free(c.e);
        free(c.scratch);
        free(c.codes);
    }
    openblas_set_num_threads(threads);
    if (!memory) return nb_fail_memory(err, job->name, NB_ERROR_ROWS * (size_t)job->n_in * 8);
    if (finite) return NB_OK;
    return nb_fail(err, NB_ENUMERIC,
                   "%s: statistics of its input on the calibration text are not finite", job->name);
}

const nb_method nb_method_awq_clip = {
    .name = "awq_clip",
    .kind = NB_STEP_CLIP,
    .needs = NB_NEED_HESSIAN,
    .source = "AWQ (arXiv 2306.00978)",
    .run = run_awq_clip,
};

nb_status nb_awq_clip_block(nb_block_job *job, nb_error *err)
{
    const nb_step step = {.method = &nb_method_awq_clip, .word = "awq_clip"};
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &job->block->linear[r];
        nb_input_stats stats;
        if (!job->clip_hi[r]) continue;
        NB_TRY(job->stats(job->stats_user, (nb_role)r, &stats, err));
        nb_job one = {.name = l->name,
                      .format = &job->weights[r],
                      .n_out = l->w.n_out,
                      .n_in = l->w.n_in,
                      .w = nb_block_weight(job, (nb_role)r),
                      .clip_lo = job->clip_lo[r],
                      .clip_hi = job->clip_hi[r],
                      .hessian = stats.hessian,
                      .threads = job->be->threads,
                      .cpu = job->be->cpu};
        NB_TRY(nb_job_run(&one, &step, 1, err));
    }
    return NB_OK;
}
