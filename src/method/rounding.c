#include "method/rounding.h"

static nb_status new_view(nb_rounding *r, int64_t rows, int64_t cols, nb_view *out, nb_error *err)
{
    nb_buffer *buf;
    NB_TRY(r->be->ops->buffer_create(r->be, rows * cols, &buf, err));
    *out = nb_view_of(buf, rows, cols);
    return NB_OK;
}

nb_status nb_rounding_create(nb_rounding *r, const nb_block_job *job, nb_error *err)
{
    *r = (nb_rounding){.be = job->be};
    for (int i = 0; i < NB_N_ROLES; i++) {
        const nb_matrix *w = &job->block->linear[i].w;
        if (!job->offset[i]) continue;
        NB_TRY(new_view(r, w->n_out, w->n_in, &r->v[i], err));
        NB_TRY(new_view(r, w->n_out, w->n_in, &r->dv[i], err));
        NB_TRY(new_view(r, w->n_out, w->n_in, &r->best[i], err));
    }
    return NB_OK;
}

void nb_rounding_free(nb_rounding *r)
{
    for (int i = 0; r->be && i < NB_N_ROLES; i++) {
        r->be->ops->buffer_free(r->be, r->v[i].buf);
        r->be->ops->buffer_free(r->be, r->dv[i].buf);
        r->be->ops->buffer_free(r->be, r->best[i].buf);
    }
    *r = (nb_rounding){0};
}

nb_status nb_rounding_reset(nb_rounding *r, const nb_block_job *job, nb_error *err)
{
    for (int i = 0; r->be && i < NB_N_ROLES; i++) {
        if (r->v[i].buf) r->be->ops->upload(r->be, r->v[i], job->offset[i], NB_F32);
    }
    return r->be ? r->be->ops->sync(r->be, err) : NB_OK;
}

nb_status nb_rounding_finish(const nb_rounding *r, nb_block_job *job, nb_error *err)
{
    for (int i = 0; i < NB_N_ROLES; i++) {
        if (r->v[i].buf) r->be->ops->download(r->be, r->v[i], job->offset[i], NB_F32);
    }
    return r->be->ops->sync(r->be, err);
}

void nb_rounding_save(nb_rounding *r)
{
    for (int i = 0; i < NB_N_ROLES; i++) {
        if (r->v[i].buf) r->be->ops->copy(r->be, r->best[i], r->v[i]);
    }
}

void nb_rounding_restore(nb_rounding *r)
{
    for (int i = 0; i < NB_N_ROLES; i++) {
        if (r->v[i].buf) r->be->ops->copy(r->be, r->v[i], r->best[i]);
    }
}

void nb_rounding_receive(nb_rounding *r, nb_role role, nb_view dw, bool first)
{
    nb_view dv = r->dv[role];
    if (first) {
        r->be->ops->copy(r->be, dv, dw);
    } else {
        r->be->ops->add_forward(r->be, dv, dv, dw);
    }
}

void nb_rounding_update(nb_rounding *r, double rate)
{
    for (int i = 0; i < NB_N_ROLES; i++) {
        if (r->v[i].buf) r->be->ops->sign_step(r->be, r->v[i], r->dv[i], rate, -0.5, 0.5);
    }
}
