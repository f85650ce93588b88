/* One decoder block: the forward that calibration, evaluation and generation share. */
#include "model/block.h"

#include <math.h>
#include <stdlib.h>

#include "model/family.h"

struct nb_block {
    nb_backend *be;
    nb_config cfg;
    int layer;
    nb_linear *linear[NB_N_ROLES];
    nb_norm norm[NB_N_NORMS];
    bool has_norm[NB_N_NORMS];
    nb_attn_formats attn;
    nb_rotation rotation;
};

struct nb_workspace {
    nb_backend *be;
    nb_buffer *buf;
    nb_view norm, q, k, v, att, gate, up; /* [T, C], [T, H*D], 2x [T, K*D], [T, H*D], 2x [T, F] */
    nb_observe_fn observe;                /* or NULL */
    void *observe_user;
};

/* ---- life ------------------------------------------------------------------------------- */

static nb_status upload_vector(nb_backend *be, const float *v, int64_t n, nb_buffer **out,
                               nb_error *err)
{
    *out = NULL;
    if (!v) return NB_OK;
    NB_TRY(be->ops->buffer_create(be, n, out, err));
    be->ops->upload(be, nb_view_of(*out, 1, n), v, NB_F32);
    return NB_OK;
}

nb_status nb_norm_create(nb_backend *be, const nb_config *cfg, const nb_host_norm *h, nb_norm *out,
                         nb_error *err)
{
    *out = (nb_norm){.kind = cfg->family->norm, .eps = cfg->norm_eps};
    NB_TRY(upload_vector(be, h->weight, h->n, &out->weight, err));
    return upload_vector(be, h->bias, h->n, &out->bias, err);
}

void nb_norm_free(nb_backend *be, nb_norm *n)
{
    be->ops->buffer_free(be, n->weight);
    be->ops->buffer_free(be, n->bias);
    *n = (nb_norm){0};
}

static nb_status create_linear(nb_block *b, const nb_host_linear *h, nb_linear **out, nb_error *err)
{
    if (!h->name) return NB_OK;
    nb_linear_desc d = {.w = &h->w, .bias = h->bias, .act = h->act, .lorc = h->lorc};
    return b->be->ops->linear_create(b->be, &d, out, err);
}

nb_status nb_block_create(nb_backend *be, const nb_config *cfg, const nb_host_block *host,
                          nb_block **out, nb_error *err)
{
    *out = NULL;
    nb_block *b = calloc(1, sizeof *b);
    if (!b) return nb_fail_memory(err, "block", sizeof *b);
    *b = (nb_block){.be = be,
                    .cfg = *cfg,
                    .layer = host->layer,
                    .attn = host->attn,
                    .rotation = host->rotation};
    nb_status st = NB_OK;
    for (int r = 0; r < NB_N_ROLES && st == NB_OK; r++) {
        st = create_linear(b, &host->linear[r], &b->linear[r], err);
    }
    for (int r = 0; r < NB_N_NORMS && st == NB_OK; r++) {
        b->has_norm[r] = host->norm[r].name != NULL;
        if (b->has_norm[r]) st = nb_norm_create(be, cfg, &host->norm[r], &b->norm[r], err);
    }
    if (st != NB_OK) {
        nb_block_free(b);
        return nb_wrap(err, st, "blk.%d", host->layer);
    }
    *out = b;
    return NB_OK;
}

void nb_block_free(nb_block *b)
{
    if (!b) return;
    for (int r = 0; r < NB_N_ROLES; r++) b->be->ops->linear_free(b->be, b->linear[r]);
    for (int r = 0; r < NB_N_NORMS; r++) nb_norm_free(b->be, &b->norm[r]);
    free(b);
}

size_t nb_block_bytes(const nb_block *b)
{
    size_t bytes = 0;
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (b->linear[r]) bytes += b->be->ops->linear_bytes(b->linear[r]);
    }
    return bytes;
}

nb_status nb_workspace_create(nb_backend *be, const nb_config *c, int64_t n_tokens,
                              nb_workspace **out, nb_error *err)
{
    *out = NULL;
    nb_workspace *ws = calloc(1, sizeof *ws);
    if (!ws) return nb_fail_memory(err, "workspace", sizeof *ws);
    ws->be = be;
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    struct {
        nb_view *view;
        int64_t cols;
    } parts[] = {{&ws->norm, c->n_embd}, {&ws->q, q},           {&ws->k, kv},       {&ws->v, kv},
                 {&ws->att, q},          {&ws->gate, c->n_ffn}, {&ws->up, c->n_ffn}};
    int64_t cols = 0;
    for (size_t i = 0; i < NB_COUNT(parts); i++) cols += parts[i].cols;
    nb_status st = be->ops->buffer_create(be, cols * n_tokens, &ws->buf, err);
    if (st != NB_OK) {
        free(ws);
        return st;
    }
    int64_t off = 0;
    for (size_t i = 0; i < NB_COUNT(parts); i++) {
        *parts[i].view = nb_view_of(ws->buf, n_tokens, parts[i].cols);
        parts[i].view->off = off;
        off += parts[i].cols * n_tokens;
    }
    *out = ws;
    return NB_OK;
}

void nb_workspace_free(nb_workspace *ws)
{
    if (!ws) return;
    ws->be->ops->buffer_free(ws->be, ws->buf);
    free(ws);
}

void nb_workspace_observe(nb_workspace *ws, nb_observe_fn observe, void *user)
{
    ws->observe = observe;
    ws->observe_user = user;
}

nb_view nb_workspace_norm(nb_workspace *ws, int64_t n_rows)
{
    return nb_view_rows(ws->norm, 0, n_rows);
}

/* ---- forward ---------------------------------------------------------------------------- */

static void norm_heads(const nb_block *b, nb_norm_role role, nb_view x, int n_heads)
{
    if (!b->has_norm[role]) return;
    nb_view heads = nb_view_split(x, n_heads);
    b->be->ops->norm_forward(b->be, heads, heads, &b->norm[role]);
}

static void show(const nb_workspace *ws, nb_role role, nb_view x)
{
    if (ws->observe) ws->observe(ws->observe_user, role, x);
}

/* x [T, C] += o(attention(a [T, C])) */
static void attention(const nb_block *b, nb_workspace *ws, nb_view x, nb_view a, nb_kv *kv,
                      nb_view rope, int64_t pos0)
{
    const nb_ops *op = b->be->ops;
    const nb_config *c = &b->cfg;
    int64_t T = x.rows;
    nb_view q = nb_view_rows(ws->q, 0, T), att = nb_view_rows(ws->att, 0, T);
    nb_view k = nb_view_rows(ws->k, 0, T), v = nb_view_rows(ws->v, 0, T);
    show(ws, NB_Q, a);
    op->linear_forward(b->be, q, a, b->linear[NB_Q], false);
    op->linear_forward(b->be, k, a, b->linear[NB_K], false);
    op->linear_forward(b->be, v, a, b->linear[NB_V], false);
    norm_heads(b, NB_NORM_Q, q, c->n_heads);
    norm_heads(b, NB_NORM_K, k, c->n_kv_heads);
    if (c->family->rotary) {
        nb_view table = nb_view_rows(rope, pos0, T);
        op->rope_forward(b->be, q, c->n_heads, table, c->rope_interleaved);
        op->rope_forward(b->be, k, c->n_kv_heads, table, c->rope_interleaved);
    }
    if (b->rotation.qk) {
        op->hadamard_forward(b->be, q, b->rotation.qk);
        op->hadamard_forward(b->be, k, b->rotation.qk);
    }
    nb_attention p = {.n_heads = c->n_heads,
                      .n_kv_heads = c->n_kv_heads,
                      .head_dim = c->head_dim,
                      .scale = (float)(1.0 / sqrt((double)c->head_dim)),
                      .pos0 = pos0,
                      .window = b->layer >= c->window_layers ? c->window : 0};
    op->kv_append(b->be, kv, k, v, pos0);
    op->kv_attention(b->be, att, q, kv, &p);
    show(ws, NB_O, att);
    op->linear_forward(b->be, x, att, b->linear[NB_O], true);
}

/* x [T, C] += down(act(gate(a)) * up(a)), or down(act(up(a))) without a gate; what enters down is
 * rotated where its columns are */
static void feed_forward(const nb_block *b, nb_workspace *ws, nb_view x, nb_view a)
{
    const nb_ops *op = b->be->ops;
    nb_view gate = nb_view_rows(ws->gate, 0, x.rows), up = nb_view_rows(ws->up, 0, x.rows);
    show(ws, NB_UP, a);
    op->linear_forward(b->be, up, a, b->linear[NB_UP], false);
    if (b->linear[NB_GATE]) {
        op->linear_forward(b->be, gate, a, b->linear[NB_GATE], false);
        op->glu_forward(b->be, up, gate, up, b->cfg.act);
    } else {
        op->act_forward(b->be, up, up, b->cfg.act);
    }
    if (b->rotation.down) op->hadamard_forward(b->be, up, b->rotation.down);
    show(ws, NB_DOWN, up);
    op->linear_forward(b->be, x, up, b->linear[NB_DOWN], true);
}

nb_kv_desc nb_block_kv(const nb_block *b, int64_t capacity)
{
    return (nb_kv_desc){.n_kv_heads = b->cfg.n_kv_heads,
                        .head_dim = b->cfg.head_dim,
                        .capacity = capacity,
                        .formats = b->attn};
}

void nb_block_forward(const nb_block *b, nb_workspace *ws, nb_view x, nb_kv *kv, nb_view rope,
                      int64_t pos0)
{
    const nb_ops *op = b->be->ops;
    nb_view a = nb_view_rows(ws->norm, 0, x.rows);
    bool post = b->cfg.post_norm;
    if (!post) op->norm_forward(b->be, a, x, &b->norm[NB_NORM_ATTN]);
    attention(b, ws, x, post ? x : a, kv, rope, pos0);
    op->norm_forward(b->be, post ? x : a, x, &b->norm[post ? NB_NORM_ATTN : NB_NORM_FFN]);
    feed_forward(b, ws, x, post ? x : a);
    if (post) op->norm_forward(b->be, x, x, &b->norm[NB_NORM_FFN]);
}
