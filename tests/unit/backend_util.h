/* One op on several backends: inputs of random shapes, and the comparison with "ref64". */
#ifndef NB_TESTS_BACKEND_UTIL_H
#define NB_TESTS_BACKEND_UTIL_H

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "cuda_util.h"
#include "format/half.h"
#include "op/op.h"

#define EPS ((double)FLT_EPSILON)

/* One op with its shapes; what does not apply is 0. */
typedef struct op_case {
    uint64_t seed;
    int64_t T, M, N; /* rows, inputs, outputs */
    int H, K, D, pos0, window, rot;
    int kind; /* norm or activation */
    int rank; /* of low-rank factors */
    bool bias, add, in_place, misaligned;
    const char *weights, *act; /* format words; act NULL: none */
    const char *factors;
    bool absolute; /* all inputs by their absolute value: for bounds */
} op_case;

/* Runs the op and leaves its results in out. */
typedef void (*op_run)(nb_backend *be, const op_case *c, double *out);

/* ---- inputs ---------------------------------------------------------------------------- */

static inline nb_backend *make_backend(const char *device, int threads, nb_compute compute,
                                       unsigned mask)
{
    nb_options opt = {.device = device, .threads = threads, .compute = compute, .cpumask = mask};
    nb_backend *be = NULL;
    nb_error err;
    if (nb_backend_create(&be, &opt, &err) != NB_OK) fail_msg("%s: %s", device, err.message);
    return be;
}

static inline float *random_values(const op_case *c, uint64_t salt, int64_t n, double size)
{
    nb_rng r = {c->seed * 1000 + salt};
    float *x = malloc((size_t)n * sizeof *x + 1);
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)(size * nb_rng_normal(&r));
        if (c->absolute) x[i] = fabsf(x[i]);
    }
    return x;
}

/* A [rows, cols] view inside a larger buffer: offset, and padding behind each row. */
static inline nb_view make_view(nb_backend *be, const op_case *c, uint64_t salt, int64_t rows,
                                int64_t cols)
{
    int64_t pad = (int64_t)((c->seed + salt) % 4), off = (int64_t)(c->seed % 3);
    nb_view v = {.off = off, .rows = rows, .cols = cols, .stride = cols + pad};
    nb_status st = be->ops->buffer_create(be, off + rows * v.stride + pad, &v.buf, NULL);
    assert_int_equal(st, NB_OK);
    float *x = random_values(c, salt, rows * cols, 1);
    be->ops->upload(be, v, x, NB_F32);
    free(x);
    return v;
}

/* The results, and proof that the padding is still zero. */
static inline void take_view(nb_backend *be, nb_view v, double *out)
{
    be->ops->download(be, v, out, NB_F64);
    int64_t pad = v.stride - v.cols;
    double *rest = calloc((size_t)(v.rows * pad) + 1, sizeof *rest);
    v.off += v.cols;
    v.cols = pad;
    be->ops->download(be, v, rest, NB_F64);
    for (int64_t i = 0; i < v.rows * pad; i++) assert_true(rest[i] == 0);
    free(rest);
}

static inline void drop(nb_backend *be, nb_view v) { be->ops->buffer_free(be, v.buf); }

/* ---- comparing ------------------------------------------------------------------------- */

static inline void run_on(const char *device, int threads, nb_compute compute, unsigned mask,
                          op_run run, const op_case *c, double *out)
{
    nb_backend *be = make_backend(device, threads, compute, mask);
    nb_error err = {0};
    run(be, c, out);
    if (be->ops->sync(be, &err) != NB_OK) fail_msg("%s: %s", device, err.message);
    nb_backend_free(be);
}

static inline void check_close(const char *what, const op_case *c, nb_compute compute,
                               const double *got, const double *want, const double *size,
                               double relative, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double bound = relative * size[i] + EPS * fabs(want[i]) + 0x1p-126;
        if (fabs(got[i] - want[i]) <= bound) continue;
        fail_msg("%s seed %d T %d M %d N %d H %d K %d D %d pos %d window %d kind %d weights %s act "
                 "%s compute %d: [%d] is %.9g, expected %.9g +- %.3g",
                 what, (int)c->seed, (int)c->T, (int)c->M, (int)c->N, c->H, c->K, c->D, c->pos0,
                 c->window, c->kind, c->weights ? c->weights : "-", c->act ? c->act : "-",
                 (int)compute, (int)i, got[i], want[i], bound);
    }
}

/* Where there is a GPU: as close as the others, and the same bytes every time. */
static inline void compare_cuda(op_run run, const op_case *c, nb_compute compute,
                                const double *want, const double *size, double relative, int64_t n)
{
    if (!has_cuda()) return;
    double *got = calloc((size_t)n, sizeof *got), *again = calloc((size_t)n, sizeof *again);
    run_on("cuda", 2, compute, ~0u, run, c, got);
    check_close("cuda", c, compute, got, want, size, relative, n);
    run_on("cuda", 1, compute, ~0u, run, c, again);
    if (memcmp(got, again, (size_t)n * sizeof *got) != 0) {
        fail_msg("cuda: seed %d: other bytes in a second run", (int)c->seed);
    }
    free(got);
    free(again);
}

/* size [n]: what the relative error refers to. */
static inline void compare(op_run run, const op_case *c, nb_compute compute, const double *size,
                           double relative, int64_t n)
{
    double *want = calloc((size_t)n, sizeof *want), *got = calloc((size_t)n, sizeof *got);
    double *one = calloc((size_t)n, sizeof *one);
    run_on("ref64", 1, compute, ~0u, run, c, want);
    run_on("ref", 1, compute, ~0u, run, c, got);
    check_close("ref", c, compute, got, want, size, relative, n);
    run_on("cpu", 2, compute, 0, run, c, got);
    check_close("cpu, scalar", c, compute, got, want, size, relative, n);
    run_on("cpu", 1, compute, ~0u, run, c, one);
    check_close("cpu", c, compute, one, want, size, relative, n);
    for (int threads = 2; threads <= 4; threads *= 2) {
        run_on("cpu", threads, compute, ~0u, run, c, got);
        if (memcmp(got, one, (size_t)n * sizeof *got) != 0) {
            fail_msg("seed %d: %d threads give other bytes than one", (int)c->seed, threads);
        }
    }
    compare_cuda(run, c, compute, want, size, relative, n);
    free(want);
    free(got);
    free(one);
}

/* The result of ref64 on absolute values: the sum of the terms' sizes. */
static inline double *sizes(op_run run, const op_case *c, nb_compute compute, int64_t n)
{
    op_case abs = *c;
    abs.absolute = true;
    double *size = calloc((size_t)n, sizeof *size);
    run_on("ref64", 1, compute, ~0u, run, &abs, size);
    return size;
}

static inline double *constant(double x, int64_t n)
{
    double *size = malloc((size_t)n * sizeof *size);
    for (int64_t i = 0; i < n; i++) size[i] = x;
    return size;
}

static inline bool has_bf16(void)
{
    nb_options opt = {.device = "cpu", .threads = 1, .compute = NB_COMPUTE_BF16, .cpumask = ~0u};
    nb_backend *be;
    nb_status st = nb_backend_create(&be, &opt, NULL);
    nb_backend_free(be);
    return st == NB_OK;
}

static inline int pick(nb_rng *r, const int *from, size_t n) { return from[nb_rng_next(r) % n]; }

#define PICK(r, ...)                                                                               \
    pick(r, (const int[]){__VA_ARGS__}, sizeof((const int[]){__VA_ARGS__}) / sizeof(int))

#endif
