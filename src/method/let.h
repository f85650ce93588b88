/* Learnable equivalent transformation (OmniQuant section 3.3): scales and shifts that move outliers
 * of activations into weights, and a scale between Q and K. */
#ifndef NB_METHOD_LET_H
#define NB_METHOD_LET_H

#include "method/method.h"

typedef enum nb_let_pair {
    NB_LET_QKV, /* attention norm -> q, k, v          [C]                                     */
    NB_LET_OUT, /* v -> o                             [K*D], shared by the heads of a group   */
    NB_LET_FC1, /* FFN norm -> gate and up, or fc1    [C]                                     */
    NB_LET_QKT, /* q <-> k                            [K*D/2] rotary, [D/2] QK norms, [K*D]   */
    NB_LET_N_PAIRS,
    NB_LET_NONE = NB_LET_N_PAIRS
} nb_let_pair;

extern const char *const nb_let_pair_names[NB_LET_N_PAIRS];

/* What the parameters make of a block: W' = diag(row) W diag(col), NULL is 1; biases, weights and
 * biases of norms, NULL: there is none. */
typedef struct nb_let_vectors {
    double *row[NB_N_ROLES], *col[NB_N_ROLES]; /* [n_out], [n_in] */
    double *bias[NB_N_ROLES];                  /* [n_out] */
    double *norm_weight[NB_N_NORMS], *norm_bias[NB_N_NORMS];
} nb_let_vectors;

/* What a step must find out: gradients of log row, log col, biases; of the logarithm of a factor
 * before a norm's output, and of its bias. NULL: no parameter depends on it. */
typedef struct nb_let_gradient {
    double *row[NB_N_ROLES], *col[NB_N_ROLES], *bias[NB_N_ROLES];
    double *norm[NB_N_NORMS], *norm_bias[NB_N_NORMS];
} nb_let_gradient;

/* Where scale and shift of a pair act: at[i] is the parameter of channel i. */
typedef struct nb_let_use {
    nb_let_pair pair; /* NB_LET_NONE: nowhere */
    bool inverse;     /* divided by the scale */
    const int32_t *at;
} nb_let_use;

typedef struct nb_let {
    const nb_host_block *block; /* the original until nb_let_fold */
    int threads;
    int64_t n; /* parameters */
    double *param, *grad, *m, *v;
    double *scale[NB_LET_N_PAIRS], *shift[NB_LET_N_PAIRS]; /* in param; NULL: not made */
    int64_t width[NB_LET_N_PAIRS];
    nb_let_use in[NB_N_ROLES], out[NB_N_ROLES], norm[NB_N_NORMS];
    nb_let_vectors now;
    nb_let_gradient gradient; /* filled by the trainer, for nb_let_backward */
    double *wide;             /* scratch, [widest input or output] */
} nb_let;

typedef struct nb_let_options {
    bool pair[NB_LET_N_PAIRS], shift;
    double alpha; /* of the start: actmax^alpha / colmax^(1 - alpha) */
} nb_let_options;

/* Everything the parameters need, from job->arena, at their start values. All pairs off: the
 * block as it is, n = 0. */
nb_status nb_let_create(nb_let *let, const nb_block_job *job, const nb_let_options *opt,
                        nb_error *err);
/* Scales back into their limits; then `now` from the parameters. */
void nb_let_forward(nb_let *let);
/* grad from `gradient`. */
void nb_let_backward(nb_let *let);
/* AdamW without decay; step counts from 1. */
void nb_let_update(nb_let *let, double rate, int64_t step);
/* Edits the block of the job. Creates biases where shifts need them. */
nb_status nb_let_fold(nb_let *let, nb_block_job *job, nb_error *err);

#endif
