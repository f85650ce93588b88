/* End-to-end rate of a real model against oneDNN's own GEMM rate, in one run:
 *
 *   bench_forward MODEL [CTX] [WINDOWS]
 *
 * The rate counts the multiply-adds of linears, head and causal attention, two operations each;
 * embedding, norms, softmax, rotary and loss count as nothing, so they show up as lost share.
 * The tokens are drawn from a generator: the time does not depend on them. */
#include <stdio.h>
#include <stdlib.h>

#include "base/cpu.h"
#include "base/rng.h"
#include "eval/eval.h"
#include "floor.h"
#include "model/family.h"

static void die(const nb_error *err)
{
    fprintf(stderr, "%s\n", err->message);
    exit(err->status);
}

/* Operations of one window. Query t meets t + 1 keys, or the window's. */
static double operations(const nb_config *c, double T)
{
    double q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    double ffn = (c->family->linear[NB_GATE] ? 3.0 : 2.0) * c->n_ffn;
    double linears = c->n_embd * (2 * q + 2 * kv + ffn);
    double attention = 2 * q * (T + 1) / 2;
    return 2 * T * (c->n_layers * (linears + attention) + (double)c->n_embd * c->n_vocab);
}

static double rate(const char *path, nb_compute compute, int ctx, int windows)
{
    nb_error err = {0};
    nb_options opt;
    nb_options_default(&opt);
    opt.compute = compute;
    nb_source *src;
    nb_backend *be;
    nb_net *net;
    if (nb_source_open(&src, path, &err) != NB_OK) die(&err);
    if (nb_backend_create(&be, &opt, &err) != NB_OK) die(&err);
    if (nb_net_create(&net, be, src, false, NULL, &err) != NB_OK) die(&err);
    size_t n = (size_t)ctx * (size_t)(windows + 1);
    int32_t *ids = malloc(n * sizeof *ids);
    if (!ids) exit(4);
    nb_rng r = {1};
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(nb_rng_next(&r) % (uint64_t)net->cfg.n_vocab);
    nb_perplexity_result res;
    nb_eval_options eval = {.ctx = ctx, .n_windows = 1};
    if (nb_eval_perplexity(net, ids, n, &eval, (nb_watch){0}, &res, &err) != NB_OK) die(&err);
    eval.n_windows = windows; /* the first, alone, has warmed code and caches */
    if (nb_eval_perplexity(net, ids, n, &eval, (nb_watch){0}, &res, &err) != NB_OK) die(&err);
    double gflops = operations(&net->cfg, ctx) * windows / res.seconds * 1e-9;
    free(ids);
    nb_net_free(net);
    nb_backend_free(be);
    nb_source_close(src);
    return gflops;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [CTX] [WINDOWS]\n", argv[0]);
        return 2;
    }
    int ctx = argc > 2 ? atoi(argv[2]) : 2048, windows = argc > 3 ? atoi(argv[3]) : 3;
    printf("%-6s %14s %14s %8s\n", "type", "GEMM GFLOP/s", "model GFLOP/s", "share");
    for (int c = NB_COMPUTE_F32; c <= NB_COMPUTE_BF16; c++) {
        double peak = nb_gemm_floor(nb_cpu_count(), c == NB_COMPUTE_BF16);
        double got = rate(argv[1], (nb_compute)c, ctx, windows);
        printf("%-6s %14.1f %14.1f %7.1f%%\n", c == NB_COMPUTE_BF16 ? "bf16" : "f32", peak, got,
               100 * got / peak);
    }
    return 0;
}
