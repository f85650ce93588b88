/* Text to token ids and back.
 *
 * Two kinds: byte-level BPE (GPT-2, Llama-3, Qwen2, SmolLM, OPT) and SentencePiece-style BPE
 * (metaspace, byte fallback: Llama-1/2, Mistral, Zephyr). A tokenizer comes from tokenizer.json,
 * tokenizer.model or the vocabulary of a GGUF file, and gives exactly the ids that Hugging Face
 * `tokenizers` gives for the same files. Immutable once made; calls may run in parallel. */
#ifndef NB_TOKEN_TOKEN_H
#define NB_TOKEN_TOKEN_H

#include "base/status.h"
#include "base/strbuf.h"

typedef struct nb_tokenizer nb_tokenizer;

typedef enum nb_vocab_kind { NB_VOCAB_BPE, NB_VOCAB_SPM } nb_vocab_kind;

/* Token types of GGUF ("tokenizer.ggml.token_type") and SentencePiece. */
enum {
    NB_TOKEN_NORMAL = 1,
    NB_TOKEN_UNKNOWN = 2,
    NB_TOKEN_CONTROL = 3,
    NB_TOKEN_USER_DEFINED = 4,
    NB_TOKEN_UNUSED = 5,
    NB_TOKEN_BYTE = 6,
};

typedef struct nb_text {
    const char *s;
    size_t n;
} nb_text;

/* A vocabulary as GGUF holds it; everything is copied. */
typedef struct nb_vocab {
    nb_vocab_kind kind;
    const nb_text *tokens; /* [n_tokens], index = id */
    const float *scores;   /* [n_tokens], SPM only */
    const uint8_t *types;  /* [n_tokens] or NULL: all normal */
    size_t n_tokens;
    const nb_text *merges; /* [n_merges] "left right", BPE only */
    size_t n_merges;
    const char *pre; /* pre-tokenizer name of GGUF: "gpt-2", "llama-bpe", "qwen2", "smollm", ... */
    int32_t bos, eos, unk; /* -1: none */
    bool add_bos, add_eos, add_space_prefix;
    const char *chat_template; /* or NULL */
} nb_vocab;

nb_status nb_tokenizer_from_vocab(nb_tokenizer **out, const nb_vocab *v, nb_error *err);
/* Texts of tokenizer.json and, where there is one, tokenizer_config.json (bos/eos names, chat
 * template; NULL, 0: none). */
nb_status nb_tokenizer_from_json(nb_tokenizer **out, const char *json, size_t n_bytes,
                                 const char *config, size_t n_config, nb_error *err);
/* Bytes of a SentencePiece tokenizer.model (protobuf ModelProto of kind BPE). */
nb_status nb_tokenizer_from_spm(nb_tokenizer **out, const void *data, size_t n_bytes,
                                const char *config, size_t n_config, nb_error *err);
void nb_tokenizer_free(nb_tokenizer *t);

/* Some repositories keep the template in a file of its own (chat_template.jinja), which then
 * counts; before the tokenizer is shared. */
nb_status nb_tokenizer_set_chat_template(nb_tokenizer *t, const char *text, size_t n_bytes,
                                         nb_error *err);

/* tokenizer.json and tokenizer_config.json that give the same ids in Hugging Face `tokenizers`,
 * for models that came from GGUF or tokenizer.model. malloc'ed texts. */
nb_status nb_tokenizer_to_json(const nb_tokenizer *t, char **json, size_t *n_bytes, char **config,
                               size_t *n_config, nb_error *err);

enum {
    NB_ENCODE_BOS = 1,     /* add BOS/EOS as the tokenizer's own settings say                 */
    NB_ENCODE_SPECIAL = 2, /* special tokens in the text become their ids                     */
};

/* malloc'ed ids. NB_EINPUT if the text is not UTF-8 (offset in the message). */
nb_status nb_tokenizer_encode(const nb_tokenizer *t, const char *text, size_t n_bytes,
                              unsigned flags, int32_t **ids, size_t *n_ids, nb_error *err);
/* Appends bytes; skip_special leaves special tokens out. NB_EINPUT for an id outside. */
nb_status nb_tokenizer_decode(const nb_tokenizer *t, const int32_t *ids, size_t n_ids,
                              bool skip_special, nb_strbuf *out, nb_error *err);

/* Decoding one id at a time: bytes that may belong to an unfinished character wait in `pending`.
 * Special tokens are left out; bytes that can be no character come out as U+FFFD. */
typedef struct nb_stream {
    char pending[8];
    size_t n_pending;
    bool started; /* a leading metaspace is dropped only at the very start: set it beforehand when
                     the ids continue a text */
} nb_stream;
nb_status nb_tokenizer_stream(const nb_tokenizer *t, nb_stream *s, int32_t id, nb_strbuf *out,
                              nb_error *err);
/* What is left at the end, as U+FFFD if it is no character. */
void nb_tokenizer_stream_end(nb_stream *s, nb_strbuf *out);

size_t nb_tokenizer_count(const nb_tokenizer *t);
int32_t nb_tokenizer_bos(const nb_tokenizer *t); /* -1: none */
int32_t nb_tokenizer_eos(const nb_tokenizer *t);
bool nb_tokenizer_is_end(const nb_tokenizer *t, int32_t id); /* eos, <|im_end|>, <|eot_id|>, ... */
/* Id of a token by its exact text; -1: none. */
int32_t nb_tokenizer_find(const nb_tokenizer *t, const char *text, size_t n_bytes);

/* ---- chat ------------------------------------------------------------------------------- */

typedef struct nb_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} nb_message;

/* The prompt for these messages, ready for the answer (add_generation_prompt). The template's
 * text decides the style (ChatML, Llama-2, Llama-3, Mistral, Zephyr); any other is NB_EINPUT
 * quoting the start of the template; NB_EUSAGE if the model has none. Encode the result with
 * NB_ENCODE_SPECIAL and without NB_ENCODE_BOS: the template writes BOS itself. */
nb_status nb_tokenizer_chat(const nb_tokenizer *t, const nb_message *messages, size_t n,
                            nb_strbuf *out, nb_error *err);

#endif
