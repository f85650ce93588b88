#include "model/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"

/* The largest known tokenizer.json has 35 MB. */
#define MAX_FILE_BYTES ((size_t)512 << 20)

/* ---- GGUF --------------------------------------------------------------------------------- */

#define KEY "tokenizer.ggml."

static nb_status fail_meta(const char *key, const char *expected, nb_error *err)
{
    return nb_fail(err, NB_EINPUT, "%s: expected %s", key, expected);
}

/* A string as a NUL-terminated copy; NULL if there is none. */
static nb_status read_string(const nb_checkpoint *c, nb_arena *a, const char *key, const char **out,
                             nb_error *err)
{
    const nb_meta *m = nb_checkpoint_meta(c, key);
    const char *s;
    size_t n;
    *out = NULL;
    if (!m) return NB_OK;
    if (!nb_meta_string(m, &s, &n)) return fail_meta(key, "a string", err);
    *out = nb_arena_strndup(a, s, n);
    return *out ? NB_OK : nb_fail_memory(err, key, n);
}

static nb_status read_id(const nb_checkpoint *c, const char *key, int32_t *out, nb_error *err)
{
    const nb_meta *m = nb_checkpoint_meta(c, key);
    int64_t id;
    *out = -1;
    if (!m) return NB_OK;
    /* All bits set is how some converters say that there is none. */
    if (nb_meta_int(m, &id) && (id == -1 || id == UINT32_MAX)) return NB_OK;
    if (!nb_meta_int(m, &id) || id < 0 || id > INT32_MAX) return fail_meta(key, "a token id", err);
    *out = (int32_t)id;
    return NB_OK;
}

static nb_status read_flag(const nb_checkpoint *c, const char *key, bool absent, bool *out,
                           nb_error *err)
{
    const nb_meta *m = nb_checkpoint_meta(c, key);
    *out = absent;
    return !m || nb_meta_bool(m, out) ? NB_OK : fail_meta(key, "true or false", err);
}

static nb_status read_texts(const nb_checkpoint *c, nb_arena *a, const char *key,
                            const nb_text **out, size_t *n, nb_error *err)
{
    const nb_meta *m = nb_checkpoint_meta(c, key);
    *out = NULL;
    *n = 0;
    if (!m) return NB_OK;
    if (m->type != NB_META_ARRAY || m->elem != NB_META_STRING) {
        return fail_meta(key, "an array of strings", err);
    }
    nb_text *texts = nb_arena_alloc(a, m->n, sizeof *texts);
    if (!texts) return nb_fail_memory(err, key, m->n * sizeof *texts);
    for (size_t pos = 0; *n < m->n && nb_meta_next_string(m, &pos, &texts[*n].s, &texts[*n].n);) {
        ++*n;
    }
    *out = texts;
    return NB_OK;
}

/* One number for each token: scores and types. */
static nb_status check_numbers(const nb_meta *m, const char *key, size_t n_tokens, nb_error *err)
{
    if (m->type != NB_META_ARRAY || m->n != n_tokens) {
        return nb_fail(err, NB_EINPUT, "%s: expected an array of %zu numbers, found %llu", key,
                       n_tokens, (unsigned long long)m->n);
    }
    return NB_OK;
}

static nb_status read_scores(const nb_checkpoint *c, nb_arena *a, nb_vocab *v, nb_error *err)
{
    static const char key[] = KEY "scores";
    const nb_meta *m = nb_checkpoint_meta(c, key);
    if (!m) return NB_OK;
    NB_TRY(check_numbers(m, key, v->n_tokens, err));
    float *scores = nb_arena_alloc(a, v->n_tokens, sizeof *scores);
    if (!scores) return nb_fail_memory(err, key, v->n_tokens * sizeof *scores);
    for (size_t i = 0; i < v->n_tokens; i++) {
        double x;
        if (!nb_meta_array_float(m, i, &x)) return fail_meta(key, "numbers", err);
        scores[i] = (float)x;
    }
    v->scores = scores;
    return NB_OK;
}

static nb_status read_types(const nb_checkpoint *c, nb_arena *a, nb_vocab *v, nb_error *err)
{
    static const char key[] = KEY "token_type";
    const nb_meta *m = nb_checkpoint_meta(c, key);
    if (!m) return NB_OK;
    NB_TRY(check_numbers(m, key, v->n_tokens, err));
    uint8_t *types = nb_arena_alloc(a, v->n_tokens, 1);
    if (!types) return nb_fail_memory(err, key, v->n_tokens);
    for (size_t i = 0; i < v->n_tokens; i++) {
        int64_t x;
        if (!nb_meta_array_int(m, i, &x) || x < 0 || x > NB_TOKEN_BYTE) {
            return fail_meta(key, "types from 0 to 6", err);
        }
        types[i] = (uint8_t)x;
    }
    v->types = types;
    return NB_OK;
}

/* "tokenizer.ggml.model": which of the two kinds, and what is usual for it. */
typedef struct gguf_model {
    const char *name;
    nb_vocab_kind kind;
    const char *pre; /* where the model's name says it all */
    bool add_bos, add_space_prefix;
} gguf_model;

static const gguf_model gguf_models[] = {
    {"gemma4", NB_VOCAB_BPE, "gemma4", true, false},
    {"gpt2", NB_VOCAB_BPE, NULL, false, false},
    {"llama", NB_VOCAB_SPM, NULL, true, true},
};

static const gguf_model *find_model(const char *name)
{
    for (size_t i = 0; i < sizeof gguf_models / sizeof *gguf_models; i++) {
        if (strcmp(gguf_models[i].name, name) == 0) return &gguf_models[i];
    }
    return NULL;
}

/* Old files have no add_bos_token; llama.cpp then goes by the pre-tokenizer. */
static bool default_add_bos(const gguf_model *m, const char *pre)
{
    static const char *const with_bos[] = {"llama-bpe", "llama3", "llama-v3", "tekken"};
    for (size_t i = 0; pre && i < sizeof with_bos / sizeof *with_bos; i++) {
        if (strcmp(pre, with_bos[i]) == 0) return true;
    }
    return m->add_bos;
}

static nb_status read_gguf(const nb_checkpoint *c, nb_arena *a, const char *name, nb_vocab *v,
                           nb_error *err)
{
    const gguf_model *m = find_model(name);
    if (!m) {
        return nb_fail(err, NB_EINPUT,
                       KEY "model: vocabulary of kind \"%.40s\" is not supported (gpt2, llama and "
                           "gemma4 are)",
                       name);
    }
    v->kind = m->kind;
    NB_TRY(read_string(c, a, KEY "pre", &v->pre, err));
    if (m->pre) v->pre = m->pre;
    NB_TRY(read_string(c, a, "tokenizer.chat_template", &v->chat_template, err));
    NB_TRY(read_texts(c, a, KEY "tokens", &v->tokens, &v->n_tokens, err));
    NB_TRY(read_texts(c, a, KEY "merges", &v->merges, &v->n_merges, err));
    NB_TRY(read_scores(c, a, v, err));
    NB_TRY(read_types(c, a, v, err));
    NB_TRY(read_id(c, KEY "bos_token_id", &v->bos, err));
    NB_TRY(read_id(c, KEY "eos_token_id", &v->eos, err));
    NB_TRY(read_id(c, KEY "unknown_token_id", &v->unk, err));
    NB_TRY(read_flag(c, KEY "add_bos_token", default_add_bos(m, v->pre), &v->add_bos, err));
    NB_TRY(read_flag(c, KEY "add_eos_token", false, &v->add_eos, err));
    return read_flag(c, KEY "add_space_prefix", m->add_space_prefix, &v->add_space_prefix, err);
}

static nb_status from_gguf(const nb_checkpoint *c, nb_tokenizer **out, nb_error *err)
{
    nb_arena *a;
    NB_TRY(nb_arena_create(&a, err));
    nb_vocab v = {0};
    const char *name;
    nb_status st = read_string(c, a, KEY "model", &name, err);
    if (st == NB_OK && name) {
        st = read_gguf(c, a, name, &v, err);
        if (st == NB_OK) st = nb_tokenizer_from_vocab(out, &v, err);
    }
    nb_arena_free(a);
    return nb_wrap(err, st, "%s", nb_checkpoint_path(c));
}

/* ---- a directory -------------------------------------------------------------------------- */

/* data NULL: there is no such file. */
static nb_status read_if_there(const char *dir, const char *name, char **data, size_t *n,
                               nb_error *err)
{
    *data = NULL;
    *n = 0;
    char *path = nb_path_join(dir, name);
    if (!path) return nb_fail_memory(err, name, strlen(dir));
    nb_status st = NB_OK;
    if (nb_path_exists(path)) st = nb_read_file(path, MAX_FILE_BYTES, data, n, err);
    free(path);
    return st;
}

typedef struct files {
    char *json, *spm, *config, *chat;
    size_t n_json, n_spm, n_config, n_chat;
} files;

static nb_status read_files(files *f, const char *dir, nb_error *err)
{
    NB_TRY(read_if_there(dir, "tokenizer.json", &f->json, &f->n_json, err));
    if (!f->json) NB_TRY(read_if_there(dir, "tokenizer.model", &f->spm, &f->n_spm, err));
    NB_TRY(read_if_there(dir, "chat_template.jinja", &f->chat, &f->n_chat, err));
    return read_if_there(dir, "tokenizer_config.json", &f->config, &f->n_config, err);
}

static nb_status from_files(const files *f, const char *dir, nb_tokenizer **out, nb_error *err)
{
    nb_status st = NB_OK;
    if (f->json) {
        st = nb_tokenizer_from_json(out, f->json, f->n_json, f->config, f->n_config, err);
    } else if (f->spm) {
        st = nb_tokenizer_from_spm(out, f->spm, f->n_spm, f->config, f->n_config, err);
    }
    if (st == NB_OK && *out && f->chat) {
        st = nb_tokenizer_set_chat_template(*out, f->chat, f->n_chat, err);
        if (st != NB_OK) {
            nb_tokenizer_free(*out);
            *out = NULL;
        }
    }
    return nb_wrap(err, st, "%s", dir);
}

static nb_status from_dir(const char *dir, nb_tokenizer **out, nb_error *err)
{
    files f = {0};
    nb_status st = read_files(&f, dir, err);
    if (st == NB_OK) st = from_files(&f, dir, out, err);
    free(f.json);
    free(f.spm);
    free(f.config);
    free(f.chat);
    return st;
}

nb_status nb_checkpoint_tokenizer(const nb_checkpoint *c, nb_tokenizer **out, nb_error *err)
{
    *out = NULL;
    if (nb_checkpoint_container(c) == NB_GGUF) return from_gguf(c, out, err);
    return from_dir(nb_checkpoint_dir(c), out, err);
}
