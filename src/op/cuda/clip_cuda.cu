/* Fake quantization of weights with learned ranges and learned rounding; formats without kernels by
 * the host. */
#include "op/cuda/group_cuda.h"

/* ---- learned ranges -------------------------------------------------------------------- */

static source scaled(nb_view w, nb_view row, nb_view col, nb_view u, nb_view l)
{
    source s = {mat_of(w), mat_of(row), mat_of(col), mat_of(l), mat_of(u), true};
    return s;
}

static void clip_on_host(nb_backend *be, nb_view out, nb_view w, nb_view row, nb_view col,
                         nb_view u, nb_view l, const nb_format *fmt)
{
    nb_backend *cpu = nb_cuda_cpu(be);
    nb_view m = nb_cuda_mirror(be, 0, w, true);
    nb_view rows = nb_cuda_mirror(be, 1, row, true), cols = nb_cuda_mirror(be, 2, col, true);
    nb_view hi = nb_cuda_mirror(be, 3, u, true), lo = nb_cuda_mirror(be, 4, l, true);
    if (!nb_cuda_healthy(be)) return;
    cpu->ops->clip_forward(cpu, m, m, rows, cols, hi, lo, fmt);
    nb_cuda_reflect(be, out, m);
    nb_cuda_settle(be);
}

void nb_cuda_clip_forward(nb_backend *be, nb_view out, nb_view w, nb_view row, nb_view col,
                          nb_view u, nb_view l, const nb_format *fmt)
{
    spec s;
    mat to = mat_of(out);
    source from = scaled(w, row, col, u, l);
    if (!is_quantized(fmt)) {
        nb_each(be, w.rows, w.cols,
                [=] __device__(int64_t r, int64_t c) { to.at(r, c) = value(from, r, c); });
    } else if (nb_cuda_describe(&s, fmt, w.cols)) {
        each_group(be, &s, w.rows, [=] __device__(const spec &f) {
            group k = load_group(f, from);
            for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
                to.at(k.r, c) = rounded(f, k.p, value(from, k.r, c));
            }
        });
    } else {
        clip_on_host(be, out, w, row, col, u, l, fmt);
    }
}

static void clip_back_on_host(nb_backend *be, nb_view du, nb_view dl, nb_view colsum, nb_view g,
                              nb_view w, nb_view row, nb_view col, nb_view u, nb_view l, bool zero,
                              const nb_format *fmt)
{
    nb_backend *cpu = nb_cuda_cpu(be);
    nb_view weight = nb_cuda_mirror(be, 0, w, true), hi = nb_cuda_mirror(be, 3, u, true);
    nb_view lo = nb_cuda_mirror(be, 4, l, true), sum = nb_cuda_mirror(be, 5, colsum, false);
    nb_view rows = nb_cuda_mirror(be, 1, row, true), cols = nb_cuda_mirror(be, 2, col, true);
    nb_view grad = nb_cuda_mirror(be, 6, g, true);
    if (!nb_cuda_healthy(be)) return;
    cpu->ops->clip_backward(cpu, hi, lo, sum, grad, weight, rows, cols, hi, lo, zero, fmt);
    nb_cuda_reflect(be, du, hi);
    nb_cuda_reflect(be, dl, lo);
    nb_cuda_reflect(be, colsum, sum);
    nb_cuda_settle(be);
}

/* du, dl; part [N, M] (p NULL: not wanted) = dw' w'. */
static void clip_gradients(nb_backend *be, const spec *s, mat du, mat dl, mat part, mat grad,
                           const source &w, int64_t rows, bool zero)
{
    mat u = w.hi, l = w.lo;
    each_group(be, s, rows, [=] __device__(const spec &f) {
        group k = load_group(f, w);
        float rest_hi = sigmoid(-u.at(k.r, k.g)), rest_lo = sigmoid(-l.at(k.r, k.g));
        auto g = [=](int64_t c) { return grad.at(k.r, c); };
        auto v = [=](int64_t c) { return value(w, k.r, c); };
        ends d = differentiate(f, k, zero, g, v, v);
        if (part.p) {
            float n_lo, n_hi;
            count_ends(k, w, &n_lo, &n_hi);
            for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
                float x = v(c), pass = is_inside(k.p, x) ? g(c) : 0;
                part.at(k.r, c) = (pass + extreme_part(k, d, x, n_lo, n_hi)) * x;
            }
        }
        __syncthreads(); /* du and dl may lie where u and l do */
        if (threadIdx.x != 0) return;
        du.at(k.r, k.g) = d.hi * k.hi * k.clip_hi * rest_hi;
        dl.at(k.r, k.g) = d.lo * k.lo * k.clip_lo * rest_lo;
    });
}

void nb_cuda_clip_backward(nb_backend *be, nb_view du, nb_view dl, nb_view colsum, nb_view g,
                           nb_view w, nb_view row, nb_view col, nb_view u, nb_view l, bool zero,
                           const nb_format *fmt)
{
    spec s;
    bool native = is_quantized(fmt) && nb_cuda_describe(&s, fmt, w.cols);
    if (is_quantized(fmt) && !native) {
        clip_back_on_host(be, du, dl, colsum, g, w, row, col, u, l, zero, fmt);
        return;
    }
    mat part = {NULL, w.cols}, grad = mat_of(g), none = {};
    source from = scaled(w, row, col, u, l);
    if (colsum.buf) {
        part.p =
            (float *)nb_cuda_scratch(be, NB_CUDA_SCORES, (size_t)(w.rows * w.cols) * sizeof(float));
        if (!part.p) return;
    }
    if (native) {
        clip_gradients(be, &s, mat_of(du), mat_of(dl), part, grad, from, w.rows, zero);
    } else if (part.p) {
        nb_each(be, w.rows, w.cols, [=] __device__(int64_t r, int64_t c) {
            part.at(r, c) = grad.at(r, c) * value(from, r, c);
        });
    }
    if (part.p) nb_cuda_sum_columns(be, mat_of(colsum), part, none, w.rows, w.cols, false);
}

/* ---- learned rounding ------------------------------------------------------------------ */

static source ranged(nb_view w, nb_view hi, nb_view lo)
{
    source s = {};
    s.w = mat_of(w);
    s.hi = mat_of(hi);
    s.lo = mat_of(lo);
    return s;
}

/* nb_offset_weight: the product is rounded, then the sum. */
static __device__ float moved(float w, float v, float scale)
{
    return __fadd_rn(w, __fmul_rn(v, scale));
}

static void round_on_host(nb_backend *be, nb_view out, nb_view w, nb_view v, nb_view hi, nb_view lo,
                          const nb_format *fmt)
{
    nb_backend *cpu = nb_cuda_cpu(be);
    nb_view m = nb_cuda_mirror(be, 0, w, true), offsets = nb_cuda_mirror(be, 1, v, true);
    nb_view a = nb_cuda_mirror(be, 3, hi, true), b = nb_cuda_mirror(be, 4, lo, true);
    if (!nb_cuda_healthy(be)) return;
    cpu->ops->round_forward(cpu, m, m, offsets, a, b, fmt);
    nb_cuda_reflect(be, out, m);
    nb_cuda_settle(be);
}

void nb_cuda_round_forward(nb_backend *be, nb_view out, nb_view w, nb_view v, nb_view hi,
                           nb_view lo, const nb_format *fmt)
{
    spec s;
    if (!nb_cuda_describe(&s, fmt, w.cols)) {
        round_on_host(be, out, w, v, hi, lo, fmt);
        return;
    }
    mat to = mat_of(out), offset = mat_of(v);
    source from = ranged(w, hi, lo);
    each_group(be, &s, w.rows, [=] __device__(const spec &f) {
        group k = load_group(f, from);
        for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
            float x = moved(from.w.at(k.r, c), offset.at(k.r, c), k.p.scale);
            to.at(k.r, c) = rounded(f, k.p, x);
        }
    });
}

static void round_back_on_host(nb_backend *be, nb_view dv, nb_view dhi, nb_view dlo, nb_view g,
                               nb_view w, nb_view v, nb_view hi, nb_view lo, bool zero,
                               const nb_format *fmt)
{
    nb_backend *cpu = nb_cuda_cpu(be);
    nb_view grad = nb_cuda_mirror(be, 6, g, true), weight = nb_cuda_mirror(be, 0, w, true);
    nb_view a = nb_cuda_mirror(be, 3, hi, true), b = nb_cuda_mirror(be, 4, lo, true);
    nb_view da = nb_cuda_mirror(be, 2, hi, false), db = nb_cuda_mirror(be, 5, lo, false);
    nb_view offsets = nb_cuda_mirror(be, 1, v, true);
    if (!nb_cuda_healthy(be)) return;
    cpu->ops->round_backward(cpu, grad, da, db, grad, weight, offsets, a, b, zero, fmt);
    nb_cuda_reflect(be, dv, grad);
    nb_cuda_reflect(be, dhi, da);
    nb_cuda_reflect(be, dlo, db);
    nb_cuda_settle(be);
}

void nb_cuda_round_backward(nb_backend *be, nb_view dv, nb_view dhi, nb_view dlo, nb_view g,
                            nb_view w, nb_view v, nb_view hi, nb_view lo, bool zero,
                            const nb_format *fmt)
{
    spec s;
    if (!nb_cuda_describe(&s, fmt, w.cols)) {
        round_back_on_host(be, dv, dhi, dlo, g, w, v, hi, lo, zero, fmt);
        return;
    }
    mat to = mat_of(dv), by_hi = mat_of(dhi), by_lo = mat_of(dlo), grad = mat_of(g);
    mat offset = mat_of(v);
    source from = ranged(w, hi, lo);
    each_group(be, &s, w.rows, [=] __device__(const spec &f) {
        group k = load_group(f, from);
        auto e = [=](int64_t c) { return grad.at(k.r, c); };
        auto x = [=](int64_t c) { return from.w.at(k.r, c); };
        auto y = [=](int64_t c) { return moved(x(c), offset.at(k.r, c), k.p.scale); };
        ends d = differentiate(f, k, zero, e, y, x);
        for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
            to.at(k.r, c) = is_inside(k.p, y(c)) ? e(c) * k.p.scale : 0;
        }
        if (threadIdx.x != 0) return;
        by_hi.at(k.r, k.g) = d.hi * k.hi;
        by_lo.at(k.r, k.g) = d.lo * k.lo;
    });
}
