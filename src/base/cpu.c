#define _GNU_SOURCE /* CPU_COUNT */
#include "base/cpu.h"

#include <sched.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* gcc 12 and clang 14 know no "amx-tile" in __builtin_cpu_supports: CPUID leaf 7, EDX 22, 24, 25.
 */
static unsigned amx(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    unsigned need = 1u << 22 | 1u << 24 | 1u << 25;
    return (d & need) == need ? NB_CPU_AMX : 0;
}

unsigned nb_cpu_features(void)
{
    unsigned f = 0;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return f;
    f |= NB_CPU_AVX2;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return f;
    }
    f |= NB_CPU_AVX512;
    if (__builtin_cpu_supports("avx512vnni")) f |= NB_CPU_AVX512_VNNI;
    if (__builtin_cpu_supports("avx512bf16")) f |= NB_CPU_AVX512_BF16;
    return f | amx();
}
#elif defined(__aarch64__)
unsigned nb_cpu_features(void) { return NB_CPU_NEON; }
#else
unsigned nb_cpu_features(void) { return 0; }
#endif

int nb_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}
