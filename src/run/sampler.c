/* Sampling of the next token: the usual chain top-k, top-p, min-p, temperature. */
#include <math.h>
#include <stdlib.h>

#include "run/session.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int32_t argmax(const float *v, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        if (v[i] > v[best]) best = i;
    }
    return best;
}

/* Candidates are sorted; returns how many stay. At least one does. */
static int32_t cut(const nb_sampler *s, const candidate *c, int32_t n)
{
    if (s->top_k > 0 && s->top_k < n) n = s->top_k;
    double sum = 0, mass = 0;
    for (int32_t i = 0; i < n; i++) sum += exp((double)c[i].logit - (double)c[0].logit);
    int32_t keep = 0;
    while (keep < n) {
        double p = exp((double)c[keep].logit - (double)c[0].logit);
        if (keep > 0 && (mass / sum >= (double)s->top_p || p < (double)s->min_p)) break;
        mass += p;
        keep++;
    }
    return keep;
}

static int32_t draw(nb_sampler *s, const candidate *c, int32_t n)
{
    double sum = 0, t = (double)s->temperature;
    for (int32_t i = 0; i < n; i++) sum += exp(((double)c[i].logit - (double)c[0].logit) / t);
    double u = nb_rng_uniform(&s->rng) * sum;
    for (int32_t i = 0; i < n; i++) {
        u -= exp(((double)c[i].logit - (double)c[0].logit) / t);
        if (u < 0) return c[i].id;
    }
    return c[n - 1].id; /* rounding left a crumb of the sum */
}

nb_status nb_sampler_pick(nb_sampler *s, const float *logits, int32_t n_vocab, int32_t *id,
                          nb_error *err)
{
    if (!(s->temperature > 0)) {
        *id = argmax(logits, n_vocab);
        return NB_OK;
    }
    candidate *c = malloc((size_t)n_vocab * sizeof *c);
    if (!c) return nb_fail_memory(err, "sampling", (size_t)n_vocab * sizeof *c);
    for (int32_t i = 0; i < n_vocab; i++) c[i] = (candidate){logits[i], i};
    qsort(c, (size_t)n_vocab, sizeof *c, by_logit);
    *id = draw(s, c, cut(s, c, n_vocab));
    free(c);
    return NB_OK;
}
