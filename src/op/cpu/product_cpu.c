/* out [T, N] = x [T, K] w [N, K]^T for many rows: tiles of out, one oneDNN product each.
 *
 * Weights whose stored type is the operand type are used in place. All others are decoded to a
 * panel of rows, at most PANEL_BYTES at a time, all threads at work on the same panel:
 *
 *        K
 *     +-----+                          tasks of a panel: (n tile, m tile), n outermost, so that
 *   w | n 0 | panel 0                  one tile of w meets all rows of x while it is in the cache
 *     | n 1 |
 *     +-----+
 *     | ... | panel 1                  tile sizes depend on T and N alone
 */
#include "base/size.h"
#include "op/cpu/backend_cpu.h"

/* Measured on Zen 4 (docs/speed.md): smaller tiles lose to oneDNN's own packing, larger ones leave
 * threads without work. */
#define M_TILE 256
#define N_TILE 256
#define N_UNIT 32

#define PANEL_BYTES ((int64_t)16 << 20)

typedef struct tiling {
    int64_t size, last, count; /* count tiles of `size`, the last one of `last` */
} tiling;

/* Tiles of at most `most`, as even as multiples of `unit` allow. */
static tiling cut(int64_t n, int64_t most, int64_t unit)
{
    int64_t count = (n + most - 1) / most;
    int64_t size = nb_min_i64(((n + count - 1) / count + unit - 1) / unit * unit, n);
    count = (n + size - 1) / size;
    return (tiling){size, n - (count - 1) * size, count};
}

static int64_t tile_length(tiling t, int64_t i) { return i + 1 < t.count ? t.size : t.last; }

typedef struct job {
    nb_backend *be;
    nb_view out;
    const char *x; /* [T, ldx] operands of `size` bytes */
    int64_t ldx, size;
    const nb_linear *w;
    const float *low; /* [T, rank] or NULL: meets w->low_a behind each tile */
    bool add;
    tiling m, n;
    const nb_gemm_op *op[2][2]; /* [last m][last n] */
    const nb_gemm_op *low_op[2][2];
    char *scratch; /* per thread: product scratch, then a decoded row */
    size_t gemm_bytes, thread_bytes;
} job;

static const nb_gemm_op *find_op(job *j, const nb_gemm_desc *d)
{
    const nb_gemm_op *op = nb_cpu_gemm(j->be, d);
    size_t bytes = op ? nb_gemm_scratch(op) : 0;
    j->gemm_bytes = bytes > j->gemm_bytes ? bytes : j->gemm_bytes;
    return op;
}

static bool find_ops(job *j)
{
    int64_t rank = j->w->rank;
    for (int lm = 0; lm < 2; lm++) {
        for (int ln = 0; ln < 2; ln++) {
            nb_gemm_desc d = {.m = lm ? j->m.last : j->m.size,
                              .n = ln ? j->n.last : j->n.size,
                              .k = j->w->w.n_in,
                              .lda = j->ldx,
                              .ldb = j->w->w.n_in,
                              .ldc = j->out.stride,
                              .bf16 = j->size == sizeof(uint16_t),
                              .b_rows = true,
                              .add = j->add || j->w->bias};
            j->op[lm][ln] = find_op(j, &d);
            if (!j->op[lm][ln]) return false;
            if (!j->low) continue;
            d.k = d.lda = d.ldb = rank;
            d.bf16 = false;
            d.add = true;
            j->low_op[lm][ln] = find_op(j, &d);
            if (!j->low_op[lm][ln]) return false;
        }
    }
    return true;
}

static char *thread_scratch(const job *j)
{
    return j->scratch + j->thread_bytes * (size_t)omp_get_thread_num();
}

/* Row n of w as operands. */
static void decode_row(const job *j, int64_t n, void *out)
{
    if (j->size == sizeof(float)) {
        nb_cpu_dequant_row(j->w, n, out);
        return;
    }
    float *tmp = (float *)(thread_scratch(j) + j->gemm_bytes);
    nb_cpu_dequant_row(j->w, n, tmp);
    nb_cpu_of(j->be)->k.bf16_from_f32(out, tmp, j->w->w.n_in);
}

/* out += bias, or out = bias: the product then adds to it. */
static void put_bias(const job *j, int64_t m0, int64_t m, int64_t n0, int64_t n)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    for (int64_t t = m0; t < m0 + m; t++) {
        float *to = nb_cpu_row(j->out, t) + n0;
        if (j->add) {
            k->add(to, to, j->w->bias + n0, n);
        } else {
            k->scale(to, 1, j->w->bias + n0, n);
        }
    }
}

/* panel: operands of the weight rows from n tile `first` on. */
static bool run_tile(const job *j, const char *panel, int64_t first, int64_t in, int64_t im)
{
    int64_t m0 = im * j->m.size, n0 = in * j->n.size, k = j->w->w.n_in;
    bool last_m = im + 1 == j->m.count, last_n = in + 1 == j->n.count;
    float *out = nb_cpu_row(j->out, m0) + n0;
    if (j->w->bias) put_bias(j, m0, tile_length(j->m, im), n0, tile_length(j->n, in));
    bool ok = nb_gemm_run(j->op[last_m][last_n], j->x + m0 * j->ldx * j->size,
                          panel + (n0 - first * j->n.size) * k * j->size, out, thread_scratch(j));
    if (!j->low || !ok) return ok;
    int64_t rank = j->w->rank;
    return nb_gemm_run(j->low_op[last_m][last_n], j->low + m0 * rank, j->w->low_a + n0 * rank, out,
                       thread_scratch(j));
}

/* n tiles [begin, end); panel: their decoded rows, or to be decoded to. */
static void run_panel(const job *j, char *decoded, const char *plain, int64_t begin, int64_t end)
{
    int64_t row0 = begin * j->n.size, rows = nb_min_i64(end * j->n.size, j->w->w.n_out) - row0;
    int64_t row_bytes = j->w->w.n_in * j->size;
    bool ok = true;
#pragma omp parallel num_threads(j->be->threads) reduction(&& : ok)
    {
        omp_set_num_threads(1); /* this region's own copy: keeps oneDNN on this thread */
        if (decoded) {
#pragma omp for schedule(dynamic, 16)
            for (int64_t r = 0; r < rows; r++) decode_row(j, row0 + r, decoded + r * row_bytes);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < (end - begin) * j->m.count; i++) {
            const char *panel = decoded ? decoded : plain + row0 * row_bytes;
            ok = run_tile(j, panel, begin, begin + i / j->m.count, i % j->m.count) && ok;
        }
    }
    if (!ok) nb_cpu_fail_gemm(j->be);
}

void nb_cpu_product(nb_backend *be, nb_view out, const void *x, int64_t ldx, const nb_linear *w,
                    const float *low, bool add)
{
    bool bf16 = be->compute == NB_COMPUTE_BF16;
    job j = {.be = be, .out = out, .x = x, .ldx = ldx, .w = w, .low = low, .add = add};
    j.size = bf16 ? sizeof(uint16_t) : sizeof(float);
    j.m = cut(out.rows, M_TILE, 1);
    j.n = cut(out.cols, N_TILE, N_UNIT);
    nb_gemm_trim(nb_cpu_of(be)->gemm);
    if (!find_ops(&j)) return;
    j.gemm_bytes = nb_align_up(j.gemm_bytes, 64);
    j.thread_bytes = j.gemm_bytes + nb_align_up((size_t)w->w.n_in * sizeof(float), 64);
    j.scratch = nb_cpu_scratch(be, NB_CPU_THREAD, j.thread_bytes * (size_t)be->threads);
    if (!j.scratch) return;
    const char *plain = nb_cpu_plain_rows(w, bf16 ? NB_BF16 : NB_F32);
    int64_t tile_bytes = j.n.size * w->w.n_in * j.size;
    int64_t per_panel = plain ? j.n.count : nb_max_i64(1, PANEL_BYTES / tile_bytes);
    per_panel = nb_min_i64(per_panel, j.n.count);
    char *decoded = NULL;
    if (!plain) {
        decoded = nb_cpu_scratch(be, NB_CPU_PANEL, (size_t)(per_panel * tile_bytes));
        if (!decoded) return;
    }
    for (int64_t i = 0; i < j.n.count; i += per_panel) {
        run_panel(&j, decoded, plain, i, nb_min_i64(i + per_panel, j.n.count));
    }
}
