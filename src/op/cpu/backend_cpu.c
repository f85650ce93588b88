/* Life, memory and table of the CPU backend. */
#include "op/cpu/backend_cpu.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"

#define ALIGN ((size_t)64)

static void *alloc_aligned(size_t n_bytes)
{
    if (n_bytes > SIZE_MAX - ALIGN) return NULL;
    return aligned_alloc(ALIGN, nb_align_up(n_bytes ? n_bytes : 1, ALIGN));
}

/* ---- life ------------------------------------------------------------------------------ */

static void cpu_destroy(nb_backend *be)
{
    nb_cpu *cpu = be->state;
    if (!cpu) return;
    for (int i = 0; i < NB_CPU_N_SLOTS; i++) free(cpu->scratch[i].data);
    nb_gemm_free(cpu->gemm);
    free(cpu);
    be->state = NULL;
}

/* oneDNN refuses bf16 where the CPU has no instructions for it: better now than in a forward. */
static nb_status check_compute(nb_backend *be, nb_error *err)
{
    if (be->compute != NB_COMPUTE_BF16) return NB_OK;
    const nb_gemm_op *op;
    nb_gemm_desc d = {.m = 64, .n = 64, .k = 64, .lda = 64, .ldb = 64, .ldc = 64, .bf16 = true};
    nb_status st = nb_gemm_get(nb_cpu_of(be)->gemm, &d, &op, err);
    return st == NB_OK ? NB_OK : nb_wrap(err, st, "compute in bf16");
}

static nb_status cpu_create(nb_backend *be, nb_error *err)
{
    nb_cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return nb_fail_memory(err, "backend", sizeof *cpu);
    be->state = cpu;
    nb_kernels_init(&cpu->k, be->cpu);
    nb_status st = nb_gemm_create(&cpu->gemm, err);
    if (st == NB_OK) st = check_compute(be, err);
    if (st != NB_OK) cpu_destroy(be);
    return st;
}

static nb_status cpu_sync(nb_backend *be, nb_error *err)
{
    return nb_fault_take(&nb_cpu_of(be)->fault, err);
}

/* ---- scratch --------------------------------------------------------------------------- */

void *nb_cpu_scratch(nb_backend *be, nb_cpu_slot slot, size_t n_bytes)
{
    nb_cpu *cpu = nb_cpu_of(be);
    if (cpu->scratch[slot].data && cpu->scratch[slot].n_bytes >= n_bytes) {
        return cpu->scratch[slot].data;
    }
    free(cpu->scratch[slot].data);
    cpu->scratch[slot].data = alloc_aligned(n_bytes);
    cpu->scratch[slot].n_bytes = cpu->scratch[slot].data ? n_bytes : 0;
    if (!cpu->scratch[slot].data) nb_fault_set_memory(&cpu->fault, "scratch", n_bytes);
    return cpu->scratch[slot].data;
}

const nb_gemm_op *nb_cpu_gemm(nb_backend *be, const nb_gemm_desc *d)
{
    nb_cpu *cpu = nb_cpu_of(be);
    const nb_gemm_op *op;
    nb_error err;
    nb_status st = nb_gemm_get(cpu->gemm, d, &op, &err);
    if (st != NB_OK) nb_fault_set(&cpu->fault, st, "%s", err.message);
    return op;
}

void nb_cpu_fail_gemm(nb_backend *be)
{
    nb_fault_set(&nb_cpu_of(be)->fault, NB_ERESOURCE, "oneDNN: a matrix product failed to run");
}

/* ---- memory ---------------------------------------------------------------------------- */

static void buffer_free(nb_backend *be, nb_buffer *b)
{
    NB_UNUSED(be);
    if (!b) return;
    free(b->data);
    free(b);
}

static nb_status buffer_create(nb_backend *be, int64_t n, nb_buffer **out, nb_error *err)
{
    *out = NULL;
    size_t bytes;
    if (n < 0 || !nb_mul_size((size_t)n, sizeof(float), &bytes)) {
        return nb_fail_memory(err, "buffer", SIZE_MAX);
    }
    nb_buffer *b = calloc(1, sizeof *b);
    if (!b) return nb_fail_memory(err, "buffer", sizeof *b);
    b->n = n;
    b->data = alloc_aligned(bytes);
    if (!b->data) {
        buffer_free(be, b);
        return nb_fail_memory(err, "buffer", bytes);
    }
    memset(b->data, 0, bytes);
    *out = b;
    return NB_OK;
}

static void upload(nb_backend *be, nb_view dst, const void *src, nb_dtype dtype)
{
    NB_UNUSED(be);
    assert(dtype == NB_F32 || dtype == NB_F64);
    for (int64_t r = 0; r < dst.rows; r++) {
        float *to = nb_cpu_row(dst, r);
        if (dtype == NB_F32) {
            memcpy(to, (const float *)src + r * dst.cols, (size_t)dst.cols * sizeof *to);
            continue;
        }
        const double *from = (const double *)src + r * dst.cols;
        for (int64_t c = 0; c < dst.cols; c++) to[c] = (float)from[c];
    }
}

static void download(nb_backend *be, nb_view src, void *dst, nb_dtype dtype)
{
    NB_UNUSED(be);
    assert(dtype == NB_F32 || dtype == NB_F64);
    for (int64_t r = 0; r < src.rows; r++) {
        const float *from = nb_cpu_row(src, r);
        if (dtype == NB_F32) {
            memcpy((float *)dst + r * src.cols, from, (size_t)src.cols * sizeof *from);
            continue;
        }
        double *to = (double *)dst + r * src.cols;
        for (int64_t c = 0; c < src.cols; c++) to[c] = from[c];
    }
}

static void copy(nb_backend *be, nb_view dst, nb_view src)
{
    assert(dst.rows == src.rows && dst.cols == src.cols);
#pragma omp parallel for num_threads(be->threads) if (dst.rows * dst.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t r = 0; r < dst.rows; r++) {
        memmove(nb_cpu_row(dst, r), nb_cpu_row(src, r), (size_t)dst.cols * sizeof(float));
    }
}

const nb_ops nb_ops_cpu = {
    .name = "cpu",
    .real = NB_F32,
    .create = cpu_create,
    .destroy = cpu_destroy,
    .sync = cpu_sync,
    .buffer_create = buffer_create,
    .buffer_free = buffer_free,
    .upload = upload,
    .download = download,
    .copy = copy,
    .kv_create = nb_cpu_kv_create,
    .kv_free = nb_cpu_kv_free,
    .kv_bytes = nb_cpu_kv_bytes,
    .kv_append = nb_cpu_kv_append,
    .kv_attention = nb_cpu_kv_attention,
    .linear_create = nb_cpu_linear_create,
    .linear_free = nb_cpu_linear_free,
    .linear_bytes = nb_cpu_linear_bytes,
    .embed_forward = nb_cpu_embed_forward,
    .linear_forward = nb_cpu_linear_forward,
    .gram_forward = nb_cpu_gram_forward,
    .norm_forward = nb_cpu_norm_forward,
    .rope_forward = nb_cpu_rope_forward,
    .hadamard_forward = nb_cpu_hadamard_forward,
    .attention_forward = nb_cpu_attention_forward,
    .add_forward = nb_cpu_add_forward,
    .glu_forward = nb_cpu_glu_forward,
    .act_forward = nb_cpu_act_forward,
    .nll_forward = nb_cpu_nll_forward,
    .kl_forward = nb_cpu_kl_forward,
    .product = nb_cpu_product_views,
    .bias_forward = nb_cpu_bias_forward,
    .col_sum = nb_cpu_col_sum,
    .norm_backward = nb_cpu_norm_backward,
    .rope_backward = nb_cpu_rope_backward,
    .attention_train = nb_cpu_attention_train,
    .attention_backward = nb_cpu_attention_backward,
    .glu_backward = nb_cpu_glu_backward,
    .act_backward = nb_cpu_act_backward,
    .quant_forward = nb_cpu_quant_forward,
    .quant_backward = nb_cpu_quant_backward,
    .clip_forward = nb_cpu_clip_forward,
    .clip_backward = nb_cpu_clip_backward,
    .round_forward = nb_cpu_round_forward,
    .round_backward = nb_cpu_round_backward,
    .mse_backward = nb_cpu_mse_backward,
    .adamw_step = nb_cpu_adamw_step,
    .sign_step = nb_cpu_sign_step,
};
