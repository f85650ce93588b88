#include "method/output_error.h"

#include <cblas.h>
#include <string.h>

/* H = U + U^T - D: e H e^T = e . (2 e U - e D), half the products of the full matrix. */
void nb_output_error(double *error, const float *e, int64_t rows, int64_t n, const float *h,
                     int64_t ld, float *scratch)
{
    memcpy(scratch, e, (size_t)(rows * n) * sizeof *e);
    cblas_strmm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, (blasint)rows,
                (blasint)n, 1, h, (blasint)ld, scratch, (blasint)n);
    for (int64_t r = 0; r < rows; r++) {
        const float *a = e + r * n, *b = scratch + r * n;
        double sum = 0;
        for (int64_t i = 0; i < n; i++) {
            double x = (double)a[i];
            sum += x * (2 * (double)b[i] - (double)h[i * (ld + 1)] * x);
        }
        error[r] = sum;
    }
}
