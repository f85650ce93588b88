/* What lies outside the blocks: embedding, learned positions, final norm, head. */
#include <stdlib.h>

#include "model/block.h"
#include "model/family.h"

struct nb_ends {
    nb_backend *be;
    nb_config cfg;
    nb_linear *embed, *positions, *proj_in, *proj_out;
    nb_linear *head; /* NULL: embed */
    nb_norm final_norm;
    int stream; /* runs in which the hidden state is transformed between the ends; 0: not */
};

/* Token ids and positions pass through a small array on the way to the device. */
#define CHUNK 512

static nb_status create(nb_ends *e, const nb_host_linear *h, nb_linear **out, nb_error *err)
{
    if (!h->name) return NB_OK;
    nb_linear_desc d = {.w = &h->w, .bias = h->bias};
    return e->be->ops->linear_create(e->be, &d, out, err);
}

nb_status nb_ends_create(nb_backend *be, const nb_config *cfg, const nb_host_ends *host,
                         nb_ends **out, nb_error *err)
{
    *out = NULL;
    nb_ends *e = calloc(1, sizeof *e);
    if (!e) return nb_fail_memory(err, "model ends", sizeof *e);
    e->be = be;
    e->cfg = *cfg;
    e->stream = host->stream;
    nb_status st = create(e, &host->embed, &e->embed, err);
    if (st == NB_OK) st = create(e, &host->positions, &e->positions, err);
    if (st == NB_OK) st = create(e, &host->proj_in, &e->proj_in, err);
    if (st == NB_OK) st = create(e, &host->proj_out, &e->proj_out, err);
    if (st == NB_OK) st = create(e, &host->head, &e->head, err);
    if (st == NB_OK && host->final_norm.name) {
        st = nb_norm_create(be, cfg, &host->final_norm, &e->final_norm, err);
    }
    if (st != NB_OK) {
        nb_ends_free(e);
        return st;
    }
    *out = e;
    return NB_OK;
}

void nb_ends_free(nb_ends *e)
{
    if (!e) return;
    nb_linear *all[] = {e->embed, e->positions, e->proj_in, e->proj_out, e->head};
    for (size_t i = 0; i < NB_COUNT(all); i++) e->be->ops->linear_free(e->be, all[i]);
    nb_norm_free(e->be, &e->final_norm);
    free(e);
}

size_t nb_ends_bytes(const nb_ends *e)
{
    const nb_linear *all[] = {e->embed, e->positions, e->proj_in, e->proj_out, e->head};
    size_t bytes = 0;
    for (size_t i = 0; i < NB_COUNT(all); i++) {
        if (all[i]) bytes += e->be->ops->linear_bytes(all[i]);
    }
    return bytes;
}

/* x [T, C] += rows pos0 .. of the learned positions */
static nb_status add_positions(const nb_ends *e, nb_view x, int64_t pos0, nb_error *err)
{
    const nb_ops *op = e->be->ops;
    nb_buffer *buf;
    NB_TRY(op->buffer_create(e->be, CHUNK * x.cols, &buf, err));
    for (int64_t t = 0; t < x.rows; t += CHUNK) {
        int64_t n = x.rows - t < CHUNK ? x.rows - t : CHUNK;
        int32_t rows[CHUNK];
        for (int64_t i = 0; i < n; i++) {
            rows[i] = (int32_t)(pos0 + t + i) + e->cfg.family->position_offset;
        }
        nb_view p = nb_view_of(buf, n, x.cols), y = nb_view_rows(x, t, n);
        op->embed_forward(e->be, p, e->positions, rows);
        op->add_forward(e->be, y, y, p);
    }
    op->buffer_free(e->be, buf);
    return NB_OK;
}

static nb_status embed_projected(const nb_ends *e, nb_view x, const int32_t *ids, nb_error *err)
{
    const nb_ops *op = e->be->ops;
    nb_buffer *buf;
    NB_TRY(op->buffer_create(e->be, x.rows * e->cfg.embd_proj, &buf, err));
    nb_view narrow = nb_view_of(buf, x.rows, e->cfg.embd_proj);
    op->embed_forward(e->be, narrow, e->embed, ids);
    op->linear_forward(e->be, x, narrow, e->proj_in, false);
    op->buffer_free(e->be, buf);
    return NB_OK;
}

nb_status nb_ends_embed(const nb_ends *e, nb_view x, const int32_t *ids, int64_t pos0,
                        nb_error *err)
{
    for (int64_t t = 0; t < x.rows; t++) {
        if (ids[t] < 0 || ids[t] >= e->cfg.n_vocab) {
            return nb_fail(err, NB_EUSAGE, "token %lld: id %d, expected 0 to %d", (long long)t,
                           ids[t], e->cfg.n_vocab - 1);
        }
    }
    if (e->positions && pos0 + x.rows > e->cfg.n_ctx) {
        return nb_fail(err, NB_EUSAGE, "%lld positions: this model has learned only %d",
                       (long long)(pos0 + x.rows), e->cfg.n_ctx);
    }
    if (e->proj_in) {
        NB_TRY(embed_projected(e, x, ids, err));
    } else {
        e->be->ops->embed_forward(e->be, x, e->embed, ids);
    }
    if (e->stream) e->be->ops->hadamard_forward(e->be, x, e->stream);
    return e->positions ? add_positions(e, x, pos0, err) : NB_OK;
}

nb_status nb_ends_logits(const nb_ends *e, nb_workspace *ws, nb_view logits, nb_view x,
                         nb_error *err)
{
    const nb_ops *op = e->be->ops;
    const nb_linear *head = e->head ? e->head : e->embed;
    nb_view a = x, scratch = nb_workspace_norm(ws, x.rows);
    if (e->stream) {
        op->copy(e->be, scratch, x);
        op->hadamard_forward(e->be, scratch, e->stream);
        a = scratch;
    }
    if (e->cfg.final_norm) {
        op->norm_forward(e->be, scratch, a, &e->final_norm);
        a = scratch;
    }
    if (!e->proj_out) {
        op->linear_forward(e->be, logits, a, head, false);
        return NB_OK;
    }
    nb_buffer *buf;
    NB_TRY(op->buffer_create(e->be, x.rows * e->cfg.embd_proj, &buf, err));
    nb_view narrow = nb_view_of(buf, x.rows, e->cfg.embd_proj);
    op->linear_forward(e->be, narrow, a, e->proj_out, false);
    op->linear_forward(e->be, logits, narrow, head, false);
    op->buffer_free(e->be, buf);
    return NB_OK;
}
