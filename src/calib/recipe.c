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
    {.key = "keys", .kind = NB_FIELD_FORMAT, .off = offsetof(nb_recipe, keys), .min = NB_FOR_KV},
    {.key = "query", .kind = NB_FIELD_FORMAT, .off = offsetof(nb_recipe, query), .min = NB_FOR_KV},
    {.key = "probs", .kind = NB_FIELD_FORMAT, .off = offsetof(nb_recipe, probs), .min = NB_FOR_KV},
    {.key = "rope",
     .kind = NB_FIELD_OPTION,
     .off = offsetof(nb_recipe, rope),
     .choice = {"half", "interleaved"}},
    {.key = "embedding",
     .kind = NB_FIELD_FORMAT,
     .off = offsetof(nb_recipe, embedding),
     .min = NB_FOR_WEIGHTS},
    {.key = "linears", .kind = NB_FIELD_LINEARS},
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
    {.key = "sequential",
     .kind = NB_FIELD_CHOICE,
     .off = offsetof(nb_recipe, sequential),
     .choice = {"false", "true"}},
    {.key = "calib_acts",
     .kind = NB_FIELD_CHOICE,
     .off = offsetof(nb_recipe, fp_stats),
     .choice = {"quant", "fp"}},
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

static nb_status set_choice(const nb_recipe_field *field, void *value, const char *text,
                            nb_error *err)
{
    for (int i = 0; i < 2; i++) {
        if (strcmp(text, field->choice[i]) != 0) continue;
        if (field->kind == NB_FIELD_CHOICE) {
            *(bool *)value = i == 1;
        } else {
            *(int *)value = i + 1;
        }
        return NB_OK;
    }
    return nb_fail(err, NB_EUSAGE, "%s: expected %s or %s, found \"%.40s\"", field->key,
                   field->choice[0], field->choice[1], text);
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
    case NB_FIELD_CHOICE:
    case NB_FIELD_OPTION:
        return set_choice(field, value, text, err);
    case NB_FIELD_LINEARS:
        break;
    }
    return nb_fail(err, NB_EUSAGE, "%s: expected a mapping", field->key);
}

/* ---- single linears ---------------------------------------------------------------------- */

nb_role nb_recipe_role(const char *name)
{
    static const struct {
        const char *name;
        nb_role role;
    } names[] = {
        {"q_proj", NB_Q},       {"k_proj", NB_K},       {"v_proj", NB_V},   {"o_proj", NB_O},
        {"out_proj", NB_O},     {"gate_proj", NB_GATE}, {"up_proj", NB_UP}, {"fc1", NB_UP},
        {"down_proj", NB_DOWN}, {"fc2", NB_DOWN},
    };
    for (size_t i = 0; i < NB_COUNT(names); i++) {
        if (strcmp(names[i].name, name) == 0) return names[i].role;
    }
    int role = 0;
    while (role < NB_N_ROLES && strcmp(nb_role_names[role], name) != 0) role++;
    return (nb_role)role;
}

nb_status nb_recipe_set_role(nb_recipe *r, nb_role role, const char *key, const char *text,
                             nb_error *err)
{
    bool acts = strcmp(key, "acts") == 0;
    if (!acts && strcmp(key, "weights") != 0) {
        return nb_fail(err, NB_EUSAGE,
                       "linears: %s: unknown key \"%.40s\"; there are weights, acts",
                       nb_role_names[role], key);
    }
    nb_format *f = acts ? &r->linear[role].acts : &r->linear[role].weights;
    nb_status st = set_format(nb_recipe_field_find(key), f, text, err);
    if (st == NB_OK && !acts && !f->family) {
        st = nb_fail(err, NB_EUSAGE, "weights: \"none\"; say f16, bf16 or f32 to convert only");
    }
    return st == NB_OK ? NB_OK : nb_wrap(err, st, "linears: %s", nb_role_names[role]);
}

const nb_format *nb_recipe_weights(const nb_recipe *r, nb_role role)
{
    const nb_format *own = &r->linear[role].weights;
    return *own->word ? own : &r->weights;
}

nb_format nb_recipe_act(const nb_recipe *r, nb_role role)
{
    const nb_format *own = &r->linear[role].acts;
    if (*own->word) return *own;
    return nb_format_is_quantized(nb_recipe_weights(r, role)) ? r->acts : (nb_format){0};
}

nb_attn_formats nb_recipe_attn(const nb_recipe *r)
{
    return (nb_attn_formats){
        .q = r->query, .k = *r->keys.word ? r->keys : r->kv, .v = r->kv, .p = r->probs};
}

bool nb_recipe_quantizes(const nb_recipe *r)
{
    for (int i = 0; i < NB_N_ROLES; i++) {
        if (nb_format_is_quantized(nb_recipe_weights(r, (nb_role)i))) return true;
    }
    return false;
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
    NB_TRY(override_text(r, "rope", opt->rope, err));
    NB_TRY(override_text(r, "method", opt->method, err));
    NB_TRY(override_int(r, "samples", opt->samples, opt->samples > 0, err));
    NB_TRY(override_int(r, "seqlen", opt->seqlen, opt->seqlen > 0, err));
    NB_TRY(override_int(r, "epochs", opt->epochs, opt->epochs > 0, err));
    NB_TRY(override_int(r, "batch", opt->batch, opt->batch > 0, err));
    NB_TRY(override_int(r, "seed", opt->seed, opt->seed >= 0, err));
    return NB_OK;
}

/* ---- the whole --------------------------------------------------------------------------- */

/* In the order of their kinds, those on a whole block before those on single linears. */
static nb_status check_order(const nb_step *before, const nb_step *step, nb_error *err)
{
    const nb_method *a = before->method, *b = step->method;
    if (b->kind >= a->kind && !(b->run_block && a->run)) return NB_OK;
    return nb_fail(err, NB_EUSAGE,
                   "method: \"%s\" cannot follow \"%s\": the order is transforms, clip, round, "
                   "compensate, and steps on a whole block come first",
                   b->name, a->name);
}

/* Where nothing is quantized blocks are only converted, and no step sees them. */
static nb_status check_use(const nb_recipe *r, const nb_step *step, nb_error *err)
{
    if (!step->method->run_block || nb_recipe_quantizes(r)) return NB_OK;
    return nb_fail(err, NB_EUSAGE,
                   "method: \"%s\" is for weights that are quantized, but they are only converted "
                   "(weights: %s)",
                   step->method->name, r->weights.word);
}

static nb_status check_steps(const nb_recipe *r, nb_error *err)
{
    int count[4] = {0};
    for (int i = 0; i < r->n_steps; i++) {
        count[r->steps[i].method->kind]++;
        NB_TRY(check_use(r, &r->steps[i], err));
        if (i > 0) NB_TRY(check_order(&r->steps[i - 1], &r->steps[i], err));
    }
    if (count[NB_STEP_ROUND] != 1 || count[NB_STEP_CLIP] > 1 || count[NB_STEP_COMPENSATE] > 1) {
        return nb_fail(err, NB_EUSAGE,
                       "method: expected exactly one round step and at most one clip step and one "
                       "compensate step, found %d, %d and %d",
                       count[NB_STEP_ROUND], count[NB_STEP_CLIP], count[NB_STEP_COMPENSATE]);
    }
    nb_lorc lorc;
    return nb_steps_lorc(r->steps, r->n_steps, &lorc, err);
}

/* Both operands of a product in blocks of one length, so that a block pair has one scale. */
static nb_status check_pair(const char *key_a, const nb_format *a, const char *key_b,
                            const nb_format *b, nb_error *err)
{
    if (!nb_format_is_quantized(a) || !nb_format_is_quantized(b) || a->group == b->group) {
        return NB_OK;
    }
    return nb_fail(err, NB_EUSAGE, "%s: \"%s\" and %s: \"%s\": expected blocks of the same length",
                   key_a, a->word, key_b, b->word);
}

static nb_status check_attn(const nb_recipe *r, nb_error *err)
{
    nb_attn_formats a = nb_recipe_attn(r);
    if (nb_format_is_quantized(&a.p) && a.p.group == 0) {
        return nb_fail(err, NB_EUSAGE,
                       "probs: \"%s\": expected a format with blocks, such as dialect:b32",
                       a.p.word);
    }
    NB_TRY(check_pair("query", &a.q, *r->keys.word ? "keys" : "kv", &a.k, err));
    return check_pair("probs", &a.p, "kv", &a.v, err);
}

nb_status nb_recipe_check(const nb_recipe *r, nb_error *err)
{
    if (!r->weights.family) {
        return nb_fail(err, NB_EUSAGE,
                       "weights: no format given; say for example int4:g128, or "
                       "f16 to convert only");
    }
    NB_TRY(check_attn(r, err));
    return check_steps(r, err);
}

static unsigned step_needs(const nb_recipe *r, bool block)
{
    unsigned needs = 0;
    if (!nb_recipe_quantizes(r)) return 0;
    for (int i = 0; i < r->n_steps; i++) {
        const nb_method *m = r->steps[i].method;
        if ((m->run_block != NULL) == block) needs |= nb_step_needs(&r->steps[i]);
    }
    return needs;
}

unsigned nb_recipe_needs(const nb_recipe *r) { return step_needs(r, false); }

unsigned nb_recipe_block_needs(const nb_recipe *r) { return step_needs(r, true); }

bool nb_recipe_has_block_steps(const nb_recipe *r)
{
    bool any = false;
    for (int i = 0; i < r->n_steps; i++) any = any || r->steps[i].method->run_block;
    return any && nb_recipe_quantizes(r);
}

nb_status nb_recipe_rotation(const nb_recipe *r, const nb_config *cfg, nb_rotation *out,
                             nb_error *err)
{
    *out = (nb_rotation){0};
    if (!nb_recipe_has_block_steps(r)) return NB_OK;
    return nb_steps_rotation(r->steps, r->n_steps, cfg, out, err);
}

nb_status nb_recipe_lorc(const nb_recipe *r, const char *name, int64_t n_out, int64_t n_in,
                         nb_lorc *out, nb_error *err)
{
    nb_lorc l;
    *out = (nb_lorc){0};
    NB_TRY(nb_steps_lorc(r->steps, r->n_steps, &l, err));
    if (!nb_lorc_shape(&l, n_out, n_in)) {
        return nb_fail(err, NB_EUSAGE, "%s: factors of rank %d: the weight is [%lld, %lld]", name,
                       l.rank, (long long)n_out, (long long)n_in);
    }
    *out = l;
    return NB_OK;
}

/* ---- text --------------------------------------------------------------------------------- */

static void write_linears(const nb_recipe *r, nb_strbuf *b)
{
    bool begun = false;
    for (int i = 0; i < NB_N_ROLES; i++) {
        const char *w = r->linear[i].weights.word, *a = r->linear[i].acts.word;
        if (!*w && !*a) continue;
        if (!begun) nb_strbuf_puts(b, "linears:\n");
        begun = true;
        nb_strbuf_printf(b, "  %s: {", nb_role_names[i]);
        if (*w) nb_strbuf_printf(b, "weights: %s%s", w, *a ? ", " : "");
        if (*a) nb_strbuf_printf(b, "acts: %s", a);
        nb_strbuf_puts(b, "}\n");
    }
}

static void write_steps(const nb_recipe *r, nb_strbuf *b)
{
    nb_strbuf_puts(b, "method: [");
    for (int i = 0; i < r->n_steps; i++) {
        nb_strbuf_printf(b, "%s%s", i ? ", " : "", r->steps[i].word);
    }
    nb_strbuf_puts(b, "]\n");
}

/* Keys that came later are written where they say something, so that older texts stay the same. */
nb_status nb_recipe_write(const nb_recipe *r, char **yaml, size_t *n_bytes, nb_error *err)
{
    nb_strbuf b;
    nb_strbuf_init(&b, 4096);
    nb_strbuf_printf(&b, "name: %s\nweights: %s\nacts: %s\nkv: %s\n", r->name, r->weights.word,
                     r->acts.word, r->kv.word);
    if (*r->keys.word) nb_strbuf_printf(&b, "keys: %s\n", r->keys.word);
    if (*r->query.word) nb_strbuf_printf(&b, "query: %s\n", r->query.word);
    if (*r->probs.word) nb_strbuf_printf(&b, "probs: %s\n", r->probs.word);
    if (r->rope != NB_ORDER_OWN) {
        nb_strbuf_printf(&b, "rope: %s\n", r->rope == NB_ORDER_HALF ? "half" : "interleaved");
    }
    nb_strbuf_printf(&b, "embedding: %s\n", r->embedding.word);
    write_linears(r, &b);
    write_steps(r, &b);
    nb_strbuf_printf(&b, "samples: %d\nseqlen: %d\nepochs: %d\nbatch: %d\nseed: %lld\n", r->samples,
                     r->seqlen, r->epochs, r->batch, (long long)r->seed);
    if (r->sequential) nb_strbuf_puts(&b, "sequential: true\n");
    if (r->fp_stats) nb_strbuf_puts(&b, "calib_acts: fp\n");
    return nb_strbuf_take(&b, yaml, n_bytes, err);
}
