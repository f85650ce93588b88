/* One decoder block in training: a forward that keeps what the backward needs, and the backward
 * (OmniQuant section 7). Weights are plain matrices of the backend's real type, made anew by the
 * trainer in every step. */
#ifndef NB_MODEL_BLOCK_TRAIN_H
#define NB_MODEL_BLOCK_TRAIN_H

#include "model/model.h"

typedef struct nb_block_train nb_block_train;

typedef struct nb_train_desc {
    const nb_config *cfg;
    int layer, batch, seqlen;    /* at most batch windows of seqlen tokens at a time */
    const nb_format *acts;       /* [NB_N_ROLES] of the linears' inputs; q's serves k and v, up's
                                    gate. NULL: none is quantized */
    const nb_attn_formats *attn; /* Q, K and V per token and head; NULL: none. P is never quantized
                                    in training, nor V in blocks along the sequence */
    nb_rotation rotation;        /* of the block */
    nb_view rope;                /* [seqlen, D] */
} nb_train_desc;

/* The block's parameters; a buffer of NULL: there is none. */
typedef struct nb_train_params {
    nb_view w[NB_N_ROLES];    /* [n_out, n_in] */
    nb_view bias[NB_N_ROLES]; /* [1, n_out] */
    bool has_norm[NB_N_NORMS];
    nb_norm norm[NB_N_NORMS];
} nb_train_params;

/* What a backward gives; a buffer of NULL: not wanted. Everything is set, not added to. */
typedef struct nb_train_grads {
    /* Shown the gradient [n_out, n_in] of each weight once; it is overwritten afterwards. */
    void (*weight)(void *user, nb_role role, nb_view dw);
    void *user;
    nb_view bias[NB_N_ROLES]; /* [1, n_out] */
    nb_view dot[NB_N_ROLES];  /* [1, n_out] q, k, v: sum over tokens of y dy, y behind rotation */
    /* [1, n] likewise of a norm's output, behind rotation for those over heads; sum of dy. Norms
     * before linears (or over heads) only. */
    nb_view norm_dot[NB_N_NORMS], norm_bias[NB_N_NORMS];
} nb_train_grads;

nb_status nb_block_train_create(nb_backend *be, const nb_train_desc *d, nb_block_train **out,
                                nb_error *err);
void nb_block_train_free(nb_block_train *b);

/* The block's output [n * seqlen, C] for x of n whole windows; both must stay as they are until the
 * backward. */
nb_view nb_block_train_forward(nb_block_train *b, const nb_train_params *p, nb_view x);
/* Of the last forward; dy [n * seqlen, C] is overwritten. */
void nb_block_train_backward(nb_block_train *b, const nb_train_params *p, nb_view dy,
                             const nb_train_grads *g);

#endif
