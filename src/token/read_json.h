/* The parts of tokenizer.json, between the two files that read it. */
#ifndef NB_TOKEN_READ_JSON_H
#define NB_TOKEN_READ_JSON_H

#include <jansson.h>

#include "token/tokenizer.h"

/* Parses a text that holds an object; duplicate keys are refused. json_decref the result. */
nb_status nb_json_load(json_t **out, const char *what, const char *text, size_t n_bytes,
                       nb_error *err);

/* A member, or the default where it is absent or null; NB_EINPUT if it has another type. */
nb_status nb_json_bool(const json_t *j, const char *key, bool absent, bool *out, nb_error *err);
nb_status nb_json_text(const json_t *j, const char *key, nb_text absent, nb_text *out,
                       nb_error *err);
/* An id in 0 .. NB_MAX_TOKENS - 1. */
nb_status nb_json_id(const json_t *j, const char *what, int32_t *out, nb_error *err);
nb_text nb_json_string(const json_t *j); /* j is a string */

/* Each takes the member of its name, which may be NULL or null. */
nb_status nb_read_normalizer(nb_tokenizer *t, const json_t *j, nb_error *err);
nb_status nb_read_pre_tokenizer(nb_tokenizer *t, const json_t *j, nb_error *err);
nb_status nb_read_post_processor(nb_tokenizer *t, const json_t *j, nb_error *err);
nb_status nb_read_decoder(nb_tokenizer *t, const json_t *j, nb_error *err);

#endif
