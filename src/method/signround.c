/* Round: learned. Trains, one block at a time, an offset for every weight, by which it is moved
 * before it is rounded, and the clip ratios of its group, by sign descent on the squared error of
 * the block's output:
 *
 *   w^ = h (clamp(rint(w / h + v) + z, 0, Q) - z),   v in [-1/2, 1/2],   h, z from [lo min, hi max]
 *
 * The offsets begin at 0 and the ratios where a clip step before it has left them, so this begins
 * at what "nearest" would store. On each linear it then does what "nearest" does, with the offsets:
 * the codes that are stored are those that were trained, to the bit.
 *
 *   iters=200       steps; 0: none, which is "nearest"
 *   lr=0            rate at first, falling to 0 in a line; 0: 1 / iters, so that the sum of all
 *                   steps is the half that an offset may go
 *   batch=8         windows per step; their gradients are added up in passes of the recipe's batch
 *   awq_clip        begin with the clip ratios that the step of that name would find
 *   zero_point      gradients of the clips flow through the zero point, too: each end of a range
 *                   learns on its own, as if step and zero point were learned
 *   unit_tokens     each token's error relative to the size of the token that is aimed at
 *
 * No run gets worse than it began. The state that is kept is the last, or the one before the last
 * step of the pass over all windows whose steps had the least loss, and only if its loss over all
 * windows is below that of the start. A step that is not finite is dropped, the best state
 * restored, the rate halved; after three, training ends.
 *
 * Source: AutoRound (arXiv 2309.05516). Deviations: windows in stored order, not drawn; the least
 * loss is of all windows, not of those that were drawn; grids that are not uniform count their
 * offsets in units of the scale. */
#include <float.h>
#include <math.h>

#include "method/awq_clip.h"
#include "method/round.h"
#include "method/trainer.h"

enum { ITERS, LR, BATCH, AWQ_CLIP, ZERO_POINT, UNIT_TOKENS };

static const nb_step_option options[] = {
    [ITERS] = {"iters", NB_OPTION_WHOLE, 200, 0, 100000},
    [LR] = {"lr", NB_OPTION_REAL, 0, 0, 1},
    [BATCH] = {"batch", NB_OPTION_WHOLE, 8, 1, 4096},
    [AWQ_CLIP] = {"awq_clip", NB_OPTION_FLAG, 0, 0, 1},
    [ZERO_POINT] = {"zero_point", NB_OPTION_FLAG, 0, 0, 1},
    [UNIT_TOKENS] = {"unit_tokens", NB_OPTION_FLAG, 0, 0, 1},
    {0},
};

enum { MAX_FAULTS = 3, TENTHS = 10 };

typedef struct learner {
    nb_block_job *job;
    nb_trainer t;
    int iters, step, faults; /* step: done or dropped */
    double rate;             /* at first */
    int w;                   /* first window of the next step */
    double sum, best;        /* losses of the pass at hand, times windows; least mean of a pass */
    json_t *report, *losses, *fallbacks; /* the last two borrowed from the first */
} learner;

/* ---- report ------------------------------------------------------------------------------- */

static nb_status begin_report(learner *l, nb_error *err)
{
    l->report = json_object();
    l->losses = json_array();
    l->fallbacks = json_array();
    json_object_set_new(l->report, "losses", l->losses);
    json_object_set_new(l->report, "fallbacks", l->fallbacks);
    return l->report && l->losses && l->fallbacks ? NB_OK : nb_fail_memory(err, "report", 1000);
}

static void end_report(learner *l, double start, double best, const char *kept)
{
    json_object_set_new(l->report, "loss_start", json_real(start));
    json_object_set_new(l->report, "loss_best", isfinite(best) ? json_real(best) : json_null());
    json_object_set_new(l->report, "kept", json_string(kept));
    json_object_set_new(l->report, "steps", json_integer((json_int_t)l->t.total));
    json_object_set_new(l->report, "lr", json_real(l->rate));
    if (l->job->report) json_object_set(l->job->report, "signround", l->report);
}

static void report_fault(learner *l)
{
    json_array_append_new(l->fallbacks, json_pack("{s:i, s:s, s:f}", "step", l->step + 1,
                                                  "not_finite", l->t.fault, "lr", l->rate));
}

/* The step at hand ends a tenth of all. */
static bool is_tenth(const learner *l)
{
    int64_t before = (int64_t)l->step * TENTHS / l->iters;
    return ((int64_t)l->step + 1) * TENTHS / l->iters != before;
}

/* ---- training ----------------------------------------------------------------------------- */

/* The loss of n windows more; at the end of a pass the state may be the best. */
static void take_loss(learner *l, double loss, int n)
{
    l->sum += loss * n;
    l->w += n;
    if (l->w < l->job->n_windows) return;
    if (l->sum < l->best * l->w) nb_trainer_save(&l->t);
    l->best = fmin(l->best, l->sum / l->w);
    l->sum = l->w = 0;
}

static void update(learner *l, double rate)
{
    nb_backend *be = l->job->be;
    nb_rounding_update(&l->t.rounding, rate);
    be->ops->sign_step(be, l->t.lwc.logits, l->t.lwc.grad, rate, FLT_MIN, 1);
    l->t.total++;
}

/* The pass begins anew. */
static nb_status drop_step(learner *l, nb_error *err)
{
    report_fault(l);
    l->faults++;
    l->rate /= 2;
    l->sum = l->w = 0;
    return nb_trainer_restore(&l->t, err);
}

static nb_status run_step(learner *l, nb_error *err)
{
    nb_trainer *t = &l->t;
    double loss, left = 1 - (double)l->step / l->iters;
    bool finite;
    int n = l->job->n_windows - l->w;
    if (n > t->batch) n = t->batch;
    NB_TRY(nb_trainer_gradient(t, l->w, n, &loss, &finite, err));
    NB_TRY(nb_trainer_tick(l->job, n));
    if (!finite) return drop_step(l, err);
    take_loss(l, loss, n);
    if (is_tenth(l)) json_array_append_new(l->losses, json_real(loss));
    update(l, l->rate * left);
    return NB_OK;
}

/* The best state stays in the trainer's `best`, the last in the trainer. */
static nb_status learn(learner *l, nb_error *err)
{
    for (; l->step < l->iters && l->faults < MAX_FAULTS; l->step++) NB_TRY(run_step(l, err));
    return NB_OK;
}

/* The last state, which no step has seen, or the best one; *loss of it over all windows. */
static nb_status take_best(learner *l, double *loss, nb_error *err)
{
    NB_TRY(nb_trainer_loss(&l->t, loss, err));
    if (*loss < l->best) return NB_OK;
    NB_TRY(nb_trainer_restore(&l->t, err));
    return nb_trainer_loss(&l->t, loss, err);
}

static nb_status run_learner(learner *l, nb_error *err)
{
    double start, best;
    const char *kept = "trained";
    NB_TRY(nb_trainer_reset(&l->t, NB_LWC_JOB, true, err));
    nb_trainer_save(&l->t);
    NB_TRY(nb_trainer_loss(&l->t, &start, err));
    if (!isfinite(start)) {
        return nb_fail(err, NB_ENUMERIC,
                       "blk.%d: the loss of rounding to nearest is %g: hidden states or weights "
                       "are not finite",
                       l->job->block->layer, start);
    }
    NB_TRY(learn(l, err));
    NB_TRY(take_best(l, &best, err));
    if (!(best < start)) {
        kept = "start";
        NB_TRY(nb_trainer_reset(&l->t, NB_LWC_JOB, true, err));
    }
    end_report(l, start, best, kept);
    NB_TRY(nb_rounding_finish(&l->t.rounding, l->job, err));
    return nb_lwc_finish(&l->t.lwc, l->job, err);
}

/* ---- the step ----------------------------------------------------------------------------- */

static nb_status check_formats(const nb_block_job *job, nb_error *err)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_format *f = &job->weights[r];
        if (!job->offset[r] || (f->tile <= 1 && !f->matrix)) continue;
        return nb_fail(err, NB_EUSAGE,
                       "step \"signround\": \"%s\": rows that share their scales are not learned",
                       f->word);
    }
    return NB_OK;
}

static nb_status run_signround(nb_block_job *job, nb_error *err)
{
    const double *o = job->option;
    learner l = {.job = job, .iters = (int)o[ITERS], .best = INFINITY};
    nb_trainer_options opt = {.step = "signround",
                              .rounding = true,
                              .batch = (int)o[BATCH],
                              .unit_tokens = o[UNIT_TOKENS] != 0,
                              .zero_point = o[ZERO_POINT] != 0};
    l.rate = o[LR] > 0 ? o[LR] : 1 / fmax(l.iters, 1);
    NB_TRY(check_formats(job, err));
    if (o[AWQ_CLIP] != 0) NB_TRY(nb_awq_clip_block(job, err));
    nb_status st;
    NB_GOTO(st, nb_trainer_create(&l.t, job, &opt, err));
    NB_GOTO(st, begin_report(&l, err));
    st = run_learner(&l, err);
done:
    json_decref(l.report);
    nb_trainer_free(&l.t);
    return st;
}

static unsigned needs_more(const nb_step *step)
{
    return step->option[AWQ_CLIP] != 0 ? NB_NEED_HESSIAN : 0;
}

/* Fitted as in training, which knows no importance of inputs. */
static nb_status round_linear(nb_job *job, nb_error *err)
{
    job->importance = NULL;
    return nb_round_nearest(job, err);
}

const nb_method nb_method_signround = {
    .name = "signround",
    .kind = NB_STEP_ROUND,
    .needs = NB_NEED_STATES | NB_NEED_OFFSETS,
    .needs_more = needs_more,
    .options = options,
    .source = "AutoRound (arXiv 2309.05516)",
    .run_block = run_signround,
    .run = round_linear,
};
