/* A random LLaMA of a few kilobytes with a byte tokenizer, as a Hugging Face directory. */
#ifndef NB_TESTS_TINY_MODEL_H
#define NB_TESTS_TINY_MODEL_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/rng.h"
#include "base/strbuf.h"
#include "format/half.h"
#include "io/io.h"

enum {
    TINY_LAYERS = 3,
    TINY_EMBD = 32,
    TINY_FFN = 72, /* no multiple of 32: a partial last group */
    TINY_HEADS = 4,
    TINY_KV_HEADS = 2,
    TINY_HEAD = 8,
    TINY_VOCAB = 256,
    TINY_CTX = 64,
};

typedef struct tiny_writer {
    nb_arena *arena;
    nb_tensor t[64];
    size_t n;
    nb_rng rng;
    const char *nan_in; /* name of the tensor that gets a NaN, or NULL */
} tiny_writer;

static void tiny_add(tiny_writer *w, const char *name, int64_t rows, int64_t cols, double std)
{
    size_t n = (size_t)(rows * cols);
    uint16_t *v = nb_arena_alloc(w->arena, n, sizeof *v);
    for (size_t i = 0; i < n; i++) {
        v[i] = nb_bf16_from_f32((float)(std ? std * nb_rng_normal(&w->rng) : 1.0));
    }
    if (w->nan_in && strcmp(w->nan_in, name) == 0) v[n / 2] = 0x7fc0;
    nb_tensor *t = &w->t[w->n++];
    *t = (nb_tensor){.name = nb_arena_strndup(w->arena, name, strlen(name)),
                     .dtype = NB_BF16,
                     .n_dims = rows == 1 ? 1 : 2,
                     .dims = {rows == 1 ? cols : rows, cols},
                     .data = (const uint8_t *)v,
                     .n_bytes = n * 2};
}

static void tiny_add_layer(tiny_writer *w, int layer)
{
    static const struct {
        const char *name;
        int rows, cols;
    } parts[] = {
        {"self_attn.q_proj", TINY_EMBD, TINY_EMBD},
        {"self_attn.k_proj", TINY_KV_HEADS * TINY_HEAD, TINY_EMBD},
        {"self_attn.v_proj", TINY_KV_HEADS * TINY_HEAD, TINY_EMBD},
        {"self_attn.o_proj", TINY_EMBD, TINY_EMBD},
        {"mlp.gate_proj", TINY_FFN, TINY_EMBD},
        {"mlp.up_proj", TINY_FFN, TINY_EMBD},
        {"mlp.down_proj", TINY_EMBD, TINY_FFN},
        {"input_layernorm", 1, TINY_EMBD},
        {"post_attention_layernorm", 1, TINY_EMBD},
    };
    for (size_t i = 0; i < NB_COUNT(parts); i++) {
        char name[100];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, parts[i].name);
        tiny_add(w, name, parts[i].rows, parts[i].cols,
                 parts[i].rows == 1 ? 0 : 1 / sqrt((double)parts[i].cols));
    }
}

static bool tiny_write(const char *dir, const char *name, const char *text)
{
    char *path = nb_path_join(dir, name);
    bool ok = nb_write_file(path, text, strlen(text), NULL) == NB_OK;
    free(path);
    return ok;
}

/* root/name; valid for four calls. */
static inline const char *tiny_path(const char *root, const char *name)
{
    static char path[4][160];
    static int i;
    i = (i + 1) % 4;
    snprintf(path[i], sizeof path[i], "%s/%s", root, name);
    return path[i];
}

/* 3999 characters to calibrate on. */
static inline bool tiny_write_text(const char *dir, const char *name)
{
    char text[4000];
    for (size_t i = 0; i < sizeof text - 1; i++) text[i] = (char)(' ' + i * i % 90);
    text[sizeof text - 1] = 0;
    return tiny_write(dir, name, text);
}

/* Byte-level BPE without merges: GPT-2's alphabet, one token per byte. */
static bool tiny_write_tokenizer(const char *dir)
{
    nb_strbuf b;
    nb_strbuf_init(&b, 1 << 20);
    nb_strbuf_puts(&b, "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,"
                       "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                       "\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":null,"
                       "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                       "\"merges\":[],\"vocab\":{");
    for (int i = 0, next = 256; i < 256; i++) {
        bool same = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        nb_strbuf_printf(&b, "%s\"\\u%04x\":%d", i ? "," : "", same ? i : next, i);
        if (!same) next++;
    }
    nb_strbuf_puts(&b, "}}}");
    bool ok = tiny_write(dir, "tokenizer.json", b.data);
    nb_strbuf_fini(&b);
    return ok;
}

static bool tiny_write_config(const char *dir)
{
    char text[1000];
    snprintf(text, sizeof text,
             "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\","
             "\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,"
             "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,"
             "\"vocab_size\":%d,\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-5,"
             "\"rope_theta\":10000.0,\"hidden_act\":\"silu\",\"tie_word_embeddings\":true,"
             "\"torch_dtype\":\"bfloat16\"}\n",
             TINY_EMBD, TINY_FFN, TINY_LAYERS, TINY_HEADS, TINY_KV_HEADS, TINY_HEAD, TINY_VOCAB,
             TINY_CTX);
    return tiny_write(dir, "config.json", text);
}

static bool tiny_model_write(const char *dir, uint64_t seed, const char *nan_in)
{
    tiny_writer w = {.rng = {seed}, .nan_in = nan_in};
    if (nb_make_dir(dir, NULL) != NB_OK || nb_arena_create(&w.arena, NULL) != NB_OK) return false;
    tiny_add(&w, "model.embed_tokens.weight", TINY_VOCAB, TINY_EMBD, 1);
    tiny_add(&w, "model.norm.weight", 1, TINY_EMBD, 0);
    for (int i = 0; i < TINY_LAYERS; i++) tiny_add_layer(&w, i);
    char *path = nb_path_join(dir, "model.safetensors");
    bool ok = nb_safetensors_write(path, w.t, w.n, NULL, 0, NULL) == NB_OK;
    free(path);
    nb_arena_free(w.arena);
    return ok && tiny_write_config(dir) && tiny_write_tokenizer(dir);
}

#endif
