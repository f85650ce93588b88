/* x^T x by tiles of the upper triangle, each one product over all rows of x. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "op/cpu/backend_cpu.h"

/* Rows and columns of a tile: large enough for the product's rate, small enough that narrow models
 * (576 inputs: 6 tiles) keep several threads at work. */
#define TILE 192

typedef struct gram {
    nb_backend *be;
    nb_view out;
    const float *x; /* [T, C] after the act format */
    int64_t T, C, ldx, tiles;
    const nb_gemm_op *op[2][2]; /* [last row of tiles][last column of tiles] */
    char *scratch;
    size_t thread_bytes;
} gram;

static int64_t tile_length(const gram *g, int64_t i) { return nb_min_i64(TILE, g->C - i * TILE); }

static bool find_ops(gram *g)
{
    for (int last_m = 0; last_m < 2; last_m++) {
        for (int last_n = last_m; last_n < 2; last_n++) {
            int64_t m = last_m ? g->tiles - 1 : 0, n = last_n ? g->tiles - 1 : 0;
            nb_gemm_desc d = {.m = tile_length(g, m),
                              .n = tile_length(g, n),
                              .k = g->T,
                              .lda = g->ldx,
                              .ldb = g->ldx,
                              .ldc = g->out.stride,
                              .a_cols = true,
                              .add = true};
            g->op[last_m][last_n] = nb_cpu_gemm(g->be, &d);
            if (!g->op[last_m][last_n]) return false;
            size_t bytes = nb_align_up(nb_gemm_scratch(g->op[last_m][last_n]), 64);
            g->thread_bytes = bytes > g->thread_bytes ? bytes : g->thread_bytes;
        }
    }
    return true;
}

static bool run_tile(const gram *g, int64_t i, int64_t j)
{
    const nb_gemm_op *op = g->op[i + 1 == g->tiles][j + 1 == g->tiles];
    char *scratch = g->scratch + g->thread_bytes * (size_t)omp_get_thread_num();
    return nb_gemm_run(op, g->x + i * TILE, g->x + j * TILE,
                       nb_cpu_row(g->out, i * TILE) + j * TILE, scratch);
}

static bool run_tiles(const gram *g)
{
    bool ok = true;
#pragma omp parallel num_threads(g->be->threads) reduction(&& : ok)
    {
        omp_set_num_threads(1); /* this region's own copy: keeps oneDNN on this thread */
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < g->tiles * g->tiles; t++) {
            int64_t i = t / g->tiles, j = t % g->tiles;
            if (j >= i) ok = run_tile(g, i, j) && ok;
        }
    }
    return ok;
}

/* To a mean square of 1; the sum in pieces, so that fp32 keeps it for wide rows. */
static void scale_to_unit(const nb_kernels *k, float *q, int64_t n)
{
    enum { PIECE = 1024 };
    double sum = 0;
    for (int64_t i = 0; i < n; i += PIECE) {
        int64_t m = nb_min_i64(PIECE, n - i);
        sum += (double)k->dot_f32(q + i, q + i, m);
    }
    if (sum > 0) k->scale(q, (float)sqrt((double)n / sum), q, n);
}

/* q [T, C] = act(x), scaled. */
static void prepare(nb_backend *be, nb_view x, const nb_format *act, bool unit, float *q)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    int64_t cols = x.cols;
    if (act) {
        be->nonfinite += nb_cpu_fake_quant(be, act, nb_cpu_row(x, 0), x.stride, x.rows, cols, q);
    }
#pragma omp parallel for num_threads(be->threads) if (x.rows * cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < x.rows; t++) {
        float *row = q + t * cols;
        if (!act) memcpy(row, nb_cpu_row(x, t), (size_t)cols * sizeof *row);
        if (unit) scale_to_unit(k, row, cols);
    }
}

void nb_cpu_gram_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *act, bool unit)
{
    assert(out.rows == x.cols && out.cols == x.cols);
    if (x.rows == 0 || x.cols == 0) return;
    gram g = {.be = be,
              .out = out,
              .x = nb_cpu_row(x, 0),
              .T = x.rows,
              .C = x.cols,
              .ldx = x.stride,
              .tiles = (x.cols + TILE - 1) / TILE};
    if (act && !nb_format_is_quantized(act)) act = NULL;
    if (act || unit) {
        size_t bytes = (size_t)(x.rows * x.cols) * sizeof(float);
        float *q = nb_cpu_scratch(be, NB_CPU_INPUT_F32, bytes);
        if (!q) return;
        prepare(be, x, act, unit, q);
        g.x = q;
        g.ldx = x.cols;
    }
    nb_gemm_trim(nb_cpu_of(be)->gemm);
    if (!find_ops(&g)) return;
    g.scratch = nb_cpu_scratch(be, NB_CPU_THREAD, g.thread_bytes * (size_t)be->threads);
    if (g.scratch && !run_tiles(&g)) nb_cpu_fail_gemm(be);
}
