/* Leading singular vectors of x by the eigenvectors of its smaller Gram matrix, in double.
 *
 * With V the first eigenvectors of x x^T (where m <= n; else of x^T x) as rows, V x has the rows
 * s q^T, so one product gives the values and the other side. Squaring costs half of the digits of
 * small singular values: those below 1e-8 of the largest are noise in x already, which is made of
 * fp32 numbers, and V stays orthonormal whatever they are. A full decomposition (gesdd) of a
 * 1536 x 576 matrix takes six times as long.
 *
 * OpenBLAS works with one thread: the threads are ours and the cut of the work follows from the
 * shape alone. */
#include "method/lowrank.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>

#include "base/size.h"

enum { ROWS = 128 }; /* of the Gram matrix per task */

/* Lower triangle of g [k, k] = x x^T or x^T x, k the smaller side. */
static void make_gram(const nb_lowrank *l, const double *x, int threads, double *g)
{
    bool wide = l->m <= l->n;
    int64_t k = nb_min_i64(l->m, l->n), terms = nb_max_i64(l->m, l->n);
    blasint ld = (blasint)l->n;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < k; i += ROWS) {
        int64_t end = nb_min_i64(i + ROWS, k);
        const double *part = wide ? x + i * l->n : x + i;
        cblas_dgemm(CblasRowMajor, wide ? CblasNoTrans : CblasTrans,
                    wide ? CblasTrans : CblasNoTrans, (blasint)(end - i), (blasint)end,
                    (blasint)terms, 1, part, ld, x, ld, 0, g + i * k, (blasint)k);
    }
}

/* v [rank, k]: eigenvectors of the `rank` largest eigenvalues of g, largest last; g is spent.
 * LAPACK counts columns first: its upper triangle is our lower one, its columns our rows. */
static bool find_vectors(double *g, int64_t k, int64_t rank, double *v)
{
    lapack_int n = (lapack_int)k, found = 0;
    double *values = malloc((size_t)k * sizeof *values);
    lapack_int *support = malloc(2 * (size_t)rank * sizeof *support);
    bool ok = values && support &&
              LAPACKE_dsyevr(LAPACK_COL_MAJOR, 'V', 'I', 'U', n, g, n, 0, 0,
                             (lapack_int)(k - rank + 1), n, 0, &found, values, v, n, support) == 0;
    free(values);
    free(support);
    return ok && found == rank;
}

/* other [rank, terms] = v x or v x^T */
static void project(const nb_lowrank *l, const double *x, const double *v, double *other)
{
    bool wide = l->m <= l->n;
    int64_t k = nb_min_i64(l->m, l->n), terms = nb_max_i64(l->m, l->n);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, wide ? CblasNoTrans : CblasTrans, (blasint)l->rank,
                (blasint)terms, (blasint)k, 1, v, (blasint)k, x, (blasint)l->n, 0, other,
                (blasint)terms);
}

static double norm(const double *v, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += v[i] * v[i];
    return sqrt(sum);
}

static void scale(double *v, int64_t n, double by)
{
    for (int64_t i = 0; i < n; i++) v[i] *= by;
}

static bool must_turn(const double *a, int64_t n)
{
    int64_t largest = 0;
    for (int64_t i = 1; i < n; i++) {
        if (fabs(a[i]) > fabs(a[largest])) largest = i;
    }
    return a[largest] < 0;
}

/* Largest value first: rows k and rank - 1 - k change places. */
static void reverse_rows(double *v, int64_t rank, int64_t n)
{
    for (int64_t lo = 0, hi = rank - 1; lo < hi; lo++, hi--) {
        for (int64_t i = 0; i < n; i++) {
            double t = v[lo * n + i];
            v[lo * n + i] = v[hi * n + i];
            v[hi * n + i] = t;
        }
    }
}

/* From v and v x to factors of equal weight. */
static void balance(nb_lowrank *l)
{
    bool wide = l->m <= l->n;
    l->taken = 0;
    for (int64_t r = 0; r < l->rank; r++) {
        double *a = l->a + r * l->m, *b = l->b + r * l->n;
        double s = wide ? norm(b, l->n) : norm(a, l->m);
        double turn = must_turn(a, l->m) ? -1 : 1;
        double unit = sqrt(s), rest = s > 0 ? 1 / unit : 0; /* of the vector of length 1, of s */
        scale(a, l->m, turn * (wide ? unit : rest));
        scale(b, l->n, turn * (wide ? rest : unit));
        l->taken += s * s;
    }
}

nb_status nb_lowrank_find(nb_lowrank *l, const char *what, const double *x, int threads,
                          nb_error *err)
{
    bool wide = l->m <= l->n;
    int64_t k = nb_min_i64(l->m, l->n);
    double *v = wide ? l->a : l->b, *other = wide ? l->b : l->a;
    size_t count;
    if (!nb_mul_size((size_t)k, (size_t)k, &count) || count > SIZE_MAX / sizeof *x ||
        nb_max_i64(l->m, l->n) > INT32_MAX) {
        return nb_fail_memory(err, what, SIZE_MAX);
    }
    double *g = malloc(count * sizeof *g);
    if (!g) return nb_fail_memory(err, what, count * sizeof *g);
    int blas_threads = openblas_get_num_threads();
    openblas_set_num_threads(1);
    make_gram(l, x, threads, g);
    bool ok = find_vectors(g, k, l->rank, v);
    free(g);
    if (ok) {
        reverse_rows(v, l->rank, k);
        project(l, x, v, other);
        balance(l);
    }
    openblas_set_num_threads(blas_threads);
    return ok ? NB_OK
              : nb_fail(err, NB_ENUMERIC, "%s: singular vectors of the error were not found", what);
}
