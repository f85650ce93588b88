/* Linears of the scalar backend; included by ref_tmpl.h. */

static void linear_free(nb_backend *be, nb_linear *l)
{
    NB_UNUSED(be);
    if (!l) return;
    free(l->bias);
    free(l->a);
    free(l->b);
    free(l);
}

/* [rank, n] as fp32; NULL: out of memory. */
static float *expand_factor(const nb_matrix *m)
{
    float *v = malloc((size_t)(m->n_out * m->n_in) * sizeof *v);
    if (v) nb_matrix_dequant(m, 0, m->n_out, v);
    return v;
}

static nb_status create_lorc(nb_linear *l, const nb_lorc *d, nb_error *err)
{
    l->rank = d->rank;
    if (d->rank == 0) return NB_OK;
    l->a = expand_factor(&d->a);
    l->b = expand_factor(&d->b);
    size_t bytes = (size_t)l->rank * (size_t)(l->w.n_out + l->w.n_in) * sizeof *l->a;
    return l->a && l->b ? NB_OK : nb_fail_memory(err, "low-rank factors", bytes);
}

static nb_status linear_create(nb_backend *be, const nb_linear_desc *d, nb_linear **out,
                               nb_error *err)
{
    *out = NULL;
    nb_linear *l = calloc(1, sizeof *l);
    if (!l) return nb_fail_memory(err, "linear", sizeof *l);
    l->w = *d->w;
    l->act = d->act;
    if (d->bias) {
        size_t bytes = (size_t)d->w->n_out * sizeof *l->bias;
        l->bias = malloc(bytes);
        if (!l->bias) {
            linear_free(be, l);
            return nb_fail_memory(err, "bias", bytes);
        }
        memcpy(l->bias, d->bias, bytes);
    }
    nb_status st = create_lorc(l, &d->lorc, err);
    if (st != NB_OK) {
        linear_free(be, l);
        return st;
    }
    *out = l;
    return NB_OK;
}

static size_t linear_bytes(const nb_linear *l)
{
    size_t bias = l->bias ? (size_t)l->w.n_out * sizeof *l->bias : 0;
    size_t factors = (size_t)l->rank * (size_t)(l->w.n_out + l->w.n_in) * sizeof *l->a;
    return (size_t)nb_matrix_bytes(&l->w) + bias + factors;
}

static void embed_forward(nb_backend *be, nb_view out, const nb_linear *w, const int32_t *ids)
{
    assert(out.cols == w->w.n_in);
    if (!nb_fault_check_ids(fault(be), "token", ids, out.rows, w->w.n_out)) return;
    float *v = malloc((size_t)out.cols * sizeof *v);
    if (!v) {
        nb_fault_set_memory(fault(be), "embedding row", (size_t)out.cols * sizeof *v);
        return;
    }
    for (int64_t t = 0; t < out.rows; t++) {
        nb_matrix_dequant(&w->w, ids[t], 1, v);
        for (int64_t c = 0; c < out.cols; c++) row(out, t)[c] = v[c];
    }
    free(v);
}

/* to [C] = row t of x through the act format. */
static void load_row(REAL *to, nb_view x, int64_t t, const nb_format *act, float *tmp)
{
    memcpy(to, row(x, t), (size_t)x.cols * sizeof *to);
    if (!act || !nb_format_is_quantized(act)) return;
    for (int64_t c = 0; c < x.cols; c++) tmp[c] = (float)to[c];
    nb_fake_quant_row(act, tmp, x.cols, tmp);
    for (int64_t c = 0; c < x.cols; c++) to[c] = tmp[c];
}

/* q [T, M] = operands made of x: through the act format and the compute type. */
static void quantize_input(nb_backend *be, REAL *q, nb_view x, const nb_format *act, float *tmp)
{
    for (int64_t t = 0; t < x.rows; t++) {
        REAL *to = q + t * x.cols;
        load_row(to, x, t, act, tmp);
        for (int64_t c = 0; c < x.cols; c++) to[c] = operand(be, to[c]);
    }
}

static REAL dot(const nb_backend *be, const REAL *x, const float *w, int64_t n)
{
    REAL s = 0;
    for (int64_t i = 0; i < n; i++) s += x[i] * operand(be, w[i]);
    return s;
}

/* out += (q b^T) a for operands q [T, M]. */
static void add_lorc(nb_backend *be, nb_view out, const REAL *q, const nb_linear *w)
{
    int64_t n_in = w->w.n_in, n_out = w->w.n_out;
    for (int64_t t = 0; t < out.rows; t++) {
        for (int64_t r = 0; r < w->rank; r++) {
            REAL y = dot(be, q + t * n_in, w->b + r * n_in, n_in);
            for (int64_t n = 0; n < n_out; n++) row(out, t)[n] += y * w->a[r * n_out + n];
        }
    }
}

static void linear_forward(nb_backend *be, nb_view out, nb_view x, const nb_linear *w, bool add)
{
    assert(out.rows == x.rows && x.cols == w->w.n_in && out.cols == w->w.n_out);
    REAL *q = malloc((size_t)(x.rows * x.cols + 1) * sizeof *q);
    float *v = malloc((size_t)(x.cols + 1) * sizeof *v);
    if (q && v) {
        quantize_input(be, q, x, &w->act, v);
        for (int64_t n = 0; n < out.cols; n++) {
            nb_matrix_dequant(&w->w, n, 1, v);
            for (int64_t t = 0; t < out.rows; t++) {
                REAL y = dot(be, q + t * x.cols, v, x.cols);
                if (w->bias) y += w->bias[n];
                row(out, t)[n] = add ? row(out, t)[n] + y : y;
            }
        }
        add_lorc(be, out, q, w);
    } else {
        nb_fault_set_memory(fault(be), "linear", (size_t)(x.rows * x.cols) * sizeof *q);
    }
    free(q);
    free(v);
}

static void scale_to_unit(REAL *q, int64_t n)
{
    REAL sum = 0;
    for (int64_t i = 0; i < n; i++) sum += q[i] * q[i];
    if (sum == 0) return;
    REAL scale = sqrt((REAL)n / sum);
    for (int64_t i = 0; i < n; i++) q[i] *= scale;
}

static void gram_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *act, bool unit)
{
    assert(out.rows == x.cols && out.cols == x.cols);
    size_t bytes = (size_t)(x.cols + 1) * sizeof(REAL);
    float *tmp = malloc(bytes);
    REAL *q = malloc(bytes);
    if (!tmp || !q) nb_fault_set_memory(fault(be), "gram", bytes);
    for (int64_t t = 0; tmp && q && t < x.rows; t++) {
        load_row(q, x, t, act, tmp);
        if (unit) scale_to_unit(q, x.cols);
        for (int64_t i = 0; i < x.cols; i++) {
            for (int64_t j = i; j < x.cols; j++) row(out, i)[j] += q[i] * q[j];
        }
    }
    free(tmp);
    free(q);
}
