/* Round: GPTQ. Columns are rounded one after another, and each rounding error is spread over the
 * columns that are still free, so that the linear's output on the calibration text moves least:
 *
 *   err_i = (w_i - q(w_i)) / U_ii,   w_j -= err_i U_ij for j > i,   (H + lambda I)^-1 = U^T U
 *
 * It minimises tr((W - Q)(H + lambda I)(W - Q)^T) greedily, and that is the sum of err^2.
 *
 * H counts all tokens alike: each is brought to one size first (calib/gram.h). As they are, the
 * first token of a text, which attention parks on, is either all of H (where its activations are
 * 10^5 times the others') or nothing in it (behind a norm), and GPTQ ends above round-to-nearest:
 * docs/methods.md has the figures.
 *
 * Parameters of a group: where the format lets a group stand alone they are fitted when the loop
 * reaches the group, to weights that hold all updates so far. Groups that share something (m1, m2,
 * nvfp4), groups under act_order, and all under static_groups are fitted to the weights before the
 * first update.
 *
 *   damp=0.01       share of the mean diagonal of H that is added to the diagonal (lambda)
 *   block=128       columns per block; no effect beyond rounding, except on stale scales
 *   act_order       columns in the order of falling H_jj: the important ones while most are free
 *   static_groups   see above
 *   raw_tokens      tokens as they are, as the reference
 *   dead_zero       weights of inputs that are always 0 become 0, as in the reference; without it
 *                   they are rounded
 *   stale_scales    as the reference: a group is fitted to weights that lack the updates of its
 *                   block; differs where a group begins inside one
 *
 * Where H + lambda I stays singular with tenfold lambda, three times, the linear is rounded to
 * nearest, and the report says so; a matrix without H (outside the blocks) likewise.
 *
 * Sources: GPTQ (arXiv 2210.17323) and IST-DASLab/gptq; ZeroQuant-FP, section 6 of its
 * specification. */
#include <stdio.h>

#include "method/gptq.h"
#include "method/round.h"

enum { DAMP, BLOCK, ACT_ORDER, STATIC_GROUPS, RAW_TOKENS, DEAD_ZERO, STALE_SCALES };

static const nb_step_option options[] = {
    [DAMP] = {"damp", NB_OPTION_REAL, 0.01, 0, 10},
    [BLOCK] = {"block", NB_OPTION_WHOLE, 128, 1, 4096},
    [ACT_ORDER] = {"act_order", NB_OPTION_FLAG, 0, 0, 1},
    [STATIC_GROUPS] = {"static_groups", NB_OPTION_FLAG, 0, 0, 1},
    [RAW_TOKENS] = {"raw_tokens", NB_OPTION_FLAG, 0, 0, 1},
    [DEAD_ZERO] = {"dead_zero", NB_OPTION_FLAG, 0, 0, 1},
    [STALE_SCALES] = {"stale_scales", NB_OPTION_FLAG, 0, 0, 1},
    {0},
};

static void describe(nb_job *job, const nb_gptq_factor *f)
{
    if (f->failed) {
        snprintf(job->note, sizeof job->note, "gptq: singular statistics, rounded to nearest");
    } else if (f->n_tries > 0) {
        snprintf(job->note, sizeof job->note, "gptq: damping raised %d times, %lld dead inputs",
                 f->n_tries, (long long)f->n_dead);
    } else if (f->n_dead > 0) {
        snprintf(job->note, sizeof job->note, "gptq: %lld dead inputs", (long long)f->n_dead);
    }
}

/* True where groups are fitted before the first update. */
static bool must_fit_first(const nb_job *job)
{
    bool alone = nb_format_groups(job->format, job->n_in) == 1; /* nothing to wait for */
    if (alone || job->option[STATIC_GROUPS] != 0 || job->option[ACT_ORDER] != 0) return true;
    return nb_format_fit_base(job->format, job->w, job->importance, job->n_in, NULL, NULL) > 0;
}

static nb_status round_with(nb_job *job, nb_gptq_cache *cache, nb_error *err)
{
    nb_gptq_round r = {.job = job,
                       .block = (int64_t)job->option[BLOCK],
                       .fit_first = must_fit_first(job),
                       .dead_zero = job->option[DEAD_ZERO] != 0};
    r.stale = job->option[STALE_SCALES] != 0 && !r.fit_first;
    NB_TRY(nb_gptq_cache_get(cache, &r.factor, job, job->option[DAMP], job->option[ACT_ORDER] != 0,
                             err));
    describe(job, r.factor);
    if (r.factor->failed) return nb_round_nearest(job, err);
    NB_TRY(nb_gptq_round_rows(&r, err));
    job->loss = r.loss;
    job->clipped = r.clipped;
    return NB_OK;
}

static nb_status run_gptq(nb_job *job, nb_error *err)
{
    if (!job->hessian) return nb_round_nearest(job, err);
    nb_gptq_cache own = {0};
    nb_status st = round_with(job, job->factors ? job->factors : &own, err);
    nb_gptq_cache_fini(&own);
    return st;
}

static unsigned needs_more(const nb_step *step)
{
    return step->option[RAW_TOKENS] != 0 ? NB_NEED_RAW_TOKENS : 0;
}

const nb_method nb_method_gptq = {
    .name = "gptq",
    .kind = NB_STEP_ROUND,
    .needs = NB_NEED_HESSIAN,
    .needs_more = needs_more,
    .options = options,
    .source = "GPTQ (arXiv 2210.17323)",
    .run = run_gptq,
};
