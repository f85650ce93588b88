/* What the machine can do: the rate that oneDNN reaches on one large product per thread. */
#ifndef NB_BENCH_FLOOR_H
#define NB_BENCH_FLOOR_H

#include <omp.h>
#include <stdlib.h>

#include "base/clock.h"
#include "op/cpu/gemm.h"

/* GFLOP/s of all threads together, each with its own product of n x n x n; 0: oneDNN failed. */
static inline double nb_gemm_cube(int64_t n, int threads, bool bf16)
{
    nb_gemm *g;
    const nb_gemm_op *op;
    nb_gemm_desc d = {.m = n, .n = n, .k = n, .lda = n, .ldb = n, .ldc = n, .bf16 = bf16};
    if (nb_gemm_create(&g, NULL) != NB_OK || nb_gemm_get(g, &d, &op, NULL) != NB_OK) return 0;
    double flops = 2.0 * (double)n * (double)n * (double)n * threads, best = 0;
#pragma omp parallel num_threads(threads)
    {
        omp_set_num_threads(1);
        float *x = calloc((size_t)(3 * n * n), sizeof *x);
        void *scratch = aligned_alloc(64, nb_gemm_scratch(op) / 64 * 64 + 64);
        if (!x || !scratch) abort();
        for (int i = 0; i < 8; i++) {
#pragma omp barrier
            double t0 = nb_now();
            nb_gemm_run(op, x, x + n * n, x + 2 * n * n, scratch);
#pragma omp barrier
            double rate = flops / (nb_now() - t0) * 1e-9;
#pragma omp critical
            best = rate > best ? rate : best;
        }
        free(x);
        free(scratch);
    }
    nb_gemm_free(g);
    return best;
}

/* The best of three sizes: which one that is differs between machines and types. */
static inline double nb_gemm_floor(int threads, bool bf16)
{
    double best = 0;
    for (int64_t n = 512; n <= 2048; n *= 2) {
        double rate = nb_gemm_cube(n, threads, bf16);
        best = rate > best ? rate : best;
    }
    return best;
}

#endif
