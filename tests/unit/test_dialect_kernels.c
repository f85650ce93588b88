/* Kernels on dialect blocks: every CPU level against the scalar reference on the golden file and on
 * more than 10^6 blocks of each kind of data, bit for bit; the row product against binary64. */
#include "base/cpu.h"
#include "dialect_util.h"
#include "format/dialect.h"
#include "kernel/kernel.h"

/* Rows of 16 blocks and a bit: with PIECE of the kernels inside, for blocks of 128. */
enum { ROW = 16 * N_MAX + 7, BLOCKS = ROW / 16 + 1, POOL = 1 << 16, CANARY = 0x5a };

#if defined(__SANITIZE_ADDRESS__)
#define INSTRUMENTED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define INSTRUMENTED
#endif
#endif

#ifdef INSTRUMENTED
enum { N_BLOCKS = 50000 }; /* per kind of data: the instrumented build is for faults, not counts */
#else
enum { N_BLOCKS = 1000000 };
#endif

static const struct {
    const char *name;
    unsigned cpu;
} levels[] = {{"avx2", NB_CPU_AVX2},
              {"avx512", NB_CPU_AVX2 | NB_CPU_AVX512},
              {"avx512vnni", NB_CPU_AVX2 | NB_CPU_AVX512 | NB_CPU_AVX512_VNNI}};

/* The level's table; false: this machine has not got it. */
static bool load_level(size_t l, nb_kernels *k)
{
    if ((levels[l].cpu & nb_cpu_features()) != levels[l].cpu) return false;
    nb_kernels_init(k, levels[l].cpu);
    return true;
}

/* A row as integers; exact sizes, so that a sanitizer sees the byte behind them. */
typedef struct row {
    int8_t *half;
    uint8_t *exponent;
} row;

static row make_row(int64_t n, int64_t n_blocks)
{
    row r = {malloc((size_t)n + 1), malloc((size_t)n_blocks + 1)};
    memset(r.half, CANARY, (size_t)n + 1);
    memset(r.exponent, CANARY, (size_t)n_blocks + 1);
    return r;
}

static void free_row(row r)
{
    free(r.half);
    free(r.exponent);
}

static void check_same(row a, row b, int64_t n, int64_t n_blocks, const char *what, int kind)
{
    if (memcmp(a.half, b.half, (size_t)n + 1) ||
        memcmp(a.exponent, b.exponent, (size_t)n_blocks + 1))
        fail_msg("%s: n %d, data %d", what, (int)n, kind);
}

/* ---- quantizing ------------------------------------------------------------------------ */

enum { NOT_FINITE = N_KINDS, N_ALL_KINDS };

static void fill_pool(nb_rng *rng, int kind, float *pool)
{
    static const float odd[] = {INFINITY, -INFINITY, NAN, -NAN, 3.4e38f, 0, -0.0f, 1e-45f};
    fill_block(rng, kind == NOT_FINITE ? NORMAL : kind, pool, POOL);
    for (int i = 0; kind == NOT_FINITE && i < POOL; i += 1 + (int)(nb_rng_next(rng) % 24)) {
        pool[i] = odd[nb_rng_next(rng) % NB_COUNT(odd)];
    }
}

static const char *const words[] = {"dialect:b16",     "dialect:b32",     "dialect:b16:bd5",
                                    "dialect:b64",     "dialect:b16:2s",  "dialect:b32:bd5",
                                    "dialect:b128",    "dialect:b32:mse", "dialect:b16",
                                    "dialect:b64:bd5", "dialect:b16",     "dialect:b128:bd5"};

static void draw_row(nb_rng *rng, const float *pool, float *x, int64_t n)
{
    int scale = (int)(nb_rng_next(rng) % 80) - 40;
    for (int64_t i = 0; i < n; i += 8) {
        const float *from = pool + nb_rng_next(rng) % (POOL - 8);
        for (int64_t j = i; j < n && j < i + 8; j++) x[j] = ldexpf(from[j - i], scale);
    }
}

static void quantize_kind(const nb_kernels *ref, const nb_kernels *k, int kind)
{
    static float pool[POOL];
    nb_rng rng = {20 + (uint64_t)kind};
    fill_pool(&rng, kind, pool);
    int64_t done = 0;
    for (int i = 0; done < N_BLOCKS; i++) {
        nb_format f = format_of(words[i % NB_COUNT(words)]);
        if (f.variant & 1 && i % 48 >= 12) continue; /* least error is the reference's own */
        int64_t n = 16 * f.group + (i % 3 ? 0 : (int64_t)(nb_rng_next(&rng) % 8)) - i % 5 * 7;
        int64_t n_blocks = nb_format_groups(&f, n);
        float *x = malloc((size_t)n * sizeof *x);
        draw_row(&rng, pool, x, n);
        row a = make_row(n, n_blocks), b = make_row(n, n_blocks);
        ref->dialect_quantize(&f, x, n, a.half, a.exponent);
        k->dialect_quantize(&f, x, n, b.half, b.exponent);
        check_same(a, b, n, n_blocks, "quantize", kind);
        free_row(a), free_row(b), free(x);
        done += n_blocks;
    }
}

static void test_quantize(void **state)
{
    NB_UNUSED(state);
    nb_kernels ref, k;
    nb_kernels_init(&ref, 0);
    for (size_t l = 0; l < 1; l++) { /* later levels share it */
        if (!load_level(l, &k)) continue;
        for (int kind = 0; kind < N_ALL_KINDS; kind++) quantize_kind(&ref, &k, kind);
    }
}

/* The golden blocks through every level, and through the reference. */
static void test_golden_quantize(void **state)
{
    NB_UNUSED(state);
    nb_kernels k;
    for (size_t l = 0; l <= NB_COUNT(levels); l++) {
        nb_kernels_init(&k, 0);
        if (l < NB_COUNT(levels) && !load_level(l, &k)) continue;
        for (size_t i = 0; i < NB_COUNT(blocks); i++) {
            const golden_block *b = &blocks[i];
            const golden_result *const results[] = {&b->two_stage, &b->mse, &b->two_stage_bd5};
            static const char *const tails[] = {":2s", ":mse", ":2s:bd5"};
            for (int r = 0; r < 3; r++) {
                if (!results[r]->codes) continue;
                char word[32];
                float x[N_MAX];
                int8_t half[N_MAX];
                uint8_t exponent;
                int s = 0;
                while (sizes[s] < b->n) s++;
                snprintf(word, sizeof word, "dialect:b%d%s", sizes[s], tails[r]);
                nb_format f = format_of(word);
                load_golden(b, x);
                k.dialect_quantize(&f, x, b->n, half, &exponent);
                assert_int_equal(exponent, results[r]->se + 127);
                for (int j = 0; j < b->n; j++) {
                    long code = strtol((char[]){results[r]->codes[j], 0}, NULL, 16);
                    assert_int_equal(half[j], nb_dialect_half[results[r]->id][code]);
                }
            }
        }
    }
}

/* ---- decoding -------------------------------------------------------------------------- */

static void fill_bytes(nb_rng *rng, uint8_t *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++) p[i] = (uint8_t)nb_rng_next(rng);
}

/* Planes of random bytes: any exponent, NaN included. */
static void check_decode(const nb_kernels *ref, const nb_kernels *k, nb_rng *rng,
                         const nb_format *f, int64_t n)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    uint8_t *plane[NB_MAX_PLANES] = {0};
    const uint8_t *from[NB_MAX_PLANES] = {0};
    int64_t n_blocks = nb_format_groups(f, n);
    for (int i = 0; i < f->family->planes(f, n, spec); i++) {
        from[i] = plane[i] = malloc((size_t)spec[i].row_bytes);
        fill_bytes(rng, plane[i], spec[i].row_bytes);
    }
    row a = make_row(n, n_blocks), b = make_row(n, n_blocks);
    ref->dialect_decode(f, from, n, a.half, a.exponent);
    k->dialect_decode(f, from, n, b.half, b.exponent);
    check_same(a, b, n, n_blocks, "decode", 0);
    float *x = malloc((size_t)n * 4), *y = malloc((size_t)n * 4), *z = malloc((size_t)n * 4);
    f->family->dequant_row(f, from, n, x);
    k->dequant_dialect(f, from, n, y);
    k->dialect_value(b.half, b.exponent, n, f->group, z);
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i]) && isnan(y[i]) && isnan(z[i])) continue;
        assert_int_equal(nb_f32_bits(x[i]), nb_f32_bits(y[i]));
        assert_int_equal(nb_f32_bits(x[i]), nb_f32_bits(z[i]));
    }
    for (int i = 0; i < NB_MAX_PLANES; i++) free(plane[i]);
    free(x), free(y), free(z), free_row(a), free_row(b);
}

static void test_decode(void **state)
{
    NB_UNUSED(state);
    nb_kernels ref, k;
    nb_kernels_init(&ref, 0);
    for (size_t l = 0; l < NB_COUNT(levels); l++) {
        if (!load_level(l, &k)) continue;
        nb_rng rng = {30};
        int64_t done = 0;
        for (int i = 0; done < N_BLOCKS; i++) {
            nb_format f = format_of(words[i % NB_COUNT(words)]);
            int64_t n = i < 4 * 300 ? 1 + i / 4 : 1 + (int64_t)(nb_rng_next(&rng) % ROW);
            check_decode(&ref, &k, &rng, &f, n);
            done += nb_format_groups(&f, n);
        }
    }
}

/* ---- products -------------------------------------------------------------------------- */

/* Half units that some dialect has, whatever its block's maximum. */
static void fill_half(nb_rng *rng, int8_t *half, int64_t n)
{
    for (int64_t i = 0; i < n; i++) half[i] = (int8_t)(nb_rng_next(rng) % 31) - 15;
}

/* Exponents of a kind: as they come in a model; extremes that overflow and underflow; any. */
static void fill_exponents(nb_rng *rng, int kind, uint8_t *e, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint64_t r = nb_rng_next(rng);
        e[i] = (uint8_t)(kind == 0   ? 120 + r % 14
                         : kind == 1 ? (r & 1 ? r >> 1 & 15 : 245 + r % 10)
                                     : r % 255);
    }
}

/* |y - exact| <= n 2^-24 sum |terms| (spec 12, item 2), where binary64 is exact. */
static void check_bound(float y, row a, row w, int64_t n, int block)
{
    double exact = 0, size = 0;
    int64_t n_blocks = (n + block - 1) / block;
    for (int64_t g = 0; g < n_blocks; g++) {
        int64_t at = g * block, m = n - at < block ? n - at : block;
        int32_t sum = nb_dialect_dot_half(a.half + at, w.half + at, m);
        assert_true(abs(sum) <= 225 * m);
        double term = ldexp(sum, a.exponent[g] + w.exponent[g] - 256);
        exact += term;
        size += fabs(term);
    }
    assert_true(fabs(y - exact) <= (double)n_blocks * 0x1p-24 * size);
}

static void test_dot(void **state)
{
    NB_UNUSED(state);
    nb_kernels ref, k;
    nb_kernels_init(&ref, 0);
    for (size_t l = 0; l < NB_COUNT(levels); l++) {
        if (!load_level(l, &k)) continue;
        nb_rng rng = {40};
        int64_t done = 0;
        for (int i = 0; done < N_BLOCKS; i++) {
            int block = sizes[i % 4], kind = i / 4 % 3;
            int64_t n = i < 4 * 300 ? 1 + i / 4 : 1 + (int64_t)(nb_rng_next(&rng) % ROW);
            int64_t n_blocks = (n + block - 1) / block;
            row a = make_row(n, n_blocks), w = make_row(n, n_blocks);
            fill_half(&rng, a.half, n);
            fill_half(&rng, w.half, n);
            if (i % 7 == 0) memset(a.half, i % 2 ? 15 : -15, (size_t)n);
            if (i % 14 == 0) memset(w.half, 15, (size_t)n);
            fill_exponents(&rng, kind, a.exponent, n_blocks);
            fill_exponents(&rng, kind, w.exponent, n_blocks);
            float y = ref.dialect_dot(a.half, a.exponent, w.half, w.exponent, n, block);
            float z = k.dialect_dot(a.half, a.exponent, w.half, w.exponent, n, block);
            if (!isnan(y) || !isnan(z)) assert_int_equal(nb_f32_bits(y), nb_f32_bits(z));
            if (kind == 0) check_bound(y, a, w, n, block);
            free_row(a), free_row(w);
            done += n_blocks;
        }
    }
}

/* The golden products through every level. */
static void test_golden_products(void **state)
{
    NB_UNUSED(state);
    for (size_t l = 0; l <= NB_COUNT(levels); l++) {
        nb_kernels k;
        nb_kernels_init(&k, 0);
        if (l < NB_COUNT(levels) && !load_level(l, &k)) continue;
        for (size_t i = 0; i < NB_COUNT(dots); i++) {
            const golden_block *a = find_golden(dots[i].a), *w = find_golden(dots[i].w);
            nb_format fa = format_of("dialect:b128:2s"), fw = format_of("dialect:b128:mse");
            float x[N_MAX];
            int8_t half[2][N_MAX];
            uint8_t exponent[2];
            load_golden(a, x);
            k.dialect_quantize(&fa, x, a->n, half[0], &exponent[0]);
            load_golden(w, x);
            k.dialect_quantize(&fw, x, w->n, half[1], &exponent[1]);
            assert_int_equal(nb_dialect_dot_half(half[0], half[1], a->n), dots[i].sum);
            float y = k.dialect_dot(half[0], &exponent[0], half[1], &exponent[1], a->n, N_MAX);
            assert_true(y == (float)dots[i].value);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_quantize), cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_decode),          cmocka_unit_test(test_dot),
        cmocka_unit_test(test_golden_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
