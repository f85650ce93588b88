/* Reader of safetensors headers.
 *
 *   u64 n | n bytes of JSON | data
 *   {"__metadata__": {"key": "value", ...},
 *    "name": {"dtype": "BF16", "shape": [576, 1536], "data_offsets": [begin, end]}, ...}
 *
 * Source: https://github.com/huggingface/safetensors, "Format" (0.4). Offsets count from the first
 * byte of data; the tensors must cover it exactly. Stricter than the original in one point: a
 * tensor has these three fields and no other. */
#include <jansson.h>
#include <string.h>

#include "io/tensor_list.h"

#define MAX_HEADER_BYTES 100000000u /* the limit of the reference implementation */
#define CHECKSUM_PREFIX  "xxh3:"
#define CHECKSUM_DIGITS  32

/* The bytes behind the header. */
typedef struct section {
    const uint8_t *data;
    size_t n_bytes;
} section;

static nb_status read_header_size(size_t *out, const uint8_t *data, size_t n_bytes, nb_error *err)
{
    uint64_t n;
    *out = 0;
    if (n_bytes < sizeof n) {
        return nb_fail(err, NB_EINPUT, "header length: file has %zu bytes, expected at least 8",
                       n_bytes);
    }
    memcpy(&n, data, sizeof n);
    if (n > MAX_HEADER_BYTES) {
        return nb_fail(err, NB_EINPUT, "header length: %llu bytes, expected at most %u",
                       (unsigned long long)n, MAX_HEADER_BYTES);
    }
    if (n > n_bytes - sizeof n) {
        return nb_fail(err, NB_EINPUT, "header is truncated: %llu bytes announced, file has %zu",
                       (unsigned long long)n, n_bytes - sizeof n);
    }
    if (n == 0 || data[sizeof n] != '{') {
        return nb_fail(err, NB_EINPUT, "header: expected a JSON object that begins with '{'");
    }
    *out = (size_t)n;
    return NB_OK;
}

static nb_status parse_dtype(nb_tensor *t, const json_t *v, nb_error *err)
{
    if (!json_is_string(v)) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": dtype: expected a string", t->name);
    }
    int d = nb_dtype_by_safetensors(json_string_value(v));
    if (d < 0) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": unknown dtype \"%.40s\"", t->name,
                       json_string_value(v));
    }
    t->dtype = (nb_dtype)d;
    return NB_OK;
}

/* Element i of the array `field`. */
static nb_status parse_count(int64_t *out, const nb_tensor *t, const json_t *array, size_t i,
                             const char *field, nb_error *err)
{
    const json_t *v = json_array_get(array, i);
    if (!json_is_integer(v)) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": %s[%zu]: expected an integer", t->name,
                       field, i);
    }
    *out = json_integer_value(v);
    if (*out < 0) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": %s[%zu]: %lld is negative", t->name, field,
                       i, (long long)*out);
    }
    return NB_OK;
}

static nb_status parse_shape(nb_tensor *t, const json_t *v, nb_error *err)
{
    if (!json_is_array(v)) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": shape: expected an array", t->name);
    }
    if (json_array_size(v) > NB_MAX_DIMS) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": shape: %zu dimensions, expected at most %d",
                       t->name, json_array_size(v), NB_MAX_DIMS);
    }
    t->n_dims = (int)json_array_size(v);
    for (int i = 0; i < t->n_dims; i++) {
        NB_TRY(parse_count(&t->dims[i], t, v, (size_t)i, "shape", err));
    }
    return NB_OK;
}

/* dtype and shape are known: the range must be inside the data and of the size they call for. */
static nb_status parse_offsets(nb_tensor *t, const json_t *v, section buffer, nb_error *err)
{
    if (!json_is_array(v) || json_array_size(v) != 2) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": data_offsets: expected [begin, end]",
                       t->name);
    }
    int64_t begin, end;
    NB_TRY(parse_count(&begin, t, v, 0, "data_offsets", err));
    NB_TRY(parse_count(&end, t, v, 1, "data_offsets", err));
    if (begin > end) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": data_offsets: begin %lld is after end %lld",
                       t->name, (long long)begin, (long long)end);
    }
    if ((uint64_t)end > buffer.n_bytes) {
        return nb_fail(err, NB_EINPUT,
                       "tensor \"%s\": data_offsets: end %lld is past the end of the data (%zu)",
                       t->name, (long long)end, buffer.n_bytes);
    }
    size_t expected;
    NB_TRY(nb_tensor_size(t, &expected, err));
    t->data = buffer.data + begin;
    t->n_bytes = (size_t)(end - begin);
    if (t->n_bytes != expected) {
        return nb_fail(err, NB_EINPUT,
                       "tensor \"%s\": data_offsets: %zu bytes, dtype and shape need %zu", t->name,
                       t->n_bytes, expected);
    }
    return NB_OK;
}

/* The checksum that a nibble writer records. */
static nb_status find_hash(nb_tensor *t, const nb_tensor_list *l, const json_t *meta, nb_error *err)
{
    if (!meta) return NB_OK;
    char *key = nb_arena_printf(l->arena, CHECKSUM_PREFIX "%s", t->name);
    if (!key) return nb_fail_memory(err, "checksum", strlen(t->name));
    const char *hex = json_string_value(json_object_get(meta, key));
    if (!hex) return NB_OK;
    if (strlen(hex) != CHECKSUM_DIGITS || strspn(hex, "0123456789abcdef") != CHECKSUM_DIGITS) {
        return nb_fail(err, NB_EINPUT, "__metadata__: \"%s\": expected %d hexadecimal digits", key,
                       CHECKSUM_DIGITS);
    }
    t->hash = nb_arena_strndup(l->arena, hex, CHECKSUM_DIGITS);
    return t->hash ? NB_OK : nb_fail_memory(err, "checksum", CHECKSUM_DIGITS);
}

static nb_status parse_tensor(nb_tensor *t, const nb_tensor_list *l, const char *name,
                              const json_t *v, section buffer, nb_error *err)
{
    NB_TRY(
        nb_name_copy(l->arena, &t->name, name, strlen(name), MAX_HEADER_BYTES, "tensor name", err));
    if (!json_is_object(v) || json_object_size(v) != 3) {
        return nb_fail(err, NB_EINPUT,
                       "tensor \"%s\": expected an object of dtype, shape and data_offsets", name);
    }
    NB_TRY(parse_dtype(t, json_object_get(v, "dtype"), err));
    NB_TRY(parse_shape(t, json_object_get(v, "shape"), err));
    return parse_offsets(t, json_object_get(v, "data_offsets"), buffer, err);
}

static nb_status parse_meta(nb_tensor_list *l, json_t *meta, nb_error *err)
{
    if (!json_is_object(meta)) {
        return nb_fail(err, NB_EINPUT, "__metadata__: expected an object");
    }
    const char **pairs = nb_arena_alloc(l->arena, json_object_size(meta), 2 * sizeof *pairs);
    if (!pairs) return nb_fail_memory(err, "__metadata__", json_object_size(meta));
    l->st_meta = pairs;
    const char *key;
    json_t *v;
    json_object_foreach (meta, key, v) {
        if (!json_is_string(v)) {
            return nb_fail(err, NB_EINPUT, "__metadata__: \"%.80s\": expected a string", key);
        }
        pairs[0] = nb_arena_strndup(l->arena, key, strlen(key));
        pairs[1] = nb_arena_strndup(l->arena, json_string_value(v), json_string_length(v));
        if (!pairs[0] || !pairs[1]) return nb_fail_memory(err, "__metadata__", strlen(key));
        pairs += 2;
        l->n_st_meta++;
    }
    return NB_OK;
}

/* No holes, no overlaps, nothing behind the last tensor. */
static nb_status check_cover(const nb_tensor_list *l, section buffer, nb_error *err)
{
    const nb_tensor **order;
    NB_TRY(nb_tensor_list_by_place(l, &order, err));
    size_t end = 0;
    for (size_t i = 0; i < l->n; i++) {
        const nb_tensor *t = order[i];
        size_t begin = (size_t)(t->data - buffer.data);
        if (begin != end) {
            return nb_fail(err, NB_EINPUT,
                           "tensor \"%s\": data_offsets: begin %zu, expected %zu: %s", t->name,
                           begin, end,
                           begin < end ? "it overlaps the tensor before it"
                                       : "there is a hole in front of it");
        }
        end += t->n_bytes;
    }
    if (end != buffer.n_bytes) {
        return nb_fail(err, NB_EINPUT, "data: %zu trailing bytes behind the last tensor",
                       buffer.n_bytes - end);
    }
    return NB_OK;
}

static nb_status parse_root(nb_tensor_list *l, json_t *root, section buffer, nb_error *err)
{
    json_t *meta = json_object_get(root, "__metadata__");
    if (meta) NB_TRY(parse_meta(l, meta, err));
    l->items = nb_arena_alloc(l->arena, json_object_size(root), sizeof *l->items);
    if (!l->items) return nb_fail_memory(err, "tensor list", json_object_size(root));
    const char *name;
    json_t *v;
    json_object_foreach (root, name, v) {
        if (v == meta) continue;
        nb_tensor *t = &l->items[l->n++];
        NB_TRY(parse_tensor(t, l, name, v, buffer, err));
        NB_TRY(find_hash(t, l, meta, err));
    }
    return check_cover(l, buffer, err);
}

static nb_status fail_json(const json_error_t *e, size_t n_bytes, nb_error *err)
{
    if (json_error_code(e) == json_error_out_of_memory) {
        return nb_fail_memory(err, "header", n_bytes);
    }
    return nb_fail(err, NB_EINPUT, "header is not valid JSON: %s (byte %d)", e->text, e->position);
}

nb_status nb_safetensors_parse(nb_tensor_list *out, const uint8_t *data, size_t n_bytes,
                               nb_error *err)
{
    *out = (nb_tensor_list){0};
    size_t n;
    NB_TRY(read_header_size(&n, data, n_bytes, err));
    /* jansson bounds the nesting (2048) and refuses bad UTF-8 and NUL in strings. */
    json_error_t e;
    json_t *root = json_loadb((const char *)data + 8, n, JSON_REJECT_DUPLICATES, &e);
    if (!root) return fail_json(&e, n, err);
    section buffer = {data + 8 + n, n_bytes - 8 - n};
    nb_status st;
    NB_GOTO(st, nb_tensor_list_init(out, err));
    NB_GOTO(st, parse_root(out, root, buffer, err));
done:
    json_decref(root);
    if (st != NB_OK) nb_tensor_list_fini(out);
    return st;
}
