/* A tokenizer as its readers make it and its writer sees it; private to token/. */
#ifndef NB_TOKEN_TOKENIZER_H
#define NB_TOKEN_TOKENIZER_H

#include "token/bpe.h"
#include "token/steps.h"

/* More steps than any file has; a bound for nested sequences. */
#define NB_MAX_STEPS 32

/* A token that is cut out of the text before anything else happens. */
typedef struct nb_added {
    nb_text text;    /* its content */
    nb_text pattern; /* what is looked for: the content, normalized if `normalized` */
    int32_t id;
    bool special;     /* a control token: ordinary text unless NB_ENCODE_SPECIAL */
    bool lstrip;      /* swallows white space on its left */
    bool rstrip;      /* and on its right */
    bool single_word; /* not inside a word */
    bool normalized;  /* looked for after the normalizer */
} nb_added;

/* Patterns in byte order: the longest match is found by narrowing a range. */
typedef struct nb_added_set {
    nb_added *items;
    size_t n;
    bool starts[256]; /* first bytes */
} nb_added_set;

/* How ids become bytes. */
typedef struct nb_decoder {
    bool byte_level;    /* characters of the GPT-2 alphabet are bytes                       */
    bool byte_fallback; /* "<0x0A>" is a byte                                               */
    nb_text from, to;   /* replaced in every token; from.n 0: nothing                       */
    bool drop_first;    /* in the first token, `from` is dropped instead (Metaspace)        */
    int strip_left;     /* spaces that go from the start of the text, at most               */
} nb_decoder;

#define NB_MAX_AROUND 8

struct nb_tokenizer {
    nb_arena *arena;
    nb_bpe bpe;
    nb_norm_step norm[NB_MAX_STEPS];
    size_t n_norm;
    nb_pre_step pre[NB_MAX_STEPS];
    size_t n_pre;
    nb_added *added; /* [n_added] in order of id */
    size_t n_added;
    nb_added_set raw, normalized; /* of added */
    bool *special;                /* [n tokens] */
    nb_decoder decoder;
    int32_t before[NB_MAX_AROUND], after[NB_MAX_AROUND]; /* BOS and EOS of NB_ENCODE_BOS */
    size_t n_before, n_after;
    int32_t bos, eos; /* -1: none */
    const char *chat_template;
};

nb_status nb_tokenizer_create(nb_tokenizer **out, nb_error *err);

/* A copy in the tokenizer's arena. */
nb_status nb_tokenizer_keep(nb_tokenizer *t, nb_text in, nb_text *out, nb_error *err);

nb_status nb_add_norm(nb_tokenizer *t, nb_norm_kind kind, nb_text text, nb_error *err);
nb_status nb_add_replace(nb_tokenizer *t, nb_text pattern, bool literal, nb_text by, nb_error *err);
/* An isolating split; NULL in *step after a failure. */
nb_status nb_add_split(nb_tokenizer *t, nb_text pattern, bool literal, nb_pre_step **step,
                       nb_error *err);
nb_status nb_add_byte_level(nb_tokenizer *t, bool prefix_space, bool use_regex, nb_error *err);
nb_status nb_add_metaspace(nb_tokenizer *t, nb_scheme scheme, bool split, nb_error *err);

/* Indexes merges and added tokens: the last step of every reader. */
nb_status nb_tokenizer_finish(nb_tokenizer *t, nb_error *err);

/* Added tokens that lie in s, from left to right. */
typedef struct nb_scan {
    const nb_added_set *set;
    const char *s;
    size_t n, pos; /* next byte to look at */
    size_t last;   /* end of the last token found */
    bool specials; /* special tokens count */
} nb_scan;
/* The next token at [*begin, *end); NULL: none. */
const nb_added *nb_scan_next(nb_scan *x, size_t *begin, size_t *end);

nb_status nb_added_index(nb_tokenizer *t, nb_error *err);

/* Settings of tokenizer_config.json: BOS, EOS, chat template; text may be NULL. */
nb_status nb_tokenizer_read_config(nb_tokenizer *t, const char *text, size_t n_bytes,
                                   nb_error *err);

/* The pre-tokenizer that GGUF calls by this name (NULL: "default"). */
nb_status nb_add_pre_by_name(nb_tokenizer *t, const char *name, nb_error *err);

/* SentencePiece: normalizer, decoder and merges for a table that is filled. */
nb_status nb_tokenizer_set_spm(nb_tokenizer *t, const float *scores, const uint8_t *types,
                               bool prefix, bool squeeze, bool legacy, nb_error *err);
/* Control, unknown and user-defined tokens by their types [n tokens]. */
nb_status nb_tokenizer_set_added(nb_tokenizer *t, const uint8_t *types, nb_error *err);

#endif
