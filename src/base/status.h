/* Status and message: filled once, at the spot that knows most. */
#ifndef NB_BASE_STATUS_H
#define NB_BASE_STATUS_H

#include "nibble.h"

/* Sets *err (if not NULL) and returns `status`: `return nb_fail(err, NB_EINPUT, "...", ...);` */
nb_status nb_fail(nb_error *err, nb_status status, const char *fmt, ...) NB_PRINTF(3, 4);

/* "out of memory: WHAT needs N bytes" */
nb_status nb_fail_memory(nb_error *err, const char *what, size_t n_bytes);

/* Puts "WHERE: " before the message of a failure that is passed on. */
nb_status nb_wrap(nb_error *err, nb_status status, const char *fmt, ...) NB_PRINTF(3, 4);

#define NB_TRY(call)                                                                               \
    do {                                                                                           \
        nb_status nb_try_status_ = (call);                                                         \
        if (nb_try_status_ != NB_OK) return nb_try_status_;                                        \
    } while (0)

/* For functions that own something: set `st` and leave through their `done:` label. */
#define NB_GOTO(st, call)                                                                          \
    do {                                                                                           \
        (st) = (call);                                                                             \
        if ((st) != NB_OK) goto done;                                                              \
    } while (0)

#define NB_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define NB_UNUSED(x)    ((void)(x))

#endif
