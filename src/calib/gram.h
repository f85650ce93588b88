/* X^T X of the inputs of one block's linears, summed over the calibration windows: what steps with
 * NB_NEED_HESSIAN read. One matrix serves the linears that share an input and its format (q, k, v;
 * gate, up).
 *
 * Every token counts alike: its x is scaled to a mean square of 1, so that what is minimised is
 * each token's relative error. As they are, tokens differ too much for one sum: where attention
 * parks on the first token, its input of one down projection has 10^5 times the energy of the
 * others, that of the next q, k, v a tenth, and both decide what the whole text sees. */
#ifndef NB_CALIB_GRAM_H
#define NB_CALIB_GRAM_H

#include "model/model.h"

typedef struct nb_grams nb_grams;

/* Zeros for the inputs of those linears of the block that are in `roles` (bits 1 << nb_role), which
 * come through the linears' own formats; raw: tokens as they are. */
nb_status nb_grams_create(nb_grams **out, nb_backend *be, const nb_host_block *block,
                          unsigned roles, bool raw, nb_error *err);
void nb_grams_free(nb_grams *g);

/* An nb_observe_fn; user: the nb_grams. One call per window and input. */
void nb_grams_observe(void *user, nb_role role, nb_view x);

/* *hessian [n_in, n_in] = 2/n X^T X (upper triangle) of the input of `role`, n windows seen, and
 * its diagonal [n_in]. Valid until the next call. */
nb_status nb_grams_take(nb_grams *g, nb_role role, const float **hessian, const float **diagonal,
                        nb_error *err);

/* Bytes on the device and on the host that a block takes whose inputs each have one format. */
int64_t nb_grams_bytes(const nb_config *cfg);

#define NB_ALL_ROLES ((1u << NB_N_ROLES) - 1)

#endif
