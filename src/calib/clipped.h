/* How many weights lie beyond what their group's codes can say. */
#ifndef NB_CALIB_CLIPPED_H
#define NB_CALIB_CLIPPED_H

#include "format/format.h"

/* Adds to *count, of rows [row0, row0 + n) of a quantized matrix made of w [n, n_in], the weights
 * that lie more than half a step beyond the outermost value of their group: on a longer grid they
 * would have had another code. */
nb_status nb_clipped_add(const nb_matrix *m, const float *w, int64_t row0, int64_t n, int threads,
                         int64_t *count, nb_error *err);

#endif
