/* Learnable weight clipping (OmniQuant section 3.2): two logits per group of every weight. */
#ifndef NB_METHOD_LWC_H
#define NB_METHOD_LWC_H

#include "method/method.h"

/* Where the ratios start. */
typedef enum nb_lwc_start {
    NB_LWC_PAPER, /* of the reference: sigmoid(4) = 0.982 */
    NB_LWC_OPEN,  /* 1 */
    NB_LWC_JOB,   /* those of the job, as a search has left them */
} nb_lwc_start;

/* Everything lives on the device; one buffer holds the logits of all linears. */
typedef struct nb_lwc {
    nb_backend *be;
    bool plain;                       /* the ratios themselves stand in place of their logits */
    nb_view logits, grad, m, v, best; /* [1, n] */
    /* Parts of logits and grad, [n_out, groups]; buf NULL where the weight is not quantized. */
    nb_view hi[NB_N_ROLES], lo[NB_N_ROLES], dhi[NB_N_ROLES], dlo[NB_N_ROLES];
} nb_lwc;

nb_status nb_lwc_create(nb_lwc *lwc, const nb_block_job *job, bool plain, nb_error *err);
void nb_lwc_free(nb_lwc *lwc);
/* All logits at their start, the optimizer fresh. A ratio of the job has no logit where it is 1: it
 * starts at the paper's at most. */
nb_status nb_lwc_reset(nb_lwc *lwc, const nb_block_job *job, nb_lwc_start start, nb_error *err);
/* Keeps the logits in `best`; and back to them, the optimizer fresh. */
void nb_lwc_save(nb_lwc *lwc);
nb_status nb_lwc_restore(nb_lwc *lwc, const nb_block_job *job, nb_error *err);
/* The job's clip ratios, as the fake quantization of training computes them. */
nb_status nb_lwc_finish(const nb_lwc *lwc, nb_block_job *job, nb_error *err);

#endif
