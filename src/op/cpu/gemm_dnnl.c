/* Matrix products by oneDNN's matmul primitive (C API). */
#include "op/cpu/gemm.h"

#include <inttypes.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>

#define N_BUCKETS 256
#define MAX_OPS   4096 /* a few KiB each; more appear only if every prompt has a new length */

struct nb_gemm_op {
    nb_gemm_op *next;
    nb_gemm_desc desc;
    dnnl_engine_t engine; /* borrowed */
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
};

struct nb_gemm {
    dnnl_engine_t engine;
    nb_gemm_op *bucket[N_BUCKETS];
    int n_ops;
};

/* ---- what changed from 2.x to 3.x ------------------------------------------------------ */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t matrix_desc;
typedef const_dnnl_memory_desc_t matrix_desc_ref;

static dnnl_status_t make_matrix(matrix_desc *out, const dnnl_dims_t dims, dnnl_data_type_t type,
                                 const dnnl_dims_t strides)
{
    return dnnl_memory_desc_create_with_strides(out, 2, dims, type, strides);
}

static void free_matrix(matrix_desc *m) { dnnl_memory_desc_destroy(*m); }

static dnnl_status_t make_matmul(dnnl_primitive_desc_t *out, dnnl_engine_t engine,
                                 const matrix_desc *a, const matrix_desc *b, const matrix_desc *c,
                                 dnnl_primitive_attr_t attr)
{
    return dnnl_matmul_primitive_desc_create(out, engine, *a, *b, NULL, *c, attr);
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef);
}
#else
typedef dnnl_memory_desc_t matrix_desc;
typedef const dnnl_memory_desc_t *matrix_desc_ref;

static dnnl_status_t make_matrix(matrix_desc *out, const dnnl_dims_t dims, dnnl_data_type_t type,
                                 const dnnl_dims_t strides)
{
    return dnnl_memory_desc_init_by_strides(out, 2, dims, type, strides);
}

static void free_matrix(matrix_desc *m) { NB_UNUSED(m); }

static dnnl_status_t make_matmul(dnnl_primitive_desc_t *out, dnnl_engine_t engine,
                                 const matrix_desc *a, const matrix_desc *b, const matrix_desc *c,
                                 dnnl_primitive_attr_t attr)
{
    dnnl_matmul_desc_t d;
    dnnl_status_t st = dnnl_matmul_desc_init(&d, a, b, NULL, c);
    return st == dnnl_success ? dnnl_primitive_desc_create(out, &d, attr, engine, NULL) : st;
}

static dnnl_status_t append_sum(dnnl_post_ops_t ops) { return dnnl_post_ops_append_sum(ops, 1); }
#endif

/* ---- building -------------------------------------------------------------------------- */

/* Scratch is the caller's (one per thread); sum makes the product add to c. */
static dnnl_status_t make_attr(dnnl_primitive_attr_t *out, bool add)
{
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t st = dnnl_primitive_attr_create(out);
    if (st == dnnl_success) {
        st = dnnl_primitive_attr_set_scratchpad_mode(*out, dnnl_scratchpad_mode_user);
    }
    if (st != dnnl_success || !add) return st;
    st = dnnl_post_ops_create(&ops);
    if (st == dnnl_success) st = append_sum(ops);
    if (st == dnnl_success) st = dnnl_primitive_attr_set_post_ops(*out, ops);
    dnnl_post_ops_destroy(ops);
    return st;
}

static dnnl_status_t make_matrices(const nb_gemm_desc *d, matrix_desc m[3], int *n_made)
{
    dnnl_data_type_t type = d->bf16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_dims_t dims[3] = {{d->m, d->k}, {d->k, d->n}, {d->m, d->n}};
    const dnnl_dims_t strides[3] = {{d->a_cols ? 1 : d->lda, d->a_cols ? d->lda : 1},
                                    {d->b_rows ? 1 : d->ldb, d->b_rows ? d->ldb : 1},
                                    {d->ldc, 1}};
    for (int i = 0; i < 3; i++) {
        dnnl_status_t st = make_matrix(&m[i], dims[i], i == 2 ? dnnl_f32 : type, strides[i]);
        if (st != dnnl_success) return st;
        *n_made = i + 1;
    }
    return dnnl_success;
}

static dnnl_status_t make_op(nb_gemm_op *op)
{
    matrix_desc m[3];
    int n_made = 0;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t st = make_matrices(&op->desc, m, &n_made);
    if (st == dnnl_success) st = make_attr(&attr, op->desc.add);
    if (st == dnnl_success) st = make_matmul(&op->pd, op->engine, &m[0], &m[1], &m[2], attr);
    if (st == dnnl_success) st = dnnl_primitive_create(&op->primitive, op->pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    for (int i = 0; i < n_made; i++) free_matrix(&m[i]);
    return st;
}

static void free_op(nb_gemm_op *op)
{
    if (op->primitive) dnnl_primitive_destroy(op->primitive);
    if (op->pd) dnnl_primitive_desc_destroy(op->pd);
    free(op);
}

/* ---- cache ----------------------------------------------------------------------------- */

nb_status nb_gemm_create(nb_gemm **out, nb_error *err)
{
    *out = NULL;
    nb_gemm *g = calloc(1, sizeof *g);
    if (!g) return nb_fail_memory(err, "gemm cache", sizeof *g);
    dnnl_status_t st = dnnl_engine_create(&g->engine, dnnl_cpu, 0);
    if (st != dnnl_success) {
        free(g);
        return nb_fail(err, NB_ERESOURCE, "oneDNN: no CPU engine (status %d)", (int)st);
    }
    *out = g;
    return NB_OK;
}

static void drop_ops(nb_gemm *g)
{
    for (int i = 0; i < N_BUCKETS; i++) {
        for (nb_gemm_op *op = g->bucket[i]; op;) {
            nb_gemm_op *next = op->next;
            free_op(op);
            op = next;
        }
        g->bucket[i] = NULL;
    }
    g->n_ops = 0;
}

void nb_gemm_trim(nb_gemm *g)
{
    if (g->n_ops > MAX_OPS) drop_ops(g);
}

void nb_gemm_free(nb_gemm *g)
{
    if (!g) return;
    drop_ops(g);
    dnnl_engine_destroy(g->engine);
    free(g);
}

static unsigned bucket_of(const nb_gemm_desc *d)
{
    int64_t v[sizeof *d / sizeof(int64_t)];
    memcpy(v, d, sizeof v);
    uint64_t h = 0;
    for (size_t i = 0; i < NB_COUNT(v); i++) h = (h ^ (uint64_t)v[i]) * 0x9E3779B97F4A7C15u;
    return (unsigned)(h >> 32) % N_BUCKETS;
}

nb_status nb_gemm_get(nb_gemm *g, const nb_gemm_desc *d, const nb_gemm_op **out, nb_error *err)
{
    unsigned b = bucket_of(d);
    for (nb_gemm_op *op = g->bucket[b]; op; op = op->next) {
        if (memcmp(&op->desc, d, sizeof *d) != 0) continue;
        *out = op;
        return NB_OK;
    }
    *out = NULL;
    nb_gemm_op *op = calloc(1, sizeof *op);
    if (!op) return nb_fail_memory(err, "gemm", sizeof *op);
    op->desc = *d;
    op->engine = g->engine;
    /* A primitive is built for the number of threads that its builder would use. */
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    dnnl_status_t st = make_op(op);
    omp_set_num_threads(threads);
    if (st != dnnl_success) {
        free_op(op);
        return nb_fail(err, st == dnnl_out_of_memory ? NB_ERESOURCE : NB_EUSAGE,
                       "oneDNN: no %s product of %" PRId64 " x %" PRId64 " x %" PRId64
                       " on this CPU (status %d)",
                       d->bf16 ? "bf16" : "f32", d->m, d->n, d->k, (int)st);
    }
    op->next = g->bucket[b];
    g->bucket[b] = op;
    g->n_ops++;
    *out = op;
    return NB_OK;
}

/* ---- running --------------------------------------------------------------------------- */

static matrix_desc_ref op_matrix(const nb_gemm_op *op, dnnl_query_t what)
{
    return dnnl_primitive_desc_query_md(op->pd, what, 0);
}

size_t nb_gemm_scratch(const nb_gemm_op *op)
{
    return dnnl_memory_desc_get_size(op_matrix(op, dnnl_query_scratchpad_md));
}

bool nb_gemm_run(const nb_gemm_op *op, const void *a, const void *b, float *c, void *scratch)
{
    const struct {
        int arg;
        dnnl_query_t what;
        void *data;
    } used[4] = {{DNNL_ARG_SRC, dnnl_query_src_md, (void *)(uintptr_t)a},
                 {DNNL_ARG_WEIGHTS, dnnl_query_weights_md, (void *)(uintptr_t)b},
                 {DNNL_ARG_DST, dnnl_query_dst_md, c},
                 {DNNL_ARG_SCRATCHPAD, dnnl_query_scratchpad_md, scratch}};
    dnnl_exec_arg_t args[4];
    dnnl_stream_t stream = NULL;
    int n = 0;
    bool ok = dnnl_stream_create(&stream, op->engine, dnnl_stream_default_flags) == dnnl_success;
    for (; ok && n < 4; n++) {
        args[n].arg = used[n].arg;
        matrix_desc_ref md = op_matrix(op, used[n].what);
        ok = dnnl_memory_create(&args[n].memory, md, op->engine, used[n].data) == dnnl_success;
        if (!ok) break;
    }
    ok = ok && dnnl_primitive_execute(op->primitive, stream, n, args) == dnnl_success;
    for (int i = 0; i < n; i++) dnnl_memory_destroy(args[i].memory);
    if (stream) dnnl_stream_destroy(stream);
    return ok;
}
