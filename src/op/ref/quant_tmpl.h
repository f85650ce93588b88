/* Fake quantization with straight-through gradients of the scalar backend (format/ste.h); included
 * by ref_tmpl.h. What is rounded is decided in fp32, as everywhere; sums are REAL. */

/* One row on its way through a format. */
typedef struct ste_row {
    const nb_format *f;
    int64_t n, groups;
    float *w, *back;          /* [n]: what is fitted; what comes back */
    float *clip_lo, *clip_hi; /* [groups] */
    nb_qparam *p;             /* [groups] */
    REAL *exact, *pass;       /* [n]: w before its rounding to fp32; g where not saturated */
    REAL *scale, *beyond;     /* [groups]: gradients by the scales; sums of g where saturated, of
                                 zero points that learn */
} ste_row;

static void close_row(ste_row *r)
{
    free(r->w);
    free(r->clip_lo);
    free(r->p);
    free(r->exact);
}

static bool open_row(nb_backend *be, ste_row *r, const nb_format *f, int64_t n)
{
    *r = (ste_row){.f = f, .n = n, .groups = nb_format_groups(f, n)};
    size_t m = (size_t)n + 1, g = (size_t)r->groups + 1;
    r->w = malloc(2 * m * sizeof *r->w);
    r->clip_lo = malloc(2 * g * sizeof *r->clip_lo);
    r->p = malloc(g * sizeof *r->p);
    r->exact = calloc(2 * (m + g), sizeof *r->exact);
    if (!r->w || !r->clip_lo || !r->p || !r->exact) {
        close_row(r);
        nb_fault_set_memory(fault(be), "row", m * sizeof *r->exact);
        return false;
    }
    r->back = r->w + m;
    r->clip_hi = r->clip_lo + g;
    r->pass = r->exact + m;
    r->scale = r->pass + m;
    r->beyond = r->scale + g;
    return true;
}

/* back = decode(encode(w)) */
static void round_row(ste_row *r)
{
    for (int64_t g = 0; g < r->groups; g++) {
        int64_t at = nb_group_begin(r->f, g), n = nb_group_length(r->f, r->n, g);
        for (int64_t i = at; i < at + n; i++) {
            uint8_t code;
            r->f->family->encode(r->f, &r->p[g], r->w + i, 1, &code);
            r->f->family->decode(r->f, &r->p[g], &code, 1, r->back + i);
        }
    }
}

/* pass and scale from the gradient of back. */
static void differentiate_row(ste_row *r, const REAL *grad)
{
    for (int64_t g = 0; g < r->groups; g++) {
        int64_t at = nb_group_begin(r->f, g), end = at + nb_group_length(r->f, r->n, g);
        nb_grid grid;
        r->f->family->grid(r->f, &r->p[g], &grid);
        float scale = r->p[g].scale;
        REAL sum = 0;
        for (int64_t i = at; i < end; i++) {
            float x = r->w[i] / scale;
            bool inside = grid.lo <= x && x <= grid.hi;
            r->pass[i] = inside ? grad[i] : 0;
            sum += grad[i] * (r->back[i] - (inside ? r->exact[i] : 0));
        }
        r->scale[g] = scale > 0 ? sum / scale : 0;
    }
}

/* beyond from the gradient of back, behind differentiate_row. */
static void sum_beyond(ste_row *r, const REAL *grad)
{
    for (int64_t g = 0; g < r->groups; g++) {
        int64_t at = nb_group_begin(r->f, g), end = at + nb_group_length(r->f, r->n, g);
        r->beyond[g] = 0;
        for (int64_t i = at; i < end; i++) r->beyond[g] += grad[i] - r->pass[i];
    }
}

/* Gradients by the ends of group g's range, whose slopes are s. */
static void end_gradients(const ste_row *r, int64_t g, const nb_grid *grid, nb_slope s, REAL *lo,
                          REAL *hi)
{
    double share = nb_zero_share(grid, &r->p[g], s);
    *lo = r->scale[g] * (REAL)s.lo;
    *hi = r->scale[g] * (REAL)s.hi;
    if (share < 0) return;
    *lo += r->beyond[g] * (REAL)(1 - share);
    *hi += r->beyond[g] * (REAL)share;
}

/* The ends of a group's range, 0 included, and how many values lie there. */
typedef struct extremes {
    float lo, hi;
    int64_t n_lo, n_hi;
} extremes;

static extremes find_extremes(const ste_row *r, int64_t g)
{
    int64_t at = nb_group_begin(r->f, g), end = at + nb_group_length(r->f, r->n, g);
    extremes e = {0};
    for (int64_t i = at; i < end; i++) {
        e.lo = r->w[i] < e.lo ? r->w[i] : e.lo;
        e.hi = r->w[i] > e.hi ? r->w[i] : e.hi;
    }
    for (int64_t i = at; i < end; i++) e.n_lo += r->w[i] == e.lo, e.n_hi += r->w[i] == e.hi;
    return e;
}

/* pass += what the range of group g hands to its extremes, whose clip ratios are beta and gamma. */
static void add_extremes(ste_row *r, int64_t g, REAL beta, REAL gamma)
{
    int64_t at = nb_group_begin(r->f, g), end = at + nb_group_length(r->f, r->n, g);
    extremes e = find_extremes(r, g);
    nb_grid grid;
    r->f->family->grid(r->f, &r->p[g], &grid);
    nb_slope s = nb_grid_slope(&grid, (float)beta * e.lo, (float)gamma * e.hi);
    REAL lo, hi;
    end_gradients(r, g, &grid, s, &lo, &hi);
    for (int64_t i = at; i < end; i++) {
        if (e.hi > 0 && r->w[i] == e.hi) r->pass[i] += hi * gamma / (REAL)e.n_hi;
        if (e.lo < 0 && r->w[i] == e.lo) r->pass[i] += lo * beta / (REAL)e.n_lo;
    }
}

/* ---- activations ----------------------------------------------------------------------- */

static void quant_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *fmt)
{
    copy(be, out, x);
    if (!nb_format_is_quantized(fmt)) return;
    ste_row r;
    if (!open_row(be, &r, fmt, x.cols)) return;
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t c = 0; c < x.cols; c++) r.w[c] = (float)row(x, t)[c];
        if (!nb_all_finite(r.w, x.cols)) continue; /* copied above */
        nb_fake_quant_row(fmt, r.w, x.cols, r.back);
        for (int64_t c = 0; c < x.cols; c++) row(out, t)[c] = r.back[c];
    }
    close_row(&r);
}

static void quant_backward(nb_backend *be, nb_view dx, nb_view g, nb_view x, const nb_format *fmt)
{
    ste_row r;
    if (!nb_format_is_quantized(fmt)) {
        copy(be, dx, g);
        return;
    }
    if (!open_row(be, &r, fmt, x.cols)) return;
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t c = 0; c < x.cols; c++) r.w[c] = (float)(r.exact[c] = row(x, t)[c]);
        if (!nb_all_finite(r.w, x.cols)) {
            memmove(row(dx, t), row(g, t), (size_t)x.cols * sizeof(REAL));
            continue;
        }
        nb_fit_online_row(fmt, r.w, x.cols, r.p);
        round_row(&r);
        differentiate_row(&r, row(g, t));
        for (int64_t i = 0; i < r.groups; i++) add_extremes(&r, i, 1, 1);
        for (int64_t c = 0; c < x.cols; c++) row(dx, t)[c] = r.pass[c];
    }
    close_row(&r);
}

/* ---- weights --------------------------------------------------------------------------- */

/* A weight as clip_forward and clip_backward see it. */
typedef struct clip_job {
    nb_view w, row, col, u, l;
} clip_job;

static REAL scaled_weight(const clip_job *j, int64_t i, int64_t c)
{
    REAL a = j->row.buf ? row(j->row, 0)[i] : 1;
    return row(j->w, i)[c] * a * (j->col.buf ? row(j->col, 0)[c] : 1);
}

/* Row i: scaled, fitted and rounded. */
static void load_clipped(ste_row *r, const clip_job *j, int64_t i)
{
    for (int64_t c = 0; c < r->n; c++) r->w[c] = (float)(r->exact[c] = scaled_weight(j, i, c));
    for (int64_t g = 0; g < r->groups; g++) {
        r->clip_lo[g] = nb_clip_ratio((float)row(j->l, i)[g]);
        r->clip_hi[g] = nb_clip_ratio((float)row(j->u, i)[g]);
    }
    nb_format_fit_row(r->f, r->w, NULL, r->n, r->clip_lo, r->clip_hi, r->p);
    round_row(r);
}

static void clip_forward(nb_backend *be, nb_view out, nb_view w, nb_view row_scale,
                         nb_view col_scale, nb_view u, nb_view l, const nb_format *fmt)
{
    clip_job j = {w, row_scale, col_scale, u, l};
    ste_row r;
    if (!nb_format_is_quantized(fmt)) {
        for (int64_t i = 0; i < w.rows; i++) {
            for (int64_t c = 0; c < w.cols; c++) row(out, i)[c] = scaled_weight(&j, i, c);
        }
        return;
    }
    if (!open_row(be, &r, fmt, w.cols)) return;
    for (int64_t i = 0; i < w.rows; i++) {
        load_clipped(&r, &j, i);
        for (int64_t c = 0; c < w.cols; c++) row(out, i)[c] = r.back[c];
    }
    close_row(&r);
}

/* The column sums of a weight that is not quantized. */
static void scaled_backward(nb_view colsum, nb_view g, const clip_job *j)
{
    for (int64_t i = 0; i < g.rows && colsum.buf; i++) {
        for (int64_t c = 0; c < g.cols; c++) {
            row(colsum, 0)[c] += row(g, i)[c] * scaled_weight(j, i, c);
        }
    }
}

static REAL sigmoid(REAL x) { return 1 / (1 + exp(-x)); }

static void clip_backward(nb_backend *be, nb_view du, nb_view dl, nb_view colsum, nb_view g,
                          nb_view w, nb_view row_scale, nb_view col_scale, nb_view u, nb_view l,
                          bool zero, const nb_format *fmt)
{
    clip_job j = {w, row_scale, col_scale, u, l};
    ste_row r;
    if (colsum.buf) fill_zero(colsum);
    if (!nb_format_is_quantized(fmt)) {
        scaled_backward(colsum, g, &j);
        return;
    }
    if (!open_row(be, &r, fmt, w.cols)) return;
    for (int64_t i = 0; i < w.rows; i++) {
        load_clipped(&r, &j, i);
        differentiate_row(&r, row(g, i));
        if (zero) sum_beyond(&r, row(g, i));
        for (int64_t k = 0; k < r.groups; k++) {
            REAL gamma = sigmoid(row(u, i)[k]), beta = sigmoid(row(l, i)[k]);
            extremes e = find_extremes(&r, k);
            nb_grid grid;
            fmt->family->grid(fmt, &r.p[k], &grid);
            nb_slope s =
                nb_grid_clip_slope(&grid, r.p[k].scale, r.clip_lo[k] * e.lo, r.clip_hi[k] * e.hi);
            REAL lo, hi;
            end_gradients(&r, k, &grid, s, &lo, &hi);
            if (colsum.buf) add_extremes(&r, k, beta, gamma);
            row(du, i)[k] = hi * e.hi * gamma * (1 - gamma);
            row(dl, i)[k] = lo * e.lo * beta * (1 - beta);
        }
        if (!colsum.buf) continue;
        for (int64_t c = 0; c < w.cols; c++) row(colsum, 0)[c] += r.pass[c] * r.exact[c];
    }
    close_row(&r);
}

/* ---- learned rounding ------------------------------------------------------------------- */

/* A weight as round_forward and round_backward see it. */
typedef struct round_job {
    nb_view w, v, hi, lo;
} round_job;

/* Row i fitted, moved by its offsets (r->w) and rounded; r->exact: as it is. */
static void load_moved(ste_row *r, const round_job *j, int64_t i)
{
    for (int64_t c = 0; c < r->n; c++) r->w[c] = (float)(r->exact[c] = row(j->w, i)[c]);
    for (int64_t g = 0; g < r->groups; g++) {
        r->clip_lo[g] = (float)row(j->lo, i)[g];
        r->clip_hi[g] = (float)row(j->hi, i)[g];
    }
    nb_format_fit_row(r->f, r->w, NULL, r->n, r->clip_lo, r->clip_hi, r->p);
    for (int64_t g = 0; g < r->groups; g++) {
        int64_t at = nb_group_begin(r->f, g), end = at + nb_group_length(r->f, r->n, g);
        for (int64_t c = at; c < end; c++) {
            r->w[c] = nb_offset_weight(r->w[c], (float)row(j->v, i)[c], r->p[g].scale);
        }
    }
    round_row(r);
}

static void round_forward(nb_backend *be, nb_view out, nb_view w, nb_view v, nb_view hi, nb_view lo,
                          const nb_format *fmt)
{
    round_job j = {w, v, hi, lo};
    ste_row r;
    if (!open_row(be, &r, fmt, w.cols)) return;
    for (int64_t i = 0; i < w.rows; i++) {
        load_moved(&r, &j, i);
        for (int64_t c = 0; c < w.cols; c++) row(out, i)[c] = r.back[c];
    }
    close_row(&r);
}

static void round_backward(nb_backend *be, nb_view dv, nb_view dhi, nb_view dlo, nb_view g,
                           nb_view w, nb_view v, nb_view hi, nb_view lo, bool zero,
                           const nb_format *fmt)
{
    round_job j = {w, v, hi, lo};
    ste_row r;
    if (!open_row(be, &r, fmt, w.cols)) return;
    for (int64_t i = 0; i < w.rows; i++) {
        load_moved(&r, &j, i);
        differentiate_row(&r, row(g, i));
        if (zero) sum_beyond(&r, row(g, i));
        for (int64_t c = 0; c < w.cols; c++) r.w[c] = (float)r.exact[c]; /* the range's */
        for (int64_t k = 0; k < r.groups; k++) {
            int64_t at = nb_group_begin(fmt, k), end = at + nb_group_length(fmt, r.n, k);
            extremes e = find_extremes(&r, k);
            nb_grid grid;
            fmt->family->grid(fmt, &r.p[k], &grid);
            nb_slope s =
                nb_grid_clip_slope(&grid, r.p[k].scale, r.clip_lo[k] * e.lo, r.clip_hi[k] * e.hi);
            REAL by_lo, by_hi;
            end_gradients(&r, k, &grid, s, &by_lo, &by_hi);
            row(dhi, i)[k] = by_hi * e.hi;
            row(dlo, i)[k] = by_lo * e.lo;
            for (int64_t c = at; c < end; c++) row(dv, i)[c] = r.pass[c] * r.p[k].scale;
        }
    }
    close_row(&r);
}
