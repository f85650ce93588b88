#include "calib/gram.h"

#include <stdlib.h>
#include <string.h>

#include "base/size.h"

typedef struct sum {
    nb_buffer *buf; /* [n, n]; NULL: another linear's serves, or nobody asks */
    int64_t n, windows;
    nb_format act;
} sum;

struct nb_grams {
    nb_backend *be;
    bool raw;
    sum sums[NB_N_ROLES];
    int owner[NB_N_ROLES];  /* whose sum serves this linear */
    float *host, *diagonal; /* of the sum `taken` */
    int taken;              /* -1: none */
};

static bool same_format(const nb_format *a, const nb_format *b)
{
    if (!nb_format_is_quantized(a) || !nb_format_is_quantized(b)) {
        return nb_format_is_quantized(a) == nb_format_is_quantized(b);
    }
    return strcmp(a->word, b->word) == 0;
}

/* The first linear in `roles` with the same input, seen through the same format. */
static int find_owner(const nb_host_block *block, unsigned roles, int role)
{
    for (int r = 0; r < role; r++) {
        if (!(roles & 1u << r) || !block->linear[r].name) continue;
        if (nb_role_input[r] != nb_role_input[role]) continue;
        if (same_format(&block->linear[r].act, &block->linear[role].act)) return r;
    }
    return role;
}

static nb_status create_sums(nb_grams *g, const nb_host_block *block, unsigned roles, nb_error *err)
{
    int64_t widest = 0;
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (!(roles & 1u << r) || !block->linear[r].name) continue;
        g->owner[r] = find_owner(block, roles, r);
        if (g->owner[r] != r) continue;
        sum *s = &g->sums[r];
        s->n = block->linear[r].w.n_in;
        s->act = block->linear[r].act;
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
                          unsigned roles, bool raw, nb_error *err)
{
    *out = NULL;
    nb_grams *g = calloc(1, sizeof *g);
    if (!g) return nb_fail_memory(err, "input statistics", sizeof *g);
    g->be = be;
    g->raw = raw;
    g->taken = -1;
    nb_status st = create_sums(g, block, roles, err);
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
    for (int r = 0; r < NB_N_ROLES; r++) {
        sum *s = &g->sums[r];
        if (!s->buf || nb_role_input[r] != role) continue;
        g->be->ops->gram_forward(g->be, nb_view_of(s->buf, s->n, s->n), x, &s->act, !g->raw);
        s->windows++;
    }
    g->taken = -1;
}

nb_status nb_grams_take(nb_grams *g, nb_role role, const float **hessian, const float **diagonal,
                        nb_error *err)
{
    const sum *s = &g->sums[g->owner[role]];
    *hessian = g->host;
    *diagonal = g->diagonal;
    if (g->taken == g->owner[role]) return NB_OK;
    g->be->ops->download(g->be, nb_view_of(s->buf, s->n, s->n), g->host, NB_F32);
    NB_TRY(g->be->ops->sync(g->be, err));
    float scale = 2 / (float)s->windows;
    for (int64_t i = 0; i < s->n * s->n; i++) g->host[i] *= scale;
    for (int64_t i = 0; i < s->n; i++) g->diagonal[i] = g->host[i * s->n + i];
    g->taken = g->owner[role];
    return NB_OK;
}

int64_t nb_grams_bytes(const nb_config *cfg)
{
    int64_t c = cfg->n_embd, o = (int64_t)cfg->n_heads * cfg->head_dim, f = cfg->n_ffn;
    int64_t widest = nb_max_i64(nb_max_i64(c, o), f);
    return 4 * (2 * c * c + o * o + f * f + widest * widest);
}
