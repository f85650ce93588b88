/* What steps on a whole block edit, and what must hold of it after each of them. */
#include "method/method.h"

#include <math.h>
#include <stdint.h>

float *nb_block_weight(const nb_block_job *job, nb_role role)
{
    const nb_host_linear *l = &job->block->linear[role];
    return l->name ? (float *)(uintptr_t)l->w.plane[0] : NULL;
}
