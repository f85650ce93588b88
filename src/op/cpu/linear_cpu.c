/* Linears: weights stay as they lie in the file or mapping and are decoded on the way.
 *
 * Few rows of x (decoding): each row of w is read once and meets every row of x in a dot product.
 * Many rows: product_cpu.c. Here also: what happens to x first (act format, bf16), embeddings. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "format/dialect.h"
#include "op/cpu/backend_cpu.h"

/* Rows of w per task of the dot-product path. */
#define ROW_BLOCK 32

/* ---- life ------------------------------------------------------------------------------ */

void nb_cpu_linear_free(nb_backend *be, nb_linear *l)
{
    if (!l) return;
    nb_cpu_lorc_free(be, l);
    free(l->bias);
    free(l);
}

nb_status nb_cpu_linear_create(nb_backend *be, const nb_linear_desc *d, nb_linear **out,
                               nb_error *err)
{
    *out = NULL;
    nb_linear *l = calloc(1, sizeof *l);
    if (!l) return nb_fail_memory(err, "linear", sizeof *l);
    l->w = *d->w;
    l->act = d->act;
    l->dequant = nb_kernels_find_dequant(&nb_cpu_of(be)->k, &d->w->format);
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = l->w.format.family->planes(&l->w.format, l->w.n_in, spec);
    for (int i = 0; i < n; i++) l->row_bytes[i] = spec[i].row_bytes;
    if (d->bias) {
        size_t bytes = (size_t)l->w.n_out * sizeof *l->bias;
        l->bias = malloc(bytes);
        if (!l->bias) {
            nb_cpu_linear_free(be, l);
            return nb_fail_memory(err, "bias", bytes);
        }
        memcpy(l->bias, d->bias, bytes);
    }
    nb_status st = nb_cpu_lorc_create(be, &d->lorc, l, err);
    if (st != NB_OK) {
        nb_cpu_linear_free(be, l);
        return st;
    }
    *out = l;
    return NB_OK;
}

size_t nb_cpu_linear_bytes(const nb_linear *l)
{
    size_t bias = l->bias ? (size_t)l->w.n_out * sizeof *l->bias : 0;
    return (size_t)nb_matrix_bytes(&l->w) + bias + nb_cpu_lorc_bytes(l);
}

void nb_cpu_row_planes(const nb_linear *w, int64_t n, const uint8_t *plane[NB_MAX_PLANES])
{
    for (int i = 0; i < NB_MAX_PLANES; i++) {
        plane[i] = w->row_bytes[i] ? w->w.plane[i] + n * w->row_bytes[i] : NULL;
    }
}

void nb_cpu_dequant_row(const nb_linear *w, int64_t n, float *out)
{
    const uint8_t *plane[NB_MAX_PLANES];
    nb_cpu_row_planes(w, n, plane);
    w->dequant(&w->w.format, plane, w->w.n_in, out);
}

const void *nb_cpu_plain_rows(const nb_linear *w, nb_dtype dtype)
{
    const nb_format *f = &w->w.format;
    if (nb_format_is_quantized(f) || f->variant != (int)dtype) return NULL;
    uintptr_t size = nb_dtypes[dtype].block_bytes;
    return (uintptr_t)w->w.plane[0] % size == 0 ? w->w.plane[0] : NULL;
}

/* ---- embedding ------------------------------------------------------------------------- */

void nb_cpu_embed_forward(nb_backend *be, nb_view out, const nb_linear *w, const int32_t *ids)
{
    nb_cpu *cpu = nb_cpu_of(be);
    assert(out.cols == w->w.n_in);
    if (!nb_fault_check_ids(&cpu->fault, "token", ids, out.rows, w->w.n_out)) return;
#pragma omp parallel for num_threads(be->threads) if (out.rows * out.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < out.rows; t++) {
        nb_cpu_dequant_row(w, ids[t], nb_cpu_row(out, t));
    }
}

/* ---- input ----------------------------------------------------------------------------- */

/* x as operands: fake-quantized, and rounded to bf16 where that is the compute type. */
typedef struct operands {
    float *f32;     /* [T, M] or NULL where x itself serves */
    uint16_t *bf16; /* [T, M] or NULL */
} operands;

static bool prepare_input(nb_backend *be, nb_view x, const nb_format *act, operands *o)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    bool quantize = nb_format_is_quantized(act), round = be->compute == NB_COMPUTE_BF16;
    bool few = x.rows <= NB_CPU_FEW_ROWS;
    size_t n = (size_t)(x.rows * x.cols);
    *o = (operands){0};
    if (quantize || (round && few)) {
        o->f32 = nb_cpu_scratch(be, NB_CPU_INPUT_F32, n * sizeof *o->f32);
        if (!o->f32) return false;
    }
    if (round) {
        o->bf16 = nb_cpu_scratch(be, NB_CPU_INPUT_BF16, n * sizeof *o->bf16);
        if (!o->bf16) return false;
    }
    if (!quantize && !round) return true;
    int64_t bad = 0, tile = nb_tile_rows(act), cols = x.cols;
#pragma omp parallel for num_threads(be->threads) reduction(+ : bad)                               \
    if (x.rows * cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t0 = 0; t0 < x.rows; t0 += tile) {
        int64_t end = nb_min_i64(t0 + tile, x.rows);
        if (quantize) {
            bad += nb_cpu_fake_quant_rows(k, act, nb_cpu_row(x, t0), x.stride, end - t0, cols,
                                          o->f32 + t0 * cols);
        }
        for (int64_t t = t0; round && t < end; t++) {
            const float *from = quantize ? o->f32 + t * cols : nb_cpu_row(x, t);
            k->bf16_from_f32(o->bf16 + t * cols, from, cols);
            if (few) k->f32_from_bf16(o->f32 + t * cols, o->bf16 + t * cols, cols);
        }
    }
    be->nonfinite += bad;
    return true;
}

/* ---- few rows -------------------------------------------------------------------------- */

void nb_cpu_store(nb_backend *be, nb_view out, int64_t t, int64_t n, float y, const nb_linear *w,
                  const float *low, bool add)
{
    if (w->bias) y += w->bias[n];
    if (low) y += nb_cpu_of(be)->k.dot_f32(w->low_a + n * w->rank, low + t * w->rank, w->rank);
    float *to = nb_cpu_row(out, t) + n;
    *to = add ? *to + y : y;
}

typedef struct few_job {
    nb_backend *be;
    nb_view out;
    const float *x; /* rounded to bf16 in that mode */
    int64_t ldx;
    const nb_linear *w;
    const float *low; /* [T, rank] or NULL */
    bool add;
    const float *plain_f32; /* rows of w that need no decoding, or NULL */
    const uint16_t *plain_bf16;
} few_job;

/* y[t] for one row of w; tmp [n_in] floats, half [n_in]. */
static void dot_row(const few_job *j, int64_t n, float *tmp, uint16_t *half)
{
    const nb_cpu *cpu = nb_cpu_of(j->be);
    int64_t n_in = j->w->w.n_in;
    const float *w = j->plain_f32 ? j->plain_f32 + n * n_in : tmp;
    const uint16_t *w16 = j->plain_bf16 ? j->plain_bf16 + n * n_in : NULL;
    if (!j->plain_f32 && !j->plain_bf16) nb_cpu_dequant_row(j->w, n, tmp);
    if (!w16 && j->be->compute == NB_COMPUTE_BF16) {
        cpu->k.bf16_from_f32(half, w, n_in);
        w16 = half;
    }
    for (int64_t t = 0; t < j->out.rows; t++) {
        const float *x = j->x + t * j->ldx;
        float y = w16 ? cpu->k.dot_bf16(w16, x, n_in) : cpu->k.dot_f32(w, x, n_in);
        nb_cpu_store(j->be, j->out, t, n, y, j->w, j->low, j->add);
    }
}

static void run_few(const few_job *j)
{
    int64_t n_in = j->w->w.n_in, n_out = j->w->w.n_out;
    size_t bytes = nb_align_up((size_t)n_in * 6, 64);
    char *scratch = nb_cpu_scratch(j->be, NB_CPU_THREAD, bytes * (size_t)j->be->threads);
    if (!scratch) return;
#pragma omp parallel for num_threads(j->be->threads) if (n_in * n_out > NB_CPU_PARALLEL_MIN)
    for (int64_t block = 0; block < n_out; block += ROW_BLOCK) {
        float *tmp = (float *)(scratch + bytes * (size_t)omp_get_thread_num());
        int64_t end = nb_min_i64(block + ROW_BLOCK, n_out);
        for (int64_t n = block; n < end; n++) dot_row(j, n, tmp, (uint16_t *)(tmp + n_in));
    }
}

void nb_cpu_linear_forward(nb_backend *be, nb_view out, nb_view x, const nb_linear *w, bool add)
{
    assert(out.rows == x.rows && x.cols == w->w.n_in && out.cols == w->w.n_out);
    bool few = x.rows <= NB_CPU_FEW_ROWS;
    bool integer = nb_dialect_is_pair(&w->w.format, &w->act);
    if (out.rows == 0) return;
    if (integer && w->rank == 0) {
        nb_cpu_dialect_linear(be, out, x, w, NULL, add);
        return;
    }
    operands o;
    if (!prepare_input(be, x, &w->act, &o)) return;
    const float *f32 = o.f32 ? o.f32 : nb_cpu_row(x, 0);
    int64_t ldx = o.f32 ? x.cols : x.stride;
    bool narrow = o.bf16 && !few;
    const void *operand = narrow ? (const void *)o.bf16 : f32;
    if (narrow) ldx = x.cols;
    const float *low = NULL;
    if (w->rank > 0) {
        low = nb_cpu_lorc_input(be, operand, ldx, x.rows, w);
        if (!low) return;
    }
    if (integer) {
        nb_cpu_dialect_linear(be, out, x, w, low, add);
    } else if (few) {
        run_few(&(few_job){be, out, f32, ldx, w, low, add, nb_cpu_plain_rows(w, NB_F32),
                           nb_cpu_plain_rows(w, NB_BF16)});
    } else {
        nb_cpu_product(be, out, operand, ldx, w, low, add);
    }
}
