/* Losses, sums over rows, and the optimizer. */
#include <math.h>

#include "op/cuda/backend_cuda.h"

/* ---- losses over rows of logits -------------------------------------------------------- */

typedef struct peak {
    float x;
    int64_t at;
} peak;

/* Largest of a row and where it first is, by the threads of its block. */
static __device__ peak find_peak(mat x, int64_t r, int64_t n)
{
    peak p = {-INFINITY, n};
    for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
        if (x.at(r, c) > p.x) p = {x.at(r, c), c};
    }
    float max = nb_reduce(p.x, nb_most());
    int64_t at = p.x == max ? p.at : n;
    return {max, nb_reduce(at, nb_least())};
}

static __device__ double log_sum(mat x, int64_t r, int64_t n, float max)
{
    double sum = 0;
    for (int64_t c = threadIdx.x; c < n; c += blockDim.x) sum += expf(x.at(r, c) - max);
    return (double)max + log(nb_reduce(sum, nb_add()));
}

void nb_cuda_nll_forward(nb_backend *be, double *nll, nb_view logits, const int32_t *targets)
{
    nb_fault *fault = &nb_cuda_of(be)->fault;
    if (logits.rows == 0) return;
    if (!be->host->fault_check_ids(fault, "target", targets, logits.rows, logits.cols)) return;
    size_t bytes = (size_t)logits.rows * sizeof *targets;
    double *out = (double *)nb_cuda_scratch(be, NB_CUDA_ROWS, (size_t)logits.rows * sizeof *out);
    int32_t *ids = (int32_t *)nb_cuda_scratch(be, NB_CUDA_IDS, bytes);
    if (!out || !ids) return;
    nb_cuda_ok(be,
               cudaMemcpyAsync(ids, targets, bytes, cudaMemcpyHostToDevice, nb_cuda_of(be)->stream),
               "upload");
    mat x = mat_of(logits);
    int64_t n = logits.cols;
    nb_rows(be, logits.rows, [=] __device__(int64_t r) {
        double lse = log_sum(x, r, n, find_peak(x, r, n).x);
        if (threadIdx.x == 0) out[r] = lse - (double)x.at(r, ids[r]);
    });
    nb_cuda_fetch(be, nll, out, (size_t)logits.rows * sizeof *out);
}

void nb_cuda_kl_forward(nb_backend *be, double *kl, uint8_t *same, nb_view ref, nb_view logits)
{
    size_t rows = (size_t)ref.rows;
    double *out = (double *)nb_cuda_scratch(be, NB_CUDA_ROWS, rows * (sizeof *out + 1));
    if (rows == 0 || !out) return;
    uint8_t *flags = (uint8_t *)(out + rows);
    mat a = mat_of(ref), b = mat_of(logits);
    int64_t n = ref.cols;
    nb_rows(be, ref.rows, [=] __device__(int64_t r) {
        peak pa = find_peak(a, r, n), pb = find_peak(b, r, n);
        double la = log_sum(a, r, n, pa.x), lb = log_sum(b, r, n, pb.x), sum = 0;
        for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
            double x = a.at(r, c), y = b.at(r, c);
            sum += (double)expf((float)(x - la)) * ((x - y) - (la - lb));
        }
        sum = nb_reduce(sum, nb_add());
        if (threadIdx.x != 0) return;
        out[r] = sum;
        flags[r] = pa.at == pb.at;
    });
    if (nb_cuda_fetch(be, kl, out, rows * sizeof *out)) nb_cuda_fetch(be, same, flags, rows);
}

/* ---- sums over rows -------------------------------------------------------------------- */

void nb_cuda_sum_columns(nb_backend *be, mat out, mat a, mat b, int64_t rows, int64_t cols,
                         bool add)
{
    enum { PIECE = 32 }; /* rows of a partial sum */
    int64_t pieces = (rows + PIECE - 1) / PIECE;
    float *part =
        (float *)nb_cuda_scratch(be, NB_CUDA_ROWS, (size_t)(pieces * cols + 1) * sizeof *part);
    if (!part) return;
    nb_each(be, pieces, cols, [=] __device__(int64_t i, int64_t c) {
        float sum = 0;
        int64_t end = (i + 1) * PIECE < rows ? (i + 1) * PIECE : rows;
        for (int64_t r = i * PIECE; r < end; r++) sum += a.at(r, c) * (b.p ? b.at(r, c) : 1);
        part[i * cols + c] = sum;
    });
    nb_each(be, 1, cols, [=] __device__(int64_t, int64_t c) {
        float sum = 0;
        for (int64_t i = 0; i < pieces; i++) sum += part[i * cols + c];
        out.at(0, c) = add ? out.at(0, c) + sum : sum;
    });
}

void nb_cuda_col_sum(nb_backend *be, nb_view out, nb_view a, nb_view b, bool add)
{
    nb_cuda_sum_columns(be, mat_of(out), mat_of(a), mat_of(b), a.rows, a.cols, add);
}

/* ---- training -------------------------------------------------------------------------- */

double nb_cuda_mse_backward(nb_backend *be, nb_view dy, nb_view y, nb_view target, bool unit,
                            double scale, bool add)
{
    size_t bytes = (size_t)y.rows * sizeof(double);
    double *out = (double *)nb_cuda_scratch(be, NB_CUDA_ROWS, bytes), loss = 0;
    double *row = (double *)nb_cuda_staging(be, bytes);
    if (!out || !row) return NAN;
    mat d = mat_of(dy), p = mat_of(y), q = mat_of(target);
    int64_t n = y.cols;
    nb_rows(be, y.rows, [=] __device__(int64_t r) {
        double sum = 0, square = 0;
        for (int64_t c = threadIdx.x; c < n && unit; c += blockDim.x) {
            square += (double)q.at(r, c) * (double)q.at(r, c);
        }
        square = unit ? nb_reduce(square, nb_add()) : 0;
        double weight = square > 0 ? (double)n / square : 1;
        float slope = (float)(scale * weight);
        for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
            float e = p.at(r, c) - q.at(r, c);
            sum += (double)e * (double)e;
            d.at(r, c) = (add ? d.at(r, c) : 0) + slope * e;
        }
        sum = nb_reduce(sum, nb_add());
        if (threadIdx.x == 0) out[r] = weight * sum;
    });
    if (!nb_cuda_fetch(be, row, out, bytes)) return NAN;
    for (int64_t r = 0; r < y.rows; r++) loss += row[r];
    return loss;
}

void nb_cuda_adamw_step(nb_backend *be, nb_view param, nb_view grad, nb_view m, nb_view v,
                        double lr, double beta1, double beta2, double eps, int64_t t)
{
    mat p = mat_of(param), g = mat_of(grad), m1 = mat_of(m), m2 = mat_of(v);
    float b1 = 1 - (float)beta1, b2 = 1 - (float)beta2, small = (float)eps;
    float rate = (float)(lr / (1 - pow(beta1, (double)t)));
    float root = (float)sqrt(1 - pow(beta2, (double)t));
    nb_each(be, param.rows, param.cols, [=] __device__(int64_t r, int64_t c) {
        float d = g.at(r, c), x = m1.at(r, c) + b1 * (d - m1.at(r, c));
        float y = m2.at(r, c) + b2 * (d * d - m2.at(r, c));
        m1.at(r, c) = x;
        m2.at(r, c) = y;
        p.at(r, c) -= rate * x / (sqrtf(y) / root + small);
    });
}

void nb_cuda_sign_step(nb_backend *be, nb_view param, nb_view grad, double lr, double lo, double hi)
{
    mat p = mat_of(param), g = mat_of(grad);
    float rate = (float)lr, least = (float)lo, most = (float)hi;
    nb_each(be, param.rows, param.cols, [=] __device__(int64_t r, int64_t c) {
        float d = g.at(r, c);
        float x = p.at(r, c) - (d > 0 ? rate : 0) + (d < 0 ? rate : 0);
        x = x < least ? least : x;
        p.at(r, c) = x > most ? most : x;
    });
}
