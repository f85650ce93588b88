/* One sequence through a model: KV cache, next-token logits, sampling. */
#ifndef NB_RUN_SESSION_H
#define NB_RUN_SESSION_H

#include "base/rng.h"
#include "model/model.h"

typedef struct nb_session nb_session;

/* capacity: positions that the KV cache holds. The net must outlive the session. */
nb_status nb_session_create(nb_session **out, const nb_net *net, int64_t capacity, nb_error *err);
void nb_session_free(nb_session *s);

/* Appends n ids; *logits [n_vocab] (borrowed until the next call) are those behind the last one.
 * NB_ENUMERIC if a logit is not finite. */
nb_status nb_session_append(nb_session *s, const int32_t *ids, int64_t n, const float **logits,
                            nb_error *err);
int64_t nb_session_length(const nb_session *s);
size_t nb_session_kv_bytes(const nb_session *s);

/* ---- sampling --------------------------------------------------------------------------- */

typedef struct nb_sampler {
    float temperature; /* <= 0: the most likely token */
    int top_k;         /* <= 0: off */
    float top_p, min_p;
    nb_rng rng;
} nb_sampler;

/* top-k, then top-p, then min-p cut the candidates by their probabilities at temperature 1; the
 * temperature shapes what is left. Ties go to the lower id. Same seed, same tokens. */
nb_status nb_sampler_pick(nb_sampler *s, const float *logits, int32_t n_vocab, int32_t *id,
                          nb_error *err);

#endif
