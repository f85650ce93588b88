/* Linears of dialect weights and dialect inputs of one block size. Up to 8 rows go on integers and
 * have the bits of "ref" at every CPU level, within blocks 2^-24 sum |products of blocks| of the
 * exact sum; more rows keep the bound of any product. Inf and NaN saturate and are counted. */
#include "base/cpu.h"
#include "dialect_util.h"
#include "op/common.h"

typedef struct linear_case {
    uint64_t seed;
    int64_t T, M, N;
    const char *weights, *act;
    bool bias, add;
    int bad; /* values of the last row that are not finite: 0 to 3 */
} linear_case;

typedef struct machine {
    const char *device;
    int threads;
    nb_compute compute;
    unsigned mask;
} machine;

static const machine ref = {"ref", 1, NB_COMPUTE_F32, ~0u}, ref64 = {"ref64", 1, NB_COMPUTE_F32, 0};

static float *draw(uint64_t seed, int64_t n)
{
    nb_rng rng = {seed};
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (float)nb_rng_normal(&rng) * (i % 37 ? 1 : 20);
    return x;
}

static float *draw_input(const linear_case *c)
{
    static const float bad[] = {INFINITY, NAN, -NAN};
    float *x = draw(3 * c->seed + 1, c->T * c->M);
    for (int i = 0; i < c->bad; i++) x[c->T * c->M - 1 - i] = bad[i];
    return x;
}

/* Rounded to nearest; the planes go back with free_weight. */
static nb_matrix make_weight(const linear_case *c)
{
    nb_matrix m = {.format = format_of(c->weights), .n_out = c->N, .n_in = c->M};
    float *w = draw(3 * c->seed + 2, c->N * c->M);
    nb_plane_spec spec[NB_MAX_PLANES];
    if (!nb_format_is_quantized(&m.format)) {
        m.plane[0] = (uint8_t *)w;
        return m;
    }
    uint8_t *codes = malloc((size_t)c->M), *planes[NB_MAX_PLANES] = {0};
    nb_qparam *p = calloc((size_t)nb_format_groups(&m.format, c->M), sizeof *p);
    for (int i = 0; i < m.format.family->planes(&m.format, c->M, spec); i++) {
        m.plane[i] = planes[i] = calloc((size_t)c->N, (size_t)spec[i].row_bytes);
    }
    for (int64_t r = 0; r < c->N; r++) {
        nb_format_fit_row(&m.format, w + r * c->M, NULL, c->M, NULL, NULL, p);
        for (int64_t g = 0; g < nb_format_groups(&m.format, c->M); g++) {
            int64_t at = nb_group_begin(&m.format, g), n = nb_group_length(&m.format, c->M, g);
            m.format.family->encode(&m.format, &p[g], w + r * c->M + at, n, codes + at);
        }
        m.format.family->pack_row(&m.format, codes, p, c->M, planes);
        for (int i = 0; i < NB_MAX_PLANES; i++) {
            if (planes[i]) planes[i] += spec[i].row_bytes;
        }
    }
    free(w), free(codes), free(p);
    return m;
}

static void free_weight(nb_matrix *m)
{
    for (int i = 0; i < NB_MAX_PLANES; i++) free((void *)m->plane[i]);
}

/* out [T, N]; returns the count of values that were not finite. */
static int64_t run(const machine *on, const linear_case *c, double *out)
{
    nb_options opt = {
        .device = on->device, .threads = on->threads, .compute = on->compute, .cpumask = on->mask};
    nb_backend *be;
    nb_buffer *buf[2];
    nb_linear *l;
    nb_error err = {0};
    if (nb_backend_create(&be, &opt, &err) != NB_OK) fail_msg("%s", err.message);
    nb_matrix w = make_weight(c);
    float *x = draw_input(c), *bias = draw(c->seed + 9, c->N), *y = draw(c->seed + 8, c->T * c->N);
    nb_linear_desc d = {.w = &w, .bias = c->bias ? bias : NULL, .act = format_of(c->act)};
    assert_int_equal(be->ops->linear_create(be, &d, &l, &err), NB_OK);
    assert_int_equal(be->ops->buffer_create(be, c->T * c->M, &buf[0], &err), NB_OK);
    assert_int_equal(be->ops->buffer_create(be, c->T * c->N, &buf[1], &err), NB_OK);
    nb_view in = nb_view_of(buf[0], c->T, c->M), to = nb_view_of(buf[1], c->T, c->N);
    be->ops->upload(be, in, x, NB_F32);
    be->ops->upload(be, to, y, NB_F32);
    be->ops->linear_forward(be, to, in, l, c->add);
    be->ops->download(be, to, out, NB_F64);
    if (be->ops->sync(be, &err) != NB_OK) fail_msg("%s: %s", on->device, err.message);
    int64_t bad = be->nonfinite;
    be->ops->buffer_free(be, buf[0]), be->ops->buffer_free(be, buf[1]);
    be->ops->linear_free(be, l);
    nb_backend_free(be);
    free_weight(&w);
    free(x), free(bias), free(y);
    return bad;
}

static bool has_bf16(void)
{
    nb_options opt = {.device = "cpu", .threads = 1, .compute = NB_COMPUTE_BF16, .cpumask = ~0u};
    nb_backend *be;
    nb_status st = nb_backend_create(&be, &opt, NULL);
    nb_backend_free(be);
    return st == NB_OK;
}

static const char *const words[] = {"dialect:b16", "dialect:b32", "dialect:b64", "dialect:b128"};

static linear_case random_case(nb_rng *r, int i)
{
    static const int widths[] = {1, 15, 40, 96, 257, 576, 1100, 2100};
    return (linear_case){.seed = (uint64_t)i,
                         .M = widths[nb_rng_next(r) % NB_COUNT(widths)],
                         .N = 1 + (int64_t)(nb_rng_next(r) % 130),
                         .weights = words[i % 4],
                         .act = words[i % 4],
                         .bias = i % 3 == 0,
                         .add = i % 2 == 0};
}

/* ---- sums ------------------------------------------------------------------------------ */

/* Also of more rows than other linears take through dot products. */
static void test_rows_are_exact(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {1};
    int n_compute = has_bf16() ? 2 : 1;
    for (int i = 0; i < 60; i++) {
        linear_case c = random_case(&r, i);
        c.T = i % 3 == 2 ? 9 + i % 40 : 1 + i % 8;
        size_t n = (size_t)(c.T * c.N);
        double *want = malloc(n * sizeof *want), *got = malloc(n * sizeof *got);
        run(&ref, &c, want);
        run(&(machine){"ref", 1, NB_COMPUTE_BF16, ~0u}, &c, got); /* bf16 holds the operands */
        assert_memory_equal(got, want, n * sizeof *got);
        for (int level = 0; level < 6; level++) {
            static const unsigned masks[] = {0, NB_CPU_AVX2, ~0u};
            machine cpu = {"cpu", 1 + i % 3, level < 3 ? NB_COMPUTE_F32 : NB_COMPUTE_BF16,
                           masks[level % 3]};
            if (level >= 3 && n_compute < 2) continue;
            run(&cpu, &c, got);
            assert_memory_equal(got, want, n * sizeof *got);
        }
        free(want), free(got);
    }
}

/* The products of blocks of one output, by their values. */
static double sum_sizes(const linear_case *c)
{
    nb_format f = format_of(c->act);
    nb_matrix w = make_weight(c);
    float *x = draw_input(c), *v = malloc((size_t)c->M * sizeof *v);
    double size = 0;
    nb_fake_quant_row(&f, x, c->M, x);
    nb_matrix_dequant(&w, 0, 1, v);
    for (int64_t g = 0; g < nb_format_groups(&f, c->M); g++) {
        double term = 0;
        int64_t at = nb_group_begin(&f, g);
        for (int64_t k = at; k < at + nb_group_length(&f, c->M, g); k++) {
            term += (double)x[k] * (double)v[k];
        }
        size += fabs(term);
    }
    free_weight(&w);
    free(x), free(v);
    return size;
}

static void test_stated_tolerance(void **state)
{
    NB_UNUSED(state);
    for (int i = 0; i < 40; i++) {
        linear_case c = {.seed = 500 + (uint64_t)i, .T = 1, .M = 1100, .N = 1};
        c.weights = c.act = words[i % 4];
        double exact, got;
        run(&ref64, &c, &exact);
        run(&(machine){"cpu", 1, NB_COMPUTE_F32, ~0u}, &c, &got);
        nb_format f = format_of(c.act);
        int64_t n_blocks = nb_format_groups(&f, c.M);
        assert_true(fabs(got - exact) <= (double)n_blocks * 0x1p-24 * sum_sizes(&c));
    }
}

/* ---- D6 -------------------------------------------------------------------------------- */

static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    static const machine on[] = {{"ref", 1, NB_COMPUTE_F32, ~0u},
                                 {"ref64", 1, NB_COMPUTE_F32, ~0u},
                                 {"cpu", 2, NB_COMPUTE_F32, 0},
                                 {"cpu", 2, NB_COMPUTE_F32, ~0u}};
    static const char *const weights[] = {"dialect:b32", "f32", "int4:g16"};
    for (int i = 0; i < 4 * 3 * 2; i++) {
        linear_case c = {.seed = 7, .T = i / 12 ? 12 : 2, .M = 70, .N = 3, .act = "dialect:b32"};
        c.weights = weights[i / 4 % 3];
        double clean[12 * 3], out[12 * 3];
        assert_int_equal(run(&on[i % 4], &c, clean), 0);
        c.bad = 3;
        assert_int_equal(run(&on[i % 4], &c, out), 3);
        for (int64_t k = 0; k < (c.T - 1) * 3; k++) assert_true(out[k] == clean[k]);
        for (int64_t k = (c.T - 1) * 3; k < c.T * 3; k++) assert_false(isnan(out[k]));
    }
    linear_case c = {.seed = 7, .T = 1, .M = 70, .N = 1, .act = "int8:token", .bad = 3};
    double out;
    c.weights = "dialect:b32"; /* a format without such a rule: the loss must see it */
    assert_int_equal(run(&on[3], &c, &out), 0);
    assert_true(isnan(out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_are_exact),
        cmocka_unit_test(test_stated_tolerance),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
