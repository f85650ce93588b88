/* Decoder-only language models: configuration, families, weights by role, one block forward.
 *
 * A family is a table of names and flags (families.c). A source is a checkpoint read through its
 * family: it hands out one block at a time as host matrices under Hugging Face names, whether the
 * file is safetensors, GGUF or a nibble directory. A block on a device is made from such a host
 * block; calibration, evaluation and generation run the same forward. */
#ifndef NB_MODEL_MODEL_H
#define NB_MODEL_MODEL_H

#include "base/arena.h"
#include "format/format.h"
#include "io/io.h"
#include "op/op.h"
#include "token/token.h"

typedef struct nb_family nb_family;
struct json_t;

typedef enum nb_rope_scaling { NB_ROPE_NONE, NB_ROPE_LINEAR, NB_ROPE_LLAMA3 } nb_rope_scaling;

typedef struct nb_config {
    const nb_family *family;
    int n_layers, n_embd, n_ffn, n_heads, n_kv_heads, head_dim, n_vocab, n_ctx;
    float norm_eps;
    bool tied; /* lm_head is the embedding */
    nb_act_kind act;
    bool qkv_bias, o_bias, mlp_bias;
    int window;        /* sliding attention window in tokens; 0: none                         */
    int window_layers; /* the first N layers see everything (Qwen2 max_window_layers)         */
    /* rotary positions */
    bool rope_interleaved; /* pairs of channels (2i, 2i + 1) of a head, not (i, i + D/2)      */
    float rope_theta;
    nb_rope_scaling rope_scaling;
    float rope_factor, rope_low_freq, rope_high_freq; /* llama3: low/high_freq_factor         */
    int rope_original_ctx;
    /* OPT */
    bool post_norm;   /* norms after the residual sums (do_layer_norm_before false: 350m)      */
    bool final_norm;  /* a norm before the head                                                */
    bool norm_affine; /* norms have weights (and biases)                                      */
    int embd_proj;    /* width of the embedding when it differs from n_embd (350m: 512); else 0 */
} nb_config;

/* Linears of a block; OPT's fc1 and fc2 are UP and DOWN, without GATE. */
typedef enum nb_role { NB_Q, NB_K, NB_V, NB_O, NB_GATE, NB_UP, NB_DOWN, NB_N_ROLES } nb_role;
extern const char *const nb_role_names[NB_N_ROLES]; /* "q", "k", ... for reports */
/* Linears with one input: the role that stands for it, NB_Q (q, k, v), NB_O, NB_UP (gate, up),
 * NB_DOWN. */
extern const nb_role nb_role_input[NB_N_ROLES];

typedef enum nb_norm_role {
    NB_NORM_ATTN,
    NB_NORM_FFN,
    NB_NORM_Q, /* Qwen3: over each head */
    NB_NORM_K,
    NB_N_NORMS
} nb_norm_role;

typedef struct nb_host_linear {
    const char *name; /* Hugging Face module: "model.layers.0.self_attn.q_proj"; NULL: absent */
    nb_matrix w;
    const float *bias; /* [n_out] or NULL */
    nb_format act;     /* of its input; family NULL: none */
    nb_lorc lorc;      /* rank 0: none */
} nb_host_linear;

typedef struct nb_host_norm {
    const char *name; /* NULL: absent */
    int64_t n;
    const float *weight, *bias; /* [n]; either may be NULL: ones, zeros */
} nb_host_norm;

/* Walsh-Hadamard transforms (nb_ops.hadamard_forward) that run online, each in runs of so many
 * channels; 0: none. */
typedef struct nb_rotation {
    int down;   /* of what enters the last linear of a block, before its act format */
    int qk;     /* of queries and keys behind norms over heads and rotary positions */
    int stream; /* of the hidden state: behind the embedding, and back before the final norm */
} nb_rotation;

/* Weights of one block in host memory; matrices point into the mapping or the arena. */
typedef struct nb_host_block {
    int layer;
    nb_host_linear linear[NB_N_ROLES];
    nb_host_norm norm[NB_N_NORMS];
    nb_attn_formats attn; /* these two are the same for all blocks of a model */
    nb_rotation rotation; /* (a block itself does nothing for the stream) */
} nb_host_block;

/* What lies outside the blocks. */
typedef struct nb_host_ends {
    nb_host_linear embed;     /* [n_vocab, n_embd or embd_proj] */
    nb_host_linear positions; /* OPT: [n_ctx + 2, n_embd]; name NULL: none */
    nb_host_linear proj_in, proj_out;
    nb_host_norm final_norm;
    nb_host_linear head; /* tied: the planes of embed, name NULL */
    int stream;          /* nb_rotation.stream */
} nb_host_ends;

/* ---- source ------------------------------------------------------------------------------- */

typedef struct nb_source nb_source;

nb_status nb_source_open(nb_source **out, const char *path, nb_error *err);
/* One weight file of a nibble directory that is still being made of `original`: its blocks or ends
 * as the finished directory gives them. quantization: what its config.json will have under
 * quantization_config. */
nb_status nb_source_open_part(nb_source **out, const char *path, const nb_source *original,
                              const struct json_t *quantization, nb_error *err);
void nb_source_close(nb_source *s);
/* Hands out Q, K, their biases and their norms over heads with rotary pairs interleaved or in
 * halves, whatever the file has, and says so in the configuration. The model computes the same;
 * what shares a block of a quantized query or key differs. Not for a directory that nibble wrote.
 * NB_EUSAGE: the family has no rotary positions. */
nb_status nb_source_set_rope(nb_source *s, bool interleaved, nb_error *err);
const nb_config *nb_source_config(const nb_source *s);
const nb_checkpoint *nb_source_checkpoint(const nb_source *s);
/* True for a directory that nibble wrote. */
bool nb_source_is_quantized(const nb_source *s);
/* The value of quantization_config.recipe, or NULL. */
const char *nb_source_recipe(const nb_source *s);
/* quantization_config.source_bytes: weight files of what it was made from; -1: not recorded. */
int64_t nb_source_source_bytes(const nb_source *s);

/* Shapes are checked against the configuration; names and small vectors live in `arena`. */
nb_status nb_source_block(const nb_source *s, int layer, nb_arena *arena, nb_host_block *out,
                          nb_error *err);
nb_status nb_source_ends(const nb_source *s, nb_arena *arena, nb_host_ends *out, nb_error *err);
/* From here on the blocks of a source that is not quantized come in fp32 with the hidden state
 * rotated in runs of so many channels, folded into their linears, the norms before these without
 * weights; the ends turn it there and back, so that the model stays the same. RMS norms only.
 * threads, cpu: for the folding. */
void nb_source_rotate(nb_source *s, int run, int threads, unsigned cpu);
/* The block's pages are not needed for now (checkpoints larger than memory). */
void nb_source_release(const nb_source *s, int layer);

/* NULL in *out and NB_OK if the source has no tokenizer files. */
nb_status nb_source_tokenizer(const nb_source *s, nb_tokenizer **out, nb_error *err);

/* config.json for Hugging Face: the source's own text, or one made from a GGUF's metadata.
 * malloc'ed. */
nb_status nb_source_config_json(const nb_source *s, char **json, nb_error *err);

/* Format word by module name of the quantized linears of a nibble directory; family NULL if the
 * module is not quantized. */
nb_format nb_source_format(const nb_source *s, const char *module);
/* Formats of attention, the same in every block; all of them without family: none. */
const nb_attn_formats *nb_source_attn(const nb_source *s);
/* Transforms of every block. */
nb_rotation nb_source_rotation(const nb_source *s);

/* ---- editing ------------------------------------------------------------------------------ */

/* The weight as an fp32 copy in the arena. */
nb_status nb_host_linear_expand(nb_host_linear *l, nb_arena *arena, int threads, nb_error *err);
/* W H and H W, H b of an fp32 weight, in runs of its columns or rows; H as in
 * nb_ops.hadamard_forward. The same bits for any number of threads and CPU features. */
void nb_host_rotate_columns(const nb_host_linear *l, int64_t run, int threads, unsigned cpu);
void nb_host_rotate_rows(const nb_host_linear *l, int64_t run, int threads);
/* What nb_source_rotate does to a block. */
nb_status nb_host_block_rotate(nb_host_block *b, int run, nb_arena *arena, int threads,
                               unsigned cpu, nb_error *err);

/* ---- blocks on a device ------------------------------------------------------------------- */

typedef struct nb_block nb_block;

/* The planes of a quantized linear, and its low-rank factors, give way to their values in fp32,
 * which live in the arena; one that is not quantized stays. */
nb_status nb_host_linear_unpack(nb_host_linear *l, nb_arena *arena, int threads, nb_error *err);

nb_status nb_block_create(nb_backend *be, const nb_config *cfg, const nb_host_block *host,
                          nb_block **out, nb_error *err);
void nb_block_free(nb_block *b);
size_t nb_block_bytes(const nb_block *b);

/* Scratch of a forward over at most n_tokens at a time; shared by all blocks. */
typedef struct nb_workspace nb_workspace;
nb_status nb_workspace_create(nb_backend *be, const nb_config *cfg, int64_t n_tokens,
                              nb_workspace **out, nb_error *err);
void nb_workspace_free(nb_workspace *ws);

/* Shown what enters the linears of a block, before any act format. Linears with one input are shown
 * once, as nb_role_input. NULL: nobody looks. */
typedef void (*nb_observe_fn)(void *user, nb_role role, nb_view x);
void nb_workspace_observe(nb_workspace *ws, nb_observe_fn observe, void *user);

/* What the keys and values of a sequence through this block are like. */
nb_kv_desc nb_block_kv(const nb_block *b, int64_t capacity);

/* x [T, C] in place; keys and values of its T tokens are appended to kv, which holds pos0 tokens or
 * begins anew (pos0 0). rope: [capacity, D] table rows by position (ignored by families with
 * learned positions). */
void nb_block_forward(const nb_block *b, nb_workspace *ws, nb_view x, nb_kv *kv, nb_view rope,
                      int64_t pos0);

/* cos and sin for positions 0 .. n_pos-1 of a model: view [n_pos, D]; buf NULL for families
 * without rotary positions. */
nb_status nb_rope_table(nb_backend *be, const nb_config *cfg, int64_t n_pos, nb_view *out,
                        nb_error *err);

/* Embedding, final norm and head on a device. */
typedef struct nb_ends nb_ends;
nb_status nb_ends_create(nb_backend *be, const nb_config *cfg, const nb_host_ends *host,
                         nb_ends **out, nb_error *err);
void nb_ends_free(nb_ends *e);
/* x [T, C] = embedding of ids at positions pos0 .. ; NB_EUSAGE for an id or position outside. */
nb_status nb_ends_embed(const nb_ends *e, nb_view x, const int32_t *ids, int64_t pos0,
                        nb_error *err);
/* logits [T, V] = head(norm(x [T, C])); scratch from ws. */
nb_status nb_ends_logits(const nb_ends *e, nb_workspace *ws, nb_view logits, nb_view x,
                         nb_error *err);
size_t nb_ends_bytes(const nb_ends *e);

/* ---- a whole model on a device ------------------------------------------------------------- */

typedef struct nb_net {
    nb_backend *be; /* borrowed */
    nb_config cfg;
    nb_block **blocks; /* [cfg.n_layers] */
    nb_ends *ends;
    nb_attn_formats attn; /* of every block */
    nb_arena *arena;      /* host weights that are not in the mapping */
    size_t weight_bytes;
} nb_net;

/* simulate: packed linears are unpacked to fp32 first. kv: format of keys and values in place of
 * the source's, or NULL. The source must outlive the net. */
nb_status nb_net_create(nb_net **out, nb_backend *be, const nb_source *src, bool simulate,
                        const nb_format *kv, nb_error *err);
void nb_net_free(nb_net *n);

/* Keys and values of every layer for up to `capacity` positions of one sequence. */
typedef struct nb_cache {
    nb_backend *be;
    nb_kv **kv; /* [n_kv] */
    int n_kv;
    int64_t capacity;
    nb_view rope; /* [capacity, D] */
} nb_cache;
enum {
    NB_CACHE_SHARED =
        1, /* one for all layers: a forward starts at position 0 and is not continued */
    NB_CACHE_PAPER = 2, /* nb_kv_desc.paper */
};
nb_status nb_cache_create(nb_cache **out, const nb_net *n, int64_t capacity, unsigned flags,
                          nb_error *err);
void nb_cache_free(nb_cache *c);
size_t nb_cache_bytes(const nb_cache *c); /* of keys and values, allocated now */

/* x [T, C] = hidden states before the final norm, for T = x.rows ids at positions pos0 .. */
nb_status nb_net_forward(const nb_net *n, nb_workspace *ws, nb_cache *c, nb_view x,
                         const int32_t *ids, int64_t pos0, nb_error *err);

#endif
