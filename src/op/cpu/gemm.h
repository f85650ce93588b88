/* Single-threaded matrix products by oneDNN: the only place that knows its API (2.6 to 3.x).
 *
 * A product is described once and cached; running it takes no lock, so that many threads may run
 * the same one on different tiles. oneDNN is kept to the calling thread: whoever calls nb_gemm_run
 * inside a parallel region has set its own number of threads to 1 (omp_set_num_threads). */
#ifndef NB_OP_CPU_GEMM_H
#define NB_OP_CPU_GEMM_H

#include "base/status.h"

typedef struct nb_gemm nb_gemm;       /* engine and cache; one user at a time */
typedef struct nb_gemm_op nb_gemm_op; /* one product, ready to run */

/* c [m, n] = a b + (add ? c : 0); c is fp32, a and b are fp32 or both bf16.
 * a is [m, k], or [k, m] if a_cols ("x^T x"); b is [k, n], or [n, k] if b_rows ("x w^T").
 * ld*: elements from row to row. */
typedef struct nb_gemm_desc {
    int64_t m, n, k, lda, ldb, ldc;
    int64_t bf16, a_cols, b_rows,
        add; /* booleans; one type, so that descriptions compare as bytes */
} nb_gemm_desc;

nb_status nb_gemm_create(nb_gemm **out, nb_error *err);
void nb_gemm_free(nb_gemm *g);

/* *out stays valid until nb_gemm_trim or nb_gemm_free. */
nb_status nb_gemm_get(nb_gemm *g, const nb_gemm_desc *d, const nb_gemm_op **out, nb_error *err);
/* Empties a cache that has grown large: to be called where no product is in use. */
void nb_gemm_trim(nb_gemm *g);

size_t nb_gemm_scratch(const nb_gemm_op *op); /* bytes, per running thread */
/* scratch: 64-byte aligned. False if oneDNN failed. */
bool nb_gemm_run(const nb_gemm_op *op, const void *a, const void *b, float *c, void *scratch);

#endif
