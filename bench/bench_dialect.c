/* Kernels on dialect blocks at every level that this CPU has, as multiples of the scalar reference
 * of the same run. CPU time of one thread: other processes disturb it little.
 *
 *   bench_dialect [block]
 *
 * "decode + dot" is what a generated token costs per weight; "dequant + dot" is the same on decoded
 * fp32 values, as other formats do it. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/cpu.h"
#include "base/rng.h"
#include "format/dialect.h"
#include "kernel/kernel.h"

enum { N = 1536, ROWS = 576, N_TASKS = 6 };

typedef struct bench {
    nb_kernels k;
    nb_format f;
    nb_matrix w; /* [ROWS, N] packed: 460 KiB, in the second-level cache */
    float *x;    /* [ROWS, N] */
    float *value;
    int8_t *half[2]; /* [N] */
    uint8_t *exponent[2];
    float sink;
} bench;

static double cpu_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

static void *get(size_t n)
{
    void *p = calloc(n, 1);
    if (!p) exit(1);
    return p;
}

static void begin(bench *b, int block)
{
    char word[NB_FORMAT_WORD];
    nb_error err;
    snprintf(word, sizeof word, "dialect:b%d", block);
    if (nb_format_parse(&b->f, word, &err) != NB_OK) {
        fprintf(stderr, "bench_dialect: %s\n", err.message);
        exit(2);
    }
    nb_plane_spec spec[NB_MAX_PLANES];
    b->w = (nb_matrix){.format = b->f, .n_out = ROWS, .n_in = N};
    nb_rng rng = {1};
    for (int i = 0; i < b->f.family->planes(&b->f, N, spec); i++) {
        uint8_t *p = get((size_t)(ROWS * spec[i].row_bytes));
        for (int64_t j = 0; j < ROWS * spec[i].row_bytes; j++) {
            p[j] = (uint8_t)(i == 1 ? 118 + nb_rng_next(&rng) % 4 : nb_rng_next(&rng));
        }
        b->w.plane[i] = p;
    }
    b->x = get((size_t)ROWS * N * sizeof *b->x);
    for (int64_t i = 0; i < ROWS * N; i++) b->x[i] = (float)nb_rng_normal(&rng);
    b->value = get(N * sizeof *b->value);
    for (int i = 0; i < 2; i++) {
        b->half[i] = get(N);
        b->exponent[i] = get(N);
    }
    nb_dialect_quantize_row(&b->f, b->x, N, b->half[0], b->exponent[0]);
    nb_dialect_quantize_row(&b->f, b->x + N, N, b->half[1], b->exponent[1]);
}

static void quantize(bench *b, int64_t r)
{
    b->k.dialect_quantize(&b->f, b->x + r * N, N, b->half[1], b->exponent[1]);
}

static void fake_quant(bench *b, int64_t r)
{
    quantize(b, r);
    b->k.dialect_value(b->half[1], b->exponent[1], N, b->f.group, b->value);
}

static void decode(bench *b, int64_t r)
{
    const uint8_t *plane[NB_MAX_PLANES];
    nb_matrix_row(&b->w, r, plane);
    b->k.dialect_decode(&b->f, plane, N, b->half[1], b->exponent[1]);
}

static void dot(bench *b, int64_t r)
{
    (void)r;
    b->sink +=
        b->k.dialect_dot(b->half[0], b->exponent[0], b->half[1], b->exponent[1], N, b->f.group);
}

static void decode_dot(bench *b, int64_t r)
{
    decode(b, r);
    dot(b, r);
}

static void dequant_dot(bench *b, int64_t r)
{
    const uint8_t *plane[NB_MAX_PLANES];
    nb_matrix_row(&b->w, r, plane);
    b->k.dequant_dialect(&b->f, plane, N, b->value);
    b->sink += b->k.dot_f32(b->value, b->x, N);
}

static const struct {
    const char *name;
    void (*run)(bench *b, int64_t row);
} tasks[N_TASKS] = {{"quantize", quantize},       {"fake quant", fake_quant},
                    {"decode", decode},           {"dot", dot},
                    {"decode + dot", decode_dot}, {"dequant + dot", dequant_dot}};

/* Values per second: the best of several passes of at least 20 ms. */
static double measure(bench *b, int task)
{
    double best = 0;
    for (int pass = 0; pass < 7; pass++) {
        int64_t n = 0;
        double t0 = cpu_seconds(), t;
        do {
            for (int64_t r = 0; r < ROWS; r++) tasks[task].run(b, r);
            n += (int64_t)ROWS * N;
            t = cpu_seconds() - t0;
        } while (t < 0.02);
        best = (double)n / t > best ? (double)n / t : best;
    }
    return best;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        unsigned cpu;
    } levels[] = {{"scalar", 0},
                  {"AVX2", NB_CPU_AVX2},
                  {"AVX-512 VNNI", NB_CPU_AVX2 | NB_CPU_AVX512 | NB_CPU_AVX512_VNNI}};
    bench b = {.sink = 0};
    double scalar[N_TASKS] = {0};
    begin(&b, argc > 1 ? atoi(argv[1]) : 32);
    printf("%s, rows of %d: G values per second, and times the scalar reference\n", b.f.word, N);
    for (size_t l = 0; l < NB_COUNT(levels); l++) {
        if ((levels[l].cpu & nb_cpu_features()) != levels[l].cpu) continue;
        nb_kernels_init(&b.k, levels[l].cpu);
        for (int i = 0; i < N_TASKS; i++) {
            double rate = measure(&b, i);
            if (l == 0) scalar[i] = rate;
            printf("%-14s %-14s %8.3f %7.1f x\n", levels[l].name, tasks[i].name, rate * 1e-9,
                   rate / scalar[i]);
        }
    }
    return b.sink == 1; /* the sums are used */
}
