/* Compensate: LoRC. What rounding left over, E = W - What, is approximated by a product of two
 * factors of low rank that run beside the weight:
 *
 *   y = What x + A (B x),   A B = the first terms of the SVD of E = P S Q^T,
 *   A = P sqrt(S) [n_out, rank],   B = sqrt(S) Q^T [rank, n_in]
 *
 *   rank=8       at most the smaller side of the weight
 *   diag, full   weighted by the inputs of the calibration text: the SVD is that of E L, and
 *                B L^-1 takes the place of B. diag: L = diag(sqrt(H_jj + lambda)); full:
 *                H + lambda I = L L^T, which makes |(E - A B) X| least for this rank
 *   int8         factors of 8 bits with one fp32 scale per rank and factor; otherwise fp16
 *   damp=0.01    lambda, as a share of the mean diagonal of H
 *
 * What is what the planes decode to. Inputs that were always 0 get no correction where it is
 * weighted. Without statistics (or where they are singular) the plain form stands in, and the
 * report says so.
 *
 * Sources: ZeroQuant-V2 (arXiv 2303.08302) section 4; ZeroQuant-FP section 3; LQER (arXiv
 * 2402.02446) for the weighting. The factor of H is GPTQ's: (H + lambda I)^-1 = U^T U, L = U^-1. */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "format/half.h"
#include "method/gptq.h"
#include "method/lorc.h"
#include "method/round.h"

enum { RANK, DIAG, FULL, INT8, DAMP };

enum { ROWS = 64 }; /* of the weight per task */

static const nb_step_option options[] = {
    [RANK] = {"rank", NB_OPTION_WHOLE, 8, 1, 4096}, [DIAG] = {"diag", NB_OPTION_FLAG, 0, 0, 1},
    [FULL] = {"full", NB_OPTION_FLAG, 0, 0, 1},     [INT8] = {"int8", NB_OPTION_FLAG, 0, 0, 1},
    [DAMP] = {"damp", NB_OPTION_REAL, 0.01, 0, 10}, {0},
};

typedef struct lorc {
    const nb_job *job;
    double *x;  /* [n_out, n_in]: E, then E L                                          */
    double *s;  /* [n_in] diag: L; full: ones; 0 of a dead input; NULL: not weighted   */
    double *ut; /* full: [n_in, n_in] U transposed, lower triangular; else NULL       */
} lorc;

/* ---- E --------------------------------------------------------------------------------------- */

static void load_error(const lorc *c, int64_t row0, int64_t n_rows, float *back)
{
    const nb_job *job = c->job;
    nb_matrix rounded = {.format = *job->format, .n_out = job->n_out, .n_in = job->n_in};
    for (int i = 0; i < NB_MAX_PLANES; i++) rounded.plane[i] = job->plane[i];
    for (int64_t row = row0; row < row0 + n_rows; row++) {
        nb_matrix_dequant(&rounded, row, 1, back);
        const float *w = job->w + row * job->n_in;
        double *to = c->x + row * job->n_in;
        for (int64_t i = 0; i < job->n_in; i++) to[i] = (double)w[i] - (double)back[i];
    }
}

/* x L for some rows */
static void weight_rows(const lorc *c, int64_t row0, int64_t n_rows)
{
    int64_t n = c->job->n_in;
    double *x = c->x + row0 * n;
    for (int64_t r = 0; c->s && r < n_rows; r++) {
        for (int64_t j = 0; j < n; j++) x[r * n + j] *= c->s[j];
    }
    if (!c->ut) return;
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (blasint)n_rows,
                (blasint)n, 1, c->ut, (blasint)n, x, (blasint)n);
}

static nb_status make_error(lorc *c, nb_error *err)
{
    const nb_job *job = c->job;
    bool memory = true;
    int threads = openblas_get_num_threads();
    openblas_set_num_threads(1);
#pragma omp parallel num_threads(job->threads) reduction(&& : memory)
    {
        float *back = malloc((size_t)job->n_in * sizeof *back);
        memory = back != NULL;
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < job->n_out; row += ROWS) {
            int64_t n = nb_min_i64(ROWS, job->n_out - row);
            if (back) load_error(c, row, n, back);
            if (back) weight_rows(c, row, n);
        }
        free(back);
    }
    openblas_set_num_threads(threads);
    if (!memory) return nb_fail_memory(err, job->name, (size_t)job->n_in * sizeof(float));
    return NB_OK;
}

/* ---- L --------------------------------------------------------------------------------------- */

static nb_status make_diagonal(lorc *c, nb_error *err)
{
    const nb_job *job = c->job;
    int64_t n = job->n_in;
    double mean = 0;
    for (int64_t j = 0; j < n; j++) mean += (double)job->hessian[j * n + j] / (double)n;
    if (!isfinite(mean)) {
        return nb_fail(err, NB_ENUMERIC,
                       "%s: statistics of its input on the calibration text are not finite",
                       job->name);
    }
    for (int64_t j = 0; j < n; j++) {
        if (c->s[j] != 0) {
            c->s[j] = sqrt((double)job->hessian[j * n + j] + job->option[DAMP] * mean);
        }
    }
    return NB_OK;
}

/* ut; neither ut nor s where H stays singular. */
static nb_status copy_factor(lorc *c, nb_gptq_cache *cache, nb_error *err)
{
    const nb_job *job = c->job;
    const nb_gptq_factor *f;
    NB_TRY(nb_gptq_cache_get(cache, &f, job, job->option[DAMP], false, err));
    if (f->failed) {
        free(c->s);
        c->s = NULL;
        return NB_OK;
    }
    size_t count = (size_t)job->n_in * (size_t)job->n_in;
    c->ut = malloc(count * sizeof *c->ut);
    if (!c->ut) return nb_fail_memory(err, job->name, count * sizeof *c->ut);
    for (size_t i = 0; i < count; i++) c->ut[i] = (double)f->ut[i];
    return NB_OK;
}

static nb_status make_factor(lorc *c, nb_error *err)
{
    nb_gptq_cache own = {0};
    nb_status st = copy_factor(c, c->job->factors ? c->job->factors : &own, err);
    nb_gptq_cache_fini(&own);
    return st;
}

static nb_status make_weighting(lorc *c, nb_error *err)
{
    const nb_job *job = c->job;
    int64_t n = job->n_in;
    bool full = job->option[FULL] != 0;
    if (!job->hessian || !(full || job->option[DIAG] != 0)) return NB_OK;
    c->s = malloc((size_t)n * sizeof *c->s);
    if (!c->s) return nb_fail_memory(err, job->name, (size_t)n * sizeof *c->s);
    for (int64_t j = 0; j < n; j++) c->s[j] = job->hessian[j * n + j] != 0;
    return full ? make_factor(c, err) : make_diagonal(c, err);
}

/* b = b L^-1 */
static void unweight(const lorc *c, nb_lowrank *l)
{
    int64_t n = l->n;
    for (int64_t r = 0; c->s && r < l->rank; r++) {
        double *b = l->b + r * n;
        for (int64_t j = 0; j < n; j++) b[j] = c->s[j] > 0 ? b[j] / c->s[j] : 0;
    }
    if (!c->ut) return;
    int threads = openblas_get_num_threads();
    openblas_set_num_threads(1);
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (blasint)l->rank,
                (blasint)n, 1, c->ut, (blasint)n, l->b, (blasint)n);
    openblas_set_num_threads(threads);
}

/* ---- factors --------------------------------------------------------------------------------- */

static nb_status find_all(lorc *c, nb_lorc_factors *f, nb_error *err)
{
    const nb_job *job = c->job;
    size_t count = (size_t)job->n_out * (size_t)job->n_in;
    nb_lowrank *l = &f->low;
    *l = (nb_lowrank){.m = job->n_out, .n = job->n_in, .rank = job->lorc.rank};
    c->x = malloc(count * sizeof *c->x);
    l->a = malloc((size_t)(l->rank * l->m) * sizeof *l->a);
    l->b = malloc((size_t)(l->rank * l->n) * sizeof *l->b);
    if (!c->x || !l->a || !l->b) return nb_fail_memory(err, job->name, count * sizeof *c->x);
    NB_TRY(make_weighting(c, err));
    NB_TRY(make_error(c, err));
    for (size_t i = 0; i < count; i++) f->before += c->x[i] * c->x[i];
    f->weighted = c->s != NULL;
    NB_TRY(nb_lowrank_find(l, job->name, c->x, job->threads, err));
    unweight(c, l);
    return NB_OK;
}

nb_status nb_lorc_factors_find(nb_lorc_factors *out, const nb_job *job, nb_error *err)
{
    lorc c = {.job = job};
    *out = (nb_lorc_factors){0};
    nb_status st = find_all(&c, out, err);
    free(c.x);
    free(c.s);
    free(c.ut);
    if (st != NB_OK) nb_lorc_factors_free(out);
    return st;
}

void nb_lorc_factors_free(nb_lorc_factors *f)
{
    free(f->low.a);
    free(f->low.b);
    *f = (nb_lorc_factors){0};
}

static nb_status store_f16(const nb_job *job, const float *v, int64_t n, uint8_t *plane,
                           nb_error *err)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = nb_f16_from_f32(v[i]);
        if (!isfinite(nb_f16_to_f32(h))) {
            return nb_fail(err, NB_ENUMERIC, "%s: a low-rank factor holds %g, which fp16 does not",
                           job->name, (double)v[i]);
        }
        memcpy(plane + 2 * i, &h, sizeof h);
    }
    return NB_OK;
}

/* One row per rank, each with a scale of its own. */
static nb_status store_int8(const nb_job *job, const nb_matrix *m, float *v, uint8_t *const plane[],
                            nb_error *err)
{
    size_t bytes = (size_t)m->n_out * sizeof(float);
    float *ones = malloc(bytes);
    if (!ones) return nb_fail_memory(err, job->name, bytes);
    for (int64_t r = 0; r < m->n_out; r++) ones[r] = 1;
    nb_job one = {.name = job->name,
                  .format = &m->format,
                  .n_out = m->n_out,
                  .n_in = m->n_in,
                  .w = v,
                  .clip_lo = ones,
                  .clip_hi = ones,
                  .threads = 1};
    memcpy(one.plane, plane, sizeof one.plane);
    nb_status st = nb_round_nearest(&one, err);
    free(ones);
    return st;
}

static nb_status store(const nb_job *job, const nb_matrix *m, const double *from,
                       uint8_t *const plane[], nb_error *err)
{
    int64_t n = m->n_out * m->n_in;
    float *v = malloc((size_t)n * sizeof *v);
    if (!v) return nb_fail_memory(err, job->name, (size_t)n * sizeof *v);
    for (int64_t i = 0; i < n; i++) v[i] = (float)from[i];
    nb_status st = nb_format_is_quantized(&m->format) ? store_int8(job, m, v, plane, err)
                                                      : store_f16(job, v, n, plane[0], err);
    free(v);
    return st;
}

static void describe(nb_job *job, const nb_lorc_factors *f)
{
    size_t used = strlen(job->note);
    bool asked = job->option[DIAG] != 0 || job->option[FULL] != 0;
    double share = f->before > 0 ? 100 * fmin(f->low.taken / f->before, 1) : 0;
    snprintf(job->note + used, sizeof job->note - used, "%slorc: %.3g %% of the %serror%s",
             used ? "; " : "", share, f->weighted ? "weighted " : "",
             !asked || f->weighted ? ""
             : job->hessian        ? ", singular statistics not used"
                                   : ", no statistics");
}

static nb_status run_lorc(nb_job *job, nb_error *err)
{
    if (job->lorc.rank == 0) return NB_OK; /* a matrix outside the blocks */
    nb_lorc_factors f;
    NB_TRY(nb_lorc_factors_find(&f, job, err));
    nb_status st = store(job, &job->lorc.a, f.low.a, job->lorc_a, err);
    if (st == NB_OK) st = store(job, &job->lorc.b, f.low.b, job->lorc_b, err);
    describe(job, &f);
    nb_lorc_factors_free(&f);
    return st;
}

static unsigned needs_lorc(const nb_step *step)
{
    return step->option[DIAG] != 0 || step->option[FULL] != 0 ? NB_NEED_HESSIAN : 0;
}

static nb_status plan_lorc(const nb_step *step, nb_lorc *out, nb_error *err)
{
    if (step->option[DIAG] != 0 && step->option[FULL] != 0) {
        return nb_fail(err, NB_EUSAGE, "method step \"%s\": diag and full exclude each other",
                       step->word);
    }
    out->rank = (int)step->option[RANK];
    const char *word = step->option[INT8] != 0 ? "int8:row:sym:f32" : "f16";
    NB_TRY(nb_format_parse(&out->a.format, word, err));
    out->b.format = out->a.format;
    return NB_OK;
}

const nb_method nb_method_lorc = {
    .name = "lorc",
    .kind = NB_STEP_COMPENSATE,
    .needs_more = needs_lorc,
    .options = options,
    .source = "LoRC (arXiv 2303.08302, 2307.09782)",
    .run = run_lorc,
    .lorc = plan_lorc,
};
