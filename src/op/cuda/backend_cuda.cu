/* Life, memory and table of the CUDA backend. */
#include "op/cuda/backend_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- failures -------------------------------------------------------------------------- */

void nb_cuda_fail(nb_backend *be, nb_status status, const char *what)
{
    be->host->fault_set(&nb_cuda_of(be)->fault, status, "%s", what);
}

bool nb_cuda_ok(nb_backend *be, cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return true;
    be->host->fault_set(&nb_cuda_of(be)->fault, NB_ERESOURCE, "cuda: %s: %s", what,
                        cudaGetErrorString(e));
    return false;
}

/* ---- life ------------------------------------------------------------------------------ */

static void cuda_destroy(nb_backend *be)
{
    nb_cuda *c = nb_cuda_of(be);
    if (!c) return;
    if (c->stream) cudaStreamSynchronize(c->stream);
    for (int i = 0; i < NB_CUDA_MIRRORS && c->cpu; i++) {
        c->cpu->ops->buffer_free(c->cpu, c->mirror[i]);
    }
    be->host->backend_free(c->cpu);
    for (int i = 0; i < NB_CUDA_N_SLOTS; i++) nb_cuda_free(be, c->scratch[i].data);
    nb_cuda_free(be, c->book);
    nb_cuda_free(be, c->saturated);
    if (c->staging) cudaFreeHost(c->staging);
    if (c->blas) cublasDestroy(c->blas);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
    be->state = NULL;
}

/* "cuda" is "cuda:0". */
static nb_status pick_device(nb_backend *be, const char *name, nb_error *err)
{
    char *end = NULL;
    const char *colon = strchr(name, ':');
    long i = colon ? strtol(colon + 1, &end, 10) : 0;
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess) {
        return be->host->fail(err, NB_ERESOURCE, "device \"%.40s\": %s", name,
                              cudaGetErrorString(e));
    }
    if ((colon && (end == colon + 1 || *end)) || i < 0 || i >= n) {
        return be->host->fail(err, NB_EUSAGE, "device \"%.40s\": there are cuda:0 to cuda:%d", name,
                              n - 1);
    }
    e = cudaSetDevice((int)i);
    if (e == cudaSuccess) return NB_OK;
    return be->host->fail(err, NB_ERESOURCE, "device \"%.40s\": %s", name, cudaGetErrorString(e));
}

/* Freed memory stays with the process: allocations are frequent. */
static cudaError_t keep_pool(void)
{
    int device;
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetDefaultMemPool(&pool, device);
    if (e == cudaSuccess) e = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all);
    return e;
}

static nb_status cuda_create(nb_backend *be, nb_error *err)
{
    nb_status st = pick_device(be, be->device, err);
    if (st != NB_OK) return st;
    be->state = calloc(1, sizeof(nb_cuda));
    if (!be->state) return be->host->fail(err, NB_ERESOURCE, "out of memory: backend");
    cudaError_t e = cudaStreamCreateWithFlags(&nb_cuda_of(be)->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = keep_pool();
    if (e == cudaSuccess) return NB_OK;
    cuda_destroy(be);
    return be->host->fail(err, NB_ERESOURCE, "cuda: %s", cudaGetErrorString(e));
}

/* Takes over what kernels have counted. */
static void collect(nb_backend *be)
{
    nb_cuda *c = nb_cuda_of(be);
    unsigned long long n = 0;
    if (!c->saturated || !nb_cuda_fetch(be, &n, c->saturated, sizeof n) || n == 0) return;
    be->nonfinite += (int64_t)n;
    nb_cuda_ok(be, cudaMemsetAsync(c->saturated, 0, sizeof n, c->stream), "count");
}

static nb_status cuda_sync(nb_backend *be, nb_error *err)
{
    nb_cuda *c = nb_cuda_of(be);
    nb_cuda_ok(be, cudaGetLastError(), "kernel");
    collect(be);
    nb_cuda_ok(be, cudaStreamSynchronize(c->stream), "sync");
    return be->host->fault_take(&c->fault, err);
}

/* ---- memory ---------------------------------------------------------------------------- */

nb_status nb_cuda_alloc(nb_backend *be, size_t n_bytes, const char *what, void **out, nb_error *err)
{
    cudaError_t e = cudaMallocAsync(out, n_bytes ? n_bytes : 1, nb_cuda_of(be)->stream);
    if (e == cudaSuccess) return NB_OK;
    *out = NULL;
    cudaGetLastError(); /* not sticky */
    return be->host->fail(err, NB_ERESOURCE, "out of device memory: %s needs %zu bytes: %s", what,
                          n_bytes, cudaGetErrorString(e));
}

void nb_cuda_free(nb_backend *be, void *p)
{
    if (p) cudaFreeAsync(p, nb_cuda_of(be)->stream);
}

void *nb_cuda_scratch(nb_backend *be, nb_cuda_slot slot, size_t n_bytes)
{
    nb_cuda *c = nb_cuda_of(be);
    if (c->scratch[slot].data && c->scratch[slot].n_bytes >= n_bytes) return c->scratch[slot].data;
    nb_cuda_free(be, c->scratch[slot].data);
    c->scratch[slot].data = NULL;
    nb_error err;
    nb_status st = nb_cuda_alloc(be, n_bytes, "scratch", &c->scratch[slot].data, &err);
    c->scratch[slot].n_bytes = st == NB_OK ? n_bytes : 0;
    if (st != NB_OK) nb_cuda_fail(be, st, err.message);
    return c->scratch[slot].data;
}

float *nb_cuda_staging(nb_backend *be, size_t n_bytes)
{
    nb_cuda *c = nb_cuda_of(be);
    if (c->staging && c->staging_bytes >= n_bytes) return c->staging;
    if (c->staging) {
        cudaStreamSynchronize(c->stream);
        cudaFreeHost(c->staging);
    }
    c->staging = NULL;
    c->staging_bytes = n_bytes;
    if (!nb_cuda_ok(be, cudaMallocHost((void **)&c->staging, n_bytes), "pinned memory")) {
        c->staging = NULL;
    }
    return c->staging;
}

static void buffer_free(nb_backend *be, nb_buffer *b)
{
    if (!b) return;
    nb_cuda_free(be, b->data);
    free(b);
}

static nb_status buffer_create(nb_backend *be, int64_t n, nb_buffer **out, nb_error *err)
{
    *out = NULL;
    if (n < 0 || (uint64_t)n > SIZE_MAX / sizeof(float)) {
        return be->host->fail(err, NB_ERESOURCE, "buffer: too large");
    }
    nb_buffer *b = (nb_buffer *)calloc(1, sizeof *b);
    if (!b) return be->host->fail(err, NB_ERESOURCE, "out of memory: buffer");
    b->n = n;
    size_t bytes = (size_t)n * sizeof(float);
    nb_status st = nb_cuda_alloc(be, bytes, "buffer", (void **)&b->data, err);
    if (st != NB_OK) {
        free(b);
        return st;
    }
    nb_cuda_ok(be, cudaMemsetAsync(b->data, 0, bytes, nb_cuda_of(be)->stream), "buffer");
    *out = b;
    return NB_OK;
}

static void move(nb_backend *be, void *dst, int64_t ld_dst, const void *src, int64_t ld_src,
                 int64_t rows, int64_t cols, cudaMemcpyKind kind, const char *what)
{
    if (rows == 0 || cols == 0) return;
    cudaError_t e =
        cudaMemcpy2DAsync(dst, (size_t)ld_dst * sizeof(float), src, (size_t)ld_src * sizeof(float),
                          (size_t)cols * sizeof(float), (size_t)rows, kind, nb_cuda_of(be)->stream);
    nb_cuda_ok(be, e, what);
}

void nb_cuda_upload(nb_backend *be, nb_view dst, const void *src, nb_dtype dtype)
{
    size_t n = (size_t)(dst.rows * dst.cols);
    const float *from = (const float *)src;
    float *narrow = NULL;
    if (n == 0) return;
    if (dtype == NB_F64) {
        narrow = (float *)malloc(n * sizeof *narrow);
        if (!narrow) {
            nb_cuda_fail(be, NB_ERESOURCE, "out of memory: upload");
            return;
        }
        for (size_t i = 0; i < n; i++) narrow[i] = (float)((const double *)src)[i];
        from = narrow;
    }
    move(be, nb_cuda_row(dst, 0), dst.stride, from, dst.cols, dst.rows, dst.cols,
         cudaMemcpyHostToDevice, "upload");
    /* a copy from pageable memory may still read it */
    nb_cuda_ok(be, cudaStreamSynchronize(nb_cuda_of(be)->stream), "upload");
    free(narrow);
}

void nb_cuda_download(nb_backend *be, nb_view src, void *dst, nb_dtype dtype)
{
    size_t n = (size_t)(src.rows * src.cols);
    float *to = (float *)dst;
    if (n == 0) return;
    if (dtype == NB_F64) to += n; /* the upper half; widened from the front below */
    move(be, to, src.cols, nb_cuda_row(src, 0), src.stride, src.rows, src.cols,
         cudaMemcpyDeviceToHost, "download");
    nb_cuda_ok(be, cudaStreamSynchronize(nb_cuda_of(be)->stream), "download");
    for (size_t i = 0; dtype == NB_F64 && i < n; i++) {
        float x;
        memcpy(&x, (char *)dst + (n + i) * sizeof x, sizeof x);
        ((double *)dst)[i] = x;
    }
}

void nb_cuda_copy(nb_backend *be, nb_view dst, nb_view src)
{
    if (dst.rows == 0 || dst.cols == 0) return;
    if (nb_cuda_row(dst, 0) == nb_cuda_row(src, 0) && dst.stride == src.stride) return;
    move(be, nb_cuda_row(dst, 0), dst.stride, nb_cuda_row(src, 0), src.stride, dst.rows, dst.cols,
         cudaMemcpyDeviceToDevice, "copy");
}

bool nb_cuda_fetch(nb_backend *be, void *dst, const void *src, size_t n_bytes)
{
    cudaStream_t s = nb_cuda_of(be)->stream;
    cudaError_t e = cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDeviceToHost, s);
    if (e == cudaSuccess) e = cudaStreamSynchronize(s);
    return nb_cuda_ok(be, e, "download");
}

/* ---- table ----------------------------------------------------------------------------- */

static const nb_ops cuda_ops = {
    .name = "cuda",
    .real = NB_F32,
    .create = cuda_create,
    .destroy = cuda_destroy,
    .sync = cuda_sync,
    .buffer_create = buffer_create,
    .buffer_free = buffer_free,
    .upload = nb_cuda_upload,
    .download = nb_cuda_download,
    .copy = nb_cuda_copy,
    .kv_create = nb_cuda_kv_create,
    .kv_free = nb_cuda_kv_free,
    .kv_bytes = nb_cuda_kv_bytes,
    .kv_append = nb_cuda_kv_append,
    .kv_attention = nb_cuda_kv_attention,
    .linear_create = nb_cuda_linear_create,
    .linear_free = nb_cuda_linear_free,
    .linear_bytes = nb_cuda_linear_bytes,
    .embed_forward = nb_cuda_embed_forward,
    .linear_forward = nb_cuda_linear_forward,
    .gram_forward = nb_cuda_gram_forward,
    .norm_forward = nb_cuda_norm_forward,
    .rope_forward = nb_cuda_rope_forward,
    .attention_forward = nb_cuda_attention_forward,
    .add_forward = nb_cuda_add_forward,
    .hadamard_forward = nb_cuda_hadamard_forward,
    .glu_forward = nb_cuda_glu_forward,
    .act_forward = nb_cuda_act_forward,
    .nll_forward = nb_cuda_nll_forward,
    .kl_forward = nb_cuda_kl_forward,
    .product = nb_cuda_product,
    .bias_forward = nb_cuda_bias_forward,
    .col_sum = nb_cuda_col_sum,
    .norm_backward = nb_cuda_norm_backward,
    .rope_backward = nb_cuda_rope_backward,
    .attention_train = nb_cuda_attention_train,
    .attention_backward = nb_cuda_attention_backward,
    .glu_backward = nb_cuda_glu_backward,
    .act_backward = nb_cuda_act_backward,
    .quant_forward = nb_cuda_quant_forward,
    .quant_backward = nb_cuda_quant_backward,
    .clip_forward = nb_cuda_clip_forward,
    .clip_backward = nb_cuda_clip_backward,
    .round_forward = nb_cuda_round_forward,
    .round_backward = nb_cuda_round_backward,
    .mse_backward = nb_cuda_mse_backward,
    .adamw_step = nb_cuda_adamw_step,
    .sign_step = nb_cuda_sign_step,
};

extern "C" __attribute__((visibility("default"))) const nb_ops *
nb_plugin_open(nb_plugin_build *build)
{
    const nb_plugin_build mine = NB_PLUGIN_BUILD;
    *build = mine;
    return &cuda_ops;
}
