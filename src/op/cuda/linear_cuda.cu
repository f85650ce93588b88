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
    nb_cuda_free(be, l->low_b16);
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

/* bf16 values of n values on the device. */
static nb_status round_values(nb_backend *be, nb_linear *l, const float *from, int64_t n,
                              __nv_bfloat16 **out, nb_error *err)
{
    size_t bytes = (size_t)n * sizeof **out;
    nb_status st = nb_cuda_alloc(be, bytes, "linear", (void **)out, err);
    if (st != NB_OK) return st;
    __nv_bfloat16 *to = *out;
    nb_each(be, 1, n, [=] __device__(int64_t, int64_t i) { to[i] = __float2bfloat16_rn(from[i]); });
    l->n_bytes += bytes;
    return NB_OK;
}

static nb_status fill(nb_backend *be, nb_linear *l, const nb_linear_desc *d, nb_error *err)
{
    bool half = be->compute == NB_COMPUTE_BF16;
    nb_status st = upload_matrix(be, l, d->w, &l->w, err);
    if (st == NB_OK && d->bias) st = upload_values(be, l, d->bias, l->n_out, &l->bias, err);
    if (st == NB_OK && l->rank) st = upload_matrix(be, l, &d->lorc.a, &l->low_a, err);
    if (st == NB_OK && l->rank) st = upload_matrix(be, l, &d->lorc.b, &l->low_b, err);
    if (st == NB_OK && half) st = round_values(be, l, l->w, l->n_out * l->n_in, &l->w16, err);
    if (st == NB_OK && half && l->rank) {
        st = round_values(be, l, l->low_b, l->rank * l->n_in, &l->low_b16, err);
    }
    return st;
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
    nb_fault *fault = &nb_cuda_of(be)->fault;
    if (!be->host->fault_check_ids(fault, "token", ids, out.rows, w->n_out)) return;
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

/* What enters a product: fp32, or its bf16 values. */
typedef struct operand {
    const float *f32;
    const __nv_bfloat16 *bf16; /* NULL: the others */
    int64_t ld;                /* of x; weights are contiguous */
} operand;

/* y [rows, n] (ldy) = x [rows, k] w^T + beta y. */
static void multiply_rows(nb_backend *be, float *y, int64_t ldy, int64_t rows, operand x,
                          const float *w, const __nv_bfloat16 *w16, int64_t n, int64_t k,
                          float beta)
{
    nb_cuda_gemm g = {};
    g.m = rows;
    g.n = n;
    g.k = k;
    g.bf16 = x.bf16 != NULL;
    g.a = g.bf16 ? (const void *)x.bf16 : x.f32;
    g.lda = x.ld;
    g.b = g.bf16 ? (const void *)w16 : w;
    g.ldb = k;
    g.b_rows = true;
    g.c = y;
    g.ldc = ldy;
    g.alpha = 1;
    g.beta = beta;
    nb_cuda_multiply(be, &g);
}

/* out += (x b^T) a */
static void add_low_rank(nb_backend *be, nb_view out, operand x, const nb_linear *w)
{
    size_t n = (size_t)(out.rows * w->rank);
    float *low = (float *)nb_cuda_scratch(be, NB_CUDA_LOW, n * sizeof *low);
    if (!low) return;
    multiply_rows(be, low, w->rank, out.rows, x, w->low_b, w->low_b16, w->rank, w->n_in, 0);
    nb_cuda_gemm g = {};
    g.m = out.rows;
    g.n = w->n_out;
    g.k = w->rank;
    g.a = low;
    g.lda = w->rank;
    g.b = w->low_a;
    g.ldb = w->n_out;
    g.c = nb_cuda_row(out, 0);
    g.ldc = out.stride;
    g.alpha = g.beta = 1;
    nb_cuda_multiply(be, &g);
}

void nb_cuda_linear_forward(nb_backend *be, nb_view out, nb_view x, const nb_linear *w, bool add)
{
    if (out.rows == 0) return;
    mat in = mat_of(x);
    if (is_quantized(&w->act)) {
        in.p = nb_cuda_quantize_input(be, x, &w->act);
        in.ld = x.cols;
        if (!in.p) return;
    }
    operand q = {in.p, NULL, in.ld};
    if (w->w16) {
        q.bf16 = nb_cuda_to_bf16(be, NB_CUDA_A16, in, x.rows, x.cols);
        q.ld = x.cols;
        if (!q.bf16) return;
    }
    multiply_rows(be, nb_cuda_row(out, 0), out.stride, out.rows, q, w->w, w->w16, w->n_out, w->n_in,
                  add);
    if (w->bias) add_bias(be, out, w->bias);
    if (w->rank) add_low_rank(be, out, q, w);
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
    bool quantize = is_quantized(act);
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
