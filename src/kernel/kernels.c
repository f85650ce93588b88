/* The table by ascent: the reference, then what newer CPUs do better. */
#include "kernel/kernel.h"

#include <string.h>

void nb_kernels_init(nb_kernels *k, unsigned cpu)
{
    nb_kernels_init_ref(k);
#if defined(__x86_64__)
    if (!(cpu & NB_CPU_AVX2)) return;
    nb_kernels_init_avx2(k);
    nb_kernels_init_int_avx2(k);
    if (!(cpu & NB_CPU_AVX512)) return;
    nb_kernels_init_avx512(k);
    nb_kernels_init_int_avx512(k);
#else
    NB_UNUSED(cpu);
#endif
}

void nb_kernels_dequant(const nb_kernels *k, const nb_format *f, const uint8_t *const plane[],
                        int64_t n, float *out)
{
    if (strcmp(f->family->name, "int") == 0) {
        k->dequant_int(f, plane, n, out);
    } else {
        f->family->dequant_row(f, plane, n, out);
    }
}
