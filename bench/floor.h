/* What the machine can do: the rate that oneDNN reaches on one large product per thread. */
#ifndef NB_BENCH_FLOOR_H
#define NB_BENCH_FLOOR_H

#include <omp.h>
#include <stdlib.h>

#include "base/clock.h"
#include "op/cpu/gemm.h"

/* GFLOP/s of all threads together, each with its own product of 1024 x 1024 x 1024. */
static inline double nb_gemm_floor(int threads, bool bf16)
{
    enum { N = 1024 };
    nb_gemm *g;
    const nb_gemm_op *op;
    nb_gemm_desc d = {.m = N, .n = N, .k = N, .lda = N, .ldb = N, .ldc = N, .bf16 = bf16};
    if (nb_gemm_create(&g, NULL) != NB_OK || nb_gemm_get(g, &d, &op, NULL) != NB_OK) return 0;
    double best = 0;
#pragma omp parallel num_threads(threads)
    {
        omp_set_num_threads(1);
        float *x = calloc((size_t)3 * N * N, sizeof *x);
        void *scratch = aligned_alloc(64, nb_gemm_scratch(op) / 64 * 64 + 64);
        if (!x || !scratch) abort();
        for (int i = 0; i < 8; i++) {
#pragma omp barrier
            double t0 = nb_now();
            for (int j = 0; j < 4; j++) nb_gemm_run(op, x, x + N * N, x + 2 * N * N, scratch);
#pragma omp barrier
            double rate = 4 * 2.0 * N * N * N * threads / (nb_now() - t0) * 1e-9;
#pragma omp critical
            best = rate > best ? rate : best;
        }
        free(x);
        free(scratch);
    }
    nb_gemm_free(g);
    return best;
}

#endif
