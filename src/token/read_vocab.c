/* Tokenizers from a bare vocabulary, as GGUF and SentencePiece have it. */
#include <string.h>

#include "token/tokenizer.h"

/* ---- shared with the reader of tokenizer.model -------------------------------------------- */

nb_status nb_tokenizer_set_added(nb_tokenizer *t, const uint8_t *types, nb_error *err)
{
    size_t n = t->bpe.tokens.n;
    t->added = nb_arena_alloc(t->arena, types ? n : 0, sizeof *t->added);
    if (!t->added) return nb_fail_memory(err, "added tokens", n * sizeof *t->added);
    for (size_t i = 0; types && i < n; i++) {
        bool special = types[i] == NB_TOKEN_CONTROL || types[i] == NB_TOKEN_UNKNOWN;
        nb_text text = t->bpe.tokens.text[i];
        if ((!special && types[i] != NB_TOKEN_USER_DEFINED) || text.n == 0) continue;
        t->added[t->n_added++] = (nb_added){.text = text, .id = (int32_t)i, .special = special};
    }
    return NB_OK;
}

/* Rewriting of spaces: the normalizer of Llama's converter in transformers, or, for a model that
 * is not "legacy", its Metaspace (a space only at the start of the whole text). */
static nb_status set_spaces(nb_tokenizer *t, bool prefix, bool squeeze, bool legacy, nb_error *err)
{
    static const nb_text space = {" ", 1}, meta = {NB_METASPACE, 3}, nothing = {"", 0};
    static const nb_text ends = {"\\A +| +\\z", 9}, runs = {" {2,}", 5};
    if (squeeze) {
        NB_TRY(nb_add_replace(t, ends, false, nothing, err));
        NB_TRY(nb_add_replace(t, runs, false, space, err));
    }
    if (!legacy) {
        return nb_add_metaspace(t, prefix ? NB_PREPEND_FIRST : NB_PREPEND_NEVER, false, err);
    }
    if (prefix) NB_TRY(nb_add_norm(t, NB_NORMALIZE_PREPEND, meta, err));
    return nb_add_replace(t, space, true, meta, err);
}

nb_status nb_tokenizer_set_spm(nb_tokenizer *t, const float *scores, const uint8_t *types,
                               bool prefix, bool squeeze, bool legacy, nb_error *err)
{
    size_t n = t->bpe.tokens.n;
    bool *joinable = nb_arena_alloc(t->arena, n, sizeof *joinable);
    if (!joinable) return nb_fail_memory(err, "vocabulary", n);
    for (size_t i = 0; i < n; i++) {
        joinable[i] = !types || types[i] == NB_TOKEN_NORMAL || types[i] == NB_TOKEN_UNUSED;
        t->bpe.byte_fallback |= types && types[i] == NB_TOKEN_BYTE;
    }
    t->bpe.fuse_unk = true;
    t->decoder = (nb_decoder){.byte_fallback = true,
                              .from = {NB_METASPACE, 3},
                              .to = {" ", 1},
                              .strip_left = prefix ? 1 : 0};
    NB_TRY(set_spaces(t, prefix, squeeze, legacy, err));
    NB_TRY(nb_bpe_merges_from_scores(&t->bpe, scores, joinable, err));
    return nb_tokenizer_set_added(t, types, err);
}

/* ---- GGUF --------------------------------------------------------------------------------- */

static nb_status check_token(const nb_tokenizer *t, const char *what, int32_t id, nb_error *err)
{
    if (id >= -1 && (id < 0 || (size_t)id < t->bpe.tokens.n)) return NB_OK;
    return nb_fail(err, NB_EINPUT, "%s token id %d, expected 0 to %zu", what, (int)id,
                   t->bpe.tokens.n - 1);
}

static nb_status set_ends(nb_tokenizer *t, const nb_vocab *v, nb_error *err)
{
    NB_TRY(check_token(t, "bos", v->bos, err));
    NB_TRY(check_token(t, "eos", v->eos, err));
    NB_TRY(check_token(t, "unknown", v->unk, err));
    t->bos = v->bos;
    t->eos = v->eos;
    t->bpe.unk = v->unk;
    if (v->add_bos && v->bos >= 0) t->before[t->n_before++] = v->bos;
    if (v->add_eos && v->eos >= 0) t->after[t->n_after++] = v->eos;
    if (!v->chat_template) return NB_OK;
    return nb_tokenizer_set_chat_template(t, v->chat_template, strlen(v->chat_template), err);
}

static nb_status set_bpe(nb_tokenizer *t, const nb_vocab *v, nb_error *err)
{
    NB_TRY(nb_bpe_alloc_merges(&t->bpe, v->n_merges, err));
    for (size_t i = 0; i < v->n_merges; i++) {
        nb_text left, right;
        if (!nb_split_merge(v->merges[i], &left, &right)) {
            return nb_fail(err, NB_EINPUT, "merge %zu: expected two tokens", i);
        }
        NB_TRY(nb_bpe_add_merge(&t->bpe, left, right, err));
    }
    NB_TRY(nb_add_pre_by_name(t, v->pre, err));
    /* Every byte has a token in a byte-level vocabulary: nothing is unknown. */
    if (t->decoder.byte_level) t->bpe.unk = -1;
    return nb_tokenizer_set_added(t, v->types, err);
}

static nb_status read_vocab(nb_tokenizer *t, const nb_vocab *v, nb_error *err)
{
    if (!v->n_tokens) return nb_fail(err, NB_EINPUT, "vocabulary: no tokens");
    NB_TRY(nb_table_init(&t->bpe.tokens, t->arena, v->n_tokens, err));
    for (size_t i = 0; i < v->n_tokens; i++) {
        NB_TRY(nb_table_set(&t->bpe.tokens, (int32_t)i, v->tokens[i], err));
    }
    NB_TRY(set_ends(t, v, err));
    if (v->kind == NB_VOCAB_BPE) return set_bpe(t, v, err);
    if (!v->scores) return nb_fail(err, NB_EINPUT, "vocabulary: no scores");
    return nb_tokenizer_set_spm(t, v->scores, v->types, v->add_space_prefix, false, true, err);
}

nb_status nb_tokenizer_from_vocab(nb_tokenizer **out, const nb_vocab *v, nb_error *err)
{
    *out = NULL;
    nb_tokenizer *t;
    NB_TRY(nb_tokenizer_create(&t, err));
    nb_status st = read_vocab(t, v, err);
    if (st == NB_OK) st = nb_tokenizer_finish(t, err);
    if (st != NB_OK)
        nb_tokenizer_free(t);
    else
        *out = t;
    return st;
}
