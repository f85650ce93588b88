/* tokenizer.json of Hugging Face `tokenizers` (version "1.0") and tokenizer_config.json. */
#include "token/read_json.h"

#include <string.h>

nb_status nb_json_load(json_t **out, const char *what, const char *text, size_t n_bytes,
                       nb_error *err)
{
    json_error_t e;
    *out = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &e);
    if (!*out) {
        return nb_fail(err, NB_EINPUT, "%s: line %d, column %d: %s", what, e.line, e.column,
                       e.text);
    }
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return nb_fail(err, NB_EINPUT, "%s: expected an object", what);
    }
    return NB_OK;
}

nb_text nb_json_string(const json_t *j)
{
    return (nb_text){json_string_value(j), json_string_length(j)};
}

static const json_t *member(const json_t *j, const char *key)
{
    const json_t *x = json_object_get(j, key);
    return json_is_null(x) ? NULL : x;
}

nb_status nb_json_bool(const json_t *j, const char *key, bool absent, bool *out, nb_error *err)
{
    const json_t *x = member(j, key);
    *out = x ? json_is_true(x) : absent;
    if (!x || json_is_boolean(x)) return NB_OK;
    return nb_fail(err, NB_EINPUT, "%s: expected true or false", key);
}

nb_status nb_json_text(const json_t *j, const char *key, nb_text absent, nb_text *out,
                       nb_error *err)
{
    const json_t *x = member(j, key);
    *out = json_is_string(x) ? nb_json_string(x) : absent;
    if (!x || json_is_string(x)) return NB_OK;
    return nb_fail(err, NB_EINPUT, "%s: expected a string", key);
}

nb_status nb_json_id(const json_t *j, const char *what, int32_t *out, nb_error *err)
{
    json_int_t id = json_is_integer(j) ? json_integer_value(j) : -1;
    *out = -1;
    if (id < 0 || id >= (json_int_t)NB_MAX_TOKENS) {
        return nb_fail(err, NB_EINPUT, "%.80s: expected an id from 0 to %u, found %lld", what,
                       NB_MAX_TOKENS - 1, (long long)id);
    }
    *out = (int32_t)id;
    return NB_OK;
}

/* ---- tokens ------------------------------------------------------------------------------- */

/* One above the highest id of vocab and added_tokens. */
static nb_status count_ids(json_t *vocab, const json_t *added, size_t *n, nb_error *err)
{
    const char *key;
    json_t *value;
    int32_t id, max = -1;
    json_object_foreach (vocab, key, value) {
        NB_TRY(nb_json_id(value, key, &id, err));
        if (id > max) max = id;
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *x = json_array_get(added, i);
        NB_TRY(nb_json_id(json_object_get(x, "id"), "added token", &id, err));
        if (id > max) max = id;
    }
    *n = (size_t)(max + 1);
    /* Gaps are legal, but not a vocabulary that is nearly all gap. */
    size_t found = json_object_size(vocab) + json_array_size(added);
    if (*n > 2 * found + 65536) {
        return nb_fail(err, NB_EINPUT, "highest id %d in a vocabulary of %zu tokens", (int)max,
                       found);
    }
    return NB_OK;
}

static nb_status read_vocab(nb_tokenizer *t, json_t *vocab, nb_error *err)
{
    const char *key;
    size_t key_len;
    json_t *value;
    int32_t id;
    json_object_keylen_foreach(vocab, key, key_len, value)
    {
        NB_TRY(nb_json_id(value, key, &id, err));
        NB_TRY(nb_table_set(&t->bpe.tokens, id, (nb_text){key, key_len}, err));
    }
    return NB_OK;
}

static nb_status read_added(nb_tokenizer *t, const json_t *j, nb_added *x, nb_error *err)
{
    nb_text content;
    NB_TRY(nb_json_text(j, "content", (nb_text){0}, &content, err));
    if (!content.s) return nb_fail(err, NB_EINPUT, "added token: expected a string \"content\"");
    NB_TRY(nb_json_id(json_object_get(j, "id"), content.s, &x->id, err));
    NB_TRY(nb_json_bool(j, "special", false, &x->special, err));
    NB_TRY(nb_json_bool(j, "lstrip", false, &x->lstrip, err));
    NB_TRY(nb_json_bool(j, "rstrip", false, &x->rstrip, err));
    NB_TRY(nb_json_bool(j, "single_word", false, &x->single_word, err));
    NB_TRY(nb_json_bool(j, "normalized", !x->special, &x->normalized, err));
    int32_t known = nb_table_find(&t->bpe.tokens, content.s, content.n);
    if (known >= 0 && known != x->id) {
        return nb_fail(err, NB_EINPUT, "added token \"%.60s\": id %d, but %d in the vocabulary",
                       content.s, (int)x->id, (int)known);
    }
    if (known < 0) NB_TRY(nb_table_set(&t->bpe.tokens, x->id, content, err));
    x->text = t->bpe.tokens.text[x->id];
    return NB_OK;
}

static nb_status read_all_added(nb_tokenizer *t, const json_t *list, nb_error *err)
{
    size_t n = json_array_size(list);
    t->added = nb_arena_alloc(t->arena, n, sizeof *t->added);
    if (!t->added) return nb_fail_memory(err, "added tokens", n * sizeof *t->added);
    for (size_t i = 0; i < n; i++) {
        NB_TRY(read_added(t, json_array_get(list, i), &t->added[i], err));
        t->n_added++;
    }
    return NB_OK;
}

/* ---- merges ------------------------------------------------------------------------------- */

/* ["left", "right"], or "left right" in files before 2024. */
static bool split_merge(const json_t *j, nb_text *left, nb_text *right)
{
    if (json_is_array(j) && json_array_size(j) == 2 && json_is_string(json_array_get(j, 0)) &&
        json_is_string(json_array_get(j, 1))) {
        *left = nb_json_string(json_array_get(j, 0));
        *right = nb_json_string(json_array_get(j, 1));
        return true;
    }
    return json_is_string(j) && nb_split_merge(nb_json_string(j), left, right);
}

static nb_status read_merges(nb_tokenizer *t, const json_t *list, nb_error *err)
{
    size_t n = json_array_size(list);
    if (!json_is_array(list)) return nb_fail(err, NB_EINPUT, "expected an array \"merges\"");
    NB_TRY(nb_bpe_alloc_merges(&t->bpe, n, err));
    for (size_t i = 0; i < n; i++) {
        nb_text left, right;
        if (!split_merge(json_array_get(list, i), &left, &right)) {
            return nb_fail(err, NB_EINPUT, "merge %zu: expected two tokens", i);
        }
        NB_TRY(nb_bpe_add_merge(&t->bpe, left, right, err));
    }
    return NB_OK;
}

/* Settings of the BPE model that change ids and that nobody has used in a decoder-only model. */
static nb_status refuse_settings(const json_t *model, nb_error *err)
{
    static const char *const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < NB_COUNT(texts); i++) {
        nb_text x;
        NB_TRY(nb_json_text(model, texts[i], (nb_text){0}, &x, err));
        if (x.n) return nb_fail(err, NB_EINPUT, "%s \"%.40s\" is not supported", texts[i], x.s);
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (json_is_number(dropout) && json_number_value(dropout) != 0) {
        return nb_fail(err, NB_EINPUT, "dropout is not supported");
    }
    return NB_OK;
}

static nb_status check_type(const json_t *model, nb_error *err)
{
    nb_text type;
    NB_TRY(nb_json_text(model, "type", (nb_text){0}, &type, err));
    bool bpe = type.s ? strcmp(type.s, "BPE") == 0 : json_object_get(model, "merges") != NULL;
    if (bpe) return NB_OK;
    return nb_fail(err, NB_EINPUT, "type \"%.40s\" is not supported (only BPE is)",
                   type.s ? type.s : "");
}

static nb_status read_model(nb_tokenizer *t, const json_t *root, nb_error *err)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *added = json_object_get(root, "added_tokens");
    json_t *vocab = json_object_get(model, "vocab");
    size_t n;
    nb_text unk;
    NB_TRY(check_type(model, err));
    NB_TRY(refuse_settings(model, err));
    if (!json_is_object(vocab) || json_object_size(vocab) == 0) {
        return nb_fail(err, NB_EINPUT, "expected an object \"vocab\" of tokens and ids");
    }
    NB_TRY(count_ids(vocab, added, &n, err));
    NB_TRY(nb_table_init(&t->bpe.tokens, t->arena, n, err));
    NB_TRY(read_vocab(t, vocab, err));
    NB_TRY(read_merges(t, json_object_get(model, "merges"), err));
    NB_TRY(nb_json_bool(model, "byte_fallback", false, &t->bpe.byte_fallback, err));
    NB_TRY(nb_json_bool(model, "fuse_unk", false, &t->bpe.fuse_unk, err));
    NB_TRY(nb_json_bool(model, "ignore_merges", false, &t->bpe.ignore_merges, err));
    NB_TRY(nb_json_text(model, "unk_token", (nb_text){0}, &unk, err));
    if (unk.s) {
        t->bpe.unk = nb_table_find(&t->bpe.tokens, unk.s, unk.n);
        if (t->bpe.unk < 0) {
            return nb_fail(err, NB_EINPUT, "unk_token \"%.40s\" is not in the vocabulary", unk.s);
        }
    }
    return NB_OK;
}

/* ---- tokenizer_config.json ---------------------------------------------------------------- */

/* "<s>" or {"content": "<s>", ...}; -1 if it is absent or no token. */
static int32_t named_token(const nb_tokenizer *t, const json_t *j)
{
    if (json_is_object(j)) j = json_object_get(j, "content");
    if (!json_is_string(j)) return -1;
    return nb_table_find(&t->bpe.tokens, json_string_value(j), json_string_length(j));
}

/* One text, or a list of {name, template} of which "default" is meant. */
static const json_t *find_template(const json_t *j)
{
    for (size_t i = 0; json_is_array(j) && i < json_array_size(j); i++) {
        const json_t *x = json_array_get(j, i);
        const char *name = json_string_value(json_object_get(x, "name"));
        if (name && strcmp(name, "default") == 0) return json_object_get(x, "template");
    }
    return j;
}

nb_status nb_tokenizer_read_config(nb_tokenizer *t, const char *text, size_t n_bytes, nb_error *err)
{
    json_t *root;
    if (!text) return NB_OK;
    NB_TRY(nb_json_load(&root, "tokenizer_config.json", text, n_bytes, err));
    int32_t bos = named_token(t, json_object_get(root, "bos_token"));
    int32_t eos = named_token(t, json_object_get(root, "eos_token"));
    if (bos >= 0) t->bos = bos;
    if (eos >= 0) t->eos = eos;
    nb_status st = NB_OK;
    const json_t *chat = find_template(json_object_get(root, "chat_template"));
    if (json_is_string(chat)) {
        nb_text x = nb_json_string(chat);
        st = nb_tokenizer_set_chat_template(t, x.s, x.n, err);
    }
    json_decref(root);
    return st;
}

/* ---- the whole ---------------------------------------------------------------------------- */

static nb_status read_all(nb_tokenizer *t, const json_t *root, nb_error *err)
{
    NB_TRY(nb_wrap(err, read_model(t, root, err), "tokenizer.json: model"));
    NB_TRY(nb_wrap(err, read_all_added(t, json_object_get(root, "added_tokens"), err),
                   "tokenizer.json: added_tokens"));
    NB_TRY(nb_read_normalizer(t, json_object_get(root, "normalizer"), err));
    NB_TRY(nb_read_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), err));
    NB_TRY(nb_read_post_processor(t, json_object_get(root, "post_processor"), err));
    return nb_read_decoder(t, json_object_get(root, "decoder"), err);
}

nb_status nb_tokenizer_from_json(nb_tokenizer **out, const char *json, size_t n_bytes,
                                 const char *config, size_t n_config, nb_error *err)
{
    *out = NULL;
    json_t *root;
    nb_tokenizer *t = NULL;
    NB_TRY(nb_json_load(&root, "tokenizer.json", json, n_bytes, err));
    nb_status st = nb_tokenizer_create(&t, err);
    if (st == NB_OK) st = read_all(t, root, err);
    if (st == NB_OK) st = nb_tokenizer_read_config(t, config, n_config, err);
    if (st == NB_OK) st = nb_tokenizer_finish(t, err);
    json_decref(root);
    if (st != NB_OK)
        nb_tokenizer_free(t);
    else
        *out = t;
    return st;
}
