/* BlockDialect as a format: planes, words, uses, faults; what it costs and loses. */
#include "dialect_util.h"
#include "method/method.h"
#include "op/common.h"

/* ---- golden planes --------------------------------------------------------------------- */

/* The same through the family: bytes of the three planes. */
static void check_planes(const golden_block *b, const golden_result *r, const char *rule)
{
    char word[32];
    float x[N_MAX];
    uint8_t codes[N_MAX], bytes[3][N_MAX];
    uint8_t *plane[] = {bytes[0], bytes[1], bytes[2], NULL};
    int s = 0;
    while (sizes[s] < b->n) s++;
    snprintf(word, sizeof word, "dialect:b%d%s", sizes[s], rule);
    nb_format f = format_of(word);
    load_golden(b, x);
    for (int online = 0; online < 2; online++) {
        nb_qparam p;
        if (!*rule && online != (r == &b->two_stage)) continue;       /* the rule of the use */
        if (!online && r == &b->two_stage && !b->mse.codes) continue; /* weights are finite */
        if (online) f.family->fit_online(&f, x, b->n, &p);
        if (!online) f.family->fit(&f, x, NULL, b->n, 1, 1, &p);
        f.family->encode(&f, &p, x, b->n, codes);
        f.family->pack_row(&f, codes, &p, b->n, plane);
        assert_int_equal(bytes[1][0], r->byte);
        assert_int_equal(bytes[2][0], r->id);
        for (int i = 0; i < (b->n + 1) / 2; i++) {
            char hex[3] = {r->packed[2 * i], r->packed[2 * i + 1], 0};
            assert_int_equal(bytes[0][i], strtol(hex, NULL, 16));
        }
    }
}

static void test_golden_planes(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(blocks); i++) {
        check_planes(&blocks[i], &blocks[i].two_stage, "");
        check_planes(&blocks[i], &blocks[i].two_stage, ":2s");
        if (!blocks[i].mse.codes) continue;
        check_planes(&blocks[i], &blocks[i].mse, "");
        check_planes(&blocks[i], &blocks[i].mse, ":mse");
    }
}

/* ---- loss and size --------------------------------------------------------------------- */

static double draw(nb_rng *rng, int distribution)
{
    double x = nb_rng_normal(rng), square = 0;
    if (distribution == 0) return x;
    if (distribution == 1) { /* Laplace */
        double u = nb_rng_uniform(rng) - 0.5;
        return u < 0 ? log1p(2 * u) : -log1p(-2 * u);
    }
    for (int i = 0; i < 5; i++) { /* Student's t with 5 degrees of freedom */
        double z = nb_rng_normal(rng);
        square += z * z;
    }
    return x / sqrt(square / 5);
}

enum { BY_TWO_STAGE, BY_MSE, BY_ID_7 };

/* Relative mean squared error in thousandths. */
static double loss_of(const float *x, int64_t n, int block, int how)
{
    double error = 0, power = 0;
    for (int64_t at = 0; at < n; at += block) {
        uint8_t codes[N_MAX];
        nb_dialect d = nb_dialect_fit(how == BY_MSE ? &rule_mse : &rule_2s, x + at, NULL, block,
                                      nb_dialect_max(x + at, block));
        if (how == BY_ID_7) d.id = 7;
        nb_dialect_encode(d, x + at, block, codes);
        for (int i = 0; i < block; i++) {
            double v = (double)x[at + i], e = v - value_of(d, codes[i]);
            error += e * e;
            power += v * v;
        }
    }
    return 1000 * error / power;
}

/* spec 2.3: within 1.5 %. */
static void test_loss(void **state)
{
    NB_UNUSED(state);
    enum { N = 1 << 20 };
    static const double two_stage[3][4] = {
        {8.25, 9.68, 10.72, 12.00}, {8.13, 10.92, 13.54, 15.72}, {8.14, 10.87, 13.94, 17.22}};
    static const double mse[3][4] = {
        {7.26, 8.58, 9.55, 10.58}, {7.49, 10.06, 12.58, 14.79}, {7.50, 10.07, 13.04, 16.30}};
    static const double mxfp4[3] = {13.22, 16.08, 15.84};
    static float x[N];
    nb_rng rng = {7};
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < N; i++) x[i] = (float)draw(&rng, k);
        for (int s = 0; s < 4; s++) {
            double a = loss_of(x, N, sizes[s], BY_TWO_STAGE), b = loss_of(x, N, sizes[s], BY_MSE);
            print_message("  %d b%d: two-stage %.3f, least error %.3f\n", k, sizes[s], a, b);
            assert_true(fabs(a / two_stage[k][s] - 1) < 0.015);
            assert_true(fabs(b / mse[k][s] - 1) < 0.015);
        }
        double c = loss_of(x, N, 32, BY_ID_7);
        print_message("  %d b32: dialect 7 alone %.3f\n", k, c);
        assert_true(fabs(c / mxfp4[k] - 1) < 0.015);
    }
}

/* Bits of one layer's operands per value, with a block size for each linear. */
typedef struct shapes {
    int64_t width, kv, ffn, heads;
} shapes;

typedef struct sizes_of {
    int qkv, o, gate_up, down, q_act, k_act, rest; /* rest: P and V */
} sizes_of;

static double bits_of(int64_t n, int block, bool bd5)
{
    char word[16];
    snprintf(word, sizeof word, "dialect:b%d", block);
    nb_format f = format_of(word);
    return bd5 ? (double)nb_dialect_bits_bd5(n, block) : 8.0 * (double)nb_format_row_bytes(&f, n);
}

static double weight_bits(const shapes *m, const sizes_of *b, bool bd5)
{
    double rows_qkv = (double)(m->width + 2 * m->kv), w = (double)m->width, f = (double)m->ffn;
    double bits = rows_qkv * bits_of(m->width, b->qkv, bd5) + w * bits_of(m->width, b->o, bd5) +
                  2 * f * bits_of(m->width, b->gate_up, bd5) + w * bits_of(m->ffn, b->down, bd5);
    return bits / (rows_qkv * w + w * w + 3 * f * w);
}

/* Each use counts; with rest > 0 also Q, K, V and P = heads x 2048. */
static double act_bits(const shapes *m, const sizes_of *b, bool bd5)
{
    double bits = 3 * bits_of(m->width, b->qkv, bd5) + bits_of(m->width, b->o, bd5) +
                  2 * bits_of(m->width, b->gate_up, bd5) + bits_of(m->ffn, b->down, bd5);
    double n = (double)(6 * m->width + m->ffn);
    if (b->rest) {
        bits += bits_of(m->width, b->q_act, bd5) + bits_of(m->kv, b->k_act, bd5) +
                bits_of(m->kv, b->rest, bd5) + bits_of(m->heads * 2048, b->rest, bd5);
        n += (double)(m->width + 2 * m->kv + m->heads * 2048);
    }
    return bits / n;
}

/* spec 4.3: every value that the paper prints, in its accounting and in the file's. */
static void test_accounting(void **state)
{
    NB_UNUSED(state);
    static const double per_value[4][2] = {
        {4.5625, 4.75}, {4.28125, 4.375}, {4.140625, 4.1875}, {4.0703125, 4.09375}};
    for (int s = 0; s < 4; s++) {
        assert_true(bits_of(4096, sizes[s], true) / 4096 == per_value[s][0]);
        assert_true(bits_of(4096, sizes[s], false) / 4096 == per_value[s][1]);
    }
    static const shapes models[] = {{4096, 1024, 14336, 32}, {4096, 4096, 11008, 32}};
    static const struct {
        sizes_of b;
        double bits[2][4]; /* per model: W and A in bd5, W and A in bd8 */
    } recipes[] = {
        {{64, 64, 64, 16, 0, 0, 0}, {{4.25, 4.30, 4.34, 4.39}, {4.23, 4.27, 4.31, 4.36}}},
        {{64, 16, 64, 64, 0, 0, 0}, {{4.17, 4.19, 4.23, 4.25}, {4.18, 4.19, 4.23, 4.25}}},
        {{16, 64, 64, 64, 0, 0, 0}, {{4.19, 4.27, 4.25, 4.37}, {4.25, 4.29, 4.33, 4.38}}},
        {{64, 64, 64, 16, 16, 16, 64}, {{4.25, 4.21, 4.34, 4.29}, {4.23, 4.21, 4.31, 4.28}}},
    };
    for (size_t r = 0; r < NB_COUNT(recipes); r++) {
        for (int m = 0; m < 2; m++) {
            for (int bd8 = 0; bd8 < 2; bd8++) {
                double w = weight_bits(&models[m], &recipes[r].b, !bd8);
                double a = act_bits(&models[m], &recipes[r].b, !bd8);
                assert_true(fabs(w - recipes[r].bits[m][2 * bd8]) <= 0.005 + 1e-9);
                assert_true(fabs(a - recipes[r].bits[m][2 * bd8 + 1]) <= 0.005 + 1e-9);
            }
        }
    }
    assert_int_equal(nb_dialect_bits_bd5(80, 32), 4 * 80 + 9 * 3); /* D10: 32 + 32 + 16 */
}

/* ---- rows ------------------------------------------------------------------------------ */

/* Each block of a row stands for itself, the short one at the end with its own exponent and id. */
static void test_blocks_of_a_row(void **state)
{
    NB_UNUSED(state);
    nb_rng rng = {8};
    for (size_t s = 0; s < NB_COUNT(sizes); s++) {
        for (int n = 1; n <= 300; n += n < 40 ? 1 : 13) {
            char word[16];
            float x[300], row[300];
            uint8_t codes[N_MAX];
            snprintf(word, sizeof word, "dialect:b%d", sizes[s]);
            nb_format f = format_of(word);
            fill_block(&rng, HEAVY, x, n);
            nb_fake_quant_row(&f, x, n, row);
            for (int at = 0; at < n; at += sizes[s]) {
                int m = n - at < sizes[s] ? n - at : sizes[s];
                nb_dialect d = encode(&rule_2s, x + at, m, codes);
                for (int i = 0; i < m; i++) assert_true(row[at + i] == value_of(d, codes[i]));
            }
        }
    }
}

static void test_zero_blocks(void **state)
{
    NB_UNUSED(state);
    for (int n = 1; n <= N_MAX; n++) {
        float x[N_MAX];
        uint8_t codes[N_MAX], zeros[N_MAX] = {0};
        for (int i = 0; i < n; i++) x[i] = i % 3 == 0 ? -0.0f : i % 3 == 1 ? 0x1p-130f : -0x1p-149f;
        for (int least = 0; least < 2; least++) {
            nb_dialect d = encode(least ? &rule_mse : &rule_2s, x, n, codes);
            assert_int_equal(d.se, -127);
            assert_int_equal(d.id, 0);
            assert_memory_equal(codes, zeros, (size_t)n);
        }
    }
}

/* Clipping to half of the maximum shrinks the exponent by one, at every length; what lies beyond
 * takes the largest magnitude. Ratios work on their own side alone. */
static void test_clip(void **state)
{
    NB_UNUSED(state);
    nb_format f = format_of("dialect:b32");
    float x[32] = {6, -1, 2.5f, -2.25f, 1.5f};
    uint8_t codes[32];
    nb_qparam p, q;
    f.family->fit(&f, x, NULL, 32, 1, 0.5f, &q);
    f.family->encode(&f, &q, x, 32, codes);
    assert_true(q.scale == 0.25f);
    assert_int_equal(codes[0], 7);
    f.family->fit(&f, x, NULL, 32, 0.25f, 1, &p);
    assert_true(p.scale == 0.5f);
    f.family->fit(&f, x, NULL, 32, 1, 0.25f, &q); /* the negative side decides now: 2.25 */
    assert_true(q.scale == 0.25f);
    f = format_of("dialect:b32:2s"); /* stage 1 sees the clipped maximum: 6 * 0.75 = 4.5 */
    f.family->fit(&f, x, NULL, 32, 1, 0.75f, &q);
    assert_int_equal(q.id / 2, 6);
}

/* All exponent bytes, ids and codes: unpack and pack give the bytes back; 255 is NaN, code 8 is 0.
 */
static void test_every_byte(void **state)
{
    NB_UNUSED(state);
    nb_format f = format_of("dialect:b16");
    for (int byte = 0; byte < 256; byte++) {
        uint8_t bytes[3][8], again[3][8], codes[16];
        uint8_t *plane[] = {again[0], again[1], again[2], NULL};
        const uint8_t *source[] = {bytes[0], bytes[1], bytes[2], NULL};
        float w[16];
        nb_qparam p;
        for (int i = 0; i < 8; i++) bytes[0][i] = (uint8_t)(2 * i | (2 * i + 1) << 4);
        bytes[1][0] = (uint8_t)byte;
        bytes[2][0] = (uint8_t)(byte & 15);
        f.family->unpack_row(&f, source, 16, codes, &p);
        f.family->pack_row(&f, codes, &p, 16, plane);
        assert_memory_equal(again[0], bytes[0], 8);
        assert_int_equal(again[1][0], byte);
        assert_int_equal(again[2][0], byte & 15);
        f.family->dequant_row(&f, source, 16, w);
        for (int i = 0; i < 16; i++) {
            if (byte == 255) {
                assert_true(isnan(w[i]));
                continue;
            }
            double expected = value_of((nb_dialect){byte - 127, byte & 15}, (uint8_t)i);
            assert_true(w[i] == (float)expected);
        }
        if (byte < 253) assert_int_equal(nb_f32_bits(w[8]), 0);
        if (byte < 253) assert_true(isfinite(w[7]) && w[7] > 0);
        f.family->encode(&f, &p, w, 16, codes); /* defined for whatever was unpacked */
        for (int i = 0; i < 16; i++) assert_in_range(codes[i], 0, 15);
    }
}

static void test_layout(void **state)
{
    NB_UNUSED(state);
    nb_format f = format_of("dialect:b16");
    nb_plane_spec spec[NB_MAX_PLANES];
    uint8_t codes[35], bytes[3][32];
    uint8_t *plane[] = {bytes[0], bytes[1], bytes[2], NULL};
    nb_qparam p[3] = {
        {.scale = 0.5f, .id = 1}, {.scale = 2, .id = 14}, {.scale = 0x1p-128f, .id = 9}};
    for (int i = 0; i < 35; i++) codes[i] = (uint8_t)(i % 16);
    assert_int_equal(f.family->planes(&f, 35, spec), 3);
    assert_string_equal(spec[0].suffix, "codes");
    assert_string_equal(spec[1].suffix, "scales");
    assert_string_equal(spec[2].suffix, "dialects");
    f.family->pack_row(&f, codes, p, 35, plane);
    assert_int_equal(spec[0].row_bytes, 18);
    assert_memory_equal(
        bytes[0], "\x10\x32\x54\x76\x98\xba\xdc\xfe\x10\x32\x54\x76\x98\xba\xdc\xfe\x10\x02", 18);
    assert_int_equal(spec[1].row_bytes, 3);
    assert_memory_equal(bytes[1], "\x7f\x81\x00", 3);
    assert_int_equal(spec[2].row_bytes, 2);
    assert_memory_equal(bytes[2], "\xe1\x09", 2);
}

/* ---- words and faults ------------------------------------------------------------------ */

static void test_words(void **state)
{
    NB_UNUSED(state);
    static const char *const good[] = {"dialect:b16",     "dialect:b32",         "dialect:b64",
                                       "dialect:b128",    "dialect:b32:mse",     "dialect:b32:2s",
                                       "dialect:b32:bd5", "dialect:b128:mse:bd5"};
    for (size_t i = 0; i < NB_COUNT(good); i++) {
        nb_format f = format_of(good[i]);
        assert_string_equal(f.word, good[i]);
        assert_int_equal(f.bits, 4);
        assert_int_equal(f.group, atoi(good[i] + strlen("dialect:b")));
        assert_int_equal(f.family->uses(&f), NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV);
    }
    static const char *const bad[] = {
        "dialect",
        "dialect:",
        "dialect:32",
        "dialect:b",
        "dialect:b8",
        "dialect:b1",
        "dialect:b12",
        "dialect:b129",
        "dialect:b256",
        "dialect:b32:",
        "dialect:b32:mse:2s",
        "dialect:b32:bd5:mse",
        "dialect:b32 ",
        "dialect:b32:mse:mse",
        "dialects:b32",
        "dialect:b32:bd8",
    };
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        nb_format f;
        nb_error err = {0};
        assert_int_equal(nb_format_parse(&f, bad[i], &err), NB_EUSAGE);
        assert_non_null(strstr(err.message, bad[i]));
    }
}

/* Weights by the least error, online data by the two stages: golden block count_tie tells them
 * apart. NaN and Inf are data online (D6); a limited exponent saturates. */
static void test_rule_follows_use(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *word;
        int weights, online;
    } rules[] = {{"dialect:b32", 8, 4}, {"dialect:b32:mse", 8, 8}, {"dialect:b32:2s", 4, 4}};
    float x[N_MAX];
    load_golden(find_golden("count_tie"), x);
    for (size_t i = 0; i < NB_COUNT(rules); i++) {
        nb_format f = format_of(rules[i].word);
        nb_qparam p;
        f.family->fit(&f, x, NULL, 32, 1, 1, &p);
        assert_int_equal(p.id, rules[i].weights);
        f.family->fit_online(&f, x, 32, &p);
        assert_int_equal(p.id, rules[i].online);
    }
    nb_format f = format_of("dialect:b16:bd5");
    float y[16] = {INFINITY, 1, -NAN}, z[16];
    uint8_t codes[16];
    nb_qparam p;
    f.family->fit_online(&f, y, 16, &p);
    f.family->encode(&f, &p, y, 16, codes);
    f.family->decode(&f, &p, codes, 16, z);
    assert_true(z[0] == 7.5f * 0x1p15f && z[1] == 0 && z[2] == -z[0]);
}

static void test_nan_weight_is_named(void **state)
{
    NB_UNUSED(state);
    nb_format f = format_of("dialect:b16");
    float w[2 * 20] = {0}, clip[4] = {1, 1, 1, 1};
    uint8_t bytes[3][64];
    nb_error err = {0};
    w[20 + 17] = NAN;
    memset(bytes, 0xa5, sizeof bytes);
    nb_job job = {.name = "layers.3.q",
                  .format = &f,
                  .n_out = 2,
                  .n_in = 20,
                  .w = w,
                  .threads = 1,
                  .clip_lo = clip,
                  .clip_hi = clip,
                  .plane = {bytes[0], bytes[1], bytes[2]}};
    nb_step step;
    assert_int_equal(nb_step_parse(&step, "nearest", NULL), NB_OK);
    assert_int_equal(nb_job_run(&job, &step, 1, &err), NB_ENUMERIC);
    assert_non_null(strstr(err.message, "layers.3.q: weight [1, 17]"));
    for (size_t i = 0; i < sizeof bytes; i++) assert_int_equal(bytes[i / 64][i % 64], 0xa5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_planes),
        cmocka_unit_test(test_loss),
        cmocka_unit_test(test_accounting),
        cmocka_unit_test(test_blocks_of_a_row),
        cmocka_unit_test(test_zero_blocks),
        cmocka_unit_test(test_clip),
        cmocka_unit_test(test_every_byte),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_rule_follows_use),
        cmocka_unit_test(test_nan_weight_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
