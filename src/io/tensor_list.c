#include "io/tensor_list.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/size.h"

nb_status nb_tensor_list_init(nb_tensor_list *l, nb_error *err)
{
    *l = (nb_tensor_list){0};
    return nb_arena_create(&l->arena, err);
}

void nb_tensor_list_fini(nb_tensor_list *l)
{
    nb_arena_free(l->arena);
    *l = (nb_tensor_list){0};
}

/* Offset of the first byte that is part of no valid, printable character; n_bytes if all are. */
static size_t printable_prefix(const char *s, size_t n_bytes)
{
    size_t i = 0;
    while (i < n_bytes) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k =
            utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n_bytes - i), &c);
        if (k <= 0 || c < 0x20 || (c >= 0x7f && c < 0xa0)) return i;
        i += (size_t)k;
    }
    return i;
}

nb_status nb_name_copy(nb_arena *a, const char **out, const char *s, size_t n_bytes,
                       size_t max_bytes, const char *what, nb_error *err)
{
    *out = NULL;
    if (n_bytes == 0) return nb_fail(err, NB_EINPUT, "%s is empty", what);
    if (n_bytes > max_bytes) {
        return nb_fail(err, NB_EINPUT, "%s: %zu bytes, expected at most %zu", what, n_bytes,
                       max_bytes);
    }
    size_t ok = printable_prefix(s, n_bytes);
    if (ok < n_bytes) {
        return nb_fail(err, NB_EINPUT, "%s \"%.*s...\": byte %zu (0x%02x) is not printable UTF-8",
                       what, (int)(ok < 80 ? ok : 80), s, ok, (unsigned char)s[ok]);
    }
    *out = nb_arena_strndup(a, s, n_bytes);
    return *out ? NB_OK : nb_fail_memory(err, what, n_bytes + 1);
}

/* Product of the dimensions; false on overflow. A zero does not hide an overflow beside it: users
 * multiply dimensions in any order. */
static bool count_values(const nb_tensor *t, int64_t *out)
{
    int64_t n = 1;
    bool empty = false;
    for (int i = 0; i < t->n_dims; i++) {
        empty |= t->dims[i] == 0;
        if (t->dims[i] != 0 && __builtin_mul_overflow(n, t->dims[i], &n)) return false;
    }
    *out = empty ? 0 : n;
    return true;
}

nb_status nb_tensor_size(const nb_tensor *t, size_t *n_bytes, nb_error *err)
{
    const nb_dtype_info *d = &nb_dtypes[t->dtype];
    int64_t count;
    if (!count_values(t, &count)) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": the product of its dimensions overflows",
                       t->name);
    }
    int64_t row = t->n_dims ? t->dims[t->n_dims - 1] : 1;
    if (row % d->block_elems != 0) {
        return nb_fail(err, NB_EINPUT,
                       "tensor \"%s\": rows of %lld values, expected a multiple of %d for %s",
                       t->name, (long long)row, d->block_elems, d->name);
    }
    if (!nb_mul_size((size_t)(count / d->block_elems), d->block_bytes, n_bytes)) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": %lld values of %s overflow the size",
                       t->name, (long long)count, d->name);
    }
    return NB_OK;
}

static int compare_place(const void *a, const void *b)
{
    const nb_tensor *x = *(const nb_tensor *const *)a, *y = *(const nb_tensor *const *)b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
    if (p != q) return p < q ? -1 : 1;
    return x->n_bytes < y->n_bytes ? -1 : x->n_bytes > y->n_bytes;
}

nb_status nb_tensor_list_by_place(const nb_tensor_list *l, const nb_tensor ***out, nb_error *err)
{
    *out = nb_arena_alloc(l->arena, l->n, sizeof **out);
    if (!*out) return nb_fail_memory(err, "tensor order", l->n * sizeof **out);
    for (size_t i = 0; i < l->n; i++) (*out)[i] = &l->items[i];
    qsort(*out, l->n, sizeof **out, compare_place);
    return NB_OK;
}

static int compare_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

nb_status nb_names_unique(const char **names, size_t n, const char *what, nb_error *err)
{
    qsort(names, n, sizeof *names, compare_name);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(names[i - 1], names[i]) == 0) {
            return nb_fail(err, NB_EINPUT, "%s \"%s\" appears twice", what, names[i]);
        }
    }
    return NB_OK;
}
