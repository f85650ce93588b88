/* Birth, death and questions; encode.c and decode.c do the work. */
#include "token/tokenizer.h"

#include <stdlib.h>
#include <string.h>

nb_status nb_tokenizer_create(nb_tokenizer **out, nb_error *err)
{
    *out = NULL;
    nb_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return nb_fail_memory(err, "tokenizer", sizeof *t);
    nb_status st = nb_arena_create(&t->arena, err);
    if (st != NB_OK) {
        free(t);
        return st;
    }
    t->bos = t->eos = t->bpe.unk = -1;
    *out = t;
    return NB_OK;
}

void nb_tokenizer_free(nb_tokenizer *t)
{
    if (!t) return;
    for (size_t i = 0; i < t->n_norm; i++) nb_regex_free(t->norm[i].re);
    for (size_t i = 0; i < t->n_pre; i++) nb_regex_free(t->pre[i].re);
    nb_arena_free(t->arena);
    free(t);
}

nb_status nb_tokenizer_keep(nb_tokenizer *t, nb_text in, nb_text *out, nb_error *err)
{
    char *s = nb_arena_strndup(t->arena, in.s, in.n);
    *out = (nb_text){s, s ? in.n : 0};
    if (!s) return nb_fail_memory(err, "tokenizer", in.n);
    return NB_OK;
}

nb_status nb_tokenizer_set_chat_template(nb_tokenizer *t, const char *text, size_t n_bytes,
                                         nb_error *err)
{
    nb_text kept;
    NB_TRY(nb_tokenizer_keep(t, (nb_text){text, n_bytes}, &kept, err));
    t->chat_template = kept.s;
    return NB_OK;
}

static nb_status fail_steps(const char *what, nb_error *err)
{
    return nb_fail(err, NB_EINPUT, "%s: more than %d steps", what, NB_MAX_STEPS);
}

nb_status nb_add_norm(nb_tokenizer *t, nb_norm_kind kind, nb_text text, nb_error *err)
{
    if (t->n_norm == NB_MAX_STEPS) return fail_steps("normalizer", err);
    nb_norm_step s = {.kind = kind};
    NB_TRY(nb_tokenizer_keep(t, text, &s.text, err));
    t->norm[t->n_norm++] = s;
    return NB_OK;
}

nb_status nb_add_replace(nb_tokenizer *t, nb_text pattern, bool literal, nb_text by, nb_error *err)
{
    nb_regex *re;
    NB_TRY(nb_regex_create(&re, pattern, literal, err));
    nb_status st = nb_add_norm(t, NB_NORMALIZE_REPLACE, by, err);
    if (st == NB_OK)
        t->norm[t->n_norm - 1].re = re;
    else
        nb_regex_free(re);
    return st;
}

static nb_status add_pre(nb_tokenizer *t, nb_pre_step step, nb_error *err)
{
    if (t->n_pre == NB_MAX_STEPS) return fail_steps("pre_tokenizer", err);
    t->pre[t->n_pre++] = step;
    return NB_OK;
}

nb_status nb_add_split(nb_tokenizer *t, nb_text pattern, bool literal, nb_pre_step **step,
                       nb_error *err)
{
    *step = NULL;
    nb_pre_step s = {.kind = NB_PRE_SPLIT, .behavior = NB_SPLIT_ISOLATED};
    NB_TRY(nb_regex_create(&s.re, pattern, literal, err));
    nb_status st = add_pre(t, s, err);
    if (st == NB_OK)
        *step = &t->pre[t->n_pre - 1];
    else
        nb_regex_free(s.re);
    return st;
}

nb_status nb_add_byte_level(nb_tokenizer *t, bool prefix_space, bool use_regex, nb_error *err)
{
    nb_pre_step s = {.kind = NB_PRE_BYTE_LEVEL, .prefix_space = prefix_space};
    if (use_regex) {
        nb_text pattern = {nb_gpt2_pattern, strlen(nb_gpt2_pattern)};
        NB_TRY(nb_regex_create(&s.re, pattern, false, err));
    }
    nb_status st = add_pre(t, s, err);
    if (st != NB_OK) nb_regex_free(s.re);
    return st;
}

nb_status nb_add_metaspace(nb_tokenizer *t, nb_scheme scheme, bool split, nb_error *err)
{
    return add_pre(t, (nb_pre_step){.kind = NB_PRE_METASPACE, .scheme = scheme, .split = split},
                   err);
}

/* A bare tokenizer.json names no BOS and EOS: the usual names, in this order. */
static const char *const bos_names[] = {"<s>", "<|begin_of_text|>", "<bos>", NULL};
static const char *const eos_names[] = {
    "</s>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<eos>", NULL};

static int32_t first_special(const nb_tokenizer *t, const char *const *names)
{
    for (; *names; names++) {
        int32_t id = nb_table_find(&t->bpe.tokens, *names, strlen(*names));
        if (id >= 0 && t->special[id]) return id;
    }
    return -1;
}

nb_status nb_tokenizer_finish(nb_tokenizer *t, nb_error *err)
{
    t->special = nb_arena_alloc(t->arena, t->bpe.tokens.n, sizeof *t->special);
    if (!t->special) return nb_fail_memory(err, "tokenizer", t->bpe.tokens.n);
    NB_TRY(nb_bpe_index(&t->bpe, err));
    NB_TRY(nb_added_index(t, err));
    if (t->bos < 0) t->bos = t->n_before ? t->before[0] : first_special(t, bos_names);
    if (t->eos < 0) t->eos = first_special(t, eos_names);
    return NB_OK;
}

size_t nb_tokenizer_count(const nb_tokenizer *t) { return t->bpe.tokens.n; }

int32_t nb_tokenizer_bos(const nb_tokenizer *t) { return t->bos; }

int32_t nb_tokenizer_eos(const nb_tokenizer *t) { return t->eos; }

int32_t nb_tokenizer_find(const nb_tokenizer *t, const char *text, size_t n_bytes)
{
    return nb_table_find(&t->bpe.tokens, text, n_bytes);
}

/* Tokens that end a turn or a text in some family, whatever its configuration calls EOS. */
bool nb_tokenizer_is_end(const nb_tokenizer *t, int32_t id)
{
    static const char *const names[] = {
        "<|im_end|>",    "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",
        "<|endoftext|>", "<|end|>",    "</s>",       "<end_of_turn>",
    };
    if (id < 0 || (size_t)id >= t->bpe.tokens.n) return false;
    if (id == t->eos) return true;
    nb_text x = t->bpe.tokens.text[id];
    for (size_t i = 0; t->special[id] && i < NB_COUNT(names); i++) {
        if (x.n == strlen(names[i]) && memcmp(x.s, names[i], x.n) == 0) return true;
    }
    return false;
}
