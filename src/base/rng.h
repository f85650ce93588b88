/* Random numbers with the same bits on every platform.
 *
 * nb_rng: SplitMix64 (Steele, Lea, Flood 2014), for sampling and tests.
 * nb_mt19937: the Mersenne Twister as CPython seeds and reads it, so that calibration windows are
 * those that the reference implementations draw (spec: OmniQuant section 6, "Calibration data"). */
#ifndef NB_BASE_RNG_H
#define NB_BASE_RNG_H

#include <stdint.h>

typedef struct nb_rng {
    uint64_t state;
} nb_rng;

static inline uint64_t nb_rng_next(nb_rng *r)
{
    uint64_t z = r->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Uniform in [0, 1), 53 bits. */
static inline double nb_rng_uniform(nb_rng *r) { return (double)(nb_rng_next(r) >> 11) * 0x1p-53; }

/* Standard normal (Box-Muller, one value per two draws). */
double nb_rng_normal(nb_rng *r);

typedef struct nb_mt19937 {
    uint32_t state[624];
    int i;
} nb_mt19937;

/* random.seed(seed) of CPython for 0 <= seed < 2^32. */
void nb_mt19937_seed(nb_mt19937 *r, uint32_t seed);
/* random.randint(0, n - 1), 1 <= n < 2^32. */
uint32_t nb_mt19937_below(nb_mt19937 *r, uint32_t n);

#endif
