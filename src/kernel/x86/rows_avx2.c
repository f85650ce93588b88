/* Row kernels for AVX2 with FMA. */
#include "kernel/x86/vec_avx2.h"

#define INIT_ROWS nb_kernels_init_avx2
#include "kernel/x86/rows_tmpl.h"
