/* The steps of a recipe that work on a whole block, before its linears are rounded. */
#ifndef NB_CALIB_BLOCK_STEPS_H
#define NB_CALIB_BLOCK_STEPS_H

#include "calib/flow.h"

/* What they leave beside the edited block. */
typedef struct nb_block_result {
    float *clip_lo[NB_N_ROLES], *clip_hi[NB_N_ROLES]; /* nb_block_job's; NULL: all 1 */
    float *offset[NB_N_ROLES];                        /* likewise; NULL: all 0 */
    json_t *report; /* object by step, or NULL: nothing to say; owned by the caller */
} nb_block_result;

/* Turns the weights of `block` into fp32 copies in the arena and runs the steps on them; does
 * nothing without such steps. flow: at this block; NULL without calibration text. training: of the
 * job.
 */
nb_status nb_block_steps_run(const nb_recipe *recipe, const nb_config *cfg, nb_backend *be,
                             nb_flow *flow, nb_arena *arena, nb_host_block *block,
                             const nb_training *training, nb_flow_tick tick, void *user,
                             nb_block_result *out, nb_error *err);

/* Bytes of the copies and of what the steps keep beside them, without hidden states; weights: of a
 * block. */
int64_t nb_block_steps_bytes(const nb_recipe *recipe, const nb_config *cfg, int64_t weights);

#endif
