/* Attention with its gradient of the scalar backend; included by ref_tmpl.h after attention_tmpl.h.
 */

static REAL dot_operands(const nb_backend *be, const REAL *a, const REAL *b, int n)
{
    REAL s = 0;
    for (int i = 0; i < n; i++) s += operand(be, a[i]) * operand(be, b[i]);
    return s;
}

/* First key that query t sees. */
static int64_t first_key(const nb_attention *a, int64_t t)
{
    return a->window > 0 ? nb_max_i64(0, t + 1 - a->window) : 0;
}

static void attention_train(nb_backend *be, nb_view out, nb_view lse, nb_view q, nb_view k,
                            nb_view v, const nb_attention *a)
{
    assert(a->pos0 == 0 && lse.cols == a->n_heads);
    attention_forward(be, out, q, k, v, a);
    int group = a->n_heads / a->n_kv_heads, D = a->head_dim;
    for (int64_t t = 0; t < q.rows; t++) {
        for (int h = 0; h < a->n_heads; h++) {
            REAL max = -INFINITY, sum = 0;
            for (int64_t i = first_key(a, t); i <= t; i++) {
                REAL s =
                    a->scale * dot_operands(be, row(q, t) + h * D, row(k, i) + h / group * D, D);
                sum = s > max ? sum * exp(max - s) + 1 : sum + exp(s - max);
                max = s > max ? s : max;
            }
            row(lse, t)[h] = max + log(sum);
        }
    }
}

static void fill_zero(nb_view v)
{
    for (int64_t r = 0; r < v.rows; r++) memset(row(v, r), 0, (size_t)v.cols * sizeof(REAL));
}

static void attention_backward(nb_backend *be, nb_view dq, nb_view dk, nb_view dv, nb_view dout,
                               nb_view out, nb_view lse, nb_view q, nb_view k, nb_view v,
                               const nb_attention *a)
{
    assert(a->pos0 == 0);
    int group = a->n_heads / a->n_kv_heads, D = a->head_dim;
    fill_zero(dq), fill_zero(dk), fill_zero(dv);
    for (int64_t t = 0; t < q.rows; t++) {
        for (int h = 0; h < a->n_heads; h++) {
            const REAL *qh = row(q, t) + h * D, *go = row(dout, t) + h * D;
            REAL own = 0;
            for (int d = 0; d < D; d++) own += go[d] * row(out, t)[h * D + d];
            for (int64_t i = first_key(a, t); i <= t; i++) {
                const REAL *ki = row(k, i) + h / group * D, *vi = row(v, i) + h / group * D;
                REAL p = exp(a->scale * dot_operands(be, qh, ki, D) - row(lse, t)[h]);
                REAL ds = p * (dot_operands(be, go, vi, D) - own) * a->scale;
                for (int d = 0; d < D; d++) {
                    row(dq, t)[h * D + d] += ds * operand(be, ki[d]);
                    row(dk, i)[h / group * D + d] += ds * operand(be, qh[d]);
                    row(dv, i)[h / group * D + d] += p * operand(be, go[d]);
                }
            }
        }
    }
}
