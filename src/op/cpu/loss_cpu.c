/* Losses over rows of logits. A row of a real vocabulary (200 to 600 KB) stays in the core's
 * cache between the passes for its maximum and for its sum. */
#include "op/cpu/backend_cpu.h"

void nb_cpu_nll_forward(nb_backend *be, double *nll, nb_view logits, const int32_t *targets)
{
    nb_cpu *cpu = nb_cpu_of(be);
    if (!nb_fault_check_ids(&cpu->fault, "target", targets, logits.rows, logits.cols)) return;
#pragma omp parallel for num_threads(be->threads)
    for (int64_t t = 0; t < logits.rows; t++) {
        const float *x = nb_cpu_row(logits, t);
        nll[t] = cpu->k.logsumexp(x, logits.cols) - x[targets[t]];
    }
}

void nb_cpu_kl_forward(nb_backend *be, double *kl, uint8_t *same, nb_view ref, nb_view logits)
{
    const nb_kernels *k = &nb_cpu_of(be)->k;
#pragma omp parallel for num_threads(be->threads)
    for (int64_t t = 0; t < ref.rows; t++) {
        const float *a = nb_cpu_row(ref, t), *b = nb_cpu_row(logits, t);
        int64_t n = ref.cols;
        kl[t] = k->kl(a, b, k->logsumexp(a, n), k->logsumexp(b, n), n);
        same[t] = k->argmax(a, n) == k->argmax(b, n);
    }
}
