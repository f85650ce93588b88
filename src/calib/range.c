#include "calib/range.h"

#include <math.h>
#include <stdlib.h>

#include "base/size.h"

typedef struct range {
    int64_t n, tokens;
    float *min, *max, *mean_abs; /* [n]; NULL: no input of this block */
    double *sum_abs;             /* [n] */
} range;

struct nb_ranges {
    nb_backend *be;
    range of[NB_N_ROLES]; /* by nb_role_input */
    float *rows;          /* [seqlen, widest] */
};

static nb_status create_range(range *r, int64_t n, nb_error *err)
{
    r->n = n;
    r->min = calloc((size_t)n, 3 * sizeof *r->min);
    r->sum_abs = calloc((size_t)n, sizeof *r->sum_abs);
    if (!r->min || !r->sum_abs) return nb_fail_memory(err, "input ranges", (size_t)n * 20);
    r->max = r->min + n;
    r->mean_abs = r->max + n;
    for (int64_t i = 0; i < n; i++) {
        r->min[i] = HUGE_VALF;
        r->max[i] = -HUGE_VALF;
    }
    return NB_OK;
}

static nb_status create_all(nb_ranges *r, const nb_host_block *block, int seqlen, nb_error *err)
{
    int64_t widest = 0;
    for (int i = 0; i < NB_N_ROLES; i++) {
        const nb_host_linear *l = &block->linear[i];
        if (!l->name || (int)nb_role_input[i] != i) continue;
        widest = nb_max_i64(widest, l->w.n_in);
        NB_TRY(create_range(&r->of[i], l->w.n_in, err));
    }
    size_t n = (size_t)seqlen * (size_t)widest;
    r->rows = malloc(n * sizeof *r->rows);
    return r->rows ? NB_OK : nb_fail_memory(err, "input ranges", n * sizeof *r->rows);
}

nb_status nb_ranges_create(nb_ranges **out, nb_backend *be, const nb_host_block *block, int seqlen,
                           nb_error *err)
{
    *out = NULL;
    nb_ranges *r = calloc(1, sizeof *r);
    if (!r) return nb_fail_memory(err, "input ranges", sizeof *r);
    r->be = be;
    nb_status st = create_all(r, block, seqlen, err);
    if (st != NB_OK) {
        nb_ranges_free(r);
        return st;
    }
    *out = r;
    return NB_OK;
}

void nb_ranges_free(nb_ranges *r)
{
    if (!r) return;
    for (int i = 0; i < NB_N_ROLES; i++) {
        free(r->of[i].min);
        free(r->of[i].sum_abs);
    }
    free(r->rows);
    free(r);
}

/* Each channel on its own, its tokens in their order: the same for any number of threads. */
void nb_ranges_observe(void *user, nb_role role, nb_view x)
{
    nb_ranges *all = user;
    range *r = &all->of[role];
    enum { PIECE = 64 };
    all->be->ops->download(all->be, x, all->rows, NB_F32);
#pragma omp parallel for num_threads(all->be->threads) schedule(static)
    for (int64_t at = 0; at < r->n; at += PIECE) {
        int64_t end = nb_min_i64(at + PIECE, r->n);
        for (int64_t t = 0; t < x.rows; t++) {
            const float *row = all->rows + t * r->n;
            for (int64_t i = at; i < end; i++) {
                r->min[i] = row[i] < r->min[i] ? row[i] : r->min[i];
                r->max[i] = row[i] > r->max[i] ? row[i] : r->max[i];
                r->sum_abs[i] += (double)fabsf(row[i]);
            }
        }
    }
    r->tokens += x.rows;
}

void nb_ranges_take(nb_ranges *all, nb_role role, nb_input_stats *out)
{
    range *r = &all->of[nb_role_input[role]];
    for (int64_t i = 0; i < r->n; i++) r->mean_abs[i] = (float)(r->sum_abs[i] / (double)r->tokens);
    *out = (nb_input_stats){.n = r->n, .min = r->min, .max = r->max, .mean_abs = r->mean_abs};
}

int64_t nb_ranges_bytes(const nb_config *cfg, int seqlen)
{
    int64_t o = (int64_t)cfg->n_heads * cfg->head_dim;
    int64_t widest = nb_max_i64(nb_max_i64(cfg->n_embd, o), cfg->n_ffn);
    return 4 * seqlen * widest + 20 * (2 * (int64_t)cfg->n_embd + o + cfg->n_ffn);
}
