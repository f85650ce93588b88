/* Equivalent scaling: where one linear or norm produces what others read, its channels can be
 * divided by s > 0 and the readers' columns multiplied by s, and the block computes the same.
 *
 *   pair    producer             consumers      one channel of the producer is
 *   qkv     norm before          q, k, v        one column
 *   o       v                    o              one column per query head that shares the KV head
 *   ffn     norm before          gate, up       one column
 *   down    up (fc1)             down (fc2)     one column; exact behind a gate, and for ReLU
 *
 * Sources: SmoothQuant (arXiv 2211.10438, section 4), AWQ (arXiv 2306.00978, section 3.2). */
#ifndef NB_METHOD_EQUIVALENT_H
#define NB_METHOD_EQUIVALENT_H

#include "method/method.h"

typedef enum nb_pair_kind {
    NB_PAIR_QKV,
    NB_PAIR_O,
    NB_PAIR_FFN,
    NB_PAIR_DOWN,
    NB_N_PAIRS
} nb_pair_kind;

typedef struct nb_pair {
    nb_pair_kind kind;
    const char *name;
    nb_role input; /* by which the statistics go */
    int norm;      /* nb_norm_role of the producer, or -1 */
    int linear;    /* nb_role of the producer, or -1 */
    nb_role consumer[3];
    int n_consumers;
    int64_t n;            /* channels of the producer */
    int64_t n_in;         /* columns of the consumers, n * repeat */
    int64_t head, repeat; /* of o: head size, query heads per KV head; else n, 1 */
} nb_pair;

/* NULL, or why this block cannot have the pair (then *out is not to be used). */
const char *nb_pair_find(nb_pair *out, const nb_block_job *job, nb_pair_kind kind);

/* by_column [n_in]: the value [n] of the channel that each column of the consumers reads. */
void nb_pair_expand(const nb_pair *p, const float *by_channel, float *by_column);
/* by_channel [n]: the largest non-negative value over each channel's columns. */
void nb_pair_reduce(const nb_pair *p, const float *by_column, float *by_channel);

/* Divides the producer's channels by s [n] and multiplies the consumers' columns. NB_ENUMERIC: a
 * factor is not a positive finite number; nothing is changed then. */
nb_status nb_pair_scale(const nb_block_job *job, const nb_pair *p, const float *s, nb_error *err);

/* What the consumers read over the calibration text. */
typedef struct nb_pair_stats {
    const float *max_abs, *mean_abs; /* [n]: the largest over a channel's columns */
    const float *hessian;            /* [n_in, n_in] as nb_input_stats has it, or NULL */
} nb_pair_stats;

/* In the job's arena. NB_ENUMERIC names the input and channel that is not finite. */
nb_status nb_pair_measure(nb_pair_stats *out, const nb_block_job *job, const nb_pair *p,
                          nb_error *err);

/* Runs `fn` on each wanted pair that the block can have, in the order of the table. What it puts
 * into *report, or why a pair was left out, stands in the block's report under `step`. NB_EUSAGE:
 * none of the wanted pairs is possible. */
typedef nb_status (*nb_pair_fn)(nb_block_job *job, const nb_pair *p, json_t **report,
                                nb_error *err);
nb_status nb_pair_each(nb_block_job *job, const char *step, const bool wanted[NB_N_PAIRS],
                       nb_pair_fn fn, nb_error *err);

#endif
