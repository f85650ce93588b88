/* Scalar definitions of the kernels on dialect blocks. */
#include <math.h>

#include "format/dialect.h"
#include "kernel/kernel.h"

static void dialect_value(const int8_t *half, const uint8_t *exponent, int64_t n, int block,
                          float *out)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] = (float)half[i] * nb_dialect_scale(exponent[i / block]);
    }
}

static float dialect_dot(const int8_t *a, const uint8_t *exponent_a, const int8_t *w,
                         const uint8_t *exponent_w, int64_t n, int block)
{
    float y = 0;
    for (int64_t g = 0, at = 0; at < n; g++, at += block) {
        int32_t sum = nb_dialect_dot_half(a + at, w + at, n - at < block ? n - at : block);
        y += ldexpf((float)sum, exponent_a[g] + exponent_w[g] - 256);
    }
    return y;
}

static void dequant_dialect(const nb_format *f, const uint8_t *const plane[], int64_t n, float *out)
{
    f->family->dequant_row(f, plane, n, out);
}

void nb_kernels_init_dialect_ref(nb_kernels *k)
{
    k->dialect_quantize = nb_dialect_quantize_row;
    k->dialect_decode = nb_dialect_decode_row;
    k->dialect_value = dialect_value;
    k->dialect_dot = dialect_dot;
    k->dequant_dialect = dequant_dialect;
}
