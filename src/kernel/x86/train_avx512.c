/* Training kernels for AVX-512 (F, BW, DQ, VL). */
#include "kernel/x86/vec_avx512.h"

#define INIT_TRAIN nb_kernels_init_train_avx512
#include "kernel/x86/train_tmpl.h"
