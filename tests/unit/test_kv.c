/* Keys and values in the formats of a cache, and attention over them: the CPU backend against the
 * scalar one, a prompt at once against token by token, memory, faults; then whole models. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda_util.h"
#include "op/op.h"
#include "run/session.h"
#include "tiny_model.h"

enum { MAX_T = 200, MAX_WIDTH = 512 };

/* Words of q, k, v, p; NULL: as they are. */
typedef struct words {
    const char *q, *k, *v, *p;
} words;

static const words kinds[] = {
    {"dialect:b16", "dialect:b16", "dialect:b16", "dialect:b16"},
    {"dialect:b32", "dialect:b32", "dialect:b32", "dialect:b32"},
    {"dialect:b16", "dialect:b16", "dialect:b64", "dialect:b64"},
    {NULL, "dialect:b32", "dialect:b32", NULL},
    {"mxfp4", "mxfp4", "mxfp4", "mxfp4"},
    {"mxfp8", "mxfp6", "mxint8", "mxfp8"},
    {"nvfp4", "nvfp4", "nvfp4", "nvfp4"},
    {"int4:token:asym", "int4:token:asym", "int4:token:asym", NULL},
    {NULL, "int4:token", "int4:token", NULL},
    {NULL, "int8:token", "int8:token", NULL},
    {"fp8:token", "fp8:token", "fp8:token", "fp8:token"},
    {NULL, "fp8:token", "dialect:b32", "dialect:b32"},
    {"dialect:b32", "dialect:b32", "int8:token", "dialect:b32"},
    {"dialect:b32", "f32", NULL, "dialect:b16"},
    {NULL, "f16", "bf16", NULL},
    {NULL, "bf16", "mxfp4", NULL},
    {NULL, NULL, NULL, NULL},
};

typedef struct shape {
    int heads, kv_heads, dim, window;
} shape;

static const shape shapes[] = {{4, 2, 40, 0}, {3, 1, 64, 0}, {2, 2, 32, 50}, {6, 2, 8, 7}};

static nb_format parse(const char *word)
{
    nb_format f = {0};
    if (word) assert_int_equal(nb_format_parse(&f, word, NULL), NB_OK);
    return f;
}

static nb_attn_formats formats_of(const words *w)
{
    return (nb_attn_formats){parse(w->q), parse(w->k), parse(w->v), parse(w->p)};
}

static nb_backend *open_backend(const char *device, int threads, unsigned cpumask)
{
    nb_options o;
    nb_backend *be;
    nb_options_default(&o);
    o.device = device;
    o.threads = threads;
    o.cpumask = cpumask;
    assert_int_equal(nb_backend_create(&be, &o, NULL), NB_OK);
    return be;
}

/* One layer's attention on random rows. */
typedef struct rig {
    nb_backend *be;
    nb_kv *kv;
    nb_attention a;
    int64_t n;
    float *q, *k, *v; /* [n, H*D], [n, K*D] */
    nb_buffer *buf[4];
} rig;

static float *random_rows(int64_t n, uint64_t seed)
{
    nb_rng rng = {seed};
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        double z = nb_rng_normal(&rng);
        x[i] = (float)(i % 37 == 0 ? 4 * z : z); /* some large ones */
    }
    return x;
}

static rig open_rig(nb_backend *be, const shape *s, const nb_attn_formats *f, int64_t n, bool paper)
{
    rig r = {.be = be, .n = n};
    r.a = (nb_attention){.n_heads = s->heads,
                         .n_kv_heads = s->kv_heads,
                         .head_dim = s->dim,
                         .scale = (float)(1 / sqrt((double)s->dim)),
                         .window = s->window};
    nb_kv_desc d = {s->kv_heads, s->dim, n, *f, paper};
    assert_int_equal(be->ops->kv_create(be, &d, &r.kv, NULL), NB_OK);
    r.q = random_rows(n * s->heads * s->dim, 1);
    r.k = random_rows(n * s->kv_heads * s->dim, 2);
    r.v = random_rows(n * s->kv_heads * s->dim, 3);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(be->ops->buffer_create(be, n * MAX_WIDTH, &r.buf[i], NULL), NB_OK);
    }
    return r;
}

static void close_rig(rig *r)
{
    r->be->ops->kv_free(r->be, r->kv);
    for (int i = 0; i < 4; i++) r->be->ops->buffer_free(r->be, r->buf[i]);
    free(r->q);
    free(r->k);
    free(r->v);
}

/* Tokens [t0, t0 + n) through the cache; out [n, H*D]. */
static nb_status step(rig *r, int64_t t0, int64_t n, float *out)
{
    const nb_ops *op = r->be->ops;
    int64_t wide = (int64_t)r->a.n_heads * r->a.head_dim;
    int64_t kv = (int64_t)r->a.n_kv_heads * r->a.head_dim;
    nb_view q = nb_view_of(r->buf[0], n, wide), k = nb_view_of(r->buf[1], n, kv);
    nb_view v = nb_view_of(r->buf[2], n, kv), y = nb_view_of(r->buf[3], n, wide);
    op->upload(r->be, q, r->q + t0 * wide, NB_F32);
    op->upload(r->be, k, r->k + t0 * kv, NB_F32);
    op->upload(r->be, v, r->v + t0 * kv, NB_F32);
    r->a.pos0 = t0;
    op->kv_append(r->be, r->kv, k, v, t0);
    op->kv_attention(r->be, y, q, r->kv, &r->a);
    op->download(r->be, y, out, NB_F32);
    return op->sync(r->be, NULL);
}

/* All tokens in pieces of `piece`; the result is the caller's. */
static float *run(nb_backend *be, const shape *s, const nb_attn_formats *f, int64_t n,
                  int64_t piece, bool paper)
{
    rig r = open_rig(be, s, f, n, paper);
    int64_t wide = (int64_t)s->heads * s->dim;
    float *out = malloc((size_t)(n * wide) * sizeof *out);
    for (int64_t t = 0; t < n; t += piece) {
        assert_int_equal(step(&r, t, n - t < piece ? n - t : piece, out + t * wide), NB_OK);
    }
    close_rig(&r);
    return out;
}

/* ---- backends -------------------------------------------------------------------------- */

/* Outputs are means of values below 20. Sums of n terms differ by n 2^-24 of their size, exp by
 * 2^-21; a softmax weight that lies within that of a midpoint may be rounded to the other side,
 * which moves a row of a head by a step of its format: such rows are few. */
static void compare(const float *x, const float *y, int64_t rows, int64_t D, bool rounds)
{
    int64_t moved = 0;
    for (int64_t r = 0; r < rows; r++) {
        double worst = 0;
        for (int64_t d = 0; d < D; d++) {
            worst = fmax(worst, fabs((double)x[r * D + d] - y[r * D + d]));
            assert_true(isfinite(x[r * D + d]) && isfinite(y[r * D + d]));
        }
        if (worst > MAX_T * 0x1p-24 * 20) {
            moved++;
            assert_true(rounds && worst < 1.5);
        }
    }
    assert_true(moved <= rows / 100);
}

static void test_others_are_ref(void **state)
{
    NB_UNUSED(state);
    const struct {
        const char *device;
        unsigned mask;
    } others[] = {{"cpu", ~0u}, {"cpu", 0}, {"cuda", ~0u}};
    nb_backend *ref = open_backend("ref", 1, 0);
    for (size_t m = 0; m < NB_COUNT(others); m++) {
        if (strcmp(others[m].device, "cuda") == 0 && !has_cuda()) continue;
        nb_backend *other = open_backend(others[m].device, 2, others[m].mask);
        for (size_t i = 0; i < NB_COUNT(kinds) * NB_COUNT(shapes) * 2; i++) {
            const shape *s = &shapes[i / 2 % NB_COUNT(shapes)];
            nb_attn_formats f = formats_of(&kinds[i / 2 / NB_COUNT(shapes)]);
            int64_t n = 150;
            float *x = run(ref, s, &f, n, n, i % 2), *y = run(other, s, &f, n, n, i % 2);
            compare(x, y, n * s->heads, s->dim, f.p.family || f.q.family);
            free(x);
            free(y);
        }
        nb_backend_free(other);
    }
    nb_backend_free(ref);
}

/* ---- at once and token by token (D16) -------------------------------------------------- */

static void check_pieces(nb_backend *be, const shape *s, const nb_attn_formats *f, int64_t n)
{
    static const int64_t pieces[] = {1, 3, 31, 32, 33};
    size_t bytes = (size_t)(n * s->heads * s->dim) * sizeof(float);
    float *whole = run(be, s, f, n, n, false);
    for (size_t i = 0; i < NB_COUNT(pieces); i++) {
        float *parts = run(be, s, f, n, pieces[i], false);
        assert_memory_equal(whole, parts, bytes);
        free(parts);
    }
    free(whole);
}

/* What is not quantized at all takes other kernels for few tokens than for many: not here. */
static void test_pieces(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"cpu", "ref"};
    for (size_t b = 0; b < NB_COUNT(devices); b++) {
        nb_backend *be = open_backend(devices[b], 2, ~0u);
        for (size_t i = 0; i + 1 < NB_COUNT(kinds); i++) {
            nb_attn_formats f = formats_of(&kinds[i]);
            for (size_t s = 0; s < NB_COUNT(shapes); s++)
                check_pieces(be, &shapes[s], &f, b ? 70 : 131);
        }
        nb_backend_free(be);
    }
}

static void test_threads(void **state)
{
    NB_UNUSED(state);
    nb_backend *one = open_backend("cpu", 1, ~0u), *five = open_backend("cpu", 5, ~0u);
    for (size_t i = 0; i + 1 < NB_COUNT(kinds); i++) {
        nb_attn_formats f = formats_of(&kinds[i]);
        float *x = run(one, &shapes[0], &f, 130, 65, false);
        float *y = run(five, &shapes[0], &f, 130, 65, false);
        assert_memory_equal(x, y, 130 * 4 * 40 * sizeof(float));
        free(x);
        free(y);
    }
    nb_backend_free(one);
    nb_backend_free(five);
}

/* Rows whose own block is full see their own values quantized in the papers' way; the last, partial
 * block has none of those. */
static void test_paper(void **state)
{
    NB_UNUSED(state);
    nb_backend *be = open_backend("cpu", 2, ~0u);
    nb_attn_formats f = formats_of(&kinds[1]);
    const shape *s = &shapes[1];
    int64_t n = 2 * 32 + 5, wide = (int64_t)s->heads * s->dim;
    float *exact = run(be, s, &f, n, n, false), *paper = run(be, s, &f, n, n, true);
    for (int64_t t = 0; t < n; t++) {
        bool same = memcmp(exact + t * wide, paper + t * wide, (size_t)wide * sizeof(float)) == 0;
        assert_int_equal(same, t >= 2 * 32);
    }
    free(exact);
    free(paper);
    exact = run(be, s, &f, 31, 31, false), paper = run(be, s, &f, 31, 31, true);
    assert_memory_equal(exact, paper, (size_t)(31 * wide) * sizeof(float));
    free(exact);
    free(paper);
    nb_backend_free(be);
}

/* Four bits cost something, eight little; a wrong block or head would cost everything. */
static void test_error(void **state)
{
    NB_UNUSED(state);
    static const struct {
        int kind;
        double least, most; /* of the relative error of outputs */
    } bounds[] = {{3, 0.02, 0.2}, {9, 0.001, 0.02}, {8, 0.02, 0.4}, {14, 1e-5, 0.005}};
    nb_backend *be = open_backend("cpu", 2, ~0u);
    const shape *s = &shapes[1];
    nb_attn_formats none = {0};
    int64_t n = 96, size = n * s->heads * s->dim;
    float *want = run(be, s, &none, n, n, false);
    for (size_t i = 0; i < NB_COUNT(bounds); i++) {
        nb_attn_formats f = formats_of(&kinds[bounds[i].kind]);
        float *got = run(be, s, &f, n, n, true);
        double error = 0, power = 0;
        for (int64_t j = 0; j < size; j++) {
            error += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
            power += (double)want[j] * want[j];
        }
        double e = sqrt(error / power);
        if (!(e >= bounds[i].least && e <= bounds[i].most)) fail_msg("%zu: error %g", i, e);
        free(got);
    }
    free(want);
    nb_backend_free(be);
}

/* ---- memory ---------------------------------------------------------------------------- */

static void test_token_bytes(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        double bytes; /* of keys and values of one KV head, D = 128 */
    } sizes[] = {{"dialect:b32", 70 + 70},
                 {"dialect:b16", 76 + 76},
                 {"dialect:b64", 67 + 67},
                 {"mxfp4", 68 + 68},
                 {"int8:token", 2 * 132},
                 {"int4:token", 2 * 68},
                 {"fp8:token", 2 * 132},
                 {"f16", 512},
                 {NULL, 1024}};
    for (size_t i = 0; i < NB_COUNT(sizes); i++) {
        nb_kv_desc d = {.n_kv_heads = 3, .head_dim = 128};
        d.formats.k = d.formats.v = parse(sizes[i].word);
        assert_true(nb_kv_token_bytes(&d) == 3 * sizes[i].bytes);
    }
}

/* Pages of 256 tokens appear as they are needed. Values of the last chunk add up to B rows of fp16;
 * more only while a long prompt is on its way. */
static void test_pages(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"cpu", "ref"};
    const shape s = {1, 1, 128, 0};
    nb_attn_formats f = formats_of(&kinds[1]), none = {0};
    const int64_t page = 256 * 140, tail = 32 * 128 * 2;
    static float out[600 * 128];
    for (size_t b = 0; b < NB_COUNT(devices); b++) {
        nb_backend *be = open_backend(devices[b], 1, ~0u);
        rig r = open_rig(be, &s, &f, 600, false);
        assert_int_equal(be->ops->kv_bytes(r.kv), 0);
        assert_int_equal(step(&r, 0, 256, out), NB_OK);
        assert_int_equal(be->ops->kv_bytes(r.kv), page + tail);
        assert_int_equal(step(&r, 256, 1, out), NB_OK);
        assert_int_equal(be->ops->kv_bytes(r.kv), 2 * page + tail);
        assert_int_equal(step(&r, 257, 255, out), NB_OK);
        assert_int_equal(be->ops->kv_bytes(r.kv), 2 * page + tail);
        assert_int_equal(step(&r, 512, 88, out), NB_OK);
        assert_int_equal(be->ops->kv_bytes(r.kv), 3 * page + tail);
        assert_int_equal(step(&r, 0, 5, out), NB_OK); /* a new sequence in the same memory */
        close_rig(&r);
        r = open_rig(be, &s, &none, 600, false);
        assert_int_equal(step(&r, 0, 300, out), NB_OK);
        assert_int_equal(be->ops->kv_bytes(r.kv), 2 * 256 * 1024);
        close_rig(&r);
        nb_backend_free(be);
    }
}

/* ---- faults ---------------------------------------------------------------------------- */

static void test_overflow(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"cpu", "ref"};
    static const int which[] = {1, NB_COUNT(kinds) - 1};
    static float out[64 * 160];
    for (size_t b = 0; b < 4; b++) {
        nb_backend *be = open_backend(devices[b % 2], 1, ~0u);
        nb_attn_formats f = formats_of(&kinds[which[b / 2]]);
        rig r = open_rig(be, &shapes[0], &f, 40, false);
        r.n = 40;
        assert_int_equal(step(&r, 0, 39, out), NB_OK);
        nb_error err;
        nb_view row = nb_view_of(r.buf[1], 2, 80), q = nb_view_of(r.buf[0], 2, 160);
        be->ops->kv_append(be, r.kv, row, row, 39);
        r.a.pos0 = 39;
        be->ops->kv_attention(be, nb_view_of(r.buf[3], 2, 160), q, r.kv, &r.a);
        assert_int_equal(be->ops->sync(be, &err), NB_ERESOURCE);
        assert_non_null(strstr(err.message, "41 positions, capacity 40"));
        assert_int_equal(step(&r, 39, 1, out), NB_OK);
        close_rig(&r);
        nb_backend_free(be);
    }
}

static void test_wrong_formats(void **state)
{
    NB_UNUSED(state);
    static const char *const wrong[] = {"int4:g32", "int4:row", "q4_0", "fp4:g64:m2"};
    nb_backend *be = open_backend("cpu", 1, ~0u);
    for (size_t i = 0; i < NB_COUNT(wrong); i++) {
        nb_error err;
        nb_kv *kv;
        nb_kv_desc d = {.n_kv_heads = 1, .head_dim = 64, .capacity = 8};
        d.formats.v = parse(wrong[i]);
        assert_int_equal(be->ops->kv_create(be, &d, &kv, &err), NB_EUSAGE);
        assert_null(kv);
        assert_non_null(strstr(err.message, wrong[i]));
    }
    nb_backend_free(be);
}

/* Dialects take NaN and Inf as large numbers (D6): of values, large outputs come out, of keys
 * scores that may overflow. Through every other format NaN comes out. */
static void test_not_finite(void **state)
{
    NB_UNUSED(state);
    static const char *const devices[] = {"cpu", "ref"};
    const shape *s = &shapes[1];
    static float out[MAX_T * MAX_WIDTH];
    for (size_t i = 0; i < NB_COUNT(kinds) * 4; i++) {
        const words *w = &kinds[i / 4];
        bool in_v = i % 2, any = false;
        const char *word = in_v ? w->v : w->k;
        nb_backend *be = open_backend(devices[i / 2 % 2], 1, ~0u);
        nb_attn_formats f = formats_of(w);
        rig r = open_rig(be, s, &f, MAX_T, false);
        (in_v ? r.v : r.k)[s->dim * 3 + 5] = NAN; /* token 3 */
        (in_v ? r.v : r.k)[s->dim * 40 + 7] = INFINITY;
        assert_int_equal(step(&r, 0, 100, out), NB_OK);
        for (int j = 3 * s->heads * s->dim; j < 100 * s->heads * s->dim; j++) {
            any = any || isnan(out[j]);
        }
        bool takes = word && strncmp(word, "dialect", 7) == 0;
        if (takes && !in_v) any = false;
        if (any == takes) fail_msg("%s: NaN %s", word ? word : "none", any ? "came" : "lost");
        close_rig(&r);
        nb_backend_free(be);
    }
}

/* ---- whole models ---------------------------------------------------------------------- */

static const char full_path[] = "name: full\nweights: dialect:b16\nacts: dialect:b16\n"
                                "kv: dialect:b16\nquery: dialect:b16\nprobs: dialect:b16\n"
                                "method: [minmax, nearest]\n";

typedef struct fixture {
    char dir[64], model[100], small[100];
} fixture;

static int set_up(void **state)
{
    static fixture f;
    strcpy(f.dir, "/tmp/nb_test_kv_XXXXXX");
    if (!mkdtemp(f.dir)) return 1;
    snprintf(f.model, sizeof f.model, "%s/model", f.dir);
    snprintf(f.small, sizeof f.small, "%s/small", f.dir);
    if (!tiny_model_write(f.model, 5, NULL)) return 1;
    nb_quantize_options o;
    nb_quantize_options_default(&o);
    o.model = f.model;
    o.out = f.small;
    o.recipe = full_path;
    nb_quantize_result r;
    nb_error err;
    if (nb_quantize(&o, &r, &err) != NB_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    return nb_remove_tree(f->dir, NULL) == NB_OK ? 0 : 1;
}

typedef struct net {
    nb_backend *be;
    nb_source *src;
    nb_net *net;
} net;

static net open_net(const char *path, const char *device, const char *kv)
{
    net n = {.be = open_backend(device, 2, ~0u)};
    nb_format f = parse(kv);
    assert_int_equal(nb_source_open(&n.src, path, NULL), NB_OK);
    assert_int_equal(nb_net_create(&n.net, n.be, n.src, false, kv ? &f : NULL, NULL), NB_OK);
    return n;
}

static void close_net(net *n)
{
    nb_net_free(n->net);
    nb_source_close(n->src);
    nb_backend_free(n->be);
}

/* Logits behind each of the last n - skip ids, the first `skip` + 1 ids in one piece. */
static void walk(const net *n, const int32_t *ids, int skip, int count, float *logits)
{
    nb_session *s;
    const float *row;
    int V = n->net->cfg.n_vocab;
    assert_int_equal(nb_session_create(&s, n->net, count, NULL), NB_OK);
    assert_int_equal(nb_session_append(s, ids, skip + 1, &row, NULL), NB_OK);
    for (int i = skip;; i++) {
        memcpy(logits + (size_t)i * (size_t)V, row, (size_t)V * sizeof *row);
        if (i + 1 == count) break;
        assert_int_equal(nb_session_append(s, ids + i + 1, 1, &row, NULL), NB_OK);
    }
    nb_session_free(s);
}

/* A prompt at once and token by token: the same bytes of logits behind it and ever after. On the
 * CPU, linears of many rows may add up in another order than those of few: only the reference. */
static void test_prompt(void **state)
{
    const fixture *f = *state;
    static const char *const formats[] = {NULL, "int4:token:asym", "dialect:b32", "mxfp4"};
    static const int lengths[] = {3, 15, 16, 17, 33};
    enum { N = 40 };
    static float one[N * TINY_VOCAB], all[N * TINY_VOCAB];
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = (i * 7 + i * i) % TINY_VOCAB;
    for (size_t k = 0; k < NB_COUNT(formats); k++) {
        net n = open_net(f->small, "ref", formats[k]);
        walk(&n, ids, 0, N, one);
        for (size_t i = 0; i < NB_COUNT(lengths); i++) {
            int skip = lengths[i] - 1;
            walk(&n, ids, skip, N, all);
            size_t at = (size_t)skip * TINY_VOCAB;
            assert_memory_equal(one + at, all + at, sizeof one - at * sizeof *one);
        }
        close_net(&n);
    }
}

/* The words of config.json reach the cache, and --kv goes before them. */
static void test_model_formats(void **state)
{
    const fixture *f = *state;
    nb_options o;
    nb_model_info info;
    nb_model *m;
    nb_error err;
    nb_options_default(&o);
    const int per_layer = 2 * TINY_KV_HEADS * TINY_HEAD;
    assert_int_equal(nb_model_open(&m, f->small, &o, NULL), NB_OK);
    nb_model_describe(m, &info);
    assert_string_equal(info.kv_keys, "dialect:b16");
    assert_string_equal(info.kv_values, "dialect:b16");
    assert_int_equal(info.kv_bytes_per_token_f16, TINY_LAYERS * per_layer * 2);
    /* keys: 4 code bytes, an exponent, an id; values: 8 channels of 9.5 bytes per 16 tokens */
    double want = TINY_LAYERS * TINY_KV_HEADS * (6 + 8 * 9.5 / 16);
    assert_int_equal(info.kv_bytes_per_token, (size_t)ceil(want));
    nb_model_close(m);
    o.kv = "int8:token";
    assert_int_equal(nb_model_open(&m, f->model, &o, NULL), NB_OK);
    nb_model_describe(m, &info);
    assert_string_equal(info.kv_keys, "int8:token");
    assert_int_equal(info.kv_bytes_per_token, TINY_LAYERS * 2 * TINY_KV_HEADS * (TINY_HEAD + 4));
    nb_model_close(m);
    o.kv = "int8:g32";
    assert_int_equal(nb_model_open(&m, f->model, &o, &err), NB_EUSAGE);
    assert_null(m);
    assert_non_null(strstr(err.message, "int8:g32"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_others_are_ref), cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_threads),        cmocka_unit_test(test_paper),
        cmocka_unit_test(test_error),          cmocka_unit_test(test_token_bytes),
        cmocka_unit_test(test_pages),          cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_wrong_formats),  cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_prompt),         cmocka_unit_test(test_model_formats),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
