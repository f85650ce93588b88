#include "method/lwc.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "format/ste.h"

/* ---- life --------------------------------------------------------------------------------- */

static int64_t groups_of(const nb_block_job *job, nb_role role)
{
    const nb_host_linear *l = &job->block->linear[role];
    if (!l->name || !nb_format_is_quantized(&job->weights[role])) return 0;
    return nb_format_groups(&job->weights[role], l->w.n_in);
}

static nb_view part(nb_view all, int64_t *off, int64_t rows, int64_t cols)
{
    nb_view v = nb_view_of(all.buf, rows, cols);
    v.off = *off;
    *off += rows * cols;
    return v;
}

nb_status nb_lwc_create(nb_lwc *lwc, const nb_block_job *job, bool plain, nb_error *err)
{
    *lwc = (nb_lwc){.be = job->be, .plain = plain};
    int64_t n = 0;
    for (int r = 0; r < NB_N_ROLES; r++) {
        n += 2 * groups_of(job, (nb_role)r) * job->block->linear[r].w.n_out;
    }
    nb_view *const all[] = {&lwc->logits, &lwc->grad, &lwc->m, &lwc->v, &lwc->best};
    for (size_t i = 0; i < NB_COUNT(all); i++) {
        nb_buffer *buf;
        NB_TRY(job->be->ops->buffer_create(job->be, n, &buf, err));
        *all[i] = nb_view_of(buf, 1, n);
    }
    for (int64_t r = 0, at = 0, dat = 0; r < NB_N_ROLES; r++) {
        int64_t rows = job->block->linear[r].w.n_out, groups = groups_of(job, (nb_role)r);
        if (!groups) continue;
        lwc->hi[r] = part(lwc->logits, &at, rows, groups);
        lwc->lo[r] = part(lwc->logits, &at, rows, groups);
        lwc->dhi[r] = part(lwc->grad, &dat, rows, groups);
        lwc->dlo[r] = part(lwc->grad, &dat, rows, groups);
    }
    return NB_OK;
}

void nb_lwc_free(nb_lwc *lwc)
{
    nb_view *const all[] = {&lwc->logits, &lwc->grad, &lwc->m, &lwc->v, &lwc->best};
    for (size_t i = 0; lwc->be && i < NB_COUNT(all); i++) {
        lwc->be->ops->buffer_free(lwc->be, all[i]->buf);
    }
    *lwc = (nb_lwc){0};
}

/* ---- values ------------------------------------------------------------------------------- */

#define PAPER_LOGIT 4.0f
#define OPEN_LOGIT  100.0f /* a ratio of 1 */

/* Logit of a ratio of the job, or the ratio itself. */
static float logit_of(const nb_lwc *lwc, float ratio)
{
    if (lwc->plain) return ratio;
    return fminf(logf(ratio / (1 - ratio)), PAPER_LOGIT);
}

/* host [logits]: from the job's ratios. */
static void fill_from_job(const nb_lwc *lwc, const nb_block_job *job, float *host)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        int64_t n = lwc->hi[r].rows * lwc->hi[r].cols;
        for (int64_t i = 0; lwc->hi[r].buf && i < n; i++) {
            host[lwc->hi[r].off + i] = logit_of(lwc, job->clip_hi[r][i]);
            host[lwc->lo[r].off + i] = logit_of(lwc, job->clip_lo[r][i]);
        }
    }
}

nb_status nb_lwc_reset(nb_lwc *lwc, const nb_block_job *job, nb_lwc_start start, nb_error *err)
{
    int64_t n = lwc->logits.cols;
    float *host = calloc((size_t)n + 1, sizeof *host);
    if (!host) return nb_fail_memory(err, "clip ratios", (size_t)n * sizeof *host);
    lwc->be->ops->upload(lwc->be, lwc->m, host, NB_F32);
    lwc->be->ops->upload(lwc->be, lwc->v, host, NB_F32);
    for (int64_t i = 0; i < n; i++) host[i] = start == NB_LWC_OPEN ? OPEN_LOGIT : PAPER_LOGIT;
    if (start == NB_LWC_JOB) fill_from_job(lwc, job, host);
    lwc->be->ops->upload(lwc->be, lwc->logits, host, NB_F32);
    free(host);
    return NB_OK;
}

void nb_lwc_save(nb_lwc *lwc) { lwc->be->ops->copy(lwc->be, lwc->best, lwc->logits); }

nb_status nb_lwc_restore(nb_lwc *lwc, const nb_block_job *job, nb_error *err)
{
    NB_TRY(nb_lwc_reset(lwc, job, NB_LWC_OPEN, err));
    lwc->be->ops->copy(lwc->be, lwc->logits, lwc->best);
    return NB_OK;
}

static void download_ratios(const nb_lwc *lwc, nb_view logits, float *out)
{
    lwc->be->ops->download(lwc->be, logits, out, NB_F32);
    for (int64_t i = 0; i < logits.rows * logits.cols && !lwc->plain; i++) {
        out[i] = fmaxf(nb_clip_ratio(out[i]), FLT_MIN); /* a ratio is above 0 */
    }
}

nb_status nb_lwc_finish(const nb_lwc *lwc, nb_block_job *job, nb_error *err)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (!lwc->hi[r].buf) continue;
        download_ratios(lwc, lwc->hi[r], job->clip_hi[r]);
        download_ratios(lwc, lwc->lo[r], job->clip_lo[r]);
    }
    return lwc->be->ops->sync(lwc->be, err);
}
