/* Upper U with (H + lambda I)^-1 = U^T U, in double.
 *
 * The inverse itself is never formed: with J the exchange of the order of indices and J H J = L L^T
 * the Cholesky factor, H = R R^T for the upper triangular R = J L J, so U = R^-1 = J L^-1 J
 * (ZeroQuant-FP, section 6.6 of its specification; the reference takes Cholesky, inverse and
 * Cholesky again). LAPACK counts columns first: its upper factor of a row-major matrix is our L. */
#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>

#include "base/size.h"
#include "method/gptq.h"

enum { MAX_TRIES = 3 }; /* tenfold damping after the first failure */

typedef struct column {
    float h; /* diagonal */
    int64_t index;
} column;

static int compare_columns(const void *a, const void *b)
{
    const column *x = a, *y = b;
    if (x->h != y->h) return x->h < y->h ? 1 : -1;
    return x->index < y->index ? -1 : 1;
}

static nb_status make_order(nb_gptq_factor *f, const float *h, bool by_size, nb_error *err)
{
    column *c = malloc((size_t)f->n * sizeof *c);
    if (!c) return nb_fail_memory(err, "order of columns", (size_t)f->n * sizeof *c);
    for (int64_t i = 0; i < f->n; i++) c[i] = (column){h[i * f->n + i], i};
    if (by_size) qsort(c, (size_t)f->n, sizeof *c, compare_columns);
    for (int64_t i = 0; i < f->n; i++) f->order[i] = c[i].index;
    free(c);
    return NB_OK;
}

static bool is_finite(const float *h, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i; j < n; j++) {
            if (!isfinite(h[i * n + j])) return false;
        }
    }
    return true;
}

/* Diagonal entry as it is used: an input that was always 0 counts as 1, tied to no other. */
static double diagonal(const float *h, int64_t n, int64_t i)
{
    float x = h[i * n + i];
    return x == 0 ? 1 : (double)x;
}

/* a = J P H P^T J + lambda I, lower triangle row by row; P: the order. */
static void fill(double *a, const nb_gptq_factor *f, const float *h, double lambda)
{
    int64_t n = f->n;
    for (int64_t i = 0; i < n; i++) {
        int64_t r = f->order[n - 1 - i];
        for (int64_t j = 0; j < i; j++) {
            int64_t c = f->order[n - 1 - j];
            a[i * n + j] = (double)h[nb_min_i64(r, c) * n + nb_max_i64(r, c)];
        }
        a[i * n + i] = diagonal(h, n, r) + lambda;
    }
}

/* a becomes L^-1; false: not positive definite, in double. */
static bool invert(double *a, int64_t n)
{
    lapack_int m = (lapack_int)n;
    if (LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', m, a, m) != 0) return false;
    return LAPACKE_dtrtri_work(LAPACK_COL_MAJOR, 'U', 'N', m, a, m) == 0;
}

/* f->u = J a J; false if a value does not fit. */
static bool take(nb_gptq_factor *f, const double *a)
{
    int64_t n = f->n;
    bool fits = true;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < i; j++) f->u[i * n + j] = 0;
        for (int64_t j = i; j < n; j++) {
            f->u[i * n + j] = (float)a[(n - 1 - i) * n + n - 1 - j];
            fits = fits && isfinite(f->u[i * n + j]);
        }
        fits = fits && f->u[i * n + i] > 0;
    }
    return fits;
}

static bool try_dampings(nb_gptq_factor *f, const float *h, double damp, double *a)
{
    double mean = 0;
    for (int64_t i = 0; i < f->n; i++) mean += diagonal(h, f->n, i) / (double)f->n;
    /* OpenBLAS cuts its work by its own number of threads, and rounds by the cut: with one thread
     * the factor depends on H alone. */
    int threads = openblas_get_num_threads();
    bool found = false;
    openblas_set_num_threads(1);
    for (;; f->n_tries++, damp *= 10) {
        fill(a, f, h, damp * mean);
        found = invert(a, f->n) && take(f, a);
        if (found || f->n_tries == MAX_TRIES) break;
    }
    openblas_set_num_threads(threads);
    return found;
}

nb_status nb_gptq_factor_create(nb_gptq_factor *out, const char *what, const float *h, int64_t n,
                                double damp, bool by_size, nb_error *err)
{
    *out = (nb_gptq_factor){.n = n};
    size_t count;
    if (n > INT32_MAX || !nb_mul_size((size_t)n, (size_t)n, &count) || count > SIZE_MAX / 8) {
        return nb_fail_memory(err, what, SIZE_MAX);
    }
    if (!is_finite(h, n)) {
        return nb_fail(err, NB_ENUMERIC,
                       "%s: statistics of its input on the calibration text are not finite", what);
    }
    for (int64_t i = 0; i < n; i++) out->n_dead += h[i * n + i] == 0;
    double *a = malloc(count * sizeof *a);
    out->u = malloc(count * sizeof *out->u);
    out->order = malloc((size_t)n * sizeof *out->order);
    nb_status st = a && out->u && out->order ? make_order(out, h, by_size, err)
                                             : nb_fail_memory(err, what, count * sizeof *a);
    if (st == NB_OK && !try_dampings(out, h, damp, a)) {
        out->failed = true;
        free(out->u);
        out->u = NULL;
    }
    free(a);
    if (st != NB_OK) nb_gptq_factor_free(out);
    return st;
}

void nb_gptq_factor_free(nb_gptq_factor *f)
{
    free(f->u);
    free(f->order);
    *f = (nb_gptq_factor){0};
}
