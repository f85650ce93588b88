/* Clip: OmniQuant. Trains, one block at a time, what a uniform grid leaves free: clip ratios of
 * the groups (LWC) and scales and shifts between linears and norms (LET), by gradient descent on
 * the squared error of the block's output. Everything folds into weights, norms, biases and clip
 * ratios, so the round step that follows stores what was trained.
 *
 *   lwc, let        what is trained; at least one
 *   aug             asks also for the source block's output on the block's own perturbed input
 *   qkv, out, fc1, qkt   let on these pairs alone (let.h); none given: on all
 *   shift           LET's shifts where nothing would train them: weights only
 *   lwc_lr=0.01     rate of the clip logits
 *   let_lr=0.005    rate of scales and shifts
 *   alpha=0.5       start of the scales, as SmoothQuant's
 *   awq_clip        clips start where the step of that name would leave them, not at sigmoid(4)
 *   zero_point      gradients of the clips flow through the zero point, too: each end of a range
 *                   learns on its own, as if step and zero point were learned
 *   unit_tokens     each token's error relative to the size of the token that is aimed at
 *
 * Shifts are trained where activations are quantized and norms are LayerNorms, whose biases take
 * them up.
 *
 * A run that is killed goes on at its last epoch (trainer_state.h).
 *
 * No run gets worse than it began. Loss and gradients of every step are looked at; a step that is
 * not finite is dropped, the best epoch restored, both rates halved. After three such steps the
 * block starts again with less: LET at its start, clips alone, plain min-max. What has been trained
 * is kept only if its loss is below those of the start and of plain min-max.
 *
 * Source: OmniQuant (arXiv 2308.13137); the rates are those of its code, which its text swaps.
 * Deviations: let.c; the state of the best epoch is kept, not the last. */
#include <math.h>
#include <string.h>

#include "method/awq_clip.h"
#include "method/trainer_state.h"
#include "model/family.h"

#define NAME "omniquant"

enum {
    LWC,
    LET,
    AUG,
    SHIFT,
    LWC_LR,
    LET_LR,
    ALPHA,
    AWQ_CLIP,
    ZERO_POINT,
    UNIT_TOKENS,
    PAIRS, /* NB_LET_N_PAIRS of them */
};

static const nb_step_option options[] = {
    [LWC] = {"lwc", NB_OPTION_FLAG, 0, 0, 1},
    [LET] = {"let", NB_OPTION_FLAG, 0, 0, 1},
    [AUG] = {"aug", NB_OPTION_FLAG, 0, 0, 1},
    [SHIFT] = {"shift", NB_OPTION_FLAG, 0, 0, 1},
    [LWC_LR] = {"lwc_lr", NB_OPTION_REAL, 1e-2, 0, 100},
    [LET_LR] = {"let_lr", NB_OPTION_REAL, 5e-3, 0, 100},
    [ALPHA] = {"alpha", NB_OPTION_REAL, 0.5, 0, 1},
    [AWQ_CLIP] = {"awq_clip", NB_OPTION_FLAG, 0, 0, 1},
    [ZERO_POINT] = {"zero_point", NB_OPTION_FLAG, 0, 0, 1},
    [UNIT_TOKENS] = {"unit_tokens", NB_OPTION_FLAG, 0, 0, 1},
    [PAIRS + NB_LET_QKV] = {"qkv", NB_OPTION_FLAG, 0, 0, 1},
    [PAIRS + NB_LET_OUT] = {"out", NB_OPTION_FLAG, 0, 0, 1},
    [PAIRS + NB_LET_FC1] = {"fc1", NB_OPTION_FLAG, 0, 0, 1},
    [PAIRS + NB_LET_QKT] = {"qkt", NB_OPTION_FLAG, 0, 0, 1},
    {0},
};

/* What is trained, falling back from one to the next. */
typedef enum level { LEVEL_ALL, LEVEL_LET_FIXED, LEVEL_LWC, LEVEL_MINMAX, N_LEVELS } level;

static const char *const level_names[N_LEVELS] = {"all", "let at its start", "lwc alone",
                                                  "min-max"};

enum { MAX_FAULTS = 3 }; /* per level */

typedef struct training {
    nb_block_job *job;
    nb_trainer_options opt;
    nb_trainer t;
    nb_train_mark at;
    bool taken_up; /* `at` and the trainer are those of a run that was killed, not yet gone on */
    json_t *report, *epochs, *faults; /* the last two borrowed from the first */
} training;

/* ---- report ------------------------------------------------------------------------------- */

static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static void report_fault(training *tr, level l, int epoch)
{
    json_array_append_new(
        tr->faults, json_pack("{s:s, s:i, s:I, s:s, s:f, s:f}", "training", level_names[l], "epoch",
                              epoch, "step", (json_int_t)tr->t.step + 1, "not_finite", tr->t.fault,
                              "lwc_lr", tr->t.lwc_rate, "let_lr", tr->t.let_rate));
}

static nb_status begin_report(training *tr, nb_error *err)
{
    tr->report = json_object();
    tr->epochs = json_array();
    tr->faults = json_array();
    json_t *pairs = json_array();
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        if (tr->t.let.scale[p]) json_array_append_new(pairs, json_string(nb_let_pair_names[p]));
    }
    json_object_set_new(tr->report, "let", pairs);
    json_object_set_new(tr->report, "loss_epochs", tr->epochs);
    json_object_set_new(tr->report, "fallbacks", tr->faults);
    return tr->report && tr->epochs && tr->faults && pairs ? NB_OK
                                                           : nb_fail_memory(err, "report", 1000);
}

static void end_report(training *tr, const char *kept)
{
    json_object_set_new(tr->report, "kept", json_string(kept));
    json_object_set_new(tr->report, "steps", json_integer((json_int_t)tr->t.total));
    json_object_set_new(tr->report, "lwc_lr", number(tr->opt.lwc ? tr->opt.lwc_rate : 0));
    json_object_set_new(tr->report, "let_lr", number(tr->opt.let ? tr->opt.let_rate : 0));
    if (tr->job->report) json_object_set(tr->job->report, NAME, tr->report);
}

/* ---- training ----------------------------------------------------------------------------- */

static nb_status reset(training *tr, level l, nb_error *err)
{
    nb_trainer *t = &tr->t;
    t->train_lwc = tr->opt.lwc && l < LEVEL_MINMAX;
    t->train_let = tr->opt.let && l == LEVEL_ALL;
    t->lwc_rate = tr->opt.lwc_rate;
    t->let_rate = tr->opt.let_rate;
    nb_lwc_start clips = tr->job->option[AWQ_CLIP] != 0 ? NB_LWC_JOB : NB_LWC_PAPER;
    if (l == LEVEL_MINMAX || !tr->opt.lwc) clips = NB_LWC_OPEN;
    return nb_trainer_reset(t, clips, l >= LEVEL_LWC, err);
}

static nb_status begin_level(training *tr, level l, nb_error *err)
{
    json_array_clear(tr->epochs);
    tr->at = (nb_train_mark){.level = l, .best = INFINITY};
    NB_TRY(reset(tr, l, err));
    nb_trainer_save(&tr->t);
    return NB_OK;
}

/* The best epoch's state stays in the trainer; *done false: not finite too often. */
static nb_status train_level(training *tr, level l, bool *done, nb_error *err)
{
    nb_trainer *t = &tr->t;
    nb_train_mark *at = &tr->at;
    *done = false;
    if (!tr->taken_up) NB_TRY(begin_level(tr, l, err));
    tr->taken_up = false;
    while (at->epoch < tr->job->epochs && at->faults < MAX_FAULTS) {
        double loss;
        bool finite;
        NB_TRY(nb_trainer_epoch(t, &loss, &finite, err));
        if (!finite) {
            report_fault(tr, l, at->epoch);
            NB_TRY(nb_trainer_restore(t, err));
            t->lwc_rate /= 2;
            t->let_rate /= 2;
            at->faults++;
            continue;
        }
        json_array_append_new(tr->epochs, number(loss));
        if (loss < at->best) nb_trainer_save(t);
        at->best = fmin(at->best, loss);
        at->epoch++;
        NB_TRY(nb_trainer_keep(t, NAME, at, tr->report, err));
    }
    *done = at->faults < MAX_FAULTS;
    return nb_trainer_restore(t, err);
}

/* True if the level trains anything that the one before it has not given up already. */
static bool is_level(const training *tr, level l)
{
    if (l == LEVEL_LET_FIXED) return tr->opt.let && tr->opt.lwc;
    return l == LEVEL_LWC ? tr->opt.let && tr->opt.lwc : l == LEVEL_ALL;
}

/* *loss of the best that has been trained; infinite: nothing. */
static nb_status train(training *tr, double *loss, nb_error *err)
{
    bool done = false;
    *loss = INFINITY;
    for (int l = tr->at.level; l < LEVEL_MINMAX && !done; l++) {
        if (!is_level(tr, (level)l)) continue;
        NB_TRY(train_level(tr, (level)l, &done, err));
    }
    if (!done) return NB_OK;
    NB_TRY(nb_trainer_loss(&tr->t, loss, err));
    if (!isfinite(*loss)) *loss = INFINITY;
    return NB_OK;
}

static nb_status loss_at(training *tr, level l, double *loss, nb_error *err)
{
    NB_TRY(reset(tr, l, err));
    return nb_trainer_loss(&tr->t, loss, err);
}

static nb_status fail_minmax(const training *tr, double loss, nb_error *err)
{
    return nb_fail(err, NB_ENUMERIC,
                   "blk.%d: the loss of plain min-max quantization is %g: hidden states or weights "
                   "are not finite",
                   tr->job->block->layer, loss);
}

/* The losses of min-max and of the start into the report, or what a killed run had there. */
static nb_status take_up(training *tr, nb_error *err)
{
    double start, minmax;
    NB_TRY(nb_trainer_recall(&tr->t, NAME, &tr->at, tr->report, &tr->taken_up, err));
    tr->epochs = json_object_get(tr->report, "loss_epochs");
    tr->faults = json_object_get(tr->report, "fallbacks");
    if (tr->taken_up) return NB_OK;
    NB_TRY(loss_at(tr, LEVEL_MINMAX, &minmax, err));
    if (!isfinite(minmax)) return fail_minmax(tr, minmax, err);
    NB_TRY(loss_at(tr, LEVEL_ALL, &start, err));
    json_object_set_new(tr->report, "loss_minmax", number(minmax));
    json_object_set_new(tr->report, "loss_start", number(start));
    return NB_OK;
}

static double reported(const training *tr, const char *key)
{
    const json_t *x = json_object_get(tr->report, key);
    return json_is_number(x) ? json_number_value(x) : INFINITY;
}

static nb_status choose(training *tr, nb_error *err)
{
    double best;
    const char *kept = "trained";
    NB_TRY(take_up(tr, err));
    NB_TRY(train(tr, &best, err));
    json_object_set_new(tr->report, "loss_best", number(best));
    double start = reported(tr, "loss_start"), minmax = reported(tr, "loss_minmax");
    if (best > fmin(start, minmax)) {
        bool plain = minmax <= start;
        kept = plain ? "min-max" : "start";
        NB_TRY(reset(tr, plain ? LEVEL_MINMAX : LEVEL_ALL, err));
    }
    end_report(tr, kept);
    return NB_OK;
}

/* Without epochs the start is what was asked for. */
static nb_status run_training(training *tr, nb_error *err)
{
    if (tr->job->epochs > 0) {
        NB_TRY(choose(tr, err));
    } else {
        NB_TRY(reset(tr, LEVEL_ALL, err));
        end_report(tr, "start");
    }
    NB_TRY(nb_lwc_finish(&tr->t.lwc, tr->job, err));
    return nb_let_fold(&tr->t.let, tr->job, err);
}

/* ---- the step ----------------------------------------------------------------------------- */

static bool quantized(const nb_format *f) { return f && nb_format_is_quantized(f); }

static bool names_pairs(const double *option)
{
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        if (option[PAIRS + p] != 0) return true;
    }
    return false;
}

/* Scales between Q and K do nothing, exactly, where neither is quantized. A norm behind the sum
 * feeds the residual stream, too, and takes no scale. */
static void choose_pairs(const nb_block_job *job, nb_trainer_options *opt)
{
    const nb_config *c = job->cfg;
    bool norms = !c->post_norm && c->norm_affine;
    bool acts = quantized(&job->acts[NB_Q]) || quantized(&job->acts[NB_UP]);
    bool heads = job->attn && (quantized(&job->attn->q) || quantized(&job->attn->k));
    opt->start.pair[NB_LET_QKV] = opt->start.pair[NB_LET_FC1] = opt->let && norms;
    opt->start.pair[NB_LET_OUT] = opt->let;
    opt->start.pair[NB_LET_QKT] = opt->let && heads;
    for (int p = 0; p < NB_LET_N_PAIRS && names_pairs(job->option); p++) {
        opt->start.pair[p] = opt->start.pair[p] && job->option[PAIRS + p] != 0;
    }
    opt->start.shift = c->family->norm == NB_NORM_LAYER && (acts || job->option[SHIFT] != 0);
}

static nb_status run_omniquant(nb_block_job *job, nb_error *err)
{
    const double *o = job->option;
    training tr = {.job = job,
                   .opt = {.step = "omniquant",
                           .lwc = o[LWC] != 0,
                           .let = o[LET] != 0,
                           .aug = o[AUG] != 0,
                           .unit_tokens = o[UNIT_TOKENS] != 0,
                           .zero_point = o[ZERO_POINT] != 0,
                           .lwc_rate = o[LWC_LR],
                           .let_rate = o[LET_LR],
                           .start = {.alpha = o[ALPHA]}}};
    if (!tr.opt.lwc && !tr.opt.let) {
        return nb_fail(err, NB_EUSAGE,
                       "step \"omniquant\": nothing to train; say omniquant:lwc, :let or both");
    }
    if (names_pairs(o) && !tr.opt.let) {
        return nb_fail(err, NB_EUSAGE,
                       "step \"omniquant\": pairs are of let, which is not trained");
    }
    if (o[AWQ_CLIP] != 0 && !tr.opt.lwc) {
        return nb_fail(err, NB_EUSAGE,
                       "step \"omniquant\": awq_clip is a start for lwc, which is not trained");
    }
    if (o[AWQ_CLIP] != 0) NB_TRY(nb_awq_clip_block(job, err));
    choose_pairs(job, &tr.opt);
    nb_status st = nb_trainer_create(&tr.t, job, &tr.opt, err);
    if (st == NB_OK) st = begin_report(&tr, err);
    if (st == NB_OK) st = run_training(&tr, err);
    json_decref(tr.report);
    nb_trainer_free(&tr.t);
    return st;
}

static unsigned needs_more(const nb_step *step)
{
    return step->option[AWQ_CLIP] != 0 ? NB_NEED_HESSIAN : 0;
}

const nb_method nb_method_omniquant = {
    .name = NAME,
    .kind = NB_STEP_CLIP,
    .needs = NB_NEED_RANGE | NB_NEED_STATES,
    .needs_more = needs_more,
    .options = options,
    .source = "OmniQuant (arXiv 2308.13137)",
    .run_block = run_omniquant,
};
