/* One block under training: parameters on both sides, a step, an epoch, the loss of a state. */
#ifndef NB_METHOD_TRAINER_H
#define NB_METHOD_TRAINER_H

#include "method/let.h"
#include "method/lwc.h"
#include "method/rounding.h"
#include "model/block_train.h"

/* Vectors between host and device: [1, n] each. */
typedef struct nb_trainer_moves {
    double *host[3 * NB_N_ROLES + 2 * NB_N_NORMS];
    nb_view view[3 * NB_N_ROLES + 2 * NB_N_NORMS];
    int n;
} nb_trainer_moves;

typedef struct nb_trainer {
    nb_block_job *job;
    int batch;   /* windows of a step */
    int at_once; /* windows of a pass: fewer only where gradients of weights are added up */
    bool unit_tokens, zero_point;
    bool train_lwc, train_let;
    double lwc_rate, let_rate;
    int64_t step;  /* of the optimizer since it was fresh */
    int64_t total; /* steps taken in all */

    nb_lwc lwc;
    nb_rounding rounding; /* where it is learned: then LET is off, and LWC has plain ratios */
    bool adding;          /* the pass at hand is not the step's first */
    nb_let let;
    double *let_start, *let_best; /* [let.n] */
    nb_block_train *block;
    nb_train_params params;
    nb_train_grads grads;
    nb_view weight[NB_N_ROLES];               /* [n_out, n_in] of the source */
    nb_view row[NB_N_ROLES], col[NB_N_ROLES]; /* [1, n_out], [1, n_in]; buf NULL: ones */
    nb_view dcol[NB_N_ROLES];                 /* [1, n_in], likewise */
    nb_trainer_moves up, down;                /* what the parameters make; gradients of that */
    nb_states *own; /* the source block's output on x_stored (aug), or NULL */
    nb_view dy;     /* [batch * seqlen, C] */
    float *check;   /* [lwc logits] host copy of their gradient */
    nb_buffer *buf[8 * NB_N_ROLES + 4 * NB_N_NORMS + 8];
    int n_bufs;

    char fault[96]; /* of a step that was not finite: what and where */
} nb_trainer;

typedef struct nb_trainer_options {
    const char *step; /* its name, for messages */
    bool lwc, let, aug;
    bool rounding;    /* learn it: passes are added up to a step of `batch` windows */
    int batch;        /* 0: the job's */
    bool unit_tokens; /* errors relative to the mean square of the target's token */
    bool zero_point;  /* gradients of clips flow through it, too (format/ste.h) */
    double lwc_rate, let_rate;
    nb_let_options start;
} nb_trainer_options;

nb_status nb_trainer_create(nb_trainer *t, nb_block_job *job, const nb_trainer_options *opt,
                            nb_error *err);
void nb_trainer_free(nb_trainer *t);

/* Parameters at their start; LET at its start or, `plain`, the identity. */
nb_status nb_trainer_reset(nb_trainer *t, nb_lwc_start clips, bool plain, nb_error *err);
/* The state that is kept, and back to it. */
void nb_trainer_save(nb_trainer *t);
nb_status nb_trainer_restore(nb_trainer *t, nb_error *err);

/* Mean loss over the calibration windows. Infinite or NaN is no error. */
nb_status nb_trainer_loss(nb_trainer *t, double *loss, nb_error *err);
/* Loss and gradients (let.grad, lwc.grad, rounding.dv) at n windows from w0; *finite false:
 * t->fault says what is not. */
nb_status nb_trainer_gradient(nb_trainer *t, int w0, int n, double *loss, bool *finite,
                              nb_error *err);
/* The job's tick, once for each of n windows. */
nb_status nb_trainer_tick(const nb_block_job *job, int n);
/* One step per batch in stored order; *loss: mean over them, each before its step. A step that is
 * not finite ends the epoch before anything is updated: *finite false, t->fault says what. */
nb_status nb_trainer_epoch(nb_trainer *t, double *loss, bool *finite, nb_error *err);

#endif
