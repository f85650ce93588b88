#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "printer.h"

static const cli_option options[] = {
    {"tokens", 0, CLI_STRING, offsetof(cli_args, tokens), 0, "LIST|FILE",
     "token ids, comma-separated, or a file of them"},
    {"out", 'o', CLI_STRING, offsetof(cli_args, out), 0, "OUT.npy", "file to write"},
    {"simulate", 0, CLI_FLAG, offsetof(cli_args, run.simulate), 0, NULL,
     "unpack weights to fp32 when loading"},
    {0},
};

static bool is_list(const char *s) { return s[strspn(s, "0123456789, ")] == 0; }

/* Ids separated by commas and white space. At most one per two bytes: the caller's array of
 * strlen / 2 + 1 holds them all. */
static nb_status parse_tokens(const char *s, int32_t *ids, size_t *n, nb_error *err)
{
    *n = 0;
    for (;;) {
        while (isspace((unsigned char)*s) || *s == ',') s++;
        if (!*s) return NB_OK;
        char *end;
        errno = 0;
        long id = strtol(s, &end, 10);
        if (end == s || errno || id < 0 || id > INT32_MAX) {
            return cli_fail(err, NB_EUSAGE, "--tokens: token %zu: expected an id, got '%.20s'", *n,
                            s);
        }
        ids[(*n)++] = (int32_t)id;
        s = end;
    }
}

/* *ids goes back with free(). */
static nb_status read_tokens(const char *list_or_file, int32_t **ids, size_t *n, nb_error *err)
{
    char *file = NULL;
    size_t n_bytes = strlen(list_or_file);
    nb_status st = NB_OK;
    if (!is_list(list_or_file)) st = nb_file_read(list_or_file, &file, &n_bytes, err);
    if (st != NB_OK) {
        char why[sizeof err->message];
        memcpy(why, err->message, sizeof why);
        return cli_fail(err, st, "--tokens: no list of ids, so a file: %.400s", why);
    }
    *ids = malloc((n_bytes / 2 + 1) * sizeof **ids);
    if (*ids)
        st = parse_tokens(file ? file : list_or_file, *ids, n, err);
    else
        st = cli_fail(err, NB_ERESOURCE, "out of memory: %zu token ids", n_bytes / 2 + 1);
    if (st == NB_OK && *n == 0) st = cli_fail(err, NB_EUSAGE, "--tokens: no token ids");
    nb_free(file);
    return st;
}

static nb_status write_logits(nb_model *m, const int32_t *ids, size_t n, const char *path,
                              nb_error *err)
{
    nb_model_info info;
    nb_model_describe(m, &info);
    size_t n_vocab = (size_t)info.n_vocab;
    float *logits =
        n <= SIZE_MAX / sizeof *logits / n_vocab ? malloc(n * n_vocab * sizeof *logits) : NULL;
    if (!logits) {
        return cli_fail(err, NB_ERESOURCE, "out of memory: logits of %zu tokens x %zu", n, n_vocab);
    }
    nb_status st = nb_logits(m, ids, n, logits, err);
    if (st == NB_OK) st = nb_npy_write(path, logits, (int64_t)n, (int64_t)n_vocab, err);
    free(logits);
    return st;
}

static nb_status print_result(const nb_model *m, size_t n, const cli_args *args, nb_error *err)
{
    nb_model_info info;
    cli_printer r;
    nb_model_describe(m, &info);
    cli_print_begin(&r, args->json);
    cli_print_text(&r, "out", "written", args->out);
    cli_print_int(&r, "tokens", "tokens", (int64_t)n);
    cli_print_int(&r, "vocab", "vocabulary", info.n_vocab);
    return cli_print_end(&r, err);
}

static nb_status run(cli_args *args, nb_error *err)
{
    nb_model *m = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    nb_status st = cli_require(args->tokens, "--tokens LIST|FILE", err);
    if (st == NB_OK) st = cli_require(args->out, "-o OUT.npy", err);
    if (st == NB_OK) st = read_tokens(args->tokens, &ids, &n, err);
    if (st == NB_OK) st = nb_model_open(&m, args->model, &args->run, err);
    if (st == NB_OK) st = write_logits(m, ids, n, args->out, err);
    if (st == NB_OK) st = print_result(m, n, args, err);
    nb_model_close(m);
    free(ids);
    return st;
}

const cli_command cmd_logits = {
    .name = "logits",
    .usage = "MODEL --tokens LIST|FILE -o OUT.npy [options]",
    .summary = "what a model says about raw token ids, as a NumPy file",
    .details = "Writes fp32 logits [tokens, vocabulary]. Needs no tokenizer: made for checks\n"
               "against another implementation.",
    .groups = {options, cli_run_options, cli_output_options},
    .run = run,
};
