/* Keys and values of one layer and sequence of the scalar backend, and attention over quantized
 * ones; included by ref_tmpl.h. */

struct nb_kv {
    nb_kv_desc d;
    nb_kv_store *store; /* or NULL: */
    nb_buffer k, v;     /* [rows, K*D] */
    int64_t rows;
};

static void kv_free(nb_backend *be, nb_kv *kv)
{
    NB_UNUSED(be);
    if (!kv) return;
    nb_kv_store_free(kv->store);
    free(kv->k.data);
    free(kv->v.data);
    free(kv);
}

static nb_status kv_create(nb_backend *be, const nb_kv_desc *d, nb_kv **out, nb_error *err)
{
    *out = NULL;
    NB_TRY(nb_kv_check(d, err));
    nb_kv *kv = calloc(1, sizeof *kv);
    if (!kv) return nb_fail_memory(err, "KV cache", sizeof *kv);
    kv->d = *d;
    nb_status st = NB_OK;
    if (nb_kv_is_quantized(&d->formats)) st = nb_kv_store_create(&kv->store, d, err);
    if (st != NB_OK) {
        kv_free(be, kv);
        return st;
    }
    *out = kv;
    return NB_OK;
}

static size_t kv_bytes(const nb_kv *kv)
{
    if (kv->store) return nb_kv_store_bytes(kv->store);
    return (size_t)(2 * kv->rows * kv->d.n_kv_heads * kv->d.head_dim) * sizeof(REAL);
}

/* ---- appending ------------------------------------------------------------------------- */

/* Rows of plain keys and values: whole pages. */
static bool grow_plain(nb_kv *kv, int64_t need)
{
    if (need <= kv->rows) return true;
    int64_t rows = (need + NB_KV_PAGE - 1) / NB_KV_PAGE * NB_KV_PAGE;
    nb_buffer *const both[] = {&kv->k, &kv->v};
    for (int i = 0; i < 2; i++) {
        int64_t n = rows * kv->d.n_kv_heads * kv->d.head_dim;
        REAL *p = realloc(both[i]->data, (size_t)n * sizeof *p);
        if (!p) return false;
        *both[i] = (nb_buffer){p, n};
    }
    kv->rows = rows;
    return true;
}

static nb_view plain_rows(nb_buffer *b, const nb_kv *kv, int64_t n)
{
    return nb_view_of(b, n, (int64_t)kv->d.n_kv_heads * kv->d.head_dim);
}

static void append_plain(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0)
{
    int64_t end = pos0 + k.rows;
    if (end > kv->d.capacity) {
        nb_fault_set(fault(be), NB_ERESOURCE, "KV cache: %lld positions, capacity %lld",
                     (long long)end, (long long)kv->d.capacity);
    } else if (!grow_plain(kv, end)) {
        nb_fault_set_memory(fault(be), "KV cache", kv_bytes(kv));
    } else {
        copy(be, nb_view_rows(plain_rows(&kv->k, kv, end), pos0, k.rows), k);
        copy(be, nb_view_rows(plain_rows(&kv->v, kv, end), pos0, v.rows), v);
    }
}

static void load_float(float *to, const REAL *from, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = (float)from[i];
}

static void append_quantized(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0)
{
    nb_kv_store *s = kv->store;
    nb_error err;
    int64_t first, n_chunks, D = kv->d.head_dim;
    nb_status st = nb_kv_store_begin(s, pos0, k.rows, &first, &n_chunks, &err);
    size_t bytes = nb_kv_store_scratch(s) + (size_t)(2 * D) * sizeof(float);
    char *mem = st == NB_OK ? malloc(bytes) : NULL;
    if (st != NB_OK) nb_fault_set(fault(be), st, "%s", err.message);
    if (!mem) {
        nb_fault_set_memory(fault(be), "KV cache", bytes);
        return;
    }
    float *one_k = (float *)(mem + nb_kv_store_scratch(s)), *one_v = one_k + D;
    for (int64_t i = 0; i < k.rows * kv->d.n_kv_heads; i++) {
        int64_t t = i / kv->d.n_kv_heads, head = i % kv->d.n_kv_heads;
        load_float(one_k, row(k, t) + head * D, D);
        load_float(one_v, row(v, t) + head * D, D);
        be->nonfinite += nb_kv_store_put(s, pos0 + t, head, one_k, one_v, mem);
    }
    for (int64_t i = 0; i < n_chunks * kv->d.n_kv_heads; i++) {
        nb_kv_store_seal(s, first + i / kv->d.n_kv_heads, i % kv->d.n_kv_heads, mem);
    }
    free(mem);
}

static void kv_append(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0)
{
    assert(k.rows == v.rows && k.cols == v.cols && k.cols == kv->d.n_kv_heads * kv->d.head_dim);
    if (kv->store) {
        append_quantized(be, kv, k, v, pos0);
    } else {
        append_plain(be, kv, k, v, pos0);
    }
}

/* ---- attention over records -------------------------------------------------------------- */

/* A row in two forms: its values, and what they are made of. */
typedef struct quantized {
    float *x;
    uint8_t *codes;
    nb_qparam *p;
} quantized;

typedef struct heads {
    const nb_kv_store *s;
    const nb_attention *a;
    bool integer_qk, integer_pv; /* products as sums of integers */
    bool weights;                /* of this row are quantized */
    REAL *scores;                /* [length] */
    quantized q, k;              /* [D] */
    quantized p;                 /* [length] */
    quantized v;                 /* [D, block], or [D] */
    int64_t nonfinite;           /* values of q that saturated */
} heads;

/* Values and codes, side by side in one piece of memory. */
static size_t place_quantized(quantized *q, char *base, int64_t n)
{
    size_t x = nb_align_up((size_t)n * sizeof(float), 64), codes = nb_align_up((size_t)n, 64);
    if (base) *q = (quantized){(float *)base, (uint8_t *)base + x, (nb_qparam *)(base + x + codes)};
    return x + codes + nb_align_up((size_t)n * sizeof(nb_qparam), 64);
}

/* y + sum over the blocks of two rows: an exact integer each, times 2^(SE_a + SE_b - 2), in
 * ascending order (spec: BlockDialect sections 3.3 and 6, D13). */
static REAL add_blocks(REAL y, const nb_format *f, int64_t n, const uint8_t *a, const nb_qparam *pa,
                       const uint8_t *b, const nb_qparam *pb)
{
    for (int64_t g = 0; g < nb_format_groups(f, n); g++) {
        int64_t at = nb_group_begin(f, g), len = nb_group_length(f, n, g);
        double scale = (double)pa[g].scale * (double)pb[g].scale;
        y += (REAL)(nb_dialect_dot(pa[g].id, a + at, pb[g].id, b + at, len) * scale);
    }
    return y;
}

static void load_record(const nb_kv_store *s, const nb_kv_rows *r, int64_t i, int64_t head,
                        bool integer, quantized *to)
{
    const uint8_t *plane[NB_MAX_PLANES];
    nb_kv_planes(s, r, i, head, plane);
    if (integer) {
        r->format.family->unpack_row(&r->format, plane, r->n, to->codes, to->p);
    } else {
        r->format.family->dequant_row(&r->format, plane, r->n, to->x);
    }
}

static void load_query(heads *h, const REAL *q)
{
    const nb_format *f = &h->s->d.formats.q;
    int64_t D = h->a->head_dim;
    load_float(h->q.x, q, D);
    if (h->integer_qk) {
        h->nonfinite += nb_quant_row(f, h->q.x, D, h->q.codes, h->q.p);
    } else if (nb_format_is_quantized(f)) {
        h->nonfinite += nb_fake_quant_row(f, h->q.x, D, h->q.x);
    }
}

static REAL score(heads *h, int64_t head, int64_t i)
{
    REAL dot = 0;
    load_record(h->s, &h->s->k, i, head, h->integer_qk, &h->k);
    if (h->integer_qk) {
        return add_blocks(0, &h->s->k.format, h->a->head_dim, h->q.codes, h->q.p, h->k.codes,
                          h->k.p);
    }
    for (int d = 0; d < h->a->head_dim; d++) dot += (REAL)h->q.x[d] * h->k.x[d];
    return dot;
}

/* scores, and p.x, [begin, end): softmax; zero elsewhere up to the end of the quantized part. */
static void softmax_sight(heads *h, int64_t head, const nb_kv_sight *w)
{
    REAL max = -INFINITY, sum = 0, *s = h->scores;
    for (int64_t i = w->from; i < nb_max_i64(w->to, w->end); i++) s[i] = 0;
    for (int64_t i = w->begin; i < w->end; i++) {
        s[i] = score(h, head, i) * h->a->scale;
        max = s[i] > max ? s[i] : max;
    }
    for (int64_t i = w->begin; i < w->end; i++) sum += s[i] = exp(s[i] - max);
    for (int64_t i = w->begin; i < w->end; i++) s[i] /= sum;
    const nb_format *f = &h->s->d.formats.p;
    h->weights = nb_format_is_quantized(f) && w->to > w->from && sum < INFINITY;
    if (!h->weights) return; /* NaN goes on */
    load_float(h->p.x + w->from, s + w->from, w->to - w->from);
    if (h->integer_pv) {
        nb_quant_row(f, h->p.x + w->from, w->to - w->from, h->p.codes, h->p.p);
    }
    nb_fake_quant_row(f, h->p.x + w->from, w->to - w->from, h->p.x + w->from);
    for (int64_t i = w->from; i < w->to; i++) s[i] = h->p.x[i];
}

/* out [D] += the weighted values of chunk c, as far as the row sees them. */
static void add_chunk(heads *h, REAL *out, int64_t head, int64_t c, const nb_kv_sight *w)
{
    int64_t B = h->s->block, first = c * B, g = (first - w->from) / B, begin, end;
    bool integer = h->integer_pv && h->weights;
    begin = nb_max_i64(first, w->begin);
    end = nb_min_i64(first + B, nb_min_i64(w->end, w->split));
    load_record(h->s, &h->s->v, c, head, integer, &h->v);
    for (int d = 0; d < h->a->head_dim; d++) {
        if (integer) {
            int64_t n = nb_min_i64(B, w->to - first);
            out[d] = add_blocks(out[d], &h->s->v.format, n, h->p.codes + g * B, h->p.p + g,
                                h->v.codes + d * B, h->v.p + d);
            continue;
        }
        REAL y = 0;
        for (int64_t i = begin; i < end; i++) y += h->scores[i] * h->v.x[d * B + i - first];
        out[d] += y;
    }
}

/* out [D] += the weighted values of single tokens [begin, end): records, or in fp16. */
static void add_tokens(heads *h, REAL *out, int64_t head, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        if (h->s->block) {
            nb_kv_store_recent(h->s, i, head, h->v.x);
        } else {
            load_record(h->s, &h->s->v, i, head, false, &h->v);
        }
        for (int d = 0; d < h->a->head_dim; d++) out[d] += h->scores[i] * h->v.x[d];
    }
}

static void attend(heads *h, REAL *out, const REAL *q, int64_t head, int64_t pos)
{
    nb_kv_sight w = nb_kv_sight_of(h->s, pos, h->a->window);
    int64_t B = h->s->block, full = B ? nb_min_i64(w.split, w.end) : w.begin;
    int64_t c = full > w.begin ? w.begin / B * B : full; /* the first chunk in sight */
    load_query(h, q);
    softmax_sight(h, head, &w);
    for (int d = 0; d < h->a->head_dim; d++) out[d] = 0;
    for (; c < full; c += B) add_chunk(h, out, head, c / B, &w);
    add_tokens(h, out, head, nb_max_i64(full, w.begin), w.end);
}

static void attention_quantized(nb_backend *be, nb_view out, nb_view q, nb_kv *kv,
                                const nb_attention *a)
{
    const nb_kv_store *s = kv->store;
    heads h = {.s = s, .a = a};
    h.integer_qk = nb_dialect_is_pair(&s->d.formats.q, &s->k.format);
    h.integer_pv = nb_dialect_is_pair(&s->d.formats.p, &s->v.format);
    struct {
        quantized *q;
        int64_t n;
    } parts[] = {
        {&h.q, a->head_dim}, {&h.k, a->head_dim}, {&h.p, s->length + NB_KV_PAGE}, {&h.v, s->v.n}};
    size_t scores = nb_align_up((size_t)(s->length + NB_KV_PAGE) * sizeof(REAL), 64),
           bytes = scores;
    for (size_t i = 0; i < NB_COUNT(parts); i++) bytes += place_quantized(NULL, NULL, parts[i].n);
    char *mem = malloc(bytes);
    if (!mem) {
        nb_fault_set_memory(fault(be), "attention", bytes);
        return;
    }
    h.scores = (REAL *)mem;
    size_t used = scores;
    for (size_t i = 0; i < NB_COUNT(parts); i++) {
        used += place_quantized(parts[i].q, mem + used, parts[i].n);
    }
    int group = a->n_heads / a->n_kv_heads;
    for (int64_t i = 0; i < q.rows * a->n_heads; i++) {
        int64_t t = i / a->n_heads, head = i % a->n_heads;
        attend(&h, row(out, t) + head * a->head_dim, row(q, t) + head * a->head_dim, head / group,
               a->pos0 + t);
    }
    be->nonfinite += h.nonfinite;
    free(mem);
}

static void kv_attention(nb_backend *be, nb_view out, nb_view q, nb_kv *kv, const nb_attention *a)
{
    assert(a->n_kv_heads == kv->d.n_kv_heads && a->head_dim == kv->d.head_dim);
    int64_t end = a->pos0 + q.rows;
    if (!kv->store) {
        if (end > kv->rows) return; /* the append has failed */
        attention_forward(be, out, q, plain_rows(&kv->k, kv, end), plain_rows(&kv->v, kv, end), a);
    } else if (end == kv->store->length && fault(be)->first.status == NB_OK) {
        attention_quantized(be, out, q, kv, a);
        nb_kv_store_end(kv->store);
    }
}
