/* Life and memory of the scalar backend; included by ref_tmpl.h. */

static nb_status ref_create(nb_backend *be, nb_error *err)
{
    be->threads = 1;
    be->state = calloc(1, sizeof(nb_fault));
    return be->state ? NB_OK : nb_fail_memory(err, "backend", sizeof(nb_fault));
}

static void ref_destroy(nb_backend *be) { free(be->state); }

static nb_status ref_sync(nb_backend *be, nb_error *err) { return nb_fault_take(fault(be), err); }

static void buffer_free(nb_backend *be, nb_buffer *b)
{
    NB_UNUSED(be);
    if (!b) return;
    free(b->data);
    free(b);
}

static nb_status buffer_create(nb_backend *be, int64_t n, nb_buffer **out, nb_error *err)
{
    *out = NULL;
    nb_buffer *b = calloc(1, sizeof *b);
    if (!b) return nb_fail_memory(err, "buffer", sizeof *b);
    b->n = n;
    b->data = calloc((size_t)(n ? n : 1), sizeof *b->data);
    if (!b->data) {
        buffer_free(be, b);
        return nb_fail_memory(err, "buffer", (size_t)n * sizeof(REAL));
    }
    *out = b;
    return NB_OK;
}

static void upload(nb_backend *be, nb_view dst, const void *src, nb_dtype dtype)
{
    NB_UNUSED(be);
    assert(dtype == NB_F32 || dtype == NB_F64);
    for (int64_t r = 0; r < dst.rows; r++) {
        for (int64_t c = 0; c < dst.cols; c++) {
            int64_t i = r * dst.cols + c;
            row(dst, r)[c] =
                dtype == NB_F32 ? (REAL)((const float *)src)[i] : (REAL)((const double *)src)[i];
        }
    }
}

static void download(nb_backend *be, nb_view src, void *dst, nb_dtype dtype)
{
    NB_UNUSED(be);
    assert(dtype == NB_F32 || dtype == NB_F64);
    for (int64_t r = 0; r < src.rows; r++) {
        for (int64_t c = 0; c < src.cols; c++) {
            int64_t i = r * src.cols + c;
            if (dtype == NB_F32) {
                ((float *)dst)[i] = (float)row(src, r)[c];
            } else {
                ((double *)dst)[i] = row(src, r)[c];
            }
        }
    }
}

static void copy(nb_backend *be, nb_view dst, nb_view src)
{
    NB_UNUSED(be);
    assert(dst.rows == src.rows && dst.cols == src.cols);
    for (int64_t r = 0; r < dst.rows; r++) {
        memmove(row(dst, r), row(src, r), (size_t)dst.cols * sizeof(REAL));
    }
}
