/* The state of a training as a file, written at the end of an epoch: a run that is killed goes on
 * behind it and gives the same bytes. */
#ifndef NB_METHOD_TRAINER_STATE_H
#define NB_METHOD_TRAINER_STATE_H

#include "method/trainer.h"

/* Where a training stands beside its trainer. */
typedef struct nb_train_mark {
    int level, epoch, faults; /* of the step's own ladder; epochs done; steps that were dropped */
    double best;              /* least loss of an epoch */
} nb_train_mark;

/* Replaces the file of this step (job->training) with what the trainer and `at` hold, and
 * the report so far; does nothing where the job has no place for it. */
nb_status nb_trainer_keep(const nb_trainer *t, const char *step, const nb_train_mark *at,
                          const json_t *report, nb_error *err);

/* What was kept of this step and block, back into the trainer, *at and, key by key, the report.
 * *found false: nothing was. NB_EVERIFY: the file is not what was written, NB_EUSAGE: it is of
 * another run. */
nb_status nb_trainer_recall(nb_trainer *t, const char *step, nb_train_mark *at, json_t *report,
                            bool *found, nb_error *err);

#endif
