/* Norms, positions, activations and sums of the scalar backend; included by ref_tmpl.h. */

static void norm_forward(nb_backend *be, nb_view out, nb_view x, const nb_norm *norm)
{
    NB_UNUSED(be);
    int64_t n = x.cols;
    for (int64_t t = 0; t < x.rows; t++) {
        const REAL *in = row(x, t);
        REAL mean = 0, var = 0;
        if (norm->kind == NB_NORM_LAYER) {
            for (int64_t c = 0; c < n; c++) mean += in[c];
            mean /= (REAL)n;
        }
        for (int64_t c = 0; c < n; c++) var += (in[c] - mean) * (in[c] - mean);
        REAL r = 1 / sqrt(var / (REAL)n + norm->eps);
        for (int64_t c = 0; c < n; c++) {
            REAL y = (in[c] - mean) * r;
            if (norm->weight) y *= norm->weight->data[c];
            if (norm->bias) y += norm->bias->data[c];
            row(out, t)[c] = y;
        }
    }
}

static void rope_forward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved)
{
    NB_UNUSED(be);
    int64_t D = x.cols / n_heads, half = table.cols / 2;
    assert(table.rows == x.rows && table.cols <= D);
    int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : half;
    for (int64_t t = 0; t < x.rows; t++) {
        const REAL *c = row(table, t), *s = c + half;
        for (int h = 0; h < n_heads; h++) {
            REAL *p = row(x, t) + h * D;
            for (int64_t i = 0; i < half; i++) {
                REAL *first = p + step * i, *second = first + apart, a = *first, b = *second;
                *first = a * c[i] - b * s[i];
                *second = b * c[i] + a * s[i];
            }
        }
    }
}

static void hadamard_forward(nb_backend *be, nb_view x, int64_t n)
{
    NB_UNUSED(be);
    assert(n > 0 && (n & (n - 1)) == 0 && x.cols % n == 0);
    for (int64_t t = 0; t < x.rows; t++) {
        REAL *p = row(x, t);
        for (int64_t h = 1; h < n; h *= 2) {
            for (int64_t i = 0; i < x.cols; i++) {
                if (i & h) continue; /* the second of a pair */
                REAL a = p[i], b = p[i + h];
                p[i] = a + b;
                p[i + h] = a - b;
            }
        }
        for (int64_t i = 0; i < x.cols; i++) p[i] *= 1 / sqrt((REAL)n);
    }
}

static void add_forward(nb_backend *be, nb_view out, nb_view a, nb_view b)
{
    NB_UNUSED(be);
    for (int64_t t = 0; t < out.rows; t++) {
        for (int64_t c = 0; c < out.cols; c++) row(out, t)[c] = row(a, t)[c] + row(b, t)[c];
    }
}

static REAL activate(REAL x, nb_act_kind act)
{
    switch (act) {
    case NB_ACT_SILU:
        return x / (1 + exp(-x));
    case NB_ACT_RELU:
        return x < 0 ? 0 : x;
    case NB_ACT_GELU:
        return x / 2 * (1 + erf(x * (REAL)0.70710678118654752440));
    }
    return x;
}

static void glu_forward(nb_backend *be, nb_view out, nb_view gate, nb_view up, nb_act_kind act)
{
    NB_UNUSED(be);
    for (int64_t t = 0; t < out.rows; t++) {
        for (int64_t c = 0; c < out.cols; c++) {
            row(out, t)[c] = activate(row(gate, t)[c], act) * row(up, t)[c];
        }
    }
}

static void act_forward(nb_backend *be, nb_view out, nb_view x, nb_act_kind act)
{
    NB_UNUSED(be);
    for (int64_t t = 0; t < out.rows; t++) {
        for (int64_t c = 0; c < out.cols; c++) row(out, t)[c] = activate(row(x, t)[c], act);
    }
}
