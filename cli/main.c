/* nibble: the command. Sees the public header alone. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands.h"
#include "progress.h"

static void print_overview(void)
{
    printf("nibble %s: low-bit language models\n\nusage: nibble VERB MODEL [options]\n\n",
           nb_version());
    for (const cli_command *const *c = cli_commands; *c; c++) {
        printf("  %-12s %s\n", (*c)->name, (*c)->summary);
    }
    printf(
        "\nMODEL is a Hugging Face directory (safetensors), a nibble directory or a .gguf file.\n"
        "'nibble help VERB' lists the options of a verb; 'nibble --version' prints the version.\n");
}

static nb_status fail_unknown_verb(const char *verb, nb_error *err)
{
    const char *names[32] = {"help"};
    size_t n = 1;
    for (const cli_command *const *c = cli_commands; *c && n < 32; c++) names[n++] = (*c)->name;
    const char *near = cli_suggest(verb, names, n);
    if (near) {
        return cli_fail(err, NB_EUSAGE, "unknown verb '%s'; did you mean '%s'?", verb, near);
    }
    return cli_fail(err, NB_EUSAGE, "unknown verb '%s'; 'nibble' alone lists them", verb);
}

static nb_status run_verb(const cli_command *command, int argc, char **argv, nb_error *err)
{
    cli_args args;
    cli_progress progress;
    cli_args_init(&args);
    cli_progress_init(&progress);
    args.run.progress = cli_progress_show;
    args.run.progress_user = &progress;
    nb_status st = cli_parse(&args, command, argc, argv, err);
    if (st == NB_OK && args.help)
        cli_print_help(command);
    else if (st == NB_OK)
        st = command->run(&args, err);
    cli_progress_end(&progress);
    cli_args_fini(&args);
    return st;
}

static nb_status run_help(int argc, char **argv, nb_error *err)
{
    const cli_command *command = argc > 0 ? cli_find_command(argv[0]) : NULL;
    if (argc > 0 && !command) return fail_unknown_verb(argv[0], err);
    if (command)
        cli_print_help(command);
    else
        print_overview();
    return NB_OK;
}

static nb_status dispatch(int argc, char **argv, nb_error *err)
{
    if (argc < 2) return run_help(0, NULL, err);
    const char *verb = argv[1];
    if (strcmp(verb, "--version") == 0) {
        printf("nibble %s\n", nb_version());
        return NB_OK;
    }
    if (strcmp(verb, "help") == 0 || strcmp(verb, "--help") == 0 || strcmp(verb, "-h") == 0) {
        return run_help(argc - 2, argv + 2, err);
    }
    const cli_command *command = cli_find_command(verb);
    if (!command) return fail_unknown_verb(verb, err);
    return run_verb(command, argc - 2, argv + 2, err);
}

/* A reader that went away (`nibble ... | head`) is no failure; a full disk is. */
static nb_status flush_output(nb_error *err)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return NB_OK;
    if (errno == EPIPE) return NB_OK;
    return cli_fail(err, NB_ERESOURCE, "cannot write to standard output: %s", strerror(errno));
}

/* OpenMP's threads spin for milliseconds at the end of each loop before they sleep. Where another
 * program wants the cores that is time lost to everybody: decoding a token ran nine times faster
 * on a busy two-core machine with short spins. The runtime reads its settings before main begins,
 * so they are put in place by starting once more. Who has set them keeps them. */
static void shorten_spins(char **argv)
{
    static const char *const settings[][2] = {
        {"GOMP_SPINCOUNT", "1000"}, /* gcc: rounds, a few microseconds */
        {"KMP_BLOCKTIME", "0"},     /* clang: milliseconds             */
    };
    if (getenv("OMP_WAIT_POLICY")) return;
    bool set = false;
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        if (getenv(settings[i][0])) continue;
        set = setenv(settings[i][0], settings[i][1], 0) == 0 || set;
    }
    /* By its own name, which process lists show; if that fails, all works but the waiting. */
    char self[4096];
    ssize_t n = set ? readlink("/proc/self/exe", self, sizeof self - 1) : -1;
    if (n < 0) return;
    self[n] = 0;
    execv(self, argv);
}

int main(int argc, char **argv)
{
    shorten_spins(argv);
    nb_error err = {0};
    cli_signals_init();
    nb_status st = dispatch(argc, argv, &err);
    if (st == NB_OK) st = flush_output(&err);
    if (st != NB_OK) fprintf(stderr, "nibble: %s\n", err.message);
    return st;
}
