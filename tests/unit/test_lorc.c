/* LoRC: the golden case of its specification, its laws, its failures, and a directory with factors
 * from quantize to logits. */
#include <lapacke.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/size.h"
#include "calib/calib.h"
#include "eval/eval.h"
#include "format/half.h"
#include "method/lorc.h"
#include "tiny_model.h"

typedef struct problem {
    nb_arena *arena;
    nb_format format;
    int64_t n_out, n_in;
    float *h, *back; /* [n_in, n_in]; [n_out, n_in]: What */
    nb_step step;
    nb_job job;
} problem;

static void make_planes(problem *p, nb_matrix *m, uint8_t *plane[])
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = m->format.family->planes(&m->format, m->n_in, spec);
    for (int i = 0; i < n; i++) {
        plane[i] = nb_arena_alloc(p->arena, (size_t)m->n_out, (size_t)spec[i].row_bytes);
        m->plane[i] = plane[i];
    }
}

static void begin_problem(problem *p, const char *word, int64_t n_out, int64_t n_in)
{
    *p = (problem){.n_out = n_out, .n_in = n_in};
    assert_int_equal(nb_arena_create(&p->arena, NULL), NB_OK);
    assert_int_equal(nb_format_parse(&p->format, word, NULL), NB_OK);
    size_t n = (size_t)(n_out * n_in);
    p->h = nb_arena_alloc(p->arena, (size_t)(n_in * n_in), sizeof(float));
    p->back = nb_arena_alloc(p->arena, n, sizeof(float));
    p->job = (nb_job){.name = "layers.3.q",
                      .format = &p->format,
                      .n_out = n_out,
                      .n_in = n_in,
                      .hessian = p->h,
                      .threads = 2};
    p->job.w = nb_arena_alloc(p->arena, n, sizeof(float));
    p->job.clip_lo = nb_arena_alloc(p->arena, n, sizeof(float));
    p->job.clip_hi = nb_arena_alloc(p->arena, n, sizeof(float));
    for (size_t i = 0; i < n; i++) p->job.clip_lo[i] = p->job.clip_hi[i] = 1;
    nb_matrix m = {.format = p->format, .n_out = n_out, .n_in = n_in};
    make_planes(p, &m, p->job.plane);
}

static void end_problem(problem *p) { nb_arena_free(p->arena); }

/* Weights, and the statistics of inputs that depend on one another. */
static void fill_random(problem *p, uint64_t seed)
{
    nb_rng rng = {seed};
    int64_t n = p->n_in;
    float *x = calloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < p->n_out * n; i++) p->job.w[i] = (float)nb_rng_normal(&rng);
    for (int64_t t = 0; t < 2 * n; t++) {
        float common = (float)nb_rng_normal(&rng);
        for (int64_t i = 0; i < n; i++) {
            float size = i % 7 == 3 ? 4 : 1;
            x[i] = size * ((float)nb_rng_normal(&rng) + common);
        }
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = i; j < n; j++) p->h[i * n + j] += x[i] * x[j] / (float)n;
        }
    }
    free(x);
}

/* nearest, then the step; What is left in p->back. */
static nb_status run_step(problem *p, const char *word, nb_error *err)
{
    nb_step steps[2];
    assert_int_equal(nb_step_parse(&steps[0], "nearest", NULL), NB_OK);
    assert_int_equal(nb_step_parse(&steps[1], word, NULL), NB_OK);
    p->step = steps[1];
    NB_TRY(nb_steps_lorc(steps, 2, &p->job.lorc, err));
    assert_true(nb_lorc_shape(&p->job.lorc, p->n_out, p->n_in));
    make_planes(p, &p->job.lorc.a, p->job.lorc_a);
    make_planes(p, &p->job.lorc.b, p->job.lorc_b);
    NB_TRY(nb_job_run(&p->job, steps, 2, err));
    p->job.option = p->step.option;
    nb_matrix m = {.format = p->format, .n_out = p->n_out, .n_in = p->n_in};
    for (int i = 0; i < NB_MAX_PLANES; i++) m.plane[i] = p->job.plane[i];
    nb_matrix_dequant(&m, 0, p->n_out, p->back);
    return NB_OK;
}

static void must_run(problem *p, const char *word)
{
    nb_error err;
    if (run_step(p, word, &err) != NB_OK) fail_msg("%s: %s", word, err.message);
}

/* |W - What - A B|^2 with the factors as stored. */
static double rest(const problem *p)
{
    int64_t n = p->n_in;
    const nb_lorc *l = &p->job.lorc;
    float *a = malloc((size_t)(l->rank * p->n_out) * sizeof *a);
    float *b = malloc((size_t)(l->rank * n) * sizeof *b);
    float *row = malloc((size_t)n * sizeof *row);
    double sum = 0;
    nb_matrix_dequant(&l->a, 0, l->rank, a);
    nb_matrix_dequant(&l->b, 0, l->rank, b);
    for (int64_t r = 0; r < p->n_out; r++) {
        for (int64_t i = 0; i < n; i++) row[i] = p->back[r * n + i] - p->job.w[r * n + i];
        nb_lorc_add(l, a, b, r, 1, row);
        for (int64_t i = 0; i < n; i++) sum += (double)row[i] * (double)row[i];
    }
    free(a), free(b), free(row);
    return sum;
}

/* |E - A B|^2 and tr((E - A B) H (E - A B)^T) of the factors before they are stored. */
static void exact_rest(problem *p, const char *step, double *frobenius, double *trace)
{
    nb_lorc_factors f;
    must_run(p, step);
    assert_int_equal(nb_lorc_factors_find(&f, &p->job, NULL), NB_OK);
    int64_t m = p->n_out, n = p->n_in;
    double *d = malloc((size_t)n * sizeof *d);
    *frobenius = *trace = 0;
    for (int64_t r = 0; r < m; r++) {
        for (int64_t i = 0; i < n; i++) {
            d[i] = (double)p->job.w[r * n + i] - (double)p->back[r * n + i];
            for (int64_t k = 0; k < f.low.rank; k++)
                d[i] -= f.low.a[k * m + r] * f.low.b[k * n + i];
            *frobenius += d[i] * d[i];
        }
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < n; j++) {
                *trace += d[i] * d[j] * (double)p->h[nb_min_i64(i, j) * n + nb_max_i64(i, j)];
            }
        }
    }
    free(d);
    nb_lorc_factors_free(&f);
}

/* ---- the golden case --------------------------------------------------------------------- */

/* "token": the golden case has fp32 scales. */
static void begin_golden(problem *p, const float h[6])
{
    static const float w[9] = {3, 1.3f, -0.8f, 1.2f, -2.2f, 0.9f, -0.6f, 1.4f, 1.5f};
    begin_problem(p, "fp4:token", 3, 3);
    memcpy(p->job.w, w, sizeof w);
    for (int i = 0, k = 0; i < 3; i++) {
        for (int j = i; j < 3; j++) p->h[3 * i + j] = h[k++];
    }
}

static void assert_close(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance)) fail_msg("%.9g, expected %.9g", got, want);
}

typedef struct golden {
    const char *step;
    double a[3], b[3];
    double frobenius, trace; /* what is left; frobenius 0: not given */
} golden;

static const float golden_diag[6] = {1, 0, 0, 16, 0, 4};
static const float golden_full[6] = {2, 0.6f, 0.2f, 1, 0.4f, 0.5f};

static void check_golden(const golden *g, const float h[6])
{
    problem p;
    nb_lorc_factors f;
    begin_golden(&p, h);
    must_run(&p, g->step);
    assert_int_equal(nb_lorc_factors_find(&f, &p.job, NULL), NB_OK);
    for (int i = 0; i < 3; i++) { /* the digits that are given, and errors of fp32 weights */
        assert_close(f.low.a[i], g->a[i], 4e-7);
        assert_close(f.low.b[i], g->b[i], 4e-7);
    }
    nb_lorc_factors_free(&f);
    double frobenius, trace;
    exact_rest(&p, g->step, &frobenius, &trace);
    if (g->frobenius > 0) assert_close(frobenius, g->frobenius, 2e-7);
    assert_close(trace, g->trace, 4e-7);
    end_problem(&p);
}

static void test_golden(void **state)
{
    NB_UNUSED(state);
    static const golden plain = {"lorc:rank=1",
                                 {0.3668036, -0.2358459, 0.2375496},
                                 {-0.1919706, -0.3938219, -0.2337725},
                                 0.0394672,
                                 0.2661770};
    static const golden diag = {"lorc:rank=1:diag:damp=0",
                                {0.8480857, -0.0470698, 0.4236514},
                                {-0.0522475, -0.2352888, -0.0557739},
                                0.0451387,
                                0.1294087};
    static const golden full = {"lorc:rank=1:full:damp=0",
                                {0.3446981, -0.3185371, 0.3375632},
                                {-0.1963011, -0.3072599, -0.2104062},
                                0,
                                0.0200948};
    golden plain_full = plain;
    plain_full.trace = 0.0236844;
    check_golden(&plain, golden_diag);
    check_golden(&plain_full, golden_full);
    check_golden(&diag, golden_diag);
    check_golden(&full, golden_full);
}

static void test_golden_stored(void **state)
{
    NB_UNUSED(state);
    static const uint16_t a[3] = {0x35de, 0xb38c, 0x339a}, b[3] = {0xb225, 0xb64d, 0xb37b};
    static const uint8_t a8[3] = {254, 45, 209}, b8[3] = {65, 0, 52}; /* code - 127 */
    problem p;
    float scale;
    begin_golden(&p, golden_diag);
    must_run(&p, "lorc:rank=1");
    assert_memory_equal(p.job.lorc_a[0], a, sizeof a);
    assert_memory_equal(p.job.lorc_b[0], b, sizeof b);
    assert_close(rest(&p), 0.0394672, 1e-7);
    must_run(&p, "lorc:rank=1:int8");
    assert_memory_equal(p.job.lorc_a[0], a8, sizeof a8);
    assert_memory_equal(p.job.lorc_b[0], b8, sizeof b8);
    memcpy(&scale, p.job.lorc_a[1], sizeof scale);
    assert_close((double)scale, 0.002888217, 1e-9);
    memcpy(&scale, p.job.lorc_b[1], sizeof scale);
    assert_close((double)scale, 0.003100960, 1e-9);
    assert_close(rest(&p), 0.0394683, 1e-7);
    end_problem(&p);
}

/* ---- laws -------------------------------------------------------------------------------- */

static const struct {
    const char *word;
    int64_t n_out, n_in;
} shapes[] = {
    {"fp4:g32", 24, 40}, {"int3:g8", 40, 24},  {"mxfp4", 33, 33},
    {"nvfp4", 9, 100},   {"int2:row", 150, 7},
};

/* The singular values and the decomposition of LAPACK, which works the other way. */
static void test_against_gesdd(void **state)
{
    NB_UNUSED(state);
    for (size_t k = 0; k < NB_COUNT(shapes); k++) {
        problem p;
        nb_lorc_factors f;
        begin_problem(&p, shapes[k].word, shapes[k].n_out, shapes[k].n_in);
        fill_random(&p, k + 1);
        must_run(&p, "lorc:rank=5");
        assert_int_equal(nb_lorc_factors_find(&f, &p.job, NULL), NB_OK);
        int64_t m = p.n_out, n = p.n_in, side = nb_min_i64(m, n);
        double *e = malloc((size_t)(m * n) * sizeof *e), *s = malloc((size_t)side * sizeof *s);
        double *u = malloc((size_t)(m * side) * sizeof *u),
               *vt = malloc((size_t)(side * n) * sizeof *vt);
        for (int64_t i = 0; i < m * n; i++) e[i] = (double)p.job.w[i] - (double)p.back[i];
        int failed = LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'S', (int)m, (int)n, e, (int)n, s, u,
                                    (int)side, vt, (int)n);
        assert_int_equal(failed, 0);
        for (int r = 0; r < 5; r++) {
            int64_t top = 0;
            for (int64_t i = 1; i < m; i++) {
                if (fabs(f.low.a[r * m + i]) > fabs(f.low.a[r * m + top])) top = i;
            }
            assert_true(f.low.a[r * m + top] > 0); /* the sign rule */
            double sign = u[top * side + r] > 0 ? 1 : -1, root = sqrt(s[r]);
            for (int64_t i = 0; i < m; i++) {
                assert_close(f.low.a[r * m + i], sign * root * u[i * side + r], 1e-9);
            }
            for (int64_t i = 0; i < n; i++) {
                assert_close(f.low.b[r * n + i], sign * root * vt[r * n + i], 1e-9);
            }
        }
        free(e), free(s), free(u), free(vt);
        nb_lorc_factors_free(&f);
        end_problem(&p);
    }
}

static void test_laws(void **state)
{
    NB_UNUSED(state);
    for (size_t k = 0; k < NB_COUNT(shapes); k++) {
        problem p;
        double plain[2], full[2], diag[2], none = 0;
        begin_problem(&p, shapes[k].word, shapes[k].n_out, shapes[k].n_in);
        fill_random(&p, k + 11);
        exact_rest(&p, "lorc:rank=3", &plain[0], &plain[1]);
        exact_rest(&p, "lorc:rank=3:full:damp=0", &full[0], &full[1]);
        exact_rest(&p, "lorc:rank=3:diag", &diag[0], &diag[1]);
        assert_true(full[1] < plain[1] && full[1] < diag[1]);
        assert_true(plain[0] < full[0] && plain[0] < diag[0]);
        for (int64_t i = 0; i < p.n_out * p.n_in; i++) {
            double d = (double)p.job.w[i] - (double)p.back[i];
            none += d * d;
        }
        assert_true(plain[0] < none);
        /* every rank more takes more; all of them take all */
        char all[32];
        snprintf(all, sizeof all, "lorc:rank=%d", (int)nb_min_i64(p.n_out, p.n_in));
        exact_rest(&p, all, &diag[0], &diag[1]);
        assert_true(diag[0] < 1e-20 * none);
        strcat(all, ":full");
        exact_rest(&p, all, &full[0], &full[1]);
        assert_true(full[0] < 1e-18 * none);
        end_problem(&p);
    }
}

/* Nothing left to correct: factors of zeros, no NaN. */
static void test_no_error(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"lorc:rank=4", "lorc:rank=4:int8", "lorc:rank=4:full"};
    for (size_t k = 0; k < NB_COUNT(steps); k++) {
        problem p;
        begin_problem(&p, "fp4:row", 6, 8);
        fill_random(&p, 3);
        for (int i = 0; i < 48; i++) p.job.w[i] = (float)(i % 4) - (i % 8 == 7 ? 9 : 0);
        must_run(&p, steps[k]);
        assert_true(rest(&p) == 0);
        end_problem(&p);
    }
}

/* Inputs that were always 0 get no correction and spoil nothing. */
static void test_dead(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"lorc:rank=2:diag", "lorc:rank=2:full"};
    for (size_t k = 0; k < NB_COUNT(steps); k++) {
        problem p;
        nb_lorc_factors f;
        begin_problem(&p, "int3:g8", 12, 16);
        fill_random(&p, 5);
        for (int i = 0; i < 16; i++) p.h[nb_min_i64(i, 9) * 16 + nb_max_i64(i, 9)] = 0;
        must_run(&p, steps[k]);
        assert_int_equal(nb_lorc_factors_find(&f, &p.job, NULL), NB_OK);
        for (int r = 0; r < 2; r++) {
            for (int i = 0; i < 16; i++) assert_true((f.low.b[r * 16 + i] == 0) == (i == 9));
        }
        nb_lorc_factors_free(&f);
        end_problem(&p);
    }
}

static void test_threads(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"lorc", "lorc:diag", "lorc:full", "lorc:int8"};
    for (size_t k = 0; k < NB_COUNT(steps); k++) {
        problem p[3];
        for (int t = 0; t < 3; t++) {
            begin_problem(&p[t], "fp4:g64", 300, 200);
            fill_random(&p[t], 9);
            p[t].job.threads = t == 2 ? 4 : t + 1;
            must_run(&p[t], steps[k]);
            size_t bytes = k == 3 ? 1 : 2;
            assert_memory_equal(p[t].job.lorc_a[0], p[0].job.lorc_a[0], 8 * 300 * bytes);
            assert_memory_equal(p[t].job.lorc_b[0], p[0].job.lorc_b[0], 8 * 200 * bytes);
            assert_string_equal(p[t].job.note, p[0].job.note);
        }
        for (int t = 0; t < 3; t++) end_problem(&p[t]);
    }
}

/* ---- fallbacks and failures -------------------------------------------------------------- */

static void test_no_statistics(void **state)
{
    NB_UNUSED(state);
    problem a, b;
    begin_problem(&a, "int4:g32", 20, 64);
    begin_problem(&b, "int4:g32", 20, 64);
    fill_random(&a, 8);
    fill_random(&b, 8);
    must_run(&a, "lorc");
    b.job.hessian = NULL;
    must_run(&b, "lorc:full");
    assert_memory_equal(a.job.lorc_a[0], b.job.lorc_a[0], 8 * 20 * 2);
    assert_non_null(strstr(b.job.note, "no statistics"));
    assert_null(strstr(a.job.note, "statistics"));
    b.job.hessian = b.h; /* one eigenvalue below 0, whatever the damping */
    for (int i = 0; i < 64; i++) b.h[i * 65] = i == 5 ? -1e6f : 1;
    must_run(&b, "lorc:full");
    assert_memory_equal(a.job.lorc_a[0], b.job.lorc_a[0], 8 * 20 * 2);
    assert_non_null(strstr(b.job.note, "singular"));
    end_problem(&a);
    end_problem(&b);
}

static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    static const char *const steps[] = {"lorc:diag", "lorc:full"};
    for (size_t k = 0; k < NB_COUNT(steps); k++) {
        problem p;
        nb_error err;
        begin_problem(&p, "int4:g32", 10, 64);
        fill_random(&p, 8);
        p.h[3 * 65] = NAN;
        assert_int_equal(run_step(&p, steps[k], &err), NB_ENUMERIC);
        assert_non_null(strstr(err.message, "layers.3.q"));
        end_problem(&p);
    }
    problem p;
    nb_error err;
    begin_problem(&p, "int4:row", 8, 8); /* factors that fp16 does not hold */
    fill_random(&p, 8);
    for (int i = 0; i < 64; i++) p.job.w[i] *= 1e30f;
    assert_int_equal(run_step(&p, "lorc", &err), NB_ENUMERIC);
    assert_non_null(strstr(err.message, "fp16"));
    end_problem(&p);
}

/* ---- a directory ------------------------------------------------------------------------- */

static char root[64];

static const char *in_root(const char *name) { return tiny_path(root, name); }

static int make_root(void **state)
{
    NB_UNUSED(state);
    snprintf(root, sizeof root, "/tmp/nibble-lorc-XXXXXX");
    if (!mkdtemp(root)) return -1;
    return tiny_model_write(in_root("model"), 1, NULL) && tiny_write_text(root, "text.txt") ? 0
                                                                                            : -1;
}

static int remove_root(void **state)
{
    NB_UNUSED(state);
    return nb_remove_tree(root, NULL) == NB_OK ? 0 : -1;
}

static nb_status quantize(const char *out, const char *method, int threads, bool text,
                          nb_quantize_result *result, nb_error *err)
{
    nb_quantize_options opt;
    const char *texts[1] = {in_root("text.txt")};
    nb_quantize_options_default(&opt);
    opt.model = in_root("model");
    opt.out = in_root(out);
    opt.weights = "int3:g32";
    opt.acts = "fp8:token";
    opt.method = method;
    opt.run.threads = threads;
    opt.calib = texts;
    opt.n_calib = text ? 1 : 0;
    opt.samples = 3;
    opt.seqlen = 32;
    return nb_calib_run(&opt, result, err);
}

enum { N_IDS = 48 };

/* Logits [N_IDS, V] of a model in root; false if it cannot be opened. */
static nb_status logits_of(const char *name, bool simulate, const char *device, float *out,
                           nb_error *err)
{
    nb_options opt = {.device = device, .threads = 2, .cpumask = ~0u};
    nb_source *s = NULL;
    nb_backend *be = NULL;
    nb_net *net = NULL;
    int32_t ids[N_IDS];
    for (int i = 0; i < N_IDS; i++) ids[i] = i * 37 % TINY_VOCAB;
    nb_status st = nb_source_open(&s, in_root(name), err);
    if (st == NB_OK) st = nb_backend_create(&be, &opt, err);
    if (st == NB_OK) st = nb_net_create(&net, be, s, simulate, NULL, err);
    if (st == NB_OK) st = nb_eval_logits(net, ids, N_IDS, out, err);
    nb_net_free(net);
    nb_backend_free(be);
    nb_source_close(s);
    return st;
}

static double distance(const float *a, const float *b, int64_t n)
{
    double d = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(d / size);
}

static void test_directory(void **state)
{
    NB_UNUSED(state);
    static const char *const methods[] = {"nearest,lorc:rank=4", "gptq,lorc:rank=4:int8:full"};
    static float packed[N_IDS * TINY_VOCAB], simulated[N_IDS * TINY_VOCAB];
    static float reference[N_IDS * TINY_VOCAB], without[N_IDS * TINY_VOCAB];
    nb_error err;
    nb_quantize_result r;
    for (int k = 0; k < 2; k++) {
        const char *dir = k ? "b" : "a";
        if (quantize(dir, methods[k], 1, true, &r, &err) != NB_OK) fail_msg("%s", err.message);
        if (logits_of(dir, false, "cpu", packed, &err) != NB_OK) fail_msg("%s", err.message);
        assert_int_equal(logits_of(dir, true, "cpu", simulated, NULL), NB_OK);
        assert_int_equal(logits_of(dir, false, "ref", reference, NULL), NB_OK);
        /* the same numbers in another order; fp8 may fall on the other side of a tie */
        assert_true(distance(packed, simulated, N_IDS * TINY_VOCAB) < 2e-3);
        assert_true(distance(packed, reference, N_IDS * TINY_VOCAB) < 2e-3);
    }
    if (quantize("c", "nearest", 1, true, &r, &err) != NB_OK) fail_msg("%s", err.message);
    double bits = r.bits_per_weight;
    assert_int_equal(logits_of("c", false, "cpu", without, NULL), NB_OK);
    assert_int_equal(logits_of("a", false, "cpu", packed, NULL), NB_OK);
    assert_int_equal(logits_of("model", false, "cpu", reference, NULL), NB_OK);
    assert_true(distance(packed, without, N_IDS * TINY_VOCAB) > 2e-2);
    assert_true(distance(packed, reference, N_IDS * TINY_VOCAB) <
                distance(without, reference, N_IDS * TINY_VOCAB));
    /* all linears of a block: 4 (n_out + n_in) values of 16 bits over n_out n_in weights */
    nb_inspection *in;
    assert_int_equal(nb_inspect(&in, in_root("a"), NULL), NB_OK);
    double sides = 64 + 48 + 48 + 64 + 104 * 3, weights = 2 * 1024 + 2 * 512 + 3 * 2304;
    assert_close(in->bits_per_weight, bits + 16 * 4 * sides / weights, 1e-9);
    nb_inspection_free(in);
    nb_options opt;
    nb_verify_result v;
    nb_options_default(&opt);
    assert_int_equal(nb_verify(in_root("b"), &opt, &v, NULL), NB_OK);
}

static void test_directory_threads(void **state)
{
    NB_UNUSED(state);
    nb_error err;
    nb_quantize_result r;
    char *text[2];
    size_t n[2];
    static const char *const names[] = {"t1", "t4"};
    for (int k = 0; k < 2; k++) {
        if (quantize(names[k], "gptq,lorc:rank=3:full", k ? 4 : 1, true, &r, &err) != NB_OK) {
            fail_msg("%s", err.message);
        }
    }
    static const char *const files[] = {"model-00003-of-00004.safetensors", "report.json"};
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 2; k++) {
            char name[80];
            snprintf(name, sizeof name, "%s/%s", names[k], files[i]);
            assert_int_equal(nb_read_file(in_root(name), 1 << 24, &text[k], &n[k], NULL), NB_OK);
        }
        assert_int_equal(n[0], n[1]);
        assert_memory_equal(text[0], text[1], n[0]);
        free(text[0]), free(text[1]);
    }
}

static void test_refused(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *method, *a, *b;
        bool text;
    } cases[] = {
        {"nearest,lorc:rank=17", "k_proj", "rank 17", false},
        {"nearest,lorc:rank=0", "rank", "from 1", false},
        {"nearest,lorc:diag:full", "lorc", "exclude", true},
        {"nearest,lorc,lorc", "compensate", "2", false},
        {"nearest,lorc:full", "lorc:full", "calibration text", false},
        {"lorc", "round", "0", false},
    };
    for (size_t i = 0; i < NB_COUNT(cases); i++) {
        nb_error err;
        nb_quantize_result r;
        nb_status st = quantize("no", cases[i].method, 1, cases[i].text, &r, &err);
        if (st != NB_EUSAGE || !strstr(err.message, cases[i].a) ||
            !strstr(err.message, cases[i].b)) {
            fail_msg("%s: status %d, \"%s\"", cases[i].method, (int)st, err.message);
        }
        assert_true(nb_file_bytes(in_root("no")) < 0);
    }
}

/* Every way in which config.json and factors may disagree is status 3. */
static void test_malformed(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *lorc, *message; /* in place of what was written */
    } cases[] = {
        {"{\"rank\": 5, \"format\": \"f16\"}", "lorc_a"},
        {"{\"rank\": 4, \"format\": \"f32\"}", "lorc_a"},
        {"{\"rank\": 4, \"format\": \"int8:row:sym:f32\"}", "lorc_a.codes is missing"},
        {"{\"rank\": 400, \"format\": \"f16\"}", "rank 400"},
        {"{\"rank\": 0, \"format\": \"f16\"}", "lorc.rank"},
        {"{\"rank\": \"4\", \"format\": \"f16\"}", "lorc.rank"},
        {"{\"rank\": 4, \"format\": \"q4_0\"}", "lorc.format"},
        {"{\"rank\": 4}", "lorc.format"},
        {"[]", "lorc.rank"},
        {"null", "lorc.rank"},
    };
    static float logits[N_IDS * TINY_VOCAB];
    nb_error err;
    nb_quantize_result r;
    char *text;
    size_t n;
    if (quantize("bad", "nearest,lorc:rank=4", 1, false, &r, &err) != NB_OK) {
        fail_msg("%s", err.message);
    }
    assert_int_equal(nb_read_file(in_root("bad/config.json"), 1 << 20, &text, &n, NULL), NB_OK);
    char *begin = strstr(text, "\"lorc\"");
    assert_non_null(begin);
    char *end = strchr(begin, '}');
    char *other = malloc(n + 200);
    for (size_t i = 0; i < NB_COUNT(cases); i++) {
        snprintf(other, n + 200, "%.*s\"lorc\": %s%s", (int)(begin - text), text, cases[i].lorc,
                 end + 1);
        assert_true(tiny_write(in_root("bad"), "config.json", other));
        nb_status st = logits_of("bad", false, "cpu", logits, &err);
        if (st != NB_EINPUT || !strstr(err.message, cases[i].message)) {
            fail_msg("%s: status %d, \"%s\"", cases[i].lorc, (int)st, err.message);
        }
    }
    snprintf(other, n + 200, "%.*s\"x\": 0%s", (int)(begin - text), text, end + 1);
    assert_true(tiny_write(in_root("bad"), "config.json", other));
    assert_int_equal(logits_of("bad", false, "cpu", logits, &err), NB_EINPUT);
    assert_non_null(strstr(err.message, "lorc is missing"));
    free(other), free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_golden_stored),
        cmocka_unit_test(test_against_gesdd),
        cmocka_unit_test(test_laws),
        cmocka_unit_test(test_no_error),
        cmocka_unit_test(test_dead),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_no_statistics),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_directory),
        cmocka_unit_test(test_directory_threads),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_malformed),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
