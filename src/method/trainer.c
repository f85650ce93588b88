#include "method/trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "model/family.h"

/* ---- device memory ------------------------------------------------------------------------ */

static nb_status new_view(nb_trainer *t, int64_t rows, int64_t cols, nb_view *out, nb_error *err)
{
    nb_backend *be = t->job->be;
    nb_buffer *buf;
    NB_TRY(be->ops->buffer_create(be, rows * cols, &buf, err));
    t->buf[t->n_bufs++] = buf;
    *out = nb_view_of(buf, rows, cols);
    return NB_OK;
}

/* A device copy of a host vector that is moved in every step; none where host is NULL. */
static nb_status new_transfer(nb_trainer *t, nb_trainer_moves *m, double *host, int64_t n,
                              nb_view *out, nb_error *err)
{
    if (!host) return NB_OK;
    NB_TRY(new_view(t, 1, n, out, err));
    m->host[m->n] = host;
    m->view[m->n++] = *out;
    return NB_OK;
}

static nb_status create_linear(nb_trainer *t, nb_role r, nb_error *err)
{
    const nb_host_linear *l = &t->job->block->linear[r];
    nb_let_gradient *g = &t->let.gradient;
    nb_let_vectors *now = &t->let.now;
    int64_t n = l->w.n_out, m = l->w.n_in;
    if (!l->name) return NB_OK;
    NB_TRY(new_view(t, n, m, &t->weight[r], err));
    NB_TRY(new_view(t, n, m, &t->params.w[r], err));
    t->job->be->ops->upload(t->job->be, t->weight[r], l->w.plane[0], NB_F32);
    NB_TRY(new_transfer(t, &t->up, now->row[r], n, &t->row[r], err));
    NB_TRY(new_transfer(t, &t->up, now->col[r], m, &t->col[r], err));
    NB_TRY(new_transfer(t, &t->up, now->bias[r], n, &t->params.bias[r], err));
    NB_TRY(new_transfer(t, &t->down, g->row[r], n, &t->grads.dot[r], err));
    NB_TRY(new_transfer(t, &t->down, g->col[r], m, &t->dcol[r], err));
    return new_transfer(t, &t->down, g->bias[r], n, &t->grads.bias[r], err);
}

static nb_status create_norm(nb_trainer *t, nb_norm_role r, nb_error *err)
{
    const nb_host_norm *h = &t->job->block->norm[r];
    const nb_config *c = t->job->cfg;
    nb_let_vectors *now = &t->let.now;
    nb_view weight = {0}, bias = {0};
    t->params.has_norm[r] = h->name != NULL;
    if (!h->name) return NB_OK;
    NB_TRY(new_transfer(t, &t->up, now->norm_weight[r], h->n, &weight, err));
    NB_TRY(new_transfer(t, &t->up, now->norm_bias[r], h->n, &bias, err));
    t->params.norm[r] = (nb_norm){c->family->norm, c->norm_eps, weight.buf, bias.buf};
    NB_TRY(new_transfer(t, &t->down, t->let.gradient.norm[r], h->n, &t->grads.norm_dot[r], err));
    return new_transfer(t, &t->down, t->let.gradient.norm_bias[r], h->n, &t->grads.norm_bias[r],
                        err);
}

/* What the source block makes of the states that stored blocks left. */
static nb_status forward_source(nb_trainer *t, nb_block *block, nb_workspace *ws, nb_kv *kv,
                                nb_error *err)
{
    const nb_block_job *job = t->job;
    for (int i = 0; i < job->n_windows; i++) {
        nb_view x, y = nb_states_room(t->own, i, 1);
        NB_TRY(nb_states_load(job->x_stored, i, 1, &x, err));
        job->be->ops->copy(job->be, y, x);
        nb_block_forward(block, ws, y, kv, job->rope, 0);
        NB_TRY(job->be->ops->sync(job->be, err));
        NB_TRY(nb_states_store(t->own, i, 1, err));
        NB_TRY(job->tick(job->tick_user));
    }
    return NB_OK;
}

static nb_status create_own(nb_trainer *t, nb_error *err)
{
    const nb_block_job *job = t->job;
    nb_host_block host = *job->block;
    nb_block *block = NULL;
    nb_workspace *ws = NULL;
    nb_kv *kv = NULL;
    nb_status st;
    for (int r = 0; r < NB_N_ROLES; r++) host.linear[r].act = (nb_format){0};
    host.attn = (nb_attn_formats){0};
    nb_states_desc states = {.n_windows = job->n_windows,
                             .seqlen = job->seqlen,
                             .n_embd = job->cfg->n_embd,
                             .at_once = t->batch,
                             .dir = job->spill};
    NB_GOTO(st, nb_states_create(&t->own, job->be, &states, err));
    NB_GOTO(st, nb_block_create(job->be, job->cfg, &host, &block, err));
    nb_kv_desc d = nb_block_kv(block, job->seqlen);
    NB_GOTO(st, job->be->ops->kv_create(job->be, &d, &kv, err));
    NB_GOTO(st, nb_workspace_create(job->be, job->cfg, job->seqlen, &ws, err));
    st = forward_source(t, block, ws, kv, err);
done:
    job->be->ops->kv_free(job->be, kv);
    nb_workspace_free(ws);
    nb_block_free(block);
    return st;
}

static void receive_weight(void *user, nb_role role, nb_view dw);

static nb_status create(nb_trainer *t, const nb_trainer_options *opt, nb_error *err)
{
    nb_block_job *job = t->job;
    int64_t rows = (int64_t)t->at_once * job->seqlen, C = job->cfg->n_embd;
    nb_train_desc d = {.cfg = job->cfg,
                       .layer = job->block->layer,
                       .batch = t->at_once,
                       .seqlen = job->seqlen,
                       .acts = job->acts,
                       .attn = job->attn,
                       .rotation = job->block->rotation,
                       .rope = job->rope};
    if (opt->aug) NB_TRY(create_own(t, err));
    NB_TRY(nb_let_create(&t->let, job, &opt->start, err));
    NB_TRY(nb_lwc_create(&t->lwc, job, opt->rounding, err));
    if (opt->rounding) NB_TRY(nb_rounding_create(&t->rounding, job, err));
    for (int r = 0; r < NB_N_ROLES; r++) NB_TRY(create_linear(t, (nb_role)r, err));
    for (int r = 0; r < NB_N_NORMS; r++) NB_TRY(create_norm(t, (nb_norm_role)r, err));
    NB_TRY(new_view(t, rows, C, &t->dy, err));
    NB_TRY(nb_block_train_create(job->be, &d, &t->block, err));
    size_t n_let = (size_t)t->let.n + 1, n_lwc = (size_t)t->lwc.logits.cols + 1;
    t->let_start = nb_arena_alloc(job->arena, 2 * n_let, sizeof *t->let_start);
    t->check = nb_arena_alloc(job->arena, n_lwc, sizeof *t->check);
    if (!t->let_start || !t->check) return nb_fail_memory(err, "training", 8 * (n_let + n_lwc));
    t->let_best = t->let_start + n_let;
    memcpy(t->let_start, t->let.param, (size_t)t->let.n * sizeof(double));
    t->grads.weight = receive_weight;
    t->grads.user = t;
    return job->be->ops->sync(job->be, err);
}

/* Linears that share an input share its quantizer in training. */
static nb_status check_acts(const nb_block_job *job, const char *step, nb_error *err)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (job->acts[r].tile <= 1) continue;
        return nb_fail(err, NB_EUSAGE, "step \"%s\": acts \"%s\": blocks of several tokens", step,
                       job->acts[r].word);
    }
    static const nb_role shared[][2] = {{NB_Q, NB_K}, {NB_Q, NB_V}, {NB_UP, NB_GATE}};
    for (size_t i = 0; i < NB_COUNT(shared); i++) {
        nb_role a = shared[i][0], b = shared[i][1];
        bool has = job->block->linear[a].name && job->block->linear[b].name;
        if (!has || strcmp(job->acts[a].word, job->acts[b].word) == 0) continue;
        return nb_fail(err, NB_EUSAGE,
                       "step \"%s\": %s and %s share their input, but its formats are \"%s\" and "
                       "\"%s\"",
                       step, nb_role_names[a], nb_role_names[b], job->acts[a].word,
                       job->acts[b].word);
    }
    return NB_OK;
}

static int clamp_windows(int n, int most) { return n < 1 ? 1 : n < most ? n : most; }

nb_status nb_trainer_create(nb_trainer *t, nb_block_job *job, const nb_trainer_options *opt,
                            nb_error *err)
{
    *t = (nb_trainer){.job = job, .unit_tokens = opt->unit_tokens, .zero_point = opt->zero_point};
    NB_TRY(check_acts(job, opt->step, err));
    t->batch = clamp_windows(opt->batch ? opt->batch : job->batch, job->n_windows);
    t->at_once = opt->rounding ? clamp_windows(job->batch, t->batch) : t->batch;
    nb_status st = create(t, opt, err);
    if (st != NB_OK) nb_trainer_free(t);
    return st;
}

void nb_trainer_free(nb_trainer *t)
{
    for (int i = 0; i < t->n_bufs; i++) t->job->be->ops->buffer_free(t->job->be, t->buf[i]);
    nb_block_train_free(t->block);
    nb_lwc_free(&t->lwc);
    nb_rounding_free(&t->rounding);
    nb_states_free(t->own);
    t->own = NULL;
    t->n_bufs = 0;
    t->block = NULL;
}

/* ---- state -------------------------------------------------------------------------------- */

static void copy_doubles(double *to, const double *from, int64_t n)
{
    memcpy(to, from, (size_t)n * sizeof *to);
}

static void set_identity(nb_let *let)
{
    memset(let->param, 0, (size_t)let->n * sizeof *let->param);
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        for (int64_t i = 0; let->scale[p] && i < let->width[p]; i++) let->scale[p][i] = 1;
    }
}

static void reset_optimizer(nb_trainer *t)
{
    memset(t->let.m, 0, (size_t)t->let.n * sizeof *t->let.m);
    memset(t->let.v, 0, (size_t)t->let.n * sizeof *t->let.v);
    t->step = 0;
}

nb_status nb_trainer_reset(nb_trainer *t, nb_lwc_start clips, bool plain, nb_error *err)
{
    reset_optimizer(t);
    if (plain) {
        set_identity(&t->let);
    } else {
        copy_doubles(t->let.param, t->let_start, t->let.n);
    }
    NB_TRY(nb_rounding_reset(&t->rounding, t->job, err));
    return nb_lwc_reset(&t->lwc, t->job, clips, err);
}

void nb_trainer_save(nb_trainer *t)
{
    copy_doubles(t->let_best, t->let.param, t->let.n);
    nb_lwc_save(&t->lwc);
    nb_rounding_save(&t->rounding);
}

nb_status nb_trainer_restore(nb_trainer *t, nb_error *err)
{
    reset_optimizer(t);
    copy_doubles(t->let.param, t->let_best, t->let.n);
    nb_rounding_restore(&t->rounding);
    return nb_lwc_restore(&t->lwc, t->job, err);
}

/* ---- one step ----------------------------------------------------------------------------- */

/* Norms, biases and fake-quantized weights of the parameters as they are. */
static void forward_parameters(nb_trainer *t)
{
    nb_backend *be = t->job->be;
    nb_let_forward(&t->let);
    for (int i = 0; i < t->up.n; i++) be->ops->upload(be, t->up.view[i], t->up.host[i], NB_F64);
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (!t->weight[r].buf) continue;
        if (t->rounding.v[r].buf) {
            be->ops->round_forward(be, t->params.w[r], t->weight[r], t->rounding.v[r], t->lwc.hi[r],
                                   t->lwc.lo[r], &t->job->weights[r]);
        } else {
            be->ops->clip_forward(be, t->params.w[r], t->weight[r], t->row[r], t->col[r],
                                  t->lwc.hi[r], t->lwc.lo[r], &t->job->weights[r]);
        }
    }
}

/* dw is of the fake-quantized weight; what it means for clips and columns is taken at once. */
static void receive_weight(void *user, nb_role r, nb_view dw)
{
    nb_trainer *t = user;
    nb_backend *be = t->job->be;
    if (t->rounding.v[r].buf) {
        nb_rounding_receive(&t->rounding, r, dw, !t->adding);
        return;
    }
    be->ops->clip_backward(be, t->lwc.dhi[r], t->lwc.dlo[r], t->dcol[r], dw, t->weight[r],
                           t->row[r], t->col[r], t->lwc.hi[r], t->lwc.lo[r], t->zero_point,
                           &t->job->weights[r]);
}

/* What the weights' gradients, added up, mean for offsets and clips. */
static void differentiate_rounding(nb_trainer *t)
{
    nb_backend *be = t->job->be;
    const nb_rounding *g = &t->rounding;
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (!g->v[r].buf) continue;
        be->ops->round_backward(be, g->dv[r], t->lwc.dhi[r], t->lwc.dlo[r], g->dv[r], t->weight[r],
                                g->v[r], t->lwc.hi[r], t->lwc.lo[r], t->zero_point,
                                &t->job->weights[r]);
    }
}

/* Windows w0 .. w0 + n of a step of `of` windows; *loss: their part of its mean squared error, dy:
 * the gradient. */
static nb_status forward_windows(nb_trainer *t, int w0, int n, int of, double *loss, nb_error *err)
{
    const nb_block_job *job = t->job;
    const nb_ops *op = job->be->ops;
    nb_view x, want, dy = nb_view_rows(t->dy, 0, (int64_t)n * job->seqlen);
    NB_TRY(nb_states_load(job->x_stored, w0, n, &x, err));
    NB_TRY(nb_states_load(job->target, w0, n, &want, err));
    nb_view y = nb_block_train_forward(t->block, &t->params, x);
    double count = (double)of * job->seqlen * (double)y.cols;
    *loss = op->mse_backward(job->be, dy, y, want, t->unit_tokens, 2 / count, false);
    if (t->own) {
        NB_TRY(nb_states_load(t->own, w0, n, &want, err));
        *loss += op->mse_backward(job->be, dy, y, want, t->unit_tokens, 2 / count, true);
    }
    *loss /= count;
    return op->sync(job->be, err);
}

nb_status nb_trainer_tick(const nb_block_job *job, int n)
{
    nb_status st = NB_OK;
    for (int i = 0; i < n && st == NB_OK; i++) st = job->tick(job->tick_user);
    return st;
}

/* Windows from w0, at most n of them. */
static int windows_at(const nb_trainer *t, int w0, int n)
{
    int left = t->job->n_windows - w0;
    return left < n ? left : n;
}

nb_status nb_trainer_loss(nb_trainer *t, double *loss, nb_error *err)
{
    double sum = 0, one;
    forward_parameters(t);
    for (int w = 0, n; w < t->job->n_windows; w += n) {
        n = windows_at(t, w, t->at_once);
        NB_TRY(forward_windows(t, w, n, n, &one, err));
        NB_TRY(nb_trainer_tick(t->job, n));
        sum += one * n;
    }
    *loss = sum / t->job->n_windows;
    return NB_OK;
}

/* The first linear and row whose clips' gradient is not finite goes to t->fault. */
static bool check_clips(nb_trainer *t)
{
    nb_backend *be = t->job->be;
    be->ops->download(be, t->lwc.grad, t->check, NB_F32);
    int64_t n = t->lwc.grad.cols, bad = 0;
    while (bad < n && isfinite(t->check[bad])) bad++;
    if (bad == n) return true;
    for (int r = 0; r < NB_N_ROLES; r++) {
        nb_view hi = t->lwc.dhi[r];
        int64_t half = hi.rows * hi.cols, at = bad - hi.off;
        if (!hi.buf || at < 0 || at >= 2 * half) continue;
        snprintf(t->fault, sizeof t->fault, "gradient of the clips of blk.%d.%s, row %lld",
                 t->job->block->layer, nb_role_names[r], (long long)(at % half / hi.cols));
    }
    return false;
}

/* The same of LET. */
static bool check_let(nb_trainer *t)
{
    const nb_let *let = &t->let;
    int64_t bad = 0;
    while (bad < let->n && isfinite(let->grad[bad])) bad++;
    for (int p = 0; bad < let->n && p < NB_LET_N_PAIRS; p++) {
        int64_t at = let->scale[p] ? let->param + bad - let->scale[p] : -1;
        if (at < 0 || at >= let->width[p] * (let->shift[p] ? 2 : 1)) continue;
        snprintf(t->fault, sizeof t->fault, "gradient of the %s of blk.%d.%s, channel %lld",
                 at < let->width[p] ? "scales" : "shifts", t->job->block->layer,
                 nb_let_pair_names[p], (long long)(at % let->width[p]));
    }
    return bad == let->n;
}

static void update(nb_trainer *t)
{
    nb_backend *be = t->job->be;
    t->step++;
    t->total++;
    if (t->train_lwc) {
        be->ops->adamw_step(be, t->lwc.logits, t->lwc.grad, t->lwc.m, t->lwc.v, t->lwc_rate, 0.9,
                            0.999, 1e-8, t->step);
    }
    if (t->train_let) nb_let_update(&t->let, t->let_rate, t->step);
}

/* Forward and backward of a step, as many windows at a time as the buffers hold. */
static nb_status pass_windows(nb_trainer *t, int w0, int n, double *loss, nb_error *err)
{
    double part;
    *loss = 0;
    for (int w = w0, m; w < w0 + n; w += m) {
        m = clamp_windows(t->at_once, w0 + n - w);
        NB_TRY(forward_windows(t, w, m, n, &part, err));
        *loss += part;
        if (!isfinite(*loss)) return NB_OK;
        t->adding = w > w0;
        nb_block_train_backward(t->block, &t->params,
                                nb_view_rows(t->dy, 0, (int64_t)m * t->job->seqlen), &t->grads);
    }
    return NB_OK;
}

nb_status nb_trainer_gradient(nb_trainer *t, int w0, int n, double *loss, bool *finite,
                              nb_error *err)
{
    nb_backend *be = t->job->be;
    forward_parameters(t);
    NB_TRY(pass_windows(t, w0, n, loss, err));
    *finite = isfinite(*loss);
    if (!*finite) snprintf(t->fault, sizeof t->fault, "loss of blk.%d", t->job->block->layer);
    if (!*finite) return NB_OK;
    differentiate_rounding(t);
    for (int i = 0; i < t->down.n; i++) {
        be->ops->download(be, t->down.view[i], t->down.host[i], NB_F64);
    }
    *finite = check_clips(t);
    NB_TRY(be->ops->sync(be, err));
    nb_let_backward(&t->let);
    *finite = *finite && check_let(t);
    return NB_OK;
}

nb_status nb_trainer_epoch(nb_trainer *t, double *loss, bool *finite, nb_error *err)
{
    double sum = 0, one;
    for (int w = 0, n; w < t->job->n_windows; w += n) {
        n = windows_at(t, w, t->batch);
        NB_TRY(nb_trainer_gradient(t, w, n, &one, finite, err));
        if (!*finite) return NB_OK;
        update(t);
        NB_TRY(nb_trainer_tick(t->job, n));
        sum += one * n;
    }
    *loss = sum / t->job->n_windows;
    return NB_OK;
}
