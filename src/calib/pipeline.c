/* The block loop.
 *
 *   ends  -> shard 0
 *   block -> steps of the recipe on each linear -> shard 1 + layer -> journal
 *
 * With calibration text the hidden states follow: the source's own, and those of what has been
 * stored, read back from the shard so that both come from the very bytes that will be used. A
 * resumed run sends them through the finished blocks again, and quantizes none of them twice. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "calib/convert.h"
#include "calib/estimate.h"
#include "calib/gram.h"
#include "calib/pipeline.h"
#include "calib/shard.h"
#include "method/gptq.h"

/* ---- progress ----------------------------------------------------------------------------- */

static nb_status tell(const nb_calib *c, int done, const char *note, nb_error *err)
{
    nb_progress p = {.phase = "quantize", .done = done, .total = c->plan.n_shards, .note = note};
    const nb_options *run = &c->opt->run;
    if (!run->progress || run->progress(run->progress_user, &p)) return NB_OK;
    return nb_fail(err, NB_EINTERRUPTED, "stopped after %d of %d parts; --resume goes on", done,
                   c->plan.n_shards);
}

typedef struct ticker {
    const nb_calib *c;
    int done;
    nb_error *err;
} ticker;

static nb_status tick(void *user)
{
    const ticker *t = user;
    return tell(t->c, t->done, NULL, t->err);
}

/* ---- one shard ---------------------------------------------------------------------------- */

/* What is said of the linears of a shard, and the shard itself while it grows. */
typedef struct builder {
    nb_calib *c;
    int index; /* of the shard */
    nb_shard shard;
    json_t *linears;
    double worst; /* largest weight error, and whose it is */
    const char *worst_name;
    nb_error *err;
} builder;

static nb_status report_linear(builder *b, const char *name, const nb_matrix *w,
                               const nb_convert_info *info)
{
    json_t *one = json_pack("{s:s,s:s,s:I,s:I,s:I,s:f}", "name", name, "format", w->format.word,
                            "rows", (json_int_t)w->n_out, "cols", (json_int_t)w->n_in, "bytes",
                            (json_int_t)nb_matrix_bytes(w), "error", info->error);
    if (info->loss >= 0) json_object_set_new(one, "loss", json_real(info->loss));
    if (info->clipped >= 0) json_object_set_new(one, "clipped", json_integer(info->clipped));
    if (*info->note) json_object_set_new(one, "note", json_string(info->note));
    if (!one || json_array_append_new(b->linears, one) != 0) {
        return nb_fail_memory(b->err, "report", 0);
    }
    if (info->error >= b->worst) {
        b->worst = info->error;
        b->worst_name = name;
    }
    return NB_OK;
}

static nb_convert begin_convert(nb_calib *c)
{
    return (nb_convert){.recipe = &c->recipe,
                        .arena = c->arena,
                        .scratch = c->scratch,
                        .threads = c->be->threads,
                        .cpu = c->be->cpu};
}

static nb_status add_linear(builder *b, const nb_convert *how, const nb_host_linear *l,
                            const nb_format *format, bool by_rows)
{
    nb_matrix stored;
    nb_convert_info info;
    NB_TRY(nb_convert_matrix(how, l->name, &l->w, format, by_rows, &stored, &info, b->err));
    NB_TRY(nb_shard_add_linear(&b->shard, l->name, &stored, l->bias, b->err));
    NB_TRY(report_linear(b, l->name, &stored, &info));
    return tell(b->c, b->index, NULL, b->err);
}

static nb_status add_ends(builder *b)
{
    nb_host_ends e;
    nb_calib *c = b->c;
    nb_convert how = begin_convert(c);
    NB_TRY(nb_source_ends(c->source, c->arena, &e, b->err));
    const nb_host_linear *const all[] = {&e.embed, &e.positions, &e.proj_in, &e.proj_out, &e.head};
    for (size_t i = 0; i < NB_COUNT(all); i++) {
        if (!all[i]->name) continue;
        nb_format f = nb_plan_end_format(&c->recipe, &e, all[i]);
        NB_TRY(add_linear(b, &how, all[i], &f, true));
    }
    return nb_shard_add_norm(&b->shard, &e.final_norm, b->err);
}

/* Statistics of the block's inputs where a step needs them; else *out is NULL. */
static nb_status collect(builder *b, const nb_host_block *block, nb_grams **out)
{
    nb_calib *c = b->c;
    *out = NULL;
    if (!(nb_recipe_needs(&c->recipe) & NB_NEED_HESSIAN)) return NB_OK;
    nb_host_block simulated = *block;
    for (int r = 0; r < NB_N_ROLES; r++) simulated.linear[r].act = c->recipe.acts;
    ticker t = {.c = c, .done = b->index, .err = b->err};
    bool raw = nb_recipe_needs(&c->recipe) & NB_NEED_RAW_TOKENS;
    NB_TRY(nb_grams_create(out, c->be, block, &c->recipe.acts, raw, b->err));
    return nb_flow_collect(c->flow, &simulated, nb_grams_observe, *out, tick, &t, b->err);
}

static nb_status add_linears(builder *b, const nb_host_block *block, nb_grams *grams,
                             nb_gptq_cache *factors)
{
    nb_convert how = begin_convert(b->c);
    how.factors = factors;
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &block->linear[r];
        if (!l->name) continue;
        if (grams) {
            NB_TRY(nb_grams_take(grams, (nb_role)r, &how.hessian, &how.importance, b->err));
        }
        NB_TRY(add_linear(b, &how, l, &b->c->recipe.weights, false));
    }
    return NB_OK;
}

static nb_status add_block(builder *b)
{
    nb_host_block block;
    nb_grams *grams;
    nb_gptq_cache factors = {0};
    nb_calib *c = b->c;
    int layer = b->index - 1;
    NB_TRY(nb_source_block(c->source, layer, c->arena, &block, b->err));
    nb_status st = collect(b, &block, &grams);
    if (st == NB_OK) st = add_linears(b, &block, grams, &factors);
    nb_gptq_cache_fini(&factors);
    nb_grams_free(grams);
    if (st != NB_OK) return nb_wrap(b->err, st, "block %d", layer);
    for (int r = 0; r < NB_N_NORMS; r++) {
        NB_TRY(nb_shard_add_norm(&b->shard, &block.norm[r], b->err));
    }
    return NB_OK;
}

/* A line of the journal, without the output error; NULL when memory is out. */
static json_t *journal_line(const builder *b, const char *file, const char *hash, int64_t n_bytes)
{
    json_t *tensors = json_array();
    json_int_t tensor_bytes = 0;
    for (size_t i = 0; i < b->shard.n; i++) {
        json_array_append_new(tensors, json_string(b->shard.items[i].name));
        tensor_bytes += (json_int_t)b->shard.items[i].n_bytes;
    }
    if (json_array_size(tensors) != b->shard.n) {
        json_decref(tensors);
        return NULL;
    }
    json_t *line = json_pack("{s:s,s:s,s:I,s:I,s:o,s:O}", "file", file, "hash", hash, "bytes",
                             (json_int_t)n_bytes, "tensor_bytes", tensor_bytes, "tensors", tensors,
                             "linears", b->linears);
    if (b->index > 0) json_object_set_new(line, "block", json_integer(b->index - 1));
    return line;
}

static nb_status write_shard(builder *b, json_t **line)
{
    char name[NB_SHARD_NAME], hash[NB_HASH_CHARS];
    int64_t n_bytes;
    nb_shard_name(name, b->index, b->c->plan.n_shards);
    char *path = nb_outdir_path(&b->c->dir, name);
    if (!path) return nb_fail_memory(b->err, name, 0);
    nb_status st = nb_shard_write(&b->shard, path, hash, &n_bytes, b->err);
    free(path);
    if (st != NB_OK) return st;
    *line = journal_line(b, name, hash, n_bytes);
    return *line ? NB_OK : nb_fail_memory(b->err, name, 0);
}

/* Makes shard `index` and its journal line; the line is not yet in the journal. */
static nb_status make_shard(nb_calib *c, int index, json_t **line, char note[128], nb_error *err)
{
    *line = NULL;
    builder b = {
        .c = c, .index = index, .shard = {.arena = c->arena}, .linears = json_array(), .err = err};
    if (!b.linears) return nb_fail_memory(err, "report", 0);
    nb_status st = index == 0 ? add_ends(&b) : add_block(&b);
    if (st == NB_OK) st = write_shard(&b, line);
    if (st == NB_OK && index > 0) {
        snprintf(note, 128, "block %d: weight error %.3g at most (%s)", index - 1, b.worst,
                 b.worst_name ? b.worst_name : "-");
    }
    json_decref(b.linears);
    return st;
}

static void release_ends(const nb_calib *c)
{
    const nb_checkpoint *ckpt = nb_source_checkpoint(c->source);
    for (size_t i = 0; i < nb_checkpoint_count(ckpt); i++) {
        nb_checkpoint_release(ckpt, nb_checkpoint_at(ckpt, i));
    }
}

/* ---- hidden states ------------------------------------------------------------------------ */

static nb_status open_shard(const nb_calib *c, int index, nb_checkpoint **out, nb_error *err)
{
    char name[NB_SHARD_NAME];
    nb_shard_name(name, index, c->plan.n_shards);
    char *path = nb_outdir_path(&c->dir, name);
    if (!path) return nb_fail_memory(err, name, 0);
    nb_status st = nb_checkpoint_open(out, path, err);
    free(path);
    return st;
}

/* Puts the stored weight in the place of the source's. */
static nb_status use_stored(const nb_calib *c, const nb_checkpoint *shard, nb_format format,
                            nb_host_linear *l, nb_error *err)
{
    if (!l->name) return NB_OK;
    l->w.format = format;
    if (nb_format_is_quantized(&format)) l->act = c->recipe.acts;
    return nb_shard_find(shard, l->name, &l->w, err);
}

static nb_status begin_flow(nb_calib *c, nb_error *err)
{
    nb_host_ends source;
    nb_checkpoint *shard;
    NB_TRY(nb_source_ends(c->source, c->arena, &source, err));
    NB_TRY(open_shard(c, 0, &shard, err));
    nb_host_ends stored = source;
    nb_host_linear *const from[] = {&source.embed, &source.positions, &source.proj_in};
    nb_host_linear *const to[] = {&stored.embed, &stored.positions, &stored.proj_in};
    nb_status st = NB_OK;
    for (size_t i = 0; st == NB_OK && i < NB_COUNT(to); i++) {
        if (!from[i]->name) continue;
        nb_format f = nb_plan_end_format(&c->recipe, &source, from[i]);
        st = use_stored(c, shard, f, to[i], err);
        to[i]->act = (nb_format){0}; /* the quantizers of the inputs are inside the blocks */
    }
    if (st == NB_OK) st = nb_flow_begin(c->flow, &source, &stored, err);
    nb_checkpoint_close(shard);
    return st;
}

static nb_status advance_flow(nb_calib *c, int layer, double *error, nb_error *err)
{
    nb_host_block source;
    nb_checkpoint *shard;
    NB_TRY(nb_source_block(c->source, layer, c->arena, &source, err));
    NB_TRY(open_shard(c, layer + 1, &shard, err));
    nb_host_block stored = source;
    nb_status st = NB_OK;
    for (int r = 0; st == NB_OK && r < NB_N_ROLES; r++) {
        st = use_stored(c, shard, c->recipe.weights, &stored.linear[r], err);
    }
    ticker t = {.c = c, .done = layer + 1, .err = err};
    if (st == NB_OK) st = nb_flow_advance(c->flow, &source, &stored, tick, &t, error, err);
    nb_checkpoint_close(shard);
    return st;
}

/* ---- the loop ----------------------------------------------------------------------------- */

/* Follows a shard with the hidden states; adds the output error to a new journal line. */
static nb_status follow(nb_calib *c, int index, json_t *line, nb_error *err)
{
    if (!c->flow) return NB_OK;
    nb_arena_reset(c->arena);
    if (index == 0) return begin_flow(c, err);
    double error;
    NB_TRY(advance_flow(c, index - 1, &error, err));
    if (line) json_object_set_new(line, "output_error", json_real(error));
    return NB_OK;
}

static nb_status do_shard(nb_calib *c, int index, nb_error *err)
{
    char note[128] = "";
    json_t *line = NULL;
    nb_arena_reset(c->arena);
    bool finished = (size_t)index < json_array_size(c->dir.journal.shards);
    if (!finished) NB_TRY(make_shard(c, index, &line, note, err));
    nb_status st = follow(c, index, line, err);
    nb_arena_reset(c->arena);
    if (index == 0) {
        release_ends(c);
    } else {
        nb_source_release(c->source, index - 1);
    }
    if (st != NB_OK) {
        json_decref(line);
        return st;
    }
    if (!finished) NB_TRY(nb_journal_add(&c->dir.journal, line, err));
    return tell(c, index + 1, *note ? note : NULL, err);
}

static nb_status run_loop(nb_calib *c, nb_error *err)
{
    c->n_resumed = (int)json_array_size(c->dir.journal.shards);
    if (c->samples.n > 0) {
        const nb_config *cfg = nb_source_config(c->source);
        NB_TRY(nb_flow_create(&c->flow, c->be, cfg, &c->samples, err));
    }
    NB_TRY(tell(c, c->flow ? 0 : c->n_resumed, NULL, err));
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
    if (!nb_recipe_needs(&c->recipe) || opt->n_calib > 0) return NB_OK;
    const nb_step *step = c->recipe.steps;
    while (!step->method->needs) step++;
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
    NB_TRY(fit_seqlen(c, err));
    return nb_plan_make(&c->plan, c->source, &c->recipe, c->opt->n_calib > 0, c->arena, err);
}

/* What must be the same for a run to be continued. The weights' checksum reads the whole source:
 * the only way to notice that a file of the same shape was put in its place. Where the hidden
 * states play a part, so does the arithmetic that they are computed in. */
static nb_status make_fingerprint(const nb_calib *c, json_t **out, nb_error *err)
{
    char source[NB_HASH_CHARS], recipe[NB_HASH_CHARS];
    const nb_options *run = &c->opt->run;
    NB_TRY(nb_checkpoint_hash(nb_source_checkpoint(c->source), source, err));
    nb_hash(recipe, c->recipe_text, strlen(c->recipe_text));
    bool calibrated = c->samples.n > 0;
    *out = json_pack("{s:s,s:i,s:s,s:s,s:s?,s:s?,s:s?}", "version", nb_version(), "format_version",
                     1, "source", source, "recipe", recipe, "calibration",
                     calibrated ? c->samples.hash : NULL, "device",
                     calibrated ? (run->device ? run->device : "cpu") : NULL, "compute",
                     !calibrated                       ? NULL
                     : run->compute == NB_COMPUTE_BF16 ? "bf16"
                                                       : "f32");
    return *out ? NB_OK : nb_fail_memory(err, "fingerprint", 0);
}

static nb_status begin(nb_calib *c, nb_error *err)
{
    size_t n;
    json_t *fingerprint;
    NB_TRY(nb_outdir_check(&c->dir, c->opt, err));
    NB_TRY(tell(c, 0, "checksum of the source", err));
    NB_TRY(nb_recipe_write(&c->recipe, &c->recipe_text, &n, err));
    NB_TRY(nb_samples_load(&c->samples, c->source, &c->recipe, c->opt, err));
    NB_TRY(make_fingerprint(c, &fingerprint, err));
    nb_status st = nb_outdir_begin(&c->dir, c->opt, fingerprint, err);
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
