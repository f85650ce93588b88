/* The tokenizer of a checkpoint: the vocabulary in GGUF metadata, or the tokenizer files that lie
 * beside config.json. */
#ifndef NB_MODEL_VOCAB_H
#define NB_MODEL_VOCAB_H

#include "io/io.h"
#include "token/token.h"

/* GGUF: the "tokenizer.ggml." keys. A directory: tokenizer.json, else tokenizer.model, with
 * tokenizer_config.json and chat_template.jinja where they are there.
 * *out is NULL and the status NB_OK when there is no vocabulary and no tokenizer file. */
nb_status nb_checkpoint_tokenizer(const nb_checkpoint *c, nb_tokenizer **out, nb_error *err);

#endif
