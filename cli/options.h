/* Command-line options as tables.
 *
 * An option names a field of cli_args by offset and type; parsing, range checks, suggestions and
 * the text of --help all come from the table. The defaults shown in the help are read from a
 * cli_args that was set up by cli_args_init, so they cannot differ from what runs. */
#ifndef NB_CLI_OPTIONS_H
#define NB_CLI_OPTIONS_H

#include "nibble.h"

/* What a repeatable option collected. */
typedef struct cli_list {
    const char **items; /* borrowed from argv */
    size_t n;
} cli_list;

/* Everything that any verb takes; the tables choose. */
typedef struct cli_args {
    const char *model; /* the first argument that is no option */
    cli_list models;   /* all of them; one unless the verb takes many */
    const char *out, *recipe, *text, *against, *prompt, *tokens, *tensor;
    cli_list calib;
    bool json, help, dialects;
    nb_options run;
    nb_eval_options eval;
    nb_generate_options generate;
    nb_quantize_options quantize;
} cli_args;

typedef enum cli_type {
    CLI_FLAG,   /* bool, no value                                  */
    CLI_INT,    /* int                                             */
    CLI_INT64,  /* int64_t                                         */
    CLI_UINT64, /* uint64_t                                        */
    CLI_MASK,   /* unsigned, decimal or 0x...                      */
    CLI_SIZE,   /* size_t: bytes with K, M, G, T (powers of 1024)  */
    CLI_FLOAT,  /* float                                           */
    CLI_STRING, /* const char *                                    */
    CLI_CHOICE, /* an enum of 0, 1, ...: the words of `arg` in turn */
    CLI_LIST,   /* cli_list, may be given again and again          */
} cli_type;

typedef struct cli_option {
    const char *name; /* long name without dashes; NULL ends a table */
    char letter;      /* short name, or 0 */
    cli_type type;
    size_t offset;    /* in cli_args */
    double min;       /* of a number */
    const char *arg;  /* its value in the help: "N", "f32|bf16" */
    const char *help; /* one line */
} cli_option;

#define CLI_MAX_GROUPS 4

typedef struct cli_command {
    const char *name;
    const char *usage;                        /* behind the name: "MODEL -o DIR [options]" */
    const char *summary;                      /* one line */
    const char *details;                      /* more lines for --help, or NULL */
    bool many;                                /* takes more than one MODEL */
    const cli_option *groups[CLI_MAX_GROUPS]; /* NULL behind the last */
    nb_status (*run)(cli_args *args, nb_error *err);
} cli_command;

/* Groups that several verbs share. */
extern const cli_option cli_run_options[];    /* --threads --device --compute --cpumask */
extern const cli_option cli_eval_options[];   /* --text --ctx --windows --simulate */
extern const cli_option cli_output_options[]; /* --json --help */

void cli_args_init(cli_args *args);
void cli_args_fini(cli_args *args);

/* Reads argv[0..argc) (what follows the verb). NB_OK, or NB_EUSAGE with a message. Without --help
 * a MODEL is required. */
nb_status cli_parse(cli_args *args, const cli_command *command, int argc, char **argv,
                    nb_error *err);

void cli_print_help(const cli_command *command);

/* The nearest of n words to `word` if it is close enough to be a slip of the hand, else NULL. */
const char *cli_suggest(const char *word, const char *const *words, size_t n);

/* "4G", "512M", "1.5GiB", "1000": false if it is no size. */
bool cli_parse_size(const char *text, size_t *out);

/* Fills *err and returns `status`. */
nb_status cli_fail(nb_error *err, nb_status status, const char *fmt, ...) NB_PRINTF(3, 4);

#endif
