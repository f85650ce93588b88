/* The verbs: one file and one line in commands.c each. */
#ifndef NB_CLI_COMMANDS_H
#define NB_CLI_COMMANDS_H

#include "options.h"

extern const cli_command cmd_quantize, cmd_perplexity, cmd_compare, cmd_generate, cmd_logits,
    cmd_inspect, cmd_verify;

extern const cli_command *const cli_commands[]; /* NULL-terminated, in the order of the overview */

/* NULL if there is no such verb. */
const cli_command *cli_find_command(const char *name);

/* NB_EUSAGE if an option that the verb cannot do without is missing. */
nb_status cli_require(const char *value, const char *option, nb_error *err);

/* The text of a file as tokens: ordinary text, no BOS. *tokens goes back with nb_free. */
nb_status cli_tokenize_file(const nb_model *m, const char *path, int32_t **tokens, size_t *n_tokens,
                            nb_error *err);

int64_t cli_peak_rss(void); /* bytes, of this process */

#endif
