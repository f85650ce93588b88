/* LET on the host, in double: vectors of a few thousand elements, against the products that the
 * backend does. With R = diag(row), S = diag(col) and the original W,
 *
 *   W' = R W S     b' = R (b + W d - d_out)     norm: w' = w / s, c' = (c - d) / s
 *
 * for every linear; which pair is behind row, col, d (shift of its input) and d_out (of its output,
 * v alone) stands in the tables below. The gradients are those of OmniQuant's specification in the
 * form "columns of the consumers minus rows of the producers": a scale sees the sum of the
 * gradients of log col, minus (inverse) those of log row.
 *
 * Deviations from the reference: scales of Q and K are tied over the two channels of a rotary pair,
 * without which the transformation changes the function; grouped heads share theirs; scales of Q
 * and K exist only where one of them is quantized, else their gradient is zero and Adam would turn
 * rounding noise into a walk; with norms over Q and K the scale goes into these; shifts start at
 * the middle of the range over all samples, not at a running mean of middles. */
#include "method/let.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "model/family.h"

#define SCALE_MIN 1e-2 /* of the reference */
#define SCALE_MAX 1e4  /* ours */
#define START_MIN 1e-5

const char *const nb_let_pair_names[NB_LET_N_PAIRS] = {"qkv", "out", "fc1", "qkt"};

/* ---- where pairs act --------------------------------------------------------------------- */

static const struct {
    nb_let_pair in, out;
    bool inverse;
} linear_pairs[NB_N_ROLES] = {
    [NB_Q] = {NB_LET_QKV, NB_LET_QKT, true},       [NB_K] = {NB_LET_QKV, NB_LET_QKT, false},
    [NB_V] = {NB_LET_QKV, NB_LET_OUT, true},       [NB_O] = {NB_LET_OUT, NB_LET_NONE, false},
    [NB_GATE] = {NB_LET_FC1, NB_LET_NONE, false},  [NB_UP] = {NB_LET_FC1, NB_LET_NONE, false},
    [NB_DOWN] = {NB_LET_NONE, NB_LET_NONE, false},
};

static const struct {
    nb_let_pair pair;
    bool inverse;
} norm_pairs[NB_N_NORMS] = {
    [NB_NORM_ATTN] = {NB_LET_QKV, true},
    [NB_NORM_FFN] = {NB_LET_FC1, true},
    [NB_NORM_Q] = {NB_LET_QKT, true},
    [NB_NORM_K] = {NB_LET_QKT, false},
};

typedef enum axis { AXIS_PLAIN, AXIS_KV, AXIS_QUERY } axis;

/* Parameter of channel i of an axis: query heads are folded onto their KV head, rotary pairs onto
 * one. */
static int64_t parameter_of(const nb_config *c, nb_let_pair pair, axis a, int64_t i)
{
    int64_t D = c->head_dim, d = i % D, head = i / D;
    int64_t couple = c->rope_interleaved ? d / 2 : d % (D / 2);
    if (a == AXIS_PLAIN) return pair == NB_LET_QKT ? couple : i;
    if (a == AXIS_QUERY) head /= c->n_heads / c->n_kv_heads;
    bool tied = pair == NB_LET_QKT && c->family->rotary;
    return tied ? head * (D / 2) + couple : head * D + d;
}

static nb_status make_use(nb_let *let, const nb_block_job *job, nb_let_pair pair, bool inverse,
                          axis a, int64_t n, nb_let_use *out, nb_error *err)
{
    *out = (nb_let_use){.pair = NB_LET_NONE};
    if (pair == NB_LET_NONE || !let->scale[pair]) return NB_OK;
    int32_t *at = nb_arena_alloc(job->arena, (size_t)n, sizeof *at);
    if (!at) return nb_fail_memory(err, "scales of a block", (size_t)n * sizeof *at);
    for (int64_t i = 0; i < n; i++) at[i] = (int32_t)parameter_of(job->cfg, pair, a, i);
    *out = (nb_let_use){pair, inverse, at};
    return NB_OK;
}

static bool has_head_norms(const nb_host_block *b) { return b->norm[NB_NORM_Q].name != NULL; }

static nb_status make_uses(nb_let *let, const nb_block_job *job, nb_error *err)
{
    const nb_host_block *b = job->block;
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &b->linear[r];
        let->in[r].pair = let->out[r].pair = NB_LET_NONE;
        if (!l->name) continue;
        bool by_norm = linear_pairs[r].out == NB_LET_QKT && has_head_norms(b);
        NB_TRY(make_use(let, job, linear_pairs[r].in, false, r == NB_O ? AXIS_QUERY : AXIS_PLAIN,
                        l->w.n_in, &let->in[r], err));
        NB_TRY(make_use(let, job, by_norm ? NB_LET_NONE : linear_pairs[r].out,
                        linear_pairs[r].inverse, r == NB_Q ? AXIS_QUERY : AXIS_KV, l->w.n_out,
                        &let->out[r], err));
    }
    for (int r = 0; r < NB_N_NORMS; r++) {
        let->norm[r].pair = NB_LET_NONE;
        if (!b->norm[r].name) continue;
        NB_TRY(make_use(let, job, norm_pairs[r].pair, norm_pairs[r].inverse, AXIS_PLAIN,
                        b->norm[r].n, &let->norm[r], err));
    }
    return NB_OK;
}

/* ---- vectors ----------------------------------------------------------------------------- */

static double *alloc_vector(const nb_block_job *job, int64_t n, nb_status *st, nb_error *err)
{
    double *v = nb_arena_alloc(job->arena, (size_t)n, sizeof *v);
    if (!v && *st == NB_OK) *st = nb_fail_memory(err, "scales of a block", (size_t)n * sizeof *v);
    return v;
}

/* True if a shift of the pair is trained. */
static bool shifts(const nb_let *let, const nb_let_use *u)
{
    return u->pair != NB_LET_NONE && let->shift[u->pair];
}

static bool scales(const nb_let_use *u) { return u->pair != NB_LET_NONE; }

static void copy_floats(double *to, const float *from, int64_t n, double otherwise)
{
    for (int64_t i = 0; to && i < n; i++) to[i] = from ? (double)from[i] : otherwise;
}

static nb_status make_vectors(nb_let *let, const nb_block_job *job, nb_error *err)
{
    nb_status st = NB_OK;
    nb_let_vectors *now = &let->now;
    nb_let_gradient *grad = &let->gradient;
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &job->block->linear[r];
        int64_t n = l->w.n_out;
        if (!l->name) continue;
        bool shifted = shifts(let, &let->in[r]) || shifts(let, &let->out[r]);
        if (scales(&let->out[r])) now->row[r] = alloc_vector(job, n, &st, err);
        if (scales(&let->out[r])) grad->row[r] = alloc_vector(job, n, &st, err);
        if (scales(&let->in[r])) now->col[r] = alloc_vector(job, l->w.n_in, &st, err);
        if (scales(&let->in[r])) grad->col[r] = alloc_vector(job, l->w.n_in, &st, err);
        if (shifted || l->bias) now->bias[r] = alloc_vector(job, n, &st, err);
        if (shifted) grad->bias[r] = alloc_vector(job, n, &st, err);
        if (st == NB_OK) copy_floats(now->bias[r], l->bias, n, 0);
    }
    for (int r = 0; r < NB_N_NORMS; r++) {
        const nb_host_norm *h = &job->block->norm[r];
        const nb_let_use *u = &let->norm[r];
        if (!h->name) continue;
        bool bias = h->bias || shifts(let, u);
        if (scales(u) || h->weight) now->norm_weight[r] = alloc_vector(job, h->n, &st, err);
        if (scales(u)) grad->norm[r] = alloc_vector(job, h->n, &st, err);
        if (bias) now->norm_bias[r] = alloc_vector(job, h->n, &st, err);
        if (shifts(let, u)) grad->norm_bias[r] = alloc_vector(job, h->n, &st, err);
        if (st == NB_OK) copy_floats(now->norm_weight[r], h->weight, h->n, 1);
        if (st == NB_OK) copy_floats(now->norm_bias[r], h->bias, h->n, 0);
    }
    return st;
}

/* ---- start ------------------------------------------------------------------------------- */

/* The consumer whose columns, and whose input's range, the scales begin with. */
static const nb_role start_role[NB_LET_N_PAIRS] = {
    [NB_LET_QKV] = NB_Q, [NB_LET_OUT] = NB_O, [NB_LET_FC1] = NB_UP, [NB_LET_QKT] = NB_N_ROLES};

/* colmax [n_in] = largest |w| of each column. */
static void column_max(const nb_host_linear *l, double *colmax)
{
    const float *w = (const float *)l->w.plane[0];
    memset(colmax, 0, (size_t)l->w.n_in * sizeof *colmax);
    for (int64_t i = 0; i < l->w.n_out; i++, w += l->w.n_in) {
        for (int64_t j = 0; j < l->w.n_in; j++) colmax[j] = fmax(colmax[j], fabs((double)w[j]));
    }
}

/* Both statistics of heads that share a parameter by their maximum. */
static nb_status start_pair(nb_let *let, const nb_block_job *job, nb_let_pair pair, double alpha,
                            nb_error *err)
{
    nb_role role = start_role[pair];
    const nb_host_linear *l = &job->block->linear[role];
    const int32_t *at = let->in[role].at;
    double *act = let->scale[pair], *weight = let->grad, *shift = let->shift[pair];
    nb_input_stats stats;
    NB_TRY(job->stats(job->stats_user, role, &stats, err));
    column_max(l, let->wide);
    memset(act, 0, (size_t)let->width[pair] * sizeof *act);
    memset(weight, 0, (size_t)let->width[pair] * sizeof *weight);
    for (int64_t j = 0; j < l->w.n_in; j++) {
        double lo = (double)stats.min[j], hi = (double)stats.max[j];
        act[at[j]] = fmax(act[at[j]], fmax(fabs(lo), fabs(hi)));
        weight[at[j]] = fmax(weight[at[j]], let->wide[j]);
        if (shift) shift[at[j]] = (lo + hi) / 2;
    }
    for (int64_t i = 0; i < let->width[pair]; i++) {
        double s = pow(fmax(act[i], START_MIN), alpha) / pow(fmax(weight[i], START_MIN), 1 - alpha);
        act[i] = fmax(s, START_MIN);
    }
    return NB_OK;
}

static nb_status start(nb_let *let, const nb_block_job *job, const nb_let_options *opt,
                       nb_error *err)
{
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        if (!let->scale[p]) continue;
        if (start_role[p] < NB_N_ROLES) {
            NB_TRY(start_pair(let, job, (nb_let_pair)p, opt->alpha, err));
        } else {
            for (int64_t i = 0; i < let->width[p]; i++) let->scale[p][i] = 1;
        }
    }
    return NB_OK;
}

/* ---- life -------------------------------------------------------------------------------- */

static int64_t pair_width(const nb_block_job *job, nb_let_pair pair)
{
    const nb_config *c = job->cfg;
    int64_t kv = (int64_t)c->n_kv_heads * c->head_dim;
    if (pair == NB_LET_QKV || pair == NB_LET_FC1) return c->n_embd;
    if (pair == NB_LET_OUT || !c->family->rotary) return kv;
    return has_head_norms(job->block) ? c->head_dim / 2 : kv / 2;
}

static int64_t widest(const nb_host_block *b)
{
    int64_t n = 1;
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (b->linear[r].name) {
            n = nb_max_i64(n, nb_max_i64(b->linear[r].w.n_in, b->linear[r].w.n_out));
        }
    }
    return n;
}

/* param, and the pairs' parts of it. */
static nb_status make_parameters(nb_let *let, const nb_block_job *job, const nb_let_options *opt,
                                 nb_error *err)
{
    int64_t n = 0;
    bool shift[NB_LET_N_PAIRS] = {false};
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        if (!opt->pair[p]) continue;
        let->width[p] = pair_width(job, (nb_let_pair)p);
        shift[p] = opt->shift && p != NB_LET_QKT;
        n += let->width[p] * (shift[p] ? 2 : 1);
    }
    nb_status st = NB_OK;
    double *all = alloc_vector(job, 4 * n + widest(job->block), &st, err);
    NB_TRY(st);
    let->n = n;
    let->param = all;
    let->grad = all + n;
    let->m = all + 2 * n;
    let->v = all + 3 * n;
    let->wide = all + 4 * n;
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        if (!opt->pair[p]) continue;
        let->scale[p] = all;
        all += let->width[p];
        let->shift[p] = shift[p] ? all : NULL;
        all += shift[p] ? let->width[p] : 0;
    }
    return NB_OK;
}

nb_status nb_let_create(nb_let *let, const nb_block_job *job, const nb_let_options *opt,
                        nb_error *err)
{
    *let = (nb_let){.block = job->block, .threads = job->be->threads};
    NB_TRY(make_parameters(let, job, opt, err));
    NB_TRY(make_uses(let, job, err));
    NB_TRY(make_vectors(let, job, err));
    NB_TRY(start(let, job, opt, err));
    nb_let_forward(let);
    return NB_OK;
}

/* ---- forward ------------------------------------------------------------------------------ */

static void limit_scales(nb_let *let)
{
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        double *s = let->scale[p];
        for (int64_t i = 0; s && i < let->width[p]; i++) {
            double size = fmin(fmax(fabs(s[i]), SCALE_MIN), SCALE_MAX);
            s[i] = s[i] < 0 ? -size : size;
        }
    }
}

static void spread_scale(const nb_let *let, const nb_let_use *u, double *to, int64_t n)
{
    for (int64_t i = 0; to && i < n; i++) {
        double s = let->scale[u->pair][u->at[i]];
        to[i] = u->inverse ? 1 / s : s;
    }
}

/* bias += W d, d the shift of the input. */
static void add_shifted(const nb_let *let, nb_role role, double *bias)
{
    const nb_host_linear *l = &let->block->linear[role];
    const double *d = let->shift[let->in[role].pair];
    const int32_t *at = let->in[role].at;
#pragma omp parallel for num_threads(let->threads) schedule(static)
    for (int64_t i = 0; i < l->w.n_out; i++) {
        const float *w = (const float *)l->w.plane[0] + i * l->w.n_in;
        double sum = 0;
        for (int64_t j = 0; j < l->w.n_in; j++) sum += (double)w[j] * d[at[j]];
        bias[i] += sum;
    }
}

static void forward_linear(nb_let *let, nb_role role)
{
    const nb_host_linear *l = &let->block->linear[role];
    const nb_let_use *out = &let->out[role];
    double *row = let->now.row[role], *bias = let->now.bias[role];
    spread_scale(let, &let->in[role], let->now.col[role], l->w.n_in);
    spread_scale(let, out, row, l->w.n_out);
    copy_floats(bias, l->bias, l->w.n_out, 0);
    if (shifts(let, &let->in[role])) add_shifted(let, role, bias);
    for (int64_t i = 0; bias && i < l->w.n_out; i++) {
        if (shifts(let, out)) bias[i] -= let->shift[out->pair][out->at[i]];
        if (row) bias[i] *= row[i];
    }
}

static void forward_norm(nb_let *let, int role)
{
    const nb_let_use *u = &let->norm[role];
    const nb_host_norm *h = &let->block->norm[role];
    double *weight = let->now.norm_weight[role], *bias = let->now.norm_bias[role];
    if (!scales(u)) return;
    spread_scale(let, u, weight, h->n);
    copy_floats(bias, h->bias, h->n, 0);
    for (int64_t i = 0; i < h->n; i++) {
        if (shifts(let, u)) bias[i] -= let->shift[u->pair][u->at[i]];
        if (bias) bias[i] *= weight[i];
        if (h->weight) weight[i] *= (double)h->weight[i];
    }
}

void nb_let_forward(nb_let *let)
{
    limit_scales(let);
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (let->block->linear[r].name) forward_linear(let, (nb_role)r);
    }
    for (int r = 0; r < NB_N_NORMS; r++) forward_norm(let, r);
}

/* ---- backward ----------------------------------------------------------------------------- */

static double *grad_of(const nb_let *let, const double *param)
{
    return let->grad + (param - let->param);
}

/* Gradient of log s from that of log row or log col. */
static void gather_scale(nb_let *let, const nb_let_use *u, const double *g, int64_t n)
{
    if (!scales(u)) return;
    double *to = grad_of(let, let->scale[u->pair]);
    for (int64_t i = 0; i < n; i++) to[u->at[i]] += u->inverse ? -g[i] : g[i];
}

/* d_in += W^T g, g [n_out]; the sum over rows in their order, whatever the threads. */
static void gather_shifted(nb_let *let, nb_role role, const double *g)
{
    const nb_host_linear *l = &let->block->linear[role];
    const float *w = (const float *)l->w.plane[0];
    int64_t n = l->w.n_in;
    const int32_t *at = let->in[role].at;
    double *sum = let->wide, *to = grad_of(let, let->shift[let->in[role].pair]);
#pragma omp parallel for num_threads(let->threads) schedule(static)
    for (int64_t j0 = 0; j0 < n; j0 += 64) {
        int64_t j1 = nb_min_i64(j0 + 64, n);
        for (int64_t j = j0; j < j1; j++) sum[j] = 0;
        for (int64_t i = 0; i < l->w.n_out; i++) {
            for (int64_t j = j0; j < j1; j++) sum[j] += g[i] * (double)w[i * n + j];
        }
    }
    for (int64_t j = 0; j < n; j++) to[at[j]] += sum[j];
}

static void backward_linear(nb_let *let, nb_role role)
{
    const nb_host_linear *l = &let->block->linear[role];
    const nb_let_use *out = &let->out[role];
    double *bias = let->gradient.bias[role];
    gather_scale(let, &let->in[role], let->gradient.col[role], l->w.n_in);
    gather_scale(let, out, let->gradient.row[role], l->w.n_out);
    if (!bias) return;
    for (int64_t i = 0; i < l->w.n_out; i++) {
        if (let->now.row[role]) bias[i] *= let->now.row[role][i];
        if (shifts(let, out)) grad_of(let, let->shift[out->pair])[out->at[i]] -= bias[i];
    }
    if (shifts(let, &let->in[role])) gather_shifted(let, role, bias);
}

static void backward_norm(nb_let *let, int role)
{
    const nb_let_use *u = &let->norm[role];
    const nb_host_norm *h = &let->block->norm[role];
    if (!scales(u)) return;
    gather_scale(let, u, let->gradient.norm[role], h->n);
    if (!shifts(let, u)) return;
    double *to = grad_of(let, let->shift[u->pair]);
    for (int64_t i = 0; i < h->n; i++) {
        to[u->at[i]] -= let->gradient.norm_bias[role][i] / let->scale[u->pair][u->at[i]];
    }
}

void nb_let_backward(nb_let *let)
{
    memset(let->grad, 0, (size_t)let->n * sizeof *let->grad);
    for (int r = 0; r < NB_N_ROLES; r++) {
        if (let->block->linear[r].name) backward_linear(let, (nb_role)r);
    }
    for (int r = 0; r < NB_N_NORMS; r++) backward_norm(let, r);
    for (int p = 0; p < NB_LET_N_PAIRS; p++) {
        if (!let->scale[p]) continue;
        double *g = grad_of(let, let->scale[p]);
        for (int64_t i = 0; i < let->width[p]; i++) g[i] /= let->scale[p][i];
    }
}

void nb_let_update(nb_let *let, double rate, int64_t step)
{
    const double b1 = 0.9, b2 = 0.999, eps = 1e-8;
    double c1 = 1 - pow(b1, (double)step), c2 = 1 - pow(b2, (double)step);
    for (int64_t i = 0; i < let->n; i++) {
        double g = let->grad[i];
        let->m[i] = b1 * let->m[i] + (1 - b1) * g;
        let->v[i] = b2 * let->v[i] + (1 - b2) * g * g;
        let->param[i] -= rate * (let->m[i] / c1) / (sqrt(let->v[i] / c2) + eps);
    }
}

/* ---- fold --------------------------------------------------------------------------------- */

/* In the order of the fake quantization of training: (w row) col, each rounded to fp32. */
static void fold_weight(const nb_let *let, nb_block_job *job, nb_role role)
{
    const nb_host_linear *l = &job->block->linear[role];
    const double *row = let->now.row[role], *col = let->now.col[role];
    float *w = nb_block_weight(job, role);
#pragma omp parallel for num_threads(let->threads) schedule(static)
    for (int64_t i = 0; i < l->w.n_out; i++) {
        float r = row ? (float)row[i] : 1;
        for (int64_t j = 0; j < l->w.n_in; j++) {
            float x = w[i * l->w.n_in + j] * r;
            w[i * l->w.n_in + j] = x * (col ? (float)col[j] : 1);
        }
    }
}

static nb_status fold_vector(nb_block_job *job, const double *from, int64_t n, const float **to,
                             nb_error *err)
{
    if (!from) return NB_OK;
    float *v = nb_arena_alloc(job->arena, (size_t)n, sizeof *v);
    if (!v) return nb_fail_memory(err, "biases of a block", (size_t)n * sizeof *v);
    for (int64_t i = 0; i < n; i++) v[i] = (float)from[i];
    *to = v;
    return NB_OK;
}

nb_status nb_let_fold(nb_let *let, nb_block_job *job, nb_error *err)
{
    nb_let_forward(let); /* biases need the weights as they were */
    for (int r = 0; r < NB_N_ROLES; r++) {
        nb_host_linear *l = &job->block->linear[r];
        if (!l->name) continue;
        NB_TRY(fold_vector(job, let->now.bias[r], l->w.n_out, &l->bias, err));
        if (let->now.row[r] || let->now.col[r]) fold_weight(let, job, (nb_role)r);
    }
    for (int r = 0; r < NB_N_NORMS; r++) {
        nb_host_norm *h = &job->block->norm[r];
        if (!h->name) continue;
        NB_TRY(fold_vector(job, let->now.norm_weight[r], h->n, &h->weight, err));
        NB_TRY(fold_vector(job, let->now.norm_bias[r], h->n, &h->bias, err));
    }
    return NB_OK;
}
