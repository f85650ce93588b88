/* tokenizer.json and tokenizer_config.json from what a tokenizer is made of. */
#include <stdlib.h>
#include <string.h>

#include "token/read_json.h"

/* jansson answers NULL and -1 when memory is out; every builder below passes that on, and the
 * whole fails once, at the end. */
static json_t *text_json(nb_text x) { return json_stringn(x.s ? x.s : "", x.n); }

static json_t *pattern_json(const nb_regex *re)
{
    return json_pack("{s:o}", nb_regex_is_literal(re) ? "String" : "Regex",
                     text_json(nb_regex_source(re)));
}

/* One part alone, several as a Sequence, none as null. Takes the list over. */
static json_t *sequence(json_t *list, const char *members)
{
    json_t *out;
    if (!list) return NULL;
    if (json_array_size(list) == 0)
        out = json_null();
    else if (json_array_size(list) == 1)
        out = json_incref(json_array_get(list, 0));
    else
        out = json_pack("{s:s, s:O}", "type", "Sequence", members, list);
    json_decref(list);
    return out;
}

/* Appends and drops the list if that fails. */
static json_t *append(json_t *list, json_t *item)
{
    if (list && json_array_append_new(list, item) != 0) {
        json_decref(list);
        return NULL;
    }
    return list;
}

/* ---- parts -------------------------------------------------------------------------------- */

static json_t *norm_json(const nb_norm_step *s)
{
    static const char *const forms[] = {
        [NB_NORMALIZE_NFC] = "NFC",
        [NB_NORMALIZE_NFD] = "NFD",
        [NB_NORMALIZE_NFKC] = "NFKC",
        [NB_NORMALIZE_NFKD] = "NFKD",
    };
    switch (s->kind) {
    case NB_NORMALIZE_PREPEND:
        return json_pack("{s:s, s:o}", "type", "Prepend", "prepend", text_json(s->text));
    case NB_NORMALIZE_REPLACE:
        return json_pack("{s:s, s:o, s:o}", "type", "Replace", "pattern", pattern_json(s->re),
                         "content", text_json(s->text));
    default:
        return json_pack("{s:s}", "type", forms[s->kind]);
    }
}

static json_t *pre_json(const nb_pre_step *s)
{
    switch (s->kind) {
    case NB_PRE_SPLIT:
        return json_pack("{s:s, s:o, s:s, s:b}", "type", "Split", "pattern", pattern_json(s->re),
                         "behavior", nb_behavior_names[s->behavior], "invert", s->invert);
    case NB_PRE_METASPACE:
        return json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", NB_METASPACE,
                         "prepend_scheme", nb_scheme_names[s->scheme], "split", s->split);
    default:
        return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space",
                         s->prefix_space, "trim_offsets", 1, "use_regex", s->re != NULL);
    }
}

static json_t *normalizer_json(const nb_tokenizer *t)
{
    json_t *list = json_array();
    for (size_t i = 0; i < t->n_norm; i++) list = append(list, norm_json(&t->norm[i]));
    return sequence(list, "normalizers");
}

static json_t *pre_tokenizer_json(const nb_tokenizer *t)
{
    json_t *list = json_array();
    for (size_t i = 0; i < t->n_pre; i++) list = append(list, pre_json(&t->pre[i]));
    return sequence(list, "pretokenizers");
}

static json_t *decoder_json(const nb_decoder *d)
{
    json_t *list = json_array();
    if (d->from.n && d->drop_first) {
        list = append(list, json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement",
                                      NB_METASPACE, "prepend_scheme", "always", "split", 1));
    } else if (d->from.n) {
        list = append(list, json_pack("{s:s, s:{s:o}, s:o}", "type", "Replace", "pattern", "String",
                                      text_json(d->from), "content", text_json(d->to)));
    }
    if (d->byte_fallback) list = append(list, json_pack("{s:s}", "type", "ByteFallback"));
    if (d->byte_level) {
        list = append(list, json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel",
                                      "add_prefix_space", 1, "trim_offsets", 1, "use_regex", 1));
    }
    if (d->byte_fallback || d->strip_left) {
        list = append(list, json_pack("{s:s}", "type", "Fuse"));
    }
    if (d->strip_left) {
        list = append(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ",
                                      "start", d->strip_left, "stop", 0));
    }
    return sequence(list, "decoders");
}

static json_t *added_json(const nb_tokenizer *t)
{
    json_t *list = json_array();
    for (size_t i = 0; i < t->n_added; i++) {
        const nb_added *x = &t->added[i];
        list = append(list, json_pack("{s:i, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (int)x->id,
                                      "content", text_json(x->text), "single_word", x->single_word,
                                      "lstrip", x->lstrip, "rstrip", x->rstrip, "normalized",
                                      x->normalized, "special", x->special));
    }
    return list;
}

/* ---- post_processor ----------------------------------------------------------------------- */

static json_t *append_special(json_t *list, const nb_tokenizer *t, int32_t id, int type_id)
{
    return append(list, json_pack("{s:{s:o, s:i}}", "SpecialToken", "id",
                                  text_json(t->bpe.tokens.text[id]), "type_id", type_id));
}

/* Special tokens around texts "A" and, for a pair, "B". */
static json_t *template_json(const nb_tokenizer *t, int n_texts)
{
    static const char *const names[] = {"A", "B"};
    json_t *list = json_array();
    for (int k = 0; k < n_texts; k++) {
        for (size_t i = 0; i < t->n_before; i++) list = append_special(list, t, t->before[i], k);
        list = append(list, json_pack("{s:{s:s, s:i}}", "Sequence", "id", names[k], "type_id", k));
        for (size_t i = 0; i < t->n_after; i++) list = append_special(list, t, t->after[i], k);
    }
    return list;
}

static int set_special(json_t *specials, const nb_tokenizer *t, int32_t id)
{
    nb_text x = t->bpe.tokens.text[id];
    json_t *value = json_pack("{s:o, s:[i], s:[o]}", "id", text_json(x), "ids", (int)id, "tokens",
                              text_json(x));
    return json_object_setn_new(specials, x.s, x.n, value);
}

static json_t *post_processor_json(const nb_tokenizer *t)
{
    if (t->n_before + t->n_after == 0) return json_null();
    json_t *specials = json_object();
    int bad = 0;
    for (size_t i = 0; i < t->n_before; i++) bad |= set_special(specials, t, t->before[i]);
    for (size_t i = 0; i < t->n_after; i++) bad |= set_special(specials, t, t->after[i]);
    json_t *out =
        json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single",
                  template_json(t, 1), "pair", template_json(t, 2), "special_tokens", specials);
    if (bad) {
        json_decref(out);
        return NULL;
    }
    return out;
}

/* ---- model -------------------------------------------------------------------------------- */

static json_t *vocab_json(const nb_token_table *tokens)
{
    json_t *vocab = json_object();
    for (size_t i = 0; i < tokens->n; i++) {
        nb_text x = tokens->text[i];
        /* Of two ids with one text only the first is ever found. */
        if (!x.s || nb_table_find(tokens, x.s, x.n) != (int32_t)i) continue;
        if (json_object_setn_new(vocab, x.s, x.n, json_integer((json_int_t)i)) != 0) {
            json_decref(vocab);
            return NULL;
        }
    }
    return vocab;
}

static bool has_space(nb_text x) { return memchr(x.s, ' ', x.n) != NULL; }

/* "left right", which every version reads, unless a token with a space makes that ambiguous. */
static json_t *merges_json(const nb_bpe *m)
{
    bool pairs = false;
    for (size_t i = 0; i < m->n_merges && !pairs; i++) {
        pairs = has_space(m->tokens.text[m->merges[i].id]);
    }
    json_t *list = json_array();
    for (size_t i = 0; i < m->n_merges && list; i++) {
        nb_text a = m->tokens.text[m->merges[i].left], b = m->tokens.text[m->merges[i].right];
        json_t *merge = pairs ? json_pack("[o, o]", text_json(a), text_json(b))
                              : json_pack("s%++%", a.s, a.n, " ", b.s, b.n);
        list = append(list, merge);
    }
    return list;
}

static json_t *unk_json(const nb_bpe *m)
{
    return m->unk < 0 ? json_null() : text_json(m->tokens.text[m->unk]);
}

static json_t *model_json(const nb_bpe *m)
{
    return json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                     "unk_token", unk_json(m), "continuing_subword_prefix", "end_of_word_suffix",
                     "fuse_unk", m->fuse_unk, "byte_fallback", m->byte_fallback, "ignore_merges",
                     m->ignore_merges, "vocab", vocab_json(&m->tokens), "merges", merges_json(m));
}

static json_t *tokenizer_json(const nb_tokenizer *t)
{
    return json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0",
                     "truncation", "padding", "added_tokens", added_json(t), "normalizer",
                     normalizer_json(t), "pre_tokenizer", pre_tokenizer_json(t), "post_processor",
                     post_processor_json(t), "decoder", decoder_json(&t->decoder), "model",
                     model_json(&t->bpe));
}

static json_t *id_json(const nb_tokenizer *t, int32_t id)
{
    return id < 0 ? json_null() : text_json(t->bpe.tokens.text[id]);
}

static json_t *config_json(const nb_tokenizer *t)
{
    json_t *j =
        json_pack("{s:b, s:b, s:o, s:o, s:o, s:b, s:s}", "add_bos_token", t->n_before > 0,
                  "add_eos_token", t->n_after > 0, "bos_token", id_json(t, t->bos), "eos_token",
                  id_json(t, t->eos), "unk_token", id_json(t, t->bpe.unk),
                  "clean_up_tokenization_spaces", 0, "tokenizer_class", "PreTrainedTokenizerFast");
    if (j && t->chat_template &&
        json_object_set_new(j, "chat_template", json_string(t->chat_template)) != 0) {
        json_decref(j);
        return NULL;
    }
    return j;
}

/* ---- the whole ---------------------------------------------------------------------------- */

/* Takes j over. */
static nb_status dump(json_t *j, char **out, size_t *n_bytes, nb_error *err)
{
    *out = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
    json_decref(j);
    if (!*out) return nb_fail(err, NB_ERESOURCE, "out of memory: tokenizer.json");
    *n_bytes = strlen(*out);
    return NB_OK;
}

nb_status nb_tokenizer_to_json(const nb_tokenizer *t, char **json, size_t *n_bytes, char **config,
                               size_t *n_config, nb_error *err)
{
    *json = *config = NULL;
    *n_bytes = *n_config = 0;
    nb_status st = dump(tokenizer_json(t), json, n_bytes, err);
    if (st == NB_OK) st = dump(config_json(t), config, n_config, err);
    if (st != NB_OK) {
        free(*json);
        *json = NULL;
        *n_bytes = 0;
    }
    return st;
}
