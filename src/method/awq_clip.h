/* The search of the step "awq_clip", as a start for steps that train on the block. */
#ifndef NB_METHOD_AWQ_CLIP_H
#define NB_METHOD_AWQ_CLIP_H

#include "method/method.h"

/* The job's clip ratios of every linear, found with the statistics of the source's states
 * (NB_NEED_HESSIAN). */
nb_status nb_awq_clip_block(nb_block_job *job, nb_error *err);

#endif
