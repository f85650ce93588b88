#include "base/strbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void nb_strbuf_init(nb_strbuf *b, size_t max_bytes) { *b = (nb_strbuf){.max_bytes = max_bytes}; }

void nb_strbuf_fini(nb_strbuf *b)
{
    free(b->data);
    *b = (nb_strbuf){0};
}

static bool reserve(nb_strbuf *b, size_t more)
{
    if (b->failed) return false;
    if (more > b->max_bytes || b->n_bytes > b->max_bytes - more) {
        b->failed = true;
        return false;
    }
    size_t need = b->n_bytes + more + 1;
    if (need <= b->capacity) return true;
    size_t capacity = b->capacity * 2 > need ? b->capacity * 2 : need < 64 ? 64 : need;
    char *p = realloc(b->data, capacity);
    if (!p) {
        b->failed = true;
        return false;
    }
    b->data = p;
    b->capacity = capacity;
    return true;
}

void nb_strbuf_append(nb_strbuf *b, const void *data, size_t n_bytes)
{
    if (!reserve(b, n_bytes)) return;
    if (n_bytes) memcpy(b->data + b->n_bytes, data, n_bytes);
    b->n_bytes += n_bytes;
    b->data[b->n_bytes] = 0;
}

void nb_strbuf_puts(nb_strbuf *b, const char *s) { nb_strbuf_append(b, s, strlen(s)); }

void nb_strbuf_printf(nb_strbuf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || !reserve(b, (size_t)n)) return;
    va_start(ap, fmt);
    vsnprintf(b->data + b->n_bytes, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->n_bytes += (size_t)n;
}

nb_status nb_strbuf_take(nb_strbuf *b, char **data, size_t *n_bytes, nb_error *err)
{
    *data = NULL;
    if (n_bytes) *n_bytes = 0;
    if (!b->failed) reserve(b, 0);
    if (b->failed) {
        nb_strbuf_fini(b);
        return nb_fail(err, NB_ERESOURCE, "out of memory: text of more than %zu bytes",
                       b->max_bytes);
    }
    b->data[b->n_bytes] = 0;
    *data = b->data;
    if (n_bytes) *n_bytes = b->n_bytes;
    *b = (nb_strbuf){.max_bytes = b->max_bytes};
    return NB_OK;
}
