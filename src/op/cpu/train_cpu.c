/* Sums and backward passes row by row, and the optimizer. Sums over tokens are taken in blocks of
 * rows, which are added up in their order. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "op/cpu/backend_cpu.h"

#define SUM_ROWS 64 /* rows per partial sum */

static bool is_large(nb_view v) { return v.rows * v.cols > NB_CPU_PARALLEL_MIN; }

/* n floats for each thread; NULL: the fault is set. */
static float *thread_rows(nb_backend *be, int64_t n)
{
    size_t bytes = nb_align_up((size_t)n * sizeof(float), 64);
    return nb_cpu_scratch(be, NB_CPU_THREAD, bytes * (size_t)be->threads);
}

static float *thread_row(float *rows, int64_t n)
{
    size_t bytes = nb_align_up((size_t)n * sizeof(float), 64);
    return rows + bytes / sizeof(float) * (size_t)omp_get_thread_num();
}

/* ---- sums ------------------------------------------------------------------------------ */

void nb_cpu_bias_forward(nb_backend *be, nb_view x, nb_view bias)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    assert(bias.cols == x.cols);
#pragma omp parallel for num_threads(be->threads) if (is_large(x))
    for (int64_t t = 0; t < x.rows; t++) {
        k->add(nb_cpu_row(x, t), nb_cpu_row(x, t), nb_cpu_row(bias, 0), x.cols);
    }
}

void nb_cpu_sum_blocks(nb_backend *be, nb_view out, float *partial, int64_t n_blocks, bool add)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    int64_t C = out.cols;
    for (int64_t i = 1; i < n_blocks; i++) k->add(partial, partial, partial + i * C, C);
    float *to = nb_cpu_row(out, 0);
    if (add) {
        k->add(to, to, partial, C);
    } else {
        memcpy(to, partial, (size_t)C * sizeof *to);
    }
}

void nb_cpu_col_sum(nb_backend *be, nb_view out, nb_view a, nb_view b, bool add)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    assert(out.cols == a.cols);
    int64_t blocks = nb_max_i64(1, (a.rows + SUM_ROWS - 1) / SUM_ROWS);
    size_t bytes = (size_t)(blocks * a.cols) * sizeof(float);
    float *partial = nb_cpu_scratch(be, NB_CPU_PANEL, bytes);
    if (!partial) return;
#pragma omp parallel for num_threads(be->threads) if (is_large(a))
    for (int64_t i = 0; i < blocks; i++) {
        float *sum = partial + i * a.cols;
        memset(sum, 0, (size_t)a.cols * sizeof *sum);
        int64_t end = nb_min_i64((i + 1) * SUM_ROWS, a.rows);
        for (int64_t t = i * SUM_ROWS; t < end; t++) {
            if (b.buf) {
                k->mul_add(sum, nb_cpu_row(a, t), nb_cpu_row(b, t), a.cols);
            } else {
                k->add(sum, sum, nb_cpu_row(a, t), a.cols);
            }
        }
    }
    nb_cpu_sum_blocks(be, out, partial, blocks, add);
}

/* ---- norms ----------------------------------------------------------------------------- */

static float sum_row(const float *x, int64_t n)
{
    float s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += x[i];
    return s;
}

/* sum (x - mean)^2 and sum g (x - mean) */
static void centred_sums(const float *g, const float *x, float mean, int64_t n, float *square,
                         float *dot)
{
    float s = 0, d = 0;
#pragma omp simd reduction(+ : s, d)
    for (int64_t i = 0; i < n; i++) {
        float y = x[i] - mean;
        s += y * y;
        d += g[i] * y;
    }
    *square = s;
    *dot = d;
}

/* dx = r (g - mean g - y mean(g y)) for y = r (x - mean) and g [n] = dy w, which is overwritten;
 * RMS norms take no means of x and g. */
static void norm_row(float *dx, float *g, const float *x, const nb_norm *norm, int64_t n, bool add)
{
    bool centre = norm->kind == NB_NORM_LAYER;
    float mean = centre ? sum_row(x, n) / (float)n : 0, square, dot;
    float shift = centre ? sum_row(g, n) / (float)n : 0;
    centred_sums(g, x, mean, n, &square, &dot);
    float r = 1 / sqrtf(square / (float)n + norm->eps), slope = dot / (float)n * r * r;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) g[i] = r * (g[i] - shift - (x[i] - mean) * slope);
    if (add) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dx[i] += g[i];
    } else {
        memcpy(dx, g, (size_t)n * sizeof *dx);
    }
}

void nb_cpu_norm_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, const nb_norm *norm,
                          bool add)
{
    const float *w = norm->weight ? norm->weight->data : NULL;
    int64_t n = x.cols;
    float *rows = thread_rows(be, n);
    if (!rows) return;
#pragma omp parallel for num_threads(be->threads) if (is_large(x))
    for (int64_t t = 0; t < x.rows; t++) {
        const float *d = nb_cpu_row(dy, t);
        float *g = thread_row(rows, n);
        if (w) {
#pragma omp simd
            for (int64_t i = 0; i < n; i++) g[i] = d[i] * w[i];
        } else {
            memcpy(g, d, (size_t)n * sizeof *g);
        }
        norm_row(nb_cpu_row(dx, t), g, nb_cpu_row(x, t), norm, n, add);
    }
}

/* ---- positions, activations ------------------------------------------------------------ */

void nb_cpu_rope_backward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    int64_t D = x.cols / n_heads, half = table.cols / 2;
    assert(table.rows == x.rows && table.cols <= D);
    float *rows = thread_rows(be, half);
    if (!rows) return;
#pragma omp parallel for num_threads(be->threads) if (is_large(x))
    for (int64_t t = 0; t < x.rows; t++) {
        const float *cos = nb_cpu_row(table, t);
        float *sin = thread_row(rows, half);
        k->scale(sin, -1, cos + half, half);
        for (int h = 0; h < n_heads; h++) {
            float *head = nb_cpu_row(x, t) + h * D;
            (interleaved ? k->rope_interleaved : k->rope)(head, cos, sin, half);
        }
    }
}

typedef void (*back_kernel)(float *dx, float *dup, const float *dy, const float *x, const float *up,
                            int64_t n);

static back_kernel find_back(const nb_kernels *k, nb_act_kind act)
{
    const back_kernel kernels[] = {
        [NB_ACT_SILU] = k->silu_back, [NB_ACT_RELU] = k->relu_back, [NB_ACT_GELU] = k->gelu_back};
    return kernels[act];
}

void nb_cpu_glu_backward(nb_backend *be, nb_view dgate, nb_view dup, nb_view dout, nb_view gate,
                         nb_view up, nb_act_kind act)
{
    back_kernel back = find_back(&nb_cpu_of(be)->k, act);
#pragma omp parallel for num_threads(be->threads) if (is_large(gate))
    for (int64_t t = 0; t < gate.rows; t++) {
        back(nb_cpu_row(dgate, t), nb_cpu_row(dup, t), nb_cpu_row(dout, t), nb_cpu_row(gate, t),
             nb_cpu_row(up, t), gate.cols);
    }
}

void nb_cpu_act_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, nb_act_kind act)
{
    back_kernel back = find_back(&nb_cpu_of(be)->k, act);
#pragma omp parallel for num_threads(be->threads) if (is_large(x))
    for (int64_t t = 0; t < x.rows; t++) {
        back(nb_cpu_row(dx, t), NULL, nb_cpu_row(dy, t), nb_cpu_row(x, t), NULL, x.cols);
    }
}

/* ---- loss and optimizer ---------------------------------------------------------------- */

static double mse_row(float *dy, const float *y, const float *target, float scale, int64_t n,
                      bool add)
{
    double loss = 0;
#pragma omp simd reduction(+ : loss)
    for (int64_t i = 0; i < n; i++) {
        float d = y[i] - target[i];
        loss += (double)d * (double)d;
        dy[i] = (add ? dy[i] : 0) + scale * d;
    }
    return loss;
}

/* What the squared error of a token counts. */
static double token_weight(const float *target, int64_t n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += (double)target[i] * (double)target[i];
    return sum > 0 ? (double)n / sum : 1;
}

double nb_cpu_mse_backward(nb_backend *be, nb_view dy, nb_view y, nb_view target, bool unit,
                           double scale, bool add)
{
    double loss = 0, *row = nb_cpu_scratch(be, NB_CPU_PANEL, (size_t)y.rows * sizeof *row);
    if (!row) return NAN;
#pragma omp parallel for num_threads(be->threads) if (is_large(y))
    for (int64_t t = 0; t < y.rows; t++) {
        const float *want = nb_cpu_row(target, t);
        double weight = unit ? token_weight(want, y.cols) : 1;
        row[t] = weight * mse_row(nb_cpu_row(dy, t), nb_cpu_row(y, t), want,
                                  (float)(scale * weight), y.cols, add);
    }
    for (int64_t t = 0; t < y.rows; t++) loss += row[t];
    return loss;
}

/* What a step of Adam has in common for all parameters. */
typedef struct adam {
    float beta1, beta2, rate, root, eps;
} adam;

static void adam_row(const adam *a, float *param, const float *grad, float *m, float *v, int64_t n)
{
    float b1 = 1 - a->beta1, b2 = 1 - a->beta2, rate = a->rate, root = a->root, eps = a->eps;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float g = grad[i];
        m[i] += b1 * (g - m[i]);
        v[i] += b2 * (g * g - v[i]);
        param[i] -= rate * m[i] / (sqrtf(v[i]) / root + eps);
    }
}

void nb_cpu_adamw_step(nb_backend *be, nb_view param, nb_view grad, nb_view m, nb_view v, double lr,
                       double beta1, double beta2, double eps, int64_t t)
{
    adam a = {.beta1 = (float)beta1, .beta2 = (float)beta2, .eps = (float)eps};
    a.rate = (float)(lr / (1 - pow(beta1, (double)t)));
    a.root = (float)sqrt(1 - pow(beta2, (double)t));
#pragma omp parallel for num_threads(be->threads) if (is_large(param))
    for (int64_t r = 0; r < param.rows; r++) {
        adam_row(&a, nb_cpu_row(param, r), nb_cpu_row(grad, r), nb_cpu_row(m, r), nb_cpu_row(v, r),
                 param.cols);
    }
}

static void sign_row(float *restrict param, const float *restrict grad, float lr, float lo,
                     float hi, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float x = param[i] - (grad[i] > 0 ? lr : 0) + (grad[i] < 0 ? lr : 0);
        x = x < lo ? lo : x;
        param[i] = x > hi ? hi : x;
    }
}

void nb_cpu_sign_step(nb_backend *be, nb_view param, nb_view grad, double lr, double lo, double hi)
{
#pragma omp parallel for num_threads(be->threads) if (is_large(param))
    for (int64_t r = 0; r < param.rows; r++) {
        sign_row(nb_cpu_row(param, r), nb_cpu_row(grad, r), (float)lr, (float)lo, (float)hi,
                 param.cols);
    }
}
