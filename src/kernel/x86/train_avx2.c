/* Training kernels for AVX2 with FMA. */
#include "kernel/x86/vec_avx2.h"

#define INIT_TRAIN nb_kernels_init_train_avx2
#include "kernel/x86/train_tmpl.h"
