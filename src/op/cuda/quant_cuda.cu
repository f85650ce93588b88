/* Which formats have kernels, and fake quantization of what arrives online; other formats by the
 * host. */
#include <string.h>

#include "op/cuda/block_cuda.h"

/* ---- formats --------------------------------------------------------------------------- */

/* Mantissa bits of floats whose codes ascend; the first 2^(m_bits + 1) steps are equal. */
static int mantissa_bits(const nb_format *f)
{
    uint8_t codes[128];
    float level[128];
    nb_qparam one = {};
    one.scale = 1;
    int n = 1 << (f->bits - 1), i = 1, bits = -1;
    for (int c = 0; c < n; c++) codes[c] = (uint8_t)c;
    f->family->decode(f, &one, codes, n, level);
    while (i < n && level[i] == (float)i * level[1]) i++;
    for (int count = i - 1; count > 1; count /= 2) bits++;
    return bits;
}

bool nb_cuda_describe(spec *s, const nb_format *f, int64_t n)
{
    nb_grid g = {};
    nb_qparam any = {};
    const float ends[] = {-1, 1};
    if (f->family->fit_online || f->tile > 1 || strstr(f->word, ":paper")) return false;
    f->family->fit(f, ends, NULL, 2, 1, 1, &any); /* a symmetric format has one zero point */
    f->family->grid(f, &any, &g);
    bool floats = !g.uniform && g.rule == NB_SCALE_ABSMAX && strcmp(f->family->name, "fp") == 0;
    if (!g.uniform && !floats) return false;
    memset(s, 0, sizeof *s);
    s->n = n;
    s->group = f->group > 0 && f->group < n ? f->group : n;
    s->groups = n ? (n + s->group - 1) / s->group : 0;
    s->uniform = g.uniform;
    s->range = g.rule == NB_SCALE_RANGE;
    s->wide = g.scale_max == FLT_MAX;
    s->span = g.span;
    s->lo = g.lo;
    s->hi = g.hi;
    s->scale_min = g.scale_min;
    s->scale_max = g.scale_max;
    if (!floats) return true;
    s->m_bits = mantissa_bits(f);
    uint8_t least = 1;
    float step;
    nb_qparam one = {};
    one.scale = 1;
    f->family->decode(f, &one, &least, 1, &step);
    s->e_min = ilogbf(step) + s->m_bits;
    return s->m_bits > 0; /* powers of two alone have ties of their own */
}

/* ---- activations ----------------------------------------------------------------------- */

static void quantize_rows(nb_backend *be, const spec *s, mat to, mat from, int64_t rows)
{
    source w = {};
    w.w = from;
    each_group(be, s, rows, [=] __device__(const spec &f) {
        group k = load_group(f, w);
        bool finite = row_is_finite(f, from, k.r);
        for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
            float x = from.at(k.r, c);
            to.at(k.r, c) = finite ? rounded(f, k.p, x) : x;
        }
    });
}

float *nb_cuda_quantize_input(nb_backend *be, nb_view x, const nb_format *act)
{
    spec s;
    blocks b;
    size_t bytes = (size_t)(x.rows * x.cols) * sizeof(float);
    float *to = (float *)nb_cuda_scratch(be, NB_CUDA_INPUT, bytes);
    if (!to || bytes == 0) return to;
    if (nb_cuda_describe(&s, act, x.cols)) {
        mat out = {to, x.cols};
        quantize_rows(be, &s, out, mat_of(x), x.rows);
        return to;
    }
    if (nb_cuda_describe_blocks(be, &b, act, NONFINITE_SATURATES)) {
        mat out = {to, x.cols};
        nb_cuda_round_blocks(be, &b, out, mat_of(x), x.rows, x.cols);
        return to;
    }
    nb_backend *cpu = nb_cuda_cpu(be);
    float *stage = nb_cuda_staging(be, 2 * bytes);
    if (!cpu || !stage) return NULL;
    float *back = stage + x.rows * x.cols;
    nb_cuda_download(be, x, stage, NB_F32);
    be->nonfinite += be->host->fake_quant(cpu, act, stage, x.cols, x.rows, x.cols, back);
    nb_buffer all = {to, x.rows * x.cols};
    nb_cuda_upload(be, nb_view_of(&all, x.rows, x.cols), back, NB_F32);
    return to;
}

/* x, or a copy where a result takes its place and has several groups: each asks whether the whole
 * row is finite. buf NULL: fault. */
static nb_view apart(nb_backend *be, nb_view x, nb_view out, const spec *s, nb_buffer *b)
{
    if (s->groups <= 1 || nb_cuda_row(out, 0) != nb_cuda_row(x, 0)) return x;
    nb_view none = {};
    b->n = x.rows * x.cols;
    b->data = (float *)nb_cuda_scratch(be, NB_CUDA_INPUT, (size_t)b->n * sizeof(float));
    if (!b->data) return none;
    nb_view copy = nb_view_of(b, x.rows, x.cols);
    nb_cuda_copy(be, copy, x);
    return copy;
}

void nb_cuda_quant_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *fmt)
{
    spec s;
    blocks blk;
    nb_buffer b = {};
    if (!is_quantized(fmt)) {
        nb_cuda_copy(be, out, x);
    } else if (nb_cuda_describe(&s, fmt, x.cols)) {
        x = apart(be, x, out, &s, &b);
        if (x.buf) quantize_rows(be, &s, mat_of(out), mat_of(x), x.rows);
    } else if (fmt->tile <= 1 && nb_cuda_describe_blocks(be, &blk, fmt, NONFINITE_STAYS)) {
        nb_cuda_round_blocks(be, &blk, mat_of(out), mat_of(x), x.rows, x.cols);
    } else {
        nb_backend *cpu = nb_cuda_cpu(be);
        nb_view m = nb_cuda_mirror(be, 0, x, true);
        if (!nb_cuda_healthy(be)) return;
        cpu->ops->quant_forward(cpu, m, m, fmt);
        nb_cuda_reflect(be, out, m);
        nb_cuda_settle(be);
    }
}

static void differentiate_rows(nb_backend *be, const spec *s, mat to, mat grad, mat x, int64_t rows)
{
    source w = {};
    w.w = x;
    each_group(be, s, rows, [=] __device__(const spec &f) {
        group k = load_group(f, w);
        bool finite = row_is_finite(f, x, k.r);
        float n_lo, n_hi;
        count_ends(k, w, &n_lo, &n_hi);
        auto g = [=](int64_t c) { return grad.at(k.r, c); };
        auto v = [=](int64_t c) { return x.at(k.r, c); };
        ends d = differentiate(f, k, false, g, v, v);
        for (int64_t c = k.at + threadIdx.x; c < k.end; c += blockDim.x) {
            float y = x.at(k.r, c), e = grad.at(k.r, c);
            float pass = is_inside(k.p, y) ? e : 0;
            to.at(k.r, c) = finite ? pass + extreme_part(k, d, y, n_lo, n_hi) : e;
        }
    });
}

void nb_cuda_quant_backward(nb_backend *be, nb_view dx, nb_view g, nb_view x, const nb_format *fmt)
{
    spec s;
    nb_buffer b = {};
    if (!is_quantized(fmt)) {
        nb_cuda_copy(be, dx, g);
    } else if (nb_cuda_describe(&s, fmt, x.cols)) {
        x = apart(be, x, dx, &s, &b);
        if (x.buf) differentiate_rows(be, &s, mat_of(dx), mat_of(g), mat_of(x), x.rows);
    } else {
        nb_backend *cpu = nb_cuda_cpu(be);
        nb_view m = nb_cuda_mirror(be, 0, g, true), from = nb_cuda_mirror(be, 1, x, true);
        if (!nb_cuda_healthy(be)) return;
        cpu->ops->quant_backward(cpu, m, m, from, fmt);
        nb_cuda_reflect(be, dx, m);
        nb_cuda_settle(be);
    }
}
