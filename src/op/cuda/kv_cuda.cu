/* Keys and values of one layer and sequence: two fp32 matrices on the device that hold the
 * quantized values, and where values have chunks (kv_store.h) a third with those in fp16 of every
 * token. What has no kernels is in a cache of the cpu backend. */
#include <stdlib.h>

#include "op/cuda/block_cuda.h"

struct nb_kv {
    nb_kv_desc d;
    nb_backend *be;
    nb_kv *host; /* or NULL: */
    nb_buffer k, v, recent;
    int64_t block; /* tokens of a chunk of v; 0: recent is not there */
    int64_t rows;  /* there is memory for */
};

static int64_t width(const nb_kv *kv) { return (int64_t)kv->d.n_kv_heads * kv->d.head_dim; }

static bool has_kernels(nb_backend *be, const nb_format *f, int64_t D)
{
    spec s;
    blocks b;
    if (!f->family) return true;
    if (!is_quantized(f)) return false;
    if (nb_cuda_describe(&s, f, D)) return s.groups == 1;
    return nb_cuda_describe_blocks(be, &b, f, NONFINITE_SATURATES);
}

static bool is_native(nb_backend *be, const nb_kv_desc *d)
{
    const nb_attn_formats *f = &d->formats;
    blocks b;
    return (!f->p.family || nb_cuda_describe_blocks(be, &b, &f->p, NONFINITE_STAYS)) &&
           has_kernels(be, &f->q, d->head_dim) && has_kernels(be, &f->k, d->head_dim) &&
           has_kernels(be, &f->v, d->head_dim);
}

void nb_cuda_kv_free(nb_backend *be, nb_kv *kv)
{
    if (!kv) return;
    nb_backend *cpu = nb_cuda_of(be)->cpu;
    if (kv->host) cpu->ops->kv_free(cpu, kv->host);
    nb_cuda_free(be, kv->k.data);
    nb_cuda_free(be, kv->v.data);
    nb_cuda_free(be, kv->recent.data);
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
    kv->block = is_quantized(&d->formats.v) ? d->formats.v.group : 0;
    if (!is_native(be, d)) {
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
    return (size_t)((kv->block ? 3 : 2) * kv->rows * width(kv)) * sizeof(float);
}

/* Memory for `need` tokens, `used` of which are there. */
static bool grow(nb_backend *be, nb_kv *kv, int64_t need, int64_t used)
{
    if (need <= kv->rows) return true;
    int64_t rows = (need + NB_KV_PAGE - 1) / NB_KV_PAGE * NB_KV_PAGE;
    nb_buffer *all[] = {&kv->k, &kv->v, &kv->recent};
    for (int i = 0; i < (kv->block ? 3 : 2); i++) {
        nb_buffer b = {NULL, rows * width(kv)};
        nb_error err;
        nb_status st =
            nb_cuda_alloc(be, (size_t)b.n * sizeof(float), "KV cache", (void **)&b.data, &err);
        if (st != NB_OK) {
            nb_cuda_fail(be, st, err.message);
            return false;
        }
        if (used) {
            nb_cuda_copy(be, nb_view_of(&b, used, width(kv)), nb_view_of(all[i], used, width(kv)));
        }
        nb_cuda_free(be, all[i]->data);
        *all[i] = b;
    }
    kv->rows = rows;
    return true;
}

/* Rows of x [T, heads*D], contiguous, head by head through a format. */
static void quantize_heads(nb_backend *be, nb_view x, int64_t D, const nb_format *f)
{
    blocks b;
    if (!is_quantized(f) || x.rows == 0) return;
    nb_view heads = nb_view_split(x, x.cols / D);
    if (nb_cuda_describe_blocks(be, &b, f, NONFINITE_SATURATES)) {
        nb_cuda_round_blocks(be, &b, mat_of(heads), mat_of(heads), heads.rows, D);
    } else {
        nb_cuda_quant_forward(be, heads, heads, f);
    }
}

static nb_view rows_at(const nb_kv *kv, nb_buffer *b, int64_t pos, int64_t n)
{
    return nb_view_rows(nb_view_of(b, pos + n, width(kv)), pos, n);
}

static void append_tokens(nb_backend *be, nb_kv *kv, nb_buffer *to, nb_view x, int64_t pos0,
                          const nb_format *f)
{
    nb_view rows = rows_at(kv, to, pos0, x.rows);
    nb_cuda_copy(be, rows, x);
    quantize_heads(be, rows, kv->d.head_dim, f);
}

/* To fp16 and back; counts what saturates. */
static void put_recent(nb_backend *be, nb_kv *kv, nb_view v, int64_t pos0, const blocks *b)
{
    mat to = mat_of(rows_at(kv, &kv->recent, pos0, v.rows)), from = mat_of(v);
    unsigned long long *saturated = b->saturated;
    nb_each(be, v.rows, v.cols, [=] __device__(int64_t r, int64_t c) {
        float x = from.at(r, c);
        if (saturated && !isfinite(x)) atomicAdd(saturated, 1);
        to.at(r, c) = nb_f16_to_f32(nb_kv_half(x, saturated != NULL));
    });
}

/* Chunks of tokens that end in [pos0, pos0 + T); those that are not full count nothing. */
static void seal_chunks(nb_backend *be, nb_kv *kv, int64_t pos0, int64_t T, const blocks *b)
{
    int64_t B = kv->block, first = pos0 / B, n = (pos0 + T) / B - first, D = kv->d.head_dim;
    int64_t heads = kv->d.n_kv_heads;
    nb_view open = rows_at(kv, &kv->v, first * B, pos0 + T - first * B);
    mat from = mat_of(rows_at(kv, &kv->recent, first * B, n * B)), to = mat_of(open);
    nb_each(be, open.rows, open.cols, [=] __device__(int64_t r, int64_t c) { to.at(r, c) = 0; });
    each_record(be, b, n * heads, [=] __device__(const blocks &f, int64_t i) {
        int64_t row = i / heads * B, column = i % heads * D;
        auto load = [=](int64_t, int64_t c) { return from.at(row + c % B, column + c / B); };
        auto store = [=](int64_t, int64_t c, float y) { to.at(row + c % B, column + c / B) = y; };
        round_record(f, 1, D * B, load, store);
    });
}

static void append_chunks(nb_backend *be, nb_kv *kv, nb_view v, int64_t pos0)
{
    blocks b;
    if (!nb_cuda_describe_blocks(be, &b, &kv->d.formats.v, NONFINITE_SATURATES)) return;
    put_recent(be, kv, v, pos0, &b);
    seal_chunks(be, kv, pos0, v.rows, &b);
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
        append_tokens(be, kv, &kv->k, k, pos0, &kv->d.formats.k);
        if (kv->block) {
            append_chunks(be, kv, v, pos0);
        } else {
            append_tokens(be, kv, &kv->v, v, pos0, &kv->d.formats.v);
        }
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
        nb_view keys = rows_at(kv, &kv->k, 0, end), values = rows_at(kv, &kv->v, 0, end);
        const nb_attn_formats *f = &kv->d.formats;
        if (!f->q.family && !f->k.family && !f->v.family && !f->p.family) {
            nb_cuda_attention_forward(be, out, queries, keys, values, a);
            return;
        }
        nb_cuda_records r = {kv->block, kv->d.paper ? end : 0, {}, &f->p};
        if (kv->block) r.recent = rows_at(kv, &kv->recent, 0, end);
        nb_cuda_attention_records(be, out, queries, keys, values, &r, a);
    }
}
