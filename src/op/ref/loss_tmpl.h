/* Losses over rows of logits of the scalar backend; included by ref_tmpl.h. */

static REAL log_sum_exp(const REAL *x, int64_t n, int64_t *top)
{
    REAL sum = 0;
    *top = 0;
    for (int64_t c = 1; c < n; c++) *top = x[c] > x[*top] ? c : *top;
    for (int64_t c = 0; c < n; c++) sum += exp(x[c] - x[*top]);
    return x[*top] + log(sum);
}

static void nll_forward(nb_backend *be, double *nll, nb_view logits, const int32_t *targets)
{
    if (!nb_fault_check_ids(fault(be), "target", targets, logits.rows, logits.cols)) return;
    for (int64_t t = 0; t < logits.rows; t++) {
        int64_t top;
        const REAL *x = row(logits, t);
        nll[t] = log_sum_exp(x, logits.cols, &top) - x[targets[t]];
    }
}

static void kl_forward(nb_backend *be, double *kl, uint8_t *same, nb_view ref, nb_view logits)
{
    NB_UNUSED(be);
    for (int64_t t = 0; t < ref.rows; t++) {
        const REAL *a = row(ref, t), *b = row(logits, t);
        int64_t top_a, top_b;
        REAL lse_a = log_sum_exp(a, ref.cols, &top_a), lse_b = log_sum_exp(b, ref.cols, &top_b);
        REAL sum = 0;
        for (int64_t c = 0; c < ref.cols; c++) {
            sum += exp(a[c] - lse_a) * ((a[c] - b[c]) - (lse_a - lse_b));
        }
        kl[t] = sum;
        same[t] = top_a == top_b;
    }
}
