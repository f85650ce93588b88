/* The factor that GPTQ's updates come from. */
#ifndef NB_METHOD_GPTQ_H
#define NB_METHOD_GPTQ_H

#include "base/status.h"

typedef struct nb_gptq_factor {
    int64_t n;
    float *u;       /* [n, n] upper triangular: inverse of the damped Hessian = U^T U; 0 below */
    int64_t *order; /* [n]: column of the weight that stands at place k */
    int64_t n_dead; /* inputs that were 0 throughout the calibration text */
    int n_tries;    /* how often the damping had to grow tenfold */
    bool failed;    /* the matrix stayed singular: u is NULL */
} nb_gptq_factor;

/* h [n, n]: its upper triangle. damp: share of the mean diagonal that is added to the diagonal.
 * by_size: columns in the order of falling h_jj, the lower index first on a tie. NB_ENUMERIC: h is
 * not finite. `what` is for messages. */
nb_status nb_gptq_factor_create(nb_gptq_factor *out, const char *what, const float *h, int64_t n,
                                double damp, bool by_size, nb_error *err);
void nb_gptq_factor_free(nb_gptq_factor *f);

#endif
