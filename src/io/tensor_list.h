/* What the parsers share: the list they fill and the checks that hold for every container. */
#ifndef NB_IO_TENSOR_LIST_H
#define NB_IO_TENSOR_LIST_H

#include "base/arena.h"
#include "io/io.h"

nb_status nb_tensor_list_init(nb_tensor_list *l, nb_error *err);

/* A copy of a name from a file: not empty, valid UTF-8, no control characters (names are printed),
 * at most max_bytes. `what` names the field in the message. */
nb_status nb_name_copy(nb_arena *a, const char **out, const char *s, size_t n_bytes,
                       size_t max_bytes, const char *what, nb_error *err);

/* Bytes that name, dtype and dims call for: whole blocks along the last dimension. */
nb_status nb_tensor_size(const nb_tensor *t, size_t *n_bytes, nb_error *err);

/* Pointers to the n tensors in the order of their data (empty ones first at the same place), in
 * the list's arena. */
nb_status nb_tensor_list_by_place(const nb_tensor_list *l, const nb_tensor ***out, nb_error *err);

/* NB_EINPUT if two of the n names are equal; `what` names their kind. Sorts `names`. */
nb_status nb_names_unique(const char **names, size_t n, const char *what, nb_error *err);

#endif
