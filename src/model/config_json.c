/* config.json for a model that came from GGUF, as Hugging Face would write it. */
#include <jansson.h>

#include "model/family.h"

static void set(json_t *o, const char *key, json_t *value) { json_object_set_new(o, key, value); }

static json_t *rope_scaling(const nb_config *c)
{
    json_t *o = json_object();
    set(o, "rope_type", json_string(c->rope_scaling == NB_ROPE_LINEAR ? "linear" : "llama3"));
    set(o, "factor", json_real((double)c->rope_factor));
    if (c->rope_scaling == NB_ROPE_LLAMA3) {
        set(o, "low_freq_factor", json_real((double)c->rope_low_freq));
        set(o, "high_freq_factor", json_real((double)c->rope_high_freq));
        set(o, "original_max_position_embeddings", json_integer(c->rope_original_ctx));
    }
    return o;
}

nb_status nb_config_write_json(const nb_config *c, int bos, int eos, char **json, nb_error *err)
{
    json_t *o = json_object();
    set(o, "architectures", json_pack("[s]", c->family->architecture));
    set(o, "model_type", json_string(c->family->name));
    set(o, "hidden_size", json_integer(c->n_embd));
    set(o, "intermediate_size", json_integer(c->n_ffn));
    set(o, "num_hidden_layers", json_integer(c->n_layers));
    set(o, "num_attention_heads", json_integer(c->n_heads));
    set(o, "num_key_value_heads", json_integer(c->n_kv_heads));
    set(o, "head_dim", json_integer(c->head_dim));
    set(o, "vocab_size", json_integer(c->n_vocab));
    set(o, "max_position_embeddings", json_integer(c->n_ctx));
    set(o, "rms_norm_eps", json_real((double)c->norm_eps));
    set(o, "rope_theta", json_real((double)c->rope_theta));
    set(o, "rope_scaling", c->rope_scaling == NB_ROPE_NONE ? json_null() : rope_scaling(c));
    if (c->rope_interleaved) set(o, NB_KEY_INTERLEAVED, json_true());
    set(o, "hidden_act", json_string("silu"));
    set(o, "tie_word_embeddings", json_boolean(c->tied));
    set(o, "attention_bias", json_boolean(c->qkv_bias && !c->family->qkv_bias));
    set(o, "mlp_bias", json_boolean(c->mlp_bias));
    if (c->window) set(o, "sliding_window", json_integer(c->window));
    if (c->window && c->family->window_is_flag) {
        set(o, "use_sliding_window", json_true());
        set(o, "max_window_layers", json_integer(c->window_layers));
    }
    if (bos >= 0) set(o, "bos_token_id", json_integer(bos));
    if (eos >= 0) set(o, "eos_token_id", json_integer(eos));
    set(o, "torch_dtype", json_string("float32"));
    *json = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(o);
    return *json ? NB_OK : nb_fail_memory(err, "config.json", 4096);
}
