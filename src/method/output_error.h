/* What an error of weights does to a linear's output, by the second moments of its input. */
#ifndef NB_METHOD_OUTPUT_ERROR_H
#define NB_METHOD_OUTPUT_ERROR_H

#include <stdint.h>

/* Rows that are worth one product: callers cut their rows into pieces of it, from the first on, so
 * that sums do not depend on threads. OpenBLAS must be at one thread. */
enum { NB_ERROR_ROWS = 64 };

/* error[r] = e_r H e_r^T for the rows of e [rows, n]. h: H's upper triangle, rows `ld` apart.
 * scratch [rows, n]. */
void nb_output_error(double *error, const float *e, int64_t rows, int64_t n, const float *h,
                     int64_t ld, float *scratch);

#endif
