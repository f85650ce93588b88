/* Least, greatest and mean absolute value of each channel of the inputs of one block's linears,
 * over all calibration tokens: what steps with NB_NEED_RANGE read. */
#ifndef NB_CALIB_RANGE_H
#define NB_CALIB_RANGE_H

#include "method/method.h"

typedef struct nb_ranges nb_ranges;

/* seqlen: the most rows that are shown at once. */
nb_status nb_ranges_create(nb_ranges **out, nb_backend *be, const nb_host_block *block, int seqlen,
                           nb_error *err);
void nb_ranges_free(nb_ranges *r);

/* An nb_observe_fn; user: the nb_ranges. */
void nb_ranges_observe(void *user, nb_role role, nb_view x);

/* Fills all of *out but the Hessian; valid as long as the ranges are and nothing more is shown. */
void nb_ranges_take(nb_ranges *r, nb_role role, nb_input_stats *out);

/* Bytes that they take. */
int64_t nb_ranges_bytes(const nb_config *cfg, int seqlen);

#endif
