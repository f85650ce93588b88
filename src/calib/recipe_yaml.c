/* A recipe from YAML: one document, one mapping of known keys, each once; `method` also takes a
 * sequence, `linears` a mapping of mappings. Anchors, aliases, tags and anything else that is
 * nested are refused, so nothing can expand. */
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#include "calib/calib.h"
#include "calib/recipe.h"

#define RECIPE_MAX_BYTES 65536

typedef struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; deleted before the next */
    nb_error *err;
} reader;

static nb_status fail_at(reader *y, yaml_mark_t at, const char *what)
{
    return nb_fail(y->err, NB_EUSAGE, "recipe, line %zu, column %zu: %s", at.line + 1,
                   at.column + 1, what);
}

/* Puts the place before a message that a field's own check has written. */
static nb_status wrap_at(reader *y, yaml_mark_t at, nb_status st)
{
    return nb_wrap(y->err, st, "recipe, line %zu, column %zu", at.line + 1, at.column + 1);
}

static nb_status next(reader *y)
{
    yaml_event_delete(&y->event);
    if (yaml_parser_parse(&y->parser, &y->event)) return NB_OK;
    memset(&y->event, 0, sizeof y->event);
    const char *why = y->parser.problem ? y->parser.problem : "not YAML";
    return fail_at(y, y->parser.problem_mark, why);
}

static nb_status expect(reader *y, yaml_event_type_t type, const char *what)
{
    NB_TRY(next(y));
    return y->event.type == type ? NB_OK : fail_at(y, y->event.start_mark, what);
}

/* The current event as plain text. */
static nb_status scalar_text(reader *y, const char **text)
{
    const yaml_event_t *e = &y->event;
    *text = NULL;
    if (e->type != YAML_SCALAR_EVENT) {
        return fail_at(y, e->start_mark, "expected a word or a number");
    }
    if (e->data.scalar.anchor || e->data.scalar.tag) {
        return fail_at(y, e->start_mark, "anchors and tags are not allowed");
    }
    if (memchr(e->data.scalar.value, 0, e->data.scalar.length)) {
        return fail_at(y, e->start_mark, "a NUL inside a word");
    }
    *text = (const char *)e->data.scalar.value;
    return NB_OK;
}

static nb_status read_sequence(reader *y, nb_recipe *r)
{
    r->n_steps = 0;
    for (;;) {
        NB_TRY(next(y));
        if (y->event.type == YAML_SEQUENCE_END_EVENT) return NB_OK;
        const char *text;
        NB_TRY(scalar_text(y, &text));
        nb_status st = nb_recipe_add_step(r, text, y->err);
        if (st != NB_OK) return wrap_at(y, y->event.start_mark, st);
    }
}

/* The event that begins a mapping. */
static nb_status begin_mapping(reader *y, const char *what)
{
    NB_TRY(expect(y, YAML_MAPPING_START_EVENT, what));
    if (!y->event.data.mapping_start.anchor && !y->event.data.mapping_start.tag) return NB_OK;
    return fail_at(y, y->event.start_mark, "anchors and tags are not allowed");
}

/* {weights: FORMAT, acts: FORMAT} of one linear, either of them. */
static nb_status read_role(reader *y, nb_recipe *r, nb_role role)
{
    NB_TRY(begin_mapping(y, "expected {weights: FORMAT, acts: FORMAT}"));
    char seen[2][16] = {{0}};
    for (int i = 0;; i++) {
        char key[16];
        const char *text;
        NB_TRY(next(y));
        if (y->event.type == YAML_MAPPING_END_EVENT) return NB_OK;
        NB_TRY(scalar_text(y, &text));
        snprintf(key, sizeof key, "%.15s", text);
        if (i == 2 || strcmp(key, seen[0]) == 0) {
            return fail_at(y, y->event.start_mark, "expected weights and acts, each once");
        }
        memcpy(seen[i], key, sizeof key);
        NB_TRY(next(y));
        NB_TRY(scalar_text(y, &text));
        nb_status st = nb_recipe_set_role(r, role, key, text, y->err);
        if (st != NB_OK) return wrap_at(y, y->event.start_mark, st);
    }
}

static nb_status read_linears(reader *y, nb_recipe *r)
{
    unsigned seen = 0;
    NB_TRY(begin_mapping(y, "expected a mapping from linears to formats"));
    for (;;) {
        const char *text;
        NB_TRY(next(y));
        if (y->event.type == YAML_MAPPING_END_EVENT) return NB_OK;
        NB_TRY(scalar_text(y, &text));
        nb_role role = nb_recipe_role(text);
        if (role == NB_N_ROLES) {
            return fail_at(y, y->event.start_mark,
                           "unknown linear; there are q, k, v, o, gate, up, down");
        }
        if (seen & 1u << role)
            return fail_at(y, y->event.start_mark, "this linear was given before");
        seen |= 1u << role;
        NB_TRY(read_role(y, r, role));
    }
}

static nb_status read_value(reader *y, nb_recipe *r, const nb_recipe_field *field)
{
    if (field->kind == NB_FIELD_LINEARS) return read_linears(y, r);
    NB_TRY(next(y));
    if (field->kind == NB_FIELD_STEPS && y->event.type == YAML_SEQUENCE_START_EVENT) {
        if (y->event.data.sequence_start.anchor || y->event.data.sequence_start.tag) {
            return fail_at(y, y->event.start_mark, "anchors and tags are not allowed");
        }
        return read_sequence(y, r);
    }
    const char *text;
    NB_TRY(scalar_text(y, &text));
    nb_status st = nb_recipe_set(r, field, text, y->err);
    return st == NB_OK ? NB_OK : wrap_at(y, y->event.start_mark, st);
}

static nb_status fail_key(reader *y, yaml_mark_t at, const char *key)
{
    char list[200] = "";
    size_t used = 0;
    for (const nb_recipe_field *f = nb_recipe_fields; f->key; f++) {
        size_t n = strlen(f->key);
        if (used + n + 3 > sizeof list) break;
        if (used) memcpy(list + used, ", ", 2), used += 2;
        memcpy(list + used, f->key, n + 1);
        used += n;
    }
    return nb_fail(y->err, NB_EUSAGE,
                   "recipe, line %zu, column %zu: unknown key \"%.40s\"; there are %s", at.line + 1,
                   at.column + 1, key, list);
}

static nb_status read_mapping(reader *y, nb_recipe *r)
{
    unsigned seen = 0;
    for (;;) {
        NB_TRY(next(y));
        if (y->event.type == YAML_MAPPING_END_EVENT) return NB_OK;
        const char *key;
        NB_TRY(scalar_text(y, &key));
        const nb_recipe_field *field = nb_recipe_field_find(key);
        if (!field) return fail_key(y, y->event.start_mark, key);
        unsigned bit = 1u << (field - nb_recipe_fields);
        if (seen & bit) return fail_at(y, y->event.start_mark, "this key was given before");
        seen |= bit;
        NB_TRY(read_value(y, r, field));
    }
}

static nb_status read_stream(reader *y, nb_recipe *r)
{
    NB_TRY(expect(y, YAML_STREAM_START_EVENT, "not YAML"));
    NB_TRY(expect(y, YAML_DOCUMENT_START_EVENT, "the recipe is empty"));
    NB_TRY(begin_mapping(y, "expected \"key: value\" lines"));
    NB_TRY(read_mapping(y, r));
    NB_TRY(expect(y, YAML_DOCUMENT_END_EVENT, "expected the end of the recipe"));
    return expect(y, YAML_STREAM_END_EVENT, "expected one document");
}

nb_status nb_recipe_parse(nb_recipe *r, const char *yaml, size_t n_bytes, nb_error *err)
{
    nb_recipe_default(r);
    if (n_bytes > RECIPE_MAX_BYTES) {
        return nb_fail(err, NB_EUSAGE, "recipe: %zu bytes, expected at most %d", n_bytes,
                       RECIPE_MAX_BYTES);
    }
    reader y = {.err = err};
    if (!yaml_parser_initialize(&y.parser)) return nb_fail_memory(err, "recipe", n_bytes);
    yaml_parser_set_input_string(&y.parser, (const unsigned char *)yaml, n_bytes);
    nb_status st = read_stream(&y, r);
    yaml_event_delete(&y.event);
    yaml_parser_delete(&y.parser);
    if (st != NB_OK) nb_recipe_default(r);
    return st;
}
