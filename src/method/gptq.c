/* Round: GPTQ. Columns are rounded one after another, and each rounding error is spread over the
 * columns that are still free, so that the linear's output on the calibration text moves least:
 *
 *   err_i = (w_i - q(w_i)) / U_ii,   w_j -= err_i U_ij for j > i,   (H + lambda I)^-1 = U^T U
 *
 * It minimises tr((W - Q)(H + lambda I)(W - Q)^T) greedily, and that is the sum of err^2.
 *
 * Rows do not depend on one another: a thread takes ROWS of them through all columns. In a block
 * of columns the updates are done at once, on the columns behind it in one product when the block
 * is finished. Everything of a row happens in one order, whatever the number of threads.
 *
 * Parameters of a group: where the format lets a group stand alone they are fitted when the loop
 * reaches the group, to weights that hold all updates so far (a block ends early where a group
 * would reach over its end). Groups that share something (m1, m2, nvfp4), groups under act_order,
 * and all under static_groups are fitted to the weights before the first update.
 *
 *   damp=0.01       share of the mean diagonal of H that is added to the diagonal (lambda)
 *   block=128       columns per block; no effect beyond rounding
 *   act_order       columns in the order of falling H_jj: the important ones while most are free
 *   static_groups   see above
 *
 * Where H + lambda I stays singular with tenfold lambda, three times, the linear is rounded to
 * nearest, and the report says so; a matrix without H (outside the blocks) likewise.
 *
 * Sources: GPTQ (arXiv 2210.17323) and IST-DASLab/gptq. Deviations (ZeroQuant-FP, section 6 of its
 * specification): a column whose input is always 0 is rounded, not zeroed; scales of groups inside
 * a block are not stale. */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/size.h"
#include "method/gptq.h"
#include "method/round.h"

enum { DAMP, BLOCK, ACT_ORDER, STATIC_GROUPS };

enum { ROWS = 64 };

static const nb_step_option options[] = {
    [DAMP] = {"damp", NB_OPTION_REAL, 0.01, 0, 10},
    [BLOCK] = {"block", NB_OPTION_WHOLE, 128, 1, 4096},
    [ACT_ORDER] = {"act_order", NB_OPTION_FLAG, 0, 0, 1},
    [STATIC_GROUPS] = {"static_groups", NB_OPTION_FLAG, 0, 0, 1},
    {0},
};

typedef struct gptq {
    const nb_job *job;
    nb_gptq_factor factor;
    nb_plane_spec spec[NB_MAX_PLANES];
    int64_t groups, block;
    bool fit_first;
    double *loss; /* [n_out] */
} gptq;

/* What a thread works on: at most ROWS rows. */
typedef struct piece {
    float *w;       /* [ROWS, n_in] in the order of the columns */
    float *error;   /* [ROWS, block] */
    uint8_t *codes; /* [ROWS, n_in] in the order of the weight */
    nb_qparam *p;   /* [ROWS, groups] */
} piece;

static void fit_group(const gptq *s, int64_t row, int64_t g, const float *w, nb_qparam *p)
{
    const nb_job *job = s->job;
    int64_t at = nb_group_begin(job->format, g);
    *p = (nb_qparam){0};
    job->format->family->fit(job->format, w, job->importance ? job->importance + at : NULL,
                             nb_group_length(job->format, job->n_in, g),
                             job->clip_lo[row * s->groups + g], job->clip_hi[row * s->groups + g],
                             p);
}

static void load_row(const gptq *s, int64_t row, float *w, nb_qparam *p)
{
    const nb_job *job = s->job;
    const float *from = job->w + row * job->n_in;
    for (int64_t k = 0; k < job->n_in; k++) w[k] = from[s->factor.order[k]];
    if (!s->fit_first) return;
    nb_format_fit_row(job->format, from, job->importance, job->n_in, job->clip_lo + row * s->groups,
                      job->clip_hi + row * s->groups, p);
}

/* Columns [b0, b1) of one row; error [b1 - b0]. Returns the sum of its squares. */
static double round_block(const gptq *s, int64_t row, int64_t b0, int64_t b1, float *w,
                          uint8_t *codes, nb_qparam *p, float *error)
{
    const nb_format *f = s->job->format;
    int64_t n = s->job->n_in;
    double loss = 0;
    for (int64_t i = b0; i < b1; i++) {
        int64_t col = s->factor.order[i], g = f->group > 0 ? col / f->group : 0;
        const float *u = s->factor.u + i * n;
        float back;
        if (!s->fit_first && col == nb_group_begin(f, g)) fit_group(s, row, g, w + i, p + g);
        f->family->encode(f, p + g, w + i, 1, codes + col);
        f->family->decode(f, p + g, codes + col, 1, &back);
        float e = (w[i] - back) / u[i];
        error[i - b0] = e;
        loss += (double)e * (double)e;
#pragma omp simd
        for (int64_t j = i + 1; j < b1; j++) w[j] -= e * u[j];
    }
    return loss;
}

/* End of the block that begins at b0: where parameters are fitted on the way, no group that begins
 * inside it may reach beyond it. */
static int64_t block_end(const gptq *s, int64_t b0)
{
    int64_t n = s->job->n_in, b1 = nb_min_i64(b0 + s->block, n), group = s->job->format->group;
    if (s->fit_first || group == 0 || b1 == n) return b1;
    int64_t last = b1 / group * group; /* the group that b1 lies in, or that begins there */
    return last > b0 ? last : b1;
}

static void round_rows(const gptq *s, piece *c, int64_t row0, int64_t n_rows)
{
    int64_t n = s->job->n_in;
    for (int64_t r = 0; r < n_rows; r++) {
        load_row(s, row0 + r, c->w + r * n, c->p + r * s->groups);
    }
    for (int64_t b0 = 0, b1; b0 < n; b0 = b1) {
        b1 = block_end(s, b0);
        for (int64_t r = 0; r < n_rows; r++) {
            s->loss[row0 + r] += round_block(s, row0 + r, b0, b1, c->w + r * n, c->codes + r * n,
                                             c->p + r * s->groups, c->error + r * s->block);
        }
        if (b1 == n) break;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)n_rows, (blasint)(n - b1),
                    (blasint)(b1 - b0), -1, c->error, (blasint)s->block, s->factor.u + b0 * n + b1,
                    (blasint)n, 1, c->w + b1, (blasint)n);
    }
    for (int64_t r = 0; r < n_rows; r++) {
        nb_round_pack(s->job, s->spec, row0 + r, c->codes + r * n, c->p + r * s->groups);
    }
}

static bool make_piece(const gptq *s, piece *c)
{
    size_t n = (size_t)s->job->n_in;
    c->w = malloc(ROWS * n * sizeof *c->w);
    c->error = malloc(ROWS * (size_t)s->block * sizeof *c->error);
    c->codes = malloc(ROWS * n);
    c->p = calloc(ROWS * (size_t)s->groups, sizeof *c->p);
    return c->w && c->error && c->codes && c->p;
}

static void free_piece(piece *c)
{
    free(c->w);
    free(c->error);
    free(c->codes);
    free(c->p);
}

static nb_status round_all(gptq *s, nb_error *err)
{
    const nb_job *job = s->job;
    bool memory = true;
    int threads = openblas_get_num_threads();
    openblas_set_num_threads(1); /* the threads are ours, the order of its sums too */
#pragma omp parallel num_threads(job->threads) reduction(&& : memory)
    {
        piece c = {0};
        memory = make_piece(s, &c);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < job->n_out; row += ROWS) {
            if (memory) round_rows(s, &c, row, nb_min_i64(ROWS, job->n_out - row));
        }
        free_piece(&c);
    }
    openblas_set_num_threads(threads);
    return memory ? NB_OK : nb_fail_memory(err, job->name, ROWS * (size_t)job->n_in * 5);
}

static void describe(nb_job *job, const gptq *s)
{
    const nb_gptq_factor *f = &s->factor;
    if (f->failed) {
        snprintf(job->note, sizeof job->note, "gptq: singular statistics, rounded to nearest");
    } else if (f->n_tries > 0) {
        snprintf(job->note, sizeof job->note, "gptq: damping raised %d times, %lld dead inputs",
                 f->n_tries, (long long)f->n_dead);
    } else if (f->n_dead > 0) {
        snprintf(job->note, sizeof job->note, "gptq: %lld dead inputs", (long long)f->n_dead);
    }
}

/* True where groups are fitted before the first update. */
static bool must_fit_first(const nb_job *job)
{
    bool alone = nb_format_groups(job->format, job->n_in) == 1; /* nothing to wait for */
    if (alone || job->option[STATIC_GROUPS] != 0 || job->option[ACT_ORDER] != 0) return true;
    return nb_format_fit_base(job->format, job->w, job->importance, job->n_in, NULL, NULL) > 0;
}

static nb_status run_gptq(nb_job *job, nb_error *err)
{
    if (!job->hessian) return nb_round_nearest(job, err);
    gptq s = {.job = job,
              .groups = nb_format_groups(job->format, job->n_in),
              .block = (int64_t)job->option[BLOCK],
              .fit_first = must_fit_first(job)};
    job->format->family->planes(job->format, job->n_in, s.spec);
    NB_TRY(nb_gptq_factor_create(&s.factor, job->name, job->hessian, job->n_in, job->option[DAMP],
                                 job->option[ACT_ORDER] != 0, err));
    describe(job, &s);
    nb_status st = NB_OK;
    if (s.factor.failed) {
        st = nb_round_nearest(job, err);
    } else {
        s.loss = calloc((size_t)job->n_out, sizeof *s.loss);
        st = s.loss ? round_all(&s, err) : nb_fail_memory(err, job->name, (size_t)job->n_out * 8);
        job->loss = 0;
        for (int64_t r = 0; st == NB_OK && r < job->n_out; r++) job->loss += s.loss[r];
    }
    free(s.loss);
    nb_gptq_factor_free(&s.factor);
    return st;
}

const nb_method nb_method_gptq = {
    .name = "gptq",
    .kind = NB_STEP_ROUND,
    .needs = NB_NEED_HESSIAN,
    .options = options,
    .source = "GPTQ (arXiv 2210.17323)",
    .run = run_gptq,
};
