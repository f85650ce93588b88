/* GPTQ's parts: the factor that the updates come from, and the loop over the columns. */
#ifndef NB_METHOD_GPTQ_H
#define NB_METHOD_GPTQ_H

#include "base/hash.h"
#include "method/method.h"

typedef struct nb_gptq_factor {
    int64_t n;
    float *ut;      /* [n, n] U transposed, (H + lambda I)^-1 = U^T U: lower triangular, 0 above */
    int64_t *order; /* [n]: column of the weight that stands at place k */
    int64_t n_dead; /* inputs that were 0 throughout the calibration text */
    int n_tries;    /* how often the damping had to grow tenfold */
    bool failed;    /* the matrix stayed singular: ut is NULL */
} nb_gptq_factor;

/* h [n, n]: its upper triangle. damp: share of the mean diagonal that is added to the diagonal.
 * by_size: columns in the order of falling h_jj, the lower index first on a tie. The same bytes for
 * any number of threads. NB_ENUMERIC: h is not finite. `what` is for messages. */
nb_status nb_gptq_factor_create(nb_gptq_factor *out, const char *what, const float *h, int64_t n,
                                double damp, bool by_size, int threads, nb_error *err);
void nb_gptq_factor_free(nb_gptq_factor *f);

/* The last factor made, for linears that share their input (q, k, v; gate, up). It is known by the
 * checksum of its matrix, so that the caller may reuse the memory of one. All zero: empty. */
struct nb_gptq_cache {
    nb_gptq_factor factor;
    char hash[NB_HASH_CHARS];
    double damp;
    bool by_size;
};

/* *out belongs to the cache: valid until the next call. */
nb_status nb_gptq_cache_get(nb_gptq_cache *c, const nb_gptq_factor **out, const nb_job *job,
                            double damp, bool by_size, nb_error *err);

typedef struct nb_gptq_round {
    const nb_job *job;
    const nb_gptq_factor *factor;
    int64_t block;  /* columns */
    bool fit_first; /* parameters of all groups, from the weights before the first update */
    bool stale;     /* fit_first false: of the groups that begin in a block, before that block */
    bool dead_zero; /* weights of dead inputs become 0 */

    double loss;     /* results: sum of err^2 over all weights, */
    int64_t clipped; /* and weights beyond the ends of their group's range */
} nb_gptq_round;

nb_status nb_gptq_round_rows(nb_gptq_round *r, nb_error *err);

#endif
