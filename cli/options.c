#include "options.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AT(field) offsetof(cli_args, field)

const cli_option cli_run_options[] = {
    {"threads", 't', CLI_INT, AT(run.threads), 0, "N", "threads (all that the process may use)"},
    {"device", 0, CLI_STRING, AT(run.device), 0, "NAME", "where to compute: cpu, ref, cuda"},
    {"compute", 0, CLI_CHOICE, AT(run.compute), 0, "f32|bf16", "type of matrix products"},
    {"cpumask", 0, CLI_MASK, AT(run.cpumask), 0, "MASK", "CPU features allowed, 0: scalar code"},
    {0},
};

const cli_option cli_eval_options[] = {
    {"text", 'f', CLI_STRING, AT(text), 0, "FILE", "UTF-8 text to measure on"},
    {"ctx", 'c', CLI_INT, AT(eval.ctx), 2, "N", "tokens per window; windows do not overlap"},
    {"windows", 0, CLI_INT64, AT(eval.n_windows), 0, "N", "only the first N windows (all)"},
    {"simulate", 0, CLI_FLAG, AT(run.simulate), 0, NULL, "unpack weights to fp32 when loading"},
    {"kv", 0, CLI_STRING, AT(run.kv), 0, "FORMAT", "of the KV cache, in place of the model's"},
    {"full-chunks", 0, CLI_FLAG, AT(eval.full_chunks), 0, NULL,
     "quantize values of a query's own block as well"},
    {0},
};

const cli_option cli_output_options[] = {
    {"json", 0, CLI_FLAG, AT(json), 0, NULL, "print one JSON object"},
    {"help", 'h', CLI_FLAG, AT(help), 0, NULL, "print this page"},
    {0},
};

void cli_args_init(cli_args *args)
{
    memset(args, 0, sizeof *args);
    nb_options_default(&args->run);
    nb_eval_options_default(&args->eval);
    nb_generate_options_default(&args->generate);
    nb_quantize_options_default(&args->quantize);
}

void cli_args_fini(cli_args *args)
{
    free(args->calib.items);
    free(args->models.items);
}

nb_status cli_fail(nb_error *err, nb_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, ap);
    va_end(ap);
    return err->status = status;
}

/* ---- suggestions ------------------------------------------------------------------------ */

#define MAX_WORD 31

static size_t min3(size_t a, size_t b, size_t c)
{
    size_t m = a < b ? a : b;
    return m < c ? m : c;
}

/* Levenshtein distance of words of at most MAX_WORD bytes. */
static size_t edit_distance(const char *a, size_t n_a, const char *b, size_t n_b)
{
    size_t row[MAX_WORD + 1];
    for (size_t j = 0; j <= n_b; j++) row[j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = min3(row[j] + 1, row[j - 1] + 1, replaced);
        }
    }
    return row[n_b];
}

const char *cli_suggest(const char *word, const char *const *words, size_t n)
{
    const char *best = NULL;
    size_t n_word = strlen(word), best_distance = 1 + n_word / 3;
    if (n_word > MAX_WORD) return NULL;
    for (size_t i = 0; i < n; i++) {
        size_t n_other = strlen(words[i]);
        if (n_other > MAX_WORD) continue;
        size_t d = edit_distance(word, n_word, words[i], n_other);
        if (d <= best_distance) {
            best = words[i];
            best_distance = d == 0 ? 0 : d - 1;
        }
    }
    return best;
}

/* ---- values ----------------------------------------------------------------------------- */

bool cli_parse_size(const char *text, size_t *out)
{
    static const char units[] = "KMGT";
    char *end;
    double value = strtod(text, &end);
    if (end == text || !isfinite(value) || value < 0) return false;
    const char *unit = *end ? strchr(units, *end & ~0x20) : NULL;
    if (unit) {
        value = ldexp(value, 10 * (int)(unit - units + 1));
        end++;
        if (*end == 'i') end++;
    }
    if (*end == 'B' || *end == 'b') end++;
    if (*end || value >= 0x1p63) return false;
    *out = (size_t)value;
    return true;
}

static bool parse_integer(const char *text, double min, double max, int64_t *out)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    *out = v;
    return end != text && !*end && errno == 0 && (double)v >= min && (double)v <= max;
}

static bool parse_unsigned(const char *text, int base, unsigned long long max, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, base);
    *out = v;
    return end != text && !*end && errno == 0 && *text != '-' && v <= max;
}

/* Place of `text` among the words of "a|b|c", or -1. */
static int find_choice(const char *choices, const char *text)
{
    size_t n = strlen(text);
    for (int i = 0; choices; i++) {
        if (strncmp(choices, text, n) == 0 && (choices[n] == '|' || !choices[n])) return i;
        choices = strchr(choices, '|');
        if (choices) choices++;
    }
    return -1;
}

static bool add_item(cli_list *list, const char *text)
{
    const char **items = realloc(list->items, (list->n + 1) * sizeof *items);
    if (!items) return false;
    list->items = items;
    items[list->n++] = text;
    return true;
}

/* False if the text is no value of the option's type and range. */
static bool store_value(const cli_option *o, void *field, const char *text)
{
    int64_t i = 0;
    uint64_t u = 0;
    char *end;
    switch (o->type) {
    case CLI_FLAG:
        *(bool *)field = true;
        return true;
    case CLI_INT:
        if (!parse_integer(text, o->min, INT_MAX, &i)) return false;
        *(int *)field = (int)i;
        return true;
    case CLI_INT64:
        return parse_integer(text, o->min, 0x1p62, field);
    case CLI_UINT64:
        return parse_unsigned(text, 10, UINT64_MAX, field);
    case CLI_MASK:
        if (!parse_unsigned(text, 0, UINT_MAX, &u)) return false;
        *(unsigned *)field = (unsigned)u;
        return true;
    case CLI_SIZE:
        return cli_parse_size(text, field);
    case CLI_FLOAT:
        *(float *)field = strtof(text, &end);
        return end != text && !*end && isfinite(*(float *)field) && *(float *)field >= o->min;
    case CLI_STRING:
        *(const char **)field = text;
        return true;
    case CLI_CHOICE:
        i = find_choice(o->arg, text);
        *(int *)field = (int)i;
        return i >= 0;
    case CLI_LIST:
        return add_item(field, text);
    }
    return false;
}

static const char *describe_type(const cli_option *o)
{
    switch (o->type) {
    case CLI_SIZE:
        return "a size such as 512M or 4G";
    case CLI_FLOAT:
        return "a number";
    case CLI_CHOICE:
        return o->arg;
    case CLI_MASK:
        return "an unsigned number, decimal or 0x...";
    default:
        return "a whole number";
    }
}

/* ---- parsing ---------------------------------------------------------------------------- */

/* By long name (n bytes) or, where name is NULL, by letter. */
static const cli_option *find_option(const cli_command *c, const char *name, size_t n, char letter)
{
    for (int g = 0; g < CLI_MAX_GROUPS && c->groups[g]; g++) {
        for (const cli_option *o = c->groups[g]; o->name; o++) {
            if (name ? strlen(o->name) == n && memcmp(o->name, name, n) == 0
                     : o->letter == letter) {
                return o;
            }
        }
    }
    return NULL;
}

static nb_status fail_unknown(const cli_command *c, const char *word, size_t n, nb_error *err)
{
    const char *names[64];
    size_t n_names = 0;
    for (int g = 0; g < CLI_MAX_GROUPS && c->groups[g]; g++) {
        for (const cli_option *o = c->groups[g]; o->name && n_names < 64; o++) {
            names[n_names++] = o->name;
        }
    }
    char name[MAX_WORD + 1];
    snprintf(name, sizeof name, "%.*s", (int)(n > MAX_WORD ? MAX_WORD : n), word);
    const char *near = cli_suggest(name, names, n_names);
    if (near) {
        return cli_fail(err, NB_EUSAGE, "%s: unknown option --%s; did you mean --%s?", c->name,
                        name, near);
    }
    return cli_fail(err, NB_EUSAGE, "%s: unknown option --%s; 'nibble help %s' lists them", c->name,
                    name, c->name);
}

/* Stores one option whose value, if it is written in the same word, is `attached`. Takes the next
 * word otherwise: *i is the index of the last word used. */
static nb_status take_option(cli_args *args, const cli_option *o, const char *attached, int argc,
                             char **argv, int *i, nb_error *err)
{
    const char *value = attached;
    if (o->type == CLI_FLAG && attached) {
        return cli_fail(err, NB_EUSAGE, "--%s takes no value, got '%s'", o->name, attached);
    }
    if (o->type != CLI_FLAG && !attached) {
        if (*i + 1 >= argc) {
            return cli_fail(err, NB_EUSAGE, "--%s needs a value: %s", o->name, o->arg);
        }
        value = argv[++*i];
    }
    if (store_value(o, (char *)args + o->offset, value)) return NB_OK;
    if (o->type == CLI_INT || o->type == CLI_INT64 || o->type == CLI_FLOAT) {
        return cli_fail(err, NB_EUSAGE, "--%s: expected %s, at least %g, got '%s'", o->name,
                        describe_type(o), o->min, value);
    }
    return cli_fail(err, NB_EUSAGE, "--%s: expected %s, got '%s'", o->name, describe_type(o),
                    value);
}

static nb_status parse_long(cli_args *args, const cli_command *c, int argc, char **argv, int *i,
                            nb_error *err)
{
    const char *name = argv[*i] + 2, *equals = strchr(name, '=');
    size_t n = equals ? (size_t)(equals - name) : strlen(name);
    const cli_option *o = find_option(c, name, n, 0);
    if (!o) return fail_unknown(c, name, n, err);
    return take_option(args, o, equals ? equals + 1 : NULL, argc, argv, i, err);
}

/* "-n 5" and "-n5"; letters are not bundled. */
static nb_status parse_short(cli_args *args, const cli_command *c, int argc, char **argv, int *i,
                             nb_error *err)
{
    const char *word = argv[*i];
    const cli_option *o = find_option(c, NULL, 0, word[1]);
    if (!o) {
        return cli_fail(err, NB_EUSAGE, "%s: unknown option %s; 'nibble help %s' lists them",
                        c->name, word, c->name);
    }
    return take_option(args, o, word[2] ? word + 2 : NULL, argc, argv, i, err);
}

static nb_status parse_model(cli_args *args, const cli_command *c, const char *word, nb_error *err)
{
    if (args->model && !c->many) {
        return cli_fail(err, NB_EUSAGE, "%s: one MODEL expected, got '%s' and '%s'", c->name,
                        args->model, word);
    }
    if (!add_item(&args->models, word)) {
        return cli_fail(err, NB_ERESOURCE, "out of memory: arguments");
    }
    args->model = args->models.items[0];
    return NB_OK;
}

nb_status cli_parse(cli_args *args, const cli_command *command, int argc, char **argv,
                    nb_error *err)
{
    bool options = true;
    for (int i = 0; i < argc; i++) {
        const char *w = argv[i];
        nb_status st;
        if (options && strcmp(w, "--") == 0) {
            options = false;
            continue;
        }
        if (!options || w[0] != '-' || !w[1])
            st = parse_model(args, command, w, err);
        else if (w[1] == '-')
            st = parse_long(args, command, argc, argv, &i, err);
        else
            st = parse_short(args, command, argc, argv, &i, err);
        if (st != NB_OK) return st;
    }
    if (args->model || args->help) return NB_OK;
    return cli_fail(err, NB_EUSAGE, "%s: which MODEL? usage: nibble %s %s", command->name,
                    command->name, command->usage);
}

/* ---- help ------------------------------------------------------------------------------- */

/* " [2048]" where the default says something: not for 0, "none" and "as the recipe says". */
static void print_default(const cli_option *o, const cli_args *defaults)
{
    const void *field = (const char *)defaults + o->offset;
    int64_t i = 0;
    if (o->type == CLI_INT) i = *(const int *)field;
    if (o->type == CLI_INT64) i = *(const int64_t *)field;
    if (i > 0) printf(" [%lld]", (long long)i);
    if (o->type == CLI_FLOAT && *(const float *)field > 0) {
        printf(" [%g]", (double)*(const float *)field);
    }
    if (o->type == CLI_STRING && *(const char *const *)field) {
        printf(" [%s]", *(const char *const *)field);
    }
    if (o->type == CLI_CHOICE) printf(" [%.*s]", (int)strcspn(o->arg, "|"), o->arg);
}

static void print_option(const cli_option *o, const cli_args *defaults)
{
    char head[64];
    snprintf(head, sizeof head, "--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
    if (o->letter)
        printf("  -%c, %-26s %s", o->letter, head, o->help);
    else
        printf("      %-26s %s", head, o->help);
    print_default(o, defaults);
    putchar('\n');
}

void cli_print_help(const cli_command *command)
{
    cli_args defaults;
    cli_args_init(&defaults);
    printf("usage: nibble %s %s\n\n%s\n", command->name, command->usage, command->summary);
    if (command->details) printf("\n%s\n", command->details);
    for (int g = 0; g < CLI_MAX_GROUPS && command->groups[g]; g++) {
        putchar('\n');
        for (const cli_option *o = command->groups[g]; o->name; o++) print_option(o, &defaults);
    }
    cli_args_fini(&defaults);
}
