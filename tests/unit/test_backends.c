/* Every op of every backend against "ref64" on random shapes, in both compute types.
 *
 * Bounds follow from the data: k eps sum |terms|, the sum taken by ref64 itself on absolute
 * values. In bf16 all backends round the same inputs, so the same bound holds; only attention may
 * round its softmax weights once more. The cpu backend must give the same bytes for 1, 2 and 4
 * threads. */
#include "backend_util.h"

/* ---- inputs ----------------------------------------------------------------------------- */

/* One row of values into the planes of a quantized or plain format. */
static void encode_row(const nb_format *f, const float *x, int64_t n, uint8_t *const plane[])
{
    if (!nb_format_is_quantized(f)) {
        for (int64_t i = 0; i < n; i++) {
            uint32_t u;
            memcpy(&u, x + i, 4);
            uint16_t h = (uint16_t)(u >> 16); /* truncated: any bf16 will do */
            if (f->variant == NB_F16) h = nb_f16_from_f32(x[i]);
            if (f->variant == NB_F16) memcpy(plane[0] + 2 * i, &h, 2);
            if (f->variant == NB_BF16) memcpy(plane[0] + 2 * i, &h, 2);
            if (f->variant == NB_F32) memcpy(plane[0] + 4 * i, &u, 4);
        }
        return;
    }
    int64_t groups = nb_format_groups(f, n);
    uint8_t *codes = malloc((size_t)n);
    nb_qparam *p = calloc((size_t)groups, sizeof *p);
    nb_format_fit_row(f, x, NULL, n, NULL, NULL, p);
    for (int64_t g = 0; g < groups; g++) {
        int64_t b = nb_group_begin(f, g), m = nb_group_length(f, n, g);
        f->family->encode(f, &p[g], x + b, m, codes + b);
    }
    f->family->pack_row(f, codes, p, n, plane);
    free(codes);
    free(p);
}

typedef struct weight {
    nb_matrix m;
    uint8_t *memory[NB_MAX_PLANES];
    float *bias;
} weight;

static weight make_weight(const op_case *c, int64_t n_out, int64_t n_in)
{
    weight w = {.m = {.n_out = n_out, .n_in = n_in}};
    assert_int_equal(nb_format_parse(&w.m.format, c->weights, NULL), NB_OK);
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = w.m.format.family->planes(&w.m.format, n_in, spec);
    float *x = random_values(c, 77, n_out * n_in, 0.5);
    for (int i = 0; i < n; i++) {
        w.memory[i] = malloc((size_t)(n_out * spec[i].row_bytes) + 1);
        w.m.plane[i] = w.memory[i] + c->misaligned;
    }
    for (int64_t r = 0; r < n_out; r++) {
        uint8_t *plane[NB_MAX_PLANES] = {0};
        for (int i = 0; i < n; i++) {
            plane[i] = w.memory[i] + c->misaligned + r * spec[i].row_bytes;
        }
        encode_row(&w.m.format, x + r * n_in, n_in, plane);
    }
    free(x);
    if (c->bias) w.bias = random_values(c, 78, n_out, 1);
    return w;
}

static void free_weight(weight *w)
{
    for (int i = 0; i < NB_MAX_PLANES; i++) free(w->memory[i]);
    free(w->bias);
}

static nb_linear *make_linear(nb_backend *be, const op_case *c, const weight *w)
{
    nb_linear_desc d = {.w = &w->m, .bias = w->bias};
    op_case factors = {.seed = c->seed + 7, .weights = c->factors, .absolute = c->absolute};
    weight a = {0}, b = {0};
    if (c->act) assert_int_equal(nb_format_parse(&d.act, c->act, NULL), NB_OK);
    if (c->rank) {
        a = make_weight(&factors, c->rank, w->m.n_out);
        b = make_weight(&factors, c->rank, w->m.n_in);
        d.lorc = (nb_lorc){.rank = c->rank, .a = a.m, .b = b.m};
    }
    nb_linear *l = NULL;
    assert_int_equal(be->ops->linear_create(be, &d, &l, NULL), NB_OK);
    assert_true(be->ops->linear_bytes(l) >=
                (size_t)(nb_matrix_bytes(&w->m) + nb_lorc_bytes(&d.lorc)));
    free_weight(&a);
    free_weight(&b);
    return l;
}

/* ---- ops ------------------------------------------------------------------------------- */

static void run_linear(nb_backend *be, const op_case *c, double *out)
{
    weight w = make_weight(c, c->N, c->M);
    nb_linear *l = make_linear(be, c, &w);
    nb_view x = make_view(be, c, 1, c->T, c->M), y = make_view(be, c, 2, c->T, c->N);
    be->ops->linear_forward(be, y, x, l, c->add);
    take_view(be, y, out);
    be->ops->linear_free(be, l);
    free_weight(&w);
    drop(be, x);
    drop(be, y);
}

static void make_ids(const op_case *c, int32_t *ids, int64_t limit)
{
    nb_rng r = {c->seed};
    for (int64_t t = 0; t < c->T; t++) ids[t] = (int32_t)(nb_rng_next(&r) % (uint64_t)limit);
}

static void run_embed(nb_backend *be, const op_case *c, double *out)
{
    weight w = make_weight(c, c->N, c->M);
    nb_linear *l = make_linear(be, c, &w);
    nb_view y = make_view(be, c, 2, c->T, c->M);
    int32_t ids[64];
    make_ids(c, ids, c->N);
    be->ops->embed_forward(be, y, l, ids);
    take_view(be, y, out);
    be->ops->linear_free(be, l);
    free_weight(&w);
    drop(be, y);
}

static void run_norm(nb_backend *be, const op_case *c, double *out)
{
    nb_view x = make_view(be, c, 1, c->T, c->M), y = make_view(be, c, 2, c->T, c->M);
    nb_view w = make_view(be, &(op_case){.seed = 12}, 3, 1, c->M);
    nb_view b = make_view(be, &(op_case){.seed = 12}, 4, 1, c->M);
    nb_norm norm = {.kind = (nb_norm_kind)c->kind, .eps = 1e-5f};
    if (c->add) norm.weight = w.buf;
    if (c->bias) norm.bias = b.buf;
    be->ops->norm_forward(be, c->in_place ? x : y, x, &norm);
    take_view(be, c->in_place ? x : y, out);
    drop(be, x), drop(be, y), drop(be, w), drop(be, b);
}

/* Its upper triangle, with zeros below; `add` twice. */
static void run_gram(nb_backend *be, const op_case *c, double *out)
{
    nb_view x = make_view(be, c, 1, c->T, c->M), y = make_view(be, c, 2, c->M, c->M);
    nb_format act = {0};
    if (c->act) assert_int_equal(nb_format_parse(&act, c->act, NULL), NB_OK);
    for (int i = 0; i < 1 + c->add; i++)
        be->ops->gram_forward(be, y, x, c->act ? &act : NULL, c->kind == 1);
    take_view(be, y, out);
    for (int64_t i = 0; i < c->M; i++) {
        for (int64_t j = 0; j < i; j++) out[i * c->M + j] = 0;
    }
    drop(be, x), drop(be, y);
}

static void run_rope(nb_backend *be, const op_case *c, double *out)
{
    nb_view x = make_view(be, c, 1, c->T, c->H * c->D), t = make_view(be, c, 2, c->T, c->rot);
    be->ops->rope_forward(be, x, c->H, t, c->kind == 1);
    take_view(be, x, out);
    drop(be, x), drop(be, t);
}

static void run_hadamard(nb_backend *be, const op_case *c, double *out)
{
    nb_view x = make_view(be, c, 1, c->T, c->H * c->D);
    be->ops->hadamard_forward(be, x, c->D);
    take_view(be, x, out);
    drop(be, x);
}

static void run_attention(nb_backend *be, const op_case *c, double *out)
{
    int64_t S = c->pos0 + c->T;
    nb_view q = make_view(be, c, 1, c->T, c->H * c->D), k = make_view(be, c, 2, S, c->K * c->D);
    nb_view v = make_view(be, c, 3, S, c->K * c->D), y = make_view(be, c, 4, c->T, c->H * c->D);
    nb_attention a = {c->H, c->K, c->D, 1 / sqrtf((float)c->D), c->pos0, c->window};
    be->ops->attention_forward(be, y, q, k, v, &a);
    take_view(be, y, out);
    drop(be, q), drop(be, k), drop(be, v), drop(be, y);
}

static void run_add(nb_backend *be, const op_case *c, double *out)
{
    nb_view a = make_view(be, c, 1, c->T, c->M), b = make_view(be, c, 2, c->T, c->M);
    nb_view y = make_view(be, c, 3, c->T, c->M), to = c->in_place ? b : y;
    be->ops->add_forward(be, to, a, b);
    be->ops->copy(be, c->in_place ? y : b, to);
    take_view(be, c->in_place ? y : b, out);
    drop(be, a), drop(be, b), drop(be, y);
}

static void run_act(nb_backend *be, const op_case *c, double *out)
{
    nb_view x = make_view(be, c, 1, c->T, c->M), up = make_view(be, c, 2, c->T, c->M);
    nb_view y = make_view(be, c, 3, c->T, c->M), to = c->in_place ? x : y;
    if (c->add) {
        be->ops->glu_forward(be, to, x, up, (nb_act_kind)c->kind);
    } else {
        be->ops->act_forward(be, to, x, (nb_act_kind)c->kind);
    }
    take_view(be, to, out);
    drop(be, x), drop(be, up), drop(be, y);
}

static void run_nll(nb_backend *be, const op_case *c, double *out)
{
    nb_view x = make_view(be, c, 1, c->T, c->N);
    int32_t targets[64];
    make_ids(c, targets, c->N);
    be->ops->nll_forward(be, out, x, targets);
    drop(be, x);
}

/* kl [T], then same [T]; every third row compares with itself. */
static void run_kl(nb_backend *be, const op_case *c, double *out)
{
    nb_view a = make_view(be, c, 1, c->T, c->N), b = make_view(be, c, 2, c->T, c->N);
    for (int64_t t = 0; t < c->T; t += 3) {
        be->ops->copy(be, nb_view_rows(b, t, 1), nb_view_rows(a, t, 1));
    }
    uint8_t same[64];
    be->ops->kl_forward(be, out, same, a, b);
    for (int64_t t = 0; t < c->T; t++) out[c->T + t] = same[t];
    drop(be, a), drop(be, b);
}

/* ---- tests ----------------------------------------------------------------------------- */

static void test_linear(void **state)
{
    NB_UNUSED(state);
    static const char *const weights[] = {"f32",      "bf16",         "int4:g64",
                                          "int3:row", "int8:g32:sym", "dialect:b32"};
    static const char *const acts[] = {NULL, NULL, "int8:token", "int4:token:asym", "dialect:b16"};
    nb_rng r = {3};
    int n_compute = has_bf16() ? 2 : 1;
    for (int i = 0; i < 60; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 3, 8, 9, 33, 260),
                     .M = PICK(&r, 1, 8, 40, 64, 96, 257),
                     .N = PICK(&r, 1, 7, 32, 96, 300, 600),
                     .bias = i % 3 == 0,
                     .add = i % 2 == 0,
                     .misaligned = i % 5 == 0,
                     .weights = weights[nb_rng_next(&r) % NB_COUNT(weights)],
                     .act = acts[nb_rng_next(&r) % NB_COUNT(acts)]};
        for (int compute = 0; compute < n_compute; compute++) {
            /* quantized absolute values are not the absolute quantized ones: 2 covers it */
            double *size = sizes(run_linear, &c, (nb_compute)compute, c.T * c.N);
            compare(run_linear, &c, (nb_compute)compute, size, 2 * (double)(c.M + 4) * EPS,
                    c.T * c.N);
            free(size);
        }
    }
}

/* The factors are read when the linear is made: those of make_linear are gone when it runs. */
static void test_low_rank(void **state)
{
    NB_UNUSED(state);
    static const char *const weights[] = {"f32", "int4:g64", "fp4:g256:m2"};
    nb_rng r = {4};
    int n_compute = has_bf16() ? 2 : 1;
    for (int i = 0; i < 40; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 3, 8, 9, 33, 260),
                     .M = PICK(&r, 8, 40, 96, 257),
                     .N = PICK(&r, 7, 32, 300, 600),
                     .rank = PICK(&r, 1, 4, 7),
                     .bias = i % 3 == 0,
                     .add = i % 2 == 0,
                     .weights = weights[nb_rng_next(&r) % NB_COUNT(weights)],
                     .act = i % 4 == 0 ? "int8:token" : NULL,
                     .factors = i % 5 < 2 ? "int8:row:sym:f32" : "f16"};
        for (int compute = 0; compute < n_compute; compute++) {
            double *size = sizes(run_linear, &c, (nb_compute)compute, c.T * c.N);
            double k = 2 * (double)(c.M + c.rank + 6) * EPS;
            compare(run_linear, &c, (nb_compute)compute, size, k, c.T * c.N);
            free(size);
        }
    }
}

static void test_gram(void **state)
{
    NB_UNUSED(state);
    static const char *const acts[] = {NULL, "int8:token", "fp8:token"};
    nb_rng r = {6};
    int n_compute = has_bf16() ? 2 : 1;
    for (int i = 0; i < 24; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 3, 40, 130),
                     .M = PICK(&r, 1, 8, 67, 192, 200, 390),
                     .add = i % 2 == 0,
                     .kind = i % 3 == 0, /* rows scaled */
                     .act = acts[nb_rng_next(&r) % NB_COUNT(acts)]};
        for (int compute = 0; compute < n_compute; compute++) {
            /* quantized absolute values: as in test_linear */
            double *size = sizes(run_gram, &c, (nb_compute)compute, c.M * c.M);
            double terms = (double)(2 * c.T + 4 + (c.kind ? c.M : 0)); /* a row's square, too */
            compare(run_gram, &c, (nb_compute)compute, size, 2 * terms * EPS, c.M * c.M);
            free(size);
        }
    }
}

static void test_attention(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {4};
    int n_compute = has_bf16() ? 2 : 1;
    for (int i = 0; i < 40; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 2, 8, 9, 40, 130, 300),
                     .K = PICK(&r, 1, 2, 3),
                     .D = PICK(&r, 8, 16, 64),
                     .pos0 = PICK(&r, 0, 0, 1, 37, 256, 300),
                     .window = PICK(&r, 0, 0, 1, 5, 100, 400)};
        c.H = c.K * PICK(&r, 1, 3, 4, 7);
        int64_t n = c.T * c.H * c.D;
        for (int compute = 0; compute < n_compute; compute++) {
            /* |v| < 5 on this data, |q.k| scale < D 25 / sqrt D; a score's error moves every weight
             * by twice as much */
            double score = 25 * sqrt(c.D), relative = 2 * (c.D + 4) * EPS * score / 4;
            relative += (double)(c.pos0 + c.T) * EPS + 0x1p-20 + (compute ? 0x1p-8 : 0);
            double *size = constant(5, n);
            compare(run_attention, &c, (nb_compute)compute, size, relative, n);
            free(size);
        }
    }
}

static void test_pointwise(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {5};
    for (int i = 0; i < 24; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 5, 40),
                     .M = PICK(&r, 1, 16, 67, 576),
                     .kind = i % 2,
                     .bias = i % 3 == 0,
                     .add = i % 4 < 2,
                     .in_place = i % 5 == 0};
        int64_t n = c.T * c.M;
        double *size = constant(25, n);
        compare(run_norm, &c, NB_COMPUTE_F32, size, (double)(c.M + 16) * EPS, n);
        c.kind = i % 3;
        compare(run_act, &c, NB_COMPUTE_F32, size, 0x1p-20, n);
        compare(run_add, &c, NB_COMPUTE_F32, size, 0, n);
        free(size);
    }
}

static void test_rope(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {6};
    for (int i = 0; i < 12; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 5, 70),
                     .H = PICK(&r, 1, 3),
                     .D = 64,
                     .rot = PICK(&r, 2, 16, 64),
                     .kind = i % 2};
        double *size = constant(50, c.T * c.H * c.D);
        compare(run_rope, &c, NB_COMPUTE_F32, size, 2 * EPS, c.T * c.H * c.D);
        free(size);
    }
}

/* log2 D sums in a row, of terms that are D / sqrt D times the inputs at most. */
static void test_hadamard(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {8};
    for (int i = 0; i < 30; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = PICK(&r, 1, 5, 70),
                     .H = PICK(&r, 1, 3, 5),
                     .D = PICK(&r, 1, 2, 4, 8, 16, 32, 64, 512)};
        double *size = constant(5 * sqrt(c.D), c.T * c.H * c.D);
        compare(run_hadamard, &c, NB_COMPUTE_F32, size, 12 * EPS, c.T * c.H * c.D);
        free(size);
    }
}

/* The matrix by its definition, and its square. */
static void test_hadamard_matrix(void **state)
{
    NB_UNUSED(state);
    enum { D = 32, H = 3 };
    nb_backend *be = make_backend("ref64", 1, NB_COMPUTE_F32, ~0u);
    op_case c = {.seed = 2};
    nb_view v = make_view(be, &c, 1, 2, H * D);
    double x[2 * H * D], y[2 * H * D], z[2 * H * D];
    take_view(be, v, x);
    be->ops->hadamard_forward(be, v, D);
    take_view(be, v, y);
    be->ops->hadamard_forward(be, v, D);
    take_view(be, v, z);
    for (int i = 0; i < 2 * H * D; i++) {
        double want = 0;
        for (int j = 0; j < D; j++) {
            double sign = __builtin_popcount((unsigned)(i % D & j)) % 2 ? -1 : 1;
            want += sign * x[i / D * D + j] / sqrt(D);
        }
        assert_true(fabs(y[i] - want) < 1e-13);
        assert_true(fabs(z[i] - x[i]) < 1e-13);
    }
    drop(be, v);
    nb_backend_free(be);
}

static void test_embed(void **state)
{
    NB_UNUSED(state);
    static const char *const weights[] = {"f32", "bf16", "int4:g64", "int6:row"};
    for (int i = 0; i < 8; i++) {
        op_case c = {.seed = (uint64_t)i,
                     .T = 1 + 9 * (i % 2),
                     .M = 64 + i,
                     .N = 50,
                     .misaligned = i % 3 == 0,
                     .weights = weights[i % 4]};
        double *size = constant(0, c.T * c.M);
        compare(run_embed, &c, NB_COMPUTE_F32, size, 0, c.T * c.M);
        free(size);
    }
}

static void test_losses(void **state)
{
    NB_UNUSED(state);
    nb_rng r = {7};
    for (int i = 0; i < 12; i++) {
        op_case c = {
            .seed = (uint64_t)i, .T = PICK(&r, 1, 7, 30), .N = PICK(&r, 1, 33, 1000, 5000)};
        /* "ref" adds N terms in fp32; |a - b| < 10 */
        double *size = constant(10, 2 * c.T);
        compare(run_nll, &c, NB_COMPUTE_F32, size, (double)(c.N + 16) * EPS, c.T);
        compare(run_kl, &c, NB_COMPUTE_F32, size, 2 * (double)(c.N + 16) * EPS, 2 * c.T);
        free(size);
    }
}

/* ---- errors ---------------------------------------------------------------------------- */

static void test_sticky_error(void **state)
{
    NB_UNUSED(state);
    for (int i = 0; nb_backends[i]; i++) {
        nb_backend *be = make_backend(nb_backends[i]->name, 1, NB_COMPUTE_F32, ~0u);
        op_case c = {.seed = 1, .T = 2, .M = 8, .N = 10, .weights = "f32"};
        weight w = make_weight(&c, c.N, c.M);
        nb_linear *l = make_linear(be, &c, &w);
        nb_view x = make_view(be, &c, 1, 2, 8), y = make_view(be, &c, 2, 2, 10);
        double nll[2];
        nb_error err = {0};
        assert_int_equal(be->ops->sync(be, &err), NB_OK);
        be->ops->embed_forward(be, x, l, (const int32_t[]){3, 10});
        be->ops->nll_forward(be, nll, y, (const int32_t[]){-1, 0});
        be->ops->linear_forward(be, y, x, l, false); /* a later success does not clear it */
        assert_int_equal(be->ops->sync(be, &err), NB_EUSAGE);
        assert_int_equal(err.status, NB_EUSAGE);
        assert_string_equal(err.message, "token 1: id 10 is not in [0, 10)");
        assert_int_equal(be->ops->sync(be, &err), NB_OK);
        be->ops->nll_forward(be, nll, y, (const int32_t[]){-1, 0});
        assert_int_equal(be->ops->sync(be, NULL), NB_EUSAGE);
        be->ops->linear_free(be, l);
        free_weight(&w);
        drop(be, x), drop(be, y);
        nb_backend_free(be);
    }
}

/* A row that has diverged comes out as NaN, through an act format too. */
static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    for (int i = 0; nb_backends[i]; i++) {
        nb_backend *be = make_backend(nb_backends[i]->name, 1, NB_COMPUTE_F32, ~0u);
        op_case c = {.seed = 1, .T = 12, .M = 16, .N = 3, .weights = "f32", .act = "int8:token"};
        weight w = make_weight(&c, c.N, c.M);
        nb_linear *l = make_linear(be, &c, &w);
        nb_view x = make_view(be, &c, 1, c.T, c.M), y = make_view(be, &c, 2, c.T, c.N);
        float bad = INFINITY;
        double out[12 * 3];
        be->ops->upload(be, nb_view_cols(nb_view_rows(x, 5, 1), 7, 1), &bad, NB_F32);
        be->ops->linear_forward(be, y, x, l, false);
        take_view(be, y, out);
        for (int j = 0; j < 12 * 3; j++) assert_int_equal(isfinite(out[j]) != 0, j / 3 != 5);
        be->ops->linear_free(be, l);
        free_weight(&w);
        drop(be, x), drop(be, y);
        nb_backend_free(be);
    }
}

static void test_options(void **state)
{
    NB_UNUSED(state);
    nb_backend *be;
    nb_error err;
    nb_options opt = {.device = "tpu", .cpumask = ~0u};
    assert_int_equal(nb_backend_create(&be, &opt, &err), NB_EUSAGE);
    assert_null(be);
    assert_string_equal(err.message,
                        "device \"tpu\": unknown; there are cpu, ref, ref64, cuda, cuda:N");
    opt = (nb_options){.threads = -1, .cpumask = ~0u};
    assert_int_equal(nb_backend_create(&be, &opt, &err), NB_EUSAGE);
    opt = (nb_options){.cpumask = 0};
    assert_int_equal(nb_backend_create(&be, &opt, &err), NB_OK);
    assert_string_equal(be->ops->name, "cpu");
    assert_int_equal(be->cpu, 0);
    assert_true(be->threads >= 1);
    nb_buffer *b;
    assert_int_equal(be->ops->buffer_create(be, INT64_MAX / 2, &b, &err), NB_ERESOURCE);
    assert_null(b);
    nb_backend_free(be);
    nb_backend_free(NULL);
}

/* Devices of plug-ins: names that are none of theirs, and what is not there. */
static void test_plugin(void **state)
{
    NB_UNUSED(state);
    static const char *const unknown[] = {"cudax", "cud", "cuda:0:and much too long a name"};
    nb_backend *be;
    nb_error err;
    nb_options opt = {.cpumask = ~0u};
    for (size_t i = 0; i < NB_COUNT(unknown); i++) {
        opt.device = unknown[i];
        assert_int_equal(nb_backend_create(&be, &opt, &err), NB_EUSAGE);
        assert_non_null(strstr(err.message, "unknown; there are"));
    }
    opt.device = has_cuda() ? "cuda:x" : "cuda";
    assert_int_equal(nb_backend_create(&be, &opt, &err), has_cuda() ? NB_EUSAGE : NB_ERESOURCE);
    assert_null(be);
    assert_non_null(strstr(err.message, opt.device));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),       cmocka_unit_test(test_low_rank),
        cmocka_unit_test(test_gram),         cmocka_unit_test(test_attention),
        cmocka_unit_test(test_pointwise),    cmocka_unit_test(test_rope),
        cmocka_unit_test(test_embed),        cmocka_unit_test(test_losses),
        cmocka_unit_test(test_sticky_error), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_options),      cmocka_unit_test(test_plugin),
        cmocka_unit_test(test_hadamard),     cmocka_unit_test(test_hadamard_matrix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
