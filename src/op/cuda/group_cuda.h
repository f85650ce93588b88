/* Fake quantization with straight-through gradients (format/ste.h) of one group by a block of
 * threads: uniform integers, and floats with a free scale.
 *
 * What is fitted and rounded is the same fp32 arithmetic as in format/: no contraction into fused
 * products (all of the backend is compiled so), IEEE division. */
#ifndef NB_OP_CUDA_GROUP_H
#define NB_OP_CUDA_GROUP_H

#include <cuda_fp16.h>
#include <float.h>
#include <math.h>

#include "op/cuda/backend_cuda.h"

/* A format as kernels see it: what its grid says, for all groups alike. */
typedef struct spec {
    int64_t n, group, groups;
    bool uniform; /* whole numbers; otherwise floats: */
    int m_bits, e_min;
    bool range; /* zero point from the range; otherwise symmetric */
    bool wide;  /* scale in fp32; otherwise fp16 */
    float span, lo, hi, scale_min, scale_max;
} spec;

/* Parameters of one group. */
typedef struct param {
    float scale, zero;
    float lo, hi; /* w / scale beyond these saturates */
} param;

/* A weight, or an input: scaled, with the clip ratios of its groups. logits: ratios are sigmoids.
 */
typedef struct source {
    mat w, row, col, lo, hi;
    bool logits;
} source;

/* False: there are no kernels for this format. */
bool nb_cuda_describe(spec *s, const nb_format *f, int64_t n);

/* ---- one group ------------------------------------------------------------------------- */

/* NB_RANGE_MAX: format/scale.h is for host code. */
static constexpr float range_max = FLT_MAX * (1 - 0x1p-20f);

static __device__ float store_scale(const spec &s, float x)
{
    const float f16_max = 65504, f16_tiny = 0x1p-24f;
    if (s.wide) return fmaxf(fminf(x, FLT_MAX), FLT_MIN);
    return __half2float(__float2half_rn(fmaxf(fminf(x, f16_max), f16_tiny)));
}

/* An end of the range that rounds: the level and half a step; a tie goes to the even code. */
static __device__ float rounding_end(float level, float half)
{
    float end = level + half;
    return (int)level % 2 == 0 ? end : nextafterf(end, 0);
}

/* lo <= 0 <= hi: the range, clipped. */
static __device__ param fit(const spec &s, float lo, float hi)
{
    const float least_asym = 1e-5f;
    lo = fmaxf(lo, -range_max);
    hi = fminf(hi, range_max);
    bool zeros = lo == 0 && hi == 0;
    param p = {1, s.range || !s.uniform ? 0 : s.span, s.lo, s.hi};
    if (!zeros && s.range) {
        p.scale = store_scale(s, fmaxf((hi - lo) / s.span, least_asym));
        p.zero = fminf(rintf(-lo / p.scale), s.span);
    } else if (!zeros) {
        p.scale = store_scale(s, fmaxf(fmaxf(-lo, hi) / s.span, s.uniform ? 0 : FLT_MIN));
    }
    if (s.uniform) {
        p.lo = rounding_end(-p.zero, -0.5f);
        p.hi = rounding_end(s.range ? s.span - p.zero : p.zero, 0.5f);
    }
    return p;
}

static __device__ float level_of(const spec &s, const param &p, float x)
{
    if (s.uniform) {
        float top = s.range ? s.span - p.zero : p.zero;
        return rintf(fminf(fmaxf(x, -p.zero), top));
    }
    float a = fminf(fabsf(x), s.span);
    int e = a > 0 ? ilogbf(a) : s.e_min;
    float ulp = ldexpf(1, (e > s.e_min ? e : s.e_min) - s.m_bits);
    return copysignf(fminf(rintf(a / ulp) * ulp, s.span), x);
}

/* decode(encode(w)) */
static __device__ float rounded(const spec &s, const param &p, float w)
{
    return level_of(s, p, w / p.scale) * p.scale;
}

static __device__ float value(const source &w, int64_t r, int64_t c)
{
    float x = w.w.at(r, c);
    if (w.row.p) x *= w.row.at(0, r);
    if (w.col.p) x *= w.col.at(0, c);
    return x;
}

static __device__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

/* A group with its range; every thread of the block has it. */
typedef struct group {
    int64_t r, g, at, end;
    float lo, hi, clip_lo, clip_hi;
    bool finite;
    param p;
} group;

static __device__ group load_group(const spec &s, const source &w)
{
    group k;
    k.r = blockIdx.x / s.groups;
    k.g = blockIdx.x % s.groups;
    k.at = k.g * s.group;
    k.end = k.at + s.group < s.n ? k.at + s.group : s.n;
    float lo = 0, hi = 0;
    for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
        float x = value(w, k.r, c);
        lo = fminf(lo, x);
        hi = fmaxf(hi, x);
    }
    k.lo = nb_reduce(lo, nb_least());
    k.hi = nb_reduce(hi, nb_most());
    k.clip_lo = w.lo.p ? w.lo.at(k.r, k.g) : 1;
    k.clip_hi = w.hi.p ? w.hi.at(k.r, k.g) : 1;
    if (w.logits) {
        k.clip_lo = sigmoid(k.clip_lo);
        k.clip_hi = sigmoid(k.clip_hi);
    }
    k.p = fit(s, k.clip_lo * k.lo, k.clip_hi * k.hi);
    return k;
}

/* The whole row is finite: of inputs, whose rows are copied otherwise. */
static __device__ bool row_is_finite(const spec &s, mat x, int64_t r)
{
    int bad = 0;
    for (int64_t c = threadIdx.x; c < s.n; c += blockDim.x) bad |= !isfinite(x.at(r, c));
    return nb_reduce(bad, nb_most()) == 0;
}

template <class F> static __global__ void groups_kernel(spec s, F f) { f(s); }

/* f by a block of threads for each group of each row. */
template <class F> static void each_group(nb_backend *be, const spec *s, int64_t rows, F f)
{
    int64_t threads = (s->group + 31) / 32 * 32;
    if (threads > NB_CUDA_BLOCK) threads = NB_CUDA_BLOCK;
    if (rows * s->groups == 0) return;
    groups_kernel<<<(unsigned)(rows * s->groups), (unsigned)threads, 0, nb_cuda_of(be)->stream>>>(
        *s, f);
}

/* ---- gradients of one group ------------------------------------------------------------ */

/* What flows through the range of a group to its ends. */
typedef struct ends {
    float lo, hi;
} ends;

/* Gradients by the ends of the group's range, from that by its scale and the sum of what
 * saturated. */
static __device__ ends end_gradients(const spec &s, const group &k, float by_scale, float beyond,
                                     bool zero)
{
    float lo = k.clip_lo * k.lo, hi = k.clip_hi * k.hi;
    float width = s.range ? hi - lo : fmaxf(-lo, hi), scale = width / s.span;
    float slope_lo = 0, slope_hi = 0, a = 1 / s.span;
    if (width != 0 && scale >= s.scale_min && scale <= s.scale_max) {
        bool tie = -lo == hi, low = -lo > hi;
        slope_lo = s.range ? -a : tie ? -a / 2 : low ? -a : 0;
        slope_hi = s.range ? a : tie ? a / 2 : low ? 0 : a;
    }
    ends d = {by_scale * slope_lo, by_scale * slope_hi};
    if (!zero || !s.range || !(slope_hi > 0)) return d;
    float share = k.p.zero / s.span;
    d.lo += beyond * (1 - share);
    d.hi += beyond * share;
    return d;
}

/* Sums over a group of g(c), w(c) as rounded and exact(c) as it is: the gradients of its ends. */
template <class G, class W, class E>
static __device__ ends differentiate(const spec &s, const group &k, bool zero, G grad, W moved,
                                     E exact)
{
    float sum = 0, beyond = 0;
    for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
        float g = grad(c), w = moved(c), x = w / k.p.scale;
        bool inside = k.p.lo <= x && x <= k.p.hi;
        sum += g * (level_of(s, k.p, x) * k.p.scale - (inside ? exact(c) : 0));
        if (!inside) beyond += g;
    }
    sum = nb_reduce(sum, nb_add());
    if (zero) beyond = nb_reduce(beyond, nb_add());
    return end_gradients(s, k, k.p.scale > 0 ? sum / k.p.scale : 0, beyond, zero);
}

static __device__ bool is_inside(const param &p, float w)
{
    float x = w / p.scale;
    return p.lo <= x && x <= p.hi;
}

/* How many values of the group lie at each end of its range. */
static __device__ void count_ends(const group &k, const source &w, float *n_lo, float *n_hi)
{
    int lo = 0, hi = 0;
    for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
        float x = value(w, k.r, c);
        lo += x == k.lo;
        hi += x == k.hi;
    }
    *n_lo = (float)nb_reduce(lo, nb_add());
    *n_hi = (float)nb_reduce(hi, nb_add());
}

/* What an extreme value gets of the gradients of the ends. */
static __device__ float extreme_part(const group &k, ends d, float w, float n_lo, float n_hi)
{
    float y = 0;
    if (k.hi > 0 && w == k.hi) y += d.hi * k.clip_hi / n_hi;
    if (k.lo < 0 && w == k.lo) y += d.lo * k.clip_lo / n_lo;
    return y;
}

#endif
