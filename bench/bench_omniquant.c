/* One training step of OmniQuant on a block of SmolLM2-135M's shape: microseconds per token (every
 * one is seen once per epoch), and its multiply-adds as a share of oneDNN's own GEMM rate.
 *
 *   bench_omniquant [TOKENS] [STEPS] [THREADS]
 *
 * Two cases: 4-bit weights, clipping alone; 4-bit weights, activations, Q, K and V, clipping and
 * transformation. Random weights and states: the time does not depend on them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/cpu.h"
#include "base/rng.h"
#include "floor.h"
#include "method/trainer.h"
#include "model/family.h"

enum { C = 576, HEADS = 9, KV_HEADS = 3, D = 64, F = 1536 };

typedef struct setup {
    nb_backend *be;
    nb_arena *arena;
    nb_config cfg;
    nb_host_block block;
    nb_format weights[NB_N_ROLES], acts[NB_N_ROLES];
    nb_attn_formats attn;
    nb_block_job job;
    float *range; /* [F]: of every input */
} setup;

static void check(nb_status st, const nb_error *err)
{
    if (st == NB_OK) return;
    fprintf(stderr, "%s\n", err->message);
    exit(st);
}

static float *random_floats(setup *s, int64_t n, double std)
{
    nb_rng r = {(uint64_t)n};
    float *v = nb_arena_alloc(s->arena, (size_t)n, sizeof *v);
    if (!v) exit(4);
    for (int64_t i = 0; i < n; i++) v[i] = (float)(std * nb_rng_normal(&r));
    return v;
}

static nb_status stats(void *user, nb_role role, nb_input_stats *out, nb_error *err)
{
    NB_UNUSED(role);
    NB_UNUSED(err);
    setup *s = user;
    *out = (nb_input_stats){.n = F, .min = s->range, .max = s->range};
    return NB_OK;
}

static nb_status tick(void *user)
{
    NB_UNUSED(user);
    return NB_OK;
}

static void make_block(setup *s)
{
    static const int64_t shape[NB_N_ROLES][2] = {
        [NB_Q] = {HEADS * D, C}, [NB_K] = {KV_HEADS * D, C}, [NB_V] = {KV_HEADS * D, C},
        [NB_O] = {C, HEADS * D}, [NB_GATE] = {F, C},         [NB_UP] = {F, C},
        [NB_DOWN] = {C, F},
    };
    for (int r = 0; r < NB_N_ROLES; r++) {
        int64_t n = shape[r][0] * shape[r][1];
        s->block.linear[r] = (nb_host_linear){
            .name = nb_role_names[r],
            .w = {.format = nb_format_plain(NB_F32), .n_out = shape[r][0], .n_in = shape[r][1]}};
        s->block.linear[r].w.plane[0] =
            (const uint8_t *)random_floats(s, n, 1 / sqrt((double)shape[r][1]));
    }
    for (int r = 0; r <= NB_NORM_FFN; r++) {
        s->block.norm[r] = (nb_host_norm){.name = "norm", .n = C};
        s->block.norm[r].weight = random_floats(s, C, 1);
    }
    s->range = random_floats(s, F, 1);
}

static nb_states *states(setup *s, int tokens, double std)
{
    nb_error err;
    nb_states *x;
    nb_states_desc d = {.n_windows = 1, .seqlen = tokens, .n_embd = C, .at_once = 1};
    check(nb_states_create(&x, s->be, &d, &err), &err);
    nb_view v = nb_states_room(x, 0, 1);
    s->be->ops->upload(s->be, v, random_floats(s, (int64_t)tokens * C, std), NB_F32);
    check(nb_states_store(x, 0, 1, &err), &err);
    return x;
}

static void begin(setup *s, nb_compute compute, int threads, int tokens, bool acts)
{
    nb_error err;
    nb_options opt;
    nb_options_default(&opt);
    opt.compute = compute;
    opt.threads = threads;
    *s = (setup){0};
    check(nb_backend_create(&s->be, &opt, &err), &err);
    check(nb_arena_create(&s->arena, &err), &err);
    s->cfg = (nb_config){.family = nb_family_by_model_type("llama"),
                         .n_layers = 1,
                         .n_embd = C,
                         .n_ffn = F,
                         .n_heads = HEADS,
                         .n_kv_heads = KV_HEADS,
                         .head_dim = D,
                         .norm_eps = 1e-5f,
                         .act = NB_ACT_SILU,
                         .rope_theta = 1e5f,
                         .norm_affine = true};
    for (int r = 0; r < NB_N_ROLES; r++) {
        check(nb_format_parse(&s->weights[r], "int4:row", &err), &err);
        if (acts) check(nb_format_parse(&s->acts[r], "int4:token:asym", &err), &err);
    }
    s->attn.q = s->attn.k = s->attn.v = s->acts[NB_Q];
    make_block(s);
    s->job = (nb_block_job){.cfg = &s->cfg,
                            .be = s->be,
                            .arena = s->arena,
                            .block = &s->block,
                            .weights = s->weights,
                            .acts = s->acts,
                            .attn = &s->attn,
                            .stats = stats,
                            .stats_user = s,
                            .n_windows = 1,
                            .seqlen = tokens,
                            .batch = 1,
                            .tick = tick};
    s->job.x_stored = states(s, tokens, 1);
    s->job.target = states(s, tokens, 2);
    check(nb_rope_table(s->be, &s->cfg, tokens, &s->job.rope, &err), &err);
}

static void end(setup *s)
{
    nb_states_free(s->job.x_stored);
    nb_states_free(s->job.target);
    s->be->ops->buffer_free(s->be, s->job.rope.buf);
    nb_arena_free(s->arena);
    nb_backend_free(s->be);
}

/* Seconds of a step, the best of `steps`; *cpu: of processor time, all threads. */
static double time_step(setup *s, bool let, int steps, double *cpu)
{
    nb_error err;
    nb_trainer t;
    nb_trainer_options o = {
        .lwc = true, .let = let, .start = {.pair = {let, let, let, let}, .alpha = 0.5}};
    check(nb_trainer_create(&t, &s->job, &o, &err), &err);
    check(nb_trainer_reset(&t, NB_LWC_PAPER, false, &err), &err);
    t.train_lwc = true;
    t.train_let = let;
    t.lwc_rate = 1e-2;
    t.let_rate = 5e-3;
    double best = *cpu = INFINITY;
    for (int i = 0; i <= steps; i++) { /* the first warms up */
        double loss, t0 = nb_now();
        clock_t c0 = clock();
        bool finite;
        check(nb_trainer_epoch(&t, &loss, &finite, &err), &err);
        if (i == 0) continue;
        best = fmin(best, nb_now() - t0);
        *cpu = fmin(*cpu, (double)(clock() - c0) / CLOCKS_PER_SEC);
    }
    nb_trainer_free(&t);
    return best;
}

/* Operations of a step: three products per linear (without LET those of q, k and v have no third),
 * and the attention's two forward and five backward. */
static double operations(double T, bool let)
{
    double qkv = (HEADS + 2 * KV_HEADS) * D * C, rest = HEADS * D * C + 3.0 * F * C;
    double attention = 7.0 * HEADS * D * (T + 1) / 2;
    return 2 * T * (qkv * (let ? 3 : 2) + rest * 3 + attention);
}

int main(int argc, char **argv)
{
    int tokens = argc > 1 ? atoi(argv[1]) : 2048, steps = argc > 2 ? atoi(argv[2]) : 3;
    int threads = argc > 3 ? atoi(argv[3]) : nb_cpu_count();
    double peak[2] = {nb_gemm_floor(threads, false), nb_gemm_floor(threads, true)};
    printf("%-6s %-14s %10s %12s %10s %14s %8s\n", "type", "case", "us/token", "CPU us/token",
           "GFLOP/s", "GEMM GFLOP/s", "share");
    for (int c = NB_COMPUTE_F32; c <= NB_COMPUTE_BF16; c++) {
        for (int let = 0; let < 2; let++) {
            setup s;
            begin(&s, (nb_compute)c, threads, tokens, let);
            double cpu, seconds = time_step(&s, let, steps, &cpu);
            double rate = operations(tokens, let) / seconds * 1e-9,
                   top = peak[c == NB_COMPUTE_BF16];
            printf("%-6s %-14s %10.1f %12.1f %10.1f %14.1f %7.1f%%\n",
                   c == NB_COMPUTE_BF16 ? "bf16" : "f32", let ? "W4A4 lwc+let" : "W4A16 lwc",
                   seconds / tokens * 1e6, cpu / tokens * 1e6, rate, top, 100 * rate / top);
            end(&s);
        }
    }
    return 0;
}
