/* Transform: SmoothQuant. Large channels of a linear's input are divided, its columns multiplied,
 * so that both are easy to round:
 *
 *   s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)    max|W_j| over the rows of all consumers
 *
 *   alpha=0.5   how much of the range moves into the weights
 *   out, down   also the inputs of o and of down; the paper's code scales behind norms alone
 *
 * Source: SmoothQuant (arXiv 2211.10438), equation 4. Deviation: a channel that is 0 throughout the
 * text, or that no consumer reads, keeps its scale (the released code clamps at 1e-5). */
#include <math.h>

#include "method/equivalent.h"

enum { ALPHA, OUT, DOWN };

static const nb_step_option options[] = {
    [ALPHA] = {"alpha", NB_OPTION_REAL, 0.5, 0, 1},
    [OUT] = {"out", NB_OPTION_FLAG, 0, 0, 1},
    [DOWN] = {"down", NB_OPTION_FLAG, 0, 0, 1},
    {0},
};

/* largest [n_in] = max |w| over all rows of all consumers. */
static void max_weights(const nb_block_job *job, const nb_pair *p, float *largest)
{
    for (int k = 0; k < p->n_consumers; k++) {
        const float *w = nb_block_weight(job, p->consumer[k]);
        int64_t n_out = job->block->linear[p->consumer[k]].w.n_out;
        for (int64_t r = 0; r < n_out; r++) {
            for (int64_t i = 0; i < p->n_in; i++) {
                float size = fabsf(w[r * p->n_in + i]);
                largest[i] = size > largest[i] ? size : largest[i];
            }
        }
    }
}

static nb_status smooth_pair(nb_block_job *job, const nb_pair *p, json_t **report, nb_error *err)
{
    nb_pair_stats stats;
    NB_TRY(nb_pair_measure(&stats, job, p, err));
    float *largest = nb_arena_alloc(job->arena, (size_t)p->n_in, sizeof *largest);
    float *s = nb_arena_alloc(job->arena, (size_t)p->n, sizeof *s);
    if (!largest || !s) return nb_fail_memory(err, p->name, (size_t)(p->n_in + p->n) * sizeof *s);
    max_weights(job, p, largest);
    nb_pair_reduce(p, largest, s);
    double alpha = job->option[ALPHA], least = HUGE_VAL, most = 0;
    for (int64_t i = 0; i < p->n; i++) {
        double x = (double)stats.max_abs[i], w = (double)s[i];
        s[i] = x > 0 && w > 0 ? (float)(pow(x, alpha) / pow(w, 1 - alpha)) : 1;
        least = fmin(least, (double)s[i]);
        most = fmax(most, (double)s[i]);
    }
    *report = json_pack("{s:f, s:f}", "least", least, "most", most);
    return nb_pair_scale(job, p, s, err);
}

static nb_status run_smooth(nb_block_job *job, nb_error *err)
{
    bool wanted[NB_N_PAIRS] = {
        [NB_PAIR_QKV] = true,
        [NB_PAIR_FFN] = true,
        [NB_PAIR_O] = job->option[OUT] != 0,
        [NB_PAIR_DOWN] = job->option[DOWN] != 0,
    };
    return nb_pair_each(job, "smooth", wanted, smooth_pair, err);
}

const nb_method nb_method_smooth = {
    .name = "smooth",
    .kind = NB_STEP_TRANSFORM,
    .needs = NB_NEED_RANGE,
    .options = options,
    .source = "SmoothQuant (arXiv 2211.10438)",
    .run_block = run_smooth,
};
