/* Norms, positions, activations and sums: one kernel per row, rows over threads. */
#include <assert.h>

#include "op/cpu/backend_cpu.h"

void nb_cpu_norm_forward(nb_backend *be, nb_view out, nb_view x, const nb_norm *norm)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    const float *w = norm->weight ? norm->weight->data : NULL;
    const float *b = norm->bias ? norm->bias->data : NULL;
#pragma omp parallel for num_threads(be->threads) if (x.rows * x.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < x.rows; t++) {
        (norm->kind == NB_NORM_RMS ? k->rms_norm : k->layer_norm)(
            nb_cpu_row(out, t), nb_cpu_row(x, t), w, b, norm->eps, x.cols);
    }
}

void nb_cpu_rope_forward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    int64_t D = x.cols / n_heads, half = table.cols / 2;
    assert(table.rows == x.rows && table.cols <= D);
#pragma omp parallel for num_threads(be->threads) if (x.rows * x.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < x.rows; t++) {
        const float *cos = nb_cpu_row(table, t);
        for (int h = 0; h < n_heads; h++) {
            float *head = nb_cpu_row(x, t) + h * D;
            (interleaved ? k->rope_interleaved : k->rope)(head, cos, cos + half, half);
        }
    }
}

void nb_cpu_hadamard_forward(nb_backend *be, nb_view x, int64_t n)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
    assert(n > 0 && (n & (n - 1)) == 0 && x.cols % n == 0);
#pragma omp parallel for num_threads(be->threads) if (x.rows * x.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < x.rows; t++) k->hadamard(nb_cpu_row(x, t), x.cols, n);
}

void nb_cpu_add_forward(nb_backend *be, nb_view out, nb_view a, nb_view b)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
#pragma omp parallel for num_threads(be->threads) if (out.rows * out.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < out.rows; t++) {
        k->add(nb_cpu_row(out, t), nb_cpu_row(a, t), nb_cpu_row(b, t), out.cols);
    }
}

typedef void (*act_kernel)(float *out, const float *x, const float *up, int64_t n);

static act_kernel find_act(const nb_kernels *k, nb_act_kind act)
{
    const act_kernel kernels[] = {
        [NB_ACT_SILU] = k->silu, [NB_ACT_RELU] = k->relu, [NB_ACT_GELU] = k->gelu};
    return kernels[act];
}

void nb_cpu_glu_forward(nb_backend *be, nb_view out, nb_view gate, nb_view up, nb_act_kind act)
{
    act_kernel kernel = find_act(&nb_cpu_of(be)->k, act);
#pragma omp parallel for num_threads(be->threads) if (out.rows * out.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < out.rows; t++) {
        kernel(nb_cpu_row(out, t), nb_cpu_row(gate, t), nb_cpu_row(up, t), out.cols);
    }
}

void nb_cpu_act_forward(nb_backend *be, nb_view out, nb_view x, nb_act_kind act)
{
    act_kernel kernel = find_act(&nb_cpu_of(be)->k, act);
#pragma omp parallel for num_threads(be->threads) if (out.rows * out.cols > NB_CPU_PARALLEL_MIN)
    for (int64_t t = 0; t < out.rows; t++) {
        kernel(nb_cpu_row(out, t), nb_cpu_row(x, t), NULL, out.cols);
    }
}
