#include <stddef.h>
#include <stdlib.h>

#include "commands.h"
#include "printer.h"

static const cli_option options[] = {
    {"against", 0, CLI_STRING, offsetof(cli_args, against), 0, "REF", "the model to measure from"},
    {0},
};

static void print_result(const nb_compare_result *c, cli_printer *r)
{
    cli_print_measured(r, "kl_mean", "kl_mean_error", "KL divergence, mean", c->kl_mean,
                       c->kl_mean_error, 6);
    cli_print_real(r, "kl_median", "  median", c->kl_median, 6);
    cli_print_measured(r, "kl_p99", "kl_p99_error", "  99th percentile", c->kl_p99, c->kl_p99_error,
                       5);
    cli_print_real(r, "kl_max", "  largest", c->kl_max, 4);
    cli_print_measured(r, "top1_agreement", "top1_agreement_error", "same first choice",
                       c->top1_agreement, c->top1_agreement_error, 5);
    cli_print_measured(r, "perplexity", "perplexity_error", "perplexity", c->perplexity,
                       c->perplexity_error, 4);
    cli_print_measured(r, "perplexity_reference", "perplexity_reference_error",
                       "  of the reference", c->perplexity_reference, c->perplexity_reference_error,
                       4);
    cli_print_measured(r, "perplexity_ratio", "perplexity_ratio_error", "  ratio",
                       c->perplexity_ratio, c->perplexity_ratio_error, 5);
    cli_print_int(r, "tokens", "tokens", c->tokens);
    cli_print_int(r, "windows", "windows", c->windows);
    cli_print_real(r, "seconds", "seconds", c->seconds, 1);
    cli_print_real(r, "tokens_per_second", "tokens per second", c->tokens_per_second, 1);
    cli_print_int(r, "nonfinite_activations",
                  c->nonfinite_activations ? "Inf, NaN saturated" : NULL, c->nonfinite_activations);
}

/* One model: its figures. Several: each under its name, in JSON a list "models". */
static nb_status print_all(const cli_args *args, const nb_compare_result *results, nb_error *err)
{
    cli_printer printer, one;
    cli_print_begin(&printer, args->json);
    if (args->models.n == 1) {
        print_result(results, &printer);
        return cli_print_end(&printer, err);
    }
    json_t *list = args->json ? json_array() : NULL;
    for (size_t i = 0; i < args->models.n; i++) {
        cli_print_begin(&one, args->json);
        cli_print_text(&one, "model", "model", args->models.items[i]);
        print_result(&results[i], &one);
        if (args->json) json_array_append_new(list, one.object);
    }
    if (args->json) cli_print_json(&printer, "models", list);
    return cli_print_end(&printer, err);
}

/* What is measured and, last, what it is measured from. --simulate and --kv are about the former
 * alone. */
static nb_status open_all(nb_model **models, const cli_args *args, nb_error *err)
{
    nb_options plain = args->run;
    plain.simulate = false;
    plain.kv = NULL;
    for (size_t i = 0; i < args->models.n; i++) {
        nb_status st = nb_model_open(&models[i], args->models.items[i], &args->run, err);
        if (st != NB_OK) return st;
    }
    return nb_model_open(&models[args->models.n], args->against, &plain, err);
}

static nb_status compare(nb_model **models, nb_compare_result *results, const cli_args *args,
                         nb_error *err)
{
    size_t n = args->models.n, n_tokens = 0;
    int32_t *tokens = NULL;
    nb_status st = open_all(models, args, err);
    if (st == NB_OK) st = cli_tokenize_file(models[n], args->text, &tokens, &n_tokens, err);
    if (st == NB_OK) {
        st = nb_compare(models, n, models[n], tokens, n_tokens, &args->eval, results, err);
    }
    nb_free(tokens);
    for (size_t i = 0; i <= n; i++) nb_model_close(models[i]);
    return st;
}

static nb_status run(cli_args *args, nb_error *err)
{
    nb_status st = cli_require(args->against, "--against REF", err);
    if (st == NB_OK) st = cli_require(args->text, "--text FILE", err);
    if (st != NB_OK) return st;
    nb_model **models = calloc(args->models.n + 1, sizeof *models);
    nb_compare_result *results = calloc(args->models.n, sizeof *results);
    st = models && results ? compare(models, results, args, err)
                           : cli_fail(err, NB_ERESOURCE, "out of memory: models");
    if (st == NB_OK) st = print_all(args, results, err);
    free(models);
    free(results);
    return st;
}

const cli_command cmd_compare = {
    .name = "compare",
    .usage = "MODEL... --against REF --text FILE [options]",
    .summary = "how far models are from the one they were made of",
    .details =
        "All models read the same windows (see perplexity); REF once for all. The divergence\n"
        "is KL(REF || MODEL) in nats per token; the ratio's error is that of the paired\n"
        "difference. Logits are compared as they come and never stored.",
    .many = true,
    .groups = {options, cli_eval_options, cli_run_options, cli_output_options},
    .run = run,
};
