#include "calib/build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/block_steps.h"
#include "calib/convert.h"
#include "calib/gram.h"
#include "calib/shard.h"
#include "method/gptq.h"

/* What is said of a shard, and the shard itself while it grows. */
typedef struct builder {
    nb_calib *c;
    int index; /* of the shard */
    nb_shard shard;
    json_t *linears, *extra; /* of its line in the journal: matrices; what few shards have */
    double worst;            /* largest weight error, and whose it is */
    const char *worst_name;
    nb_error *err;
} builder;

/* ---- one matrix --------------------------------------------------------------------------- */

static nb_status report_linear(builder *b, const nb_host_linear *l, const nb_convert_info *info)
{
    const nb_matrix *w = &l->w;
    json_t *one =
        json_pack("{s:s,s:s,s:I,s:I,s:I,s:f}", "name", l->name, "format", w->format.word, "rows",
                  (json_int_t)w->n_out, "cols", (json_int_t)w->n_in, "bytes",
                  (json_int_t)(nb_matrix_bytes(w) + nb_lorc_bytes(&l->lorc)), "error", info->error);
    if (l->lorc.rank > 0) {
        json_object_set_new(one, "lorc",
                            json_pack("{s:i,s:s,s:f}", "rank", l->lorc.rank, "format",
                                      l->lorc.a.format.word, "error_before", info->rounded));
    }
    if (info->clipped >= 0) json_object_set_new(one, "clipped", json_real(info->clipped));
    if (info->driven >= 0) json_object_set_new(one, "clipped_updated", json_integer(info->driven));
    if (info->loss >= 0) json_object_set_new(one, "loss", json_real(info->loss));
    if (*info->note) json_object_set_new(one, "note", json_string(info->note));
    if (!one || json_array_append_new(b->linears, one) != 0) {
        return nb_fail_memory(b->err, "report", 0);
    }
    if (info->error >= b->worst) {
        b->worst = info->error;
        b->worst_name = l->name;
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

/* *stored: the linear as the shard has it. */
static nb_status add_linear(builder *b, const nb_convert *how, const nb_host_linear *l,
                            const nb_format *format, bool by_rows, nb_host_linear *stored)
{
    nb_convert_info info;
    *stored = *l;
    NB_TRY(nb_convert_matrix(how, l->name, &l->w, format, by_rows, &stored->w, &info, b->err));
    stored->lorc = info.lorc;
    NB_TRY(nb_shard_add_linear(&b->shard, stored, b->err));
    NB_TRY(report_linear(b, stored, &info));
    return nb_calib_tell(b->c, b->index, NULL, b->err);
}

/* ---- ends --------------------------------------------------------------------------------- */

static nb_status add_ends(builder *b)
{
    nb_host_ends e;
    nb_calib *c = b->c;
    nb_convert how = begin_convert(c);
    NB_TRY(nb_source_ends(c->source, c->arena, &e, b->err));
    const nb_host_linear *const all[] = {&e.embed, &e.positions, &e.proj_in, &e.proj_out, &e.head};
    for (size_t i = 0; i < NB_COUNT(all); i++) {
        nb_host_linear stored;
        if (!all[i]->name) continue;
        nb_format f = nb_plan_end_format(&c->recipe, &e, all[i]);
        NB_TRY(add_linear(b, &how, all[i], &f, true, &stored));
    }
    return nb_shard_add_norm(&b->shard, &e.final_norm, b->err);
}

/* ---- a block ------------------------------------------------------------------------------ */

void nb_build_leave_acts(nb_host_block *block)
{
    for (int r = 0; r < NB_N_ROLES; r++) block->linear[r].act = (nb_format){0};
    block->attn = (nb_attn_formats){0};
}

/* The block with the online quantizers that it will be used with. */
static nb_host_block simulated(const nb_recipe *recipe, const nb_host_block *block)
{
    nb_host_block s = *block;
    for (int r = 0; r < NB_N_ROLES; r++) s.linear[r].act = nb_recipe_act(recipe, (nb_role)r);
    s.attn = nb_recipe_attn(recipe);
    if (recipe->fp_stats) nb_build_leave_acts(&s);
    return s;
}

/* Statistics of the inputs of `roles` where a step needs them; else *out is NULL. */
static nb_status collect(builder *b, const nb_host_block *block, unsigned roles, nb_grams **out)
{
    nb_calib *c = b->c;
    *out = NULL;
    if (!(nb_recipe_needs(&c->recipe) & NB_NEED_HESSIAN)) return NB_OK;
    for (int r = 0; r < NB_N_ROLES; r++) {
        bool rounded = nb_format_is_quantized(nb_recipe_weights(&c->recipe, (nb_role)r));
        if (!rounded || !block->linear[r].name) roles &= ~(1u << r);
    }
    if (!roles) return NB_OK;
    nb_ticker t = {.c = c, .done = b->index, .err = b->err};
    bool raw = nb_recipe_needs(&c->recipe) & NB_NEED_RAW_TOKENS;
    NB_TRY(nb_grams_create(out, c->be, block, roles, raw, b->err));
    return nb_flow_collect(c->flow, block, nb_grams_observe, *out, nb_calib_tick, &t, b->err);
}

/* config.json names the inputs that are not as the recipe says of all. */
static nb_status report_act(builder *b, nb_role role)
{
    const nb_recipe *r = &b->c->recipe;
    nb_format act = nb_recipe_act(r, role);
    bool usual =
        nb_format_is_quantized(nb_recipe_weights(r, role)) && nb_format_is_quantized(&r->acts);
    const char *word = nb_format_is_quantized(&act) ? act.word : "none";
    if (strcmp(word, usual ? r->acts.word : "none") == 0) return NB_OK;
    json_t *one = json_array_get(b->linears, json_array_size(b->linears) - 1);
    return json_object_set_new(one, "act", json_string(word)) == 0
               ? NB_OK
               : nb_fail_memory(b->err, "report", 0);
}

/* Linears of `roles`, each in the place of the source's once it is rounded: what is collected next
 * sees it. */
static nb_status add_roles(builder *b, nb_host_block *block, const nb_block_result *steps,
                           unsigned roles, nb_grams *grams, nb_gptq_cache *factors)
{
    nb_convert how = begin_convert(b->c);
    how.factors = factors;
    for (int r = 0; r < NB_N_ROLES; r++) {
        nb_host_linear stored, *l = &block->linear[r];
        const nb_format *format = nb_recipe_weights(&b->c->recipe, (nb_role)r);
        if (!l->name || !(roles & 1u << r)) continue;
        how.clip_lo = steps->clip_lo[r];
        how.clip_hi = steps->clip_hi[r];
        how.offset = steps->offset[r];
        how.hessian = how.importance = NULL;
        if (grams && nb_format_is_quantized(format)) {
            NB_TRY(nb_grams_take(grams, (nb_role)r, &how.hessian, &how.importance, b->err));
        }
        NB_TRY(add_linear(b, &how, l, format, false, &stored));
        NB_TRY(report_act(b, (nb_role)r));
        *l = stored;
    }
    return NB_OK;
}

static nb_status add_linears(builder *b, nb_host_block *block, const nb_block_result *steps)
{
    static const unsigned stages[] = {1u << NB_Q | 1u << NB_K | 1u << NB_V, 1u << NB_O,
                                      1u << NB_GATE | 1u << NB_UP, 1u << NB_DOWN};
    static const unsigned at_once[] = {NB_ALL_ROLES};
    bool sequential = b->c->recipe.sequential;
    size_t n = sequential ? NB_COUNT(stages) : NB_COUNT(at_once);
    nb_status st = NB_OK;
    for (size_t i = 0; st == NB_OK && i < n; i++) {
        unsigned roles = sequential ? stages[i] : at_once[i];
        nb_grams *grams;
        nb_gptq_cache factors = {0};
        st = collect(b, block, roles, &grams);
        if (st == NB_OK) st = add_roles(b, block, steps, roles, grams, &factors);
        nb_gptq_cache_fini(&factors);
        nb_grams_free(grams);
    }
    return st;
}

/* Linears with a bias that the configuration does not know of; had: those it does. */
static nb_status report_biases(builder *b, const nb_host_block *block, unsigned had)
{
    json_t *names = json_array();
    bool failed = !names;
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &block->linear[r];
        if (!l->name || !l->bias || (had & 1u << r)) continue;
        failed |= json_array_append_new(names, json_string(l->name)) != 0;
    }
    if (json_array_size(names) > 0) failed |= json_object_set(b->extra, "biases", names) != 0;
    json_decref(names);
    return failed ? nb_fail_memory(b->err, "report", 0) : NB_OK;
}

/* Steps on the whole block, then on its linears. */
static nb_status run_block(builder *b, nb_host_block *block)
{
    nb_calib *c = b->c;
    nb_block_result steps;
    nb_ticker t = {.c = c, .done = b->index, .err = b->err};
    nb_training training = {.dir = c->dir.training, .run = c->run};
    unsigned had = 0;
    for (int r = 0; r < NB_N_ROLES; r++) had |= block->linear[r].bias ? 1u << r : 0;
    NB_TRY(nb_block_steps_run(&c->recipe, nb_source_config(c->source), c->be, c->flow, c->arena,
                              block, &training, nb_calib_tick, &t, &steps, b->err));
    if (steps.report) json_object_set_new(b->extra, "steps", steps.report);
    NB_TRY(report_biases(b, block, had));
    *block = simulated(&c->recipe, block);
    return add_linears(b, block, &steps);
}

static nb_status add_block(builder *b)
{
    nb_host_block block;
    nb_calib *c = b->c;
    int layer = b->index - 1;
    NB_TRY(nb_source_block(c->source, layer, c->arena, &block, b->err));
    nb_status st = run_block(b, &block);
    if (st != NB_OK) return nb_wrap(b->err, st, "block %d", layer);
    for (int r = 0; r < NB_N_NORMS; r++) {
        NB_TRY(nb_shard_add_norm(&b->shard, &block.norm[r], b->err));
    }
    return NB_OK;
}

/* ---- the shard ---------------------------------------------------------------------------- */

/* The line of the journal, without the output error. */
static nb_status make_line(const builder *b, const char *file, const char *hash, int64_t n_bytes,
                           json_t **line)
{
    json_t *tensors = json_array();
    json_int_t tensor_bytes = 0;
    for (size_t i = 0; i < b->shard.n; i++) {
        json_array_append_new(tensors, json_string(b->shard.items[i].name));
        tensor_bytes += (json_int_t)b->shard.items[i].n_bytes;
    }
    bool failed = json_array_size(tensors) != b->shard.n;
    *line = json_pack("{s:s,s:s,s:I,s:I,s:o,s:O}", "file", file, "hash", hash, "bytes",
                      (json_int_t)n_bytes, "tensor_bytes", tensor_bytes, "tensors", tensors,
                      "linears", b->linears);
    if (b->index > 0) json_object_set_new(*line, "block", json_integer(b->index - 1));
    if (!failed && json_object_update(*line, b->extra) == 0) return NB_OK;
    json_decref(*line);
    *line = NULL;
    return nb_fail_memory(b->err, file, 0);
}

static nb_status write_shard(const builder *b, json_t **line)
{
    char name[NB_SHARD_NAME], hash[NB_HASH_CHARS];
    int64_t n_bytes;
    nb_shard_name(name, b->index, b->c->plan.n_shards);
    char *path = nb_outdir_path(&b->c->dir, name);
    if (!path) return nb_fail_memory(b->err, name, 0);
    nb_status st = nb_shard_write(&b->shard, path, hash, &n_bytes, b->err);
    free(path);
    return st == NB_OK ? make_line(b, name, hash, n_bytes, line) : st;
}

nb_status nb_build_shard(nb_calib *c, int index, json_t **line, char note[128], nb_error *err)
{
    *line = NULL;
    builder b = {.c = c,
                 .index = index,
                 .shard = {.arena = c->arena},
                 .linears = json_array(),
                 .extra = json_object(),
                 .err = err};
    nb_status st = b.linears && b.extra ? NB_OK : nb_fail_memory(err, "report", 0);
    if (st == NB_OK) st = index == 0 ? add_ends(&b) : add_block(&b);
    if (st == NB_OK) st = write_shard(&b, line);
    if (st == NB_OK && index > 0) {
        snprintf(note, 128, "block %d: weight error %.3g at most (%s)", index - 1, b.worst,
                 b.worst_name ? b.worst_name : "-");
    }
    json_decref(b.linears);
    json_decref(b.extra);
    return st;
}
