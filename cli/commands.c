#include "commands.h"

#include <string.h>
#include <sys/resource.h>

const cli_command *const cli_commands[] = {
    &cmd_quantize, &cmd_perplexity, &cmd_compare, &cmd_generate,
    &cmd_logits,   &cmd_inspect,    &cmd_verify,  NULL,
};

const cli_command *cli_find_command(const char *name)
{
    for (const cli_command *const *c = cli_commands; *c; c++) {
        if (strcmp((*c)->name, name) == 0) return *c;
    }
    return NULL;
}

nb_status cli_require(const char *value, const char *option, nb_error *err)
{
    if (value) return NB_OK;
    return cli_fail(err, NB_EUSAGE, "%s is missing", option);
}

nb_status cli_tokenize_file(const nb_model *m, const char *path, int32_t **tokens, size_t *n_tokens,
                            nb_error *err)
{
    char *text = NULL;
    size_t n_bytes = 0;
    nb_status st = nb_file_read(path, &text, &n_bytes, err);
    if (st == NB_OK) st = nb_tokenize(m, text, n_bytes, false, false, tokens, n_tokens, err);
    nb_free(text);
    return st;
}

int64_t cli_peak_rss(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (int64_t)u.ru_maxrss * 1024; /* Linux counts KiB */
}
