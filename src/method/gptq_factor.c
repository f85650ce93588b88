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
#include <string.h>

#include "base/size.h"
#include "method/gptq.h"

enum { MAX_TRIES = 3 }; /* tenfold damping after the first failure */
enum { TILE = 128 };    /* rows and columns: the product's full rate, and work for many cores */

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
static void fill(double *a, const nb_gptq_factor *f, const float *h, double lambda, int threads)
{
    int64_t n = f->n;
#pragma omp parallel for num_threads(threads) schedule(dynamic, TILE)
    for (int64_t i = 0; i < n; i++) {
        int64_t r = f->order[n - 1 - i];
        for (int64_t j = 0; j < i; j++) {
            int64_t c = f->order[n - 1 - j];
            a[i * n + j] = (double)h[nb_min_i64(r, c) * n + nb_max_i64(r, c)];
        }
        a[i * n + i] = diagonal(h, n, r) + lambda;
    }
}

/* ---- Cholesky and inverse, by tiles --------------------------------------------------------- */

static int64_t tile_length(int64_t n, int64_t at) { return nb_min_i64(TILE, n - at); }

/* Tile (i, j) of a becomes a_ij - a_ik a_jk^T; on the diagonal its lower triangle alone. */
static void subtract_tile(double *a, int64_t n, int64_t i, int64_t j, int64_t k)
{
    blasint m = (blasint)tile_length(n, i), cols = (blasint)tile_length(n, j), ld = (blasint)n;
    const double *x = a + i * n + k, *y = a + j * n + k;
    if (i == j) {
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, m, TILE, -1, x, ld, 1, a + i * n + j,
                    ld);
        return;
    }
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, cols, TILE, -1, x, ld, y, ld, 1,
                a + i * n + j, ld);
}

/* a becomes L; false: not positive definite, in double. */
static bool factorize(double *a, int64_t n, int threads)
{
    int64_t tiles = (n + TILE - 1) / TILE;
    for (int64_t k = 0; k < tiles; k++) {
        int64_t at = k * TILE, left = tiles - k - 1;
        lapack_int m = (lapack_int)tile_length(n, at), ld = (lapack_int)n;
        double *d = a + at * n + at;
        if (LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', m, d, ld) != 0) return false;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (int64_t i = k + 1; i < tiles; i++) {
            cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit,
                        (blasint)tile_length(n, i * TILE), m, 1, d, ld, a + i * TILE * n + at, ld);
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (int64_t t = 0; t < left * left; t++) {
            int64_t i = k + 1 + t / left, j = k + 1 + t % left;
            if (j <= i) subtract_tile(a, n, i * TILE, j * TILE, at);
        }
    }
    return true;
}

/* Rows [at, at + m) of the inverse X are done, and the rows below take their part of the sums:
 * X_ij -= L_ik X_kj for j < k, and L_ik gives way to -L_ik X_kk. */
static void spread(double *a, int64_t n, int64_t at, int threads)
{
    blasint m = (blasint)tile_length(n, at), ld = (blasint)n;
    int64_t k = at / TILE, left = (n + TILE - 1) / TILE - k - 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t t = 0; t < left * k; t++) {
        int64_t i = (k + 1 + t / k) * TILE, j = t % k * TILE;
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)tile_length(n, i), TILE, m,
                    -1, a + i * n + at, ld, a + at * n + j, ld, 1, a + i * n + j, ld);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = k + 1; i <= k + left; i++) {
        cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit,
                    (blasint)tile_length(n, i * TILE), m, -1, a + at * n + at, ld,
                    a + i * TILE * n + at, ld);
    }
}

/* L becomes its inverse; false: a diagonal entry is 0. */
static bool invert(double *a, int64_t n, int threads)
{
    for (int64_t at = 0; at < n; at += TILE) {
        lapack_int m = (lapack_int)tile_length(n, at), ld = (lapack_int)n;
        double *d = a + at * n + at;
        if (LAPACKE_dtrtri_work(LAPACK_COL_MAJOR, 'U', 'N', m, d, ld) != 0) return false;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (int64_t j = 0; j < at; j += TILE) {
            cblas_dtrmm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, m, TILE,
                        1, d, ld, a + at * n + j, ld);
        }
        spread(a, n, at, threads);
    }
    return true;
}

/* f->ut = (J a J)^T; false if a value does not fit. */
static bool take(nb_gptq_factor *f, const double *a, int threads)
{
    int64_t n = f->n;
    bool fits = true;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(&& : fits)
    for (int64_t i = 0; i < n; i++) {
        float *row = f->ut + i * n;
        for (int64_t j = 0; j <= i; j++) {
            row[j] = (float)a[(n - 1 - j) * n + n - 1 - i];
            fits = fits && isfinite(row[j]);
        }
        for (int64_t j = i + 1; j < n; j++) row[j] = 0;
        fits = fits && row[i] > 0;
    }
    return fits;
}

static bool try_dampings(nb_gptq_factor *f, const float *h, double damp, double *a, int threads)
{
    double mean = 0;
    for (int64_t i = 0; i < f->n; i++) mean += diagonal(h, f->n, i) / (double)f->n;
    /* OpenBLAS cuts its work by its own number of threads, and rounds by the cut. So it gets one,
     * and the tiles are ours: their sums have one order. */
    int blas_threads = openblas_get_num_threads();
    bool found = false;
    openblas_set_num_threads(1);
    for (;; f->n_tries++, damp *= 10) {
        fill(a, f, h, damp * mean, threads);
        found = factorize(a, f->n, threads) && invert(a, f->n, threads) && take(f, a, threads);
        if (found || f->n_tries == MAX_TRIES) break;
    }
    openblas_set_num_threads(blas_threads);
    return found;
}

nb_status nb_gptq_factor_create(nb_gptq_factor *out, const char *what, const float *h, int64_t n,
                                double damp, bool by_size, int threads, nb_error *err)
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
    out->ut = malloc(count * sizeof *out->ut);
    out->order = malloc((size_t)n * sizeof *out->order);
    nb_status st = a && out->ut && out->order ? make_order(out, h, by_size, err)
                                              : nb_fail_memory(err, what, count * sizeof *a);
    if (st == NB_OK && !try_dampings(out, h, damp, a, threads)) {
        out->failed = true;
        free(out->ut);
        out->ut = NULL;
    }
    free(a);
    if (st != NB_OK) nb_gptq_factor_free(out);
    return st;
}

void nb_gptq_factor_free(nb_gptq_factor *f)
{
    free(f->ut);
    free(f->order);
    *f = (nb_gptq_factor){0};
}

/* ---- the last one made ----------------------------------------------------------------------- */

nb_status nb_gptq_cache_get(nb_gptq_cache *c, const nb_gptq_factor **out, const nb_job *job,
                            double damp, bool by_size, nb_error *err)
{
    int64_t n = job->n_in;
    char hash[NB_HASH_CHARS];
    *out = &c->factor;
    nb_hash(hash, job->hessian, (size_t)n * (size_t)n * sizeof *job->hessian);
    if (c->factor.n == n && c->damp == damp && c->by_size == by_size &&
        memcmp(c->hash, hash, sizeof hash) == 0) {
        return NB_OK;
    }
    nb_gptq_cache_fini(c);
    NB_TRY(nb_gptq_factor_create(&c->factor, job->name, job->hessian, n, damp, by_size,
                                 job->threads, err));
    memcpy(c->hash, hash, sizeof hash);
    c->damp = damp;
    c->by_size = by_size;
    return NB_OK;
}

void nb_gptq_cache_fini(nb_gptq_cache *c)
{
    nb_gptq_factor_free(&c->factor);
    *c = (nb_gptq_cache){0};
}
