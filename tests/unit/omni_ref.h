/* The quantized block once more, in plain double loops over the formulas of OmniQuant, for
 * derivatives by differences (specification, section 7.6): with zero points, saturation masks and
 * rounding residues frozen at the base point, every quantizer is the smooth function
 *
 *   x^ = inside ? x + w h : k h,   w = rint(x/h) - x/h, k = q - z,   h = (gamma max - beta min) / Q
 *
 * whose exact gradient is the straight-through gradient. */
#ifndef NB_TESTS_OMNI_REF_H
#define NB_TESTS_OMNI_REF_H

#include "format/half.h"
#include "omni_fixture.h"

enum { REF_MAX = 24, REF_WIDE = 512, REF_QUANTS = 60000, REF_GROUPS = 20000 };

typedef struct ref_theta {
    double scale[NB_LET_N_PAIRS][64], shift[NB_LET_N_PAIRS][64];
    double hi[NB_N_ROLES][REF_WIDE], lo[NB_N_ROLES][REF_WIDE]; /* logits */
} ref_theta;

/* What is frozen of every value and every group, in the order of use. */
typedef struct ref_frozen {
    bool recording;
    int value, group;
    struct {
        bool inside, is_max, is_min;
        double residue, code;
    } v[REF_QUANTS];
    struct {
        double h, smooth;
        int n_max, n_min;
    } g[REF_GROUPS];
} ref_frozen;

typedef struct ref_block {
    const omni_fixture *f;
    const ref_theta *t;
    ref_frozen *frozen;
    bool aug, unit;              /* unit: errors of a token over the mean square of its target */
    double own[OMNI_R][REF_MAX]; /* aug: second target */
} ref_block;

static double ref_sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double ref_step(const ref_frozen *z, int base, const double *x, int64_t n, double beta,
                       double gamma, int q, int g)
{
    double max = 0, min = 0;
    for (int64_t i = 0; i < n; i++) {
        if (z->v[base + i].is_max) max += x[i] / z->g[g].n_max;
        if (z->v[base + i].is_min) min += x[i] / z->g[g].n_min;
    }
    return (gamma * max - beta * min) / q;
}

/* Asymmetric integers, one group in place. fp16: the step is stored so. */
static void ref_quantize_group(ref_frozen *z, double *x, int64_t n, double beta, double gamma,
                               int bits, bool fp16)
{
    int q = (1 << bits) - 1, base = z->value, g = z->group++;
    assert_true(base + n <= REF_QUANTS && g < REF_GROUPS);
    z->value += (int)n;
    if (z->recording) {
        float max = 0, min = 0;
        for (int64_t i = 0; i < n; i++) {
            max = fmaxf(max, (float)x[i]);
            min = fminf(min, (float)x[i]);
        }
        z->g[g].n_max = z->g[g].n_min = 0;
        for (int64_t i = 0; i < n; i++) {
            z->g[g].n_max += z->v[base + i].is_max = max > 0 && (float)x[i] == max;
            z->g[g].n_min += z->v[base + i].is_min = min < 0 && (float)x[i] == min;
        }
        double h = z->g[g].smooth = ref_step(z, base, x, n, beta, gamma, q, g);
        if (h < 1e-5) h = 1e-5;
        z->g[g].h = fp16 ? (double)nb_f16_to_f32(nb_f16_from_f32((float)h)) : h;
        double zero = fmin(rint(-beta * (double)min / z->g[g].h), q);
        for (int64_t i = 0; i < n; i++) {
            double r = rint(x[i] / z->g[g].h);
            z->v[base + i].inside = r + zero >= 0 && r + zero <= q;
            z->v[base + i].residue = r - x[i] / z->g[g].h;
            z->v[base + i].code = fmin(fmax(r, -zero), q - zero);
        }
    }
    double h = z->g[g].h;
    if (z->g[g].smooth > 1e-5) h += ref_step(z, base, x, n, beta, gamma, q, g) - z->g[g].smooth;
    for (int64_t i = 0; i < n; i++) {
        x[i] = z->v[base + i].inside ? x[i] + z->v[base + i].residue * h : z->v[base + i].code * h;
    }
}

/* [rows, n] in place, a group for each row. */
static void ref_quantize_rows(ref_block *b, const nb_format *f, double *x, int rows, int stride,
                              int64_t n)
{
    if (!nb_format_is_quantized(f)) return;
    for (int t = 0; t < rows; t++) {
        ref_quantize_group(b->frozen, x + t * stride, n, 1, 1, f->bits, false);
    }
}

/* ---- parameters ---------------------------------------------------------------------------- */

static int ref_rho(const nb_config *c, int i)
{
    return i / c->head_dim / (c->n_heads / c->n_kv_heads) * c->head_dim + i % c->head_dim;
}

/* Scale between Q and K of channel i of the keys. */
static double ref_sa(const ref_block *b, int i)
{
    const nb_config *c = &b->f->cfg;
    int D = c->head_dim, half = D / 2, pair = c->rope_interleaved ? i % D / 2 : i % D % half;
    if (!nb_format_is_quantized(&b->f->attn.q)) return 1;
    if (c->family->qk_norm) return b->t->scale[NB_LET_QKT][pair];
    if (!c->family->rotary) return b->t->scale[NB_LET_QKT][i];
    return b->t->scale[NB_LET_QKT][i / D * half + pair];
}

/* Row i and column j of W' = W row col, and the bias that goes with it. */
static double ref_row(const ref_block *b, nb_role r, int i)
{
    const nb_config *c = &b->f->cfg;
    if (r == NB_V) return 1 / b->t->scale[NB_LET_OUT][i];
    if (c->family->qk_norm || r > NB_K) return 1;
    return r == NB_Q ? 1 / ref_sa(b, ref_rho(c, i)) : ref_sa(b, i);
}

static double ref_col(const ref_block *b, nb_role r, int j)
{
    if (r <= NB_V) return b->t->scale[NB_LET_QKV][j];
    if (r == NB_O) return b->t->scale[NB_LET_OUT][ref_rho(&b->f->cfg, j)];
    return r == NB_DOWN ? 1 : b->t->scale[NB_LET_FC1][j];
}

static double ref_shift(const ref_block *b, nb_role r, int j)
{
    if (r <= NB_V) return b->t->shift[NB_LET_QKV][j];
    if (r == NB_O) return b->t->shift[NB_LET_OUT][ref_rho(&b->f->cfg, j)];
    return r == NB_DOWN ? 0 : b->t->shift[NB_LET_FC1][j];
}

/* out [rows, n_out] = x [rows, n_in] W'^T + b', W' quantized. */
static void ref_linear(ref_block *b, nb_role r, const double *x, double *out)
{
    const nb_host_linear *l = &b->f->block.linear[r];
    const float *w = (const float *)l->w.plane[0];
    const nb_format *f = &b->f->weights[r];
    int n = (int)l->w.n_in, groups = (int)nb_format_groups(f, n);
    for (int i = 0; i < l->w.n_out; i++) {
        double row[REF_MAX * 2], bias = l->bias ? (double)l->bias[i] : 0;
        for (int j = 0; j < n; j++) {
            double orig = (double)w[i * n + j];
            bias += orig * ref_shift(b, r, j);
            row[j] = orig * ref_row(b, r, i) * ref_col(b, r, j);
        }
        if (r == NB_V) bias -= b->t->shift[NB_LET_OUT][i];
        bias *= ref_row(b, r, i);
        for (int g = 0; nb_format_is_quantized(f) && g < groups; g++) {
            ref_quantize_group(b->frozen, row + nb_group_begin(f, g), nb_group_length(f, n, g),
                               ref_sigmoid(b->t->lo[r][i * groups + g]),
                               ref_sigmoid(b->t->hi[r][i * groups + g]), f->bits, true);
        }
        for (int t = 0; t < OMNI_R; t++) {
            double sum = bias;
            for (int j = 0; j < n; j++) sum += x[t * n + j] * row[j];
            out[t * l->w.n_out + i] = sum;
        }
    }
}

/* A norm over n values, its weight and bias transformed by scale and shift (NULL: none). */
static void ref_norm(const ref_block *b, nb_norm_role r, const double *x, double *out, int n,
                     const double *scale, const double *shift)
{
    const nb_host_norm *h = &b->f->block.norm[r];
    bool layer = b->f->cfg.family->norm == NB_NORM_LAYER;
    double mean = 0, var = 0;
    for (int i = 0; layer && i < n; i++) mean += x[i] / n;
    for (int i = 0; i < n; i++) var += (x[i] - mean) * (x[i] - mean) / n;
    double inv = 1 / sqrt(var + (double)b->f->cfg.norm_eps);
    for (int i = 0; i < n; i++) {
        double y = (x[i] - mean) * inv * (double)h->weight[i] + (h->bias ? (double)h->bias[i] : 0);
        out[i] = (y - (shift ? shift[i] : 0)) / (scale ? scale[i] : 1);
    }
}

/* ---- block --------------------------------------------------------------------------------- */

static void ref_rotate(const ref_block *b, double *x, int t)
{
    const nb_config *c = &b->f->cfg;
    int half = c->head_dim / 2;
    for (int i = 0; i < half; i++) {
        float freq = (float)(1 / pow((double)c->rope_theta, 2.0 * i / c->head_dim));
        float angle = (float)t * freq;
        double co = (double)(float)cos((double)angle), si = (double)(float)sin((double)angle);
        int first = c->rope_interleaved ? 2 * i : i;
        int second = c->rope_interleaved ? 2 * i + 1 : i + half;
        double u = x[first], v = x[second];
        x[first] = u * co - v * si;
        x[second] = v * co + u * si;
    }
}

/* Norm over heads and rotation of Q or K [rows, heads*D], then the quantizer. */
static void ref_heads(ref_block *b, nb_norm_role norm, const nb_format *f, double *x, int heads)
{
    const nb_config *c = &b->f->cfg;
    int D = c->head_dim;
    double factor[REF_MAX];
    for (int d = 0; d < D; d++) {
        factor[d] = norm == NB_NORM_Q ? ref_sa(b, d) : 1 / ref_sa(b, d);
    }
    for (int t = 0; t < OMNI_R; t++) {
        for (int h = 0; h < heads; h++) {
            double *one = x + (t * heads + h) * D;
            if (norm < NB_N_NORMS && c->family->qk_norm)
                ref_norm(b, norm, one, one, D, factor, NULL);
            if (norm < NB_N_NORMS && c->family->rotary) ref_rotate(b, one, t % OMNI_T);
        }
    }
    ref_quantize_rows(b, f, x, OMNI_R * heads, D, D);
}

static void ref_attention(const ref_block *b, const double *q, const double *k, const double *v,
                          double *out)
{
    const nb_config *c = &b->f->cfg;
    int D = c->head_dim, H = c->n_heads, K = c->n_kv_heads;
    for (int t = 0; t < OMNI_R; t++) {
        int first = t / OMNI_T * OMNI_T;
        for (int h = 0; h < H; h++) {
            double p[OMNI_T], sum = 0;
            int kv = h / (H / K);
            for (int s = first; s <= t; s++) {
                double dot = 0;
                for (int d = 0; d < D; d++) {
                    dot += q[(t * H + h) * D + d] * k[(s * K + kv) * D + d];
                }
                sum += p[s - first] = exp(dot / sqrt((double)D));
            }
            for (int d = 0; d < D; d++) {
                double y = 0;
                for (int s = first; s <= t; s++) {
                    y += p[s - first] / sum * v[(s * K + kv) * D + d];
                }
                out[(t * H + h) * D + d] = y;
            }
        }
    }
}

/* Mean squared error of the block with parameters b->t; frozen where it is not recording. */
static double ref_loss(ref_block *b)
{
    static double x[OMNI_R * REF_MAX], a[OMNI_R * REF_MAX], q[OMNI_R * REF_MAX],
        k[OMNI_R * REF_MAX], v[OMNI_R * REF_MAX], att[OMNI_R * REF_MAX], y[OMNI_R * REF_MAX],
        gate[OMNI_R * REF_MAX * 2], up[OMNI_R * REF_MAX * 2], target[OMNI_R * REF_MAX];
    const nb_config *c = &b->f->cfg;
    const nb_format *acts = b->f->acts;
    int C = c->n_embd, F = c->n_ffn, H = c->n_heads, K = c->n_kv_heads, D = c->head_dim;
    nb_backend *be = b->f->be;
    b->frozen->value = b->frozen->group = 0;
    be->ops->download(be, omni_all(b->f->job.x_stored), x, NB_F64);
    be->ops->download(be, omni_all(b->f->job.target), target, NB_F64);
    for (int t = 0; t < OMNI_R; t++) {
        ref_norm(b, NB_NORM_ATTN, x + t * C, a + t * C, C, b->t->scale[NB_LET_QKV],
                 b->t->shift[NB_LET_QKV]);
    }
    ref_quantize_rows(b, &acts[NB_Q], a, OMNI_R, C, C);
    ref_linear(b, NB_Q, a, q);
    ref_linear(b, NB_K, a, k);
    ref_linear(b, NB_V, a, v);
    ref_heads(b, NB_NORM_Q, &b->f->attn.q, q, H);
    ref_heads(b, NB_NORM_K, &b->f->attn.k, k, K);
    ref_heads(b, NB_N_NORMS, &b->f->attn.v, v, K);
    ref_attention(b, q, k, v, att);
    ref_quantize_rows(b, &acts[NB_O], att, OMNI_R, H * D, H * D);
    ref_linear(b, NB_O, att, y);
    for (int i = 0; i < OMNI_R * C; i++) x[i] += y[i];
    for (int t = 0; t < OMNI_R; t++) {
        ref_norm(b, NB_NORM_FFN, x + t * C, a + t * C, C, b->t->scale[NB_LET_FC1],
                 b->t->shift[NB_LET_FC1]);
    }
    ref_quantize_rows(b, &acts[NB_UP], a, OMNI_R, C, C);
    ref_linear(b, NB_UP, a, up);
    if (c->family->linear[NB_GATE]) ref_linear(b, NB_GATE, a, gate);
    for (int i = 0; i < OMNI_R * F; i++) {
        bool gated = c->family->linear[NB_GATE] != NULL;
        up[i] = gated ? gate[i] * ref_sigmoid(gate[i]) * up[i] : fmax(up[i], 0);
    }
    ref_quantize_rows(b, &acts[NB_DOWN], up, OMNI_R, F, F);
    ref_linear(b, NB_DOWN, up, y);
    double loss = 0;
    for (int t = 0; t < OMNI_R; t++) {
        double d = 0, e = 0, size_d = 0, size_e = 0;
        for (int i = t * C; i < (t + 1) * C; i++) {
            double out = x[i] + y[i], own = b->own[t][i - t * C];
            d += (out - target[i]) * (out - target[i]);
            e += (out - own) * (out - own);
            size_d += target[i] * target[i] / C;
            size_e += own * own / C;
        }
        loss += d / (b->unit ? size_d : 1);
        if (b->aug) loss += e / (b->unit ? size_e : 1);
    }
    return loss / (OMNI_R * C);
}

#endif
