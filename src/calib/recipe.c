/* Recipes: defaults, options over them, what must hold as a whole, canonical text.
 * The YAML reader is recipe_yaml.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"
#include "calib/calib.h"
#include "calib/recipe.h"

void nb_recipe_default(nb_recipe *r)
{
    *r = (nb_recipe){.name = "custom", .samples = 128, .seqlen = 2048, .batch = 1, .seed = 2};
    nb_recipe_set_steps(r, "minmax,nearest", NULL);
    nb_format *const formats[] = {&r->weights, &r->acts, &r->kv, &r->embedding};
    for (size_t i = 0; i < NB_COUNT(formats); i++) nb_format_parse(formats[i], "none", NULL);
}

/* ---- fields, shared by the YAML reader and the options ----------------------------------- */

const nb_recipe_field nb_recipe_fields[] = {
    {.key = "name", .kind = NB_FIELD_NAME, .off = offsetof(nb_recipe, name)},
    {.key = "weights",
     .kind = NB_FIELD_FORMAT,
     .off = offsetof(nb_recipe, weights),
     .min = NB_FOR_WEIGHTS},
    {.key = "acts", .kind = NB_FIELD_FORMAT, .off = offsetof(nb_recipe, acts), .min = NB_FOR_ACTS},
    {.key = "kv", .kind = NB_FIELD_FORMAT, .off = offsetof(nb_recipe, kv), .min = NB_FOR_KV},
    {.key = "embedding",
     .kind = NB_FIELD_FORMAT,
     .off = offsetof(nb_recipe, embedding),
     .min = NB_FOR_WEIGHTS},
    {.key = "method", .kind = NB_FIELD_STEPS},
    {.key = "samples",
     .kind = NB_FIELD_INT,
     .off = offsetof(nb_recipe, samples),
     .min = 1,
     .max = 65536},
    {.key = "seqlen",
     .kind = NB_FIELD_INT,
     .off = offsetof(nb_recipe, seqlen),
     .min = 2,
     .max = 1 << 20},
    {.key = "epochs",
     .kind = NB_FIELD_INT,
     .off = offsetof(nb_recipe, epochs),
     .min = 0,
     .max = 10000},
    {.key = "batch",
     .kind = NB_FIELD_INT,
     .off = offsetof(nb_recipe, batch),
     .min = 1,
     .max = 65536},
    {.key = "seed",
     .kind = NB_FIELD_INT64,
     .off = offsetof(nb_recipe, seed),
     .min = 0,
     .max = UINT32_MAX},
    {0},
};

const nb_recipe_field *nb_recipe_field_find(const char *key)
{
    for (const nb_recipe_field *f = nb_recipe_fields; f->key; f++) {
        if (strcmp(f->key, key) == 0) return f;
    }
    return NULL;
}

static nb_status set_name(nb_recipe *r, const char *text, nb_error *err)
{
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+");
    if (n == 0 || text[n] || n >= sizeof r->name) {
        return nb_fail(err, NB_EUSAGE,
                       "name: expected 1 to %zu letters, digits or -_.+, found \"%.80s\"",
                       sizeof r->name - 1, text);
    }
    memcpy(r->name, text, n + 1);
    return NB_OK;
}

static nb_status set_format(const nb_recipe_field *field, nb_format *f, const char *text,
                            nb_error *err)
{
    nb_format parsed;
    nb_status st = nb_format_parse(&parsed, text, err);
    if (st != NB_OK) return nb_wrap(err, st, "%s", field->key);
    if (parsed.family && !(parsed.family->uses(&parsed) & (unsigned)field->min)) {
        return nb_fail(err, NB_EUSAGE, "%s: \"%s\" is no format for this", field->key, parsed.word);
    }
    if (field->min != NB_FOR_WEIGHTS && !nb_format_is_quantized(&parsed)) {
        return nb_format_parse(f, "none", err); /* f16, f32, ...: left alone */
    }
    *f = parsed;
    return NB_OK;
}

static nb_status set_int(const nb_recipe_field *field, void *value, const char *text, nb_error *err)
{
    char *end;
    long long v =
        text[0] >= '0' && text[0] <= '9' && strlen(text) < 12 ? strtoll(text, &end, 10) : -1;
    if (v < field->min || v > field->max || *end) {
        return nb_fail(err, NB_EUSAGE,
                       "%s: expected a whole number from %lld to %lld, found "
                       "\"%.40s\"",
                       field->key, (long long)field->min, (long long)field->max, text);
    }
    if (field->kind == NB_FIELD_INT64) {
        *(int64_t *)value = v;
    } else {
        *(int *)value = (int)v;
    }
    return NB_OK;
}

nb_status nb_recipe_add_step(nb_recipe *r, const char *name, nb_error *err)
{
    nb_step step;
    nb_status st = nb_step_parse(&step, name, err);
    if (st != NB_OK) return nb_wrap(err, st, "method");
    if (r->n_steps == NB_MAX_STEPS) {
        return nb_fail(err, NB_EUSAGE, "method: more than %d steps", NB_MAX_STEPS);
    }
    r->steps[r->n_steps++] = step;
    return NB_OK;
}

nb_status nb_recipe_set_steps(nb_recipe *r, const char *list, nb_error *err)
{
    r->n_steps = 0;
    for (;;) {
        char name[NB_STEP_WORD];
        size_t n = strcspn(list, ",");
        if (n >= sizeof name) {
            return nb_fail(err, NB_EUSAGE, "method: step \"%.40s\" is unknown", list);
        }
        memcpy(name, list, n);
        name[n] = 0;
        NB_TRY(nb_recipe_add_step(r, name, err));
        if (!list[n]) return NB_OK;
        list += n + 1;
    }
}

nb_status nb_recipe_set(nb_recipe *r, const nb_recipe_field *field, const char *text, nb_error *err)
{
    void *value = (char *)r + field->off;
    switch (field->kind) {
    case NB_FIELD_NAME:
        return set_name(r, text, err);
    case NB_FIELD_FORMAT:
        return set_format(field, value, text, err);
    case NB_FIELD_STEPS:
        return nb_recipe_set_steps(r, text, err);
    case NB_FIELD_INT:
    case NB_FIELD_INT64:
        return set_int(field, value, text, err);
    }
    return NB_OK;
}

/* ---- options ---------------------------------------------------------------------------- */

static nb_status override_text(nb_recipe *r, const char *key, const char *text, nb_error *err)
{
    return text ? nb_recipe_set(r, nb_recipe_field_find(key), text, err) : NB_OK;
}

static nb_status override_int(nb_recipe *r, const char *key, int64_t v, bool set, nb_error *err)
{
    char text[24];
    if (!set) return NB_OK;
    snprintf(text, sizeof text, "%lld", (long long)v);
    return nb_recipe_set(r, nb_recipe_field_find(key), text, err);
}

nb_status nb_recipe_override(nb_recipe *r, const nb_quantize_options *opt, nb_error *err)
{
    NB_TRY(override_text(r, "weights", opt->weights, err));
    NB_TRY(override_text(r, "acts", opt->acts, err));
    NB_TRY(override_text(r, "kv", opt->kv, err));
    NB_TRY(override_text(r, "method", opt->method, err));
    NB_TRY(override_int(r, "samples", opt->samples, opt->samples > 0, err));
    NB_TRY(override_int(r, "seqlen", opt->seqlen, opt->seqlen > 0, err));
    NB_TRY(override_int(r, "epochs", opt->epochs, opt->epochs > 0, err));
    NB_TRY(override_int(r, "batch", opt->batch, opt->batch > 0, err));
    NB_TRY(override_int(r, "seed", opt->seed, opt->seed >= 0, err));
    return NB_OK;
}

/* ---- the whole --------------------------------------------------------------------------- */

static nb_status check_steps(const nb_recipe *r, nb_error *err)
{
    int count[4] = {0};
    for (int i = 0; i < r->n_steps; i++) {
        const nb_method *m = r->steps[i].method;
        count[m->kind]++;
        if (i > 0 && m->kind < r->steps[i - 1].method->kind) {
            return nb_fail(err, NB_EUSAGE,
                           "method: \"%s\" cannot follow \"%s\": the order is transforms, clip, "
                           "round, compensate",
                           m->name, r->steps[i - 1].method->name);
        }
    }
    if (count[NB_STEP_ROUND] != 1 || count[NB_STEP_CLIP] > 1) {
        return nb_fail(err, NB_EUSAGE,
                       "method: expected exactly one round step and at most one clip step, found "
                       "%d and %d",
                       count[NB_STEP_ROUND], count[NB_STEP_CLIP]);
    }
    return NB_OK;
}

nb_status nb_recipe_check(const nb_recipe *r, nb_error *err)
{
    if (!r->weights.family) {
        return nb_fail(err, NB_EUSAGE,
                       "weights: no format given; say for example int4:g128, or "
                       "f16 to convert only");
    }
    if (nb_format_is_quantized(&r->kv)) {
        return nb_fail(err, NB_EUSAGE, "kv: \"%s\": the KV cache can only be left alone (none)",
                       r->kv.word);
    }
    return check_steps(r, err);
}

unsigned nb_recipe_needs(const nb_recipe *r)
{
    unsigned needs = 0;
    if (!nb_format_is_quantized(&r->weights)) return 0;
    for (int i = 0; i < r->n_steps; i++) needs |= nb_step_needs(&r->steps[i]);
    return needs;
}

nb_status nb_recipe_write(const nb_recipe *r, char **yaml, size_t *n_bytes, nb_error *err)
{
    nb_strbuf b;
    nb_strbuf_init(&b, 4096);
    nb_strbuf_printf(&b, "name: %s\nweights: %s\nacts: %s\nkv: %s\nembedding: %s\nmethod: [",
                     r->name, r->weights.word, r->acts.word, r->kv.word, r->embedding.word);
    for (int i = 0; i < r->n_steps; i++) {
        nb_strbuf_printf(&b, "%s%s", i ? ", " : "", r->steps[i].word);
    }
    nb_strbuf_printf(&b, "]\nsamples: %d\nseqlen: %d\nepochs: %d\nbatch: %d\nseed: %lld\n",
                     r->samples, r->seqlen, r->epochs, r->batch, (long long)r->seed);
    return nb_strbuf_take(&b, yaml, n_bytes, err);
}
