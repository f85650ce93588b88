/* CPU features, oldest to newest. A mask is always an argument, never a global, so that a test
 * builds the table of every level in one process. */
#ifndef NB_BASE_CPU_H
#define NB_BASE_CPU_H

enum {
    NB_CPU_AVX2 = 1 << 0,        /* with FMA and F16C                                        */
    NB_CPU_AVX512 = 1 << 1,      /* F, BW, DQ, VL: the x86-64-v4 level                       */
    NB_CPU_AVX512_VNNI = 1 << 2, /* 8-bit dot products                                       */
    NB_CPU_AVX512_BF16 = 1 << 3,
    NB_CPU_AMX = 1 << 4, /* tile, int8 and bf16 */
    NB_CPU_NEON = 1 << 8,
};

/* What the machine that runs this has. */
unsigned nb_cpu_features(void);

/* Threads that this process may run at the same time (affinity, not the machine's total). */
int nb_cpu_count(void);

#endif
