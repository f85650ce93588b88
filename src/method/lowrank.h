/* The best approximation of a matrix by one of low rank. */
#ifndef NB_METHOD_LOWRANK_H
#define NB_METHOD_LOWRANK_H

#include "base/status.h"

/* x [m, n] ~ a^T b with a [rank, m] and b [rank, n], rank <= m, n: the first singular triplets of
 * x = P S Q^T, falling, as rows sqrt(s) p and sqrt(s) q. The entry of a row of a that is largest in
 * magnitude (the first of them) is positive. *taken: the sum of s^2. The same bytes for any number
 * of threads. NB_ENUMERIC: the iteration failed. `what` is for messages. */
typedef struct nb_lowrank {
    int64_t m, n, rank;
    double *a, *b; /* the caller's */
    double taken;
} nb_lowrank;
nb_status nb_lowrank_find(nb_lowrank *l, const char *what, const double *x, int threads,
                          nb_error *err);

#endif
