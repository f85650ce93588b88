#include "base/rng.h"

#include <math.h>

double nb_rng_normal(nb_rng *r)
{
    double u = 1.0 - nb_rng_uniform(r), v = nb_rng_uniform(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

/* Matsumoto and Nishimura, init_genrand and init_by_array with the key {seed}. */
void nb_mt19937_seed(nb_mt19937 *r, uint32_t seed)
{
    uint32_t *s = r->state;
    s[0] = 19650218u;
    for (uint32_t i = 1; i < 624; i++) s[i] = 1812433253u * (s[i - 1] ^ (s[i - 1] >> 30)) + i;
    uint32_t i = 1;
    for (int k = 0; k < 624; k++) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + seed;
        if (++i >= 624) s[0] = s[623], i = 1;
    }
    for (int k = 0; k < 623; k++) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - i;
        if (++i >= 624) s[0] = s[623], i = 1;
    }
    s[0] = 0x80000000u;
    r->i = 624;
}

static void refill(nb_mt19937 *r)
{
    uint32_t *s = r->state;
    for (int k = 0; k < 624; k++) {
        uint32_t y = (s[k] & 0x80000000u) | (s[(k + 1) % 624] & 0x7fffffffu);
        s[k] = s[(k + 397) % 624] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->i = 0;
}

static uint32_t next32(nb_mt19937 *r)
{
    if (r->i >= 624) refill(r);
    uint32_t y = r->state[r->i++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

uint32_t nb_mt19937_below(nb_mt19937 *r, uint32_t n)
{
    int k = 32 - __builtin_clz(n);
    uint32_t x;
    do x = next32(r) >> (32 - k);
    while (x >= n);
    return x;
}
