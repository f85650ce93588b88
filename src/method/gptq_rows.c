/* GPTQ's loop over the columns.
 *
 * A thread takes ROWS rows through all columns. Its piece of the weight lies by columns, so that
 * whatever is done to one column is done to ROWS neighbours:
 *
 *      place   0 ... i0 .. i .. i1 ... b1 ............ n
 *              done | segment   | block | later blocks
 *
 * The error of a rounded column reaches the others in three ways. Inside a segment each column
 * takes what it is owed just before it is rounded, from registers (sub_rows); at its end the
 * segment pays the rest of the block, and a block the columns behind it, in one product each.
 * All of a row happens in one order, whatever the number of threads. */
#include <cblas.h>
#include <stdlib.h>

#include "base/size.h"
#include "kernel/kernel.h"
#include "method/gptq.h"
#include "method/round.h"

enum { ROWS = 64, SEGMENT = 32 };

typedef struct rounder {
    const nb_gptq_round *r;
    const nb_job *job;
    nb_kernels kernels;
    nb_plane_spec spec[NB_MAX_PLANES];
    int64_t n, groups; /* columns; groups of a row */
    double *loss;      /* [n_out] */
} rounder;

/* What a thread works on. */
typedef struct piece {
    int64_t row0, rows; /* at most ROWS */
    int64_t clipped;
    float *w;          /* [n, ROWS] in the order of the columns */
    float *error;      /* [block, ROWS] */
    uint8_t *codes;    /* [n, ROWS] */
    nb_qparam *p;      /* [groups, ROWS] */
    float *lo, *hi;    /* [groups, ROWS]: weights outside are clipped */
    float *group;      /* [n]: one row or group */
    uint8_t *row;      /* [n]: codes of one row, in the order of the weight */
    nb_qparam *params; /* [groups]: of one row */
} piece;

static int64_t group_of(const rounder *s, int64_t col)
{
    int group = s->job->format->group;
    return group > 0 ? col / group : 0;
}

/* ---- parameters --------------------------------------------------------------------------- */

/* Clipped is what lies beyond the last value by more than half the scale, which rounding of the
 * scale itself never explains. */
static void set_param(const rounder *s, piece *c, int64_t g, int64_t r, const nb_qparam *p)
{
    const nb_format *f = s->job->format;
    float ends[2] = {-0x1p20f * p->scale, 0x1p20f * p->scale}, margin = p->scale / 2;
    uint8_t codes[2];
    f->family->encode(f, p, ends, 2, codes);
    f->family->decode(f, p, codes, 2, ends);
    c->p[g * ROWS + r] = *p;
    c->lo[g * ROWS + r] = ends[0] - margin;
    c->hi[g * ROWS + r] = ends[1] + margin;
}

static void fit_row(const rounder *s, piece *c, int64_t r, const float *w)
{
    const nb_job *job = s->job;
    int64_t clip = (c->row0 + r) * s->groups;
    nb_format_fit_row(job->format, w, job->importance, s->n, job->clip_lo + clip,
                      job->clip_hi + clip, c->params);
    for (int64_t g = 0; g < s->groups; g++) set_param(s, c, g, r, &c->params[g]);
}

/* Group g of every row, from the weights as they are now. */
static void fit_group(const rounder *s, piece *c, int64_t g)
{
    const nb_job *job = s->job;
    int64_t at = nb_group_begin(job->format, g), n = nb_group_length(job->format, s->n, g);
    for (int64_t r = 0; r < c->rows; r++) {
        int64_t clip = (c->row0 + r) * s->groups + g;
        nb_qparam p = {0};
        for (int64_t k = 0; k < n; k++) c->group[k] = c->w[(at + k) * ROWS + r];
        job->format->family->fit(job->format, c->group,
                                 job->importance ? job->importance + at : NULL, n,
                                 job->clip_lo[clip], job->clip_hi[clip], &p);
        set_param(s, c, g, r, &p);
    }
}

/* ---- loading and storing ------------------------------------------------------------------- */

/* Dead inputs as in the reference: it fits a whole row before it zeroes them, groups after. */
static void load_row(const rounder *s, piece *c, int64_t r)
{
    const nb_job *job = s->job;
    float *w = job->w + (c->row0 + r) * s->n;
    bool fit_first = s->r->fit_first, alone = s->groups == 1;
    if (fit_first && alone) fit_row(s, c, r, w);
    for (int64_t k = 0; s->r->dead_zero && k < s->n; k++) {
        if (job->hessian[k * s->n + k] == 0) w[k] = 0;
    }
    if (fit_first && !alone) fit_row(s, c, r, w);
}

/* w [n, rows] = the rows, transposed in tiles of a cache line. */
static void load(const rounder *s, piece *c)
{
    enum { TILE = 16 };
    const int64_t *order = s->r->factor->order;
    for (int64_t r = 0; r < c->rows; r++) load_row(s, c, r);
    for (int64_t k0 = 0; k0 < s->n; k0 += TILE) {
        int64_t k1 = nb_min_i64(k0 + TILE, s->n);
        for (int64_t r = 0; r < c->rows; r++) {
            const float *from = s->job->w + (c->row0 + r) * s->n;
            for (int64_t k = k0; k < k1; k++) c->w[k * ROWS + r] = from[order[k]];
        }
    }
}

static void store(const rounder *s, piece *c)
{
    const int64_t *order = s->r->factor->order;
    for (int64_t r = 0; r < c->rows; r++) {
        for (int64_t k = 0; k < s->n; k++) c->row[order[k]] = c->codes[k * ROWS + r];
        for (int64_t g = 0; g < s->groups; g++) c->params[g] = c->p[g * ROWS + r];
        nb_round_pack(s->job, s->spec, c->row0 + r, c->row, c->params);
    }
}

/* ---- columns ------------------------------------------------------------------------------- */

/* error = (w - back) / u, one column */
static void take_errors(const rounder *s, piece *c, int64_t g, const float *w, const float *back,
                        float u, float *error)
{
    const float *lo = c->lo + g * ROWS, *hi = c->hi + g * ROWS;
    double *loss = s->loss + c->row0;
    int clipped = 0;
#pragma omp simd reduction(+ : clipped)
    for (int64_t r = 0; r < c->rows; r++) {
        float e = (w[r] - back[r]) / u;
        error[r] = e;
        loss[r] += (double)e * (double)e;
        clipped += (w[r] < lo[r]) | (w[r] > hi[r]);
    }
    c->clipped += clipped;
}

/* Columns [i0, i1) of the block that begins at b0. */
static void round_segment(const rounder *s, piece *c, int64_t b0, int64_t i0, int64_t i1)
{
    float back[ROWS];
    for (int64_t i = i0; i < i1; i++) {
        const float *ut = s->r->factor->ut + i * s->n;
        float *w = c->w + i * ROWS;
        int64_t g = group_of(s, s->r->factor->order[i]);
        s->kernels.sub_rows(w, ut + i0, c->error + (i0 - b0) * ROWS, ROWS, i - i0, c->rows);
        nb_format_round_each(s->job->format, c->p + g * ROWS, w, c->rows, c->codes + i * ROWS,
                             back);
        take_errors(s, c, g, w, back, ut[i], c->error + (i - b0) * ROWS);
    }
}

/* Columns [j0, j1) take the errors of [i0, i1). */
static void update(const rounder *s, piece *c, int64_t b0, int64_t i0, int64_t i1, int64_t j0,
                   int64_t j1)
{
    if (j0 >= j1) return;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)(j1 - j0), (blasint)c->rows,
                (blasint)(i1 - i0), -1, s->r->factor->ut + j0 * s->n + i0, (blasint)s->n,
                c->error + (i0 - b0) * ROWS, ROWS, 1, c->w + j0 * ROWS, ROWS);
}

/* True where groups are fitted on the way, each to weights that hold all updates before it. */
static bool fits_on_the_way(const rounder *s) { return !s->r->fit_first && !s->r->stale; }

/* End of the block that begins at b0. Where parameters are fitted on the way, no group that begins
 * inside it may reach beyond it. */
static int64_t block_end(const rounder *s, int64_t b0)
{
    int64_t b1 = nb_min_i64(b0 + s->r->block, s->n), group = s->job->format->group;
    if (!fits_on_the_way(s) || group == 0 || b1 == s->n) return b1;
    int64_t last = b1 / group * group; /* the group that b1 lies in, or that begins there */
    return last > b0 ? last : b1;
}

/* The same for a segment: groups begin where segments do. */
static int64_t segment_end(const rounder *s, int64_t i0, int64_t b1)
{
    int64_t i1 = nb_min_i64(i0 + SEGMENT, b1), group = s->job->format->group;
    return fits_on_the_way(s) && group > 0 ? nb_min_i64(i1, (i0 / group + 1) * group) : i1;
}

static void round_block(const rounder *s, piece *c, int64_t b0, int64_t b1)
{
    int64_t group = s->job->format->group;
    for (int64_t i = b0; s->r->stale && i < b1; i++) {
        if (i % group == 0) fit_group(s, c, i / group);
    }
    for (int64_t i0 = b0, i1; i0 < b1; i0 = i1) {
        i1 = segment_end(s, i0, b1);
        if (fits_on_the_way(s) && i0 % group == 0) fit_group(s, c, i0 / group);
        round_segment(s, c, b0, i0, i1);
        update(s, c, b0, i0, i1, i1, b1);
    }
    update(s, c, b0, b0, b1, b1, s->n);
}

static void round_piece(const rounder *s, piece *c)
{
    load(s, c);
    for (int64_t b0 = 0, b1; b0 < s->n; b0 = b1) {
        b1 = block_end(s, b0);
        round_block(s, c, b0, b1);
    }
    store(s, c);
}

/* ---- pieces -------------------------------------------------------------------------------- */

static bool make_piece(const rounder *s, piece *c)
{
    size_t n = (size_t)s->n, groups = (size_t)s->groups, block = (size_t)s->r->block;
    *c = (piece){.w = malloc(ROWS * n * sizeof *c->w),
                 .error = malloc(ROWS * block * sizeof *c->error),
                 .codes = malloc(ROWS * n),
                 .p = calloc(ROWS * groups, sizeof *c->p),
                 .lo = malloc(ROWS * groups * sizeof *c->lo),
                 .hi = malloc(ROWS * groups * sizeof *c->hi),
                 .group = malloc(n * sizeof *c->group),
                 .row = malloc(n),
                 .params = calloc(groups, sizeof *c->params)};
    return c->w && c->error && c->codes && c->p && c->lo && c->hi && c->group && c->row &&
           c->params;
}

static void free_piece(piece *c)
{
    free(c->w), free(c->error), free(c->codes), free(c->p), free(c->lo), free(c->hi);
    free(c->group), free(c->row), free(c->params);
}

static bool run_pieces(const rounder *s, int64_t *clipped)
{
    const nb_job *job = s->job;
    bool memory = true;
    int64_t n_clipped = 0;
#pragma omp parallel num_threads(job->threads) reduction(&& : memory) reduction(+ : n_clipped)
    {
        piece c;
        memory = make_piece(s, &c);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < job->n_out; row += ROWS) {
            c.row0 = row;
            c.rows = nb_min_i64(ROWS, job->n_out - row);
            if (memory) round_piece(s, &c);
        }
        n_clipped += c.clipped;
        free_piece(&c);
    }
    *clipped = n_clipped;
    return memory;
}

nb_status nb_gptq_round_rows(nb_gptq_round *r, nb_error *err)
{
    const nb_job *job = r->job;
    rounder s = {.r = r,
                 .job = job,
                 .n = job->n_in,
                 .groups = nb_format_groups(job->format, job->n_in),
                 .loss = calloc((size_t)job->n_out, sizeof *s.loss)};
    if (!s.loss) return nb_fail_memory(err, job->name, (size_t)job->n_out * sizeof *s.loss);
    job->format->family->planes(job->format, job->n_in, s.spec);
    nb_kernels_init(&s.kernels, job->cpu);
    int threads = openblas_get_num_threads();
    openblas_set_num_threads(1); /* the threads are ours, the order of its sums too */
    bool memory = run_pieces(&s, &r->clipped);
    openblas_set_num_threads(threads);
    r->loss = 0;
    for (int64_t row = 0; row < job->n_out; row++) r->loss += s.loss[row];
    free(s.loss);
    return memory ? NB_OK : nb_fail_memory(err, job->name, ROWS * (size_t)job->n_in * 5);
}
