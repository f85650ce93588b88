/* Speed of GPTQ on one block of SmolLM2-135M's shapes: statistics, factors, rounding, each as a
 * share of the floor that the rate of oneDNN's products sets.
 *
 *   bench_gptq [windows of 2048 tokens [threads [format [step]]]]
 *
 * CPU seconds are those of all threads together: on a shared machine they say more than the clock.
 * The last line is for scripts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/rng.h"
#include "floor.h"
#include "method/gptq.h"
#include "op/op.h"

enum { T = 2048, C = 576, F = 1536, KV = 192 };

/* The four inputs of a block, and the rows of the linears behind each. */
static const struct {
    const char *name;
    int64_t n_in, rows[3];
} inputs[] = {
    {"q, k, v", C, {C, KV, KV}}, {"o", C, {C}}, {"gate, up", C, {F, F}}, {"down", F, {C}}};

enum { N_INPUTS = NB_COUNT(inputs) };

typedef struct span {
    double wall, cpu;
} span;

typedef struct bench {
    nb_backend *be;
    nb_arena *arena;
    nb_format format;
    nb_step step;
    float *x;           /* [T, F] */
    float *h[N_INPUTS]; /* [n_in, n_in] */
    span gram, factor, round;
} bench;

static void die(const char *what)
{
    fprintf(stderr, "bench_gptq: %s\n", what);
    exit(1);
}

static span now(void) { return (span){nb_now(), (double)clock() / CLOCKS_PER_SEC}; }

static void add_since(span *sum, span t0)
{
    span t = now();
    sum->wall += t.wall - t0.wall;
    sum->cpu += t.cpu - t0.cpu;
}

/* Channels that depend on one another. */
static void fill_input(bench *b)
{
    nb_rng rng = {1};
    b->x = nb_arena_alloc(b->arena, (size_t)T * F, sizeof *b->x);
    if (!b->x) die("out of memory");
    for (int64_t t = 0; t < T; t++) {
        float common = (float)nb_rng_normal(&rng);
        for (int64_t i = 0; i < F; i++) b->x[t * F + i] = (float)nb_rng_normal(&rng) + common;
    }
}

static void run_gram(bench *b, int input, int windows)
{
    const nb_ops *op = b->be->ops;
    int64_t n = inputs[input].n_in;
    nb_buffer *x, *h;
    if (op->buffer_create(b->be, T * n, &x, NULL) != NB_OK) die("out of memory");
    if (op->buffer_create(b->be, n * n, &h, NULL) != NB_OK) die("out of memory");
    op->upload(b->be, nb_view_of(x, T, n), b->x, NB_F32);
    span t0 = now();
    for (int i = 0; i < windows; i++) {
        op->gram_forward(b->be, nb_view_of(h, n, n), nb_view_of(x, T, n), NULL, true);
    }
    add_since(&b->gram, t0);
    b->h[input] = nb_arena_alloc(b->arena, (size_t)(n * n), sizeof(float));
    if (!b->h[input]) die("out of memory");
    op->download(b->be, nb_view_of(h, n, n), b->h[input], NB_F32);
    op->buffer_free(b->be, x);
    op->buffer_free(b->be, h);
}

static void make_planes(bench *b, nb_job *job)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = job->format->family->planes(job->format, job->n_in, spec);
    for (int i = 0; i < n; i++) {
        job->plane[i] = nb_arena_alloc(b->arena, (size_t)job->n_out, (size_t)spec[i].row_bytes);
        if (!job->plane[i]) die("out of memory");
    }
    size_t clips = (size_t)(job->n_out * nb_format_groups(job->format, job->n_in));
    job->w = nb_arena_alloc(b->arena, (size_t)(job->n_out * job->n_in), sizeof(float));
    job->clip_lo = nb_arena_alloc(b->arena, clips, sizeof(float));
    if (!job->w || !job->clip_lo) die("out of memory");
    for (size_t i = 0; i < clips; i++) job->clip_lo[i] = 1;
    job->clip_hi = job->clip_lo;
    nb_rng rng = {2};
    for (int64_t i = 0; i < job->n_out * job->n_in; i++) job->w[i] = (float)nb_rng_normal(&rng);
}

static void run_linears(bench *b, int input)
{
    nb_gptq_cache cache = {0};
    const nb_gptq_factor *factor;
    for (int i = 0; i < 3 && inputs[input].rows[i] > 0; i++) {
        nb_job job = {.name = inputs[input].name,
                      .format = &b->format,
                      .n_out = inputs[input].rows[i],
                      .n_in = inputs[input].n_in,
                      .hessian = b->h[input],
                      .factors = &cache,
                      .threads = b->be->threads,
                      .cpu = b->be->cpu};
        nb_error err;
        make_planes(b, &job);
        span t0 = now();
        bool by_size = strstr(b->step.word, "act_order") != NULL;
        if (nb_gptq_cache_get(&cache, &factor, &job, b->step.option[0], by_size, &err) != NB_OK) {
            die(err.message);
        }
        add_since(&b->factor, t0);
        t0 = now();
        if (nb_job_run(&job, &b->step, 1, &err) != NB_OK) die(err.message);
        add_since(&b->round, t0);
    }
    nb_gptq_cache_fini(&cache);
}

/* flops: of products; at: the share of the fp32 rate that they can have. */
static double print_span(const char *name, span s, double flops, double at, double floor)
{
    double least = flops / (floor * at * 1e9);
    printf("%-12s %9.1f ms %9.1f ms CPU %8.2f GFLOP, floor %8.1f ms, %5.2f times\n", name,
           s.wall * 1e3, s.cpu * 1e3, flops * 1e-9, least * 1e3, s.wall / least);
    return least;
}

static void print_all(const bench *b, int windows, double floor)
{
    double gram = 0, factor = 0, round = 0;
    for (int i = 0; i < N_INPUTS; i++) {
        double n = (double)inputs[i].n_in;
        gram += (double)windows * T * n * (n + 1);
        factor += 2 * n * n * n / 3; /* Cholesky and inverse, a third each, in double */
        for (int k = 0; k < 3; k++) round += (double)inputs[i].rows[k] * n * n;
    }
    double least = print_span("statistics", b->gram, gram, 1, floor);
    least += print_span("factors", b->factor, factor, 0.5, floor);
    least += print_span("rounding", b->round, round, 1, floor);
    double wall = b->gram.wall + b->factor.wall + b->round.wall;
    double cpu = b->gram.cpu + b->factor.cpu + b->round.cpu;
    printf("%-12s %9.1f ms %9.1f ms CPU %14s floor %8.1f ms, %5.2f times\n", "all", wall * 1e3,
           cpu * 1e3, "", least * 1e3, wall / least);
    printf("total %.6f %.6f\n", wall, cpu);
}

int main(int argc, char **argv)
{
    int windows = argc > 1 ? atoi(argv[1]) : 8, threads = argc > 2 ? atoi(argv[2]) : nb_cpu_count();
    bench b = {0};
    nb_error err;
    nb_options opt = {.threads = threads, .cpumask = ~0u};
    if (windows < 1 || threads < 1) die("usage: bench_gptq [windows [threads [format [step]]]]");
    if (nb_format_parse(&b.format, argc > 3 ? argv[3] : "int4:row", &err) != NB_OK ||
        nb_step_parse(&b.step, argc > 4 ? argv[4] : "gptq", &err) != NB_OK ||
        nb_backend_create(&b.be, &opt, &err) != NB_OK || nb_arena_create(&b.arena, &err) != NB_OK) {
        die(err.message);
    }
    fill_input(&b);
    double floor = nb_gemm_floor(threads, false);
    printf("%s %s, %d x %d tokens, %d threads, oneDNN %.1f GFLOP/s\n", b.format.word, b.step.word,
           windows, (int)T, threads, floor);
    for (int i = 0; i < N_INPUTS; i++) {
        run_gram(&b, i, windows);
        run_linears(&b, i);
    }
    if (b.be->ops->sync(b.be, &err) != NB_OK) die(err.message);
    print_all(&b, windows, floor);
    nb_arena_free(b.arena);
    nb_backend_free(b.be);
    return 0;
}
