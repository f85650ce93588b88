/* Norms, positions, activations and sums, forward and backward. */
#include "op/cuda/backend_cuda.h"

/* ---- norms ----------------------------------------------------------------------------- */

/* Sums over a row of x by the threads of its block: mean, and 1 / sqrt(mean square + eps). */
static __device__ void row_moments(mat x, int64_t r, int64_t n, bool centre, float eps, float *mean,
                                   float *scale)
{
    float sum = 0, square = 0;
    for (int64_t c = threadIdx.x; c < n && centre; c += blockDim.x) sum += x.at(r, c);
    *mean = centre ? nb_reduce(sum, nb_add()) / (float)n : 0;
    for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
        float d = x.at(r, c) - *mean;
        square += d * d;
    }
    *scale = 1 / sqrtf(nb_reduce(square, nb_add()) / (float)n + eps);
}

void nb_cuda_norm_forward(nb_backend *be, nb_view out, nb_view x, const nb_norm *norm)
{
    mat in = mat_of(x), to = mat_of(out);
    int64_t n = x.cols;
    bool centre = norm->kind == NB_NORM_LAYER;
    float eps = norm->eps;
    const float *w = norm->weight ? norm->weight->data : NULL;
    const float *b = norm->bias ? norm->bias->data : NULL;
    nb_rows(be, x.rows, [=] __device__(int64_t r) {
        float mean, scale;
        row_moments(in, r, n, centre, eps, &mean, &scale);
        for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
            float y = (in.at(r, c) - mean) * scale;
            if (w) y *= w[c];
            if (b) y += b[c];
            to.at(r, c) = y;
        }
    });
}

/* dx = s (d - mean d - y mean(d y)), d = dy w, y = (x - mean x) s; RMS: no means of x and d. */
void nb_cuda_norm_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, const nb_norm *norm,
                           bool add)
{
    mat in = mat_of(x), grad = mat_of(dy), to = mat_of(dx);
    int64_t n = x.cols;
    bool centre = norm->kind == NB_NORM_LAYER;
    float eps = norm->eps;
    const float *w = norm->weight ? norm->weight->data : NULL;
    nb_rows(be, x.rows, [=] __device__(int64_t r) {
        float mean, s, sum = 0, dot = 0;
        row_moments(in, r, n, centre, eps, &mean, &s);
        for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
            float d = grad.at(r, c) * (w ? w[c] : 1);
            if (centre) sum += d;
            dot += d * (in.at(r, c) - mean) * s;
        }
        sum = nb_reduce(sum, nb_add()) / (float)n;
        dot = nb_reduce(dot, nb_add()) / (float)n;
        for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
            float d = grad.at(r, c) * (w ? w[c] : 1);
            float y = s * (d - sum - (in.at(r, c) - mean) * s * dot);
            to.at(r, c) = add ? to.at(r, c) + y : y;
        }
    });
}

/* ---- positions ------------------------------------------------------------------------- */

/* sign -1 turns back. */
static void rotate(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved,
                   float sign)
{
    mat p = mat_of(x), angle = mat_of(table);
    int64_t D = x.cols / n_heads, half = table.cols / 2;
    if (half == 0) return;
    int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
    nb_each(be, x.rows, n_heads * half, [=] __device__(int64_t r, int64_t j) {
        int64_t i = j % half, at = j / half * D + step * i;
        float c = angle.at(r, i), s = sign * angle.at(r, half + i);
        float a = p.at(r, at), b = p.at(r, at + apart);
        p.at(r, at) = a * c - b * s;
        p.at(r, at + apart) = b * c + a * s;
    });
}

void nb_cuda_rope_forward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved)
{
    rotate(be, x, n_heads, table, interleaved, 1);
}

void nb_cuda_rope_backward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved)
{
    rotate(be, x, n_heads, table, interleaved, -1);
}

void nb_cuda_hadamard_forward(nb_backend *be, nb_view x, int64_t n)
{
    mat p = mat_of(x);
    float scale = (float)(1 / sqrt((double)n));
    for (int64_t h = 1; h < n; h *= 2) {
        float last = 2 * h == n ? scale : 1;
        nb_each(be, x.rows, x.cols / 2, [=] __device__(int64_t r, int64_t j) {
            int64_t i = j / h * 2 * h + j % h;
            float a = p.at(r, i), b = p.at(r, i + h);
            p.at(r, i) = (a + b) * last;
            p.at(r, i + h) = (a - b) * last;
        });
    }
}

/* ---- activations and sums -------------------------------------------------------------- */

#define SQRT_HALF     0.70710678118654752440f
#define SQRT_HALF_PI1 0.39894228040143267794f /* 1 / sqrt(2 pi) */

static __device__ float activate(float x, nb_act_kind act)
{
    if (act == NB_ACT_SILU) return x / (1 + expf(-x));
    if (act == NB_ACT_RELU) return x < 0 ? 0 : x;
    return x / 2 * (1 + erff(x * SQRT_HALF));
}

static __device__ float activate_slope(float x, nb_act_kind act)
{
    if (act == NB_ACT_RELU) return x > 0;
    if (act == NB_ACT_GELU) {
        return (1 + erff(x * SQRT_HALF)) / 2 + x * expf(-x * x / 2) * SQRT_HALF_PI1;
    }
    float s = 1 / (1 + expf(-x));
    return s * (1 + x * (1 - s));
}

void nb_cuda_add_forward(nb_backend *be, nb_view out, nb_view a, nb_view b)
{
    mat y = mat_of(out), p = mat_of(a), q = mat_of(b);
    nb_each(be, out.rows, out.cols,
            [=] __device__(int64_t r, int64_t c) { y.at(r, c) = p.at(r, c) + q.at(r, c); });
}

void nb_cuda_bias_forward(nb_backend *be, nb_view x, nb_view bias)
{
    mat y = mat_of(x), b = mat_of(bias);
    nb_each(be, x.rows, x.cols, [=] __device__(int64_t r, int64_t c) { y.at(r, c) += b.at(0, c); });
}

void nb_cuda_glu_forward(nb_backend *be, nb_view out, nb_view gate, nb_view up, nb_act_kind act)
{
    mat y = mat_of(out), g = mat_of(gate), u = mat_of(up);
    nb_each(be, out.rows, out.cols, [=] __device__(int64_t r, int64_t c) {
        y.at(r, c) = activate(g.at(r, c), act) * u.at(r, c);
    });
}

void nb_cuda_act_forward(nb_backend *be, nb_view out, nb_view x, nb_act_kind act)
{
    mat y = mat_of(out), p = mat_of(x);
    nb_each(be, out.rows, out.cols,
            [=] __device__(int64_t r, int64_t c) { y.at(r, c) = activate(p.at(r, c), act); });
}

void nb_cuda_glu_backward(nb_backend *be, nb_view dgate, nb_view dup, nb_view dout, nb_view gate,
                          nb_view up, nb_act_kind act)
{
    mat dg = mat_of(dgate), du = mat_of(dup), d = mat_of(dout), g = mat_of(gate), u = mat_of(up);
    nb_each(be, gate.rows, gate.cols, [=] __device__(int64_t r, int64_t c) {
        float y = d.at(r, c), a = g.at(r, c), b = u.at(r, c);
        dg.at(r, c) = y * b * activate_slope(a, act);
        du.at(r, c) = y * activate(a, act);
    });
}

void nb_cuda_act_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, nb_act_kind act)
{
    mat to = mat_of(dx), d = mat_of(dy), p = mat_of(x);
    nb_each(be, x.rows, x.cols, [=] __device__(int64_t r, int64_t c) {
        to.at(r, c) = d.at(r, c) * activate_slope(p.at(r, c), act);
    });
}
