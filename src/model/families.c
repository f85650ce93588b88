/* The table of model families. */
#include <stdio.h>
#include <string.h>

#include "model/family.h"

/* What LLaMA's relatives share: names, RMSNorm, rotary positions, a gated FFN. */
#define LLAMA_LIKE                                                                                 \
    .key_ffn = "intermediate_size", .key_act = "hidden_act", .default_act = "silu",                \
    .norm = NB_NORM_RMS, .default_eps = 1e-6f, .rotary = true,                                     \
    .linear =                                                                                      \
        {[NB_Q] = "model.layers.%d.self_attn.q_proj", [NB_K] = "model.layers.%d.self_attn.k_proj", \
         [NB_V] = "model.layers.%d.self_attn.v_proj", [NB_O] = "model.layers.%d.self_attn.o_proj", \
         [NB_GATE] = "model.layers.%d.mlp.gate_proj", [NB_UP] = "model.layers.%d.mlp.up_proj",     \
         [NB_DOWN] = "model.layers.%d.mlp.down_proj"},                                             \
    .norms = {[NB_NORM_ATTN] = "model.layers.%d.input_layernorm",                                  \
              [NB_NORM_FFN] = "model.layers.%d.post_attention_layernorm",                          \
              [NB_NORM_Q] = "model.layers.%d.self_attn.q_norm",                                    \
              [NB_NORM_K] = "model.layers.%d.self_attn.k_norm"},                                   \
    .embed = "model.embed_tokens", .final_norm = "model.norm", .head = "lm_head"

static const nb_family family_llama = {
    .name = "llama",
    .architecture = "LlamaForCausalLM",
    .gguf = "llama",
    .gguf_paired_rope = true,
    LLAMA_LIKE,
};

static const nb_family family_mistral = {
    .name = "mistral",
    .architecture = "MistralForCausalLM",
    .gguf = NULL, /* its GGUF files say "llama" */
    .default_window = 4096,
    LLAMA_LIKE,
};

static const nb_family family_opt = {
    .name = "opt",
    .architecture = "OPTForCausalLM",
    .gguf = NULL,
    .key_ffn = "ffn_dim",
    .key_act = "activation_function",
    .default_act = "relu",
    .norm = NB_NORM_LAYER,
    .default_eps = 1e-5f, /* torch.nn.LayerNorm; OPT's configuration has no key for it */
    .default_tied = true,
    .position_offset = 2,
    .linear = {[NB_Q] = "model.decoder.layers.%d.self_attn.q_proj",
               [NB_K] = "model.decoder.layers.%d.self_attn.k_proj",
               [NB_V] = "model.decoder.layers.%d.self_attn.v_proj",
               [NB_O] = "model.decoder.layers.%d.self_attn.out_proj",
               [NB_UP] = "model.decoder.layers.%d.fc1",
               [NB_DOWN] = "model.decoder.layers.%d.fc2"},
    .norms = {[NB_NORM_ATTN] = "model.decoder.layers.%d.self_attn_layer_norm",
              [NB_NORM_FFN] = "model.decoder.layers.%d.final_layer_norm"},
    .embed = "model.decoder.embed_tokens",
    .positions = "model.decoder.embed_positions",
    .proj_in = "model.decoder.project_in",
    .proj_out = "model.decoder.project_out",
    .final_norm = "model.decoder.final_layer_norm",
    .head = "lm_head",
};

static const nb_family family_qwen2 = {
    .name = "qwen2",
    .architecture = "Qwen2ForCausalLM",
    .gguf = "qwen2",
    .qkv_bias = true,
    .default_window = 4096,
    .window_is_flag = true,
    LLAMA_LIKE,
};

static const nb_family family_qwen3 = {
    .name = "qwen3",
    .architecture = "Qwen3ForCausalLM",
    .gguf = "qwen3",
    .qk_norm = true,
    .default_window = 4096,
    .window_is_flag = true,
    .default_head_dim = 128,
    LLAMA_LIKE,
};

const nb_family *const nb_families[] = {
    &family_llama, &family_mistral, &family_opt, &family_qwen2, &family_qwen3, NULL,
};

const char *const nb_gguf_linear[NB_N_ROLES] = {
    [NB_Q] = "blk.%d.attn_q",      [NB_K] = "blk.%d.attn_k",      [NB_V] = "blk.%d.attn_v",
    [NB_O] = "blk.%d.attn_output", [NB_GATE] = "blk.%d.ffn_gate", [NB_UP] = "blk.%d.ffn_up",
    [NB_DOWN] = "blk.%d.ffn_down",
};

const char *const nb_gguf_norms[NB_N_NORMS] = {
    [NB_NORM_ATTN] = "blk.%d.attn_norm",
    [NB_NORM_FFN] = "blk.%d.ffn_norm",
    [NB_NORM_Q] = "blk.%d.attn_q_norm",
    [NB_NORM_K] = "blk.%d.attn_k_norm",
};

const char *const nb_role_names[NB_N_ROLES] = {
    [NB_Q] = "q",       [NB_K] = "k",   [NB_V] = "v",       [NB_O] = "o",
    [NB_GATE] = "gate", [NB_UP] = "up", [NB_DOWN] = "down",
};

const nb_role nb_role_input[NB_N_ROLES] = {
    [NB_Q] = NB_Q,     [NB_K] = NB_Q,   [NB_V] = NB_Q,       [NB_O] = NB_O,
    [NB_GATE] = NB_UP, [NB_UP] = NB_UP, [NB_DOWN] = NB_DOWN,
};

const nb_family *nb_family_by_model_type(const char *model_type)
{
    for (int i = 0; nb_families[i]; i++) {
        if (strcmp(nb_families[i]->name, model_type) == 0) return nb_families[i];
    }
    return NULL;
}

const nb_family *nb_family_by_gguf(const char *architecture)
{
    for (int i = 0; nb_families[i]; i++) {
        const char *a = nb_families[i]->gguf;
        if (a && strcmp(a, architecture) == 0) return nb_families[i];
    }
    return NULL;
}

void nb_family_list(char *out, size_t size)
{
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; nb_families[i] && used + 1 < size; i++) {
        int n = snprintf(out + used, size - used, "%s%s", i ? ", " : "", nb_families[i]->name);
        if (n < 0) return;
        used += (size_t)n;
    }
}
