/* Regular expressions of tokenizer files, run by PCRE2 with limits.
 *
 * Hugging Face `tokenizers` runs them with Oniguruma. Where the two differ in what real files
 * use, the pattern is rewritten: \s is Unicode White_Space, ^ and $ match at lines, and constructs
 * that mean something else to PCRE2 (class intersections, nested classes) are refused. */
#ifndef NB_TOKEN_REGEX_H
#define NB_TOKEN_REGEX_H

#include "base/arena.h"
#include "token/token.h"

typedef struct nb_regex nb_regex;

/* literal: the text itself, not an expression. */
nb_status nb_regex_create(nb_regex **out, nb_text pattern, bool literal, nb_error *err);
void nb_regex_free(nb_regex *re);
nb_text nb_regex_source(const nb_regex *re);
bool nb_regex_is_literal(const nb_regex *re);

/* Scratch of one caller. */
typedef struct nb_matcher nb_matcher;
nb_status nb_matcher_create(nb_matcher **out, nb_error *err);
void nb_matcher_free(nb_matcher *m);

/* The first match that begins at or after `from`; *found false if there is none. It may be empty.
 * NB_EINPUT if the expression needs more steps than the limit. s: checked UTF-8. */
nb_status nb_regex_find(const nb_regex *re, nb_matcher *m, const char *s, size_t n_bytes,
                        size_t from, size_t *begin, size_t *end, bool *found, nb_error *err);

#endif
