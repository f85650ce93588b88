/* Attention by chunks of queries, each over the keys that it can see, with its scores in memory:
 * one batch of products for all heads. In bf16 operands and softmax weights are rounded. */
#include "op/cuda/block_cuda.h"

enum { CHUNK = 1024, LINE = 8 /* rows of scores begin at a multiple of */ };

/* What enters products: fp32, or bf16 in that mode. */
typedef struct operand {
    const void *p; /* NULL: fault */
    int64_t ld;
} operand;

/* One call and the chunk at hand. */
typedef struct attention {
    nb_backend *be;
    nb_attention a;
    bool half;    /* bf16 */
    int64_t rows; /* queries of the call */
    operand q, k, v;
    int64_t t0, T;      /* queries [t0, t0 + T) */
    int64_t s0, S;      /* keys [s0, s0 + S) */
    int64_t ld;         /* of scores, >= S */
    float *p;           /* [H, T, ld] scores, then softmax weights */
    __nv_bfloat16 *p16; /* the weights of bf16 products, or NULL */
} attention;

static operand from_row(const attention *j, operand x, int64_t r)
{
    x.p = (const char *)x.p + r * x.ld * (int64_t)(j->half ? sizeof(__nv_bfloat16) : sizeof(float));
    return x;
}

static operand as_operand(nb_backend *be, nb_cuda_slot slot, nb_view x, bool half)
{
    operand o = {nb_cuda_row(x, 0), x.stride};
    if (!half) return o;
    o.p = nb_cuda_to_bf16(be, slot, mat_of(x), x.rows, x.cols);
    o.ld = x.cols;
    return o;
}

/* Scores of the largest chunk. */
static int64_t most_scores(const attention *j)
{
    int64_t T = j->rows < CHUNK ? j->rows : CHUNK;
    return j->a.n_heads * T * (j->a.pos0 + j->rows + LINE);
}

static bool begin(attention *j, nb_backend *be, nb_view q, nb_view k, nb_view v,
                  const nb_attention *a, bool half)
{
    int64_t S = a->pos0 + q.rows;
    j->be = be;
    j->a = *a;
    j->half = half;
    j->rows = q.rows;
    j->q = as_operand(be, NB_CUDA_Q, q, half);
    j->k = as_operand(be, NB_CUDA_K, nb_view_rows(k, 0, S), half);
    j->v = as_operand(be, NB_CUDA_V, nb_view_rows(v, 0, S), half);
    size_t n = (size_t)most_scores(j);
    j->p = (float *)nb_cuda_scratch(be, NB_CUDA_SCORES, n * sizeof *j->p);
    if (half) {
        j->p16 = (__nv_bfloat16 *)nb_cuda_scratch(be, NB_CUDA_WEIGHTS, n * sizeof *j->p16);
    }
    return j->q.p && j->k.p && j->v.p && j->p && (!half || j->p16);
}

/* The chunk from query t0 on; false: there is none. */
static bool take_chunk(attention *j, int64_t t0)
{
    if (t0 >= j->rows) return false;
    int64_t first = j->a.pos0 + t0 + 1 - j->a.window;
    j->t0 = t0;
    j->T = j->rows - t0 < CHUNK ? j->rows - t0 : CHUNK;
    j->s0 = j->a.window > 0 && first > 0 ? first : 0;
    j->S = j->a.pos0 + t0 + j->T - j->s0;
    j->ld = (j->S + LINE - 1) / LINE * LINE;
    return true;
}

static nb_cuda_batch by_head(const attention *j, int64_t a, int64_t b, int64_t c, bool shared)
{
    nb_cuda_batch s = {j->a.n_heads, a, b, shared ? j->a.n_heads / j->a.n_kv_heads : 1, c};
    return s;
}

/* scores [H, T, S] = alpha x y^T by heads: x [T, H*D], y [S, K*D]. */
static void scores(const attention *j, float *out, operand x, operand y, float alpha)
{
    int64_t D = j->a.head_dim;
    nb_cuda_gemm g = {};
    g.m = j->T;
    g.n = j->S;
    g.k = D;
    g.a = x.p;
    g.lda = x.ld;
    g.b = y.p;
    g.ldb = y.ld;
    g.b_rows = true;
    g.c = out;
    g.ldc = j->ld;
    g.alpha = alpha;
    g.bf16 = j->half;
    nb_cuda_batch s = by_head(j, D, D, j->T * j->ld, true);
    nb_cuda_multiply_batch(j->be, &g, &s);
}

/* out [T, H*D] = weights [H, T, S] y [S, K*D] by heads (+ out). */
static void weighted(const attention *j, mat out, const void *weights, operand y, bool add)
{
    int64_t D = j->a.head_dim;
    nb_cuda_gemm g = {};
    g.m = j->T;
    g.n = D;
    g.k = j->S;
    g.a = weights;
    g.lda = j->ld;
    g.b = y.p;
    g.ldb = y.ld;
    g.c = out.p;
    g.ldc = out.ld;
    g.alpha = 1;
    g.beta = add;
    g.bf16 = j->half;
    nb_cuda_batch s = by_head(j, j->T * j->ld, D, D, true);
    nb_cuda_multiply_batch(j->be, &g, &s);
}

/* out [S, K*D] += weights^T x, x [T, H*D], heads of a group one after the other. */
static void gathered(const attention *j, mat out, const void *weights, operand x)
{
    int64_t D = j->a.head_dim, S = j->S, group = j->a.n_heads / j->a.n_kv_heads;
    size_t bytes = (size_t)(j->a.n_heads * S * D) * sizeof(float);
    float *part = (float *)nb_cuda_scratch(j->be, NB_CUDA_HEADS, bytes);
    if (!part) return;
    nb_cuda_gemm g = {};
    g.m = S;
    g.n = D;
    g.k = j->T;
    g.a = weights;
    g.lda = j->ld;
    g.a_cols = true;
    g.b = x.p;
    g.ldb = x.ld;
    g.c = part;
    g.ldc = D;
    g.alpha = 1;
    g.bf16 = j->half;
    nb_cuda_batch s = by_head(j, j->T * j->ld, D, S * D, false);
    nb_cuda_multiply_batch(j->be, &g, &s);
    nb_each(j->be, S, j->a.n_kv_heads * D, [=] __device__(int64_t r, int64_t c) {
        const float *from = part + (c / D * group * S + r) * D + c % D;
        float sum = out.at(r, c);
        for (int64_t i = 0; i < group; i++) sum += from[i * S * D];
        out.at(r, c) = sum;
    });
}

/* Which keys of the chunk query t of it sees. */
static __device__ void sight(const attention &j, int64_t t, int64_t *begin, int64_t *end)
{
    int64_t last = j.a.pos0 + j.t0 + t + 1;
    *begin = (j.a.window > 0 && last > j.a.window ? last - j.a.window : 0) - j.s0;
    *end = last - j.s0;
}

/* Scores to softmax weights, 0 where nothing is seen; lse.p NULL: nobody asks. */
static void softmax(const attention *chunk, mat lse)
{
    attention j = *chunk;
    nb_rows(j.be, j.a.n_heads * j.T, [=] __device__(int64_t row) {
        int64_t h = row / j.T, t = row % j.T, begin, end;
        float *s = j.p + row * j.ld, max = -INFINITY, sum = 0;
        sight(j, t, &begin, &end);
        for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) max = fmaxf(max, s[i]);
        max = nb_reduce(max, nb_most());
        for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
            s[i] = expf(s[i] - max);
            sum += s[i];
        }
        sum = nb_reduce(sum, nb_add());
        for (int64_t i = threadIdx.x; i < j.S; i += blockDim.x) {
            float w = i >= begin && i < end ? s[i] / sum : 0;
            if (j.half) {
                j.p16[row * j.ld + i] = __float2bfloat16_rn(w);
            } else {
                s[i] = w;
            }
        }
        if (lse.p && threadIdx.x == 0) lse.at(j.t0 + t, h) = max + logf(sum);
    });
}

/* Softmax weights as an operand. */
static const void *weights(const attention *j) { return j->half ? (void *)j->p16 : (void *)j->p; }

static mat rows_of(nb_view v, int64_t r) { return mat_of(nb_view_rows(v, r, 1)); }

static void forward(nb_backend *be, nb_view out, mat lse, nb_view q, nb_view k, nb_view v,
                    const nb_attention *a, bool half)
{
    attention j = {};
    if (q.rows == 0 || !begin(&j, be, q, k, v, a, half)) return;
    for (int64_t t = 0; take_chunk(&j, t); t += CHUNK) {
        scores(&j, j.p, from_row(&j, j.q, t), from_row(&j, j.k, j.s0), a->scale);
        softmax(&j, lse);
        weighted(&j, rows_of(out, t), weights(&j), from_row(&j, j.v, j.s0), false);
    }
}

void nb_cuda_attention_forward(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                               const nb_attention *a)
{
    mat none = {};
    forward(be, out, none, q, k, v, a, be->compute == NB_COMPUTE_BF16);
}

/* p: weights that meet records, through their format, 0 elsewhere; late: the others. NULL: there
 * are none. */
static void part_weights(const attention *chunk, const nb_cuda_records *r, float *late)
{
    attention j = *chunk;
    blocks b = {};
    bool quantize = nb_cuda_describe_blocks(j.be, &b, r->p, NONFINITE_STAYS);
    int64_t block = r->block, length = r->length, unit = quantize ? b.group : 1;
    if (!quantize && !late) return;
    each_record(j.be, &b, j.a.n_heads * j.T, [=] __device__(const blocks &f, int64_t row) {
        float *p = j.p + row * j.ld;
        int64_t pos = j.a.pos0 + j.t0 + row % j.T;
        nb_kv_sight m = nb_kv_sight_at(pos, j.a.window, block, length > 0 ? length : pos, unit);
        auto load = [=](int64_t, int64_t c) {
            int64_t i = m.from + c - j.s0;
            return i >= 0 && i < j.S ? p[i] : 0;
        };
        auto store = [=](int64_t, int64_t c, float y) {
            int64_t i = m.from + c - j.s0;
            if (i >= 0 && i < j.S) p[i] = y;
        };
        if (quantize && m.to > m.from) round_record(f, 1, m.to - m.from, load, store);
        for (int64_t i = threadIdx.x; late && i < j.S; i += blockDim.x) {
            bool is_late = j.s0 + i >= m.split;
            late[row * j.ld + i] = is_late ? p[i] : 0;
            if (is_late) p[i] = 0;
        }
    });
}

void nb_cuda_attention_records(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                               const nb_cuda_records *r, const nb_attention *a)
{
    attention j = {};
    mat none = {};
    if (q.rows == 0 || !begin(&j, be, q, k, v, a, false)) return;
    size_t bytes = (size_t)most_scores(&j) * sizeof(float);
    float *late = NULL;
    if (r->block > 0) {
        late = (float *)nb_cuda_scratch(be, NB_CUDA_SCORES2, bytes);
        if (!late) return;
    }
    for (int64_t t = 0; take_chunk(&j, t); t += CHUNK) {
        scores(&j, j.p, from_row(&j, j.q, t), from_row(&j, j.k, j.s0), a->scale);
        softmax(&j, none);
        part_weights(&j, r, late);
        weighted(&j, rows_of(out, t), j.p, from_row(&j, j.v, j.s0), false);
        if (!late) continue;
        operand recent = {nb_cuda_row(r->recent, 0), r->recent.stride};
        weighted(&j, rows_of(out, t), late, from_row(&j, recent, j.s0), true);
    }
}

void nb_cuda_attention_train(nb_backend *be, nb_view out, nb_view lse, nb_view q, nb_view k,
                             nb_view v, const nb_attention *a)
{
    forward(be, out, mat_of(lse), q, k, v, a, be->compute == NB_COMPUTE_BF16);
}

/* own [T, H] = sum over a head's channels of dout times out. */
static void own_products(nb_backend *be, float *own, nb_view dout, nb_view out, int n_heads, int D)
{
    mat d = mat_of(dout), y = mat_of(out);
    nb_each(be, out.rows, n_heads, [=] __device__(int64_t t, int64_t h) {
        float sum = 0;
        for (int c = 0; c < D; c++) sum += d.at(t, h * D + c) * y.at(t, h * D + c);
        own[t * n_heads + h] = sum;
    });
}

/* p: scores to weights. ds: gradients of the weights to those of the scores; ds16 as p16. */
static void score_gradients(const attention *chunk, float *ds, __nv_bfloat16 *ds16, mat lse,
                            const float *own)
{
    attention j = *chunk;
    int H = j.a.n_heads;
    nb_rows(j.be, H * j.T, [=] __device__(int64_t row) {
        int64_t h = row / j.T, t = row % j.T, begin, end;
        float sum = lse.at(j.t0 + t, h), mean = own[(j.t0 + t) * H + h];
        sight(j, t, &begin, &end);
        for (int64_t i = threadIdx.x; i < j.S; i += blockDim.x) {
            int64_t at = row * j.ld + i;
            bool seen = i >= begin && i < end;
            float w = seen ? expf(j.p[at] - sum) : 0;
            float d = seen ? w * (ds[at] - mean) * j.a.scale : 0;
            if (j.half) {
                j.p16[at] = __float2bfloat16_rn(w);
                ds16[at] = __float2bfloat16_rn(d);
            } else {
                j.p[at] = w;
                ds[at] = d;
            }
        }
    });
}

static void clear(nb_backend *be, nb_view v)
{
    cudaError_t e =
        cudaMemset2DAsync(nb_cuda_row(v, 0), (size_t)v.stride * sizeof(float), 0,
                          (size_t)v.cols * sizeof(float), (size_t)v.rows, nb_cuda_of(be)->stream);
    nb_cuda_ok(be, e, "attention");
}

void nb_cuda_attention_backward(nb_backend *be, nb_view dq, nb_view dk, nb_view dv, nb_view dout,
                                nb_view out, nb_view lse, nb_view q, nb_view k, nb_view v,
                                const nb_attention *a)
{
    attention j = {};
    bool half = be->compute == NB_COMPUTE_BF16;
    if (q.rows == 0 || !begin(&j, be, q, k, v, a, half)) return;
    size_t n = (size_t)most_scores(&j), heads = (size_t)(q.rows * a->n_heads);
    float *ds = (float *)nb_cuda_scratch(be, NB_CUDA_SCORES2, n * sizeof *ds);
    float *own = (float *)nb_cuda_scratch(be, NB_CUDA_OWN, heads * sizeof *own);
    __nv_bfloat16 *ds16 = NULL;
    if (half) ds16 = (__nv_bfloat16 *)nb_cuda_scratch(be, NB_CUDA_WEIGHTS2, n * sizeof *ds16);
    operand d = as_operand(be, NB_CUDA_DOUT, dout, half);
    if (!ds || !own || !d.p || (half && !ds16)) return;
    const void *slopes = half ? (void *)ds16 : (void *)ds;
    own_products(be, own, dout, out, a->n_heads, a->head_dim);
    clear(be, dk);
    clear(be, dv);
    for (int64_t t = 0; take_chunk(&j, t); t += CHUNK) {
        operand y = from_row(&j, d, t), keys = from_row(&j, j.k, j.s0);
        scores(&j, j.p, from_row(&j, j.q, t), keys, a->scale);
        scores(&j, ds, y, from_row(&j, j.v, j.s0), 1);
        score_gradients(&j, ds, ds16, mat_of(lse), own);
        weighted(&j, rows_of(dq, t), slopes, keys, false);
        gathered(&j, rows_of(dk, j.s0), slopes, from_row(&j, j.q, t));
        gathered(&j, rows_of(dv, j.s0), weights(&j), y);
    }
}
