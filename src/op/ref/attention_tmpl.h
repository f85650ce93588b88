/* Attention of the scalar backend; included by ref_tmpl.h. */

/* s [end - begin]: softmax over keys begin .. end-1 of scale q k^T. */
static void softmax_scores(nb_backend *be, REAL *s, const REAL *q, nb_view k, int64_t col,
                           int64_t begin, int64_t end, const nb_attention *a)
{
    REAL max = -INFINITY, sum = 0;
    for (int64_t i = begin; i < end; i++) {
        REAL dot = 0;
        for (int d = 0; d < a->head_dim; d++) {
            dot += operand(be, q[d]) * operand(be, row(k, i)[col + d]);
        }
        s[i - begin] = dot * a->scale;
        max = s[i - begin] > max ? s[i - begin] : max;
    }
    for (int64_t i = 0; i < end - begin; i++) sum += s[i] = exp(s[i] - max);
    for (int64_t i = 0; i < end - begin; i++) s[i] /= sum;
}

static void attention_forward(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                              const nb_attention *a)
{
    assert(a->n_heads % a->n_kv_heads == 0);
    assert(k.rows >= a->pos0 + q.rows && v.rows >= a->pos0 + q.rows);
    REAL *s = malloc((size_t)(k.rows + 1) * sizeof *s);
    if (!s) {
        nb_fault_set_memory(fault(be), "attention", (size_t)k.rows * sizeof *s);
        return;
    }
    int group = a->n_heads / a->n_kv_heads, D = a->head_dim;
    for (int64_t t = 0; t < q.rows; t++) {
        int64_t end = a->pos0 + t + 1;
        int64_t begin = a->window > 0 ? nb_max_i64(0, end - a->window) : 0;
        for (int h = 0; h < a->n_heads; h++) {
            int64_t col = (int64_t)(h / group) * D;
            softmax_scores(be, s, row(q, t) + h * D, k, col, begin, end, a);
            for (int d = 0; d < D; d++) {
                REAL y = 0;
                for (int64_t i = begin; i < end; i++) {
                    y += s[i - begin] * operand(be, row(v, i)[col + d]);
                }
                row(out, t)[h * D + d] = y;
            }
        }
    }
    free(s);
}
