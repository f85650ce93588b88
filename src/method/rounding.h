/* Learned rounding (AutoRound, arXiv 2309.05516): an offset in [-1/2, 1/2] for every weight, in
 * steps of its group, added before it is rounded. */
#ifndef NB_METHOD_ROUNDING_H
#define NB_METHOD_ROUNDING_H

#include "method/method.h"

/* Everything lives on the device. buf NULL: no such linear, or one that is not quantized. */
typedef struct nb_rounding {
    nb_backend *be;
    nb_view v[NB_N_ROLES], dv[NB_N_ROLES], best[NB_N_ROLES]; /* [n_out, n_in] */
} nb_rounding;

nb_status nb_rounding_create(nb_rounding *r, const nb_block_job *job, nb_error *err);
void nb_rounding_free(nb_rounding *r);
/* From the job's offsets, and to them. */
nb_status nb_rounding_reset(nb_rounding *r, const nb_block_job *job, nb_error *err);
nb_status nb_rounding_finish(const nb_rounding *r, nb_block_job *job, nb_error *err);
/* Keeps the offsets in `best`; and back to them. */
void nb_rounding_save(nb_rounding *r);
void nb_rounding_restore(nb_rounding *r);
/* dv = dw, the gradient of a weight as it is stored, or += of further windows. */
void nb_rounding_receive(nb_rounding *r, nb_role role, nb_view dw, bool first);
/* One step of sign descent. */
void nb_rounding_update(nb_rounding *r, double rate);

#endif
