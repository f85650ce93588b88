/* normalizer, pre_tokenizer, post_processor and decoder of tokenizer.json: one table of types for
 * each. What is not in a table is refused by name, because ids would silently differ. */
#include <string.h>

#include "token/read_json.h"

/* Sequences within sequences. */
#define MAX_DEPTH 4

/* Where a reader is: decoders depend on what came before them. */
typedef struct place {
    int depth;
    bool fused; /* decoder: Fuse has been seen */
} place;

typedef nb_status part_fn(nb_tokenizer *t, const json_t *j, place *p, nb_error *err);

typedef struct part {
    const char *type;
    part_fn *read; /* NULL: has no effect on ids and bytes */
} part;

typedef struct part_table {
    const char *what;
    const char *members; /* of a Sequence */
    const part *parts;   /* ends with type NULL */
} part_table;

static nb_status read_part(nb_tokenizer *t, const part_table *table, const json_t *j, place *p,
                           nb_error *err);

static nb_status read_sequence(nb_tokenizer *t, const part_table *table, const json_t *j, place *p,
                               nb_error *err)
{
    const json_t *list = json_object_get(j, table->members);
    if (!json_is_array(list)) {
        return nb_fail(err, NB_EINPUT, "%s: Sequence: expected an array \"%s\"", table->what,
                       table->members);
    }
    if (++p->depth > MAX_DEPTH) {
        return nb_fail(err, NB_EINPUT, "%s: sequences nested more than %d deep", table->what,
                       MAX_DEPTH);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        NB_TRY(read_part(t, table, json_array_get(list, i), p, err));
    }
    p->depth--;
    return NB_OK;
}

static nb_status read_part(nb_tokenizer *t, const part_table *table, const json_t *j, place *p,
                           nb_error *err)
{
    const char *type = json_string_value(json_object_get(j, "type"));
    if (!type) return nb_fail(err, NB_EINPUT, "%s: expected an object with a type", table->what);
    if (strcmp(type, "Sequence") == 0) return read_sequence(t, table, j, p, err);
    for (const part *x = table->parts; x->type; x++) {
        if (strcmp(x->type, type) != 0) continue;
        return x->read ? nb_wrap(err, x->read(t, j, p, err), "%s: %s", table->what, type) : NB_OK;
    }
    return nb_fail(err, NB_EINPUT, "%s: type \"%.60s\" is not supported", table->what, type);
}

static nb_status read_table(nb_tokenizer *t, const part_table *table, const json_t *j,
                            nb_error *err)
{
    place p = {0};
    if (!j || json_is_null(j)) return NB_OK;
    return nb_wrap(err, read_part(t, table, j, &p, err), "tokenizer.json");
}

/* {"String": "..."} or {"Regex": "..."} */
static nb_status read_pattern(const json_t *j, nb_text *out, bool *literal, nb_error *err)
{
    const json_t *pattern = json_object_get(j, "pattern");
    const json_t *text = json_object_get(pattern, "String");
    *literal = text != NULL;
    if (!text) text = json_object_get(pattern, "Regex");
    if (!json_is_string(text)) {
        return nb_fail(err, NB_EINPUT, "expected a pattern with a String or a Regex");
    }
    *out = nb_json_string(text);
    return NB_OK;
}

static nb_status required_text(const json_t *j, const char *key, nb_text *out, nb_error *err)
{
    NB_TRY(nb_json_text(j, key, (nb_text){0}, out, err));
    return out->s ? NB_OK : nb_fail(err, NB_EINPUT, "expected a string \"%s\"", key);
}

/* ---- normalizer --------------------------------------------------------------------------- */

static nb_status norm_prepend(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    nb_text text;
    NB_TRY(required_text(j, "prepend", &text, err));
    return nb_add_norm(t, NB_NORMALIZE_PREPEND, text, err);
}

static nb_status norm_replace(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    nb_text pattern, content;
    bool literal;
    NB_TRY(read_pattern(j, &pattern, &literal, err));
    NB_TRY(required_text(j, "content", &content, err));
    return nb_add_replace(t, pattern, literal, content, err);
}

static nb_status norm_form(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    const char *type = json_string_value(json_object_get(j, "type")); /* NFC NFD NFKC NFKD */
    bool compat = type[2] == 'K', decompose = type[strlen(type) - 1] == 'D';
    nb_norm_kind kind = compat      ? decompose ? NB_NORMALIZE_NFKD : NB_NORMALIZE_NFKC
                        : decompose ? NB_NORMALIZE_NFD
                                    : NB_NORMALIZE_NFC;
    return nb_add_norm(t, kind, (nb_text){"", 0}, err);
}

nb_status nb_read_normalizer(nb_tokenizer *t, const json_t *j, nb_error *err)
{
    static const part parts[] = {
        {"NFC", norm_form},
        {"NFD", norm_form},
        {"NFKC", norm_form},
        {"NFKD", norm_form},
        {"Prepend", norm_prepend},
        {"Replace", norm_replace},
        {0},
    };
    static const part_table table = {"normalizer", "normalizers", parts};
    return read_table(t, &table, j, err);
}

/* ---- pre_tokenizer ------------------------------------------------------------------------ */

static nb_status read_name(const json_t *j, const char *key, const char *const *names, int n,
                           int *out, nb_error *err)
{
    const char *s = json_string_value(json_object_get(j, key));
    for (int i = 0; s && i < n; i++) {
        if (strcmp(s, names[i]) == 0) {
            *out = i;
            return NB_OK;
        }
    }
    return nb_fail(err, NB_EINPUT, "%s \"%.40s\" is not supported", key, s ? s : "");
}

static nb_status pre_split(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    nb_text pattern;
    bool literal, invert;
    int behavior;
    nb_pre_step *step;
    NB_TRY(read_pattern(j, &pattern, &literal, err));
    NB_TRY(read_name(j, "behavior", nb_behavior_names, NB_N_BEHAVIORS, &behavior, err));
    NB_TRY(nb_json_bool(j, "invert", false, &invert, err));
    NB_TRY(nb_add_split(t, pattern, literal, &step, err));
    step->behavior = (nb_behavior)behavior;
    step->invert = invert;
    return NB_OK;
}

static nb_status pre_byte_level(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    bool prefix, use_regex;
    NB_TRY(nb_json_bool(j, "add_prefix_space", true, &prefix, err));
    NB_TRY(nb_json_bool(j, "use_regex", true, &use_regex, err));
    return nb_add_byte_level(t, prefix, use_regex, err);
}

static nb_status pre_digits(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    bool individual;
    nb_pre_step *step;
    NB_TRY(nb_json_bool(j, "individual_digits", false, &individual, err));
    NB_TRY(nb_add_split(t, (nb_text){"\\p{N}", 5}, false, &step, err));
    step->behavior = individual ? NB_SPLIT_ISOLATED : NB_SPLIT_CONTIGUOUS;
    return NB_OK;
}

static nb_status pre_punctuation(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    static const char pattern[] = "[\\p{P}!-/:-@\\[-`{-~]";
    int behavior = NB_SPLIT_ISOLATED;
    nb_pre_step *step;
    if (json_object_get(j, "behavior")) {
        NB_TRY(read_name(j, "behavior", nb_behavior_names, NB_N_BEHAVIORS, &behavior, err));
    }
    NB_TRY(nb_add_split(t, (nb_text){pattern, sizeof pattern - 1}, false, &step, err));
    step->behavior = (nb_behavior)behavior;
    return NB_OK;
}

/* Metaspace of the pre_tokenizer and of the decoder; old files say add_prefix_space. */
static nb_status read_metaspace(const json_t *j, nb_scheme *scheme, bool *split, nb_error *err)
{
    nb_text replacement;
    bool prefix;
    int i;
    NB_TRY(required_text(j, "replacement", &replacement, err));
    if (replacement.n != 3 || memcmp(replacement.s, NB_METASPACE, 3) != 0) {
        return nb_fail(err, NB_EINPUT, "replacement \"%.20s\" is not supported", replacement.s);
    }
    NB_TRY(nb_json_bool(j, "split", true, split, err));
    NB_TRY(nb_json_bool(j, "add_prefix_space", true, &prefix, err));
    *scheme = prefix ? NB_PREPEND_ALWAYS : NB_PREPEND_NEVER;
    if (!json_object_get(j, "prepend_scheme")) return NB_OK;
    NB_TRY(read_name(j, "prepend_scheme", nb_scheme_names, NB_N_SCHEMES, &i, err));
    *scheme = (nb_scheme)i;
    return NB_OK;
}

static nb_status pre_metaspace(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    nb_scheme scheme;
    bool split;
    NB_TRY(read_metaspace(j, &scheme, &split, err));
    return nb_add_metaspace(t, scheme, split, err);
}

nb_status nb_read_pre_tokenizer(nb_tokenizer *t, const json_t *j, nb_error *err)
{
    static const part parts[] = {
        {"ByteLevel", pre_byte_level},    {"Digits", pre_digits}, {"Metaspace", pre_metaspace},
        {"Punctuation", pre_punctuation}, {"Split", pre_split},   {0},
    };
    static const part_table table = {"pre_tokenizer", "pretokenizers", parts};
    return read_table(t, &table, j, err);
}

/* ---- post_processor ----------------------------------------------------------------------- */

static nb_status push_around(nb_tokenizer *t, bool before, const json_t *id, nb_error *err)
{
    int32_t *list = before ? t->before : t->after;
    size_t *n = before ? &t->n_before : &t->n_after;
    if (*n == NB_MAX_AROUND) {
        return nb_fail(err, NB_EINPUT, "more than %d special tokens", NB_MAX_AROUND);
    }
    NB_TRY(nb_json_id(id, "special token", &list[*n], err));
    if ((size_t)list[*n] >= t->bpe.tokens.n || !t->bpe.tokens.text[list[*n]].s) {
        return nb_fail(err, NB_EINPUT, "special token %d is not in the vocabulary", (int)list[*n]);
    }
    ++*n;
    return NB_OK;
}

/* The template for one text: special tokens before and after the place of the text. */
static nb_status post_template(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    const json_t *single = json_object_get(j, "single"),
                 *specials = json_object_get(j, "special_tokens");
    bool before = true;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken");
        if (json_object_get(item, "Sequence")) before = false;
        if (!special) continue;
        const char *name = json_string_value(json_object_get(special, "id"));
        const json_t *ids = name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
        if (!json_is_array(ids)) {
            return nb_fail(err, NB_EINPUT, "special token \"%.60s\" has no ids", name ? name : "");
        }
        for (size_t k = 0; k < json_array_size(ids); k++) {
            NB_TRY(push_around(t, before, json_array_get(ids, k), err));
        }
    }
    return NB_OK;
}

nb_status nb_read_post_processor(nb_tokenizer *t, const json_t *j, nb_error *err)
{
    static const part parts[] = {{"ByteLevel", NULL}, {"TemplateProcessing", post_template}, {0}};
    static const part_table table = {"post_processor", "processors", parts};
    return read_table(t, &table, j, err);
}

/* ---- decoder ------------------------------------------------------------------------------ */

static nb_status set_replace(nb_tokenizer *t, nb_text from, nb_text to, nb_error *err)
{
    nb_decoder *d = &t->decoder;
    if (d->from.n) return nb_fail(err, NB_EINPUT, "only one replacement is supported");
    NB_TRY(nb_tokenizer_keep(t, from, &d->from, err));
    return nb_tokenizer_keep(t, to, &d->to, err);
}

static nb_status decode_replace(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    nb_text pattern, content;
    bool literal;
    NB_TRY(read_pattern(j, &pattern, &literal, err));
    NB_TRY(required_text(j, "content", &content, err));
    if (!literal) return nb_fail(err, NB_EINPUT, "a Regex is not supported");
    /* Behind Fuse a longer pattern could lie across two tokens. */
    if (!pattern.n || (p->fused && nb_utf8_len(pattern.s[0]) != pattern.n)) {
        return nb_fail(err, NB_EINPUT, "expected a pattern of one character");
    }
    return set_replace(t, pattern, content, err);
}

static nb_status decode_byte_fallback(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(j);
    NB_UNUSED(p);
    NB_UNUSED(err);
    t->decoder.byte_fallback = true;
    return NB_OK;
}

static nb_status decode_byte_level(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(j);
    NB_UNUSED(p);
    NB_UNUSED(err);
    t->decoder.byte_level = true;
    return NB_OK;
}

static nb_status decode_fuse(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(t);
    NB_UNUSED(j);
    NB_UNUSED(err);
    p->fused = true;
    return NB_OK;
}

static nb_status decode_strip(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    nb_text content;
    NB_TRY(required_text(j, "content", &content, err));
    json_int_t start = json_integer_value(json_object_get(j, "start"));
    json_int_t stop = json_integer_value(json_object_get(j, "stop"));
    if (!p->fused || content.n != 1 || content.s[0] != ' ' || stop != 0 || start < 0 ||
        start > 1024) {
        return nb_fail(err, NB_EINPUT,
                       "content \"%.20s\", start %lld, stop %lld: only spaces at the start of a "
                       "fused text are supported",
                       content.s, (long long)start, (long long)stop);
    }
    t->decoder.strip_left = (int)start;
    return NB_OK;
}

static nb_status decode_metaspace(nb_tokenizer *t, const json_t *j, place *p, nb_error *err)
{
    NB_UNUSED(p);
    nb_scheme scheme;
    bool split;
    NB_TRY(read_metaspace(j, &scheme, &split, err));
    t->decoder.drop_first = scheme != NB_PREPEND_NEVER;
    return set_replace(t, (nb_text){NB_METASPACE, 3}, (nb_text){" ", 1}, err);
}

nb_status nb_read_decoder(nb_tokenizer *t, const json_t *j, nb_error *err)
{
    static const part parts[] = {
        {"ByteFallback", decode_byte_fallback},
        {"ByteLevel", decode_byte_level},
        {"Fuse", decode_fuse},
        {"Metaspace", decode_metaspace},
        {"Replace", decode_replace},
        {"Strip", decode_strip},
        {0},
    };
    static const part_table table = {"decoder", "decoders", parts};
    if (j && !json_is_null(j)) return read_table(t, &table, j, err);
    /* Without a decoder Hugging Face joins tokens by spaces, which nobody means. */
    for (size_t i = 0; i < t->n_pre; i++) {
        t->decoder.byte_level |= t->pre[i].kind == NB_PRE_BYTE_LEVEL;
    }
    return NB_OK;
}
