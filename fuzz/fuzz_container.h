/* Common part of the container fuzzers: parse twice, look at everything that was accepted. */
#ifndef NB_FUZZ_CONTAINER_H
#define NB_FUZZ_CONTAINER_H

#include <stdlib.h>
#include <string.h>

#include "io/io.h"

#define MAX_DECODED ((int64_t)1 << 16) /* values per tensor: the input is small anyway */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static inline void check(bool ok)
{
    if (!ok) abort();
}

/* Inside the input, of the size that type and shape call for, and decodable. */
static inline void use_tensor(const nb_tensor *t, const uint8_t *data, size_t n_bytes)
{
    const nb_dtype_info *d = &nb_dtypes[t->dtype];
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= t->dims[i]; /* the parser has checked the product */
    check(n % d->block_elems == 0);
    check(t->n_bytes == (size_t)(n / d->block_elems) * d->block_bytes);
    check(t->data >= data && t->n_bytes <= (size_t)(data + n_bytes - t->data));
    check(t->name && strlen(t->name) > 0);
    if (!d->decode || n == 0 || n > MAX_DECODED) return;
    float *x = malloc((size_t)n * sizeof *x);
    check(x != NULL);
    d->decode(t->data, n, x);
    free(x);
}

static inline void use_meta(const nb_meta *m)
{
    int64_t i;
    double x;
    bool b;
    const char *s;
    size_t n, pos = 0;
    uint64_t count = 0, bytes = 0;
    nb_meta_int(m, &i);
    nb_meta_float(m, &x);
    nb_meta_bool(m, &b);
    if (nb_meta_string(m, &s, &n)) check(n == m->n_bytes);
    for (uint64_t k = 0; k < m->n && nb_meta_array_float(m, k, &x); k++)
        nb_meta_array_int(m, k, &i);
    while (nb_meta_next_string(m, &pos, &s, &n)) {
        count++;
        for (size_t k = 0; k < n; k++) bytes += (uint8_t)s[k];
    }
    check(bytes <= 255u * m->n_bytes);
    if (m->type == NB_META_ARRAY && m->elem == NB_META_STRING) check(count == m->n);
}

/* `parse` gives the same list or the same message both times, and the list can be used. */
static inline void fuzz_container(nb_status (*parse)(nb_tensor_list *, const uint8_t *, size_t,
                                                     nb_error *),
                                  const uint8_t *data, size_t n_bytes)
{
    nb_error err[2] = {0};
    nb_tensor_list l[2];
    nb_status st[2];
    for (int i = 0; i < 2; i++) st[i] = parse(&l[i], data, n_bytes, &err[i]);
    check(st[0] == st[1]);
    check(st[0] == NB_OK || st[0] == NB_EINPUT);
    check((st[0] == NB_OK) == (err[0].message[0] == 0));
    check(strcmp(err[0].message, err[1].message) == 0);
    check(l[0].n == l[1].n && l[0].n_meta == l[1].n_meta && l[0].n_st_meta == l[1].n_st_meta);
    for (size_t i = 0; i < l[0].n; i++) {
        check(strcmp(l[0].items[i].name, l[1].items[i].name) == 0);
        use_tensor(&l[0].items[i], data, n_bytes);
    }
    for (size_t i = 0; i < l[0].n_meta; i++) use_meta(&l[0].meta[i]);
    for (int i = 0; i < 2; i++) nb_tensor_list_fini(&l[i]);
}

#endif
