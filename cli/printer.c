#include "printer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "options.h"

#define LABEL_WIDTH 24

void cli_print_begin(cli_printer *r, bool json) { r->object = json ? json_object() : NULL; }

void cli_print_json(cli_printer *r, const char *key, json_t *value)
{
    json_object_set_new(r->object, key, value ? value : json_null());
}

/* JSON has no NaN and no infinity: null stands for them. */
static json_t *real_or_null(double x) { return isfinite(x) ? json_real(x) : json_null(); }

void cli_print_text(cli_printer *r, const char *key, const char *label, const char *text)
{
    if (r->object)
        cli_print_json(r, key, text ? json_string(text) : json_null());
    else if (label && text)
        printf("%-*s %s\n", LABEL_WIDTH, label, text);
}

void cli_print_bool(cli_printer *r, const char *key, const char *label, bool value)
{
    if (r->object)
        cli_print_json(r, key, json_boolean(value));
    else if (label)
        printf("%-*s %s\n", LABEL_WIDTH, label, value ? "yes" : "no");
}

void cli_print_int(cli_printer *r, const char *key, const char *label, int64_t value)
{
    if (r->object)
        cli_print_json(r, key, json_integer(value));
    else if (label)
        printf("%-*s %lld\n", LABEL_WIDTH, label, (long long)value);
}

void cli_print_bytes(cli_printer *r, const char *key, const char *label, int64_t bytes)
{
    char text[CLI_BYTES_CHARS];
    if (r->object)
        cli_print_json(r, key, json_integer(bytes));
    else if (label) {
        printf("%-*s %s (%lld bytes)\n", LABEL_WIDTH, label, cli_format_bytes(text, bytes),
               (long long)bytes);
    }
}

void cli_print_real(cli_printer *r, const char *key, const char *label, double value, int digits)
{
    if (r->object)
        cli_print_json(r, key, real_or_null(value));
    else if (label)
        printf("%-*s %.*f\n", LABEL_WIDTH, label, digits, value);
}

void cli_print_measured(cli_printer *r, const char *key, const char *error_key, const char *label,
                        double value, double error, int digits)
{
    if (r->object) {
        cli_print_json(r, key, real_or_null(value));
        cli_print_json(r, error_key, real_or_null(error));
    } else if (error > 0) {
        printf("%-*s %.*f ± %.*f\n", LABEL_WIDTH, label, digits, value, digits, error);
    } else { /* one window: the error is not known */
        printf("%-*s %.*f\n", LABEL_WIDTH, label, digits, value);
    }
}

nb_status cli_print_end(cli_printer *r, nb_error *err)
{
    if (!r->object) return NB_OK;
    char *text = json_dumps(r->object, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    json_decref(r->object);
    r->object = NULL;
    if (!text) return cli_fail(err, NB_ERESOURCE, "out of memory: JSON text of the result");
    puts(text);
    free(text);
    return NB_OK;
}

const char *cli_format_bytes(char out[CLI_BYTES_CHARS], int64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int u = 0;
    while (value >= 1024 && u < 4) {
        value /= 1024;
        u++;
    }
    snprintf(out, CLI_BYTES_CHARS, "%.*f %s", u ? 1 : 0, value, units[u]);
    return out;
}
