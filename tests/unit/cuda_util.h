/* Tests of the CUDA backend run where it can: elsewhere they leave it out. */
#ifndef NB_TESTS_CUDA_UTIL_H
#define NB_TESTS_CUDA_UTIL_H

#include "op/op.h"

/* A GPU, and the plug-in for it, are there. */
static inline bool has_cuda(void)
{
    nb_options opt = {.device = "cuda", .threads = 1, .cpumask = ~0u};
    nb_backend *be;
    nb_status st = nb_backend_create(&be, &opt, NULL);
    nb_backend_free(be);
    return st == NB_OK;
}

#endif
