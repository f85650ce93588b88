/* Host blocks that are edited: fp32 copies, and rotations by Walsh-Hadamard matrices. */
#include <math.h>

#include "base/size.h"
#include "kernel/kernel.h"
#include "model/model.h"

nb_status nb_host_linear_expand(nb_host_linear *l, nb_arena *arena, int threads, nb_error *err)
{
    size_t n;
    float *w = NULL;
    if (nb_mul_size((size_t)l->w.n_out, (size_t)l->w.n_in, &n)) {
        w = nb_arena_alloc(arena, n, sizeof *w);
    }
    if (!w) return nb_fail_memory(err, l->name, n * sizeof *w);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < l->w.n_out; r++) nb_matrix_dequant(&l->w, r, 1, w + r * l->w.n_in);
    l->w = (nb_matrix){.format = nb_format_plain(NB_F32),
                       .n_out = l->w.n_out,
                       .n_in = l->w.n_in,
                       .plane = {(const uint8_t *)w}};
    return NB_OK;
}

/* w [n_out, n_in] += A B */
static nb_status add_factors(nb_host_linear *l, float *w, nb_arena *arena, nb_error *err)
{
    nb_lorc *f = &l->lorc;
    if (f->rank == 0) return NB_OK;
    float *a = nb_arena_alloc(arena, (size_t)f->rank * (size_t)l->w.n_out, sizeof *a);
    float *b = nb_arena_alloc(arena, (size_t)f->rank * (size_t)l->w.n_in, sizeof *b);
    if (!a || !b) return nb_fail(err, NB_ERESOURCE, "out of memory: unpacking %s", l->name);
    nb_matrix_dequant(&f->a, 0, f->rank, a);
    nb_matrix_dequant(&f->b, 0, f->rank, b);
    nb_lorc_add(f, a, b, 0, l->w.n_out, w);
    f->rank = 0;
    return NB_OK;
}

static float *weight_of(const nb_host_linear *l) { return (float *)(uintptr_t)l->w.plane[0]; }

nb_status nb_host_linear_unpack(nb_host_linear *l, nb_arena *arena, int threads, nb_error *err)
{
    if (!l->name || !nb_format_is_quantized(&l->w.format)) return NB_OK;
    NB_TRY(nb_host_linear_expand(l, arena, threads, err));
    return add_factors(l, weight_of(l), arena, err);
}

/* ---- rotations ------------------------------------------------------------------------------- */

void nb_host_rotate_columns(const nb_host_linear *l, int64_t run, int threads, unsigned cpu)
{
    float *w = weight_of(l);
    nb_kernels k;
    nb_kernels_init(&k, cpu);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < l->w.n_out; r++) k.hadamard(w + r * l->w.n_in, l->w.n_in, run);
}

/* H w of `run` rows of n values: sums and differences of whole rows. */
static void rotate_run(float *w, int64_t run, int64_t n)
{
    float factor = (float)(1 / sqrt((double)run));
    for (int64_t h = 1; h < run; h *= 2) {
        for (int64_t i = 0; i < run; i++) {
            if (i & h) continue; /* the second of a pair */
            float *x = w + i * n, *y = w + (i + h) * n;
            for (int64_t j = 0; j < n; j++) {
                float a = x[j], b = y[j];
                x[j] = a + b;
                y[j] = a - b;
            }
        }
    }
    for (int64_t i = 0; i < run * n; i++) w[i] *= factor;
}

void nb_host_rotate_rows(const nb_host_linear *l, int64_t run, int threads)
{
    float *w = weight_of(l);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < l->w.n_out; r += run) rotate_run(w + r * l->w.n_in, run, l->w.n_in);
    for (int64_t r = 0; l->bias && r < l->w.n_out; r += run) {
        rotate_run((float *)(uintptr_t)l->bias + r, run, 1);
    }
}

/* ---- the hidden state ------------------------------------------------------------------------ */

/* A linear behind a norm: W diag(norm) H. */
static nb_status turn_reader(nb_host_linear *l, const nb_host_norm *norm, int run, nb_arena *arena,
                             int threads, unsigned cpu, nb_error *err)
{
    if (!l->name) return NB_OK;
    NB_TRY(nb_host_linear_expand(l, arena, threads, err));
    float *w = weight_of(l);
    int64_t n = l->w.n_in;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < l->w.n_out; r++) {
        for (int64_t i = 0; i < n; i++) w[r * n + i] *= norm->weight[i];
    }
    nb_host_rotate_columns(l, run, threads, cpu);
    return NB_OK;
}

/* A linear that adds to the hidden state: H W, H b. */
static nb_status turn_writer(nb_host_linear *l, int run, nb_arena *arena, int threads,
                             nb_error *err)
{
    NB_TRY(nb_host_linear_expand(l, arena, threads, err)); /* the bias is the arena's already */
    nb_host_rotate_rows(l, run, threads);
    return NB_OK;
}

static nb_status clear_norm(nb_host_norm *norm, nb_arena *arena, nb_error *err)
{
    float *ones = nb_arena_alloc(arena, (size_t)norm->n, sizeof *ones);
    if (!ones) return nb_fail_memory(err, norm->name, (size_t)norm->n * sizeof *ones);
    for (int64_t i = 0; i < norm->n; i++) ones[i] = 1;
    norm->weight = ones;
    return NB_OK;
}

nb_status nb_host_block_rotate(nb_host_block *b, int run, nb_arena *arena, int threads,
                               unsigned cpu, nb_error *err)
{
    static const struct {
        nb_role role;
        nb_norm_role norm;
    } readers[] = {{NB_Q, NB_NORM_ATTN},
                   {NB_K, NB_NORM_ATTN},
                   {NB_V, NB_NORM_ATTN},
                   {NB_GATE, NB_NORM_FFN},
                   {NB_UP, NB_NORM_FFN}};
    for (size_t i = 0; i < NB_COUNT(readers); i++) {
        NB_TRY(turn_reader(&b->linear[readers[i].role], &b->norm[readers[i].norm], run, arena,
                           threads, cpu, err));
    }
    NB_TRY(turn_writer(&b->linear[NB_O], run, arena, threads, err));
    NB_TRY(turn_writer(&b->linear[NB_DOWN], run, arena, threads, err));
    NB_TRY(clear_norm(&b->norm[NB_NORM_ATTN], arena, err));
    return clear_norm(&b->norm[NB_NORM_FFN], arena, err);
}
