/* A checkpoint read through its family: opening, and what it says about itself. */
#include <assert.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "model/source.h"
#include "model/vocab.h"

/* ---- quantization_config ---------------------------------------------------------------- */

static nb_status read_modules(nb_source *s, const json_t *q, nb_error *err)
{
    json_t *modules = json_object_get(q, "modules");
    if (!json_is_object(modules)) {
        return nb_fail(err, NB_EINPUT, "quantization_config.modules: expected an object");
    }
    const char *name;
    json_t *v;
    json_object_foreach (modules, name, v) {
        nb_format f;
        const char *word = json_string_value(v);
        if (!word || nb_format_parse(&f, word, NULL) != NB_OK || !nb_format_is_quantized(&f) ||
            !(f.family->uses(&f) & NB_FOR_WEIGHTS)) {
            return nb_fail(err, NB_EINPUT,
                           "quantization_config.modules[\"%.100s\"]: \"%.40s\" is no "
                           "format of weights",
                           name, word ? word : "");
        }
    }
    s->modules = json_incref(modules);
    return NB_OK;
}

/* Format word of an online quantizer, use: NB_FOR_...; absent: *out stays. */
static nb_status read_online(const json_t *q, const char *key, unsigned use, nb_format *out,
                             nb_error *err)
{
    const json_t *v = json_object_get(q, key);
    const char *word = json_string_value(v);
    if (!v) return NB_OK;
    if (!word || nb_format_parse(out, word, NULL) != NB_OK) {
        return nb_fail(err, NB_EINPUT, "quantization_config.%s: \"%.40s\" is no format", key,
                       word ? word : "");
    }
    if (!nb_format_is_quantized(out)) {
        out->family = NULL;
    } else if (!(out->family->uses(out) & use)) {
        return nb_fail(err, NB_EINPUT, "quantization_config.%s: \"%s\" is no format for this", key,
                       out->word);
    }
    return NB_OK;
}

static nb_status read_act_modules(nb_source *s, const json_t *q, nb_error *err)
{
    json_t *modules = json_object_get(q, "act_modules");
    if (!modules) return NB_OK;
    if (!json_is_object(modules)) {
        return nb_fail(err, NB_EINPUT, "quantization_config.act_modules: expected an object");
    }
    const char *name;
    json_t *v;
    json_object_foreach (modules, name, v) {
        nb_format f;
        nb_status st = read_online(modules, name, NB_FOR_ACTS, &f, err);
        if (st != NB_OK) return nb_wrap(err, st, "quantization_config.act_modules");
    }
    s->act_modules = json_incref(modules);
    return NB_OK;
}

static nb_status read_attn(nb_source *s, const json_t *q, nb_error *err)
{
    NB_TRY(read_online(q, "kv", NB_FOR_KV, &s->attn.v, err));
    s->attn.k = s->attn.v;
    NB_TRY(read_online(q, "keys", NB_FOR_KV, &s->attn.k, err));
    NB_TRY(read_online(q, "query", NB_FOR_KV, &s->attn.q, err));
    return read_online(q, "probs", NB_FOR_KV, &s->attn.p, err);
}

/* The list as a set. */
static nb_status read_biases(nb_source *s, const json_t *q, nb_error *err)
{
    json_t *list = json_object_get(q, "biases"), *name;
    size_t i;
    if (!list) return NB_OK;
    s->biases = json_object();
    if (!s->biases) return nb_fail_memory(err, "quantization_config.biases", 0);
    json_array_foreach (list, i, name) {
        if (!json_is_string(name)) break;
        if (json_object_set_new(s->biases, json_string_value(name), json_true()) != 0) {
            return nb_fail_memory(err, "quantization_config.biases", 0);
        }
    }
    if (json_is_array(list) && i == json_array_size(list)) return NB_OK;
    return nb_fail(err, NB_EINPUT, "quantization_config.biases: expected a list of module names");
}

/* Factors are floats or 8-bit integers; any format of weights serves. */
static bool is_factor_format(const nb_format *f)
{
    if (!f->family) return false;
    if (nb_format_is_quantized(f)) return (f->family->uses(f) & NB_FOR_WEIGHTS) != 0;
    return f->variant == NB_F16 || f->variant == NB_BF16 || f->variant == NB_F32;
}

static nb_status read_lorc(nb_source *s, const json_t *q, nb_error *err)
{
    const json_t *l = json_object_get(q, "lorc");
    if (!l) return NB_OK;
    json_int_t rank = json_integer_value(json_object_get(l, "rank"));
    const char *word = json_string_value(json_object_get(l, "format"));
    if (rank < 1 || rank > INT32_MAX) {
        return nb_fail(err, NB_EINPUT, "quantization_config.lorc.rank: %lld, expected 1 or more",
                       (long long)rank);
    }
    if (!word || nb_format_parse(&s->lorc.a.format, word, NULL) != NB_OK ||
        !is_factor_format(&s->lorc.a.format)) {
        return nb_fail(err, NB_EINPUT,
                       "quantization_config.lorc.format: \"%.40s\" is no format of "
                       "factors",
                       word ? word : "");
    }
    s->lorc.rank = (int)rank;
    s->lorc.b.format = s->lorc.a.format;
    return NB_OK;
}

/* Runs of a transform on rows of `width` channels. */
static nb_status read_runs(const char *key, const json_t *v, int width, int *out, nb_error *err)
{
    json_int_t n = json_integer_value(v);
    if (n < 2 || n > width || (n & (n - 1)) != 0 || width % n != 0) {
        return nb_fail(
            err, NB_EINPUT,
            "quantization_config.hadamard.%s: %lld, expected a power of two that divides "
            "%d",
            key, (long long)n, width);
    }
    *out = (int)n;
    return NB_OK;
}

/* A transform that is not known is refused: without it the model computes something else. */
static nb_status read_rotation(nb_source *s, const json_t *q, nb_error *err)
{
    json_t *h = json_object_get(q, "hadamard"), *v;
    const char *key;
    if (h && !json_is_object(h)) {
        return nb_fail(err, NB_EINPUT, "quantization_config.hadamard: expected an object");
    }
    json_object_foreach (h, key, v) {
        if (strcmp(key, "down") == 0) {
            NB_TRY(read_runs(key, v, s->cfg.n_ffn, &s->rotation.down, err));
        } else if (strcmp(key, "qk") == 0) {
            NB_TRY(read_runs(key, v, s->cfg.head_dim, &s->rotation.qk, err));
        } else if (strcmp(key, "stream") == 0 && s->cfg.family->norm == NB_NORM_RMS) {
            NB_TRY(read_runs(key, v, s->cfg.n_embd, &s->rotation.stream, err));
        } else {
            return nb_fail(err, NB_EINPUT,
                           "quantization_config.hadamard: \"%.40s\", expected down, qk or, where "
                           "norms are RMS, stream",
                           key);
        }
    }
    return NB_OK;
}

static nb_status read_quantization(nb_source *s, const json_t *q, nb_error *err)
{
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    json_int_t version = json_integer_value(json_object_get(q, "format_version"));
    if (!method || strcmp(method, "nibble") != 0) {
        return nb_fail(err, NB_EINPUT,
                       "quantization_config.quant_method: \"%.40s\", expected "
                       "\"nibble\"",
                       method ? method : "");
    }
    if (version != 1) {
        return nb_fail(err, NB_EINPUT, "quantization_config.format_version: %lld, expected 1",
                       (long long)version);
    }
    json_t *recipe = json_object_get(q, "recipe");
    if (json_is_string(recipe)) s->recipe = json_incref(recipe);
    json_t *bytes = json_object_get(q, "source_bytes");
    if (json_is_integer(bytes)) s->source_bytes = json_integer_value(bytes);
    NB_TRY(read_online(q, "acts", NB_FOR_ACTS, &s->act, err));
    NB_TRY(read_act_modules(s, q, err));
    NB_TRY(read_attn(s, q, err));
    NB_TRY(read_rotation(s, q, err));
    NB_TRY(read_biases(s, q, err));
    NB_TRY(read_lorc(s, q, err));
    return read_modules(s, q, err);
}

static nb_status read_config(nb_source *s, nb_error *err)
{
    size_t n;
    const char *text = nb_checkpoint_config(s->ckpt, &n);
    if (!text || nb_checkpoint_container(s->ckpt) == NB_GGUF) return NB_OK;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    json_t *q = json_object_get(root, "quantization_config");
    nb_status st = NB_OK;
    if (json_is_object(q)) {
        st = read_quantization(s, q, err);
    } else if (q && !json_is_null(q)) {
        st = nb_fail(err, NB_EINPUT, "quantization_config: expected an object");
    }
    json_decref(root);
    return st == NB_OK ? st : nb_wrap(err, st, "%s/config.json", nb_checkpoint_dir(s->ckpt));
}

/* Of llama's GGUF files the configuration says what they are turned into. */
static bool is_interleaved(const nb_source *s)
{
    if (nb_checkpoint_container(s->ckpt) == NB_GGUF) return s->cfg.family->gguf_paired_rope;
    return s->cfg.rope_interleaved;
}

/* ---- life ------------------------------------------------------------------------------- */

nb_status nb_source_open(nb_source **out, const char *path, nb_error *err)
{
    *out = NULL;
    nb_source *s = calloc(1, sizeof *s);
    if (!s) return nb_fail_memory(err, "source", sizeof *s);
    s->source_bytes = -1;
    nb_status st = nb_checkpoint_open(&s->ckpt, path, err);
    if (st == NB_OK) st = nb_config_from_checkpoint(&s->cfg, s->ckpt, err);
    if (st == NB_OK) st = read_config(s, err);
    if (st == NB_OK) st = nb_source_resolve(s, err);
    if (st == NB_OK) s->interleaved = is_interleaved(s);
    if (st != NB_OK) {
        nb_source_close(s);
        return st;
    }
    *out = s;
    return NB_OK;
}

nb_status nb_source_open_part(nb_source **out, const char *path, const nb_source *original,
                              const json_t *quantization, nb_error *err)
{
    *out = NULL;
    nb_source *s = calloc(1, sizeof *s);
    if (!s) return nb_fail_memory(err, "source", sizeof *s);
    s->source_bytes = -1;
    s->cfg = original->cfg;
    s->interleaved = s->cfg.rope_interleaved;
    nb_status st = nb_checkpoint_open(&s->ckpt, path, err);
    if (st == NB_OK) st = read_quantization(s, quantization, err);
    if (st != NB_OK) {
        nb_source_close(s);
        return st;
    }
    *out = s;
    return NB_OK;
}

void nb_source_close(nb_source *s)
{
    if (!s) return;
    nb_checkpoint_close(s->ckpt);
    json_decref(s->modules);
    json_decref(s->act_modules);
    json_decref(s->biases);
    json_decref(s->recipe);
    free(s);
}

nb_status nb_source_set_rope(nb_source *s, bool interleaved, nb_error *err)
{
    assert(!nb_source_is_quantized(s));
    if (!s->cfg.family->rotary) {
        return nb_fail(err, NB_EUSAGE, "rope: models of the family %s have no rotary positions",
                       s->cfg.family->name);
    }
    s->cfg.rope_interleaved = interleaved;
    return NB_OK;
}

const nb_config *nb_source_config(const nb_source *s) { return &s->cfg; }

const nb_checkpoint *nb_source_checkpoint(const nb_source *s) { return s->ckpt; }

bool nb_source_is_quantized(const nb_source *s) { return s->modules != NULL; }

const char *nb_source_recipe(const nb_source *s) { return json_string_value(s->recipe); }

int64_t nb_source_source_bytes(const nb_source *s) { return s->source_bytes; }

nb_format nb_source_format(const nb_source *s, const char *module)
{
    nb_format f = {0};
    const char *word = json_string_value(json_object_get(s->modules, module));
    if (word) nb_format_parse(&f, word, NULL); /* checked when opened */
    return f;
}

nb_format nb_source_act(const nb_source *s, const char *module, bool quantized)
{
    nb_format f = {0};
    const char *word = json_string_value(json_object_get(s->act_modules, module));
    if (!word) return quantized ? s->act : f;
    nb_format_parse(&f, word, NULL); /* checked when opened */
    if (!nb_format_is_quantized(&f)) f.family = NULL;
    return f;
}

bool nb_source_has_bias(const nb_source *s, const char *module)
{
    return json_object_get(s->biases, module) != NULL;
}

const nb_attn_formats *nb_source_attn(const nb_source *s) { return &s->attn; }

void nb_source_rotate(nb_source *s, int run, int threads, unsigned cpu)
{
    s->rotation.stream = run;
    s->fold_threads = threads;
    s->fold_cpu = cpu;
}

nb_rotation nb_source_rotation(const nb_source *s) { return s->rotation; }

nb_status nb_source_tokenizer(const nb_source *s, nb_tokenizer **out, nb_error *err)
{
    return nb_checkpoint_tokenizer(s->ckpt, out, err);
}

/* The source's own text; with another order of rotary pairs where that was asked for. */
static nb_status own_config_json(const nb_source *s, char **json, nb_error *err)
{
    size_t n;
    const char *text = nb_checkpoint_config(s->ckpt, &n);
    if (s->cfg.rope_interleaved == s->interleaved) {
        *json = strndup(text, n);
    } else {
        json_t *root = json_loadb(text, n, 0, NULL), *value = json_boolean(s->cfg.rope_interleaved);
        if (json_object_set_new(root, NB_KEY_INTERLEAVED, value) == 0) {
            *json = json_dumps(root, JSON_INDENT(2));
        }
        json_decref(root);
    }
    return *json ? NB_OK : nb_fail_memory(err, "config.json", n);
}

nb_status nb_source_config_json(const nb_source *s, char **json, nb_error *err)
{
    *json = NULL;
    if (nb_checkpoint_container(s->ckpt) != NB_GGUF) return own_config_json(s, json, err);
    int64_t bos = -1, eos = -1;
    nb_meta_int(nb_checkpoint_meta(s->ckpt, "tokenizer.ggml.bos_token_id"), &bos);
    nb_meta_int(nb_checkpoint_meta(s->ckpt, "tokenizer.ggml.eos_token_id"), &eos);
    return nb_config_write_json(&s->cfg, (int)bos, (int)eos, json, err);
}
