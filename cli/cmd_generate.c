#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "printer.h"
#include "progress.h"

#define AT(field) offsetof(cli_args, field)

static const cli_option options[] = {
    {"prompt", 'p', CLI_STRING, AT(prompt), 0, "TEXT", "text to continue"},
    {"n-predict", 'n', CLI_INT, AT(generate.n_predict), 1, "N", "tokens to generate at most"},
    {"temp", 0, CLI_FLOAT, AT(generate.temperature), 0, "X", "temperature, 0: greedy"},
    {"top-k", 0, CLI_INT, AT(generate.top_k), 0, "N", "the N likeliest tokens, 0: off"},
    {"top-p", 0, CLI_FLOAT, AT(generate.top_p), 0, "X", "the likeliest that sum to X, 1: off"},
    {"min-p", 0, CLI_FLOAT, AT(generate.min_p), 0, "X", "at least X of the likeliest, 0: off"},
    {"seed", 's', CLI_UINT64, AT(generate.seed), 0, "N", "seed of the sampler (0)"},
    {"ctx", 'c', CLI_INT, AT(generate.n_ctx), 0, "N", "capacity of the KV cache (what is needed)"},
    {"chat", 0, CLI_FLAG, AT(generate.chat), 0, NULL, "the prompt is a message to a chat model"},
    {"ignore-eos", 0, CLI_FLAG, AT(generate.ignore_eos), 0, NULL, "go on after an end token"},
    {"kv", 0, CLI_STRING, AT(run.kv), 0, "FORMAT", "of the KV cache, in place of the model's"},
    {"simulate", 0, CLI_FLAG, AT(run.simulate), 0, NULL, "unpack weights to fp32 when loading"},
    {0},
};

/* Text as it comes: streamed, or kept for the JSON object. */
typedef struct output {
    bool keep;
    char *text;
    size_t n_bytes;
    bool failed; /* out of memory, or nobody reads standard output */
} output;

static bool keep_text(output *o, const char *text, size_t n_bytes)
{
    char *grown = realloc(o->text, o->n_bytes + n_bytes + 1);
    if (!grown) return false;
    memcpy(grown + o->n_bytes, text, n_bytes);
    o->text = grown;
    o->n_bytes += n_bytes;
    grown[o->n_bytes] = 0;
    return true;
}

static bool stream_text(output *o, const char *text, size_t n_bytes)
{
    o->n_bytes += n_bytes;
    return fwrite(text, 1, n_bytes, stdout) == n_bytes && fflush(stdout) == 0;
}

static bool on_text(void *user, const char *text, size_t n_bytes)
{
    output *o = user;
    if (!(o->keep ? keep_text(o, text, n_bytes) : stream_text(o, text, n_bytes))) o->failed = true;
    return !o->failed && !cli_interrupted();
}

static nb_status print_json(const output *o, const nb_generate_result *g, nb_error *err)
{
    cli_printer r;
    cli_print_begin(&r, true);
    cli_print_text(&r, "text", NULL, o->text ? o->text : "");
    cli_print_int(&r, "tokens", NULL, g->tokens);
    cli_print_int(&r, "prompt_tokens", NULL, g->prompt_tokens);
    cli_print_real(&r, "prompt_tokens_per_second", NULL, g->prompt_tokens_per_second, 0);
    cli_print_real(&r, "decode_tokens_per_second", NULL, g->decode_tokens_per_second, 0);
    cli_print_int(&r, "kv_bytes", NULL, (int64_t)g->kv_bytes);
    cli_print_int(&r, "kv_bytes_per_token", NULL, (int64_t)g->kv_bytes_per_token);
    return cli_print_end(&r, err);
}

/* The text is the result; how fast it came is a message. */
static void print_speed(const nb_generate_result *g)
{
    fflush(stdout);
    fprintf(stderr, "prompt %lld tokens, %.1f per second; generated %lld tokens, %.1f per second\n",
            (long long)g->prompt_tokens, g->prompt_tokens_per_second, (long long)g->tokens,
            g->decode_tokens_per_second);
}

static nb_status generate(nb_model *m, cli_args *args, output *o, nb_error *err)
{
    nb_generate_result result;
    nb_status st = nb_generate(m, args->prompt, strlen(args->prompt), &args->generate, on_text, o,
                               &result, err);
    if (!args->json && (st == NB_OK || o->n_bytes > 0)) putchar('\n');
    if (st != NB_OK) return st;
    if (cli_interrupted()) return cli_fail(err, NB_EINTERRUPTED, "interrupted");
    if (o->failed && o->keep) {
        return cli_fail(err, NB_ERESOURCE, "out of memory: text of %zu bytes", o->n_bytes);
    }
    if (args->json) return print_json(o, &result, err);
    print_speed(&result);
    return NB_OK;
}

static nb_status run(cli_args *args, nb_error *err)
{
    nb_model *m = NULL;
    output o = {.keep = args->json};
    nb_status st = cli_require(args->prompt, "-p TEXT", err);
    if (st == NB_OK) st = nb_model_open(&m, args->model, &args->run, err);
    if (st == NB_OK) st = generate(m, args, &o, err);
    nb_model_close(m);
    free(o.text);
    return st;
}

const cli_command cmd_generate = {
    .name = "generate",
    .usage = "MODEL -p TEXT [options]",
    .summary = "continue a prompt, or answer it with --chat",
    .details = "The new text goes to standard output as it comes. The same seed and options give\n"
               "the same text.",
    .groups = {options, cli_run_options, cli_output_options},
    .run = run,
};
