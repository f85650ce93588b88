/* What happens to a text before the merges: normalizers rewrite it, pre-tokenizers cut it into
 * words. Names and meaning are those of Hugging Face `tokenizers` 0.20; a tokenizer holds a list
 * of each. */
#ifndef NB_TOKEN_STEPS_H
#define NB_TOKEN_STEPS_H

#include "base/strbuf.h"
#include "token/regex.h"

typedef enum nb_norm_kind {
    NB_NORMALIZE_PREPEND, /* text, unless there is nothing to put it before */
    NB_NORMALIZE_REPLACE, /* every match of re by text */
    NB_NORMALIZE_NFC,
    NB_NORMALIZE_NFD,
    NB_NORMALIZE_NFKC,
    NB_NORMALIZE_NFKD,
} nb_norm_kind;

typedef struct nb_norm_step {
    nb_norm_kind kind;
    nb_text text;
    nb_regex *re; /* owned */
} nb_norm_step;

/* What becomes of the matches of a split. */
typedef enum nb_behavior {
    NB_SPLIT_REMOVED,
    NB_SPLIT_ISOLATED, /* each match a word */
    NB_SPLIT_MERGED_WITH_PREVIOUS,
    NB_SPLIT_MERGED_WITH_NEXT,
    NB_SPLIT_CONTIGUOUS, /* adjacent matches are one word */
    NB_N_BEHAVIORS
} nb_behavior;
extern const char *const nb_behavior_names[NB_N_BEHAVIORS];

typedef enum nb_pre_kind { NB_PRE_SPLIT, NB_PRE_BYTE_LEVEL, NB_PRE_METASPACE } nb_pre_kind;

typedef enum nb_scheme {
    NB_PREPEND_ALWAYS,
    NB_PREPEND_FIRST,
    NB_PREPEND_NEVER,
    NB_N_SCHEMES
} nb_scheme;
extern const char *const nb_scheme_names[NB_N_SCHEMES];

typedef struct nb_pre_step {
    nb_pre_kind kind;
    nb_regex *re;         /* owned. SPLIT: its pattern; BYTE_LEVEL: GPT-2's, or NULL       */
    nb_behavior behavior; /* SPLIT                                                         */
    bool invert;          /* SPLIT: the words are what the pattern does not match          */
    bool prefix_space;    /* BYTE_LEVEL: a space before a word that begins without one     */
    nb_scheme scheme;     /* METASPACE: which words get a U+2581 in front                  */
    bool split;           /* METASPACE: cut before each U+2581                             */
} nb_pre_step;

/* The expression of ByteLevel with use_regex. */
extern const char nb_gpt2_pattern[];

typedef struct nb_span {
    size_t begin, end;
} nb_span;

/* A text and its words. */
typedef struct nb_pieces {
    nb_strbuf text;
    nb_span *spans; /* malloc'ed */
    size_t n, capacity;
} nb_pieces;

void nb_pieces_init(nb_pieces *p);
void nb_pieces_fini(nb_pieces *p);

/* Appends the normalized text to out; in is checked UTF-8, and so is what comes out. */
nb_status nb_normalize(const nb_norm_step *steps, size_t n_steps, nb_matcher *m, nb_text in,
                       nb_strbuf *out, nb_error *err);

/* Cuts p (one span over its whole text) into words, using tmp; at_start: the text is the beginning
 * of the whole input. */
nb_status nb_pretokenize(const nb_pre_step *steps, size_t n_steps, nb_matcher *m, nb_pieces *p,
                         nb_pieces *tmp, bool at_start, nb_error *err);

/* Largest text that a step may produce. */
#define NB_MAX_TEXT_BYTES ((size_t)1 << 31)

#endif
