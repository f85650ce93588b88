/* Learnable weight clipping (OmniQuant section 3.2): two logits per group of every weight. */
#ifndef NB_METHOD_LWC_H
#define NB_METHOD_LWC_H

#include "method/method.h"

#define NB_LWC_START 4.0f   /* of the reference: sigmoid(4) = 0.982 */
#define NB_LWC_OPEN  100.0f /* a ratio of 1 */

/* Everything lives on the device; one buffer holds the logits of all linears. */
typedef struct nb_lwc {
    nb_backend *be;
    nb_view logits, grad, m, v, best; /* [1, n] */
    /* Parts of logits and grad, [n_out, groups]; buf NULL where the weight is not quantized. */
    nb_view hi[NB_N_ROLES], lo[NB_N_ROLES], dhi[NB_N_ROLES], dlo[NB_N_ROLES];
} nb_lwc;

nb_status nb_lwc_create(nb_lwc *lwc, const nb_block_job *job, nb_error *err);
void nb_lwc_free(nb_lwc *lwc);
/* All logits at a value, the optimizer fresh. */
nb_status nb_lwc_reset(nb_lwc *lwc, float logit, nb_error *err);
/* Keeps the logits in `best`; and back to them, the optimizer fresh. */
void nb_lwc_save(nb_lwc *lwc);
nb_status nb_lwc_restore(nb_lwc *lwc, nb_error *err);
/* The job's clip ratios, as the fake quantization of training computes them. */
nb_status nb_lwc_finish(const nb_lwc *lwc, nb_block_job *job, nb_error *err);

#endif
