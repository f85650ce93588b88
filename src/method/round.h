/* What the round steps share. */
#ifndef NB_METHOD_ROUND_H
#define NB_METHOD_ROUND_H

#include "method/method.h"

/* Codes [n_in] and parameters [groups] of a row into the job's planes. */
void nb_round_pack(const nb_job *job, const nb_plane_spec *spec, int64_t row, const uint8_t *codes,
                   const nb_qparam *p);

/* The step "nearest", which the others fall back on. */
nb_status nb_round_nearest(nb_job *job, nb_error *err);

#endif
