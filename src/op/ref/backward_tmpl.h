/* Products, sums and backward passes of the scalar backend; included by ref_tmpl.h. */

static void product(nb_backend *be, nb_view out, nb_view a, bool a_cols, nb_view b, bool b_rows,
                    bool add)
{
    int64_t K = a_cols ? a.rows : a.cols;
    assert(out.rows == (a_cols ? a.cols : a.rows) && out.cols == (b_rows ? b.rows : b.cols));
    assert(K == (b_rows ? b.cols : b.rows));
    for (int64_t m = 0; m < out.rows; m++) {
        for (int64_t n = 0; n < out.cols; n++) {
            REAL s = 0;
            for (int64_t k = 0; k < K; k++) {
                REAL x = a_cols ? row(a, k)[m] : row(a, m)[k];
                REAL y = b_rows ? row(b, n)[k] : row(b, k)[n];
                s += operand(be, x) * operand(be, y);
            }
            row(out, m)[n] = add ? row(out, m)[n] + s : s;
        }
    }
}

static void bias_forward(nb_backend *be, nb_view x, nb_view bias)
{
    NB_UNUSED(be);
    assert(bias.cols == x.cols);
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t c = 0; c < x.cols; c++) row(x, t)[c] += row(bias, 0)[c];
    }
}

static void col_sum(nb_backend *be, nb_view out, nb_view a, nb_view b, bool add)
{
    NB_UNUSED(be);
    assert(out.cols == a.cols);
    for (int64_t c = 0; c < a.cols; c++) {
        REAL s = 0;
        for (int64_t t = 0; t < a.rows; t++) s += row(a, t)[c] * (b.buf ? row(b, t)[c] : 1);
        row(out, 0)[c] = add ? row(out, 0)[c] + s : s;
    }
}

/* dx = r (d - mean d - x^ mean (d x^)), d = dy w, x^ = (x - mean x) r; RMS: no means of x and d. */
static void norm_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, const nb_norm *norm,
                          bool add)
{
    NB_UNUSED(be);
    int64_t n = x.cols;
    bool centre = norm->kind == NB_NORM_LAYER;
    const REAL *w = norm->weight ? norm->weight->data : NULL;
    for (int64_t t = 0; t < x.rows; t++) {
        const REAL *in = row(x, t), *d = row(dy, t);
        REAL mean = 0, var = 0, sum = 0, dot = 0;
        for (int64_t c = 0; c < n && centre; c++) mean += in[c] / (REAL)n;
        for (int64_t c = 0; c < n; c++) var += (in[c] - mean) * (in[c] - mean);
        REAL r = 1 / sqrt(var / (REAL)n + norm->eps);
        for (int64_t c = 0; c < n; c++) {
            REAL g = d[c] * (w ? w[c] : 1);
            if (centre) sum += g;
            dot += g * (in[c] - mean) * r;
        }
        for (int64_t c = 0; c < n; c++) {
            REAL g = d[c] * (w ? w[c] : 1);
            REAL y = r * (g - sum / (REAL)n - (in[c] - mean) * r * (dot / (REAL)n));
            row(dx, t)[c] = add ? row(dx, t)[c] + y : y;
        }
    }
}

static void rope_backward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved)
{
    NB_UNUSED(be);
    int64_t D = x.cols / n_heads, half = table.cols / 2;
    int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
    for (int64_t t = 0; t < x.rows; t++) {
        const REAL *c = row(table, t), *s = c + half;
        for (int h = 0; h < n_heads; h++) {
            REAL *p = row(x, t) + h * D;
            for (int64_t i = 0; i < half; i++) {
                REAL *first = p + step * i, *second = first + apart, a = *first, b = *second;
                *first = a * c[i] + b * s[i];
                *second = b * c[i] - a * s[i];
            }
        }
    }
}

static REAL activate_slope(REAL x, nb_act_kind act)
{
    REAL s;
    switch (act) {
    case NB_ACT_SILU:
        s = 1 / (1 + exp(-x));
        return s * (1 + x * (1 - s));
    case NB_ACT_RELU:
        return x > 0;
    case NB_ACT_GELU:
        return (1 + erf(x * (REAL)0.70710678118654752440)) / 2 +
               x * exp(-x * x / 2) * (REAL)0.39894228040143267794;
    }
    return 1;
}

static void glu_backward(nb_backend *be, nb_view dgate, nb_view dup, nb_view dout, nb_view gate,
                         nb_view up, nb_act_kind act)
{
    NB_UNUSED(be);
    for (int64_t t = 0; t < gate.rows; t++) {
        for (int64_t c = 0; c < gate.cols; c++) {
            REAL d = row(dout, t)[c], g = row(gate, t)[c], u = row(up, t)[c];
            row(dgate, t)[c] = d * u * activate_slope(g, act);
            row(dup, t)[c] = d * activate(g, act);
        }
    }
}

static void act_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, nb_act_kind act)
{
    NB_UNUSED(be);
    for (int64_t t = 0; t < x.rows; t++) {
        for (int64_t c = 0; c < x.cols; c++) {
            row(dx, t)[c] = row(dy, t)[c] * activate_slope(row(x, t)[c], act);
        }
    }
}

/* What the squared error of a token counts. */
static double token_weight(const REAL *target, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)target[i] * (double)target[i];
    return sum > 0 ? (double)n / sum : 1;
}

static double mse_backward(nb_backend *be, nb_view dy, nb_view y, nb_view target, bool unit,
                           double scale, bool add)
{
    NB_UNUSED(be);
    double loss = 0;
    for (int64_t t = 0; t < y.rows; t++) {
        double weight = unit ? token_weight(row(target, t), y.cols) : 1;
        for (int64_t c = 0; c < y.cols; c++) {
            REAL d = row(y, t)[c] - row(target, t)[c], g = (REAL)(scale * weight) * d;
            row(dy, t)[c] = add ? row(dy, t)[c] + g : g;
            loss += weight * ((double)d * (double)d);
        }
    }
    return loss;
}

static void adamw_step(nb_backend *be, nb_view param, nb_view grad, nb_view m, nb_view v, double lr,
                       double beta1, double beta2, double eps, int64_t t)
{
    NB_UNUSED(be);
    REAL b1 = (REAL)beta1, b2 = (REAL)beta2;
    REAL rate = (REAL)(lr / (1 - pow(beta1, (double)t)));
    REAL root = (REAL)sqrt(1 - pow(beta2, (double)t));
    for (int64_t r = 0; r < param.rows; r++) {
        for (int64_t c = 0; c < param.cols; c++) {
            REAL g = row(grad, r)[c], *m1 = row(m, r) + c, *m2 = row(v, r) + c;
            *m1 += (1 - b1) * (g - *m1);
            *m2 += (1 - b2) * (g * g - *m2);
            row(param, r)[c] -= rate * *m1 / (sqrt(*m2) / root + (REAL)eps);
        }
    }
}

static void sign_step(nb_backend *be, nb_view param, nb_view grad, double lr, double lo, double hi)
{
    NB_UNUSED(be);
    for (int64_t r = 0; r < param.rows; r++) {
        for (int64_t c = 0; c < param.cols; c++) {
            REAL g = row(grad, r)[c], *p = row(param, r) + c;
            REAL x = *p - (g > 0 ? (REAL)lr : 0) + (g < 0 ? (REAL)lr : 0);
            x = x < (REAL)lo ? (REAL)lo : x;
            *p = x > (REAL)hi ? (REAL)hi : x;
        }
    }
}
