/* Dialect blocks on the CPU: fake quantization of rows, and linears on integers.
 *
 * Where weight and input are dialect formats of one block size, both become half units and
 * exponents; the product of two blocks is an integer, and only adding up blocks in fp32 rounds:
 * |error| <= blocks 2^-24 sum |products of blocks|, the same bits as the scalar reference for any
 * number of rows. So a prompt at once gives what it gives token by token (spec: BlockDialect
 * D16), which a product of decoded values, with sums in an order of its own, would not. */
#include "base/size.h"
#include "format/dialect.h"
#include "op/cpu/backend_cpu.h"

#define ROW_BLOCK 32 /* rows of w per task */

int64_t nb_cpu_fake_quant_row(const nb_kernels *k, const nb_format *f, const float *x, int64_t n,
                              float *out)
{
    enum { PIECE = 1024 };
    if (!nb_format_is_dialect(f)) return nb_fake_quant_row(f, x, n, out);
    int64_t bad = nb_count_nonfinite(x, n);
    for (int64_t at = 0; at < n; at += PIECE) {
        int8_t half[PIECE];
        uint8_t exponent[PIECE / 16];
        int64_t m = nb_min_i64(n - at, PIECE);
        k->dialect_quantize(f, x + at, m, half, exponent);
        k->dialect_value(half, exponent, m, f->group, out + at);
    }
    return bad;
}

int64_t nb_cpu_fake_quant_rows(const nb_kernels *k, const nb_format *f, const float *x, int64_t ld,
                               int64_t n_rows, int64_t n, float *out)
{
    if (f->tile > 1) return nb_fake_quant_rows(f, x, ld, n_rows, n, out, n);
    int64_t bad = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        bad += nb_cpu_fake_quant_row(k, f, x + r * ld, n, out + r * n);
    }
    return bad;
}

int64_t nb_cpu_fake_quant(nb_backend *be, const nb_format *f, const float *x, int64_t ld,
                          int64_t n_rows, int64_t n, float *out)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    int64_t bad = 0, tile = nb_tile_rows(f);
#pragma omp parallel for num_threads(be->threads) reduction(+ : bad)                               \
    if (n_rows * n > NB_CPU_PARALLEL_MIN)
    for (int64_t r = 0; r < n_rows; r += tile) {
        bad += nb_cpu_fake_quant_rows(k, f, x + r * ld, ld, nb_min_i64(tile, n_rows - r), n,
                                      out + r * n);
    }
    return bad;
}

typedef struct job {
    nb_backend *be;
    nb_view out;
    const nb_linear *w;
    const float *low;
    bool add;
    int64_t blocks;
    int8_t *half;      /* [T, n_in] of the input */
    uint8_t *exponent; /* [T, blocks] */
} job;

static void quantize_input(const job *j, nb_view x)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    int64_t bad = 0;
#pragma omp parallel for num_threads(j->be->threads) reduction(+ : bad) \
    if (x.rows * x.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < x.rows; t++) {
        const float *from = nb_cpu_row(x, t);
        /* with `low` the input has been counted on the way to the low-rank factors */
        if (!j->low) bad += nb_count_nonfinite(from, x.cols);
        k->dialect_quantize(&j->w->act, from, x.cols, j->half + t * x.cols,
                            j->exponent + t * j->blocks);
    }
    j->be->nonfinite += bad;
}

/* y[t] for rows [begin, end) of w, decoded once; half [ROW_BLOCK, n_in], exponent [ROW_BLOCK,
 * blocks]: scratch. A row of x meets all of them while it is in the first-level cache. */
static void dot_rows(const job *j, int64_t begin, int64_t end, int8_t *half, uint8_t *exponent)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    int64_t n_in = j->w->w.n_in;
    for (int64_t n = begin; n < end; n++) {
        const uint8_t *plane[NB_MAX_PLANES] = {0};
        nb_cpu_row_planes(j->w, n, plane);
        k->dialect_decode(&j->w->w.format, plane, n_in, half + (n - begin) * n_in,
                          exponent + (n - begin) * j->blocks);
    }
    for (int64_t t = 0; t < j->out.rows; t++) {
        for (int64_t n = begin; n < end; n++) {
            float y = k->dialect_dot(j->half + t * n_in, j->exponent + t * j->blocks,
                                     half + (n - begin) * n_in, exponent + (n - begin) * j->blocks,
                                     n_in, j->w->w.format.group);
            nb_cpu_store(j->be, j->out, t, n, y, j->w, j->low, j->add);
        }
    }
}

void nb_cpu_dialect_linear(nb_backend *be, nb_view out, nb_view x, const nb_linear *w,
                           const float *low, bool add)
{
    int64_t n_in = w->w.n_in, n_out = w->w.n_out;
    job j = {.be = be, .out = out, .w = w, .low = low, .add = add};
    j.blocks = nb_format_groups(&w->w.format, n_in);
    j.half = nb_cpu_scratch(be, NB_CPU_INTEGER, (size_t)(x.rows * (n_in + j.blocks)));
    size_t bytes = nb_align_up((size_t)(ROW_BLOCK * (n_in + j.blocks)), 64);
    char *scratch = nb_cpu_scratch(be, NB_CPU_THREAD, bytes * (size_t)be->threads);
    if (!j.half || !scratch) return;
    j.exponent = (uint8_t *)j.half + x.rows * n_in;
    quantize_input(&j, x);
#pragma omp parallel for num_threads(be->threads)                                                  \
    schedule(dynamic) if (n_in * n_out > NB_CPU_PARALLEL_MIN)
    for (int64_t block = 0; block < n_out; block += ROW_BLOCK) {
        int8_t *half = (int8_t *)scratch + bytes * (size_t)omp_get_thread_num();
        dot_rows(&j, block, nb_min_i64(block + ROW_BLOCK, n_out), half,
                 (uint8_t *)half + ROW_BLOCK * n_in);
    }
}
