#include "calib/gram.h"

#include <stdlib.h>

#include "base/size.h"

/* The role under which the input of each linear is shown. */
static const nb_role input_of[NB_N_ROLES] = {
    [NB_Q] = NB_Q,     [NB_K] = NB_Q,   [NB_V] = NB_Q,       [NB_O] = NB_O,
    [NB_GATE] = NB_UP, [NB_UP] = NB_UP, [NB_DOWN] = NB_DOWN,
};

typedef struct sum {
    nb_buffer *buf; /* [n, n]; NULL: not an input of this block */
    int64_t n, windows;
} sum;

struct nb_grams {
    nb_backend *be;
    nb_format act;
    bool raw;
    sum sums[NB_N_ROLES];
    float *host, *diagonal; /* of the input `taken` */
    int taken;              /* -1: none */
};

static nb_status create_sums(nb_grams *g, const nb_host_block *block, nb_error *err)
{
    int64_t widest = 0;
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (!block->linear[r].name || (int)input_of[r] != r) continue;
        sum *s = &g->sums[r];
        s->n = block->linear[r].w.n_in;
        widest = nb_max_i64(widest, s->n);
        NB_TRY(g->be->ops->buffer_create(g->be, s->n * s->n, &s->buf, err));
    }
    g->host = malloc((size_t)(widest * widest) * sizeof *g->host);
    g->diagonal = malloc((size_t)widest * sizeof *g->diagonal);
    if (!g->host || !g->diagonal) {
        return nb_fail_memory(err, "input statistics", (size_t)(widest * widest) * 4);
    }
    return NB_OK;
}

nb_status nb_grams_create(nb_grams **out, nb_backend *be, const nb_host_block *block,
                          const nb_format *act, bool raw, nb_error *err)
{
    *out = NULL;
    nb_grams *g = calloc(1, sizeof *g);
    if (!g) return nb_fail_memory(err, "input statistics", sizeof *g);
    g->be = be;
    g->act = *act;
    g->raw = raw;
    g->taken = -1;
    nb_status st = create_sums(g, block, err);
    if (st != NB_OK) {
        nb_grams_free(g);
        return st;
    }
    *out = g;
    return NB_OK;
}

void nb_grams_free(nb_grams *g)
{
    if (!g) return;
    for (int r = 0; r < NB_N_ROLES; r++) g->be->ops->buffer_free(g->be, g->sums[r].buf);
    free(g->host);
    free(g->diagonal);
    free(g);
}

void nb_grams_observe(void *user, nb_role role, nb_view x)
{
    nb_grams *g = user;
    sum *s = &g->sums[role];
    g->be->ops->gram_forward(g->be, nb_view_of(s->buf, s->n, s->n), x, &g->act, !g->raw);
    s->windows++;
}

nb_status nb_grams_take(nb_grams *g, nb_role role, const float **hessian, const float **diagonal,
                        nb_error *err)
{
    const sum *s = &g->sums[input_of[role]];
    *hessian = g->host;
    *diagonal = g->diagonal;
    if (g->taken == (int)input_of[role]) return NB_OK;
    g->be->ops->download(g->be, nb_view_of(s->buf, s->n, s->n), g->host, NB_F32);
    NB_TRY(g->be->ops->sync(g->be, err));
    float scale = 2 / (float)s->windows;
    for (int64_t i = 0; i < s->n * s->n; i++) g->host[i] *= scale;
    for (int64_t i = 0; i < s->n; i++) g->diagonal[i] = g->host[i * s->n + i];
    g->taken = (int)input_of[role];
    return NB_OK;
}

int64_t nb_grams_bytes(const nb_config *cfg)
{
    int64_t c = cfg->n_embd, o = (int64_t)cfg->n_heads * cfg->head_dim, f = cfg->n_ffn;
    int64_t widest = nb_max_i64(nb_max_i64(c, o), f);
    return 4 * (2 * c * c + o * o + f * f + widest * widest);
}
