/* The training ops: every backend against ref64 on random shapes, cpu for equal bytes on 1, 2 and 4
 * threads, and ref64 against central differences. What the straight-through ops of ref64 give is
 * in test_straight.c. */
#include "backend_util.h"

/* ---- ops for the comparison ------------------------------------------------------------ */

/* A view of whole quarters: many ties. */
static nb_view make_coarse_view(nb_backend *be, const op_case *c, uint64_t salt, int64_t rows,
                                int64_t cols)
{
    nb_view v = make_view(be, c, salt, rows, cols);
    if (c->kind == 0) return v;
    float *x = malloc((size_t)(rows * cols) * sizeof *x);
    be->ops->download(be, v, x, NB_F32);
    for (int64_t i = 0; i < rows * cols; i++) x[i] = rintf(4 * x[i]) / 4;
    be->ops->upload(be, v, x, NB_F32);
    free(x);
    return v;
}

static nb_format parse(const char *word)
{
    nb_format f;
    nb_error err = {0};
    if (nb_format_parse(&f, word, &err) != NB_OK) fail_msg("%s", err.message);
    return f;
}

/* kind: bit 0 a_cols, bit 1 b_rows. */
static void run_product(nb_backend *be, const op_case *c, double *out)
{
    bool a_cols = c->kind & 1, b_rows = c->kind & 2;
    nb_view a = a_cols ? make_view(be, c, 1, c->M, c->T) : make_view(be, c, 1, c->T, c->M);
    nb_view b = b_rows ? make_view(be, c, 2, c->N, c->M) : make_view(be, c, 2, c->M, c->N);
    nb_view y = make_view(be, c, 3, c->T, c->N);
    be->ops->product(be, y, a, a_cols, b, b_rows, c->add);
    take_view(be, y, out);
    drop(be, a), drop(be, b), drop(be, y);
}

static void run_bias(nb_backend *be, const op_case *c, double *out)
{
    nb_view x = make_view(be, c, 1, c->T, c->M), b = make_view(be, c, 2, 1, c->M);
    be->ops->bias_forward(be, x, b);
    take_view(be, x, out);
    drop(be, x), drop(be, b);
}

static void run_col_sum(nb_backend *be, const op_case *c, double *out)
{
    nb_view a = make_view(be, c, 1, c->T, c->M), b = make_view(be, c, 2, c->T, c->M);
    nb_view y = make_view(be, c, 3, 1, c->M);
    be->ops->col_sum(be, y, a, c->bias ? b : (nb_view){0}, c->add);
    take_view(be, y, out);
    drop(be, a), drop(be, b), drop(be, y);
}

static void run_norm_back(nb_backend *be, const op_case *c, double *out)
{
    nb_view dx = make_view(be, c, 1, c->T, c->M), dy = make_view(be, c, 2, c->T, c->M);
    nb_view x = make_view(be, c, 3, c->T, c->M);
    nb_view w = make_view(be, &(op_case){.seed = 12}, 3, 1, c->M);
    nb_norm norm = {.kind = (nb_norm_kind)c->kind, .eps = 0.05f};
    if (c->bias) norm.weight = w.buf;
    nb_view to = c->in_place ? dy : dx;
    be->ops->norm_backward(be, to, dy, x, &norm, c->add);
    take_view(be, to, out);
    drop(be, dx), drop(be, dy), drop(be, x), drop(be, w);
}

static void run_rope_back(nb_backend *be, const op_case *c, double *out)
{
    nb_view x = make_view(be, c, 1, c->T, c->H * c->D), t = make_view(be, c, 2, c->T, c->rot);
    be->ops->rope_backward(be, x, c->H, t, c->kind == 1);
    take_view(be, x, out);
    drop(be, x), drop(be, t);
}

/* out, lse, dq, dk, dv */
static void run_attention(nb_backend *be, const op_case *c, double *out)
{
    int64_t T = c->T, Q = c->H * c->D, K = c->K * c->D;
    nb_view q = make_view(be, c, 1, T, Q), k = make_view(be, c, 2, T, K);
    nb_view v = make_view(be, c, 3, T, K), dy = make_view(be, c, 4, T, Q);
    nb_view y = make_view(be, c, 5, T, Q), lse = make_view(be, c, 6, T, c->H);
    nb_view dq = make_view(be, c, 7, T, Q), dk = make_view(be, c, 8, T, K);
    nb_view dv = make_view(be, c, 9, T, K);
    nb_attention a = {c->H, c->K, c->D, 1 / sqrtf((float)c->D), 0, c->window};
    be->ops->attention_train(be, y, lse, q, k, v, &a);
    be->ops->attention_backward(be, dq, dk, dv, dy, y, lse, q, k, v, &a);
    const nb_view results[] = {y, lse, dq, dk, dv}, inputs[] = {q, k, v, dy};
    for (size_t i = 0; i < NB_COUNT(results); i++) {
        take_view(be, results[i], out);
        out += T * results[i].cols;
        drop(be, results[i]);
    }
    for (size_t i = 0; i < NB_COUNT(inputs); i++) drop(be, inputs[i]);
}

static int64_t attention_results(const op_case *c)
{
    return c->T * (2 * c->H * c->D + c->H + 2 * c->K * c->D);
}

/* Outputs in the place of inputs by seed. */
static void run_glu_back(nb_backend *be, const op_case *c, double *out)
{
    nb_view v[5]; /* dgate, dup, dout, gate, up */
    for (int i = 0; i < 5; i++) v[i] = make_view(be, c, (uint64_t)i, c->T, c->M);
    const int places[4][2] = {{0, 1}, {2, 1}, {3, 2}, {4, 3}};
    const int *to = places[c->seed % 4];
    be->ops->glu_backward(be, v[to[0]], v[to[1]], v[2], v[3], v[4], (nb_act_kind)c->kind);
    take_view(be, v[to[0]], out);
    take_view(be, v[to[1]], out + c->T * c->M);
    be->ops->act_backward(be, v[0], v[2], v[3], (nb_act_kind)c->kind);
    take_view(be, v[0], out + 2 * c->T * c->M);
    for (int i = 0; i < 5; i++) drop(be, v[i]);
}

/* quant_forward, then quant_backward; in_place: into their inputs. */
static void run_quant(nb_backend *be, const op_case *c, double *out)
{
    nb_format f = parse(c->act);
    nb_view x = make_coarse_view(be, c, 1, c->T, c->M), g = make_view(be, c, 2, c->T, c->M);
    nb_view y = make_view(be, c, 3, c->T, c->M), dx = make_view(be, c, 4, c->T, c->M);
    be->ops->quant_backward(be, c->in_place ? g : dx, g, x, &f);
    be->ops->quant_forward(be, c->in_place ? x : y, x, &f);
    take_view(be, c->in_place ? x : y, out);
    take_view(be, c->in_place ? g : dx, out + c->T * c->M);
    drop(be, x), drop(be, g), drop(be, y), drop(be, dx);
}

/* Powers of two: products with them are exact in every type. */
static nb_view make_powers(nb_backend *be, const op_case *c, uint64_t salt, int64_t n)
{
    nb_view v = make_view(be, c, salt, 1, n);
    nb_rng r = {c->seed + salt};
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = ldexpf(1, (int)(nb_rng_next(&r) % 5) - 2);
    be->ops->upload(be, v, x, NB_F32);
    free(x);
    return v;
}

/* clip_forward [N, M], du and dl [N, groups], colsum [M]; bias: with scales. */
static void run_clip(nb_backend *be, const op_case *c, double *out)
{
    nb_format f = parse(c->weights);
    int64_t groups = nb_format_groups(&f, c->M), n = c->N * c->M;
    nb_view w = make_coarse_view(be, c, 1, c->N, c->M), g = make_view(be, c, 2, c->N, c->M);
    nb_view u = make_view(be, c, 3, c->N, groups), l = make_view(be, c, 4, c->N, groups);
    nb_view row = make_powers(be, c, 5, c->N), col = make_powers(be, c, 6, c->M);
    nb_view y = make_view(be, c, 7, c->N, c->M), du = make_view(be, c, 8, c->N, groups);
    nb_view dl = make_view(be, c, 9, c->N, groups), sum = make_view(be, c, 10, 1, c->M);
    nb_view no = {0};
    be->ops->clip_forward(be, y, w, c->bias ? row : no, c->bias ? col : no, u, l, &f);
    be->ops->clip_backward(be, c->in_place ? u : du, c->in_place ? l : dl, c->add ? sum : no, g, w,
                           c->bias ? row : no, c->bias ? col : no, u, l, c->seed % 4 == 1, &f);
    take_view(be, y, out);
    take_view(be, c->in_place ? u : du, out + n);
    take_view(be, c->in_place ? l : dl, out + n + c->N * groups);
    if (c->add) take_view(be, sum, out + n + 2 * c->N * groups);
    const nb_view all[] = {w, g, u, l, row, col, y, du, dl, sum};
    for (size_t i = 0; i < NB_COUNT(all); i++) drop(be, all[i]);
}

/* round_forward [N, M], dv [N, M], dhi and dlo [N, groups]. */
static void run_round(nb_backend *be, const op_case *c, double *out)
{
    nb_format f = parse(c->weights);
    int64_t groups = nb_format_groups(&f, c->M), n = c->N * c->M;
    nb_view w = make_coarse_view(be, c, 1, c->N, c->M), g = make_view(be, c, 2, c->N, c->M);
    nb_view hi = make_powers(be, c, 3, c->N * groups), lo = make_powers(be, c, 4, c->N * groups);
    hi = (nb_view){hi.buf, hi.off, c->N, groups, groups};
    lo = (nb_view){lo.buf, lo.off, c->N, groups, groups};
    be->ops->sign_step(be, hi, hi, 0, 0.25, 1); /* ratios of 1, 1/2 and 1/4 */
    be->ops->sign_step(be, lo, lo, 0, 0.25, 1);
    nb_view v = make_view(be, c, 5, c->N, c->M), y = make_view(be, c, 6, c->N, c->M);
    nb_view dv = make_view(be, c, 7, c->N, c->M), dhi = make_view(be, c, 8, c->N, groups);
    nb_view dlo = make_view(be, c, 9, c->N, groups);
    be->ops->sign_step(be, v, g, 0.125, -0.5, 0.5);
    take_view(be, v, out);
    be->ops->round_forward(be, y, w, v, hi, lo, &f);
    be->ops->round_backward(be, c->in_place ? g : dv, dhi, dlo, g, w, v, hi, lo, c->seed % 4 == 1,
                            &f);
    take_view(be, y, out + n);
    take_view(be, c->in_place ? g : dv, out + 2 * n);
    take_view(be, dhi, out + 3 * n);
    take_view(be, dlo, out + 3 * n + c->N * groups);
    const nb_view all[] = {w, g, hi, lo, v, y, dv, dhi, dlo};
    for (size_t i = 0; i < NB_COUNT(all); i++) drop(be, all[i]);
}

static void run_mse(nb_backend *be, const op_case *c, double *out)
{
    nb_view y = make_view(be, c, 1, c->T, c->M), target = make_view(be, c, 2, c->T, c->M);
    nb_view dy = make_view(be, c, 3, c->T, c->M);
    out[0] = be->ops->mse_backward(be, dy, y, target, c->bias, 0.25, c->add);
    take_view(be, dy, out + 1);
    drop(be, y), drop(be, target), drop(be, dy);
}

static nb_view make_zeros(nb_backend *be, int64_t rows, int64_t cols)
{
    nb_view v = {.rows = rows, .cols = cols, .stride = cols};
    assert_int_equal(be->ops->buffer_create(be, rows * cols, &v.buf, NULL), NB_OK);
    return v;
}

static void run_adamw(nb_backend *be, const op_case *c, double *out)
{
    nb_view p = make_view(be, c, 1, c->T, c->M), m = make_zeros(be, c->T, c->M);
    nb_view v = make_zeros(be, c->T, c->M);
    for (int t = 1; t <= 4; t++) {
        nb_view g = make_view(be, c, 1 + (uint64_t)t, c->T, c->M);
        be->ops->adamw_step(be, p, g, m, v, 1e-2, 0.9, 0.999, 1e-8, t);
        drop(be, g);
    }
    take_view(be, p, out);
    drop(be, p), drop(be, m), drop(be, v);
}

/* ---- every backend against ref64 ------------------------------------------------------- */

static void test_products(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {1};
    int n_compute = has_bf16() ? 2 : 1;
    for (int i = 0; i < 48; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 7, 33, 260),
                     .M = PICK(&r, 1, 8, 40, 97, 300),
                     .N = PICK(&r, 1, 7, 64, 300),
                     .kind = i % 4,
                     .add = i % 3 == 0};
        for (int compute = 0; compute < n_compute; compute++) {
            double *size = sizes(run_product, &c, (nb_compute)compute, c.T * c.N);
            compare(run_product, &c, (nb_compute)compute, size, 2 * (double)(c.M + 4) * EPS,
                    c.T * c.N);
            free(size);
        }
    }
}

static void test_sums(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {2};
    for (int i = 0; i < 16; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 7, 64, 65, 300),
                     .M = PICK(&r, 1, 33, 128),
                     .bias = i % 2 == 0,
                     .add = i % 3 == 0};
        double *size = sizes(run_col_sum, &c, NB_COMPUTE_F32, c.M);
        compare(run_col_sum, &c, NB_COMPUTE_F32, size, (double)(c.T + 4) * EPS, c.M);
        free(size);
        size = sizes(run_bias, &c, NB_COMPUTE_F32, c.T * c.M);
        compare(run_bias, &c, NB_COMPUTE_F32, size, EPS, c.T * c.M);
        free(size);
    }
}

static void test_pointwise(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {3};
    for (int i = 0; i < 24; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 5, 40),
                     .M = PICK(&r, 2, 16, 67, 576),
                     .H = PICK(&r, 1, 3),
                     .D = 64,
                     .rot = PICK(&r, 2, 16, 64),
                     .kind = i % 2,
                     .bias = i % 3 == 0,
                     .in_place = i % 5 == 0,
                     .add = i % 4 < 2};
        double *size = constant(50, 3 * c.T * c.M + 3 * c.T * 64);
        compare(run_norm_back, &c, NB_COMPUTE_F32, size, (double)(c.M + 16) * EPS, c.T * c.M);
        compare(run_rope_back, &c, NB_COMPUTE_F32, size, 2 * EPS, c.T * c.H * c.D);
        c.kind = i % 3;
        compare(run_glu_back, &c, NB_COMPUTE_F32, size, 0x1p-20, 3 * c.T * c.M);
        compare(run_adamw, &c, NB_COMPUTE_F32, size, 8 * EPS, c.T * c.M);
        compare(run_mse, &c, NB_COMPUTE_F32, size, EPS, 1 + c.T * c.M);
        free(size);
    }
}

static void test_attention(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {4};
    int n_compute = has_bf16() ? 2 : 1;
    for (int i = 0; i < 24; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 2, 9, 40, 130, 300),
                     .K = PICK(&r, 1, 2, 3),
                     .D = PICK(&r, 8, 16, 64),
                     .window = PICK(&r, 0, 0, 1, 5, 100)};
        c.H = c.K * PICK(&r, 1, 3, 4, 7);
        if (i == 0) c = (op_case){.T = 700, .H = 2, .K = 1, .D = 8}; /* more tiles than lanes */
        int64_t n = attention_results(&c);
        for (int compute = 0; compute < n_compute; compute++) {
            /* as in test_backends; |dp| stays below 5 sqrt D on this data */
            double score = 25 * sqrt(c.D), relative = 2 * (c.D + 4) * EPS * score / 4;
            relative += (double)c.T * EPS + 0x1p-20 + (compute ? 0x1p-8 : 0);
            double *size = constant(5 * sqrt(c.D), n);
            compare(run_attention, &c, (nb_compute)compute, size, relative, n);
            free(size);
        }
    }
}

static const char *const weight_words[] = {
    "int4:row",    "int2:g8",     "int3:g16:sym", "int4:g64",  "int8:row:sym", "fp4:g16",
    "fp4e3m0:g16", "fp8:row",     "fp6:g32",      "mxfp4",     "mxint8",       "nvfp4",
    "nvfp4:46",    "dialect:b32", "fp4:g16:m2",   "fp4:g16:m1"};

static const char *const act_words[] = {"int4:token", "int8:token:asym", "int4:token:asym",
                                        "fp8:token",  "fp4:token",       "fp8e5m2:token:paper",
                                        "mxfp8",      "nvfp4",           "dialect:b16"};

/* Sums have up to 100 terms, each below 1 in size on the average. */
static void test_straight_through(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {5};
    double *size = constant(100, 5 * 40 * 100);
    for (int i = 0; i < 54; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 5, 40),
                     .M = PICK(&r, 1, 16, 67, 100),
                     .kind = i % 2,
                     .in_place = i % 3 == 0,
                     .act = act_words[(size_t)i % NB_COUNT(act_words)]};
        compare(run_quant, &c, NB_COMPUTE_F32, size, 16 * EPS, 2 * c.T * c.M);
    }
    for (int i = 0; i < 80; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .N = PICK(&r, 1, 5, 40),
                     .M = PICK(&r, 1, 16, 67, 100),
                     .kind = i % 3 == 0,
                     .bias = i % 2,
                     .add = i % 4 < 2,
                     .in_place = i % 5 == 0,
                     .weights = weight_words[(size_t)i % NB_COUNT(weight_words)]};
        nb_format f = parse(c.weights);
        int64_t n = c.N * (c.M + 2 * nb_format_groups(&f, c.M)) + (c.add ? c.M : 0);
        /* column sums are of up to 40 such terms, times scales of up to 16 */
        double relative = (c.add ? 64 : 16) * (c.bias ? 16 : 1) * EPS;
        compare(run_clip, &c, NB_COMPUTE_F32, size, relative, n);
        n = c.N * (3 * c.M + 2 * nb_format_groups(&f, c.M));
        compare(run_round, &c, NB_COMPUTE_F32, size, 16 * EPS, n);
    }
    free(size);
}

/* ---- gradients against differences ----------------------------------------------------- */

enum { MAX_IN = 3, MAX_VALUES = 400 };

/* An op as a function of up to three matrices, on ref64. */
typedef struct function {
    nb_backend *be;
    int n_in;
    nb_view in[MAX_IN], grad[MAX_IN], out, dout;
    nb_view extra[2];
    const op_case *c;
    nb_attention a;
    nb_norm norm;
    void (*forward)(struct function *f);
    void (*backward)(struct function *f);
} function;

static double objective(function *f)
{
    double y[MAX_VALUES], d[MAX_VALUES], sum = 0;
    f->forward(f);
    f->be->ops->download(f->be, f->out, y, NB_F64);
    f->be->ops->download(f->be, f->dout, d, NB_F64);
    for (int64_t i = 0; i < f->out.rows * f->out.cols; i++) sum += y[i] * d[i];
    return sum;
}

/* Central difference by value i of matrix m. */
static double difference(function *f, int m, int64_t i)
{
    const double step = 1e-5;
    nb_view at = nb_view_cols(nb_view_rows(f->in[m], i / f->in[m].cols, 1), i % f->in[m].cols, 1);
    double x, moved, sum[2];
    f->be->ops->download(f->be, at, &x, NB_F64);
    for (int side = 0; side < 2; side++) {
        moved = side ? x + step : x - step;
        f->be->ops->upload(f->be, at, &moved, NB_F64);
        sum[side] = objective(f);
    }
    f->be->ops->upload(f->be, at, &x, NB_F64);
    return (sum[1] - sum[0]) / (2 * step);
}

static void check_function(const char *what, function *f)
{
    f->forward(f);
    f->backward(f);
    for (int m = 0; m < f->n_in; m++) {
        double got[MAX_VALUES], top = 1;
        int64_t n = f->in[m].rows * f->in[m].cols;
        f->be->ops->download(f->be, f->grad[m], got, NB_F64);
        for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(got[i]));
        for (int64_t i = 0; i < n; i++) {
            double want = difference(f, m, i);
            if (fabs(got[i] - want) <= 1e-6 * top) continue;
            fail_msg("%s seed %d input %d: [%d] is %.12g, difference %.12g", what, (int)f->c->seed,
                     m, (int)i, got[i], want);
        }
    }
}

static void norm_forward(function *f)
{
    f->be->ops->norm_forward(f->be, f->out, f->in[0], &f->norm);
}

static void norm_backward(function *f)
{
    f->be->ops->norm_backward(f->be, f->grad[0], f->dout, f->in[0], &f->norm, false);
}

static void rope_forward(function *f)
{
    f->be->ops->copy(f->be, f->out, f->in[0]);
    f->be->ops->rope_forward(f->be, f->out, f->c->H, f->extra[0], f->c->kind == 1);
}

static void rope_backward(function *f)
{
    f->be->ops->copy(f->be, f->grad[0], f->dout);
    f->be->ops->rope_backward(f->be, f->grad[0], f->c->H, f->extra[0], f->c->kind == 1);
}

/* Backward is the op itself. */
static void hadamard_forward(function *f)
{
    f->be->ops->copy(f->be, f->out, f->in[0]);
    f->be->ops->hadamard_forward(f->be, f->out, f->c->D);
}

static void hadamard_backward(function *f)
{
    f->be->ops->copy(f->be, f->grad[0], f->dout);
    f->be->ops->hadamard_forward(f->be, f->grad[0], f->c->D);
}

static void glu_forward(function *f)
{
    f->be->ops->glu_forward(f->be, f->out, f->in[0], f->in[1], (nb_act_kind)f->c->kind);
}

static void glu_backward(function *f)
{
    f->be->ops->glu_backward(f->be, f->grad[0], f->grad[1], f->dout, f->in[0], f->in[1],
                             (nb_act_kind)f->c->kind);
}

static void act_forward(function *f)
{
    f->be->ops->act_forward(f->be, f->out, f->in[0], (nb_act_kind)f->c->kind);
}

static void act_backward(function *f)
{
    f->be->ops->act_backward(f->be, f->grad[0], f->dout, f->in[0], (nb_act_kind)f->c->kind);
}

static void attention_forward(function *f)
{
    f->be->ops->attention_train(f->be, f->out, f->extra[0], f->in[0], f->in[1], f->in[2], &f->a);
}

static void attention_backward(function *f)
{
    f->be->ops->attention_backward(f->be, f->grad[0], f->grad[1], f->grad[2], f->dout, f->out,
                                   f->extra[0], f->in[0], f->in[1], f->in[2], &f->a);
}

/* y = a op(b), with a gradient that is two products. kind: bit 0 a_cols, bit 1 b_rows. */
static void product_forward(function *f)
{
    f->be->ops->product(f->be, f->out, f->in[0], f->c->kind & 1, f->in[1], f->c->kind & 2, false);
}

static void product_backward(function *f)
{
    const nb_ops *o = f->be->ops;
    bool a_cols = f->c->kind & 1, b_rows = f->c->kind & 2;
    if (a_cols) { /* a [K, M]: da = op(b) dy^T */
        o->product(f->be, f->grad[0], f->in[1], b_rows, f->dout, true, false);
    } else {
        o->product(f->be, f->grad[0], f->dout, false, f->in[1], !b_rows, false);
    }
    if (b_rows) { /* b [N, K]: db = dy^T op(a) */
        o->product(f->be, f->grad[1], f->dout, true, f->in[0], a_cols, false);
    } else {
        o->product(f->be, f->grad[1], f->in[0], !a_cols, f->dout, false, false);
    }
}

/* Views of the inputs' shapes, their gradients, and of the output. */
static function open_function(nb_backend *be, const op_case *c, int n_in, const int64_t shape[][2],
                              int64_t rows, int64_t cols)
{
    function f = {.be = be, .n_in = n_in, .c = c};
    for (int i = 0; i < n_in; i++) {
        f.in[i] = make_view(be, c, (uint64_t)i + 1, shape[i][0], shape[i][1]);
        f.grad[i] = make_view(be, c, (uint64_t)i + 11, shape[i][0], shape[i][1]);
    }
    f.out = make_view(be, c, 21, rows, cols);
    f.dout = make_view(be, c, 22, rows, cols);
    return f;
}

static void close_function(function *f)
{
    for (int i = 0; i < f->n_in; i++) drop(f->be, f->in[i]), drop(f->be, f->grad[i]);
    drop(f->be, f->out), drop(f->be, f->dout);
    for (int i = 0; i < 2; i++) drop(f->be, f->extra[i]);
    nb_backend_free(f->be);
}

static nb_backend *make_ref64(void) { return make_backend("ref64", 1, NB_COMPUTE_F32, ~0u); }

static void test_difference_pointwise(void **state)
{
    NB_UNUSED(state);
    for (int i = 0; i < 12; i++) {
        op_case c = {.seed = (uint64_t)i, .T = 3, .M = 20 + i, .H = 2, .kind = i % 2};
        const int64_t shape[][2] = {{c.T, c.M}, {c.T, c.M}};
        function f = open_function(make_ref64(), &c, 1, shape, c.T, c.M);
        f.extra[0] = make_view(f.be, &c, 30, 1, c.M);
        f.norm = (nb_norm){(nb_norm_kind)c.kind, 0.01f, i % 3 ? f.extra[0].buf : NULL, NULL};
        f.forward = norm_forward, f.backward = norm_backward;
        check_function("norm", &f);
        close_function(&f);

        c.kind = i % 3;
        f = open_function(make_ref64(), &c, 2, shape, c.T, c.M);
        f.forward = glu_forward, f.backward = glu_backward;
        check_function("glu", &f);
        f.n_in = 1;
        f.forward = act_forward, f.backward = act_backward;
        check_function("act", &f);
        f.n_in = 2;
        close_function(&f);
    }
}

static void test_difference_rope(void **state)
{
    NB_UNUSED(state);
    for (int kind = 0; kind < 2; kind++) { /* halves, interleaved */
        op_case c = {.seed = 1, .T = 3, .H = 2, .D = 16, .rot = 8, .kind = kind};
        const int64_t shape[][2] = {{c.T, c.H * c.D}};
        function f = open_function(make_ref64(), &c, 1, shape, c.T, c.H * c.D);
        f.extra[0] = make_view(f.be, &c, 30, c.T, c.rot);
        f.forward = rope_forward, f.backward = rope_backward;
        check_function("rope", &f);
        close_function(&f);
    }
}

static void test_difference_hadamard(void **state)
{
    NB_UNUSED(state);
    op_case c = {.seed = 1, .T = 3, .H = 3, .D = 8};
    const int64_t shape[][2] = {{c.T, c.H * c.D}};
    function f = open_function(make_ref64(), &c, 1, shape, c.T, c.H * c.D);
    f.forward = hadamard_forward, f.backward = hadamard_backward;
    check_function("hadamard", &f);
    close_function(&f);
}

static void test_difference_product(void **state)
{
    NB_UNUSED(state);
    for (int kind = 0; kind < 4; kind++) {
        op_case c = {.seed = (uint64_t)kind, .T = 4, .M = 7, .N = 5, .kind = kind};
        const int64_t shape[][2] = {{kind & 1 ? c.M : c.T, kind & 1 ? c.T : c.M},
                                    {kind & 2 ? c.N : c.M, kind & 2 ? c.M : c.N}};
        function f = open_function(make_ref64(), &c, 2, shape, c.T, c.N);
        f.forward = product_forward, f.backward = product_backward;
        check_function("product", &f);
        close_function(&f);
    }
}

static void test_difference_attention(void **state)
{
    NB_UNUSED(state);
    for (int i = 0; i < 6; i++) {
        op_case c = {.seed = (uint64_t)i, .T = 9, .H = i % 2 ? 4 : 6, .K = 2, .D = 4};
        const int64_t shape[][2] = {{c.T, c.H * c.D}, {c.T, c.K * c.D}, {c.T, c.K * c.D}};
        function f = open_function(make_ref64(), &c, 3, shape, c.T, c.H * c.D);
        f.extra[0] = make_view(f.be, &c, 30, c.T, c.H);
        f.a = (nb_attention){c.H, c.K, c.D, 0.4f, 0, i % 3 == 0 ? 4 : 0};
        f.forward = attention_forward, f.backward = attention_backward;
        check_function("attention", &f);
        close_function(&f);
    }
}

/* mse: loss and gradient; the second target adds to both. */
static void test_mse(void **state)
{
    NB_UNUSED(state);
    nb_backend *be = make_ref64();
    double y[3] = {1, 2, -1}, a[3] = {0.5, 2, 1}, b[3] = {0, 0, 0}, got[3];
    nb_view v[4];
    for (int i = 0; i < 4; i++) v[i] = make_zeros(be, 1, 3);
    be->ops->upload(be, v[0], y, NB_F64);
    be->ops->upload(be, v[1], a, NB_F64);
    be->ops->upload(be, v[2], b, NB_F64);
    double loss = be->ops->mse_backward(be, v[3], v[0], v[1], false, 2, false);
    loss += be->ops->mse_backward(be, v[3], v[0], v[2], false, 2, true);
    be->ops->download(be, v[3], got, NB_F64);
    assert_true(fabs(loss - (0.25 + 4 + 1 + 4 + 1)) < 1e-14);
    for (int i = 0; i < 3; i++) {
        assert_true(fabs(got[i] - 2 * (y[i] - a[i] + y[i] - b[i])) < 1e-14);
    }
    /* mean square of a: 1.75; of b, zero: as it is */
    loss = be->ops->mse_backward(be, v[3], v[0], v[1], true, 2, false);
    assert_true(fabs(loss - (0.25 + 4) / 1.75) < 1e-14);
    assert_true(be->ops->mse_backward(be, v[3], v[0], v[2], true, 2, false) == 6);
    for (int i = 0; i < 4; i++) drop(be, v[i]);
    nb_backend_free(be);
}

/* The gradient is the loss's, with tokens of very different sizes. */
static void test_difference_mse(void **state)
{
    NB_UNUSED(state);
    for (int unit = 0; unit < 2; unit++) {
        op_case c = {.seed = 5, .T = 4, .M = 7};
        nb_backend *be = make_ref64();
        nb_view y = make_view(be, &c, 1, c.T, c.M), target = make_view(be, &c, 2, c.T, c.M);
        nb_view dy = make_view(be, &c, 3, c.T, c.M);
        double want[28], x[28], got[28];
        be->ops->download(be, target, x, NB_F64);
        for (int i = 0; i < 28; i++) x[i] *= i < 7 ? 30 : 1;
        be->ops->upload(be, target, x, NB_F64);
        be->ops->download(be, y, x, NB_F64);
        for (int i = 0; i < 28; i++) {
            double keep = x[i], end[2];
            for (int k = 0; k < 2; k++) {
                x[i] = keep + (k ? -1e-5 : 1e-5);
                be->ops->upload(be, y, x, NB_F64);
                end[k] = be->ops->mse_backward(be, dy, y, target, unit, 1, false);
            }
            x[i] = keep;
            want[i] = (end[0] - end[1]) / 2e-5;
        }
        be->ops->upload(be, y, x, NB_F64);
        be->ops->mse_backward(be, dy, y, target, unit, 2, false);
        be->ops->download(be, dy, got, NB_F64);
        for (int i = 0; i < 28; i++) assert_true(fabs(got[i] - want[i]) < 1e-7);
        drop(be, y), drop(be, target), drop(be, dy);
        nb_backend_free(be);
    }
}

/* Against the sign, within the limits; neither 0 nor NaN moves. */
static void test_sign_step(void **state)
{
    NB_UNUSED(state);
    const double param[5] = {0.1, 0.1, 0.1, 0.45, -0.45}, grad[5] = {3, 0, NAN, -1e-30, INFINITY};
    const double want[5] = {0, 0.1, 0.1, 0.5, -0.5};
    for (int i = 0; nb_backends[i]; i++) {
        nb_backend *be = make_backend(nb_backends[i]->name, 1, NB_COMPUTE_F32, ~0u);
        nb_view p = make_zeros(be, 1, 5), g = make_zeros(be, 1, 5);
        double got[5];
        be->ops->upload(be, p, param, NB_F64);
        be->ops->upload(be, g, grad, NB_F64);
        be->ops->sign_step(be, p, g, 0.1, -0.5, 0.5);
        be->ops->download(be, p, got, NB_F64);
        for (int k = 0; k < 5; k++) assert_true(fabs(got[k] - want[k]) < 1e-7);
        drop(be, p), drop(be, g);
        nb_backend_free(be);
    }
}

/* Three steps as torch.optim.AdamW (1.13, double) makes them; eps decides the second value. */
static void test_adamw(void **state)
{
    NB_UNUSED(state);
    const double grads[3][3] = {{0.3, -2e-7, 0}, {-0.1, 5e-8, 1}, {0.2, 1e-9, -3}};
    const double want[3][3] = {{3.990000000333333, -0.490476190476190, 0.25},
                               {3.985997814792808, -0.486082949166449, 0.242558631869541},
                               {3.979966950157614, -0.482763983120195, 0.246801066519570}};
    nb_backend *be = make_ref64();
    nb_view v[4]; /* param, grad, m, v */
    for (int i = 0; i < 4; i++) v[i] = make_zeros(be, 1, 3);
    be->ops->upload(be, v[0], (const double[]){4, -0.5, 0.25}, NB_F64);
    for (int t = 1; t <= 3; t++) {
        double got[3];
        be->ops->upload(be, v[1], grads[t - 1], NB_F64);
        be->ops->adamw_step(be, v[0], v[1], v[2], v[3], 1e-2, 0.9, 0.999, 1e-8, t);
        be->ops->download(be, v[0], got, NB_F64);
        for (int i = 0; i < 3; i++) assert_true(fabs(got[i] - want[t - 1][i]) < 1e-14);
    }
    for (int i = 0; i < 4; i++) drop(be, v[i]);
    nb_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_pointwise),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_straight_through),
        cmocka_unit_test(test_difference_pointwise),
        cmocka_unit_test(test_difference_rope),
        cmocka_unit_test(test_difference_hadamard),
        cmocka_unit_test(test_difference_product),
        cmocka_unit_test(test_difference_attention),
        cmocka_unit_test(test_mse),
        cmocka_unit_test(test_difference_mse),
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_sign_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
