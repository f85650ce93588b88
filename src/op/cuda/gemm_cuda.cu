/* Matrix products by cuBLAS, which counts columns first: a row-major C = A B is its C^T = B^T A^T.
 * fp32 is fp32 (no TF32); bf16 operands are summed in fp32. */
#include "op/cuda/backend_cuda.h"

static bool open_blas(nb_backend *be)
{
    nb_cuda *c = nb_cuda_of(be);
    if (c->blas) return true;
    if (cublasCreate(&c->blas) != CUBLAS_STATUS_SUCCESS) {
        c->blas = NULL;
        nb_cuda_fail(be, NB_ERESOURCE, "cuda: cuBLAS cannot be started");
        return false;
    }
    cublasSetStream(c->blas, c->stream);
    return true;
}

static void check_status(nb_backend *be, cublasStatus_t st)
{
    if (st == CUBLAS_STATUS_SUCCESS) return;
    nb_cuda_fail(be, NB_ERESOURCE, "cuda: cuBLAS: a matrix product failed to run");
}

static cublasOperation_t transposed(bool t) { return t ? CUBLAS_OP_T : CUBLAS_OP_N; }

void nb_cuda_multiply(nb_backend *be, const nb_cuda_gemm *g)
{
    if (g->m == 0 || g->n == 0 || !open_blas(be)) return;
    cudaDataType type = g->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    check_status(be,
                 cublasGemmEx(nb_cuda_of(be)->blas, transposed(g->b_rows), transposed(g->a_cols),
                              (int)g->n, (int)g->m, (int)g->k, &g->alpha, g->b, type, (int)g->ldb,
                              g->a, type, (int)g->lda, &g->beta, g->c, CUDA_R_32F, (int)g->ldc,
                              CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

static int64_t operand_size(const nb_cuda_gemm *g)
{
    return (int64_t)(g->bf16 ? sizeof(__nv_bfloat16) : sizeof(float));
}

/* All matrices and their rows begin at multiples of 16 bytes. Batches by pointer take that for
 * granted: the pointers lie on the device, nobody can look at them. */
static bool is_aligned(const nb_cuda_gemm *g, const nb_cuda_batch *s)
{
    int64_t size = operand_size(g), wide = sizeof(float);
    const uint64_t at[] = {(uint64_t)g->a,
                           (uint64_t)g->b,
                           (uint64_t)g->c,
                           (uint64_t)(g->lda * size),
                           (uint64_t)(g->ldb * size),
                           (uint64_t)(g->ldc * wide),
                           (uint64_t)(s->step_a * size),
                           (uint64_t)(s->step_b * size),
                           (uint64_t)(s->step_c * wide)};
    for (size_t i = 0; i < NB_COUNT(at); i++) {
        if (at[i] % 16 != 0) return false;
    }
    return true;
}

static void multiply_one_by_one(nb_backend *be, const nb_cuda_gemm *g, const nb_cuda_batch *s)
{
    int64_t size = operand_size(g);
    for (int64_t i = 0; i < s->count; i++) {
        nb_cuda_gemm one = *g;
        one.a = (const char *)g->a + i * s->step_a * size;
        one.b = (const char *)g->b + i / s->share * s->step_b * size;
        one.c = g->c + i * s->step_c;
        nb_cuda_multiply(be, &one);
    }
}

void nb_cuda_multiply_batch(nb_backend *be, const nb_cuda_gemm *g, const nb_cuda_batch *batch)
{
    if (!is_aligned(g, batch)) {
        multiply_one_by_one(be, g, batch);
        return;
    }
    if (g->m == 0 || g->n == 0 || batch->count == 0 || !open_blas(be)) return;
    int64_t n = batch->count, size = operand_size(g);
    const char **at =
        (const char **)nb_cuda_scratch(be, NB_CUDA_POINTERS, (size_t)(3 * n) * sizeof *at);
    if (!at) return;
    nb_cuda_batch s = *batch;
    const char *a = (const char *)g->a, *b = (const char *)g->b, *c = (const char *)g->c;
    nb_each(be, 1, n, [=] __device__(int64_t, int64_t i) {
        at[i] = a + i * s.step_a * size;
        at[n + i] = b + i / s.share * s.step_b * size;
        at[2 * n + i] = c + i * s.step_c * (int64_t)sizeof(float);
    });
    cudaDataType type = g->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    check_status(be, cublasGemmBatchedEx(
                         nb_cuda_of(be)->blas, transposed(g->b_rows), transposed(g->a_cols),
                         (int)g->n, (int)g->m, (int)g->k, &g->alpha, (const void *const *)(at + n),
                         type, (int)g->ldb, (const void *const *)at, type, (int)g->lda, &g->beta,
                         (void *const *)(at + 2 * n), CUDA_R_32F, (int)g->ldc, (int)n,
                         CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

__nv_bfloat16 *nb_cuda_to_bf16(nb_backend *be, nb_cuda_slot slot, mat x, int64_t rows, int64_t cols)
{
    size_t bytes = (size_t)(rows * cols) * sizeof(__nv_bfloat16);
    __nv_bfloat16 *to = (__nv_bfloat16 *)nb_cuda_scratch(be, slot, bytes);
    if (!to) return NULL;
    nb_each(be, rows, cols, [=] __device__(int64_t r, int64_t c) {
        to[r * cols + c] = __float2bfloat16_rn(x.at(r, c));
    });
    return to;
}

/* fp32 operands of g become bf16 in that mode; false: fault. */
static bool round_operands(nb_backend *be, nb_cuda_gemm *g)
{
    if (be->compute != NB_COMPUTE_BF16) return true;
    int64_t a_rows = g->a_cols ? g->k : g->m, a_cols = g->a_cols ? g->m : g->k;
    int64_t b_rows = g->b_rows ? g->n : g->k, b_cols = g->b_rows ? g->k : g->n;
    mat a = {(float *)g->a, g->lda}, b = {(float *)g->b, g->ldb};
    g->a = nb_cuda_to_bf16(be, NB_CUDA_A16, a, a_rows, a_cols);
    g->b = nb_cuda_to_bf16(be, NB_CUDA_B16, b, b_rows, b_cols);
    g->lda = a_cols;
    g->ldb = b_cols;
    g->bf16 = true;
    return g->a && g->b;
}

void nb_cuda_product(nb_backend *be, nb_view out, nb_view a, bool a_cols, nb_view b, bool b_rows,
                     bool add)
{
    nb_cuda_gemm g = {};
    g.m = out.rows;
    g.n = out.cols;
    g.k = a_cols ? a.rows : a.cols;
    g.a = nb_cuda_row(a, 0);
    g.b = nb_cuda_row(b, 0);
    g.c = nb_cuda_row(out, 0);
    g.lda = a.stride;
    g.ldb = b.stride;
    g.ldc = out.stride;
    g.a_cols = a_cols;
    g.b_rows = b_rows;
    g.alpha = 1;
    g.beta = add;
    if (round_operands(be, &g)) nb_cuda_multiply(be, &g);
}
