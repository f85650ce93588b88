#include <stddef.h>

#include "commands.h"
#include "printer.h"

static void print_result(const nb_perplexity_result *p, bool json, cli_printer *r)
{
    cli_print_begin(r, json);
    cli_print_measured(r, "perplexity", "error", "perplexity", p->perplexity, p->error, 4);
    cli_print_real(r, "nll", "nats per token", p->nll, 5);
    cli_print_int(r, "tokens", "tokens", p->tokens);
    cli_print_int(r, "windows", "windows", p->windows);
    cli_print_real(r, "seconds", "seconds", p->seconds, 1);
    cli_print_real(r, "tokens_per_second", "tokens per second", p->tokens_per_second, 1);
    cli_print_int(r, "nonfinite_activations",
                  p->nonfinite_activations ? "Inf, NaN saturated" : NULL, p->nonfinite_activations);
}

static nb_status run(cli_args *args, nb_error *err)
{
    nb_model *m = NULL;
    int32_t *tokens = NULL;
    size_t n_tokens = 0;
    nb_perplexity_result result;
    cli_printer printer;
    nb_status st = cli_require(args->text, "--text FILE", err);
    if (st == NB_OK) st = nb_model_open(&m, args->model, &args->run, err);
    if (st == NB_OK) st = cli_tokenize_file(m, args->text, &tokens, &n_tokens, err);
    if (st == NB_OK) st = nb_perplexity(m, tokens, n_tokens, &args->eval, &result, err);
    nb_free(tokens);
    nb_model_close(m);
    if (st != NB_OK) return st;
    print_result(&result, args->json, &printer);
    return cli_print_end(&printer, err);
}

const cli_command cmd_perplexity = {
    .name = "perplexity",
    .usage = "MODEL --text FILE [options]",
    .summary = "how well a model predicts a text",
    .details =
        "exp of the mean negative log-likelihood of every token but the first of each window.\n"
        "The file is read as one string, without a BOS token; the last partial window is\n"
        "left out. The error is one standard error over windows.",
    .groups = {cli_eval_options, cli_run_options, cli_output_options},
    .run = run,
};
