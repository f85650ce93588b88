/* The files beside the weights. All of them follow from the journal and the source, none from
 * when, where or how fast it ran: the same run gives the same bytes. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "calib/pipeline.h"

#define COPY_MAX_BYTES ((size_t)256 << 20)

static nb_status write_text(const nb_calib *c, const char *name, const char *text, size_t n,
                            nb_error *err)
{
    char *path = nb_outdir_path(&c->dir, name);
    nb_status st = path ? nb_write_file(path, text, n, err) : nb_fail_memory(err, name, n);
    free(path);
    return st;
}

/* Takes the reference to `value` over; NULL stands for memory that ran out. */
static nb_status write_json(const nb_calib *c, const char *name, json_t *value, size_t flags,
                            nb_error *err)
{
    char *path = nb_outdir_path(&c->dir, name);
    nb_status st = path ? nb_json_write(path, value, flags, err) : nb_fail_memory(err, name, 0);
    json_decref(value);
    free(path);
    return st;
}

int64_t nb_finish_bytes(const json_t *shards)
{
    int64_t sum = 0;
    size_t i;
    json_t *shard;
    json_array_foreach (shards, i, shard) {
        sum += json_integer_value(json_object_get(shard, "bytes"));
    }
    return sum;
}

/* ---- index -------------------------------------------------------------------------------- */

static nb_status write_index(const nb_calib *c, nb_error *err)
{
    json_t *map = json_object(), *shard, *name;
    json_int_t total = 0;
    size_t i, k;
    bool failed = !map;
    json_array_foreach (c->dir.journal.shards, i, shard) {
        json_t *file = json_object_get(shard, "file");
        total += json_integer_value(json_object_get(shard, "tensor_bytes"));
        json_array_foreach (json_object_get(shard, "tensors"), k, name) {
            failed |= json_object_set(map, json_string_value(name), file) != 0;
        }
    }
    json_t *root = json_pack("{s:{s:I},s:o}", "metadata", "total_size", total, "weight_map", map);
    if (!root) return nb_fail_memory(err, "index", 0);
    if (failed) {
        json_decref(root);
        root = NULL;
    }
    return write_json(c, "model.safetensors.index.json", root, 0, err);
}

/* ---- config.json -------------------------------------------------------------------------- */

/* Of the matrices in these lines of the journal: the word under `key` ("format", "act") by module;
 * plain formats are left out where `quantized`. NULL when memory is out. */
static json_t *words_by_module(const json_t *lines, const char *key, bool quantized)
{
    json_t *modules = json_object(), *shard, *linear;
    size_t i, k;
    json_array_foreach (lines, i, shard) {
        json_array_foreach (json_object_get(shard, "linears"), k, linear) {
            nb_format f;
            json_t *word = json_object_get(linear, key);
            const char *name = json_string_value(json_object_get(linear, "name"));
            if (!word || nb_format_parse(&f, json_string_value(word), NULL) != NB_OK) continue;
            if (quantized && !nb_format_is_quantized(&f)) continue;
            if (json_object_set(modules, name, word) == 0) continue;
            json_decref(modules);
            return NULL;
        }
    }
    return modules;
}

static json_t *bias_names(const json_t *lines)
{
    json_t *names = json_array(), *shard;
    size_t i;
    json_array_foreach (lines, i, shard) {
        json_t *some = json_object_get(shard, "biases");
        if (some && json_array_extend(names, some) != 0) {
            json_decref(names);
            return NULL;
        }
    }
    return names;
}

/* Takes the reference to `value` over: into *root unless it is empty. */
static bool set_filled(json_t *root, const char *key, json_t *value)
{
    bool empty = json_object_size(value) == 0 && json_array_size(value) == 0;
    if (value && !empty) return json_object_set_new(root, key, value) == 0;
    json_decref(value);
    return value != NULL;
}

/* Rank and format of the factors that the steps make. */
static bool set_lorc(json_t *root, const nb_recipe *r)
{
    nb_lorc l;
    bool any = nb_steps_lorc(r->steps, r->n_steps, &l, NULL) == NB_OK && l.rank > 0;
    if (!any || !nb_recipe_quantizes(r)) return true;
    json_t *lorc = json_pack("{s:i,s:s}", "rank", l.rank, "format", l.a.format.word);
    return json_object_set_new(root, "lorc", lorc) == 0;
}

/* Transforms that run online. */
static bool set_rotation(json_t *root, const nb_calib *c)
{
    nb_rotation t;
    if (nb_recipe_rotation(&c->recipe, nb_source_config(c->source), &t, NULL) != NB_OK) return true;
    json_t *runs = json_object();
    if (t.down) json_object_set_new(runs, "down", json_integer(t.down));
    if (t.qk) json_object_set_new(runs, "qk", json_integer(t.qk));
    if (t.stream) json_object_set_new(runs, "stream", json_integer(t.stream));
    return set_filled(root, "hadamard", runs);
}

static bool set_word(json_t *root, const char *key, const nb_format *f)
{
    return !*f->word || json_object_set_new(root, key, json_string(f->word)) == 0;
}

json_t *nb_finish_quantization(const nb_calib *c, const json_t *lines)
{
    const nb_recipe *r = &c->recipe;
    json_t *q = json_pack("{s:s,s:i,s:s,s:s,s:s,s:s,s:I,s:o}", "quant_method", "nibble",
                          "format_version", 1, "recipe", r->name, "weights", r->weights.word,
                          "acts", r->acts.word, "kv", r->kv.word, "source_bytes",
                          (json_int_t)nb_checkpoint_bytes(nb_source_checkpoint(c->source)),
                          "modules", words_by_module(lines, "format", true));
    if (q && set_filled(q, "act_modules", words_by_module(lines, "act", false)) &&
        set_filled(q, "biases", bias_names(lines)) && set_word(q, "keys", &r->keys) &&
        set_word(q, "query", &r->query) && set_word(q, "probs", &r->probs) && set_lorc(q, r) &&
        set_rotation(q, c)) {
        return q;
    }
    json_decref(q);
    return NULL;
}

/* True where a reader must do something that an ordinary model's reader does not. */
static bool says_anything(const nb_recipe *r, const json_t *q)
{
    nb_attn_formats a = nb_recipe_attn(r);
    return json_object_size(json_object_get(q, "modules")) > 0 || r->rope == NB_ORDER_INTERLEAVED ||
           json_object_get(q, "act_modules") || nb_format_is_quantized(&a.q) ||
           nb_format_is_quantized(&a.k) || nb_format_is_quantized(&a.v) ||
           nb_format_is_quantized(&a.p);
}

/* A model that was only converted is an ordinary one: no quantization_config. */
static nb_status write_config(const nb_calib *c, nb_error *err)
{
    char *text;
    NB_TRY(nb_source_config_json(c->source, &text, err));
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    if (!json_is_object(root)) {
        json_decref(root);
        return nb_fail(err, NB_EINPUT, "config.json: expected an object");
    }
    json_t *q = nb_finish_quantization(c, c->dir.journal.shards);
    bool failed = !q;
    if (q && (says_anything(&c->recipe, q) || json_object_get(q, "hadamard"))) {
        failed = json_object_set(root, "quantization_config", q) != 0;
    }
    json_decref(q);
    if (failed) {
        json_decref(root);
        root = NULL;
    }
    return write_json(c, "config.json", root, 0, err);
}

/* ---- tokenizer ---------------------------------------------------------------------------- */

static nb_status copy_file(const nb_calib *c, const char *dir, const char *name, nb_error *err)
{
    char *from = nb_path_join(dir, name), *data = NULL;
    size_t n_bytes;
    nb_status st = NB_OK;
    if (!from) {
        st = nb_fail_memory(err, name, 0);
    } else if (nb_file_bytes(from) >= 0) {
        st = nb_read_file(from, COPY_MAX_BYTES, &data, &n_bytes, err);
        if (st == NB_OK) st = write_text(c, name, data, n_bytes, err);
    }
    free(data);
    free(from);
    return st;
}

static nb_status copy_licenses(const nb_calib *c, const char *dir, nb_error *err)
{
    DIR *d = opendir(dir);
    nb_status st = NB_OK;
    if (!d) return nb_fail(err, NB_EINPUT, "%s: cannot list", dir);
    for (struct dirent *e; st == NB_OK && (e = readdir(d));) {
        if (strncmp(e->d_name, "LICENSE", 7) == 0) st = copy_file(c, dir, e->d_name, err);
    }
    closedir(d);
    return st;
}

static nb_status copy_tokenizer(const nb_calib *c, const char *dir, nb_error *err)
{
    static const char *const names[] = {
        "tokenizer.json",      "tokenizer_config.json",
        "tokenizer.model",     "special_tokens_map.json",
        "added_tokens.json",   "vocab.json",
        "merges.txt",          "generation_config.json",
        "chat_template.jinja",
    };
    for (size_t i = 0; i < NB_COUNT(names); i++) NB_TRY(copy_file(c, dir, names[i], err));
    return copy_licenses(c, dir, err);
}

static nb_status make_tokenizer(const nb_calib *c, nb_error *err)
{
    nb_tokenizer *t;
    char *json = NULL, *config = NULL;
    size_t n_json, n_config;
    NB_TRY(nb_source_tokenizer(c->source, &t, err));
    if (!t) return NB_OK;
    nb_status st = nb_tokenizer_to_json(t, &json, &n_json, &config, &n_config, err);
    if (st == NB_OK) st = write_text(c, "tokenizer.json", json, n_json, err);
    if (st == NB_OK) st = write_text(c, "tokenizer_config.json", config, n_config, err);
    nb_tokenizer_free(t);
    free(json);
    free(config);
    return st;
}

static nb_status write_tokenizer(const nb_calib *c, nb_error *err)
{
    const nb_checkpoint *ckpt = nb_source_checkpoint(c->source);
    if (nb_checkpoint_container(ckpt) == NB_GGUF) return make_tokenizer(c, err);
    return copy_tokenizer(c, nb_checkpoint_dir(ckpt), err);
}

/* ---- report ------------------------------------------------------------------------------- */

static json_t *calibration_report(const nb_calib *c)
{
    if (c->samples.n == 0) return json_null();
    return json_pack("{s:s,s:I,s:i,s:i,s:I}", "text_hash", c->samples.hash, "tokens",
                     (json_int_t)c->samples.n_tokens, "windows", c->samples.n, "seqlen",
                     c->samples.seqlen, "seed", (json_int_t)c->recipe.seed);
}

/* Lines of the journal without what the index says already. */
static json_t *shard_reports(const nb_calib *c)
{
    json_t *all = json_array(), *line;
    size_t i;
    json_array_foreach (c->dir.journal.shards, i, line) {
        json_t *one = json_copy(line);
        if (!one || json_array_append_new(all, one) != 0) {
            json_decref(all);
            return NULL;
        }
        json_object_del(one, "tensors");
        json_object_del(one, "tensor_bytes");
    }
    return all;
}

static nb_status write_report(const nb_calib *c, nb_error *err)
{
    const nb_plan *p = &c->plan;
    json_int_t source_bytes = nb_checkpoint_bytes(nb_source_checkpoint(c->source));
    json_t *calibration = calibration_report(c), *shards = shard_reports(c);
    json_t *root = NULL;
    if (calibration && shards) {
        root = json_pack("{s:s,s:O,s:s,s:I,s:I,s:I,s:f,s:o,s:o}", "version", nb_version(),
                         "fingerprint", c->dir.journal.fingerprint, "recipe", c->recipe.name,
                         "source_bytes", source_bytes, "bytes",
                         (json_int_t)nb_finish_bytes(c->dir.journal.shards), "quantized_weights",
                         (json_int_t)p->n_quantized, "bits_per_weight", nb_plan_bits(p),
                         "calibration", calibration, "shards", shards);
    }
    return write_json(c, "report.json", root, NB_JSON_FLAGS, err);
}

nb_status nb_finish_write(const nb_calib *c, nb_error *err)
{
    NB_TRY(write_index(c, err));
    NB_TRY(write_config(c, err));
    NB_TRY(write_text(c, "recipe.yaml", c->recipe_text, strlen(c->recipe_text), err));
    NB_TRY(write_tokenizer(c, err));
    return write_report(c, err);
}
