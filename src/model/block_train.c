/* The training form of a decoder block: OmniQuant, sections 7.1 to 7.3 of its specification.
 *
 * Kept from the forward: quantized inputs of the linears behind the norms and of the last one, q,
 * k, v before and behind their quantizers, the attention's output with the logarithms of its sums,
 * both hidden states, gate and up, what the activation function gives. Made again in the backward,
 * where they are asked for: what norms give, and the quantized input of o. The softmax is never
 * stored. The gradient ends at the norm before the attention: nobody asks for that of the block's
 * input. */
#include "model/block_train.h"

#include <math.h>
#include <stdlib.h>

#include "base/size.h"
#include "model/family.h"

struct nb_block_train {
    nb_backend *be;
    nb_config cfg;
    nb_format act[NB_N_ROLES];
    nb_format head[NB_N_ROLES]; /* of Q, K and V */
    nb_attention attention;
    nb_rotation rotation;
    int64_t seqlen;
    nb_view rope;
    nb_buffer *buf;
    /* of the forward at hand; x is the caller's */
    nb_view x, in_qkv, in_up, in_down, in_q, in_k, in_v;

    /* kept: [R, ...], R = batch * seqlen */
    nb_view a1, a2;            /* [C] what enters q, k, v and gate, up */
    nb_view raw_q, raw_k;      /* [H*D], [K*D] before norms over heads; else empty */
    nb_view q, k, v, att, lse; /* [H*D], [K*D] twice, [H*D], [H] */
    nb_view y1, y;             /* [C] behind attention and FFN */
    nb_view n1, y2;            /* [C] norms behind the sums: y1 normalised, y before its norm */
    nb_view gate, up;          /* [F]; without a gate: up alone */
    nb_view qq, qk, qv;        /* what enters the attention, if not q, k, v */
    nb_view f, qf;             /* [F] what the activation function gives, and quantized */
    /* scratch */
    nb_view wide;                 /* [R, max(C, H*D)] */
    nb_view da, dq, dk, dv, datt; /* gradients: [C], [H*D], [K*D] twice, [H*D] */
    nb_view dgate, dup;           /* [F] */
    nb_view dw;                   /* one weight: the largest */
};

/* ---- life --------------------------------------------------------------------------------- */

typedef struct layout {
    nb_view *view;
    int64_t rows, cols;
} layout;

static void carve(nb_block_train *b, const layout *parts, size_t n)
{
    int64_t off = 0;
    for (size_t i = 0; i < n; i++) {
        *parts[i].view = nb_view_of(b->buf, parts[i].rows, parts[i].cols);
        parts[i].view->off = off;
        off += parts[i].rows * parts[i].cols;
    }
}

static nb_status create_views(nb_block_train *b, int64_t R, nb_error *err)
{
    const nb_config *c = &b->cfg;
    int64_t C = c->n_embd, F = c->n_ffn, H = c->n_heads;
    int64_t Q = H * c->head_dim, K = (int64_t)c->n_kv_heads * c->head_dim;
    bool gated = c->family->linear[NB_GATE], heads = c->family->qk_norm;
    bool entered = b->head[NB_Q].family || b->head[NB_K].family || b->head[NB_V].family ||
                   b->rotation.qk; /* q, k, v are not what enters the attention */
    bool wide_act = nb_format_is_quantized(&b->act[NB_DOWN]);
    const layout parts[] = {
        {&b->a1, R, C},
        {&b->a2, R, C},
        {&b->raw_q, heads ? R : 0, Q},
        {&b->raw_k, heads ? R : 0, K},
        {&b->q, R, Q},
        {&b->k, R, K},
        {&b->v, R, K},
        {&b->att, R, Q},
        {&b->lse, R, H},
        {&b->y1, R, C},
        {&b->y, R, C},
        {&b->n1, c->post_norm ? R : 0, C},
        {&b->y2, c->post_norm ? R : 0, C},
        {&b->gate, gated ? R : 0, F},
        {&b->up, R, F},
        {&b->qq, entered ? R : 0, Q},
        {&b->qk, entered ? R : 0, K},
        {&b->qv, entered ? R : 0, K},
        {&b->f, R, F},
        {&b->qf, wide_act ? R : 0, F},
        {&b->wide, R, nb_max_i64(C, Q)},
        {&b->da, R, C},
        {&b->dq, R, Q},
        {&b->dk, R, K},
        {&b->dv, R, K},
        {&b->datt, R, Q},
        {&b->dgate, gated ? R : 0, F},
        {&b->dup, R, F},
        {&b->dw, 1, C * nb_max_i64(F, Q)},
    };
    int64_t total = 0;
    for (size_t i = 0; i < NB_COUNT(parts); i++) total += parts[i].rows * parts[i].cols;
    NB_TRY(b->be->ops->buffer_create(b->be, total, &b->buf, err));
    carve(b, parts, NB_COUNT(parts));
    return NB_OK;
}

/* Formats whose blocks run along the sequence are not trained through. */
static nb_format per_token(const nb_format *f) { return f->group == 0 ? *f : (nb_format){0}; }

nb_status nb_block_train_create(nb_backend *be, const nb_train_desc *d, nb_block_train **out,
                                nb_error *err)
{
    *out = NULL;
    nb_block_train *b = calloc(1, sizeof *b);
    if (!b) return nb_fail_memory(err, "block in training", sizeof *b);
    const nb_config *c = d->cfg;
    *b = (nb_block_train){
        .be = be, .cfg = *c, .rotation = d->rotation, .seqlen = d->seqlen, .rope = d->rope};
    for (int r = 0; d->acts && r < NB_N_ROLES; r++) b->act[r] = d->acts[r];
    if (d->attn) {
        b->head[NB_Q] = d->attn->q;
        b->head[NB_K] = d->attn->k;
        b->head[NB_V] = per_token(&d->attn->v);
    }
    b->attention = (nb_attention){.n_heads = c->n_heads,
                                  .n_kv_heads = c->n_kv_heads,
                                  .head_dim = c->head_dim,
                                  .scale = (float)(1.0 / sqrt((double)c->head_dim)),
                                  .window = d->layer >= c->window_layers ? c->window : 0};
    nb_status st = create_views(b, (int64_t)d->batch * d->seqlen, err);
    if (st != NB_OK) {
        nb_block_train_free(b);
        return st;
    }
    *out = b;
    return NB_OK;
}

void nb_block_train_free(nb_block_train *b)
{
    if (!b) return;
    b->be->ops->buffer_free(b->be, b->buf);
    free(b);
}

/* ---- forward ------------------------------------------------------------------------------ */

static nb_view rows_of(nb_view v, int64_t n) { return nb_view_rows(v, 0, n); }

/* out = x through the format; x itself where there is none. */
static nb_view quantize(const nb_block_train *b, const nb_format *f, nb_view out, nb_view x)
{
    if (!nb_format_is_quantized(f)) return x;
    b->be->ops->quant_forward(b->be, out, x, f);
    return out;
}

/* Runs in which queries and keys are transformed before they are quantized; 0: not at all. */
static int turned(const nb_block_train *b, nb_role role)
{
    return role == NB_V ? 0 : b->rotation.qk;
}

/* The transform of x, in out; x itself where there is none. */
static nb_view turn_heads(const nb_block_train *b, nb_role role, nb_view out, nb_view x)
{
    if (!turned(b, role)) return x;
    b->be->ops->copy(b->be, out, x);
    b->be->ops->hadamard_forward(b->be, out, turned(b, role));
    return out;
}

/* What enters the attention: transformed, and each head through its format. */
static nb_view enter_heads(const nb_block_train *b, nb_role role, nb_view out, nb_view x,
                           int n_heads)
{
    nb_view to = rows_of(out, x.rows), turn = turn_heads(b, role, to, x);
    if (!nb_format_is_quantized(&b->head[role])) return turn;
    b->be->ops->quant_forward(b->be, nb_view_split(to, n_heads), nb_view_split(turn, n_heads),
                              &b->head[role]);
    return to;
}

/* out (+)= x w^T + bias */
static void project(const nb_block_train *b, const nb_train_params *p, nb_role role, nb_view out,
                    nb_view x)
{
    const nb_ops *op = b->be->ops;
    op->product(b->be, out, x, false, p->w[role], true, false);
    if (p->bias[role].buf) op->bias_forward(b->be, out, p->bias[role]);
}

static void rotate(const nb_block_train *b, nb_view x, int n_heads, bool back)
{
    const nb_ops *op = b->be->ops;
    if (!b->cfg.family->rotary) return;
    for (int64_t t = 0; t < x.rows; t += b->seqlen) {
        nb_view one = nb_view_rows(x, t, b->seqlen);
        (back ? op->rope_backward : op->rope_forward)(b->be, one, n_heads, b->rope,
                                                      b->cfg.rope_interleaved);
    }
}

/* out = what enters the attention as Q or K, before the quantizer */
static void make_heads(const nb_block_train *b, const nb_train_params *p, nb_role role, nb_view raw,
                       nb_view out, nb_view a, int n_heads)
{
    nb_norm_role norm = role == NB_Q ? NB_NORM_Q : NB_NORM_K;
    nb_view to = p->has_norm[norm] ? rows_of(raw, a.rows) : out;
    project(b, p, role, to, a);
    if (p->has_norm[norm]) {
        b->be->ops->norm_forward(b->be, nb_view_split(out, n_heads), nb_view_split(to, n_heads),
                                 &p->norm[norm]);
    }
    rotate(b, out, n_heads, false);
}

/* att = attention of what makes a (R rows) */
static void attend(nb_block_train *b, const nb_train_params *p, nb_view a)
{
    const nb_ops *op = b->be->ops;
    int64_t R = a.rows, T = b->seqlen;
    int H = b->cfg.n_heads, K = b->cfg.n_kv_heads;
    nb_view q = rows_of(b->q, R), k = rows_of(b->k, R), v = rows_of(b->v, R);
    nb_view att = rows_of(b->att, R), lse = rows_of(b->lse, R);
    make_heads(b, p, NB_Q, b->raw_q, q, a, H);
    make_heads(b, p, NB_K, b->raw_k, k, a, K);
    project(b, p, NB_V, v, a);
    b->in_q = enter_heads(b, NB_Q, b->qq, q, H);
    b->in_k = enter_heads(b, NB_K, b->qk, k, K);
    b->in_v = enter_heads(b, NB_V, b->qv, v, K);
    for (int64_t t = 0; t < R; t += T) {
        op->attention_train(b->be, nb_view_rows(att, t, T), nb_view_rows(lse, t, T),
                            nb_view_rows(b->in_q, t, T), nb_view_rows(b->in_k, t, T),
                            nb_view_rows(b->in_v, t, T), &b->attention);
    }
}

/* f [R, F] = what enters the last linear, before its quantizer */
static nb_view activate(const nb_block_train *b, int64_t R)
{
    nb_view f = rows_of(b->f, R), up = rows_of(b->up, R);
    if (b->cfg.family->linear[NB_GATE]) {
        b->be->ops->glu_forward(b->be, f, rows_of(b->gate, R), up, b->cfg.act);
    } else {
        b->be->ops->act_forward(b->be, f, up, b->cfg.act);
    }
    if (b->rotation.down) b->be->ops->hadamard_forward(b->be, f, b->rotation.down);
    return f;
}

/* out = x + down(act(gate(a)) * up(a)) */
static void feed(nb_block_train *b, const nb_train_params *p, nb_view out, nb_view x, nb_view a)
{
    int64_t R = a.rows;
    project(b, p, NB_UP, rows_of(b->up, R), a);
    if (b->cfg.family->linear[NB_GATE]) project(b, p, NB_GATE, rows_of(b->gate, R), a);
    b->in_down = quantize(b, &b->act[NB_DOWN], rows_of(b->qf, R), activate(b, R));
    project(b, p, NB_DOWN, out, b->in_down);
    b->be->ops->add_forward(b->be, out, out, x);
}

/* out = what enters the linears behind a norm, or behind the hidden state x itself */
static nb_view enter(nb_block_train *b, nb_role role, const nb_norm *norm, nb_view out, nb_view x)
{
    if (!norm) return quantize(b, &b->act[role], out, x);
    b->be->ops->norm_forward(b->be, out, x, norm);
    return quantize(b, &b->act[role], out, out);
}

/* The input of o, [R, H*D]. */
static nb_view enter_o(const nb_block_train *b)
{
    nb_view att = rows_of(b->att, b->x.rows);
    return quantize(b, &b->act[NB_O], nb_view_cols(rows_of(b->wide, att.rows), 0, att.cols), att);
}

nb_view nb_block_train_forward(nb_block_train *b, const nb_train_params *p, nb_view x)
{
    const nb_ops *op = b->be->ops;
    const nb_norm *first = &p->norm[NB_NORM_ATTN], *second = &p->norm[NB_NORM_FFN];
    int64_t R = x.rows;
    bool post = b->cfg.post_norm;
    nb_view y1 = rows_of(b->y1, R), a2 = rows_of(b->a2, R), y = rows_of(b->y, R);
    b->x = x;
    b->in_qkv = enter(b, NB_Q, post ? NULL : first, rows_of(b->a1, R), x);
    attend(b, p, b->in_qkv);
    project(b, p, NB_O, y1, enter_o(b));
    op->add_forward(b->be, y1, y1, x);
    if (post) {
        nb_view n1 = rows_of(b->n1, R), y2 = rows_of(b->y2, R);
        op->norm_forward(b->be, n1, y1, first);
        b->in_up = enter(b, NB_UP, NULL, a2, n1);
        feed(b, p, y2, n1, b->in_up);
        op->norm_forward(b->be, y, y2, second);
    } else {
        b->in_up = enter(b, NB_UP, second, a2, y1);
        feed(b, p, y, y1, b->in_up);
    }
    return y;
}

/* ---- backward ----------------------------------------------------------------------------- */

/* dx = Qa*(dx; x), the gradient through an activation quantizer. */
static void unquantize(const nb_block_train *b, const nb_format *f, nb_view dx, nb_view x)
{
    if (nb_format_is_quantized(f)) b->be->ops->quant_backward(b->be, dx, dx, x, f);
}

/* Gradients of weight and bias of out = x w^T + b. */
static void show_weight(nb_block_train *b, const nb_train_params *p, nb_role role, nb_view dy,
                        nb_view x, const nb_train_grads *g)
{
    const nb_ops *op = b->be->ops;
    nb_view w = p->w[role], dw = nb_view_of(b->dw.buf, w.rows, w.cols);
    dw.off = b->dw.off;
    op->product(b->be, dw, dy, true, x, false, false);
    g->weight(g->user, role, dw);
    if (g->bias[role].buf) op->col_sum(b->be, g->bias[role], dy, (nb_view){0}, false);
}

/* dx (+)= dy w */
static void unproject(const nb_block_train *b, const nb_train_params *p, nb_role role, nb_view dx,
                      nb_view dy, bool add)
{
    b->be->ops->product(b->be, dx, dy, false, p->w[role], false, add);
}

/* da [R, C] = gradient of the quantized input of the FFN, from dy of its output. */
static void unfeed(nb_block_train *b, const nb_train_params *p, nb_view da, nb_view dy,
                   const nb_train_grads *g)
{
    const nb_ops *op = b->be->ops;
    int64_t R = dy.rows;
    nb_view up = rows_of(b->up, R), dup = rows_of(b->dup, R);
    show_weight(b, p, NB_DOWN, dy, b->in_down, g);
    unproject(b, p, NB_DOWN, dup, dy, false);
    unquantize(b, &b->act[NB_DOWN], dup, rows_of(b->f, R));
    if (b->rotation.down) op->hadamard_forward(b->be, dup, b->rotation.down);
    if (b->cfg.family->linear[NB_GATE]) {
        nb_view dgate = rows_of(b->dgate, R);
        op->glu_backward(b->be, dgate, dup, dup, rows_of(b->gate, R), up, b->cfg.act);
        show_weight(b, p, NB_GATE, dgate, b->in_up, g);
        unproject(b, p, NB_GATE, da, dgate, false);
        unproject(b, p, NB_UP, da, dup, true);
    } else {
        op->act_backward(b->be, dup, dup, up, b->cfg.act);
        unproject(b, p, NB_UP, da, dup, false);
    }
    show_weight(b, p, NB_UP, dup, b->in_up, g);
}

/* What a norm's weight and bias get, from its output y and the gradient of it. */
static void show_norm(const nb_block_train *b, nb_norm_role role, nb_view dy, nb_view y,
                      const nb_train_grads *g)
{
    const nb_ops *op = b->be->ops;
    if (g->norm_dot[role].buf) op->col_sum(b->be, g->norm_dot[role], dy, y, false);
    if (g->norm_bias[role].buf) {
        op->col_sum(b->be, g->norm_bias[role], dy, (nb_view){0}, false);
    }
}

/* da, of the quantized output of a norm over x, through the quantizer of the linear behind it; the
 * norm is made once more where somebody looks at it. */
static void leave_norm(const nb_block_train *b, const nb_train_params *p, nb_norm_role role,
                       nb_role behind, nb_view da, nb_view x, const nb_train_grads *g)
{
    nb_view a = nb_view_cols(rows_of(b->wide, x.rows), 0, x.cols);
    bool asked = nb_format_is_quantized(&b->act[behind]) || g->norm_dot[role].buf;
    if (asked) b->be->ops->norm_forward(b->be, a, x, &p->norm[role]);
    unquantize(b, &b->act[behind], da, a);
    show_norm(b, role, da, a, g);
}

/* In place through a norm over x. */
static void unnorm(const nb_block_train *b, const nb_train_params *p, nb_norm_role role, nb_view d,
                   nb_view x)
{
    b->be->ops->norm_backward(b->be, d, d, x, &p->norm[role], false);
}

/* dx = gradient of x, given that of what enter_heads made of it; scratch [R, as x]. */
static void leave_heads(const nb_block_train *b, nb_role role, nb_view dx, nb_view scratch,
                        nb_view x, int n_heads)
{
    const nb_format *f = &b->head[role];
    if (nb_format_is_quantized(f)) {
        nb_view turn = turn_heads(b, role, rows_of(scratch, x.rows), x);
        unquantize(b, f, nb_view_split(dx, n_heads), nb_view_split(turn, n_heads));
    }
    if (turned(b, role)) b->be->ops->hadamard_forward(b->be, dx, turned(b, role));
}

/* datt -> dq, dk, dv before transforms and quantizers. */
static void unattend(nb_block_train *b, nb_view datt)
{
    const nb_ops *op = b->be->ops;
    int64_t R = datt.rows, T = b->seqlen;
    int H = b->cfg.n_heads, K = b->cfg.n_kv_heads;
    nb_view q = rows_of(b->q, R), k = rows_of(b->k, R), v = rows_of(b->v, R);
    for (int64_t t = 0; t < R; t += T) {
        op->attention_backward(b->be, nb_view_rows(b->dq, t, T), nb_view_rows(b->dk, t, T),
                               nb_view_rows(b->dv, t, T), nb_view_rows(datt, t, T),
                               nb_view_rows(b->att, t, T), nb_view_rows(b->lse, t, T),
                               nb_view_rows(b->in_q, t, T), nb_view_rows(b->in_k, t, T),
                               nb_view_rows(b->in_v, t, T), &b->attention);
    }
    leave_heads(b, NB_Q, rows_of(b->dq, R), b->qq, q, H);
    leave_heads(b, NB_K, rows_of(b->dk, R), b->qk, k, K);
    leave_heads(b, NB_V, rows_of(b->dv, R), b->qv, v, K);
}

/* dy -> gradient of what the linear gives, through rotation and norm over heads; weights. */
static void unmake_heads(nb_block_train *b, const nb_train_params *p, nb_role role, nb_view raw,
                         nb_view y, nb_view dy, int n_heads, const nb_train_grads *g)
{
    nb_norm_role norm = role == NB_Q ? NB_NORM_Q : NB_NORM_K;
    nb_view heads = nb_view_split(dy, n_heads);
    bool has_norm = role != NB_V && p->has_norm[norm];
    if (g->dot[role].buf) b->be->ops->col_sum(b->be, g->dot[role], dy, y, false);
    if (has_norm) show_norm(b, norm, heads, nb_view_split(y, n_heads), g);
    if (role != NB_V) rotate(b, dy, n_heads, true);
    if (has_norm) unnorm(b, p, norm, heads, nb_view_split(rows_of(raw, dy.rows), n_heads));
    show_weight(b, p, role, dy, b->in_qkv, g);
}

/* dy of y1 = x + o(attention(a)) down to the norm before it. */
static void unattend_block(nb_block_train *b, const nb_train_params *p, nb_view dy,
                           const nb_train_grads *g)
{
    int64_t R = dy.rows;
    int H = b->cfg.n_heads, K = b->cfg.n_kv_heads;
    nb_view datt = rows_of(b->datt, R), da = rows_of(b->da, R);
    nb_view dq = rows_of(b->dq, R), dk = rows_of(b->dk, R), dv = rows_of(b->dv, R);
    show_weight(b, p, NB_O, dy, enter_o(b), g);
    unproject(b, p, NB_O, datt, dy, false);
    unquantize(b, &b->act[NB_O], datt, rows_of(b->att, R));
    unattend(b, datt);
    unmake_heads(b, p, NB_Q, b->raw_q, rows_of(b->q, R), dq, H, g);
    unmake_heads(b, p, NB_K, b->raw_k, rows_of(b->k, R), dk, K, g);
    unmake_heads(b, p, NB_V, (nb_view){0}, rows_of(b->v, R), dv, K, g);
    bool wanted = g->norm_dot[NB_NORM_ATTN].buf || g->norm_bias[NB_NORM_ATTN].buf;
    if (b->cfg.post_norm || !wanted) return;
    unproject(b, p, NB_Q, da, dq, false);
    unproject(b, p, NB_K, da, dk, true);
    unproject(b, p, NB_V, da, dv, true);
    leave_norm(b, p, NB_NORM_ATTN, NB_Q, da, b->x, g);
}

void nb_block_train_backward(nb_block_train *b, const nb_train_params *p, nb_view dy,
                             const nb_train_grads *g)
{
    const nb_ops *op = b->be->ops;
    int64_t R = dy.rows;
    nb_view da = rows_of(b->da, R), y1 = rows_of(b->y1, R);
    if (b->cfg.post_norm) {
        unnorm(b, p, NB_NORM_FFN, dy, rows_of(b->y2, R));
        unfeed(b, p, da, dy, g);
        unquantize(b, &b->act[NB_UP], da, rows_of(b->n1, R));
        op->add_forward(b->be, dy, dy, da);
        unnorm(b, p, NB_NORM_ATTN, dy, y1);
    } else {
        unfeed(b, p, da, dy, g);
        leave_norm(b, p, NB_NORM_FFN, NB_UP, da, y1, g);
        op->norm_backward(b->be, dy, da, y1, &p->norm[NB_NORM_FFN], true);
    }
    unattend_block(b, p, dy, g);
}
