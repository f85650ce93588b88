/* What must hold for every tokenizer that a parser accepts. */
#ifndef NB_FUZZ_TOKENIZER_H
#define NB_FUZZ_TOKENIZER_H

#include <stdlib.h>
#include <string.h>

#include "token/token.h"

static const char *const fuzz_texts[] = {
    "",
    " ",
    "Hello  world, it's 2024!\n\n",
    "<s> a<unk>b </s>",
    "\xe2\x96\x81 caf\xc3\xa9 \xf0\x9f\xa6\x99",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
};

static inline void check_decoded(const nb_tokenizer *t, const int32_t *ids, size_t n)
{
    nb_strbuf b;
    nb_stream s = {0};
    nb_strbuf_init(&b, (size_t)1 << 24);
    if (nb_tokenizer_decode(t, ids, n, false, &b, NULL) == NB_EINPUT) abort();
    b.n_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        if (nb_tokenizer_stream(t, &s, ids[i], &b, NULL) == NB_EINPUT) abort();
    }
    nb_tokenizer_stream_end(&s, &b);
    nb_strbuf_fini(&b);
}

static inline void check_text(const nb_tokenizer *t, const char *text)
{
    int32_t *a, *b;
    size_t n, m;
    unsigned flags = NB_ENCODE_BOS | NB_ENCODE_SPECIAL;
    /* An expression of the file may need too many steps: that is an error, not a fault. */
    if (nb_tokenizer_encode(t, text, strlen(text), flags, &a, &n, NULL) != NB_OK) return;
    if (nb_tokenizer_encode(t, text, strlen(text), flags, &b, &m, NULL) != NB_OK) abort();
    if (n != m || memcmp(a, b, n * sizeof *a) != 0) abort();
    check_decoded(t, a, n);
    free(a);
    free(b);
}

static inline void check_tokenizer(const nb_tokenizer *t)
{
    char *json, *config;
    size_t n, n_config;
    nb_tokenizer *copy;
    for (size_t i = 0; i < sizeof fuzz_texts / sizeof *fuzz_texts; i++)
        check_text(t, fuzz_texts[i]);
    if (nb_tokenizer_to_json(t, &json, &n, &config, &n_config, NULL) != NB_OK) abort();
    nb_status st = nb_tokenizer_from_json(&copy, json, n, config, n_config, NULL);
    if (st == NB_OK && nb_tokenizer_count(copy) > nb_tokenizer_count(t)) abort();
    nb_tokenizer_free(copy);
    free(json);
    free(config);
}

#endif
