/* Fake quantization of rows and its straight-through gradient (format/ste.h): activations by
 * quant_..., weights with learned clip ratios by clip_..., with learned rounding by round_....
 *
 * A row is worked through group by group while it is in the first cache. Grids of whole numbers,
 * whose fit is a matter of the range alone, go through kernels; all others through their own
 * encode and decode. Sums over the rows of a weight are taken in blocks, added up in order. */
#include <assert.h>
#include <string.h>

#include "base/size.h"
#include "format/ste.h"
#include "op/cpu/backend_cpu.h"

#define ROW_BLOCK 32 /* rows of a weight per task and per partial column sum */

/* What a thread needs for one row. */
typedef struct lane {
    float *w, *back, *pass;   /* [n]: w only of scaled or moved weights */
    float *clip_lo, *clip_hi; /* [groups] */
    nb_qparam *p;             /* [groups] */
    nb_grid *grid;            /* [groups] */
    float *lo, *hi;           /* [groups]: ends of the range before clipping, 0 included */
} lane;

typedef struct job {
    nb_backend *be;
    const nb_kernels *k;
    const nb_format *f;
    int64_t n, groups; /* groups 0: a format that quantizes nothing */
    bool by_range;     /* the fit needs the ends of the range alone */
    char *scratch;     /* a lane for each thread */
    size_t lane_bytes;
} job;

/* Lays the pieces out; returns their bytes. base NULL: only measures. */
static size_t place_lane(const job *j, char *base, lane *l)
{
    size_t n = (size_t)j->n * sizeof(float), g = (size_t)j->groups, used = 0;
    const size_t bytes[] = {n,
                            n,
                            n,
                            g * sizeof(float),
                            g * sizeof(float),
                            g * sizeof(nb_qparam),
                            g * sizeof(nb_grid),
                            g * sizeof(float),
                            g * sizeof(float)};
    void *piece[NB_COUNT(bytes)];
    for (size_t i = 0; i < NB_COUNT(bytes); i++) {
        piece[i] = base ? base + used : NULL;
        used += nb_align_up(bytes[i], 64);
    }
    *l = (lane){piece[0], piece[1], piece[2], piece[3], piece[4],
                piece[5], piece[6], piece[7], piece[8]};
    return used;
}

static bool open_job(job *j, nb_backend *be, const nb_format *f, int64_t n)
{
    lane measured;
    nb_grid grid = {0};
    *j = (job){.be = be, .k = &nb_cpu_of(be)->k, .f = f, .n = n};
    if (nb_format_is_quantized(f)) {
        j->groups = nb_format_groups(f, n);
        f->family->grid(f, &(nb_qparam){0}, &grid);
    }
    j->by_range = grid.rule != NB_SCALE_STEPPED;
    j->lane_bytes = place_lane(j, NULL, &measured);
    j->scratch = nb_cpu_scratch(be, NB_CPU_THREAD, j->lane_bytes * (size_t)be->threads);
    return j->scratch != NULL;
}

static lane thread_lane(const job *j)
{
    lane l;
    place_lane(j, j->scratch + j->lane_bytes * (size_t)omp_get_thread_num(), &l);
    return l;
}

/* ---- one row --------------------------------------------------------------------------- */

/* Parameters, grids and ranges of the groups of w [n], clipped by l's ratios. */
static void fit_clipped(const job *j, lane *l, const float *w)
{
    const nb_format *f = j->f;
    float base = nb_format_fit_base(f, w, NULL, j->n, l->clip_lo, l->clip_hi);
    for (int64_t g = 0; g < j->groups; g++) {
        int64_t at = nb_group_begin(f, g), n = nb_group_length(f, j->n, g);
        j->k->range(&l->lo[g], &l->hi[g], w + at, n);
        const float ends[2] = {l->lo[g], l->hi[g]};
        l->p[g] = (nb_qparam){.base = base};
        f->family->fit(f, j->by_range ? ends : w + at, NULL, j->by_range ? 2 : n, l->clip_lo[g],
                       l->clip_hi[g], &l->p[g]);
        f->family->grid(f, &l->p[g], &l->grid[g]);
    }
}

/* The same of a row that arrives online. */
static void fit_online(const job *j, lane *l, const float *x)
{
    for (int64_t g = 0; g < j->groups; g++) l->clip_lo[g] = l->clip_hi[g] = 1;
    if (!j->f->family->fit_online) {
        fit_clipped(j, l, x);
        return;
    }
    nb_fit_online_row(j->f, x, j->n, l->p);
    for (int64_t g = 0; g < j->groups; g++) {
        int64_t at = nb_group_begin(j->f, g), n = nb_group_length(j->f, j->n, g);
        j->k->range(&l->lo[g], &l->hi[g], x + at, n);
        j->f->family->grid(j->f, &l->p[g], &l->grid[g]);
    }
}

/* out = decode(encode(w)) of n values of group g. */
static void round_group(const job *j, const lane *l, int64_t g, const float *w, float *out)
{
    enum { PIECE = 512 };
    const nb_format_family *family = j->f->family;
    const nb_qparam *p = &l->p[g];
    int64_t n = nb_group_length(j->f, j->n, g);
    if (l->grid[g].uniform) {
        j->k->round_uniform(out, w, p->scale, l->grid[g].lo, l->grid[g].hi, n);
        return;
    }
    for (int64_t i = 0; i < n; i += PIECE) {
        uint8_t codes[PIECE];
        int64_t m = nb_min_i64(n - i, PIECE);
        family->encode(j->f, p, w + i, m, codes);
        family->decode(j->f, p, codes, m, out + i);
    }
}

static void round_row(const job *j, const lane *l, const float *w, float *out)
{
    for (int64_t g = 0; g < j->groups; g++) {
        int64_t at = nb_group_begin(j->f, g);
        round_group(j, l, g, w + at, out + at);
    }
}

/* Gradient by the scale of group g; pass [n] (or NULL): grad where not saturated, else 0. */
static float scale_gradient(const job *j, const lane *l, int64_t g, const float *w,
                            const float *grad, float *pass)
{
    int64_t at = nb_group_begin(j->f, g), n = nb_group_length(j->f, j->n, g);
    float scale = l->p[g].scale;
    round_group(j, l, g, w + at, l->back + at);
    float sum = j->k->straight(pass ? pass + at : NULL, grad + at, w + at, l->back + at, scale,
                               l->grid[g].lo, l->grid[g].hi, n);
    return scale > 0 ? sum / scale : 0;
}

/* Gradients by the ends of a range. */
typedef struct ends {
    float lo, hi;
} ends;

/* Of group g with slopes s, from that by its scale; zero: its zero point learns (l->pass is there).
 */
static ends end_gradients(const job *j, const lane *l, int64_t g, nb_slope s, float by_scale,
                          const float *grad, bool zero)
{
    ends d = {by_scale * (float)s.lo, by_scale * (float)s.hi};
    double share = zero ? nb_zero_share(&l->grid[g], &l->p[g], s) : -1;
    if (share < 0) return d;
    int64_t at = nb_group_begin(j->f, g), end = at + nb_group_length(j->f, j->n, g);
    float beyond = 0;
#pragma omp simd reduction(+ : beyond)
    for (int64_t i = at; i < end; i++) beyond += grad[i] - l->pass[i];
    d.lo += beyond * (float)(1 - share);
    d.hi += beyond * (float)share;
    return d;
}

/* pass += what the range of group g hands to the extremes of the group. */
static void add_extremes(const job *j, const lane *l, int64_t g, const float *w, ends d)
{
    int64_t at = nb_group_begin(j->f, g), n = nb_group_length(j->f, j->n, g);
    float lo = d.lo * l->clip_lo[g], hi = d.hi * l->clip_hi[g];
    if (l->hi[g] > 0 && hi != 0) j->k->add_where(l->pass + at, w + at, l->hi[g], hi, n);
    if (l->lo[g] < 0 && lo != 0) j->k->add_where(l->pass + at, w + at, l->lo[g], lo, n);
}

/* Slopes of group g for the gradients of its values. */
static nb_slope value_slope(const lane *l, int64_t g)
{
    return nb_grid_slope(&l->grid[g], l->clip_lo[g] * l->lo[g], l->clip_hi[g] * l->hi[g]);
}

/* ---- activations ----------------------------------------------------------------------- */

static bool is_large(nb_view v) { return v.rows * v.cols > NB_CPU_PARALLEL_MIN; }

static void copy_row(nb_view out, nb_view in, int64_t t)
{
    memmove(nb_cpu_row(out, t), nb_cpu_row(in, t), (size_t)in.cols * sizeof(float));
}

void nb_cpu_quant_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *fmt)
{
    if (!nb_format_is_quantized(fmt)) {
        be->ops->copy(be, out, x);
        return;
    }
    job j;
    if (!open_job(&j, be, fmt, x.cols)) return;
#pragma omp parallel for num_threads(be->threads) if (is_large(x))
    for (int64_t t = 0; t < x.rows; t++) {
        const float *row = nb_cpu_row(x, t);
        if (nb_all_finite(row, x.cols)) {
            lane l = thread_lane(&j);
            fit_online(&j, &l, row);
            round_row(&j, &l, row, nb_cpu_row(out, t));
        } else {
            copy_row(out, x, t);
        }
    }
}

static void differentiate_row(const job *j, float *dx, const float *g, const float *x)
{
    lane l = thread_lane(j);
    fit_online(j, &l, x);
    for (int64_t i = 0; i < j->groups; i++) {
        float d = scale_gradient(j, &l, i, x, g, l.pass);
        add_extremes(j, &l, i, x, end_gradients(j, &l, i, value_slope(&l, i), d, g, false));
    }
    memcpy(dx, l.pass, (size_t)j->n * sizeof *dx);
}

void nb_cpu_quant_backward(nb_backend *be, nb_view dx, nb_view g, nb_view x, const nb_format *fmt)
{
    if (!nb_format_is_quantized(fmt)) {
        be->ops->copy(be, dx, g);
        return;
    }
    job j;
    if (!open_job(&j, be, fmt, x.cols)) return;
#pragma omp parallel for num_threads(be->threads) if (is_large(x))
    for (int64_t t = 0; t < x.rows; t++) {
        if (nb_all_finite(nb_cpu_row(x, t), x.cols)) {
            differentiate_row(&j, nb_cpu_row(dx, t), nb_cpu_row(g, t), nb_cpu_row(x, t));
        } else {
            copy_row(dx, g, t);
        }
    }
}

/* ---- weights --------------------------------------------------------------------------- */

/* A weight with its scales and clip logits, as op.h has them. */
typedef struct clipped {
    nb_view w, row, col, u, l;
    bool zero;
} clipped;

static void scale_columns(float *restrict w, const float *restrict col, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) w[i] *= col[i];
}

/* Row i, scaled and fitted; what is returned is the row itself or a copy in the lane. */
static const float *load_row(const job *j, const clipped *c, lane *l, int64_t i)
{
    const float *w = nb_cpu_row(c->w, i);
    if (c->row.buf || c->col.buf) {
        j->k->scale(l->w, c->row.buf ? nb_cpu_row(c->row, 0)[i] : 1, w, j->n);
        const float *col = c->col.buf ? nb_cpu_row(c->col, 0) : NULL;
        if (col) scale_columns(l->w, col, j->n);
        w = l->w;
    }
    for (int64_t g = 0; g < j->groups; g++) {
        l->clip_lo[g] = nb_clip_ratio(nb_cpu_row(c->l, i)[g]);
        l->clip_hi[g] = nb_clip_ratio(nb_cpu_row(c->u, i)[g]);
    }
    if (j->groups) fit_clipped(j, l, w);
    return w;
}

void nb_cpu_clip_forward(nb_backend *be, nb_view out, nb_view w, nb_view row, nb_view col,
                         nb_view u, nb_view l, const nb_format *fmt)
{
    job j;
    clipped c = {w, row, col, u, l, false};
    if (!open_job(&j, be, fmt, w.cols)) return;
#pragma omp parallel for num_threads(be->threads) if (is_large(w))
    for (int64_t i = 0; i < w.rows; i++) {
        lane a = thread_lane(&j);
        const float *from = load_row(&j, &c, &a, i);
        round_row(&j, &a, from, nb_cpu_row(out, i));
        if (!j.groups) memmove(nb_cpu_row(out, i), from, (size_t)j.n * sizeof *from);
    }
}

/* Row i of du and dl; colsum [n] (or NULL) += the row's part of it. */
static void clip_row(const job *j, const clipped *c, int64_t i, nb_view du, nb_view dl,
                     const float *grad, float *colsum)
{
    lane a = thread_lane(j);
    const float *w = load_row(j, c, &a, i);
    for (int64_t g = 0; g < j->groups; g++) {
        float beta = a.clip_lo[g], gamma = a.clip_hi[g];
        /* 1 - sigmoid(x) = sigmoid(-x), without the cancellation */
        float beta_rest = nb_clip_ratio(-nb_cpu_row(c->l, i)[g]);
        float gamma_rest = nb_clip_ratio(-nb_cpu_row(c->u, i)[g]);
        float d = scale_gradient(j, &a, g, w, grad, colsum || c->zero ? a.pass : NULL);
        nb_slope s = nb_grid_clip_slope(&a.grid[g], a.p[g].scale, beta * a.lo[g], gamma * a.hi[g]);
        ends e = end_gradients(j, &a, g, s, d, grad, c->zero);
        nb_slope v = value_slope(&a, g);
        if (colsum) add_extremes(j, &a, g, w, end_gradients(j, &a, g, v, d, grad, c->zero));
        nb_cpu_row(du, i)[g] = e.hi * a.hi[g] * gamma * gamma_rest;
        nb_cpu_row(dl, i)[g] = e.lo * a.lo[g] * beta * beta_rest;
    }
    if (colsum) j->k->mul_add(colsum, j->groups ? a.pass : grad, w, j->n);
}

void nb_cpu_clip_backward(nb_backend *be, nb_view du, nb_view dl, nb_view colsum, nb_view g,
                          nb_view w, nb_view row, nb_view col, nb_view u, nb_view l, bool zero,
                          const nb_format *fmt)
{
    job j;
    clipped c = {w, row, col, u, l, zero};
    if (w.rows == 0 || !open_job(&j, be, fmt, w.cols)) return;
    int64_t blocks = (w.rows + ROW_BLOCK - 1) / ROW_BLOCK, n = w.cols;
    float *partial = NULL;
    if (colsum.buf) {
        partial = nb_cpu_scratch(be, NB_CPU_PANEL, (size_t)(blocks * n) * sizeof *partial);
        if (!partial) return;
    }
#pragma omp parallel for num_threads(be->threads) schedule(dynamic) if (is_large(w))
    for (int64_t b = 0; b < blocks; b++) {
        float *sum = partial ? partial + b * n : NULL;
        if (sum) memset(sum, 0, (size_t)n * sizeof *sum);
        int64_t end = nb_min_i64((b + 1) * ROW_BLOCK, w.rows);
        for (int64_t i = b * ROW_BLOCK; i < end; i++) {
            clip_row(&j, &c, i, du, dl, nb_cpu_row(g, i), sum);
        }
    }
    if (partial) nb_cpu_sum_blocks(be, colsum, partial, blocks, false);
}

/* ---- learned rounding ------------------------------------------------------------------ */

/* A weight with its offsets and clip ratios, as op.h has them. */
typedef struct rounded {
    nb_view w, v, hi, lo;
    bool zero;
} rounded;

static void move_group(float *restrict out, const float *restrict w, const float *restrict v,
                       float scale, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = nb_offset_weight(w[i], v[i], scale);
}

/* Row i fitted as it is and, in the lane, moved by its offsets. */
static void load_moved(const job *j, const rounded *r, lane *l, int64_t i)
{
    const float *w = nb_cpu_row(r->w, i), *v = nb_cpu_row(r->v, i);
    memcpy(l->clip_lo, nb_cpu_row(r->lo, i), (size_t)j->groups * sizeof *l->clip_lo);
    memcpy(l->clip_hi, nb_cpu_row(r->hi, i), (size_t)j->groups * sizeof *l->clip_hi);
    fit_clipped(j, l, w);
    for (int64_t g = 0; g < j->groups; g++) {
        int64_t at = nb_group_begin(j->f, g);
        move_group(l->w + at, w + at, v + at, l->p[g].scale, nb_group_length(j->f, j->n, g));
    }
}

void nb_cpu_round_forward(nb_backend *be, nb_view out, nb_view w, nb_view v, nb_view hi, nb_view lo,
                          const nb_format *fmt)
{
    job j;
    rounded r = {w, v, hi, lo, false};
    assert(nb_format_is_quantized(fmt));
    if (!open_job(&j, be, fmt, w.cols)) return;
#pragma omp parallel for num_threads(be->threads) if (is_large(w))
    for (int64_t i = 0; i < w.rows; i++) {
        lane l = thread_lane(&j);
        load_moved(&j, &r, &l, i);
        round_row(&j, &l, l.w, nb_cpu_row(out, i));
    }
}

/* Row i. The kernel's sums are of the moved weights; what moved them is taken back: pass . v. */
static void moved_row(const job *j, const rounded *r, int64_t i, nb_view dv, nb_view dhi,
                      nb_view dlo, const float *grad)
{
    lane l = thread_lane(j);
    const float *v = nb_cpu_row(r->v, i);
    load_moved(j, r, &l, i);
    for (int64_t g = 0; g < j->groups; g++) {
        int64_t at = nb_group_begin(j->f, g), n = nb_group_length(j->f, j->n, g);
        float scale = l.p[g].scale, d = scale_gradient(j, &l, g, l.w, grad, l.pass);
        d += j->k->dot_f32(l.pass + at, v + at, n);
        nb_slope s =
            nb_grid_clip_slope(&l.grid[g], scale, l.clip_lo[g] * l.lo[g], l.clip_hi[g] * l.hi[g]);
        ends e = end_gradients(j, &l, g, s, d, grad, r->zero);
        nb_cpu_row(dhi, i)[g] = e.hi * l.hi[g];
        nb_cpu_row(dlo, i)[g] = e.lo * l.lo[g];
        j->k->scale(nb_cpu_row(dv, i) + at, scale, l.pass + at, n);
    }
}

void nb_cpu_round_backward(nb_backend *be, nb_view dv, nb_view dhi, nb_view dlo, nb_view g,
                           nb_view w, nb_view v, nb_view hi, nb_view lo, bool zero,
                           const nb_format *fmt)
{
    job j;
    rounded r = {w, v, hi, lo, zero};
    assert(nb_format_is_quantized(fmt));
    if (!open_job(&j, be, fmt, w.cols)) return;
#pragma omp parallel for num_threads(be->threads) if (is_large(w))
    for (int64_t i = 0; i < w.rows; i++) moved_row(&j, &r, i, dv, dhi, dlo, nb_cpu_row(g, i));
}
