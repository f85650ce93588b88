/* Straight-through gradients of ref64 (spec: OmniQuant sections 3 and 5): golden vectors, and the
 * smooth function that is left when every decision of a quantizer is frozen at one point (section
 * 7.6): w^ = w + omega h where a value was rounded, k h where it saturated, and h moving with the
 * range as format/ste.h says. Its exact gradient is the straight-through gradient. */
#include "backend_util.h"

#include "format/ste.h"
#include "op/common.h"

enum { ROWS = 4, COLS = 48, SIZE = ROWS * COLS };

static nb_format parse(const char *word)
{
    nb_format f;
    nb_error err = {0};
    if (nb_format_parse(&f, word, &err) != NB_OK) fail_msg("%s", err.message);
    return f;
}

static nb_view upload(nb_backend *be, int64_t rows, int64_t cols, const double *x)
{
    nb_view v = {.rows = rows, .cols = cols, .stride = cols};
    assert_int_equal(be->ops->buffer_create(be, rows * cols, &v.buf, NULL), NB_OK);
    be->ops->upload(be, v, x, NB_F64);
    return v;
}

static void take(nb_backend *be, nb_view v, double *x)
{
    be->ops->download(be, v, x, NB_F64);
    be->ops->buffer_free(be, v.buf);
}

/* ---- golden vectors -------------------------------------------------------------------- */

static const double golden_w[] = {-1, -0.4f, 0.1f, 0.7f, 1.5, 0.2f};
static const double golden_g[] = {0.3, -0.2, 0.5, -0.1, 0.4, 0.25};

static void check_near(const double *got, const double *want, int n, double slack)
{
    for (int i = 0; i < n; i++) {
        if (fabs(got[i] - want[i]) <= slack) continue;
        fail_msg("[%d] is %.10g, expected %.10g", i, got[i], want[i]);
    }
}

/* Section 3: h = 0.57301573, q = (0, 0, 1, 2, 3, 1), z = 1. The weights are fp32. */
static void test_golden_clip(void **state)
{
    NB_UNUSED(state);
    nb_backend *be = make_backend("ref64", 1, NB_COMPUTE_F32, ~0u);
    nb_format f = parse("int2:row:f32");
    const double logit[] = {1, 0.5}, h = 0.57301573;
    nb_view w = upload(be, 1, 6, golden_w), g = upload(be, 1, 6, golden_g);
    nb_view u = upload(be, 1, 1, logit), l = upload(be, 1, 1, logit + 1);
    nb_view du = upload(be, 1, 1, logit), dl = upload(be, 1, 1, logit), no = {0};
    nb_view y = upload(be, 1, 6, golden_w), sum = upload(be, 1, 6, golden_w);
    be->ops->clip_forward(be, y, w, no, no, u, l, &f);
    be->ops->clip_backward(be, du, dl, sum, g, w, no, no, u, l, false, &f);
    double got[6];
    take(be, y, got);
    check_near(got, (const double[]){-h, -h, 0, h, 2 * h, 0}, 6, 1e-7);
    take(be, du, got);
    check_near(got, &(const double){0.0401121}, 1, 1e-7);
    take(be, dl, got);
    check_near(got, &(const double){0.0319631}, 1, 1e-7);
    take(be, sum, got);
    for (int i = 0; i < 6; i++) got[i] /= golden_w[i];
    check_near(got, (const double[]){-0.08466136, -0.2, 0.5, -0.1, 0.09943206, 0.25}, 6, 1e-7);
    drop(be, w), drop(be, g), drop(be, u), drop(be, l);
    nb_backend_free(be);
}

/* Section 5: h = 1/6, z = 6. */
static void test_golden_quant(void **state)
{
    NB_UNUSED(state);
    nb_backend *be = make_backend("ref64", 1, NB_COMPUTE_F32, ~0u);
    nb_format f = parse("int4:token:asym");
    nb_view x = upload(be, 1, 6, golden_w), g = upload(be, 1, 6, golden_g);
    double got[6];
    be->ops->quant_backward(be, g, g, x, &f);
    take(be, g, got);
    check_near(got, (const double[]){0.294, -0.2, 0.5, -0.1, 0.406, 0.25}, 6, 1e-7);
    be->ops->quant_forward(be, x, x, &f);
    take(be, x, got);
    const double h = 1.0 / 6;
    check_near(got, (const double[]){-6 * h, -2 * h, h, 4 * h, 9 * h, h}, 6, 1e-7);
    nb_backend_free(be);
}

/* ---- grids ----------------------------------------------------------------------------- */

/* Every quantized family says where its values saturate: at the end of the grid or a little above,
 * and all that lies below that end, or above it, becomes the outer level. */
static void check_grid(const nb_format *f)
{
    float w[16], far[4], back[4];
    uint8_t codes[4];
    nb_qparam p = {0};
    nb_grid grid;
    nb_rng r = {7};
    for (int i = 0; i < 16; i++) w[i] = (float)nb_rng_normal(&r);
    f->family->fit(f, w, NULL, 16, 1, 1, &p);
    f->family->grid(f, &p, &grid);
    far[0] = -1e30f, far[1] = grid.lo * p.scale * (1 - 0x1p-12f);
    far[2] = grid.hi * p.scale * (1 - 0x1p-12f), far[3] = 1e30f;
    f->family->encode(f, &p, far, 4, codes);
    f->family->decode(f, &p, codes, 4, back);
    if (back[0] != back[1] || back[2] != back[3]) fail_msg("%s: the ends are not outer", f->word);
    double lo = back[0] / (double)p.scale, hi = back[3] / (double)p.scale;
    if (lo < grid.lo || hi > grid.hi) fail_msg("%s: the outer levels saturate", f->word);
    if (grid.hi > 1.6 * hi + 0.5) fail_msg("%s: the end is too far out", f->word);
}

static void test_grids(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {
        "int2:row",        "int4:g64",       "int8:token",     "int5:row:sym", "fp4:g16",
        "fp4e3m0:g16",     "fp6:row",        "fp6e3m2:row",    "fp8:token",    "fp8e5m2:row",
        "fp8:token:paper", "fp4:g16:m1",     "fp4e3m0:g16:m2", "mxfp4",        "mxfp6",
        "mxfp8:ceil",      "mxfp8e5m2",      "mxint8",         "nvfp4",        "nvfp4:46",
        "dialect:b16",     "dialect:b32:mse"};
    for (int i = 0; nb_format_families[i]; i++) {
        const nb_format_family *family = nb_format_families[i];
        assert_true(!family->fit == !family->grid);
    }
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        nb_format f = parse(words[i]);
        check_grid(&f);
    }
}

/* ---- the frozen quantizer -------------------------------------------------------------- */

typedef struct frozen {
    nb_format f;
    int64_t groups;
    bool clipped; /* a weight; else activations */
    bool moved;   /* a weight with offsets v, frozen at v0; u and l are its ratios themselves */
    double w[SIZE], g[SIZE], row[ROWS], col[COLS], u[SIZE], l[SIZE], v[SIZE], v0[SIZE];
    bool inside[SIZE];
    double omega[SIZE]; /* level - w/h inside, level outside */
    bool zero;          /* the zero point learns: what saturated stays at its end of the range */
    double h0[SIZE], smooth0[SIZE], lo0[SIZE], hi0[SIZE];
    nb_grid grid[SIZE];
} frozen;

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double ratio(const frozen *z, double x)
{
    if (!z->clipped) return 1;
    return z->moved ? x : sigmoid(x);
}

static double value_at(const frozen *z, int64_t i, int64_t j)
{
    return z->w[i * COLS + j] * z->row[i] * z->col[j];
}

/* Range of group k, counted through all rows. */
static void range_of(const frozen *z, int64_t k, double *out_lo, double *out_hi)
{
    int64_t i = k / z->groups, at = nb_group_begin(&z->f, k % z->groups);
    int64_t end = at + nb_group_length(&z->f, COLS, k % z->groups);
    double lo = 0, hi = 0;
    for (int64_t j = at; j < end; j++) {
        lo = fmin(lo, value_at(z, i, j));
        hi = fmax(hi, value_at(z, i, j));
    }
    *out_lo = lo * ratio(z, z->l[k]);
    *out_hi = hi * ratio(z, z->u[k]);
}

/* Its scale as a smooth function of that; by_clip: of the clip ratios, where stepped scales move,
 * too. */
static double smooth_scale(const frozen *z, int64_t k, bool by_clip)
{
    const nb_grid *grid = &z->grid[k];
    double lo, hi;
    range_of(z, k, &lo, &hi);
    double width = grid->rule == NB_SCALE_RANGE ? hi - lo : fmax(-lo, hi);
    if (grid->rule == NB_SCALE_STEPPED) return by_clip ? width : 0;
    double scale = width / grid->span;
    return scale < grid->scale_min || scale > grid->scale_max ? 0 : scale;
}

/* By how much what saturated in group k moves with its end, where the zero point learns. */
static double end_shift(const frozen *z, int64_t k, double level)
{
    double lo, hi;
    range_of(z, k, &lo, &hi);
    return level > 0 ? hi - z->hi0[k] : lo - z->lo0[k];
}

/* sum g w^ */
static double objective(const frozen *z, bool by_clip)
{
    double sum = 0;
    for (int64_t k = 0; k < ROWS * z->groups; k++) {
        int64_t i = k / z->groups, at = nb_group_begin(&z->f, k % z->groups);
        int64_t end = at + nb_group_length(&z->f, COLS, k % z->groups);
        double smooth = smooth_scale(z, k, by_clip), h = z->h0[k] + smooth - z->smooth0[k];
        if (z->grid[k].rule == NB_SCALE_STEPPED) {
            h = by_clip && z->smooth0[k] > 0 ? z->h0[k] * smooth / z->smooth0[k] : z->h0[k];
        }
        for (int64_t j = at; j < end; j++) {
            int64_t e = i * COLS + j;
            double inside = value_at(z, i, j) + (z->v[e] - z->v0[e]) * h;
            bool ends = z->zero && smooth > 0 && z->grid[k].rule == NB_SCALE_RANGE;
            if (ends && !z->inside[e]) {
                sum += z->g[e] * (z->omega[e] * z->h0[k] + end_shift(z, k, z->omega[e]));
                continue;
            }
            sum += z->g[e] * ((z->inside[e] ? inside : 0) + z->omega[e] * h);
        }
    }
    return sum;
}

static void freeze_row(frozen *z, int64_t i)
{
    float w[COLS], lo[COLS], hi[COLS];
    nb_qparam p[COLS] = {{0}};
    for (int64_t j = 0; j < COLS; j++) w[j] = (float)value_at(z, i, j);
    for (int64_t g = 0; g < z->groups; g++) {
        float l = (float)z->l[i * z->groups + g], u = (float)z->u[i * z->groups + g];
        lo[g] = z->moved ? l : nb_clip_ratio(l);
        hi[g] = z->moved ? u : nb_clip_ratio(u);
    }
    if (z->clipped) {
        nb_format_fit_row(&z->f, w, NULL, COLS, lo, hi, p);
    } else {
        nb_fit_online_row(&z->f, w, COLS, p);
    }
    for (int64_t g = 0; g < z->groups; g++) {
        int64_t at = nb_group_begin(&z->f, g), n = nb_group_length(&z->f, COLS, g);
        uint8_t codes[COLS];
        float back[COLS];
        nb_grid *grid = &z->grid[i * z->groups + g];
        for (int64_t j = at; z->moved && j < at + n; j++) {
            w[j] = nb_offset_weight(w[j], (float)z->v[i * COLS + j], p[g].scale);
        }
        z->f.family->encode(&z->f, &p[g], w + at, n, codes);
        z->f.family->decode(&z->f, &p[g], codes, n, back);
        z->f.family->grid(&z->f, &p[g], grid);
        double h = z->h0[i * z->groups + g] = p[g].scale;
        for (int64_t j = 0; j < n; j++) {
            int64_t e = i * COLS + at + j;
            float x = w[at + j] / p[g].scale;
            z->inside[e] = grid->lo <= x && x <= grid->hi;
            double kept = z->inside[e] ? value_at(z, i, at + j) : 0;
            z->omega[e] = h > 0 ? (back[j] - kept) / h : 0;
        }
    }
}

/* Hard rows: 1 has one sign, 2 is 0 but for the last group, 3 has ties at both ends. */
static frozen *make_frozen(const char *word, bool clipped, uint64_t seed)
{
    frozen *z = calloc(1, sizeof *z);
    nb_rng r = {seed};
    z->f = parse(word);
    z->groups = nb_format_groups(&z->f, COLS);
    z->clipped = clipped;
    for (int64_t i = 0; i < SIZE; i++) z->w[i] = (float)nb_rng_normal(&r);
    for (int64_t i = 0; i < SIZE; i++) z->g[i] = nb_rng_normal(&r);
    for (int64_t i = 0; i < SIZE; i++) z->u[i] = (float)(1 + nb_rng_normal(&r));
    for (int64_t i = 0; i < SIZE; i++) z->l[i] = (float)(1 + nb_rng_normal(&r));
    for (int64_t i = 0; i < ROWS; i++) z->row[i] = clipped ? 0.5 + nb_rng_uniform(&r) : 1;
    for (int64_t i = 0; i < COLS; i++) z->col[i] = clipped ? 0.5 + nb_rng_uniform(&r) : 1;
    for (int64_t j = 0; j < COLS; j++) {
        z->w[COLS + j] = fabs(z->w[COLS + j]) + 0.1;
        if (j < COLS - 8) z->w[2 * COLS + j] = 0;
    }
    z->w[3 * COLS - 1] = 5; /* as far from 0 as the other end, where nothing is clipped */
    z->w[3 * COLS - 2] = -5;
    for (int64_t j = 0; j < COLS; j += 8) {
        z->col[j] = z->col[j + 1] = z->col[j + 4] = z->col[j + 5] = 1;
        z->w[3 * COLS + j] = z->w[3 * COLS + j + 1] = 3 + (double)j / 8;
        z->w[3 * COLS + j + 4] = z->w[3 * COLS + j + 5] = -4 - (double)j / 8;
    }
    for (int64_t i = 0; i < ROWS; i++) freeze_row(z, i);
    return z;
}

/* Central difference of the objective by *x. */
static double difference(frozen *z, double *x, bool by_clip)
{
    const double step = 1e-6;
    for (int64_t k = 0; k < ROWS * z->groups; k++) {
        z->smooth0[k] = smooth_scale(z, k, by_clip);
        range_of(z, k, &z->lo0[k], &z->hi0[k]);
    }
    double old = *x;
    *x = old + step;
    double up = objective(z, by_clip);
    *x = old - step;
    double down = objective(z, by_clip);
    *x = old;
    return (up - down) / (2 * step);
}

static void check_gradient(const char *word, const char *what, frozen *z, double *x, int64_t n,
                           const double *got, bool by_clip, const double *factor)
{
    double top = 1;
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(got[i]));
    for (int64_t i = 0; i < n; i++) {
        double want = difference(z, x + i, by_clip) * (factor ? factor[i] : 1);
        if (fabs(got[i] - want) <= 1e-6 * top) continue;
        fail_msg("%s: %s [%d] is %.10g, difference %.10g", word, what, (int)i, got[i], want);
    }
}

static void check_clip(const char *word, uint64_t seed, bool zero)
{
    nb_backend *be = make_backend("ref64", 1, NB_COMPUTE_F32, ~0u);
    frozen *z = make_frozen(word, true, seed);
    z->zero = zero;
    int64_t n = ROWS * z->groups;
    nb_view w = upload(be, ROWS, COLS, z->w), g = upload(be, ROWS, COLS, z->g);
    nb_view row = upload(be, 1, ROWS, z->row), col = upload(be, 1, COLS, z->col);
    nb_view u = upload(be, ROWS, z->groups, z->u), l = upload(be, ROWS, z->groups, z->l);
    nb_view sum = upload(be, 1, COLS, z->col);
    double got[SIZE];
    be->ops->clip_backward(be, u, l, sum, g, w, row, col, u, l, zero, &z->f);
    take(be, u, got);
    check_gradient(word, "du", z, z->u, n, got, true, NULL);
    take(be, l, got);
    check_gradient(word, "dl", z, z->l, n, got, true, NULL);
    take(be, sum, got);
    check_gradient(word, "column sum", z, z->col, COLS, got, false, z->col);
    drop(be, w), drop(be, g), drop(be, row), drop(be, col);
    free(z);
    nb_backend_free(be);
}

static void test_clip(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {
        "int2:row", "int3:g8",     "int4:g32",   "int8:row",   "int4:row:sym", "int3:g16:sym",
        "fp4:g16",  "fp4e3m0:row", "fp6:g8",     "fp8:row",    "nvfp4",        "mxfp4",
        "mxint8",   "dialect:b16", "fp4:g16:m2", "fp4:g16:m1", "nvfp4:46"};
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        for (uint64_t seed = 1; seed <= 6; seed++) check_clip(words[i], seed, seed > 3);
    }
}

/* The same rows, with ratios in place of logits and offsets. */
static frozen *make_moved(const char *word, uint64_t seed)
{
    frozen *z = make_frozen(word, true, seed);
    nb_rng r = {seed + 100};
    z->moved = true;
    for (int64_t i = 0; i < SIZE; i++) z->u[i] = (float)(1 - 0.5 * nb_rng_uniform(&r));
    for (int64_t i = 0; i < SIZE; i++) z->l[i] = (float)(1 - 0.5 * nb_rng_uniform(&r));
    for (int64_t i = 0; i < SIZE; i++) z->v[i] = z->v0[i] = (float)(nb_rng_uniform(&r) - 0.5);
    for (int64_t i = 0; i < ROWS; i++) z->row[i] = 1;
    for (int64_t j = 0; j < COLS; j++) z->col[j] = 1;
    for (int64_t i = 0; i < ROWS; i++) freeze_row(z, i);
    return z;
}

static void check_round(const char *word, uint64_t seed, bool zero)
{
    nb_backend *be = make_backend("ref64", 1, NB_COMPUTE_F32, ~0u);
    frozen *z = make_moved(word, seed);
    z->zero = zero;
    int64_t n = ROWS * z->groups;
    nb_view w = upload(be, ROWS, COLS, z->w), g = upload(be, ROWS, COLS, z->g);
    nb_view v = upload(be, ROWS, COLS, z->v), hi = upload(be, ROWS, z->groups, z->u);
    nb_view lo = upload(be, ROWS, z->groups, z->l), dhi = upload(be, ROWS, z->groups, z->u);
    nb_view dlo = upload(be, ROWS, z->groups, z->l);
    double got[SIZE];
    be->ops->round_backward(be, g, dhi, dlo, g, w, v, hi, lo, zero, &z->f);
    take(be, g, got);
    check_gradient(word, "dv", z, z->v, SIZE, got, false, NULL);
    take(be, dhi, got);
    check_gradient(word, "dhi", z, z->u, n, got, true, NULL);
    take(be, dlo, got);
    check_gradient(word, "dlo", z, z->l, n, got, true, NULL);
    drop(be, w), drop(be, v), drop(be, hi), drop(be, lo);
    free(z);
    nb_backend_free(be);
}

static void test_round(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int2:row",     "int3:g8", "int4:g32", "int8:row",
                                        "int3:g16:sym", "fp4:g16", "mxfp4",    "dialect:b16"};
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        for (uint64_t seed = 1; seed <= 6; seed++) check_round(words[i], seed, seed > 3);
    }
}

/* By hand: scale 1, zero point 1, levels -1 to 2. 0.4 is moved up, 1.4 is not; 1.9 is moved beyond
 * the end and has no gradient of its own. */
static void test_golden_round(void **state)
{
    NB_UNUSED(state);
    nb_backend *be = make_backend("ref64", 1, NB_COMPUTE_F32, ~0u);
    nb_format f = parse("int2:row:f32");
    const double w[] = {-1, 0.4f, 1.4f, 2, 2}, v[] = {0, 0.25, -0.25, 0, 0.5};
    const double one = 1, g[] = {1, 2, 4, 8, 16};
    nb_view vw = upload(be, 1, 5, w), vv = upload(be, 1, 5, v), vg = upload(be, 1, 5, g);
    nb_view hi = upload(be, 1, 1, &one), lo = upload(be, 1, 1, &one), y = upload(be, 1, 5, w);
    nb_view dhi = upload(be, 1, 1, &one), dlo = upload(be, 1, 1, &one);
    double got[5];
    be->ops->round_forward(be, y, vw, vv, hi, lo, &f);
    be->ops->round_backward(be, vg, dhi, dlo, vg, vw, vv, hi, lo, false, &f);
    take(be, y, got);
    check_near(got, (const double[]){-1, 1, 1, 2, 2}, 5, 0);
    take(be, vg, got);
    check_near(got, (const double[]){1, 2, 4, 8, 16}, 5, 0);
    /* dh = sum g (level - w / h) = 2 0.6 - 4 0.4; dhi = dh max / 3, dlo = -dh min / 3 */
    take(be, dhi, got);
    check_near(got, &(const double){-0.4 * 2 / 3}, 1, 1e-6);
    take(be, dlo, got);
    check_near(got, &(const double){-0.4 / 3}, 1, 1e-6);
    drop(be, vw), drop(be, vv), drop(be, hi), drop(be, lo);
    nb_backend_free(be);
}

static void test_quant(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int2:token:asym", "int4:token:asym", "int8:token",
                                        "int4:token",      "fp4:token",       "fp8:token",
                                        "fp8:token:paper", "nvfp4",           "mxfp8",
                                        "dialect:b16",     "dialect:b32"};
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        nb_backend *be = make_backend("ref64", 1, NB_COMPUTE_F32, ~0u);
        frozen *z = make_frozen(words[i], false, i + 1);
        nb_view x = upload(be, ROWS, COLS, z->w), g = upload(be, ROWS, COLS, z->g);
        double got[SIZE];
        be->ops->quant_backward(be, x, g, x, &z->f);
        take(be, x, got);
        check_gradient(words[i], "dx", z, z->w, SIZE, got, false, NULL);
        drop(be, g);
        free(z);
        nb_backend_free(be);
    }
}

/* A scale at its floor hands nothing on: every group of this row is. */
static void test_floor(void **state)
{
    NB_UNUSED(state);
    nb_backend *be = make_backend("ref64", 1, NB_COMPUTE_F32, ~0u);
    nb_format f = parse("int4:g8");
    const double w[8] = {1e-6, -2e-6, 3e-6, 4e-6, 0, 1e-5, 0, 0}, g[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    nb_view vw = upload(be, 1, 8, w), vg = upload(be, 1, 8, g), u = upload(be, 1, 1, g);
    nb_view l = upload(be, 1, 1, g), no = {0};
    be->ops->clip_backward(be, u, l, no, vg, vw, no, no, u, l, true, &f);
    double du, dl;
    take(be, u, &du);
    take(be, l, &dl);
    assert_true(du == 0 && dl == 0);
    drop(be, vw), drop(be, vg);
    nb_backend_free(be);
}

/* A row that has diverged passes as it is, forward and backward, on every backend. */
static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    nb_format f = parse("int8:token");
    const double x[6] = {1, INFINITY, 2, 1, 2, 3}, g[6] = {5, 6, 7, 5, 6, 7};
    for (int i = 0; nb_backends[i]; i++) {
        nb_backend *be = make_backend(nb_backends[i]->name, 1, NB_COMPUTE_F32, ~0u);
        nb_view vx = upload(be, 2, 3, x), vg = upload(be, 2, 3, g);
        double got[6];
        be->ops->quant_backward(be, vg, vg, vx, &f);
        take(be, vg, got);
        for (int j = 0; j < 3; j++) assert_true(got[j] == g[j]);
        be->ops->quant_forward(be, vx, vx, &f);
        take(be, vx, got);
        for (int j = 0; j < 3; j++) assert_true(got[j] == x[j]);
        assert_true(fabs(got[5] - 3) < 0.01);
        nb_backend_free(be);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_clip), cmocka_unit_test(test_golden_quant),
        cmocka_unit_test(test_grids),       cmocka_unit_test(test_clip),
        cmocka_unit_test(test_round),       cmocka_unit_test(test_golden_round),
        cmocka_unit_test(test_quant),       cmocka_unit_test(test_floor),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
