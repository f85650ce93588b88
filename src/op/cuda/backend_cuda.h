/* The CUDA backend: fp32 in device memory, one stream, cuBLAS for matrix products, kernels for the
 * rest. Ops return when they are queued.
 *
 * Sums run in an order that shapes alone decide (no atomics), so one GPU gives the same bytes in
 * every run. What has no kernel here (floats with scales tied to powers of two; gradients through
 * formats with blocks; keys and values of some pairs of formats) goes through a "cpu" backend of
 * its own: to the host and back. */
#ifndef NB_OP_CUDA_CUDA_H
#define NB_OP_CUDA_CUDA_H

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

extern "C" {
#include "format/ste.h"
#include "op/kv_store.h"
#include "op/plugin.h"
}

struct nb_buffer {
    float *data; /* on the device */
    int64_t n;
};

struct nb_linear {
    int64_t n_out, n_in;
    float *w;           /* [n_out, n_in] */
    __nv_bfloat16 *w16; /* the same as operands of bf16 products, or NULL */
    float *bias;        /* [n_out] or NULL */
    nb_format act;
    int64_t rank;
    float *low_a, *low_b; /* [rank, n_out], [rank, n_in] */
    __nv_bfloat16 *low_b16;
    size_t n_bytes;
};

/* Device scratch that lives from op to op and only grows. */
typedef enum nb_cuda_slot {
    NB_CUDA_A16, /* operands in bf16 */
    NB_CUDA_B16,
    NB_CUDA_INPUT,  /* x through its act format */
    NB_CUDA_LOW,    /* x through the first factor */
    NB_CUDA_SCORES, /* attention; what column sums are taken of */
    NB_CUDA_SCORES2,
    NB_CUDA_WEIGHTS, /* bf16 of the two above */
    NB_CUDA_WEIGHTS2,
    NB_CUDA_HEADS,    /* gradients by query head */
    NB_CUDA_POINTERS, /* operands of products by head */
    NB_CUDA_Q,        /* rounded operands of attention */
    NB_CUDA_K,
    NB_CUDA_V,
    NB_CUDA_DOUT,
    NB_CUDA_OWN,  /* one value per row and head */
    NB_CUDA_ROWS, /* one value per row; partial sums */
    NB_CUDA_IDS,
    NB_CUDA_N_SLOTS
} nb_cuda_slot;

#define NB_CUDA_MIRRORS 8

typedef struct nb_cuda {
    cudaStream_t stream;
    cublasHandle_t blas; /* NULL until the first product */
    nb_fault fault;
    struct {
        void *data;
        size_t n_bytes;
    } scratch[NB_CUDA_N_SLOTS];
    nb_backend *cpu;                    /* for what has no kernel; NULL until then */
    nb_buffer *mirror[NB_CUDA_MIRRORS]; /* its buffers */
    int64_t mirror_n[NB_CUDA_MIRRORS];
    float *staging; /* pinned host memory */
    size_t staging_bytes;
    void *book;                    /* block_cuda.h; NULL until then */
    unsigned long long *saturated; /* what kernels add to nb_backend.nonfinite at the next sync */
} nb_cuda;

static inline nb_cuda *nb_cuda_of(const nb_backend *be) { return (nb_cuda *)be->state; }

static inline float *nb_cuda_row(nb_view v, int64_t r)
{
    return v.buf->data + v.off + r * v.stride;
}

/* A matrix as kernels see it. */
typedef struct mat {
    float *p;
    int64_t ld;
    __device__ float &at(int64_t r, int64_t c) const { return p[r * ld + c]; }
} mat;

static inline mat mat_of(nb_view v)
{
    mat m = {v.buf ? nb_cuda_row(v, 0) : NULL, v.stride};
    return m;
}

/* backend_cuda.cu */
bool nb_cuda_ok(nb_backend *be, cudaError_t e, const char *what); /* false: the fault is set */
void nb_cuda_fail(nb_backend *be, nb_status status, const char *what);
/* Nothing has failed since the last sync. */
static inline bool nb_cuda_healthy(const nb_backend *be)
{
    return nb_cuda_of(be)->fault.first.status == NB_OK;
}
static inline bool is_quantized(const nb_format *f) { return f && f->family && f->family->fit; }
void *nb_cuda_scratch(nb_backend *be, nb_cuda_slot slot, size_t n_bytes); /* NULL: fault */
float *nb_cuda_staging(nb_backend *be, size_t n_bytes);                   /* NULL: fault */
nb_status nb_cuda_alloc(nb_backend *be, size_t n_bytes, const char *what, void **out,
                        nb_error *err);
void nb_cuda_free(nb_backend *be, void *p);
void nb_cuda_upload(nb_backend *be, nb_view dst, const void *src, nb_dtype dtype);
void nb_cuda_download(nb_backend *be, nb_view src, void *dst, nb_dtype dtype);
void nb_cuda_copy(nb_backend *be, nb_view dst, nb_view src);
/* n bytes to the host; waits. */
bool nb_cuda_fetch(nb_backend *be, void *dst, const void *src, size_t n_bytes);

/* gemm_cuda.cu. c [m, n] = alpha op(a) op(b) + beta c, row-major. */
typedef struct nb_cuda_gemm {
    int64_t m, n, k;
    const void *a, *b; /* fp32, or bf16 where it says so */
    float *c;
    int64_t lda, ldb, ldc;
    bool a_cols, b_rows; /* a is [k, m]; b is [n, k] */
    bool bf16;
    float alpha, beta;
} nb_cuda_gemm;

/* Products side by side: the i-th has a + i step_a, b + i / share step_b, c + i step_c. */
typedef struct nb_cuda_batch {
    int64_t count, step_a, step_b, share, step_c; /* steps in elements */
} nb_cuda_batch;

void nb_cuda_multiply(nb_backend *be, const nb_cuda_gemm *g);
void nb_cuda_multiply_batch(nb_backend *be, const nb_cuda_gemm *g, const nb_cuda_batch *batch);
/* bf16 [rows, cols] of x, contiguous, in a slot. */
__nv_bfloat16 *nb_cuda_to_bf16(nb_backend *be, nb_cuda_slot slot, mat x, int64_t rows,
                               int64_t cols);
void nb_cuda_product(nb_backend *be, nb_view out, nb_view a, bool a_cols, nb_view b, bool b_rows,
                     bool add);

/* linear_cuda.cu */
nb_status nb_cuda_linear_create(nb_backend *be, const nb_linear_desc *d, nb_linear **out,
                                nb_error *err);
void nb_cuda_linear_free(nb_backend *be, nb_linear *l);
size_t nb_cuda_linear_bytes(const nb_linear *l);
void nb_cuda_embed_forward(nb_backend *be, nb_view out, const nb_linear *w, const int32_t *ids);
void nb_cuda_linear_forward(nb_backend *be, nb_view out, nb_view x, const nb_linear *w, bool add);
void nb_cuda_gram_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *act, bool unit);

/* pointwise_cuda.cu */
void nb_cuda_norm_forward(nb_backend *be, nb_view out, nb_view x, const nb_norm *norm);
void nb_cuda_norm_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, const nb_norm *norm,
                           bool add);
void nb_cuda_rope_forward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved);
void nb_cuda_rope_backward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved);
void nb_cuda_hadamard_forward(nb_backend *be, nb_view x, int64_t n);
void nb_cuda_add_forward(nb_backend *be, nb_view out, nb_view a, nb_view b);
void nb_cuda_glu_forward(nb_backend *be, nb_view out, nb_view gate, nb_view up, nb_act_kind act);
void nb_cuda_act_forward(nb_backend *be, nb_view out, nb_view x, nb_act_kind act);
void nb_cuda_glu_backward(nb_backend *be, nb_view dgate, nb_view dup, nb_view dout, nb_view gate,
                          nb_view up, nb_act_kind act);
void nb_cuda_act_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, nb_act_kind act);
void nb_cuda_bias_forward(nb_backend *be, nb_view x, nb_view bias);

/* attention_cuda.cu */
void nb_cuda_attention_forward(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                               const nb_attention *a);
/* Over quantized keys and values: products in fp32 in either mode. Values of full chunks of
 * `block` tokens come from v, those behind a query's last one from `recent`; block 0: all from v.
 */
typedef struct nb_cuda_records {
    int64_t block;
    int64_t length;     /* > 0: chunks are full up to there for every query (D16: paper) */
    nb_view recent;     /* as v; block > 0 */
    const nb_format *p; /* of softmax weights that meet records, or of family NULL */
} nb_cuda_records;

void nb_cuda_attention_records(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                               const nb_cuda_records *r, const nb_attention *a);
void nb_cuda_attention_train(nb_backend *be, nb_view out, nb_view lse, nb_view q, nb_view k,
                             nb_view v, const nb_attention *a);
void nb_cuda_attention_backward(nb_backend *be, nb_view dq, nb_view dk, nb_view dv, nb_view dout,
                                nb_view out, nb_view lse, nb_view q, nb_view k, nb_view v,
                                const nb_attention *a);

/* kv_cuda.cu */
nb_status nb_cuda_kv_create(nb_backend *be, const nb_kv_desc *d, nb_kv **out, nb_error *err);
void nb_cuda_kv_free(nb_backend *be, nb_kv *kv);
size_t nb_cuda_kv_bytes(const nb_kv *kv);
void nb_cuda_kv_append(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0);
void nb_cuda_kv_attention(nb_backend *be, nb_view out, nb_view q, nb_kv *kv, const nb_attention *a);

/* loss_cuda.cu */
void nb_cuda_nll_forward(nb_backend *be, double *nll, nb_view logits, const int32_t *targets);
void nb_cuda_kl_forward(nb_backend *be, double *kl, uint8_t *same, nb_view ref, nb_view logits);
void nb_cuda_col_sum(nb_backend *be, nb_view out, nb_view a, nb_view b, bool add);
/* out [1, cols] = sums over rows of a times b (b.p NULL: 1) (+ out). */
void nb_cuda_sum_columns(nb_backend *be, mat out, mat a, mat b, int64_t rows, int64_t cols,
                         bool add);
double nb_cuda_mse_backward(nb_backend *be, nb_view dy, nb_view y, nb_view target, bool unit,
                            double scale, bool add);
void nb_cuda_adamw_step(nb_backend *be, nb_view param, nb_view grad, nb_view m, nb_view v,
                        double lr, double beta1, double beta2, double eps, int64_t t);
void nb_cuda_sign_step(nb_backend *be, nb_view param, nb_view grad, double lr, double lo,
                       double hi);

/* quant_cuda.cu */
void nb_cuda_quant_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *fmt);
void nb_cuda_quant_backward(nb_backend *be, nb_view dx, nb_view g, nb_view x, const nb_format *fmt);
void nb_cuda_clip_forward(nb_backend *be, nb_view out, nb_view w, nb_view row, nb_view col,
                          nb_view u, nb_view l, const nb_format *fmt);
void nb_cuda_clip_backward(nb_backend *be, nb_view du, nb_view dl, nb_view colsum, nb_view g,
                           nb_view w, nb_view row, nb_view col, nb_view u, nb_view l, bool zero,
                           const nb_format *fmt);
void nb_cuda_round_forward(nb_backend *be, nb_view out, nb_view w, nb_view v, nb_view hi,
                           nb_view lo, const nb_format *fmt);
void nb_cuda_round_backward(nb_backend *be, nb_view dv, nb_view dhi, nb_view dlo, nb_view g,
                            nb_view w, nb_view v, nb_view hi, nb_view lo, bool zero,
                            const nb_format *fmt);
/* x [rows, cols] as a linear quantizes it, contiguous, in the slot INPUT; NULL: fault. */
float *nb_cuda_quantize_input(nb_backend *be, nb_view x, const nb_format *act);

/* host_cuda.cu: views of the cpu backend, contiguous, one per index; filled from v or left */
nb_backend *nb_cuda_cpu(nb_backend *be); /* NULL: fault */
nb_view nb_cuda_mirror(nb_backend *be, int i, nb_view v, bool fill);
/* v = what the mirror holds. */
void nb_cuda_reflect(nb_backend *be, nb_view v, nb_view mirror);
/* After ops of the cpu backend: takes over its fault and counts. */
void nb_cuda_settle(nb_backend *be);

/* ---- kernels' common parts ---------------------------------------------------------------- */

#define NB_CUDA_BLOCK 256

/* f(row, column) for every element. */
template <class F> __global__ void nb_each_kernel(int64_t n, uint32_t cols, F f)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        int64_t r = i < UINT32_MAX ? (uint32_t)i / cols : i / cols;
        f(r, i - r * cols);
    }
}

template <class F> static inline void nb_each(nb_backend *be, int64_t rows, int64_t cols, F f)
{
    int64_t n = rows * cols, blocks = (n + NB_CUDA_BLOCK - 1) / NB_CUDA_BLOCK;
    if (n == 0) return;
    if (blocks > 1 << 16) blocks = 1 << 16;
    nb_each_kernel<<<(unsigned)blocks, NB_CUDA_BLOCK, 0, nb_cuda_of(be)->stream>>>(
        n, (uint32_t)cols, f);
}

/* f(row) by a block of threads each. */
template <class F> __global__ void nb_rows_kernel(F f) { f((int64_t)blockIdx.x); }

template <class F> static inline void nb_rows(nb_backend *be, int64_t rows, F f)
{
    if (rows > 0) nb_rows_kernel<<<(unsigned)rows, NB_CUDA_BLOCK, 0, nb_cuda_of(be)->stream>>>(f);
}

struct nb_add {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct nb_least {
    template <class T> __device__ T operator()(T a, T b) const { return b < a ? b : a; }
};
struct nb_most {
    template <class T> __device__ T operator()(T a, T b) const { return b > a ? b : a; }
};

/* One value per thread to one per block, in a fixed order; all threads get it. */
template <class T, class Op> __device__ T nb_reduce(T x, Op op)
{
    __shared__ T part[NB_CUDA_BLOCK / 32];
    for (int d = 16; d > 0; d /= 2) x = op(x, __shfl_xor_sync(~0u, x, d));
    __syncthreads(); /* `part` of the call before has been read */
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
    for (int i = 1; i < (int)blockDim.x / 32; i++) x = op(x, part[i]);
    return x;
}

#endif
