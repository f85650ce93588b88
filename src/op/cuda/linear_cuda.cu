/* Linears: weights are decoded once, by the host, and lie on the device as fp32 (and bf16 in that
 * mode). Products on packed codes are kernels of their own. */
#include <stdlib.h>
#include <string.h>

#include "op/cuda/backend_cuda.h"

/* ---- life ------------------------------------------------------------------------------ */

void nb_cuda_linear_free(nb_backend *be, nb_linear *l)
{
    if (!l) return;
    nb_cuda_free(be, l->w);
    nb_cuda_free(be, l->w16);
    nb_cuda_free(be, l->bias);
    nb_cuda_free(be, l->low_a);
    nb_cuda_free(be, l->low_b);
    free(l);
}

/* Device copy of host values. */
static nb_status upload_values(nb_backend *be, nb_linear *l, const float *v, int64_t n, float **out,
                               nb_error *err)
{
    size_t bytes = (size_t)n * sizeof *v;
    nb_status st = nb_cuda_alloc(be, bytes, "linear", (void **)out, err);
    if (st != NB_OK) return st;
    nb_buffer b = {*out, n};
    nb_cuda_upload(be, nb_view_of(&b, 1, n), v, NB_F32);
    l->n_bytes += bytes;
    return NB_OK;
}

static nb_status upload_matrix(nb_backend *be, nb_linear *l, const nb_matrix *m, float **out,
                               nb_error *err)
{
    int64_t n = m->n_out * m->n_in;
    float *v = (float *)malloc((size_t)n * sizeof *v + 1);
    if (!v) return be->host->fail(err, NB_ERESOURCE, "out of memory: linear");
    be->host->matrix_dequant(m, 0, m->n_out, v);
    nb_status st = upload_values(be, l, v, n, out, err);
    free(v);
    return st;
}

static nb_status fill(nb_backend *be, nb_linear *l, const nb_linear_desc *d, nb_error *err)
{
    nb_status st = upload_matrix(be, l, d->w, &l->w, err);
    if (st == NB_OK && d->bias) st = upload_values(be, l, d->bias, l->n_out, &l->bias, err);
    if (st == NB_OK && l->rank) st = upload_matrix(be, l, &d->lorc.a, &l->low_a, err);
    if (st == NB_OK && l->rank) st = upload_matrix(be, l, &d->lorc.b, &l->low_b, err);
    if (st != NB_OK || be->compute != NB_COMPUTE_BF16) return st;
    size_t n = (size_t)(l->n_out * l->n_in);
    st = nb_cuda_alloc(be, n * sizeof *l->w16, "linear", (void **)&l->w16, err);
    if (st != NB_OK) return st;
    __nv_bfloat16 *to = l->w16;
    const float *from = l->w;
    nb_each(be, 1, (int64_t)n,
            [=] __device__(int64_t, int64_t i) { to[i] = __float2bfloat16_rn(from[i]); });
    l->n_bytes += n * sizeof *l->w16;
    return NB_OK;
}

nb_status nb_cuda_linear_create(nb_backend *be, const nb_linear_desc *d, nb_linear **out,
                                nb_error *err)
{
    *out = NULL;
    nb_linear *l = (nb_linear *)calloc(1, sizeof *l);
    if (!l) return be->host->fail(err, NB_ERESOURCE, "out of memory: linear");
    l->n_out = d->w->n_out;
    l->n_in = d->w->n_in;
    l->act = d->act;
    l->rank = d->lorc.rank;
    nb_status st = fill(be, l, d, err);
    if (st != NB_OK) {
        nb_cuda_linear_free(be, l);
        return st;
    }
    *out = l;
    return NB_OK;
}

size_t nb_cuda_linear_bytes(const nb_linear *l) { return l->n_bytes; }

/* ---- embedding ------------------------------------------------------------------------- */

void nb_cuda_embed_forward(nb_backend *be, nb_view out, const nb_linear *w, const int32_t *ids)
{
    for (int64_t t = 0; t < out.rows; t++) {
        if (ids[t] >= 0 && ids[t] < w->n_out) continue;
        nb_error *first = &nb_cuda_of(be)->first;
        if (first->status == NB_OK) {
            be->host->fail(first, NB_EUSAGE, "token %lld: id %d is not in [0, %lld)", (long long)t,
                           (int)ids[t], (long long)w->n_out);
        }
        return;
    }
    size_t bytes = (size_t)out.rows * sizeof *ids;
    int32_t *on = (int32_t *)nb_cuda_scratch(be, NB_CUDA_IDS, bytes);
    if (!on || out.rows == 0) return;
    cudaStream_t s = nb_cuda_of(be)->stream;
    nb_cuda_ok(be, cudaMemcpyAsync(on, ids, bytes, cudaMemcpyHostToDevice, s), "upload");
    nb_cuda_ok(be, cudaStreamSynchronize(s), "upload");
    mat to = mat_of(out);
    const float *table = w->w;
    int64_t n = w->n_in;
    nb_each(be, out.rows, n,
            [=] __device__(int64_t r, int64_t c) { to.at(r, c) = table[(int64_t)on[r] * n + c]; });
}

/* ---- forward --------------------------------------------------------------------------- */

static void add_bias(nb_backend *be, nb_view out, const float *bias)
{
    mat y = mat_of(out);
    nb_each(be, out.rows, out.cols,
            [=] __device__(int64_t r, int64_t c) { y.at(r, c) += bias[c]; });
}

/* out += (x b^T) a; x as it enters products. */
static void add_low_rank(nb_backend *be, nb_view out, mat x, const nb_linear *w)
{
    size_t n = (size_t)(out.rows * w->rank);
    float *low = (float *)nb_cuda_scratch(be, NB_CUDA_LOW, n * sizeof *low);
    if (!low) return;
    nb_cuda_gemm g = {};
    g.m = out.rows;
    g.n = w->rank;
    g.k = w->n_in;
    g.a = x.p;
    g.lda = x.ld;
    g.b = w->low_b;
    g.ldb = w->n_in;
    g.b_rows = true;
    g.c = low;
    g.ldc = w->rank;
    g.alpha = 1;
    if (be->compute == NB_COMPUTE_BF16) {
        mat b = {w->low_b, w->n_in};
        g.a = nb_cuda_to_bf16(be, NB_CUDA_A16, x, g.m, g.k);
        g.b = nb_cuda_to_bf16(be, NB_CUDA_B16, b, g.n, g.k);
        g.lda = g.k;
        g.bf16 = true;
        if (!g.a || !g.b) return;
    }
    nb_cuda_multiply(be, &g);
    nb_cuda_gemm h = {};
    h.m = out.rows;
    h.n = w->n_out;
    h.k = w->rank;
    h.a = low;
    h.lda = w->rank;
    h.b = w->low_a;
    h.ldb = w->n_out;
    h.c = nb_cuda_row(out, 0);
    h.ldc = out.stride;
    h.alpha = h.beta = 1;
    nb_cuda_multiply(be, &h);
}

void nb_cuda_linear_forward(nb_backend *be, nb_view out, nb_view x, const nb_linear *w, bool add)
{
    if (out.rows == 0) return;
    mat in = mat_of(x);
    if (w->act.family && w->act.family->fit) {
        in.p = nb_cuda_quantize_input(be, x, &w->act);
        in.ld = x.cols;
        if (!in.p) return;
    }
    nb_cuda_gemm g = {};
    g.m = out.rows;
    g.n = w->n_out;
    g.k = w->n_in;
    g.a = in.p;
    g.lda = in.ld;
    g.b = w->w;
    g.ldb = w->n_in;
    g.b_rows = true;
    g.c = nb_cuda_row(out, 0);
    g.ldc = out.stride;
    g.alpha = 1;
    g.beta = add;
    if (w->w16) {
        g.a = nb_cuda_to_bf16(be, NB_CUDA_A16, in, g.m, g.k);
        g.lda = g.k;
        g.b = w->w16;
        g.bf16 = true;
        if (!g.a) return;
    }
    nb_cuda_multiply(be, &g);
    if (w->bias) add_bias(be, out, w->bias);
    if (w->rank) add_low_rank(be, out, in, w);
}

/* ---- statistics ------------------------------------------------------------------------ */

/* Rows of x to a mean square of 1. */
static void scale_to_unit(nb_backend *be, float *x, int64_t rows, int64_t n)
{
    nb_rows(be, rows, [=] __device__(int64_t r) {
        double sum = 0;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            sum += (double)x[r * n + i] * (double)x[r * n + i];
        }
        sum = nb_reduce(sum, nb_add());
        float scale = sum > 0 ? (float)sqrt((double)n / sum) : 1;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) x[r * n + i] *= scale;
    });
}

void nb_cuda_gram_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *act, bool unit)
{
    if (x.rows == 0 || x.cols == 0) return;
    mat in = mat_of(x);
    bool quantize = act && act->family && act->family->fit;
    if (quantize || unit) {
        nb_buffer scratch = {};
        scratch.data = in.p =
            (float *)(quantize ? nb_cuda_quantize_input(be, x, act)
                               : nb_cuda_scratch(be, NB_CUDA_INPUT,
                                                 (size_t)(x.rows * x.cols) * sizeof(float)));
        in.ld = x.cols;
        if (!in.p) return;
        if (!quantize) nb_cuda_copy(be, nb_view_of(&scratch, x.rows, x.cols), x);
        if (unit) scale_to_unit(be, in.p, x.rows, x.cols);
    }
    nb_cuda_gemm g = {};
    g.m = g.n = x.cols;
    g.k = x.rows;
    g.a = g.b = in.p;
    g.lda = g.ldb = in.ld;
    g.a_cols = true;
    g.c = nb_cuda_row(out, 0);
    g.ldc = out.stride;
    g.alpha = g.beta = 1;
    nb_cuda_multiply(be, &g);
}
