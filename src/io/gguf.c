/* Reader of GGUF files, versions 2 and 3, little-endian.
 *
 *   "GGUF" | u32 version | u64 n_tensors | u64 n_kv
 *   n_kv times:      string key | u32 type | value
 *   n_tensors times: string name | u32 n_dims | u64 dims[n_dims] | u32 ggml type | u64 offset
 *   padding to general.alignment | data
 *
 *   string: u64 length | bytes;  array: u32 element type | u64 n | n elements
 *
 * dims run from the innermost outwards; offsets count from the first byte of data. Source:
 * https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
#include <string.h>

#include "base/size.h"
#include "io/meta.h"
#include "io/tensor_list.h"

/* Limits of the specification. */
#define MAX_KEY_BYTES     65535
#define MAX_NAME_BYTES    64
#define DEFAULT_ALIGNMENT 32

/* The smallest records: they bound the counts of the header before anything is allocated. */
#define MIN_KV_BYTES     (8 + 4 + 1)
#define MIN_TENSOR_BYTES (8 + 4 + 8 + 4 + 8)

typedef struct cursor {
    const uint8_t *data;
    size_t n_bytes, pos;
} cursor;

/* *p: the next n bytes. */
static nb_status take(cursor *c, const uint8_t **p, size_t n, const char *what, nb_error *err)
{
    *p = NULL;
    if (n > c->n_bytes - c->pos) {
        return nb_fail(err, NB_EINPUT, "%s at byte %zu: needs %zu bytes, file has %zu more", what,
                       c->pos, n, c->n_bytes - c->pos);
    }
    *p = c->data + c->pos;
    c->pos += n;
    return NB_OK;
}

static nb_status read_u32(cursor *c, uint32_t *out, const char *what, nb_error *err)
{
    const uint8_t *p;
    NB_TRY(take(c, &p, sizeof *out, what, err));
    memcpy(out, p, sizeof *out);
    return NB_OK;
}

static nb_status read_u64(cursor *c, uint64_t *out, const char *what, nb_error *err)
{
    const uint8_t *p;
    NB_TRY(take(c, &p, sizeof *out, what, err));
    memcpy(out, p, sizeof *out);
    return NB_OK;
}

static nb_status read_string(cursor *c, const uint8_t **s, size_t *n_bytes, const char *what,
                             nb_error *err)
{
    uint64_t n;
    NB_TRY(read_u64(c, &n, what, err));
    NB_TRY(take(c, s, n, what, err));
    *n_bytes = n;
    return NB_OK;
}

static nb_status read_name(cursor *c, nb_arena *a, const char **out, size_t max_bytes,
                           const char *what, nb_error *err)
{
    const uint8_t *s;
    size_t n;
    NB_TRY(read_string(c, &s, &n, what, err));
    return nb_name_copy(a, out, (const char *)s, n, max_bytes, what, err);
}

/* ---- header -------------------------------------------------------------------------------- */

static nb_status check_version(uint32_t version, nb_error *err)
{
    if (version == 2 || version == 3) return NB_OK;
    if (version != 0 && (version & 0xffffu) == 0) {
        return nb_fail(err, NB_EINPUT, "version: big-endian GGUF file, expected little-endian");
    }
    if (version == 1) {
        return nb_fail(err, NB_EINPUT,
                       "version: GGUF 1 is obsolete, expected 2 or 3: convert the model again");
    }
    return nb_fail(err, NB_EINPUT, "version: GGUF %u, expected 2 or 3", version);
}

static nb_status check_count(const cursor *c, uint64_t n, size_t min_bytes, const char *what,
                             nb_error *err)
{
    size_t left = c->n_bytes - c->pos;
    if (n <= left / min_bytes) return NB_OK;
    return nb_fail(err, NB_EINPUT, "%s: %llu, but the %zu bytes that follow hold at most %zu", what,
                   (unsigned long long)n, left, left / min_bytes);
}

static nb_status read_header(cursor *c, uint64_t *n_tensors, uint64_t *n_kv, nb_error *err)
{
    const uint8_t *magic;
    uint32_t version;
    NB_TRY(take(c, &magic, 4, "magic", err));
    if (memcmp(magic, "GGUF", 4) != 0) {
        return nb_fail(err, NB_EINPUT, "magic: %02x %02x %02x %02x, expected \"GGUF\"", magic[0],
                       magic[1], magic[2], magic[3]);
    }
    NB_TRY(read_u32(c, &version, "version", err));
    NB_TRY(check_version(version, err));
    NB_TRY(read_u64(c, n_tensors, "tensor count", err));
    NB_TRY(read_u64(c, n_kv, "metadata count", err));
    NB_TRY(check_count(c, *n_tensors, MIN_TENSOR_BYTES, "tensor count", err));
    return check_count(c, *n_kv, MIN_KV_BYTES, "metadata count", err);
}

/* ---- metadata ------------------------------------------------------------------------------ */

static nb_status check_bools(const uint8_t *p, size_t n, nb_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] > 1) return nb_fail(err, NB_EINPUT, "bool: %d, expected 0 or 1", p[i]);
    }
    return NB_OK;
}

/* n values of a type of fixed size; the product does not overflow: n is 1 or was checked. */
static nb_status read_values(cursor *c, nb_meta_type type, uint64_t n, nb_error *err)
{
    const uint8_t *p;
    size_t bytes = n * nb_meta_bytes[type];
    NB_TRY(take(c, &p, bytes, "value", err));
    return type == NB_META_BOOL ? check_bools(p, bytes, err) : NB_OK;
}

static nb_status read_strings(cursor *c, uint64_t n, nb_error *err)
{
    const uint8_t *s;
    size_t bytes;
    for (uint64_t i = 0; i < n; i++) NB_TRY(read_string(c, &s, &bytes, "string in array", err));
    return NB_OK;
}

static nb_status read_type(cursor *c, nb_meta_type *out, const char *what, nb_error *err)
{
    uint32_t type;
    NB_TRY(read_u32(c, &type, what, err));
    if (type >= NB_N_META_TYPES) {
        return nb_fail(err, NB_EINPUT, "%s: %u, expected 0 to %d", what, type, NB_N_META_TYPES - 1);
    }
    *out = (nb_meta_type)type;
    return NB_OK;
}

static nb_status read_array(cursor *c, nb_meta *m, nb_error *err)
{
    NB_TRY(read_type(c, &m->elem, "array element type", err));
    if (m->elem == NB_META_ARRAY) {
        return nb_fail(err, NB_EINPUT, "nested array: arrays of arrays are not supported");
    }
    NB_TRY(read_u64(c, &m->n, "array length", err));
    bool strings = m->elem == NB_META_STRING;
    size_t min_bytes = strings ? sizeof(uint64_t) : nb_meta_bytes[m->elem];
    NB_TRY(check_count(c, m->n, min_bytes, "array length", err));
    m->data = c->data + c->pos;
    return strings ? read_strings(c, m->n, err) : read_values(c, m->elem, m->n, err);
}

static nb_status read_value(cursor *c, nb_meta *m, nb_error *err)
{
    NB_TRY(read_type(c, &m->type, "value type", err));
    nb_status st;
    if (m->type == NB_META_STRING) {
        st = read_string(c, &m->data, &m->n_bytes, "string", err);
        m->n = m->n_bytes;
        return st;
    }
    if (m->type == NB_META_ARRAY) {
        st = read_array(c, m, err);
    } else {
        m->data = c->data + c->pos;
        st = read_values(c, m->type, 1, err);
    }
    if (st == NB_OK) m->n_bytes = (size_t)(c->data + c->pos - m->data);
    return st;
}

static nb_status read_meta(cursor *c, nb_tensor_list *l, uint64_t n_kv, nb_error *err)
{
    l->meta = nb_arena_alloc(l->arena, n_kv, sizeof *l->meta);
    const char **keys = nb_arena_alloc(l->arena, n_kv, sizeof *keys);
    if (!l->meta || !keys) return nb_fail_memory(err, "metadata", n_kv * sizeof *l->meta);
    for (uint64_t i = 0; i < n_kv; i++) {
        nb_meta *m = &l->meta[i];
        nb_status st = read_name(c, l->arena, &m->key, MAX_KEY_BYTES, "key", err);
        if (st != NB_OK) return nb_wrap(err, st, "metadata %llu", (unsigned long long)i);
        st = read_value(c, m, err);
        if (st != NB_OK) return nb_wrap(err, st, "metadata \"%.80s\"", m->key);
        keys[i] = m->key;
        l->n_meta++;
    }
    return nb_names_unique(keys, l->n_meta, "metadata key", err);
}

static nb_status find_alignment(const nb_tensor_list *l, size_t *out, nb_error *err)
{
    *out = DEFAULT_ALIGNMENT;
    for (size_t i = 0; i < l->n_meta; i++) {
        if (strcmp(l->meta[i].key, "general.alignment") != 0) continue;
        int64_t a;
        if (l->meta[i].type != NB_META_U32 || !nb_meta_int(&l->meta[i], &a)) {
            return nb_fail(err, NB_EINPUT, "general.alignment: type %d, expected u32 (%d)",
                           (int)l->meta[i].type, NB_META_U32);
        }
        if (a <= 0 || (a & (a - 1)) != 0) {
            return nb_fail(err, NB_EINPUT, "general.alignment: %lld, expected a power of two",
                           (long long)a);
        }
        *out = (size_t)a;
    }
    return NB_OK;
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* Names for messages only: types of ggml that are not in nb_dtypes. */
static const struct {
    uint32_t id;
    const char *name;
} unsupported_types[] = {
    {4, "q4_2, removed from ggml"},
    {5, "q4_3, removed from ggml"},
    {9, "q8_1"},
    {15, "q8_k"},
    {16, "iq2_xxs"},
    {17, "iq2_xs"},
    {18, "iq3_xxs"},
    {19, "iq1_s"},
    {21, "iq3_s"},
    {22, "iq2_s"},
    {23, "iq4_xs"},
    {29, "iq1_m"},
    {34, "tq1_0"},
    {35, "tq2_0"},
    {40, "nvfp4"},
};

static nb_status find_dtype(nb_tensor *t, uint32_t id, nb_error *err)
{
    int d = nb_dtype_by_ggml(id);
    if (d >= 0) {
        t->dtype = (nb_dtype)d;
        return NB_OK;
    }
    const char *name = "unknown";
    for (size_t i = 0; i < NB_COUNT(unsupported_types); i++) {
        if (unsupported_types[i].id == id) name = unsupported_types[i].name;
    }
    return nb_fail(err, NB_EINPUT, "tensor \"%s\": ggml type %u (%s) is not supported", t->name, id,
                   name);
}

static nb_status read_dims(cursor *c, nb_tensor *t, nb_error *err)
{
    uint32_t n_dims;
    NB_TRY(read_u32(c, &n_dims, "number of dimensions", err));
    if (n_dims < 1 || n_dims > NB_MAX_DIMS) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": %u dimensions, expected 1 to %d", t->name,
                       n_dims, NB_MAX_DIMS);
    }
    t->n_dims = (int)n_dims;
    for (uint32_t i = 0; i < n_dims; i++) {
        uint64_t d;
        NB_TRY(read_u64(c, &d, "dimension", err));
        if (d == 0 || d > INT64_MAX) {
            return nb_fail(err, NB_EINPUT, "tensor \"%s\": dimension %u is %llu", t->name, i,
                           (unsigned long long)d);
        }
        t->dims[n_dims - 1 - i] = (int64_t)d;
    }
    return NB_OK;
}

static nb_status read_tensor(cursor *c, nb_arena *a, nb_tensor *t, uint64_t *offset, nb_error *err)
{
    uint32_t type;
    NB_TRY(read_name(c, a, &t->name, MAX_NAME_BYTES, "tensor name", err));
    NB_TRY(read_dims(c, t, err));
    NB_TRY(read_u32(c, &type, "tensor type", err));
    NB_TRY(find_dtype(t, type, err));
    NB_TRY(read_u64(c, offset, "tensor offset", err));
    return nb_tensor_size(t, &t->n_bytes, err);
}

static nb_status read_tensors(cursor *c, nb_tensor_list *l, uint64_t n, uint64_t *offsets,
                              nb_error *err)
{
    l->items = nb_arena_alloc(l->arena, n, sizeof *l->items);
    const char **names = nb_arena_alloc(l->arena, n, sizeof *names);
    if (!l->items || !names) return nb_fail_memory(err, "tensor list", n * sizeof *l->items);
    for (uint64_t i = 0; i < n; i++) {
        nb_status st = read_tensor(c, l->arena, &l->items[i], &offsets[i], err);
        if (st != NB_OK) return nb_wrap(err, st, "tensor record %llu", (unsigned long long)i);
        names[i] = l->items[i].name;
        l->n++;
    }
    return nb_names_unique(names, l->n, "tensor", err);
}

static nb_status place_tensor(nb_tensor *t, uint64_t offset, size_t alignment, const uint8_t *data,
                              size_t n_bytes, nb_error *err)
{
    if (offset % alignment != 0) {
        return nb_fail(err, NB_EINPUT, "tensor \"%s\": offset %llu, expected a multiple of %zu",
                       t->name, (unsigned long long)offset, alignment);
    }
    if (offset > n_bytes || t->n_bytes > n_bytes - offset) {
        return nb_fail(err, NB_EINPUT,
                       "tensor \"%s\": %zu bytes at offset %llu reach past the end of the data "
                       "(%zu bytes)",
                       t->name, t->n_bytes, (unsigned long long)offset, n_bytes);
    }
    t->data = data + offset;
    return NB_OK;
}

static nb_status check_overlap(const nb_tensor_list *l, nb_error *err)
{
    const nb_tensor **order;
    NB_TRY(nb_tensor_list_by_place(l, &order, err));
    for (size_t i = 1; i < l->n; i++) {
        if (order[i - 1]->data + order[i - 1]->n_bytes > order[i]->data) {
            return nb_fail(err, NB_EINPUT, "tensor \"%s\": its data overlaps tensor \"%s\"",
                           order[i]->name, order[i - 1]->name);
        }
    }
    return NB_OK;
}

static nb_status parse_file(cursor *c, nb_tensor_list *l, nb_error *err)
{
    uint64_t n_tensors, n_kv;
    size_t alignment;
    NB_TRY(read_header(c, &n_tensors, &n_kv, err));
    NB_TRY(read_meta(c, l, n_kv, err));
    NB_TRY(find_alignment(l, &alignment, err));
    uint64_t *offsets = nb_arena_alloc(l->arena, n_tensors, sizeof *offsets);
    if (!offsets) return nb_fail_memory(err, "tensor offsets", n_tensors * sizeof *offsets);
    NB_TRY(read_tensors(c, l, n_tensors, offsets, err));
    /* A file without tensors (a vocabulary) may end before the data would begin. */
    size_t begin = nb_align_up(c->pos, alignment);
    if (begin > c->n_bytes) begin = c->n_bytes;
    for (size_t i = 0; i < l->n; i++) {
        NB_TRY(place_tensor(&l->items[i], offsets[i], alignment, c->data + begin,
                            c->n_bytes - begin, err));
    }
    return check_overlap(l, err);
}

nb_status nb_gguf_parse(nb_tensor_list *out, const uint8_t *data, size_t n_bytes, nb_error *err)
{
    NB_TRY(nb_tensor_list_init(out, err));
    cursor c = {.data = data, .n_bytes = n_bytes};
    nb_status st = parse_file(&c, out, err);
    if (st != NB_OK) nb_tensor_list_fini(out);
    return st;
}
