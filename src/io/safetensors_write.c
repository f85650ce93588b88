/* Writer of safetensors files; the format is described in safetensors.c.
 *
 * Checksums come first in the file and are made of all the data, so the data is read twice: once
 * to hash, once to write. It is never held in memory. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/size.h"
#include "io/tensor_list.h"

#define DATA_ALIGN 64 /* bytes: of the first tensor, for vector loads from the mapping */

static nb_status check_tensor(const nb_tensor *t, nb_error *err)
{
    if (!nb_dtypes[t->dtype].safetensors) {
        return nb_fail(err, NB_EUSAGE, "tensor \"%s\": safetensors cannot hold %s", t->name,
                       nb_dtypes[t->dtype].name);
    }
    size_t expected;
    NB_TRY(nb_tensor_size(t, &expected, err));
    if (expected != t->n_bytes) {
        return nb_fail(err, NB_EUSAGE, "tensor \"%s\": %zu bytes given, type and shape need %zu",
                       t->name, t->n_bytes, expected);
    }
    return NB_OK;
}

/* Sets key to v and takes v over, as jansson's _new functions do; a key may come only once. */
static nb_status set_once(json_t *object, const char *key, json_t *v, nb_error *err)
{
    if (json_object_get(object, key)) {
        json_decref(v);
        return nb_fail(err, NB_EUSAGE, "safetensors header: \"%s\" appears twice", key);
    }
    if (json_object_set_new(object, key, v) == 0) return NB_OK;
    return nb_fail(err, NB_EUSAGE, "safetensors header: \"%.80s\": not valid UTF-8, or no memory",
                   key);
}

static nb_status add_hash(json_t *meta, const nb_tensor *t, nb_error *err)
{
    char hex[NB_HASH_CHARS];
    nb_hash(hex, t->data, t->n_bytes);
    size_t n = strlen(t->name) + sizeof "xxh3:";
    char *key = malloc(n);
    if (!key) return nb_fail_memory(err, t->name, n);
    snprintf(key, n, "xxh3:%s", t->name);
    nb_status st = set_once(meta, key, json_string(hex), err);
    free(key);
    return st;
}

static json_t *describe_tensor(const nb_tensor *t, size_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->n_dims; i++) json_array_append_new(shape, json_integer(t->dims[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", nb_dtypes[t->dtype].safetensors, "shape",
                     shape, "data_offsets", (json_int_t)begin, (json_int_t)(begin + t->n_bytes));
}

/* Fills root with the metadata, then the tensors. */
static nb_status describe(json_t *root, const nb_tensor *tensors, size_t n, const char *const *meta,
                          size_t n_meta, nb_error *err)
{
    json_t *m = json_object();
    NB_TRY(set_once(root, "__metadata__", m, err));
    for (size_t i = 0; i < n_meta; i++) {
        NB_TRY(set_once(m, meta[2 * i], json_string(meta[2 * i + 1]), err));
    }
    size_t begin = 0;
    for (size_t i = 0; i < n; i++) {
        const nb_tensor *t = &tensors[i];
        NB_TRY(check_tensor(t, err));
        NB_TRY(add_hash(m, t, err));
        NB_TRY(set_once(root, t->name, describe_tensor(t, begin), err));
        begin += t->n_bytes;
    }
    return NB_OK;
}

/* Length field and JSON, padded with spaces. */
static nb_status write_header(nb_outfile *f, const json_t *root, nb_error *err)
{
    char *text = json_dumps(root, JSON_COMPACT);
    if (!text) return nb_fail(err, NB_ERESOURCE, "out of memory: safetensors header");
    uint64_t n = strlen(text);
    uint64_t padded = nb_align_up(n + 8, DATA_ALIGN) - 8;
    char spaces[DATA_ALIGN];
    memset(spaces, ' ', sizeof spaces);
    nb_status st;
    NB_GOTO(st, nb_outfile_write(f, &padded, sizeof padded, err));
    NB_GOTO(st, nb_outfile_write(f, text, n, err));
    NB_GOTO(st, nb_outfile_write(f, spaces, padded - n, err));
done:
    free(text);
    return st;
}

nb_status nb_safetensors_write(const char *path, const nb_tensor *tensors, size_t n,
                               const char *const *meta, size_t n_meta, nb_error *err)
{
    nb_outfile *f = NULL;
    json_t *root = json_object();
    if (!root) return nb_fail_memory(err, path, 0);
    nb_status st;
    NB_GOTO(st, describe(root, tensors, n, meta, n_meta, err));
    NB_GOTO(st, nb_outfile_open(&f, path, err));
    NB_GOTO(st, write_header(f, root, err));
    for (size_t i = 0; i < n; i++) {
        NB_GOTO(st, nb_outfile_write(f, tensors[i].data, tensors[i].n_bytes, err));
    }
    st = nb_outfile_commit(f, err);
    f = NULL; /* commit frees it in every case */
done:
    nb_outfile_abort(f);
    json_decref(root);
    return st;
}
