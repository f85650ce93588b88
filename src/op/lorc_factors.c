/* What everybody does with low-rank factors who is not a backend. */
#include "op/op.h"

bool nb_lorc_shape(nb_lorc *l, int64_t n_out, int64_t n_in)
{
    l->a.n_out = l->b.n_out = l->rank;
    l->a.n_in = n_out;
    l->b.n_in = n_in;
    return l->rank <= n_out && l->rank <= n_in;
}

int64_t nb_lorc_bytes(const nb_lorc *l)
{
    return l->rank > 0 ? nb_matrix_bytes(&l->a) + nb_matrix_bytes(&l->b) : 0;
}

void nb_lorc_add(const nb_lorc *l, const float *a, const float *b, int64_t row, int64_t n_rows,
                 float *w)
{
    int64_t n_out = l->a.n_in, n_in = l->b.n_in;
    for (int64_t n = 0; n < n_rows; n++) {
        for (int64_t r = 0; r < l->rank; r++) {
            float factor = a[r * n_out + row + n];
            for (int64_t i = 0; i < n_in; i++) w[n * n_in + i] += factor * b[r * n_in + i];
        }
    }
}
