/* Growable byte buffer, born with a maximum. Appends after a failure do nothing, so a caller
 * checks once, at the end. Always NUL-terminated behind n_bytes. */
#ifndef NB_BASE_STRBUF_H
#define NB_BASE_STRBUF_H

#include "base/status.h"

typedef struct nb_strbuf {
    char *data;
    size_t n_bytes, capacity, max_bytes;
    bool failed;
} nb_strbuf;

void nb_strbuf_init(nb_strbuf *b, size_t max_bytes);
void nb_strbuf_fini(nb_strbuf *b);
void nb_strbuf_append(nb_strbuf *b, const void *data, size_t n_bytes);
void nb_strbuf_puts(nb_strbuf *b, const char *s);
void nb_strbuf_printf(nb_strbuf *b, const char *fmt, ...) NB_PRINTF(2, 3);
/* Hands the malloc'ed bytes over (NUL-terminated) and leaves the buffer empty.
 * NB_ERESOURCE if an append had failed. */
nb_status nb_strbuf_take(nb_strbuf *b, char **data, size_t *n_bytes, nb_error *err);

#endif
