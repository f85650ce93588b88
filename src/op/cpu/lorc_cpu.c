/* Low-rank corrections: out += (x B^T) A as two thin products behind the main one.
 *
 * x B^T is made first, of the same operands as the main product, by dot products for few rows and
 * by oneDNN for many: the order of its sums is that of other linears, not of dialects'. A then
 * meets each tile (or dot product) of the output while it is at hand: linear_cpu.c, product_cpu.c.
 * Both factors are expanded once, B to the operand type, A to fp32 with one row per output. */
#include <stdlib.h>

#include "op/cpu/backend_cpu.h"

static nb_status fail(const nb_lorc *d, nb_error *err)
{
    size_t bytes = (size_t)d->rank * (size_t)(d->a.n_in + d->b.n_in) * sizeof(float);
    return nb_fail_memory(err, "low-rank factors", bytes);
}

/* [rank, n_out] -> [n_out, rank] */
static bool expand_a(const nb_matrix *a, float *out)
{
    float *row = malloc((size_t)a->n_in * sizeof *row);
    if (!row) return false;
    for (int64_t r = 0; r < a->n_out; r++) {
        nb_matrix_dequant(a, r, 1, row);
        for (int64_t n = 0; n < a->n_in; n++) out[n * a->n_out + r] = row[n];
    }
    free(row);
    return true;
}

/* The rows of b as operands. */
static bool expand_b(const nb_backend *be, const nb_matrix *b, void *out)
{
    if (be->compute != NB_COMPUTE_BF16) {
        nb_matrix_dequant(b, 0, b->n_out, out);
        return true;
    }
    float *row = malloc((size_t)b->n_in * sizeof *row);
    if (!row) return false;
    for (int64_t r = 0; r < b->n_out; r++) {
        nb_matrix_dequant(b, r, 1, row);
        nb_cpu_of(be)->k.bf16_from_f32((uint16_t *)out + r * b->n_in, row, b->n_in);
    }
    free(row);
    return true;
}

static bool create_b(const nb_backend *be, const nb_matrix *b, nb_linear *l)
{
    nb_dtype type = be->compute == NB_COMPUTE_BF16 ? NB_BF16 : NB_F32;
    l->low_b = calloc(1, sizeof *l->low_b);
    if (!l->low_b) return false;
    nb_matrix *m = &l->low_b->w;
    *m = (nb_matrix){.format = nb_format_plain(type), .n_out = b->n_out, .n_in = b->n_in};
    void *rows = malloc((size_t)nb_matrix_bytes(m));
    m->plane[0] = rows;
    return rows && expand_b(be, b, rows);
}

nb_status nb_cpu_lorc_create(nb_backend *be, const nb_lorc *d, nb_linear *l, nb_error *err)
{
    l->rank = d->rank;
    if (d->rank == 0) return NB_OK;
    l->low_a = malloc((size_t)(d->rank * d->a.n_in) * sizeof *l->low_a);
    bool ok = l->low_a && expand_a(&d->a, l->low_a) && create_b(be, &d->b, l);
    return ok ? NB_OK : fail(d, err);
}

void nb_cpu_lorc_free(nb_backend *be, nb_linear *l)
{
    NB_UNUSED(be);
    free(l->low_a);
    if (l->low_b) free((void *)l->low_b->w.plane[0]);
    free(l->low_b);
}

size_t nb_cpu_lorc_bytes(const nb_linear *l)
{
    if (l->rank == 0) return 0;
    return (size_t)(l->w.n_out * l->rank) * sizeof *l->low_a +
           (size_t)nb_matrix_bytes(&l->low_b->w);
}

static void run_few(const nb_kernels *k, const float *x, int64_t ldx, int64_t n_rows,
                    const nb_linear *b, float *out)
{
    int64_t n_in = b->w.n_in, rank = b->w.n_out;
    const float *f32 = nb_cpu_plain_rows(b, NB_F32);
    const uint16_t *bf16 = nb_cpu_plain_rows(b, NB_BF16);
    for (int64_t t = 0; t < n_rows; t++) {
        for (int64_t r = 0; r < rank; r++) {
            out[t * rank + r] = f32 ? k->dot_f32(f32 + r * n_in, x + t * ldx, n_in)
                                    : k->dot_bf16(bf16 + r * n_in, x + t * ldx, n_in);
        }
    }
}

const float *nb_cpu_lorc_input(nb_backend *be, const void *x, int64_t ldx, int64_t n_rows,
                               const nb_linear *w)
{
    size_t n = (size_t)(n_rows * w->rank);
    nb_buffer out = {nb_cpu_scratch(be, NB_CPU_LOW, n * sizeof *out.data), (int64_t)n};
    if (!out.data) return NULL;
    if (n_rows <= NB_CPU_FEW_ROWS) {
        run_few(&nb_cpu_of(be)->k, x, ldx, n_rows, w->low_b, out.data);
    } else {
        nb_cpu_product(be, nb_view_of(&out, n_rows, w->rank), x, ldx, w->low_b, NULL, false);
    }
    return out.data;
}
