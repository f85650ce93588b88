/* The training form of a block against the block that runs, and its gradients against central
 * differences in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "model/block_train.h"
#include "model/family.h"

enum { T = 5, WINDOWS = 2, R = T * WINDOWS, MAX_PARAMS = 24 };

typedef struct variant {
    const char *family;
    int embd, heads, kv_heads, head_dim, ffn, window;
    bool bias, post_norm, interleaved;
    nb_rotation rotation;
} variant;

static const variant variants[] = {
    {"llama", 12, 4, 2, 6, 10, 0, true, false, true, {0, 0, 0}},
    {"qwen3", 10, 4, 2, 6, 14, 0, false, false, true, {0, 0, 0}},
    {"llama", 12, 4, 2, 4, 20, 0, false, false, false, {0, 0, 0}},
    {"mistral", 8, 3, 1, 6, 12, 3, false, false, false, {0, 0, 0}},
    {"qwen2", 12, 4, 4, 4, 10, 0, true, false, false, {0, 0, 0}},
    {"qwen3", 10, 4, 2, 6, 14, 0, false, false, false, {0, 0, 0}},
    {"opt", 12, 3, 3, 4, 16, 0, true, false, false, {0, 0, 0}},
    {"opt", 12, 3, 3, 4, 16, 0, true, true, false, {0, 0, 0}},
    {"llama", 12, 4, 2, 4, 20, 0, false, false, false, {4, 4, 0}},
    {"qwen3", 10, 4, 2, 6, 14, 0, false, false, true, {2, 2, 0}},
    {"opt", 12, 3, 3, 4, 16, 0, true, false, false, {16, 4, 0}},
};

/* Host values of one vector or matrix, and where it lies on the device. */
typedef struct param {
    nb_view view;
    double v[400];
} param;

typedef struct fixture {
    nb_backend *be;
    nb_config cfg;
    nb_block_train *block;
    nb_train_params params;
    nb_train_grads grads;
    nb_view rope, x, target, dy;
    param w[NB_N_ROLES], bias[NB_N_ROLES], norm_w[NB_N_NORMS], norm_b[NB_N_NORMS];
    double dw[NB_N_ROLES][400];
    nb_buffer *buf[80];
    int n_bufs;
    nb_rng rng;
} fixture;

static nb_config make_config(const variant *v)
{
    const nb_family *f = nb_family_by_model_type(v->family);
    return (nb_config){.family = f,
                       .n_layers = 1,
                       .n_embd = v->embd,
                       .n_ffn = v->ffn,
                       .n_heads = v->heads,
                       .n_kv_heads = v->kv_heads,
                       .head_dim = v->head_dim,
                       .n_ctx = 32,
                       .norm_eps = 1e-5f,
                       .act = f->linear[NB_GATE] ? NB_ACT_SILU : NB_ACT_RELU,
                       .window = v->window,
                       .rope_interleaved = v->interleaved,
                       .rope_theta = 100,
                       .post_norm = v->post_norm,
                       .norm_affine = true};
}

static nb_view new_view(fixture *f, int64_t rows, int64_t cols)
{
    nb_buffer *b;
    assert_int_equal(f->be->ops->buffer_create(f->be, rows * cols, &b, NULL), NB_OK);
    f->buf[f->n_bufs++] = b;
    return nb_view_of(b, rows, cols);
}

static void put(fixture *f, const param *p) { f->be->ops->upload(f->be, p->view, p->v, NB_F64); }

static void new_param(fixture *f, param *p, int64_t rows, int64_t cols, double mean, double std)
{
    p->view = new_view(f, rows, cols);
    assert_true(rows * cols <= 400);
    for (int64_t i = 0; i < rows * cols; i++) p->v[i] = mean + std * nb_rng_normal(&f->rng);
    put(f, p);
}

static nb_view random_view(fixture *f, int64_t rows, int64_t cols)
{
    double v[R * 12];
    nb_view out = new_view(f, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) v[i] = nb_rng_normal(&f->rng);
    f->be->ops->upload(f->be, out, v, NB_F64);
    return out;
}

static void shape_of(const nb_config *c, int role, int64_t *n_out, int64_t *n_in)
{
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    const int64_t shapes[NB_N_ROLES][2] = {
        [NB_Q] = {q, c->n_embd},           [NB_K] = {kv, c->n_embd},
        [NB_V] = {kv, c->n_embd},          [NB_O] = {c->n_embd, q},
        [NB_GATE] = {c->n_ffn, c->n_embd}, [NB_UP] = {c->n_ffn, c->n_embd},
        [NB_DOWN] = {c->n_embd, c->n_ffn},
    };
    *n_out = shapes[role][0];
    *n_in = shapes[role][1];
}

static void keep_weight(void *user, nb_role role, nb_view dw)
{
    fixture *f = user;
    f->be->ops->download(f->be, dw, f->dw[role], NB_F64);
}

static void make_params(fixture *f, const variant *v)
{
    const nb_config *c = &f->cfg;
    for (int r = 0; r < NB_N_ROLES; r++) {
        int64_t n_out, n_in;
        if (!c->family->linear[r]) continue;
        shape_of(c, r, &n_out, &n_in);
        new_param(f, &f->w[r], n_out, n_in, 0, 1 / sqrt((double)n_in));
        f->params.w[r] = f->w[r].view;
        if (v->bias) new_param(f, &f->bias[r], 1, n_out, 0, 0.3);
        f->params.bias[r] = f->bias[r].view;
        f->grads.bias[r] = new_view(f, 1, n_out);
        if (r <= NB_V) f->grads.dot[r] = new_view(f, 1, n_out);
    }
    for (int r = 0; r < NB_N_NORMS; r++) {
        int64_t n = r <= NB_NORM_FFN ? c->n_embd : c->head_dim;
        if (r > NB_NORM_FFN && !c->family->qk_norm) continue;
        new_param(f, &f->norm_w[r], 1, n, 1, 0.2);
        if (c->family->norm == NB_NORM_LAYER) new_param(f, &f->norm_b[r], 1, n, 0, 0.2);
        f->params.has_norm[r] = true;
        f->params.norm[r] =
            (nb_norm){c->family->norm, c->norm_eps, f->norm_w[r].view.buf, f->norm_b[r].view.buf};
        f->grads.norm_dot[r] = new_view(f, 1, n);
        f->grads.norm_bias[r] = new_view(f, 1, n);
    }
}

static void begin(fixture *f, const variant *v)
{
    *f = (fixture){.cfg = make_config(v), .rng = {7}};
    nb_options opt;
    nb_options_default(&opt);
    opt.device = "ref64";
    assert_int_equal(nb_backend_create(&f->be, &opt, NULL), NB_OK);
    assert_int_equal(nb_rope_table(f->be, &f->cfg, T, &f->rope, NULL), NB_OK);
    nb_train_desc d = {
        .cfg = &f->cfg, .batch = WINDOWS, .seqlen = T, .rotation = v->rotation, .rope = f->rope};
    assert_int_equal(nb_block_train_create(f->be, &d, &f->block, NULL), NB_OK);
    make_params(f, v);
    f->x = random_view(f, R, f->cfg.n_embd);
    f->target = random_view(f, R, f->cfg.n_embd);
    f->dy = new_view(f, R, f->cfg.n_embd);
    f->grads.weight = keep_weight;
    f->grads.user = f;
}

static void end(fixture *f)
{
    for (int i = 0; i < f->n_bufs; i++) f->be->ops->buffer_free(f->be, f->buf[i]);
    f->be->ops->buffer_free(f->be, f->rope.buf);
    nb_block_train_free(f->block);
    nb_backend_free(f->be);
}

static double loss(fixture *f)
{
    nb_view y = nb_block_train_forward(f->block, &f->params, f->x);
    return f->be->ops->mse_backward(f->be, f->dy, y, f->target, false, 1, false) / 2;
}

/* Central difference of the loss by p->v[i], or by the logarithm of a factor before v[i] and
 * other->v[i] (other may be empty). */
static double difference(fixture *f, param *p, int64_t i, param *other, bool log_scale)
{
    const double h = 1e-5;
    double at[2], keep = p->v[i], keep_other = other ? other->v[i] : 0;
    for (int side = 0; side < 2; side++) {
        double s = side ? h : -h;
        p->v[i] = log_scale ? keep * (1 + s) : keep + s;
        put(f, p);
        if (other && other->view.buf) {
            other->v[i] = keep_other * (1 + s);
            put(f, other);
        }
        at[side] = loss(f);
    }
    p->v[i] = keep;
    put(f, p);
    if (other && other->view.buf) other->v[i] = keep_other, put(f, other);
    return (at[1] - at[0]) / (2 * h);
}

static void check(double got, double want)
{
    assert_true(fabs(got - want) <= 1e-6 * (1 + fabs(want)));
}

static void check_vector(fixture *f, nb_view grad, param *p, param *other, bool log_scale)
{
    double g[400];
    f->be->ops->download(f->be, grad, g, NB_F64);
    for (int64_t i = 0; i < grad.cols; i++) check(g[i], difference(f, p, i, other, log_scale));
}

/* The other channel of the rotary pair of channel i. */
static int64_t partner_of(const nb_config *c, int64_t i)
{
    int64_t half = c->head_dim / 2;
    if (c->rope_interleaved) return i % 2 ? i - 1 : i + 1;
    return i % c->head_dim < half ? i + half : i - half;
}

/* sum over a row of w of w dw, and b db: what the factor before an output row gets. */
static void check_dot(fixture *f, nb_role role)
{
    double dot[60], db[60];
    int64_t n_in = f->w[role].view.cols;
    f->be->ops->download(f->be, f->grads.dot[role], dot, NB_F64);
    f->be->ops->download(f->be, f->grads.bias[role], db, NB_F64);
    for (int64_t i = 0; i < f->w[role].view.rows; i++) {
        double sum = f->bias[role].view.buf ? f->bias[role].v[i] * db[i] : 0;
        for (int64_t j = 0; j < n_in; j++) {
            sum += f->w[role].v[i * n_in + j] * f->dw[role][i * n_in + j];
        }
        if (role != NB_V && f->cfg.family->rotary) { /* true for the sum over a rotary pair alone */
            int64_t other = partner_of(&f->cfg, i);
            double second = f->bias[role].view.buf ? f->bias[role].v[other] * db[other] : 0;
            for (int64_t j = 0; j < n_in; j++) {
                second += f->w[role].v[other * n_in + j] * f->dw[role][other * n_in + j];
            }
            check(dot[i] + dot[other], sum + second);
        } else {
            check(dot[i], sum);
        }
    }
}

/* A factor before a norm over heads: pairs alone, as above. */
static void check_head_norm(fixture *f, nb_norm_role role)
{
    double g[60];
    f->be->ops->download(f->be, f->grads.norm_dot[role], g, NB_F64);
    for (int64_t i = 0; i < f->cfg.head_dim; i++) {
        int64_t other = partner_of(&f->cfg, i);
        double want = difference(f, &f->norm_w[role], i, NULL, true) +
                      difference(f, &f->norm_w[role], other, NULL, true);
        check(g[i] + g[other], want);
    }
}

static void test_gradients(void **state)
{
    NB_UNUSED(state);
    for (size_t k = 0; k < NB_COUNT(variants); k++) {
        fixture f;
        begin(&f, &variants[k]);
        loss(&f);
        nb_block_train_backward(f.block, &f.params, f.dy, &f.grads);
        for (int r = 0; r < NB_N_ROLES; r++) {
            if (!f.params.w[r].buf) continue;
            for (int64_t i = 0; i < f.w[r].view.rows * f.w[r].view.cols; i++) {
                check(f.dw[r][i], difference(&f, &f.w[r], i, NULL, false));
            }
            if (variants[k].bias) check_vector(&f, f.grads.bias[r], &f.bias[r], NULL, false);
            if (r <= NB_V && !f.cfg.family->qk_norm) check_dot(&f, (nb_role)r);
        }
        for (int r = 0; r < NB_N_NORMS && !f.cfg.post_norm; r++) {
            if (!f.params.has_norm[r]) continue;
            if (r > NB_NORM_FFN) {
                check_head_norm(&f, (nb_norm_role)r);
                continue;
            }
            check_vector(&f, f.grads.norm_dot[r], &f.norm_w[r], &f.norm_b[r], true);
            if (f.norm_b[r].view.buf) {
                check_vector(&f, f.grads.norm_bias[r], &f.norm_b[r], NULL, false);
            }
        }
        end(&f);
    }
}

/* Every four rows of w [rows, cols] times H. */
static void turn_rows(double *w, int64_t rows, int64_t cols)
{
    static const double h[4][4] = {{1, 1, 1, 1}, {1, -1, 1, -1}, {1, 1, -1, -1}, {1, -1, -1, 1}};
    for (int64_t r = 0; r < rows; r += 4) {
        for (int64_t c = 0; c < cols; c++) {
            double x[4];
            for (int i = 0; i < 4; i++) x[i] = w[(r + i) * cols + c];
            for (int i = 0; i < 4; i++) {
                w[(r + i) * cols + c] = 0;
                for (int j = 0; j < 4; j++) w[(r + i) * cols + c] += h[i][j] * x[j] / 2;
            }
        }
    }
}

/* Through quantizers of queries and keys: the transform online, or folded into q and k. */
static void test_turned_heads(void **state)
{
    NB_UNUSED(state);
    static fixture f[2];
    nb_format format;
    double at[2];
    assert_int_equal(nb_format_parse(&format, "int3:token:asym", NULL), NB_OK);
    nb_attn_formats attn = {.q = format, .k = format};
    const variant v = {"opt", 12, 3, 3, 4, 16, 0, true, false, false, {0, 0, 0}};
    for (int i = 0; i < 2; i++) {
        begin(&f[i], &v);
        for (int r = NB_Q; i == 1 && r <= NB_K; r++) {
            turn_rows(f[i].w[r].v, 12, 12), put(&f[i], &f[i].w[r]);
            turn_rows(f[i].bias[r].v, 12, 1), put(&f[i], &f[i].bias[r]);
        }
        nb_train_desc d = {.cfg = &f[i].cfg,
                           .batch = WINDOWS,
                           .seqlen = T,
                           .attn = &attn,
                           .rotation = {.qk = i == 0 ? 4 : 0}};
        nb_block_train_free(f[i].block);
        assert_int_equal(nb_block_train_create(f[i].be, &d, &f[i].block, NULL), NB_OK);
        at[i] = loss(&f[i]);
        nb_block_train_backward(f[i].block, &f[i].params, f[i].dy, &f[i].grads);
    }
    check(at[0], at[1]);
    for (int r = NB_Q; r <= NB_K; r++) turn_rows(f[0].dw[r], 12, 12);
    for (int r = NB_Q; r <= NB_O; r++) {
        for (int i = 0; i < 144; i++) check(f[0].dw[r][i], f[1].dw[r][i]);
    }
    end(&f[0]);
    end(&f[1]);
}

/* ---- against the block that runs ------------------------------------------------------------ */

static nb_host_linear host_linear(const param *w, const param *b, float *to, float *to_bias,
                                  const nb_format *act)
{
    int64_t n = w->view.rows * w->view.cols;
    for (int64_t i = 0; i < n; i++) to[i] = (float)w->v[i];
    for (int64_t i = 0; i < w->view.rows; i++) to_bias[i] = (float)b->v[i];
    return (nb_host_linear){.name = "linear",
                            .w = {.format = nb_format_plain(NB_F32),
                                  .n_out = w->view.rows,
                                  .n_in = w->view.cols,
                                  .plane = {(const uint8_t *)to}},
                            .bias = b->view.buf ? to_bias : NULL,
                            .act = *act};
}

/* Values that are fp32: both blocks see the same. */
static void round_params(fixture *f)
{
    for (int r = 0; r < NB_N_ROLES; r++) {
        param *const both[] = {&f->w[r], &f->bias[r]};
        for (int k = 0; k < 2; k++) {
            for (int i = 0; i < 400; i++) both[k]->v[i] = (double)(float)both[k]->v[i];
            if (both[k]->view.buf) put(f, both[k]);
        }
    }
}

static void test_same_as_block(void **state)
{
    NB_UNUSED(state);
    static float w[NB_N_ROLES][400], bias[NB_N_ROLES][60], norm[NB_N_NORMS][2][60];
    nb_format act;
    assert_int_equal(nb_format_parse(&act, "int6:token:asym", NULL), NB_OK);
    nb_attn_formats attn = {.q = act, .k = act, .v = act};
    for (size_t k = 0; k < NB_COUNT(variants); k++) {
        fixture f;
        begin(&f, &variants[k]);
        round_params(&f);
        nb_format acts[NB_N_ROLES];
        nb_host_block host = {.attn = attn, .rotation = variants[k].rotation};
        for (int r = 0; r < NB_N_ROLES; r++) {
            acts[r] = act;
            if (f.params.w[r].buf)
                host.linear[r] = host_linear(&f.w[r], &f.bias[r], w[r], bias[r], &act);
        }
        for (int r = 0; r < NB_N_NORMS; r++) {
            if (!f.params.has_norm[r]) continue;
            int64_t n = f.norm_w[r].view.cols;
            for (int64_t i = 0; i < n; i++) {
                f.norm_w[r].v[i] = norm[r][0][i] = (float)f.norm_w[r].v[i];
                f.norm_b[r].v[i] = norm[r][1][i] = (float)f.norm_b[r].v[i];
            }
            put(&f, &f.norm_w[r]);
            if (f.norm_b[r].view.buf) put(&f, &f.norm_b[r]);
            host.norm[r] =
                (nb_host_norm){"norm", n, norm[r][0], f.norm_b[r].view.buf ? norm[r][1] : NULL};
        }
        nb_train_desc d = {.cfg = &f.cfg,
                           .batch = 1,
                           .seqlen = T,
                           .rope = f.rope,
                           .acts = acts,
                           .attn = &attn,
                           .rotation = variants[k].rotation};
        nb_block_train *train;
        nb_block *block;
        nb_workspace *ws;
        assert_int_equal(nb_block_train_create(f.be, &d, &train, NULL), NB_OK);
        assert_int_equal(nb_block_create(f.be, &f.cfg, &host, &block, NULL), NB_OK);
        assert_int_equal(nb_workspace_create(f.be, &f.cfg, T, &ws, NULL), NB_OK);
        nb_kv *kv;
        nb_kv_desc d_kv = nb_block_kv(block, T);
        assert_int_equal(f.be->ops->kv_create(f.be, &d_kv, &kv, NULL), NB_OK);
        nb_view x = nb_view_rows(f.x, 0, T), copy = new_view(&f, T, f.cfg.n_embd);
        f.be->ops->copy(f.be, copy, x);
        nb_view y = nb_block_train_forward(train, &f.params, x);
        nb_block_forward(block, ws, copy, kv, f.rope, 0);
        double a[T * 12], b[T * 12];
        f.be->ops->download(f.be, y, a, NB_F64);
        f.be->ops->download(f.be, copy, b, NB_F64);
        for (int64_t i = 0; i < T * f.cfg.n_embd; i++) check(a[i], b[i]);
        f.be->ops->kv_free(f.be, kv);
        nb_workspace_free(ws);
        nb_block_free(block);
        nb_block_train_free(train);
        end(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_turned_heads),
        cmocka_unit_test(test_same_as_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
