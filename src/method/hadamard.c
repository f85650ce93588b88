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
 *   signs   before vo, and before down where a gate lets it through, channels change their sign at
 *           random (of the recipe's seed): no channel of H is then the sum of them all
 *
 * Source: QuaRot (arXiv 2404.00456), section 4; the signs are those of QuIP#
 * (arXiv 2402.04396). Deviation: a width that is no power of two is rotated in runs, not by a
 * larger Hadamard matrix. */
#include "base/rng.h"
#include "method/equivalent.h"
#include "model/family.h"

enum { STREAM, VO, DOWN, QK, SIGNS };

static const nb_step_option options[] = {
    [STREAM] = {"stream", NB_OPTION_FLAG, 0, 0, 1}, [VO] = {"vo", NB_OPTION_FLAG, 0, 0, 1},
    [DOWN] = {"down", NB_OPTION_FLAG, 0, 0, 1},     [QK] = {"qk", NB_OPTION_FLAG, 0, 0, 1},
    [SIGNS] = {"signs", NB_OPTION_FLAG, 0, 0, 1},   {0},
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

/* ---- signs -------------------------------------------------------------------------------- */

static void flip_rows(const nb_block_job *job, nb_role role, const float *sign)
{
    const nb_host_linear *l = &job->block->linear[role];
    float *w = nb_block_weight(job, role), *bias = (float *)(uintptr_t)l->bias;
    for (int64_t r = 0; r < l->w.n_out; r++) {
        for (int64_t i = 0; i < l->w.n_in; i++) w[r * l->w.n_in + i] *= sign[r];
        if (bias) bias[r] *= sign[r];
    }
}

static void flip_columns(const nb_block_job *job, nb_role role, const float *sign)
{
    const nb_matrix *m = &job->block->linear[role].w;
    float *w = nb_block_weight(job, role);
    for (int64_t r = 0; r < m->n_out; r++) {
        for (int64_t i = 0; i < m->n_in; i++) w[r * m->n_in + i] *= sign[i];
    }
}

/* Signs of the pair's channels from seed and layer; *why: what stands against it, or NULL. */
static nb_status flip_pair(const nb_block_job *job, nb_pair_kind kind, const char **why,
                           nb_error *err)
{
    nb_pair p;
    *why = nb_pair_find(&p, job, kind);
    if (!*why && kind == NB_PAIR_DOWN && !job->block->linear[NB_GATE].name) {
        *why = "the activation between them has no sign";
    }
    if (*why) return NB_OK;
    float *by_channel = nb_arena_alloc(job->arena, (size_t)(p.n + p.n_in), sizeof *by_channel);
    if (!by_channel) return nb_fail_memory(err, p.name, (size_t)(p.n + p.n_in) * 4);
    nb_rng rng = {(uint64_t)job->seed * 1000003u + (uint64_t)job->block->layer * NB_N_PAIRS + kind};
    for (int64_t i = 0; i < p.n; i++) by_channel[i] = nb_rng_next(&rng) >> 63 ? -1 : 1;
    nb_pair_expand(&p, by_channel, by_channel + p.n);
    flip_rows(job, (nb_role)p.linear, by_channel);
    flip_columns(job, p.consumer[0], by_channel + p.n);
    return NB_OK;
}

/* ---- the step ----------------------------------------------------------------------------- */

static json_t *describe(int64_t run, bool online, bool signs, const char *why)
{
    json_t *said = json_pack("{s:I, s:b}", "run", (json_int_t)run, "online", (int)online);
    if (signs) json_object_set_new(said, "signs", json_string(why ? why : "random"));
    return said;
}

static nb_status rotate_pair(nb_block_job *job, nb_pair_kind kind, int64_t run, json_t *report,
                             nb_error *err)
{
    bool signs = job->option[SIGNS] != 0;
    const char *why = NULL;
    if (signs) NB_TRY(flip_pair(job, kind, &why, err));
    if (kind == NB_PAIR_O) rotate_rows(job, NB_V, run);
    rotate_columns(job, kind == NB_PAIR_O ? NB_O : NB_DOWN, run);
    json_object_set_new(report, kind == NB_PAIR_O ? "vo" : "down",
                        describe(run, kind == NB_PAIR_DOWN, signs, why));
    return NB_OK;
}

static nb_status run_hadamard(nb_block_job *job, nb_error *err)
{
    const nb_config *c = job->cfg;
    nb_rotation online = job->block->rotation;
    if (job->option[STREAM]) online.stream = 0; /* the source has done it */
    NB_TRY(add_rotation(job->option, c, &online, err));
    json_t *report = json_object();
    json_object_set_new(job->report, "hadamard", report);
    if (job->option[STREAM]) {
        json_object_set_new(report, "stream", describe(online.stream, true, false, NULL));
    }
    if (job->option[VO]) NB_TRY(rotate_pair(job, NB_PAIR_O, c->head_dim, report, err));
    if (job->option[DOWN]) NB_TRY(rotate_pair(job, NB_PAIR_DOWN, online.down, report, err));
    if (job->option[QK]) {
        json_object_set_new(report, "qk", describe(c->head_dim, !folds_qk(c), false, NULL));
        if (folds_qk(c)) {
            rotate_rows(job, NB_Q, c->head_dim);
            rotate_rows(job, NB_K, c->head_dim);
        }
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
