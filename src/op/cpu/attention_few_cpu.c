/* Attention of a few queries over many keys (decoding): bound by reading keys and values once.
 *
 * A task is one KV head and one chunk of keys for all queries; it leaves, per query and head, the
 * chunk's maximum, sum and weighted values. A second pass merges the chunks in their order. */
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "op/cpu/backend_cpu.h"

#define CHUNK 256 /* keys per task */

typedef struct job {
    nb_backend *be;
    nb_view out, lse, q, k, v; /* lse.buf NULL: not wanted */
    const nb_attention *a;
    int64_t group, key0, n_chunks;
    float *partial; /* [T, H, chunks][max, sum, D values] */
    char *scratch;  /* per thread: scores [CHUNK], q [D], k and v [CHUNK, D] fp32; row [D] bf16 */
    size_t thread_bytes;
} job;

static float *partial_of(const job *j, int64_t t, int64_t h, int64_t c)
{
    return j->partial + ((t * j->a->n_heads + h) * j->n_chunks + c) * (j->a->head_dim + 2);
}

/* Rows as operands: themselves, or rounded to bf16 in that mode. */
static const float *round_rows(const job *j, float *out, const float *x, int64_t *stride,
                               int64_t rows, uint16_t *tmp)
{
    if (j->be->compute != NB_COMPUTE_BF16) return x;
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    int64_t D = j->a->head_dim;
    for (int64_t r = 0; r < rows; r++) {
        k->bf16_from_f32(tmp, x + r * *stride, D);
        k->f32_from_bf16(out + r * D, tmp, D);
    }
    *stride = D;
    return out;
}

/* Keys [lo, hi) of the chunk, k and v its first rows. */
static void attend(const job *j, float *partial, float *s, const float *q, const float *k,
                   int64_t ldk, const float *v, int64_t ldv, int64_t lo, int64_t hi)
{
    const nb_kernels *f = &nb_cpu_of(j->be)->k;
    int64_t D = j->a->head_dim;
    float *o = partial + 2;
    memset(o, 0, (size_t)D * sizeof *o);
    partial[0] = -INFINITY;
    partial[1] = 0;
    if (lo >= hi) return;
    for (int64_t i = lo; i < hi; i++) s[i] = f->dot_f32(q, k + i * ldk, D);
    partial[0] = f->max(s + lo, hi - lo);
    partial[1] = f->exp_sum(s + lo, s + lo, partial[0], j->a->scale, hi - lo);
    for (int64_t i = lo; i < hi; i++) f->axpy(o, s[i], v + i * ldv, D);
}

static void run_task(const job *j, int64_t head, int64_t chunk)
{
    int64_t D = j->a->head_dim, begin = j->key0 + chunk * CHUNK, ldk = j->k.stride;
    int64_t end = nb_min_i64(begin + CHUNK, j->a->pos0 + j->q.rows), ldv = j->v.stride;
    float *s = (float *)(j->scratch + j->thread_bytes * (size_t)omp_get_thread_num());
    float *q_tmp = s + CHUNK, *k_tmp = q_tmp + D, *v_tmp = k_tmp + CHUNK * D;
    uint16_t *tmp = (uint16_t *)(v_tmp + CHUNK * D);
    const float *k = nb_cpu_row(j->k, begin) + head * D, *v = nb_cpu_row(j->v, begin) + head * D;
    k = round_rows(j, k_tmp, k, &ldk, end - begin, tmp);
    v = round_rows(j, v_tmp, v, &ldv, end - begin, tmp);
    for (int64_t t = 0; t < j->q.rows; t++) {
        int64_t pos = j->a->pos0 + t, lo = j->a->window > 0 ? pos + 1 - j->a->window : 0;
        lo = nb_max_i64(lo - begin, 0);
        int64_t hi = nb_min_i64(pos + 1, end) - begin;
        for (int64_t h = head * j->group; h < (head + 1) * j->group; h++) {
            int64_t one = D;
            const float *q = round_rows(j, q_tmp, nb_cpu_row(j->q, t) + h * D, &one, 1, tmp);
            attend(j, partial_of(j, t, h, chunk), s, q, k, ldk, v, ldv, lo, hi);
        }
    }
}

static void merge_chunks(const job *j, int64_t t, int64_t h)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    int64_t D = j->a->head_dim;
    float *o = nb_cpu_row(j->out, t) + h * D, max = -INFINITY, sum = 0;
    for (int64_t c = 0; c < j->n_chunks; c++) max = fmaxf(max, partial_of(j, t, h, c)[0]);
    memset(o, 0, (size_t)D * sizeof *o);
    for (int64_t c = 0; c < j->n_chunks; c++) {
        const float *p = partial_of(j, t, h, c);
        float weight = expf(j->a->scale * (p[0] - max));
        sum += weight * p[1];
        k->axpy(o, weight, p + 2, D);
    }
    k->scale(o, 1 / sum, o, D);
    if (j->lse.buf) nb_cpu_row(j->lse, t)[h] = j->a->scale * max + logf(sum);
}

void nb_cpu_attention_few(nb_backend *be, nb_view out, nb_view lse, nb_view q, nb_view k, nb_view v,
                          const nb_attention *a)
{
    job j = {.be = be, .out = out, .lse = lse, .q = q, .k = k, .v = v, .a = a};
    int64_t T = q.rows, H = a->n_heads, D = a->head_dim;
    j.group = H / a->n_kv_heads;
    j.key0 = a->window > 0 ? nb_max_i64(0, a->pos0 + 1 - a->window) : 0;
    j.n_chunks = (a->pos0 + T - j.key0 + CHUNK - 1) / CHUNK;
    j.thread_bytes = nb_align_up((size_t)(CHUNK + D + 2 * CHUNK * D) * 4 + (size_t)D * 2, 64);
    j.scratch = nb_cpu_scratch(be, NB_CPU_THREAD, j.thread_bytes * (size_t)be->threads);
    size_t bytes = (size_t)(T * H * j.n_chunks * (D + 2)) * sizeof *j.partial;
    j.partial = nb_cpu_scratch(be, NB_CPU_PANEL, bytes);
    if (!j.scratch || !j.partial) return;
    bool small = T * H * D * j.n_chunks * CHUNK <= NB_CPU_PARALLEL_MIN * 4;
#pragma omp parallel num_threads(small ? 1 : be->threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < a->n_kv_heads * j.n_chunks; i++) {
            run_task(&j, i / j.n_chunks, i % j.n_chunks);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < T * H; i++) merge_chunks(&j, i / H, i % H);
    }
}
