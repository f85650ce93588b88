/* Row kernels for AVX-512 (F, BW, DQ, VL). */
#include "kernel/x86/vec_avx512.h"

#define INIT_ROWS nb_kernels_init_avx512
#include "kernel/x86/rows_tmpl.h"
