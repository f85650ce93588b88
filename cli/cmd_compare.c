#include <stddef.h>

#include "commands.h"
#include "printer.h"

static const cli_option options[] = {
    {"against", 0, CLI_STRING, offsetof(cli_args, against), 0, "REF", "the model to measure from"},
    {0},
};

static void print_result(const nb_compare_result *c, bool json, cli_printer *r)
{
    cli_print_begin(r, json);
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
}

/* --simulate and --kv are about the model that is measured, not about the reference. */
static nb_status open_both(nb_model **m, nb_model **reference, const cli_args *args, nb_error *err)
{
    nb_options plain = args->run;
    plain.simulate = false;
    plain.kv = NULL;
    nb_status st = nb_model_open(m, args->model, &args->run, err);
    if (st == NB_OK) st = nb_model_open(reference, args->against, &plain, err);
    return st;
}

static nb_status run(cli_args *args, nb_error *err)
{
    nb_model *m = NULL, *reference = NULL;
    int32_t *tokens = NULL;
    size_t n_tokens = 0;
    nb_compare_result result;
    cli_printer printer;
    nb_status st = cli_require(args->against, "--against REF", err);
    if (st == NB_OK) st = cli_require(args->text, "--text FILE", err);
    if (st == NB_OK) st = open_both(&m, &reference, args, err);
    if (st == NB_OK) st = cli_tokenize_file(reference, args->text, &tokens, &n_tokens, err);
    if (st == NB_OK) st = nb_compare(m, reference, tokens, n_tokens, &args->eval, &result, err);
    nb_free(tokens);
    nb_model_close(reference);
    nb_model_close(m);
    if (st != NB_OK) return st;
    print_result(&result, args->json, &printer);
    return cli_print_end(&printer, err);
}

const cli_command cmd_compare = {
    .name = "compare",
    .usage = "MODEL --against REF --text FILE [options]",
    .summary = "how far a model is from the one it was made of",
    .details = "Both models read the same windows (see perplexity). The divergence is\n"
               "KL(REF || MODEL) in nats per token; the ratio's error is that of the paired\n"
               "difference. Logits are compared as they come and never stored.",
    .groups = {options, cli_eval_options, cli_run_options, cli_output_options},
    .run = run,
};
