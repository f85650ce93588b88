/* Transform: rotation by Walsh-Hadamard matrices H, H H = 1, which spread what is large in a few
 * channels over all of a run. Where both sides of a rotation are linears it folds into their
 * weights and biases; where something stands between them that it does not pass, it runs online,
 * before the quantizers, and config.json says so.
 *
 *   stream  the hidden state, in runs of the largest power of two that divides its width; folded,
 *           with the weights of the norms, into every linear that reads or writes it, online only
 *           behind the embedding and before the final norm, so that a tied embedding stays tied.
 *           RMS norms only. The source hands out its blocks so (nb_source_rotate): the states of
 *           the calibration text are rotated ones, too
 *   vo      each head of v, and the columns of o that read it; folded
 *   down    what enters the last linear, in runs of the largest power of two that divides its
 *           width; columns folded, input online
 *   qk      each head of queries and keys, behind norms and rotary positions; online, but folded
 *           into q and k where there are neither
 *
 * Source: QuaRot (arXiv 2404.00456), section 4. Deviation: a width that is no power of two is
 * rotated in runs, not by a larger Hadamard matrix. */
#include <assert.h>

#include "method/method.h"
#include "model/family.h"

enum { STREAM, VO, DOWN, QK };

static const nb_step_option options[] = {
    [STREAM] = {"stream", NB_OPTION_FLAG, 0, 0, 1},
    [VO] = {"vo", NB_OPTION_FLAG, 0, 0, 1},
    [DOWN] = {"down", NB_OPTION_FLAG, 0, 0, 1},
    [QK] = {"qk", NB_OPTION_FLAG, 0, 0, 1},
    {0},
};

/* ---- what a model can have ------------------------------------------------------------------- */

static bool is_power_of_two(int n) { return n > 1 && (n & (n - 1)) == 0; }

/* Between q, k and their product stands nothing. */
static bool folds_qk(const nb_config *c) { return !c->family->rotary && !c->family->qk_norm; }

static nb_status check_heads(const char *option, const nb_config *c, nb_error *err)
{
    if (is_power_of_two(c->head_dim)) return NB_OK;
    return nb_fail(err, NB_EUSAGE,
                   "step \"hadamard\": %s: heads of %d channels, expected a power of two", option,
                   c->head_dim);
}

static nb_status add_runs(const char *option, int n, int *out, nb_error *err)
{
    if (*out) return nb_fail(err, NB_EUSAGE, "step \"hadamard\": %s: a second time", option);
    *out = n;
    return NB_OK;
}

/* Runs of the largest power of two. */
static nb_status add_width(const char *option, int width, int *out, nb_error *err)
{
    int run = width & -width; /* the lowest bit */
    if (run > 1) return add_runs(option, run, out, err);
    return nb_fail(err, NB_EUSAGE, "step \"hadamard\": %s: %d channels, expected an even number",
                   option, width);
}

static nb_status add_stream(const nb_config *c, nb_rotation *out, nb_error *err)
{
    if (c->family->norm == NB_NORM_RMS) return add_width("stream", c->n_embd, &out->stream, err);
    return nb_fail(err, NB_EUSAGE,
                   "step \"hadamard\": stream: the norms of \"%s\" take the mean away; a rotation "
                   "passes RMS norms alone",
                   c->family->name);
}

/* Adds what runs online. */
static nb_status add_rotation(const double *option, const nb_config *c, nb_rotation *out,
                              nb_error *err)
{
    if (!option[STREAM] && !option[VO] && !option[DOWN] && !option[QK]) {
        return nb_fail(err, NB_EUSAGE,
                       "step \"hadamard\": nothing to rotate; say hadamard:stream, :vo, :down or "
                       ":qk");
    }
    if (option[STREAM]) NB_TRY(add_stream(c, out, err));
    if (option[VO]) NB_TRY(check_heads("vo", c, err));
    if (option[QK]) NB_TRY(check_heads("qk", c, err));
    if (option[QK] && !folds_qk(c)) NB_TRY(add_runs("qk", c->head_dim, &out->qk, err));
    return option[DOWN] ? add_width("down", c->n_ffn, &out->down, err) : NB_OK;
}

static nb_status rotation(const nb_step *step, const nb_config *cfg, nb_rotation *out,
                          nb_error *err)
{
    return add_rotation(step->option, cfg, out, err);
}

/* ---- folding --------------------------------------------------------------------------------- */

static void rotate_columns(const nb_block_job *job, nb_role role, int64_t run)
{
    nb_host_rotate_columns(&job->block->linear[role], run, job->be->threads, job->be->cpu);
}

static void rotate_rows(const nb_block_job *job, nb_role role, int64_t run)
{
    nb_host_rotate_rows(&job->block->linear[role], run, job->be->threads);
}

/* ---- the step -------------------------------------------------------------------------------- */

static void describe(json_t *report, const char *what, int run, bool online)
{
    json_object_set_new(report, what, json_pack("{s:i, s:b}", "run", run, "online", (int)online));
}

static nb_status run_hadamard(nb_block_job *job, nb_error *err)
{
    const nb_config *c = job->cfg;
    const double *option = job->option;
    nb_rotation online = job->block->rotation;
    assert(!option[STREAM] || online.stream); /* the source has done it */
    if (option[STREAM]) online.stream = 0;
    NB_TRY(add_rotation(option, c, &online, err));
    json_t *report = json_object_get(job->report, "hadamard");
    if (!report) report = json_object(), json_object_set_new(job->report, "hadamard", report);
    if (option[STREAM]) describe(report, "stream", online.stream, true);
    if (option[VO]) {
        rotate_rows(job, NB_V, c->head_dim);
        rotate_columns(job, NB_O, c->head_dim);
        describe(report, "vo", c->head_dim, false);
    }
    if (option[DOWN]) {
        rotate_columns(job, NB_DOWN, online.down);
        describe(report, "down", online.down, true);
    }
    if (option[QK]) describe(report, "qk", c->head_dim, !folds_qk(c));
    if (option[QK] && folds_qk(c)) {
        rotate_rows(job, NB_Q, c->head_dim);
        rotate_rows(job, NB_K, c->head_dim);
    }
    job->block->rotation = online;
    return NB_OK;
}

const nb_method nb_method_hadamard = {
    .name = "hadamard",
    .kind = NB_STEP_TRANSFORM,
    .options = options,
    .source = "QuaRot (arXiv 2404.00456)",
    .run_block = run_hadamard,
    .rotation = rotation,
};
