/* Rounding of what arrives online to formats with blocks: dialects, MX, NVFP4.
 *
 * A record is what is looked at together: a row, the rows of a tile, the values that a head's chunk
 * of V holds. A block of threads has one, a warp of it one group at a time: value 32 i + lane of
 * the group is the i-th of the lane. Choices and values are those of format/, bit for bit. */
#ifndef NB_OP_CUDA_BLOCK_H
#define NB_OP_CUDA_BLOCK_H

#include "op/cuda/group_cuda.h"

typedef enum block_kind { BLOCK_DIALECT, BLOCK_MX, BLOCK_NVFP4 } block_kind;

/* nb_dialect_round and nb_dialect_benefit on the device. */
typedef struct dialect_book {
    uint8_t round[NB_DIALECTS][32];
    nb_dialect_range benefit[NB_DIALECTS];
} dialect_book;

typedef struct blocks {
    block_kind kind;
    int64_t group, tile; /* a group: values of a row, rows */
    spec value;          /* MX, NVFP4: grid of the values */
    spec scale;          /* NVFP4: grid of the scales */
    int emax;            /* MX: largest exponent of a value */
    bool whole;          /* MX: whole numbers in 64ths, for floats */
    bool second;         /* MX: no value saturates; NVFP4: four over six; dialects: least error */
    int se_min, se_max;  /* dialects */
    const dialect_book *book;
    unsigned long long *saturated; /* counts values that were not finite; NULL: their records stay
                                    * as they are */
} blocks;

/* What happens to records with Inf or NaN in formats that have a rule for them (fit_online). */
typedef enum nonfinite_rule { NONFINITE_STAYS, NONFINITE_SATURATES } nonfinite_rule;

/* False: not such a format, or a fault. */
bool nb_cuda_describe_blocks(nb_backend *be, blocks *b, const nb_format *f, nonfinite_rule rule);

/* Every row of `from` (or tile of rows) is a record. to may be from. */
void nb_cuda_round_blocks(nb_backend *be, const blocks *b, mat to, mat from, int64_t rows,
                          int64_t cols);

/* ---- one group by a warp --------------------------------------------------------------- */

enum { LANES = 32, PER_LANE = NB_DIALECT_BLOCK_MAX / LANES };

template <class T, class Op> static __device__ T warp_reduce(T x, Op op)
{
    for (int d = LANES / 2; d > 0; d /= 2) x = op(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

/* Section 3.2 of the paper; the even member of the pair on a tie. */
static __device__ int two_stage(const dialect_book *book, const unsigned q[PER_LANE], uint32_t max,
                                int se)
{
    int even = nb_dialect_even(max, se), lead = 0;
    nb_dialect_range e = book->benefit[even], o = book->benefit[even + 1];
    for (int i = 0; i < PER_LANE; i++)
        lead += nb_dialect_is_in(o, q[i]) - nb_dialect_is_in(e, q[i]);
    return even + (warp_reduce(lead, nb_add()) > 0);
}

/* Sums are exact (nb_dialect_least_error). */
static __device__ int least_error(const dialect_book *book, const unsigned q[PER_LANE],
                                  const uint32_t magnitude[PER_LANE], int se)
{
    double y4[PER_LANE], least = HUGE_VAL;
    int best = 0;
    for (int i = 0; i < PER_LANE; i++) {
        nb_dialect_parts parts = nb_dialect_split(magnitude[i]);
        y4[i] = ldexp((double)parts.m, parts.e - 148 - se);
    }
    for (int id = 0; id < NB_DIALECTS; id++) {
        double s = 0;
        for (int i = 0; i < PER_LANE; i++) {
            double v = book->round[id][q[i]];
            s += v * (v - y4[i]);
        }
        s = warp_reduce(s, nb_add());
        if (s < least) best = id;
        if (s < least) least = s;
    }
    return best;
}

static __device__ void round_dialect(const blocks &s, float x[PER_LANE])
{
    uint32_t magnitude[PER_LANE], max = 0;
    unsigned q[PER_LANE];
    for (int i = 0; i < PER_LANE; i++) {
        magnitude[i] = nb_dialect_magnitude(x[i]);
        max = magnitude[i] > max ? magnitude[i] : max;
    }
    max = warp_reduce(max, nb_most());
    int se = nb_dialect_exponent(max, s.se_min, s.se_max), id = 0;
    for (int i = 0; i < PER_LANE; i++) q[i] = nb_dialect_align(magnitude[i], se);
    if (nb_dialect_align(max, se) != 0) {
        id = s.second ? least_error(s.book, q, magnitude, se) : two_stage(s.book, q, max, se);
    }
    float scale = ldexpf(1, se - 1);
    for (int i = 0; i < PER_LANE; i++) {
        float y = (float)s.book->round[id][q[i]] * scale;
        x[i] = y != 0 && nb_f32_bits(x[i]) >> 31 ? -y : y;
    }
}

/* Larger end of the group's range (nb_group_absmax). */
static __device__ float group_absmax(const float x[PER_LANE])
{
    float max = 0;
    for (int i = 0; i < PER_LANE; i++) max = fmaxf(max, fabsf(x[i]));
    return fminf(warp_reduce(max, nb_most()), range_max);
}

static __device__ float round_value(const spec &s, float x, float scale)
{
    param none = {};
    return level_of(s, none, x / scale) * scale;
}

static __device__ void round_mx(const blocks &s, float x[PER_LANE])
{
    float max = group_absmax(x);
    int e, top = 127 - s.emax; /* the largest value stays finite */
    if (max == 0) max = 0x1p-126f;
    if (s.second) {
        double m = frexp((double)max / (double)s.value.span, &e); /* = m 2^e, m in [1/2, 1) */
        if (m == 0.5) e--;
    } else {
        e = ilogbf(max) - s.emax;
    }
    float scale = ldexpf(1, e < -127 ? -127 : e > top ? top : e);
    for (int i = 0; i < PER_LANE; i++) {
        if (s.whole) {
            int code = (int)rintf(fmaxf(fminf(x[i] / scale * 64, 127), -127));
            x[i] = (float)code / 64 * scale;
        } else {
            x[i] = round_value(s.value, x[i], scale);
        }
    }
}

/* nb_format_error of the 16 values of lanes 0 .. 15, in its order: four sums side by side. */
static __device__ double squared_error(float x, float y)
{
    double d = (double)x - (double)y, part[4], own = d * d;
    for (int k = 0; k < 4; k++) {
        part[k] = __shfl_sync(~0u, own, k);
        for (int i = k + 4; i < 16; i += 4) part[k] += __shfl_sync(~0u, own, i);
    }
    return (part[0] + part[1]) + (part[2] + part[3]);
}

static __device__ float round_nv(const spec &s, float x, float scale)
{
    return scale == 0 ? 0 : round_value(s, x, scale);
}

/* One value per lane. */
static __device__ void round_nvfp4(const blocks &s, float x[PER_LANE], float base)
{
    param none = {};
    float step = group_absmax(x) / 6 / base;
    float y = round_nv(s.value, x[0], level_of(s.scale, none, step) * base);
    if (s.second) {
        float four = round_nv(s.value, x[0], level_of(s.scale, none, 1.5f * step) * base);
        if (squared_error(x[0], four) < squared_error(x[0], y)) y = four;
    }
    x[0] = y;
}

/* ---- one record by a block of threads -------------------------------------------------- */

/* rows x n values, load(r, c) to store(r, c, y); they may be in the same place. */
template <class Load, class Store>
static __device__ void round_record(const blocks &s, int64_t rows, int64_t n, Load load,
                                    Store store)
{
    int bad = 0, lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    float max = 0;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
            float x = load(r, c);
            bad += !isfinite(x);
            max = fmaxf(max, fabsf(x));
        }
    }
    bad = nb_reduce(bad, nb_add());
    max = fminf(nb_reduce(max, nb_most()), range_max);
    bool leave = bad > 0 && !s.saturated;
    if (bad > 0 && s.saturated && threadIdx.x == 0) atomicAdd(s.saturated, bad);
    float base = max > 0 ? fmaxf(max / (s.second ? 6 * 256 : 6 * 448), FLT_MIN) : 1;
    for (int64_t at = warp * s.group; at < n; at += blockDim.x / LANES * s.group) {
        int len = (int)(n - at < s.group ? n - at : s.group), count = (int)rows * len;
        float x[PER_LANE];
        for (int i = 0; i < PER_LANE; i++) {
            int j = i * LANES + lane;
            x[i] = j < count ? load(j / len, at + j % len) : 0;
        }
        if (!leave && s.kind == BLOCK_DIALECT) round_dialect(s, x);
        if (!leave && s.kind == BLOCK_MX) round_mx(s, x);
        if (!leave && s.kind == BLOCK_NVFP4) round_nvfp4(s, x, base);
        for (int i = 0; i < PER_LANE; i++) {
            int j = i * LANES + lane;
            if (j < count) store(j / len, at + j % len, x[i]);
        }
    }
}

template <class F> static __global__ void records_kernel(blocks s, F f)
{
    f(s, (int64_t)blockIdx.x);
}

/* f(record) by a block of threads each. */
template <class F> static void each_record(nb_backend *be, const blocks *s, int64_t n, F f)
{
    if (n == 0) return;
    records_kernel<<<(unsigned)n, NB_CUDA_BLOCK, 0, nb_cuda_of(be)->stream>>>(*s, f);
}

#endif
