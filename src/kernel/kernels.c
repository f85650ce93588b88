/* The table by ascent: the reference, then what newer CPUs do better. */
#include "kernel/kernel.h"

#include <string.h>

void nb_kernels_init(nb_kernels *k, unsigned cpu)
{
    nb_kernels_init_ref(k);
    nb_kernels_init_train_ref(k);
#if defined(__x86_64__)
    if (!(cpu & NB_CPU_AVX2)) return;
    nb_kernels_init_avx2(k);
    nb_kernels_init_int_avx2(k);
    nb_kernels_init_train_avx2(k);
    if (!(cpu & NB_CPU_AVX512)) return;
    nb_kernels_init_avx512(k);
    nb_kernels_init_int_avx512(k);
    nb_kernels_init_train_avx512(k);
#else
    NB_UNUSED(cpu);
#endif
}

nb_dequant_fn nb_kernels_find_dequant(const nb_kernels *k, const nb_format *f)
{
    const struct {
        const char *family;
        nb_dequant_fn slot;
    } slots[] = {{"int", k->dequant_int}};
    for (size_t i = 0; i < NB_COUNT(slots); i++) {
        if (strcmp(f->family->name, slots[i].family) == 0) return slots[i].slot;
    }
    return f->family->dequant_row;
}
