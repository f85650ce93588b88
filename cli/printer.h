/* Results on standard output: the same calls give aligned text or one JSON object.
 * `label` NULL: only in JSON. */
#ifndef NB_CLI_PRINTER_H
#define NB_CLI_PRINTER_H

#include <jansson.h>

#include "nibble.h"

typedef struct cli_printer {
    json_t *object; /* NULL: text */
} cli_printer;

void cli_print_begin(cli_printer *r, bool json);
void cli_print_text(cli_printer *r, const char *key, const char *label, const char *text);
void cli_print_bool(cli_printer *r, const char *key, const char *label, bool value);
void cli_print_int(cli_printer *r, const char *key, const char *label, int64_t value);
void cli_print_bytes(cli_printer *r, const char *key, const char *label, int64_t bytes);
/* `digits` behind the point in text. */
void cli_print_real(cli_printer *r, const char *key, const char *label, double value, int digits);
/* value ± error in text; KEY and KEY_error (or `error_key`) in JSON. */
void cli_print_measured(cli_printer *r, const char *key, const char *error_key, const char *label,
                        double value, double error, int digits);
void cli_print_json(cli_printer *r, const char *key, json_t *value); /* takes `value` over */
/* Prints the object and flushes. NB_ERESOURCE if memory was out. */
nb_status cli_print_end(cli_printer *r, nb_error *err);

/* "1.2 MiB"; returns out. */
#define CLI_BYTES_CHARS 32
const char *cli_format_bytes(char out[CLI_BYTES_CHARS], int64_t bytes);

#endif
