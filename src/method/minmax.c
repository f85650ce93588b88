/* Clip: none. Every group keeps its whole range. */
#include "method/method.h"

static nb_status run_minmax(nb_job *job, nb_error *err)
{
    NB_UNUSED(err);
    int64_t n = job->n_out * nb_format_groups(job->format, job->n_in);
    for (int64_t i = 0; i < n; i++) job->clip_lo[i] = job->clip_hi[i] = 1;
    return NB_OK;
}

const nb_method nb_method_minmax = {
    .name = "minmax",
    .kind = NB_STEP_CLIP,
    .source = "round-to-nearest over the whole range (OmniQuant eq. 2 with both ratios 1)",
    .run = run_minmax,
};
