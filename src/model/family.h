/* A model family: names and flags, no code. One line each in families.c. */
#ifndef NB_MODEL_FAMILY_H
#define NB_MODEL_FAMILY_H

#include "model/model.h"

struct nb_family {
    const char *name;         /* also "model_type" of config.json */
    const char *architecture; /* "architectures" of config.json */
    const char *gguf;         /* general.architecture; NULL: no such files */

    /* keys of config.json that differ between families */
    const char *key_ffn, *key_act;
    const char *default_act;

    nb_norm_kind norm;
    float default_eps;
    bool rotary;
    bool gguf_paired_rope; /* GGUF stores rows of Q and K with rotary pairs adjacent        */
    bool qk_norm;
    bool qkv_bias;        /* by definition; else what config.json says                       */
    bool default_tied;    /* tie_word_embeddings when config.json is silent                  */
    int default_window;   /* sliding_window when config.json is silent                       */
    bool window_is_flag;  /* sliding_window counts only if use_sliding_window is true         */
    int default_head_dim; /* when config.json is silent; 0: hidden_size / heads              */
    int position_offset;  /* OPT: row of position 0 in the table of learned positions         */

    /* Hugging Face module names; %d is the layer */
    const char *linear[NB_N_ROLES];
    const char *norms[NB_N_NORMS];
    const char *embed, *positions, *proj_in, *proj_out, *final_norm, *head;
};

extern const nb_family *const nb_families[]; /* NULL-terminated */

/* GGUF tensor names, shared by every family that has such files. */
extern const char *const nb_gguf_linear[NB_N_ROLES];
extern const char *const nb_gguf_norms[NB_N_NORMS];
#define NB_GGUF_EMBED        "token_embd"
#define NB_GGUF_FINAL_NORM   "output_norm"
#define NB_GGUF_HEAD         "output"
#define NB_GGUF_ROPE_FACTORS "rope_freqs.weight"

/* Of config.json: rotary pairs are interleaved; Hugging Face's word for it (DeepSeek-V3). */
#define NB_KEY_INTERLEAVED "rope_interleave"

const nb_family *nb_family_by_model_type(const char *model_type); /* NULL: unknown */
const nb_family *nb_family_by_gguf(const char *architecture);
/* "llama, mistral, ...": for messages. */
void nb_family_list(char *out, size_t size);

/* Configuration from either container; every number is bounded. */
nb_status nb_config_from_checkpoint(nb_config *out, const nb_checkpoint *c, nb_error *err);
/* What must hold between the numbers, whatever they came from. */
nb_status nb_config_check(const nb_config *c, nb_error *err);
/* config.json for a model that had none. malloc'ed. */
nb_status nb_config_write_json(const nb_config *c, int bos, int eos, char **json, nb_error *err);

/* Divisors of the rotary frequencies, [head_dim / 2]; Llama 3's are stored in GGUF files. */
void nb_rope_divisors(const nb_config *c, double *out);

#endif
