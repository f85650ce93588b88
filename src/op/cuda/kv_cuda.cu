/* Keys and values of one layer and sequence: two fp32 matrices on the device. Where each token and
 * head is a group of a format with kernels, they hold the quantized values; with other formats a
 * cache of the cpu backend does. */
#include <stdlib.h>

#include "op/cuda/group_cuda.h"

struct nb_kv {
    nb_kv_desc d;
    nb_backend *be;
    nb_kv *host; /* or NULL: */
    nb_buffer k, v;
    int64_t rows; /* there is memory for */
};

static int64_t width(const nb_kv *kv) { return (int64_t)kv->d.n_kv_heads * kv->d.head_dim; }

static bool has_kernels(const nb_format *f, int64_t D)
{
    spec s;
    if (!f->family) return true;
    return is_quantized(f) && nb_cuda_describe(&s, f, D) && s.groups == 1;
}

static bool is_native(const nb_kv_desc *d)
{
    const nb_attn_formats *f = &d->formats;
    return !f->p.family && has_kernels(&f->q, d->head_dim) && has_kernels(&f->k, d->head_dim) &&
           has_kernels(&f->v, d->head_dim);
}

void nb_cuda_kv_free(nb_backend *be, nb_kv *kv)
{
    if (!kv) return;
    nb_backend *cpu = nb_cuda_of(be)->cpu;
    if (kv->host) cpu->ops->kv_free(cpu, kv->host);
    nb_cuda_free(be, kv->k.data);
    nb_cuda_free(be, kv->v.data);
    free(kv);
}

nb_status nb_cuda_kv_create(nb_backend *be, const nb_kv_desc *d, nb_kv **out, nb_error *err)
{
    *out = NULL;
    nb_status st = be->host->kv_check(d, err);
    if (st != NB_OK) return st;
    nb_kv *kv = (nb_kv *)calloc(1, sizeof *kv);
    if (!kv) return be->host->fail(err, NB_ERESOURCE, "out of memory: KV cache");
    kv->d = *d;
    kv->be = be;
    if (!is_native(d)) {
        nb_backend *cpu = nb_cuda_cpu(be);
        st = cpu ? cpu->ops->kv_create(cpu, d, &kv->host, err)
                 : be->host->fail(err, NB_ERESOURCE, "KV cache: no cpu backend");
    }
    if (st != NB_OK) {
        free(kv);
        return st;
    }
    *out = kv;
    return NB_OK;
}

size_t nb_cuda_kv_bytes(const nb_kv *kv)
{
    if (kv->host) return nb_cuda_of(kv->be)->cpu->ops->kv_bytes(kv->host);
    return (size_t)(2 * kv->rows * width(kv)) * sizeof(float);
}

/* Memory for `need` tokens, `used` of which are there. */
static bool grow(nb_backend *be, nb_kv *kv, int64_t need, int64_t used)
{
    if (need <= kv->rows) return true;
    int64_t rows = (need + NB_KV_PAGE - 1) / NB_KV_PAGE * NB_KV_PAGE;
    nb_buffer *both[] = {&kv->k, &kv->v};
    for (int i = 0; i < 2; i++) {
        nb_buffer b = {NULL, rows * width(kv)};
        nb_error err;
        nb_status st =
            nb_cuda_alloc(be, (size_t)b.n * sizeof(float), "KV cache", (void **)&b.data, &err);
        if (st != NB_OK) {
            nb_cuda_fail(be, st, err.message);
            return false;
        }
        if (used) {
            nb_cuda_copy(be, nb_view_of(&b, used, width(kv)), nb_view_of(both[i], used, width(kv)));
        }
        nb_cuda_free(be, both[i]->data);
        *both[i] = b;
    }
    kv->rows = rows;
    return true;
}

/* Rows of x [T, heads*D], contiguous, head by head through a format. */
static void quantize_heads(nb_backend *be, nb_view x, int64_t D, const nb_format *f)
{
    if (!is_quantized(f) || x.rows == 0) return;
    nb_view heads = nb_view_split(x, x.cols / D);
    nb_cuda_quant_forward(be, heads, heads, f);
}

static void append_native(nb_backend *be, nb_kv *kv, nb_buffer *to, nb_view x, int64_t pos0,
                          const nb_format *f)
{
    nb_view rows = nb_view_rows(nb_view_of(to, pos0 + x.rows, width(kv)), pos0, x.rows);
    nb_cuda_copy(be, rows, x);
    quantize_heads(be, rows, kv->d.head_dim, f);
}

void nb_cuda_kv_append(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0)
{
    int64_t end = pos0 + k.rows;
    if (kv->host) {
        nb_backend *cpu = nb_cuda_cpu(be);
        nb_view keys = nb_cuda_mirror(be, 0, k, true), values = nb_cuda_mirror(be, 1, v, true);
        if (!nb_cuda_healthy(be)) return;
        cpu->ops->kv_append(cpu, kv->host, keys, values, pos0);
        nb_cuda_settle(be);
    } else if (end > kv->d.capacity) {
        be->host->fault_set(&nb_cuda_of(be)->fault, NB_ERESOURCE,
                            "KV cache: %lld positions, capacity %lld", (long long)end,
                            (long long)kv->d.capacity);
    } else if (grow(be, kv, end, pos0)) {
        append_native(be, kv, &kv->k, k, pos0, &kv->d.formats.k);
        append_native(be, kv, &kv->v, v, pos0, &kv->d.formats.v);
    }
}

/* q, or a quantized copy in a slot; buf NULL: fault. */
static nb_view quantized_queries(nb_backend *be, nb_view q, const nb_kv *kv, nb_buffer *b)
{
    if (!is_quantized(&kv->d.formats.q)) return q;
    nb_view none = {};
    b->n = q.rows * q.cols;
    b->data = (float *)nb_cuda_scratch(be, NB_CUDA_LOW, (size_t)b->n * sizeof(float));
    if (!b->data) return none;
    nb_view copy = nb_view_of(b, q.rows, q.cols);
    nb_cuda_copy(be, copy, q);
    quantize_heads(be, copy, kv->d.head_dim, &kv->d.formats.q);
    return copy;
}

void nb_cuda_kv_attention(nb_backend *be, nb_view out, nb_view q, nb_kv *kv, const nb_attention *a)
{
    int64_t end = a->pos0 + q.rows;
    if (kv->host) {
        nb_backend *cpu = nb_cuda_cpu(be);
        nb_view to = nb_cuda_mirror(be, 2, out, false), from = nb_cuda_mirror(be, 3, q, true);
        if (!nb_cuda_healthy(be)) return;
        cpu->ops->kv_attention(cpu, to, from, kv->host, a);
        nb_cuda_reflect(be, out, to);
        nb_cuda_settle(be);
    } else if (end <= kv->rows) { /* otherwise the append has failed */
        nb_buffer b = {};
        nb_view queries = quantized_queries(be, q, kv, &b);
        if (!queries.buf) return;
        const nb_attn_formats *f = &kv->d.formats;
        bool exact = f->q.family || f->k.family || f->v.family;
        (exact ? nb_cuda_attention_exact
               : nb_cuda_attention_forward)(be, out, queries, nb_view_of(&kv->k, end, width(kv)),
                                            nb_view_of(&kv->v, end, width(kv)), a);
    }
}
