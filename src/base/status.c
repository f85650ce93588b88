#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Names that come from a file may hold anything; a message is one printable line. */
static void make_printable(char *s)
{
    for (; *s; s++) {
        if ((unsigned char)*s < 0x20 || *s == 0x7f) *s = '?';
    }
}

nb_status nb_fail(nb_error *err, nb_status status, const char *fmt, ...)
{
    if (!err) return status;
    err->status = status;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, ap);
    va_end(ap);
    make_printable(err->message);
    return status;
}

nb_status nb_fail_memory(nb_error *err, const char *what, size_t n_bytes)
{
    return nb_fail(err, NB_ERESOURCE, "out of memory: %s needs %zu bytes", what, n_bytes);
}

nb_status nb_wrap(nb_error *err, nb_status status, const char *fmt, ...)
{
    if (!err || status == NB_OK) return status;
    char old[sizeof err->message];
    memcpy(old, err->message, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(err->message, sizeof err->message, fmt, ap);
    va_end(ap);
    size_t used = n < 0 ? 0 : (size_t)n;
    if (used + 2 < sizeof err->message) {
        snprintf(err->message + used, sizeof err->message - used, ": %s", old);
    }
    make_printable(err->message);
    err->status = status;
    return status;
}
