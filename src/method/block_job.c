/* What steps on a whole block edit, and what must hold of it after each of them. */
#include "method/method.h"

#include <math.h>
#include <stdint.h>

#include "model/family.h"

float *nb_block_weight(const nb_block_job *job, nb_role role)
{
    const nb_host_linear *l = &job->block->linear[role];
    return l->name ? (float *)(uintptr_t)l->w.plane[0] : NULL;
}

/* The first value that is NaN or Inf, or n. */
static int64_t first_bad(const float *v, int64_t n, int threads)
{
    int64_t bad = n;
#pragma omp parallel for num_threads(threads) reduction(min : bad) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(v[i]) && i < bad) bad = i;
    }
    return bad;
}

static nb_status check_weight(const nb_block_job *job, nb_role role, const char *when,
                              nb_error *err)
{
    const nb_host_linear *l = &job->block->linear[role];
    const float *w = nb_block_weight(job, role);
    int64_t n = w ? l->w.n_out * l->w.n_in : 0, bad = first_bad(w, n, job->be->threads);
    if (bad == n) return NB_OK;
    return nb_fail(err, NB_ENUMERIC, "%s: weight [%lld, %lld] %s is %g, expected a finite number",
                   l->name, (long long)(bad / l->w.n_in), (long long)(bad % l->w.n_in), when,
                   (double)w[bad]);
}

static nb_status check_vector(const char *module, const char *what, const float *v, int64_t n,
                              const char *when, nb_error *err)
{
    int64_t bad = v ? first_bad(v, n, 1) : n;
    if (bad == n) return NB_OK;
    return nb_fail(err, NB_ENUMERIC, "%s: %s [%lld] %s is %g, expected a finite number", module,
                   what, (long long)bad, when, (double)v[bad]);
}

static nb_status check_clip(const nb_block_job *job, nb_role role, const float *clip,
                            const char *when, nb_error *err)
{
    const nb_host_linear *l = &job->block->linear[role];
    int64_t groups = nb_format_groups(&job->weights[role], l->w.n_in);
    for (int64_t i = 0; clip && i < l->w.n_out * groups; i++) {
        if (clip[i] > 0 && clip[i] <= 1) continue;
        return nb_fail(err, NB_ENUMERIC,
                       "%s: the clip ratio of row %lld, group %lld %s is %g, "
                       "expected more than 0 and at most 1",
                       l->name, (long long)(i / groups), (long long)(i % groups), when,
                       (double)clip[i]);
    }
    return NB_OK;
}

static nb_status check_offset(const nb_block_job *job, nb_role role, const char *when,
                              nb_error *err)
{
    const nb_host_linear *l = &job->block->linear[role];
    const float *v = job->offset[role];
    for (int64_t i = 0; v && i < l->w.n_out * l->w.n_in; i++) {
        if (v[i] >= -0.5f && v[i] <= 0.5f) continue;
        return nb_fail(
            err, NB_ENUMERIC,
            "%s: the offset of weight [%lld, %lld] %s is %g, expected one from -0.5 to 0.5",
            l->name, (long long)(i / l->w.n_in), (long long)(i % l->w.n_in), when, (double)v[i]);
    }
    return NB_OK;
}

/* What the family's files have no place for would be lost. */
static nb_status check_norm(const nb_block_job *job, nb_norm_role role, const char *when,
                            nb_error *err)
{
    const nb_host_norm *n = &job->block->norm[role];
    const nb_config *c = job->cfg;
    if (!n->name) return NB_OK;
    bool bias = c->norm_affine && c->family->norm == NB_NORM_LAYER;
    if ((n->weight && !c->norm_affine) || (n->bias && !bias)) {
        return nb_fail(err, NB_EUSAGE,
                       "%s: has a %s %s, which norms of this model have no place for", n->name,
                       n->bias ? "bias" : "weight", when);
    }
    NB_TRY(check_vector(n->name, "weight", n->weight, n->n, when, err));
    return check_vector(n->name, "bias", n->bias, n->n, when, err);
}

nb_status nb_block_check(const nb_block_job *job, const char *when, nb_error *err)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &job->block->linear[r];
        if (!l->name) continue;
        NB_TRY(check_weight(job, (nb_role)r, when, err));
        NB_TRY(check_vector(l->name, "bias", l->bias, l->w.n_out, when, err));
        NB_TRY(check_clip(job, (nb_role)r, job->clip_lo[r], when, err));
        NB_TRY(check_clip(job, (nb_role)r, job->clip_hi[r], when, err));
        NB_TRY(check_offset(job, (nb_role)r, when, err));
    }
    for (int r = 0; r < NB_N_NORMS; r++) NB_TRY(check_norm(job, (nb_norm_role)r, when, err));
    return NB_OK;
}
