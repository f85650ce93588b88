/* Keys and values of one layer and sequence of the CPU backend: two fp32 matrices, or records of
 * their formats. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "op/cpu/kv_cpu.h"

static int64_t width(const nb_kv *kv) { return (int64_t)kv->d.n_kv_heads * kv->d.head_dim; }

void nb_cpu_kv_free(nb_backend *be, nb_kv *kv)
{
    NB_UNUSED(be);
    if (!kv) return;
    nb_kv_store_free(kv->store);
    free(kv->k.data);
    free(kv->v.data);
    free(kv);
}

nb_status nb_cpu_kv_create(nb_backend *be, const nb_kv_desc *d, nb_kv **out, nb_error *err)
{
    *out = NULL;
    NB_TRY(nb_kv_check(d, err));
    nb_kv *kv = calloc(1, sizeof *kv);
    if (!kv) return nb_fail_memory(err, "KV cache", sizeof *kv);
    kv->d = *d;
    nb_status st = NB_OK;
    if (nb_kv_is_quantized(&d->formats)) st = nb_kv_store_create(&kv->store, d, err);
    if (st != NB_OK) {
        nb_cpu_kv_free(be, kv);
        return st;
    }
    *out = kv;
    return NB_OK;
}

size_t nb_cpu_kv_bytes(const nb_kv *kv)
{
    if (kv->store) return nb_kv_store_bytes(kv->store);
    return (size_t)(2 * kv->rows * width(kv)) * sizeof(float);
}

/* ---- fp32 ------------------------------------------------------------------------------ */

static bool grow_plain(nb_kv *kv, int64_t need)
{
    if (need <= kv->rows) return true;
    int64_t rows = (need + NB_KV_PAGE - 1) / NB_KV_PAGE * NB_KV_PAGE;
    nb_buffer *const both[] = {&kv->k, &kv->v};
    for (int i = 0; i < 2; i++) {
        int64_t n = rows * width(kv);
        float *p = realloc(both[i]->data, (size_t)n * sizeof *p);
        if (!p) return false;
        *both[i] = (nb_buffer){p, n};
    }
    kv->rows = rows;
    return true;
}

static nb_view plain_rows(const nb_kv *kv, nb_buffer *b, int64_t n)
{
    return nb_view_of(b, n, width(kv));
}

static void append_plain(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0)
{
    nb_fault *fault = &nb_cpu_of(be)->fault;
    int64_t end = pos0 + k.rows;
    if (end > kv->d.capacity) {
        nb_fault_set(fault, NB_ERESOURCE, "KV cache: %lld positions, capacity %lld", (long long)end,
                     (long long)kv->d.capacity);
    } else if (!grow_plain(kv, end)) {
        nb_fault_set_memory(fault, "KV cache", (size_t)(2 * end * width(kv)) * sizeof(float));
    } else {
        be->ops->copy(be, nb_view_rows(plain_rows(kv, &kv->k, end), pos0, k.rows), k);
        be->ops->copy(be, nb_view_rows(plain_rows(kv, &kv->v, end), pos0, v.rows), v);
    }
}

/* ---- records --------------------------------------------------------------------------- */

static void append_records(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0)
{
    nb_kv_store *s = kv->store;
    nb_error err;
    int64_t first, n_chunks, K = kv->d.n_kv_heads, D = kv->d.head_dim;
    nb_status st = nb_kv_store_begin(s, pos0, k.rows, &first, &n_chunks, &err);
    if (st != NB_OK) {
        nb_fault_set(&nb_cpu_of(be)->fault, st, "%s", err.message);
        return;
    }
    size_t bytes = nb_kv_store_scratch(s);
    char *scratch = nb_cpu_scratch(be, NB_CPU_THREAD, bytes * (size_t)be->threads);
    if (!scratch) return;
    bool small = k.rows * k.cols <= NB_CPU_PARALLEL_MIN / 8; /* about 10 ns a value */
    int64_t bad = 0;
#pragma omp parallel num_threads(small ? 1 : be->threads) reduction(+ : bad)
    {
        void *mem = scratch + bytes * (size_t)omp_get_thread_num();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < k.rows * K; i++) {
            int64_t t = i / K, head = i % K;
            bad += nb_kv_store_put(s, pos0 + t, head, nb_cpu_row(k, t) + head * D,
                                   nb_cpu_row(v, t) + head * D, mem);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n_chunks * K; i++) nb_kv_store_seal(s, first + i / K, i % K, mem);
    }
    be->nonfinite += bad;
}

/* ---- the ops --------------------------------------------------------------------------- */

void nb_cpu_kv_append(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0)
{
    assert(k.rows == v.rows && k.cols == v.cols && k.cols == width(kv));
    if (kv->store) {
        append_records(be, kv, k, v, pos0);
    } else {
        append_plain(be, kv, k, v, pos0);
    }
}

void nb_cpu_kv_attention(nb_backend *be, nb_view out, nb_view q, nb_kv *kv, const nb_attention *a)
{
    assert(a->n_kv_heads == kv->d.n_kv_heads && a->head_dim == kv->d.head_dim);
    int64_t end = a->pos0 + q.rows;
    if (!kv->store) {
        if (end > kv->rows) return; /* the append has failed */
        nb_cpu_attention_forward(be, out, q, plain_rows(kv, &kv->k, end),
                                 plain_rows(kv, &kv->v, end), a);
    } else if (end == kv->store->length && nb_cpu_of(be)->fault.first.status == NB_OK) {
        nb_cpu_attention_records(be, out, q, kv->store, a);
        nb_kv_store_end(kv->store);
    }
}
