/* The factors of LoRC before they are stored. */
#ifndef NB_METHOD_LORC_H
#define NB_METHOD_LORC_H

#include "method/lowrank.h"
#include "method/method.h"

typedef struct nb_lorc_factors {
    nb_lowrank low; /* a [rank, n_out], b [rank, n_in]: A transposed, and B                     */
    double before;  /* squared error of the rounded weight, weighted as the singular values are */
    bool weighted;
} nb_lorc_factors;

/* Of a job whose planes are filled, with the options of a "lorc" step and job->lorc.rank. */
nb_status nb_lorc_factors_find(nb_lorc_factors *out, const nb_job *job, nb_error *err);
void nb_lorc_factors_free(nb_lorc_factors *f);

#endif
