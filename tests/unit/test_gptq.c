/* GPTQ: the golden case of its specification, a slow reference in double on random problems of
 * every family, and the laws and failures. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/rng.h"
#include "method/gptq.h"
#include "method/method.h"

typedef struct problem {
    nb_arena *arena;
    nb_format format;
    nb_plane_spec spec[NB_MAX_PLANES];
    int n_planes;
    int64_t n_out, n_in, groups;
    float *h; /* [n_in, n_in] */
    float *diagonal;
    nb_job job;
} problem;

static void begin_problem(problem *p, const char *word, int64_t n_out, int64_t n_in)
{
    *p = (problem){.n_out = n_out, .n_in = n_in};
    assert_int_equal(nb_arena_create(&p->arena, NULL), NB_OK);
    assert_int_equal(nb_format_parse(&p->format, word, NULL), NB_OK);
    p->groups = nb_format_groups(&p->format, n_in);
    p->n_planes = p->format.family->planes(&p->format, n_in, p->spec);
    p->h = nb_arena_alloc(p->arena, (size_t)(n_in * n_in), sizeof(float));
    p->diagonal = nb_arena_alloc(p->arena, (size_t)n_in, sizeof(float));
    size_t n_clips = (size_t)(n_out * p->groups);
    p->job = (nb_job){.name = "layers.3.q",
                      .format = &p->format,
                      .n_out = n_out,
                      .n_in = n_in,
                      .importance = p->diagonal,
                      .hessian = p->h,
                      .threads = 2};
    p->job.w = nb_arena_alloc(p->arena, (size_t)(n_out * n_in), sizeof(float));
    p->job.clip_lo = nb_arena_alloc(p->arena, n_clips, sizeof(float));
    p->job.clip_hi = nb_arena_alloc(p->arena, n_clips, sizeof(float));
    for (size_t i = 0; i < n_clips; i++) p->job.clip_lo[i] = p->job.clip_hi[i] = 1;
    for (int i = 0; i < p->n_planes; i++) {
        p->job.plane[i] = nb_arena_alloc(p->arena, (size_t)n_out, (size_t)p->spec[i].row_bytes);
    }
}

/* Weights, and X^T X of n_rows inputs that depend on one another; some columns are large. */
static void fill_random(problem *p, uint64_t seed, int64_t n_rows)
{
    nb_rng rng = {seed};
    int64_t n = p->n_in;
    float *x = calloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < p->n_out * n; i++) p->job.w[i] = (float)nb_rng_normal(&rng);
    for (int64_t t = 0; t < n_rows; t++) {
        float common = (float)nb_rng_normal(&rng);
        for (int64_t i = 0; i < n; i++) {
            float size = i % 7 == 3 ? 4 : 1;
            x[i] = size * ((float)nb_rng_normal(&rng) + common);
        }
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = i; j < n; j++) p->h[i * n + j] += x[i] * x[j] / (float)n_rows;
        }
    }
    for (int64_t i = 0; i < n; i++) p->diagonal[i] = p->h[i * n + i];
    free(x);
}

static nb_status run_step(problem *p, const char *word, nb_error *err)
{
    nb_step step;
    assert_int_equal(nb_step_parse(&step, word, NULL), NB_OK);
    return nb_job_run(&p->job, &step, 1, err);
}

static void get_row(const problem *p, int64_t row, uint8_t *codes, nb_qparam *param, float *back)
{
    const uint8_t *plane[NB_MAX_PLANES] = {0};
    for (int i = 0; i < p->n_planes; i++) plane[i] = p->job.plane[i] + row * p->spec[i].row_bytes;
    p->format.family->unpack_row(&p->format, plane, p->n_in, codes, param);
    p->format.family->dequant_row(&p->format, plane, p->n_in, back);
}

static double h_at(const problem *p, int64_t i, int64_t j)
{
    return (double)(i <= j ? p->h[i * p->n_in + j] : p->h[j * p->n_in + i]);
}

/* tr((W - Q)(H + lambda I)(W - Q)^T) of what is stored. */
static double trace_error(const problem *p, double lambda)
{
    int64_t n = p->n_in;
    uint8_t *codes = malloc((size_t)n);
    nb_qparam *param = calloc((size_t)p->groups, sizeof *param);
    float *back = calloc((size_t)n, sizeof *back);
    double sum = 0;
    for (int64_t r = 0; r < p->n_out; r++) {
        const float *w = p->job.w + r * n;
        get_row(p, r, codes, param, back);
        for (int64_t i = 0; i < n; i++) {
            double d = (double)w[i] - (double)back[i];
            for (int64_t j = 0; j < n; j++) {
                double h = h_at(p, i, j) + (i == j ? lambda : 0);
                sum += d * h * ((double)w[j] - (double)back[j]);
            }
        }
    }
    free(codes), free(param), free(back);
    return sum;
}

static void end_problem(problem *p) { nb_arena_free(p->arena); }

/* ---- the golden case --------------------------------------------------------------------- */

static const float golden_w[8] = {-0.8f, 0.6f, 0.3f, -1.5f, 0.65f, -1.2f, 0.4f, 3};
static const float golden_h[16] = {2,    1.5f, 0.5f, -0.5f, 1.5f,  3,    2,    0.5f,
                                   0.5f, 2,    2.5f, 1.5f,  -0.5f, 0.5f, 1.5f, 4};

typedef struct golden {
    const char *word, *step;
    float scale[4]; /* [row][group] */
    float q[8];     /* in units of the scale */
    double trace;   /* with scales of fp32 */
} golden;

static const golden goldens[] = {
    {"fp4:row", "nearest", {0.25f, 0.5f}, {-3, 2, 1, -6, 1.5f, -2, 1, 6}, 0.35875},
    {"fp4:row", "gptq", {0.25f, 0.5f}, {-3, 2, 1.5f, -6, 1.5f, -3, 1.5f, 6}, 0.1290625},
    {"fp4:row", "gptq:act_order", {0.25f, 0.5f}, {-3, 2, 1.5f, -6, 1, -2, 0.5f, 6}, 0.0415625},
    {"fp4:g2", "nearest", {0.1333333f, 0.25f, 0.2f, 0.5f}, {-6, 4, 1, -6, 3, -6, 1, 6}, 0.0579167},
    {"fp4:g2",
     "gptq:static_groups",
     {0.1333333f, 0.25f, 0.2f, 0.5f},
     {-6, 4, 1.5f, -6, 3, -6, 1, 6},
     0.0323958},
    {"fp4:g2",
     "gptq:stale_scales",
     {0.1333333f, 0.25f, 0.2f, 0.5f},
     {-6, 4, 1.5f, -6, 3, -6, 1, 6},
     0.0323958},
    {"fp4:g2",
     "gptq",
     {0.1333333f, 0.2524295f, 0.2f, 0.4978852f},
     {-6, 4, 1.5f, -6, 3, -6, 1, 6},
     0.0265494},
    {"fp4:g2:m2",
     "gptq",
     {0.25f, 0.25f, 0.25f, 0.5f},
     {-3, 2, 1.5f, -6, 3, -6, 1.5f, 6},
     0.1290625},
    {"int4:row", "gptq", {0.14f, 0.28f}, {-6, 4, 3, -11, 2, -4, 1, 11}, 0.0494},
    {"int4:row:sym", "gptq", {0.2142857f, 0.4285714f}, {-4, 3, 1, -7, 2, -3, 1, 7}, 0.0660204},
};

static void check_golden(const golden *c)
{
    problem p;
    begin_problem(&p, c->word, 2, 4);
    memcpy(p.job.w, golden_w, sizeof golden_w);
    memcpy(p.h, golden_h, sizeof golden_h);
    for (int i = 0; i < 4; i++) p.diagonal[i] = golden_h[5 * i];
    assert_int_equal(run_step(&p, c->step, NULL), NB_OK);
    for (int r = 0; r < 2; r++) {
        uint8_t codes[4];
        nb_qparam param[2];
        float back[4];
        get_row(&p, r, codes, param, back);
        for (int i = 0; i < 4; i++) {
            int g = p.groups == 2 ? i / 2 : 0;
            float scale = c->scale[r * p.groups + g], q = back[i] / param[g].scale;
            /* the stored scale is fp16, the specification's fp32 */
            if (fabsf(param[g].scale - scale) > scale * 0x1p-11f ||
                fabsf(q - c->q[4 * r + i]) > 1e-5f) {
                fail_msg("%s %s: [%d, %d] is %g * %g, expected %g * %g", c->word, c->step, r, i,
                         (double)q, (double)param[g].scale, (double)c->q[4 * r + i], (double)scale);
            }
        }
    }
    /* fp16 moves values by up to 2^-12 of 3: at most 5 % of the smallest trace here */
    double trace = trace_error(&p, 0);
    if (fabs(trace - c->trace) > 0.05 * c->trace) {
        fail_msg("%s %s: trace %.7g, expected %.7g", c->word, c->step, trace, c->trace);
    }
    if (p.job.loss >= 0) {
        double damped = trace_error(&p, 0.02875);
        assert_true(fabs(p.job.loss - damped) < 1e-5 * damped);
    }
    end_problem(&p);
}

static void test_golden(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(goldens); i++) check_golden(&goldens[i]);
}

static void test_golden_factor(void **state)
{
    NB_UNUSED(state);
    static const double u[4][4] = {{0.9711535, -0.6967040, 0.3031774, 0.0941142},
                                   {0, 0.8781175, -0.8084007, 0.1920055},
                                   {0, 0, 0.7124227, -0.2652520},
                                   {0, 0, 0, 0.4982128}};
    static const double ordered[4] = {0.6035712, 1.1078565, 0.6447560, 0.7020786};
    static const int64_t order[4] = {3, 1, 2, 0};
    nb_gptq_factor f;
    assert_int_equal(nb_gptq_factor_create(&f, "x", golden_h, 4, 0.01, false, 2, NULL), NB_OK);
    for (int i = 0; i < 16; i++) assert_true(fabs((double)f.ut[i] - u[i % 4][i / 4]) < 1e-6);
    nb_gptq_factor_free(&f);
    assert_int_equal(nb_gptq_factor_create(&f, "x", golden_h, 4, 0.01, true, 2, NULL), NB_OK);
    for (int i = 0; i < 4; i++) {
        assert_true(f.order[i] == order[i]);
        assert_true(fabs((double)f.ut[5 * i] - ordered[i]) < 1e-6);
    }
    nb_gptq_factor_free(&f);
}

/* ---- a slow reference --------------------------------------------------------------------- */

/* U with (H + lambda I)^-1 = U^T U as the reference implementation finds it: the inverse by
 * Gauss-Jordan, then its upper Cholesky factor; in double. order: of the columns. */
static double *slow_factor(const problem *p, const int64_t *order, double damp)
{
    int64_t n = p->n_in, w = 2 * n;
    double *a = calloc((size_t)(n * w), sizeof *a), *u = calloc((size_t)(n * n), sizeof *u);
    double lambda = 0;
    for (int64_t i = 0; i < n; i++) lambda += damp * h_at(p, i, i) / (double)n;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) a[i * w + j] = h_at(p, order[i], order[j]);
        a[i * w + i] += lambda;
        a[i * w + n + i] = 1;
    }
    for (int64_t k = 0; k < n; k++) {
        double pivot = a[k * w + k];
        for (int64_t j = 0; j < w; j++) a[k * w + j] /= pivot;
        for (int64_t i = 0; i < n; i++) {
            double x = a[i * w + k];
            for (int64_t j = 0; i != k && j < w; j++) a[i * w + j] -= x * a[k * w + j];
        }
    }
    for (int64_t i = 0; i < n; i++) { /* U^T U, row by row */
        for (int64_t j = i; j < n; j++) {
            double s = a[i * w + n + j];
            for (int64_t k = 0; k < i; k++) s -= u[k * n + i] * u[k * n + j];
            u[i * n + j] = j == i ? sqrt(s) : s / u[i * n + i];
        }
    }
    free(a);
    return u;
}

static void slow_order(const problem *p, bool by_size, int64_t *order)
{
    for (int64_t i = 0; i < p->n_in; i++) order[i] = i;
    for (int64_t i = 1; by_size && i < p->n_in; i++) { /* insertion: stable */
        int64_t c = order[i], j = i;
        for (; j > 0 && h_at(p, c, c) > h_at(p, order[j - 1], order[j - 1]); j--) {
            order[j] = order[j - 1];
        }
        order[j] = c;
    }
}

/* When the parameters of a group are fitted. */
typedef enum when { FIRST, ON_THE_WAY, STALE } when;

typedef struct slow {
    const problem *p;
    const double *u;
    const int64_t *order;
    when fit;
    int64_t block;
} slow;

static void slow_fit(const slow *s, int64_t g, const double *w, nb_qparam *q)
{
    const nb_format *f = &s->p->format;
    int64_t at = nb_group_begin(f, g), n = nb_group_length(f, s->p->n_in, g);
    float values[600];
    for (int64_t i = 0; i < n; i++) values[i] = (float)w[at + i];
    f->family->fit(f, values, s->p->diagonal + at, n, 1, 1, q);
}

/* True if w is so near a tie that fp32 updates may round it the other way. */
static bool is_close(const nb_format *f, const nb_qparam *q, double w, uint8_t code)
{
    float step = q->scale * 2e-4f + 1e-5f;
    for (int i = -1; i <= 1; i += 2) {
        float x = (float)w + (float)i * step;
        uint8_t other;
        f->family->encode(f, q, &x, 1, &other);
        if (other != code) return true;
    }
    return false;
}

static bool same_param(const nb_qparam *a, const nb_qparam *b)
{
    return a->scale == b->scale && a->zero == b->zero && a->id == b->id;
}

/* Columns one by one, every update at once. w [n_in] in double, by column of the weight. Returns
 * how many codes were compared: from where a margin is inside rounding on, the rest may differ. */
static int64_t check_row(const slow *s, int64_t row)
{
    const problem *p = s->p;
    const nb_format *f = &p->format;
    int64_t n = p->n_in, done = 0;
    uint8_t *codes = malloc((size_t)n);
    nb_qparam *got = calloc((size_t)p->groups, sizeof *got),
              *q = calloc((size_t)p->groups, sizeof *q);
    float *back = calloc((size_t)n, sizeof *back);
    double *w = calloc((size_t)n, sizeof *w), *stale = calloc((size_t)n, sizeof *stale);
    get_row(p, row, codes, got, back);
    for (int64_t i = 0; i < n; i++) w[i] = (double)p->job.w[row * n + i];
    if (s->fit == FIRST) {
        nb_format_fit_row(f, p->job.w + row * n, p->diagonal, n, NULL, NULL, q);
    }
    for (; done < n; done++) {
        int64_t c = s->order[done], g = f->group > 0 ? c / f->group : 0;
        if (done % s->block == 0) memcpy(stale, w, (size_t)n * sizeof *w);
        if (s->fit != FIRST && c == nb_group_begin(f, g)) {
            slow_fit(s, g, s->fit == STALE ? stale : w, &q[g]);
            /* a scale on the edge between two stored ones: one of them is as good as the other */
            if (!same_param(&q[g], &got[g])) break;
        }
        float x = (float)w[c], value;
        uint8_t code;
        f->family->encode(f, &q[g], &x, 1, &code);
        if (is_close(f, &q[g], w[c], code)) break;
        if (code != codes[c]) {
            fail_msg("%s row %d column %d: code %d, expected %d (w %.9g, scale %.9g)", f->word,
                     (int)row, (int)c, codes[c], code, w[c], (double)q[g].scale);
        }
        f->family->decode(f, &q[g], &code, 1, &value);
        double e = (w[c] - (double)value) / s->u[done * n + done];
        for (int64_t j = done + 1; j < n; j++) w[s->order[j]] -= e * s->u[done * n + j];
    }
    free(codes), free(got), free(q), free(back), free(w), free(stale);
    return done;
}

static void check_random(const char *word, const char *step, int64_t n_in, when fit, uint64_t seed)
{
    enum { N_OUT = 70 };
    problem p;
    begin_problem(&p, word, N_OUT, n_in);
    fill_random(&p, seed, 3 * n_in);
    nb_error err = {0};
    if (run_step(&p, step, &err) != NB_OK) fail_msg("%s", err.message);
    int64_t *order = calloc((size_t)n_in, sizeof *order);
    slow_order(&p, strstr(step, "act_order") != NULL, order);
    double *u = slow_factor(&p, order, 0.01);
    const char *block = strstr(step, "block=");
    slow s = {&p, u, order, fit, block ? atoi(block + 6) : 128};
    int64_t compared = 0;
    for (int64_t r = 0; r < N_OUT; r++) compared += check_row(&s, r);
    if (compared < N_OUT * n_in * 3 / 4) {
        fail_msg("%s %s: only %d codes of %d compared", word, step, (int)compared,
                 (int)(N_OUT * n_in));
    }
    double lambda = 0;
    for (int64_t i = 0; i < n_in; i++) lambda += 0.01 * (double)p.diagonal[i] / (double)n_in;
    double damped = trace_error(&p, lambda);
    assert_true(fabs(p.job.loss - damped) < 1e-3 * damped);
    double gptq = trace_error(&p, 0);
    assert_int_equal(run_step(&p, "nearest", NULL), NB_OK);
    assert_true(gptq < trace_error(&p, 0));
    free(u), free(order);
    end_problem(&p);
}

/* Widths with a partial last group; groups that blocks of columns cut. */
static void test_reference(void **state)
{
    NB_UNUSED(state);
    check_random("int4:row", "gptq", 150, FIRST, 1);
    check_random("int3:row:sym", "gptq:act_order", 150, FIRST, 2);
    check_random("int4:g64", "gptq", 150, ON_THE_WAY, 3);
    check_random("int4:g40", "gptq:block=64", 150, ON_THE_WAY, 4);
    check_random("int4:g64", "gptq:static_groups", 150, FIRST, 5);
    check_random("int4:g32", "gptq:act_order", 150, FIRST, 6);
    check_random("fp4:g64", "gptq", 150, ON_THE_WAY, 7);
    check_random("fp4:g64", "gptq:act_order", 150, FIRST, 8);
    check_random("fp4:g32:m2", "gptq", 150, FIRST, 9);
    check_random("fp4:g32:m1", "gptq", 150, FIRST, 10);
    check_random("fp4e3m0:row", "gptq", 150, FIRST, 11);
    check_random("mxfp4", "gptq", 144, ON_THE_WAY, 12);
    check_random("mxfp4", "gptq:act_order", 144, FIRST, 13);
    check_random("nvfp4", "gptq", 144, FIRST, 14);
    check_random("dialect:b32", "gptq:static_groups", 144, FIRST, 15);
    check_random("dialect:b32", "gptq", 144, ON_THE_WAY, 17);
    check_random("int4:g32", "gptq:stale_scales", 150, STALE, 18);
    check_random("fp4:g40", "gptq:block=64:stale_scales", 150, STALE, 19);
    check_random("int8:g128", "gptq", 300, ON_THE_WAY, 16);
}

/* ---- laws --------------------------------------------------------------------------------- */

static void assert_same_planes(const problem *a, const problem *b)
{
    for (int i = 0; i < a->n_planes; i++) {
        assert_memory_equal(a->job.plane[i], b->job.plane[i],
                            (size_t)(a->n_out * a->spec[i].row_bytes));
    }
}

static void check_same(const char *word, const char *a_step, int a_threads, const char *b_step,
                       int b_threads)
{
    problem a, b;
    begin_problem(&a, word, 200, 300);
    begin_problem(&b, word, 200, 300);
    fill_random(&a, 21, 900);
    fill_random(&b, 21, 900);
    a.job.threads = a_threads;
    b.job.threads = b_threads;
    assert_int_equal(run_step(&a, a_step, NULL), NB_OK);
    assert_int_equal(run_step(&b, b_step, NULL), NB_OK);
    assert_same_planes(&a, &b);
    if (a_threads != b_threads) assert_true(a.job.loss == b.job.loss);
    end_problem(&a);
    end_problem(&b);
}

static void test_threads(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int4:g64", "int3:row", "fp4:g32:m2", "mxfp4"};
    for (size_t i = 0; i < NB_COUNT(words); i++) {
        check_same(words[i], "gptq", 1, "gptq", 2);
        check_same(words[i], "gptq", 1, "gptq", 3);
        check_same(words[i], "gptq:act_order", 1, "gptq:act_order", 5);
    }
}

/* Several tiles, the last one partial: U^T U (H + lambda I) = I, and the same bytes. */
static void test_factor(void **state)
{
    NB_UNUSED(state);
    enum { N = 300 };
    problem p;
    nb_gptq_factor f[3];
    begin_problem(&p, "int4:row", 1, N);
    fill_random(&p, 31, 2 * N);
    double lambda = 0;
    for (int i = 0; i < N; i++) lambda += 0.01 * (double)p.diagonal[i] / N;
    for (int t = 0; t < 3; t++) {
        assert_int_equal(nb_gptq_factor_create(&f[t], "x", p.h, N, 0.01, true, t + 1, NULL), NB_OK);
        assert_memory_equal(f[t].ut, f[0].ut, N * N * sizeof(float));
    }
    for (int i = 0; i < N; i++) { /* U (H + lambda I) U^T = I, row i */
        const float *u = f[0].ut;
        double uh[N] = {0};
        for (int j = 0; j < N; j++) {
            for (int k = i; k < N; k++) {
                double h = h_at(&p, f[0].order[k], f[0].order[j]) + (k == j ? lambda : 0);
                uh[j] += (double)u[k * N + i] * h;
            }
        }
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = j; k < N; k++) sum += uh[k] * (double)u[k * N + j];
            assert_true(fabs(sum - (i == j)) < 1e-4);
        }
    }
    for (int t = 0; t < 3; t++) nb_gptq_factor_free(&f[t]);
    end_problem(&p);
}

/* A factor that is shared gives what one of one's own gives; another matrix in the same memory, and
 * other options, make a new one. */
static void test_shared_factor(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"gptq", "gptq", "gptq:act_order", "gptq:damp=0.1", "gptq"};
    nb_gptq_cache cache = {0};
    const float *before = NULL;
    problem a, b;
    begin_problem(&a, "int4:g64", 70, 200);
    begin_problem(&b, "int4:g64", 70, 200);
    for (size_t i = 0; i < NB_COUNT(steps); i++) {
        if (i != 1) { /* the second linear has the first one's input */
            memset(a.h, 0, 200 * 200 * sizeof *a.h);
            memset(b.h, 0, 200 * 200 * sizeof *b.h);
        }
        if (i != 1) fill_random(&a, 40 + i, 500), fill_random(&b, 40 + i, 500);
        for (int k = 0; i == 1 && k < 70 * 200; k++) a.job.w[k] = b.job.w[k] = -a.job.w[k];
        a.job.factors = &cache;
        assert_int_equal(run_step(&a, steps[i], NULL), NB_OK);
        assert_int_equal(run_step(&b, steps[i], NULL), NB_OK);
        assert_same_planes(&a, &b);
        assert_true(a.job.loss == b.job.loss);
        if (i == 1) assert_ptr_equal(cache.factor.ut, before);
        before = cache.factor.ut;
    }
    nb_gptq_cache_fini(&cache);
    end_problem(&a);
    end_problem(&b);
}

/* H = I and half the range: what lies beyond it by more than half a step is counted. */
static void test_clipped(void **state)
{
    NB_UNUSED(state);
    problem p;
    begin_problem(&p, "int6:g32:sym", 20, 96);
    fill_random(&p, 50, 1);
    memset(p.h, 0, 96 * 96 * sizeof *p.h);
    for (int i = 0; i < 96; i++) p.h[97 * i] = 1;
    assert_int_equal(run_step(&p, "gptq", NULL), NB_OK);
    assert_true(p.job.clipped == 0);
    for (int i = 0; i < 20 * 3; i++) p.job.clip_lo[i] = p.job.clip_hi[i] = 0.5f;
    assert_int_equal(run_step(&p, "gptq", NULL), NB_OK);
    int64_t expected = 0;
    for (int r = 0; r < 20; r++) {
        uint8_t codes[96];
        nb_qparam q[3];
        float back[96];
        get_row(&p, r, codes, q, back);
        for (int i = 0; i < 96; i++) {
            expected += fabsf(p.job.w[r * 96 + i]) > 31.5f * q[i / 32].scale;
        }
    }
    assert_true(expected > 20 && p.job.clipped == expected);
    assert_int_equal(run_step(&p, "nearest", NULL), NB_OK);
    assert_true(p.job.clipped < 0);
    end_problem(&p);
}

/* H = I: nothing is spread. */
static void test_identity(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int4:g64", "fp4:row", "mxfp4", "nvfp4", "dialect:b32"};
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        problem a, b;
        begin_problem(&a, words[k], 20, 160);
        begin_problem(&b, words[k], 20, 160);
        fill_random(&a, 5, 1);
        fill_random(&b, 5, 1);
        memset(a.h, 0, 160 * 160 * sizeof(float));
        for (int i = 0; i < 160; i++) a.h[161 * i] = a.diagonal[i] = b.diagonal[i] = 1;
        assert_int_equal(run_step(&a, "gptq", NULL), NB_OK);
        assert_int_equal(run_step(&b, "nearest", NULL), NB_OK);
        assert_same_planes(&a, &b);
        end_problem(&a);
        end_problem(&b);
    }
}

/* The golden problem for blocks of 1, 2 and 128 columns: the same codes. */
static void test_blocks(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"gptq:block=1", "gptq:block=2", "gptq:block=3"};
    for (size_t k = 0; k < NB_COUNT(steps); k++) {
        for (size_t i = 0; i < NB_COUNT(goldens); i++) {
            golden c = goldens[i];
            if (strcmp(c.step, "gptq") != 0) continue;
            c.step = steps[k];
            check_golden(&c);
        }
    }
}

/* ---- what can go wrong --------------------------------------------------------------------- */

/* All inputs equal: rank 1. Damping makes it regular; without, the linear is rounded to nearest. */
static void test_singular(void **state)
{
    NB_UNUSED(state);
    problem a, b;
    begin_problem(&a, "int4:g32", 10, 64);
    begin_problem(&b, "int4:g32", 10, 64);
    fill_random(&a, 8, 1);
    fill_random(&b, 8, 1);
    for (int i = 0; i < 64 * 64; i++) a.h[i] = 1;
    assert_int_equal(run_step(&a, "gptq", NULL), NB_OK);
    assert_string_equal(a.job.note, "");
    assert_true(a.job.loss >= 0);
    assert_int_equal(run_step(&a, "gptq:damp=0", NULL), NB_OK);
    assert_non_null(strstr(a.job.note, "rounded to nearest"));
    assert_true(a.job.loss < 0);
    assert_int_equal(run_step(&b, "nearest", NULL), NB_OK);
    assert_same_planes(&a, &b);
    end_problem(&a);
    end_problem(&b);
}

/* Not positive definite by more than the first damping, less than its thousandfold. */
static void test_damping_grows(void **state)
{
    NB_UNUSED(state);
    float h[4] = {1, 1.5f, 0, 1};
    nb_gptq_factor f;
    assert_int_equal(nb_gptq_factor_create(&f, "x", h, 2, 0.01, false, 1, NULL), NB_OK);
    assert_int_equal(f.n_tries, 2); /* 0.01, 0.1, 1 */
    assert_false(f.failed);
    nb_gptq_factor_free(&f);
    h[1] = 20;
    assert_int_equal(nb_gptq_factor_create(&f, "x", h, 2, 0.01, false, 1, NULL), NB_OK);
    assert_true(f.failed);
    assert_null(f.ut);
    nb_gptq_factor_free(&f);
}

/* A column whose input is always 0 is rounded to nearest and counted. */
static void test_dead(void **state)
{
    NB_UNUSED(state);
    problem p;
    begin_problem(&p, "int8:row", 6, 48);
    fill_random(&p, 9, 200);
    for (int i = 0; i < 48; i++) p.h[17 * 48 + i] = p.h[i * 48 + 17] = 0;
    assert_int_equal(run_step(&p, "gptq", NULL), NB_OK);
    assert_string_equal(p.job.note, "gptq: 1 dead inputs");
    for (int r = 0; r < 6; r++) {
        uint8_t codes[48];
        nb_qparam q;
        float back[48];
        get_row(&p, r, codes, &q, back);
        assert_true(fabsf(back[17] - p.job.w[r * 48 + 17]) <= 0.5001f * q.scale);
        assert_true(back[17] != 0);
    }
    end_problem(&p);
}

/* dead_zero: it becomes 0, and the other columns as if it had been 0 all along, except that a whole
 * row is fitted before. */
static void test_dead_zero(void **state)
{
    NB_UNUSED(state);
    static const char *const words[] = {"int4:g16", "int4:row"};
    for (size_t k = 0; k < NB_COUNT(words); k++) {
        problem a, b;
        begin_problem(&a, words[k], 6, 48);
        begin_problem(&b, words[k], 6, 48);
        fill_random(&a, 9, 200);
        fill_random(&b, 9, 200);
        for (int i = 0; i < 48; i++) a.h[17 * 48 + i] = a.h[i * 48 + 17] = 0;
        memcpy(b.h, a.h, 48 * 48 * sizeof *a.h);
        for (int r = 0; r < 6; r++) a.job.w[r * 48 + 17] = 100;
        for (int r = 0; r < 6; r++) b.job.w[r * 48 + 17] = 0;
        assert_int_equal(run_step(&a, "gptq:dead_zero", NULL), NB_OK);
        assert_int_equal(run_step(&b, "gptq", NULL), NB_OK);
        for (int r = 0; r < 6; r++) {
            uint8_t codes[48];
            nb_qparam q[3];
            float back[48];
            get_row(&a, r, codes, q, back);
            assert_true(back[17] == 0);
            if (k == 1) assert_true(q[0].scale > 6); /* 100 / 15 */
        }
        if (k == 0) assert_same_planes(&a, &b);
        end_problem(&a);
        end_problem(&b);
    }
}

static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        problem p;
        nb_error err = {0};
        begin_problem(&p, "int4:g32", 4, 64);
        fill_random(&p, 10, 100);
        p.h[3 * 64 + 40] = bad[i];
        assert_int_equal(run_step(&p, "gptq", &err), NB_ENUMERIC);
        assert_non_null(strstr(err.message, "layers.3.q"));
        p.h[3 * 64 + 40] = 0;
        p.job.w[65] = bad[i];
        assert_int_equal(run_step(&p, "gptq", &err), NB_ENUMERIC);
        assert_non_null(strstr(err.message, "[1, 1]"));
        end_problem(&p);
    }
}

/* Outside the blocks there are no statistics. */
static void test_no_statistics(void **state)
{
    NB_UNUSED(state);
    problem a, b;
    begin_problem(&a, "int4:g32", 10, 64);
    begin_problem(&b, "int4:g32", 10, 64);
    fill_random(&a, 8, 1);
    fill_random(&b, 8, 1);
    a.job.hessian = NULL;
    assert_int_equal(run_step(&a, "gptq", NULL), NB_OK);
    assert_int_equal(run_step(&b, "nearest", NULL), NB_OK);
    assert_same_planes(&a, &b);
    end_problem(&a);
    end_problem(&b);
}

/* ---- words of steps -------------------------------------------------------------------------- */

static void test_words(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word, *canonical; /* or NULL, and what the message must say */
        const char *message;
    } cases[] = {
        {"gptq", "gptq", NULL},
        {"gptq:damp=0.01:block=128", "gptq", NULL},
        {"gptq:act_order:damp=.05", "gptq:damp=0.05:act_order", NULL},
        {"gptq:damp=1e-05", "gptq:damp=1e-05", NULL},
        {"gptq:static_groups:block=32", "gptq:block=32:static_groups", NULL},
        {"gptq:stale_scales:raw_tokens:dead_zero", "gptq:raw_tokens:dead_zero:stale_scales", NULL},
        {"gptq:true_sequential", NULL, "there are damp=N, block=N, act_order, static_groups, raw_"},
        {"gptq:act_order=1", NULL, "no option"},
        {"gptq:damp", NULL, "no option"},
        {"gptq:damp=nan", NULL, "from 0 to 10"},
        {"gptq:damp=-1", NULL, "from 0 to 10"},
        {"gptq:damp=11", NULL, "from 0 to 10"},
        {"gptq:block=0", NULL, "whole number from 1"},
        {"gptq:block=1.5", NULL, "whole number from 1"},
        {"gptq:", NULL, "no option"},
        {"nearest:x", NULL, "there are none"},
        {"gptqq", NULL, "unknown"},
    };
    for (size_t i = 0; i < NB_COUNT(cases); i++) {
        nb_step s, again;
        nb_error err = {0};
        nb_status st = nb_step_parse(&s, cases[i].word, &err);
        if (!cases[i].canonical) {
            if (st != NB_EUSAGE || !strstr(err.message, cases[i].message)) {
                fail_msg("%s: status %d, \"%s\"", cases[i].word, (int)st, err.message);
            }
            assert_null(s.method);
            continue;
        }
        assert_int_equal(st, NB_OK);
        assert_string_equal(s.word, cases[i].canonical);
        assert_int_equal(nb_step_parse(&again, s.word, NULL), NB_OK);
        assert_memory_equal(s.option, again.option, sizeof s.option);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_golden_factor),
        cmocka_unit_test(test_reference),     cmocka_unit_test(test_threads),
        cmocka_unit_test(test_factor),        cmocka_unit_test(test_shared_factor),
        cmocka_unit_test(test_clipped),       cmocka_unit_test(test_dead_zero),
        cmocka_unit_test(test_identity),      cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_singular),      cmocka_unit_test(test_damping_grows),
        cmocka_unit_test(test_dead),          cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_no_statistics), cmocka_unit_test(test_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
