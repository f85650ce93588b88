/* Checked arithmetic for every size that comes from outside. */
#ifndef NB_BASE_SIZE_H
#define NB_BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* True and *out = a * b, or false on overflow. */
static inline bool nb_mul_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool nb_add_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* Product of n_dims non-negative dimensions as an element count. */
static inline bool nb_count_dims(const int64_t *dims, int n_dims, size_t *out)
{
    size_t n = 1;
    for (int i = 0; i < n_dims; i++) {
        if (dims[i] < 0 || !nb_mul_size(n, (size_t)dims[i], &n)) return false;
    }
    *out = n;
    return true;
}

static inline size_t nb_ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }

static inline size_t nb_align_up(size_t n, size_t a) { return (n + a - 1) / a * a; }

static inline int64_t nb_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t nb_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t nb_clamp_i64(int64_t x, int64_t lo, int64_t hi)
{
    return nb_min_i64(nb_max_i64(x, lo), hi);
}

#endif
