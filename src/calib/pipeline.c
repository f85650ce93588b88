/* The block loop.
 *
 *   ends  -> shard 0
 *   block -> steps on the block -> steps on each linear -> shard 1 + layer -> journal
 *
 * With calibration text the hidden states follow: the source's own, and those of what has been
 * stored, read back from the shard so that they come from the very bytes that will be used. A
 * resumed run sends them through the finished blocks again, and quantizes none of them twice. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "calib/build.h"
#include "calib/estimate.h"
#include "calib/pipeline.h"

/* ---- progress ----------------------------------------------------------------------------- */

nb_status nb_calib_tell(const nb_calib *c, int done, const char *note, nb_error *err)
{
    nb_progress p = {.phase = "quantize", .done = done, .total = c->plan.n_shards, .note = note};
    const nb_options *run = &c->opt->run;
    if (!run->progress || run->progress(run->progress_user, &p)) return NB_OK;
    return nb_fail(err, NB_EINTERRUPTED, "stopped after %d of %d parts; --resume goes on", done,
                   c->plan.n_shards);
}

nb_status nb_calib_tick(void *user)
{
    const nb_ticker *t = user;
    return nb_calib_tell(t->c, t->done, NULL, t->err);
}

/* ---- hidden states ------------------------------------------------------------------------ */

/* The shard as a reader of the finished directory will see it. line: its line of the journal. */
static nb_status open_part(const nb_calib *c, int index, json_t *line, nb_source **out,
                           nb_error *err)
{
    char name[NB_SHARD_NAME];
    nb_shard_name(name, index, c->plan.n_shards);
    char *path = nb_outdir_path(&c->dir, name);
    json_t *lines = json_pack("[O]", line);
    json_t *quantization = nb_finish_quantization(c, lines);
    nb_status st = path && quantization
                       ? nb_source_open_part(out, path, c->source, quantization, err)
                       : nb_fail_memory(err, name, 0);
    json_decref(quantization);
    json_decref(lines);
    free(path);
    return st;
}

static nb_status begin_flow(nb_calib *c, const nb_source *part, nb_error *err)
{
    nb_host_ends source, stored;
    NB_TRY(nb_source_ends(c->source, c->arena, &source, err));
    NB_TRY(nb_source_ends(part, c->arena, &stored, err));
    return nb_flow_begin(c->flow, &source, &stored, err);
}

static nb_status advance_flow(nb_calib *c, const nb_source *part, int layer, double *error,
                              nb_error *err)
{
    nb_host_block source, stored;
    NB_TRY(nb_source_block(c->source, layer, c->arena, &source, err));
    NB_TRY(nb_source_block(part, layer, c->arena, &stored, err));
    if (c->recipe.fp_stats) nb_build_leave_acts(&stored);
    nb_ticker t = {.c = c, .done = layer + 1, .err = err};
    return nb_flow_advance(c->flow, &source, &stored, nb_calib_tick, &t, error, err);
}

/* Follows a shard with the hidden states; adds the output error to a new journal line. */
static nb_status follow(nb_calib *c, int index, json_t *new_line, nb_error *err)
{
    if (!c->flow) return NB_OK;
    nb_arena_reset(c->arena);
    nb_source *part;
    double error = 0;
    json_t *line = new_line ? new_line : json_array_get(c->dir.journal.shards, (size_t)index);
    NB_TRY(open_part(c, index, line, &part, err));
    nb_status st =
        index == 0 ? begin_flow(c, part, err) : advance_flow(c, part, index - 1, &error, err);
    nb_source_close(part);
    if (st == NB_OK && new_line && index > 0) {
        json_object_set_new(new_line, "output_error", json_real(error));
    }
    return st;
}

/* ---- the loop ----------------------------------------------------------------------------- */

static void release_ends(const nb_calib *c)
{
    const nb_checkpoint *ckpt = nb_source_checkpoint(c->source);
    for (size_t i = 0; i < nb_checkpoint_count(ckpt); i++) {
        nb_checkpoint_release(ckpt, nb_checkpoint_at(ckpt, i));
    }
}

static nb_status do_shard(nb_calib *c, int index, nb_error *err)
{
    char note[128] = "";
    json_t *line = NULL;
    nb_arena_reset(c->arena);
    bool finished = (size_t)index < json_array_size(c->dir.journal.shards);
    if (!finished) NB_TRY(nb_build_shard(c, index, &line, note, err));
    nb_status st = follow(c, index, line, err);
    nb_arena_reset(c->arena);
    nb_heap_trim();
    if (index == 0) {
        release_ends(c);
    } else {
        nb_source_release(c->source, index - 1);
    }
    if (st != NB_OK) {
        json_decref(line);
        return st;
    }
    if (!finished) {
        NB_TRY(nb_journal_add(&c->dir.journal, line, err));
        NB_TRY(nb_outdir_drop_training(&c->dir, err));
    }
    return nb_calib_tell(c, index + 1, *note ? note : NULL, err);
}

static nb_status run_loop(nb_calib *c, nb_error *err)
{
    c->n_resumed = (int)json_array_size(c->dir.journal.shards);
    if (c->samples.n > 0) {
        nb_flow_desc d = nb_flow_describe(&c->recipe, nb_source_config(c->source));
        if (c->plan.spill) d.spill = c->dir.partial;
        NB_TRY(nb_flow_create(&c->flow, c->be, &d, &c->samples, err));
    }
    NB_TRY(nb_calib_tell(c, c->flow ? 0 : c->n_resumed, NULL, err));
    for (int i = c->flow ? 0 : c->n_resumed; i < c->plan.n_shards; i++) {
        NB_TRY(do_shard(c, i, err));
    }
    NB_TRY(nb_finish_write(c, err));
    return nb_outdir_finish(&c->dir, err);
}

/* ---- before the loop ---------------------------------------------------------------------- */

static nb_status load_recipe(nb_calib *c, nb_error *err)
{
    const nb_quantize_options *opt = c->opt;
    if (opt->recipe) {
        NB_TRY(nb_recipe_parse(&c->recipe, opt->recipe, strlen(opt->recipe), err));
    } else {
        nb_recipe_default(&c->recipe);
    }
    NB_TRY(nb_recipe_override(&c->recipe, opt, err));
    NB_TRY(nb_recipe_check(&c->recipe, err));
    bool needs = nb_recipe_needs(&c->recipe) || nb_recipe_block_needs(&c->recipe);
    if (!needs || opt->n_calib > 0) return NB_OK;
    const nb_step *step = c->recipe.steps;
    while (!nb_step_needs(step)) step++;
    return nb_fail(err, NB_EUSAGE, "method: step \"%s\" needs calibration text (calib)",
                   step->word);
}

/* Windows are never longer than the model's context: a recipe's length is a wish. */
static nb_status fit_seqlen(nb_calib *c, nb_error *err)
{
    int n_ctx = nb_source_config(c->source)->n_ctx;
    if (c->recipe.seqlen <= n_ctx) return NB_OK;
    if (c->opt->seqlen > n_ctx) {
        return nb_fail(err, NB_EUSAGE, "seqlen: %d, expected at most the model's context of %d",
                       c->opt->seqlen, n_ctx);
    }
    c->recipe.seqlen = n_ctx;
    return NB_OK;
}

static nb_status open_source(nb_calib *c, nb_error *err)
{
    NB_TRY(nb_source_open(&c->source, c->opt->model, err));
    if (nb_source_is_quantized(c->source)) {
        return nb_fail(err, NB_EUSAGE, "%s: is quantized already; start from the original",
                       c->opt->model);
    }
    if (c->recipe.rope != NB_ORDER_OWN) {
        NB_TRY(nb_source_set_rope(c->source, c->recipe.rope == NB_ORDER_INTERLEAVED, err));
    }
    NB_TRY(fit_seqlen(c, err));
    nb_rotation rotation;
    NB_TRY(nb_recipe_rotation(&c->recipe, nb_source_config(c->source), &rotation, err));
    if (rotation.stream) {
        nb_source_rotate(c->source, rotation.stream, c->be->threads, c->be->cpu);
    }
    return nb_plan_make(&c->plan, c->source, &c->recipe, c->opt->n_calib > 0, c->arena, err);
}

/* What must be the same for a run to be continued. The weights' checksum reads the whole source:
 * the only way to notice that a file of the same shape was put in its place. Where the hidden
 * states play a part, so does the arithmetic that they are computed in. */
static nb_status make_fingerprint(const nb_calib *c, json_t **out, nb_error *err)
{
    char source[NB_HASH_CHARS], config[NB_HASH_CHARS], recipe[NB_HASH_CHARS];
    char tokens[NB_HASH_CHARS], *text;
    const nb_options *run = &c->opt->run;
    const nb_samples *s = &c->samples;
    NB_TRY(nb_checkpoint_hash(nb_source_checkpoint(c->source), source, err));
    NB_TRY(nb_source_config_json(c->source, &text, err));
    nb_hash(config, text, strlen(text));
    free(text);
    nb_hash(recipe, c->recipe_text, strlen(c->recipe_text));
    bool calibrated = s->n > 0;
    if (calibrated) nb_hash(tokens, s->ids, (size_t)s->n * (size_t)s->seqlen * sizeof *s->ids);
    *out =
        json_pack("{s:s,s:i,s:s,s:s,s:s,s:s?,s:s?,s:s?,s:s?}", "version", nb_version(),
                  "format_version", 1, "source", source, "config", config, "recipe", recipe,
                  "calibration", calibrated ? s->hash : NULL, "tokens", calibrated ? tokens : NULL,
                  "device", calibrated ? (run->device ? run->device : "cpu") : NULL, "compute",
                  !calibrated                       ? NULL
                  : run->compute == NB_COMPUTE_BF16 ? "bf16"
                                                    : "f32");
    return *out ? NB_OK : nb_fail_memory(err, "fingerprint", 0);
}

static nb_status hash_run(nb_calib *c, json_t *fingerprint, nb_error *err)
{
    char *text = json_dumps(fingerprint, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text) return nb_fail_memory(err, "fingerprint", 0);
    nb_hash(c->run, text, strlen(text));
    free(text);
    return NB_OK;
}

static nb_status begin(nb_calib *c, nb_error *err)
{
    size_t n;
    json_t *fingerprint;
    NB_TRY(nb_outdir_check(&c->dir, c->opt, err));
    NB_TRY(nb_calib_tell(c, 0, "checksum of the source", err));
    NB_TRY(nb_recipe_write(&c->recipe, &c->recipe_text, &n, err));
    NB_TRY(nb_samples_load(&c->samples, c->source, &c->recipe, c->opt, err));
    NB_TRY(make_fingerprint(c, &fingerprint, err));
    nb_status st = hash_run(c, fingerprint, err);
    if (st == NB_OK) st = nb_outdir_begin(&c->dir, c->opt, fingerprint, err);
    json_decref(fingerprint);
    return st;
}

/* Sizes of the weight files in OUT; 0 if one is missing. */
static int64_t measure_out(const nb_calib *c)
{
    int64_t sum = 0;
    for (int i = 0; i < c->plan.n_shards; i++) {
        char name[NB_SHARD_NAME];
        nb_shard_name(name, i, c->plan.n_shards);
        char *path = nb_path_join(c->dir.out, name);
        int64_t n = path ? nb_file_bytes(path) : -1;
        free(path);
        if (n < 0) return 0;
        sum += n;
    }
    return sum;
}

static void describe(const nb_calib *c, nb_quantize_result *out)
{
    int n_layers = c->plan.n_shards - 1, resumed = c->n_resumed - 1; /* the first: the ends */
    snprintf(out->recipe, sizeof out->recipe, "%s", c->recipe.name);
    out->bytes = c->plan.bytes;
    out->source_bytes = nb_checkpoint_bytes(nb_source_checkpoint(c->source));
    out->n_quantized = c->plan.n_quantized;
    out->bits_per_weight = nb_plan_bits(&c->plan);
    out->estimated_memory = c->plan.memory;
    out->spilled_bytes = c->plan.spill ? c->plan.spill_bytes : 0;
    out->estimated_seconds = c->estimated_seconds;
    out->n_blocks = n_layers;
    out->n_resumed = c->dir.complete ? n_layers : resumed > 0 ? resumed : 0;
    if (!c->opt->dry_run) out->bytes = measure_out(c);
}

static nb_status run_all(nb_calib *c, nb_error *err)
{
    NB_TRY(load_recipe(c, err));
    NB_TRY(nb_backend_create(&c->be, &c->opt->run, err));
    NB_TRY(nb_arena_create(&c->arena, err));
    NB_TRY(nb_arena_create(&c->scratch, err));
    NB_TRY(open_source(c, err));
    NB_TRY(nb_plan_check(&c->plan, c->opt, err));
    if (c->opt->dry_run) return nb_estimate_seconds(c, &c->estimated_seconds, err);
    NB_TRY(begin(c, err));
    return c->dir.complete ? NB_OK : run_loop(c, err);
}

nb_status nb_calib_run(const nb_quantize_options *opt, nb_quantize_result *out, nb_error *err)
{
    double start = nb_now();
    nb_calib c = {.opt = opt};
    *out = (nb_quantize_result){0};
    nb_status st = run_all(&c, err);
    if (st == NB_OK) {
        describe(&c, out);
        out->seconds = nb_now() - start;
        out->peak_rss = nb_peak_rss();
    }
    nb_flow_free(c.flow);
    nb_backend_free(c.be);
    nb_outdir_fini(&c.dir);
    nb_samples_fini(&c.samples);
    nb_source_close(c.source);
    nb_arena_free(c.arena);
    nb_arena_free(c.scratch);
    free(c.recipe_text);
    return st;
}
