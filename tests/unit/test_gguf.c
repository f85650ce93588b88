/* GGUF: a good file, typed access to its metadata, and every field that can lie. */
#include "container_util.h"

/* ---- files from a description -------------------------------------------------------------- */

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q4_K = 12 }; /* ggml's numbers */

typedef struct tensor_spec {
    const char *name;
    uint32_t type, n_dims;
    uint64_t dims[5]; /* as in the file: innermost first */
    uint64_t offset;
} tensor_spec;

/* A literal with its length (it holds NULs). */
#define BYTES(s) s, sizeof(s) - 1
/* Little-endian numbers below 256 as literals: U64("\x05"). */
#define U32(b)       b "\0\0\0"
#define U64(b)       b "\0\0\0\0\0\0\0"
#define KEY_K        U64("\x01") "k"
#define STRING_AB    U64("\x02") "ab"
#define KV_ALIGNMENT U64("\x11") "general.alignment"

typedef struct file_spec {
    const char *name;
    const char *expected; /* part of the message; NULL: a good file */
    /* Left 0: "GGUF", 3, and the real counts. */
    const char *magic;
    uint32_t version;
    uint64_t n_tensors, n_kv;
    const char *kv; /* the metadata records */
    size_t kv_bytes;
    uint64_t kvs; /* their number */
    tensor_spec tensors[3];
    size_t data_bytes;
    size_t cut; /* bytes removed from the end of the file */
} file_spec;

static void append_tensor(nb_strbuf *b, const tensor_spec *t)
{
    append_u64(b, strlen(t->name));
    nb_strbuf_puts(b, t->name);
    append_u32(b, t->n_dims);
    for (uint32_t i = 0; i < t->n_dims && i < 5; i++) append_u64(b, t->dims[i]);
    append_u32(b, t->type);
    append_u64(b, t->offset);
}

static void append_gguf(nb_strbuf *b, const file_spec *f)
{
    uint64_t n = 0;
    while (n < NB_COUNT(f->tensors) && f->tensors[n].name) n++;
    nb_strbuf_append(b, f->magic ? f->magic : "GGUF", 4);
    append_u32(b, f->version ? f->version : 3);
    append_u64(b, f->n_tensors ? f->n_tensors : n);
    append_u64(b, f->n_kv ? f->n_kv : f->kvs);
    nb_strbuf_append(b, f->kv, f->kv_bytes);
    for (uint64_t i = 0; i < n; i++) append_tensor(b, &f->tensors[i]);
    while (b->n_bytes % 32) nb_strbuf_append(b, "", 1);
    append_data(b, f->data_bytes);
    b->n_bytes -= f->cut;
}

/* ---- good files ---------------------------------------------------------------------------- */

/* clang-format off */
#define META_RECORDS                                                                               \
    U64("\x02") "u8"   U32("\x00") "\xff"                                                          \
    U64("\x02") "i8"   U32("\x01") "\xff"                                                          \
    U64("\x03") "u16"  U32("\x02") "\xfe\xff"                                                      \
    U64("\x03") "i16"  U32("\x03") "\xfe\xff"                                                      \
    U64("\x03") "u32"  U32("\x04") "\xff\xff\xff\xff"                                              \
    U64("\x03") "i32"  U32("\x05") "\xff\xff\xff\xff"                                              \
    U64("\x03") "f32"  U32("\x06") "\0\0\x80\x3e"                                                  \
    U64("\x04") "bool" U32("\x07") "\x01"                                                          \
    U64("\x03") "str"  U32("\x08") STRING_AB                                                       \
    U64("\x04") "ints" U32("\x09") U32("\x03") U64("\x02") "\x01\0\xff\xff"                        \
    U64("\x04") "strs" U32("\x09") U32("\x08") U64("\x03") STRING_AB U64("\x00") STRING_AB         \
    U64("\x04") "none" U32("\x09") U32("\x08") U64("\x00")                                         \
    U64("\x04") "bits" U32("\x09") U32("\x07") U64("\x03") "\0\x01\0"                              \
    U64("\x03") "u64"  U32("\x0a") "\xff\xff\xff\xff\xff\xff\xff\xff"                              \
    U64("\x03") "i64"  U32("\x0b") "\xff\xff\xff\xff\xff\xff\xff\xff"                              \
    U64("\x03") "f64"  U32("\x0c") "\0\0\0\0\0\0\xe0\x3f"                                          \
    KV_ALIGNMENT       U32("\x04") U32("\x10")
/* clang-format on */

static const file_spec good_files[] = {
    {.name = "empty"},
    {.name = "version-2",
     .version = 2,
     .tensors = {{"a", F32, 1, {4}, 0}, {"b", F16, 2, {3, 2}, 32}},
     .data_bytes = 44},
    {.name = "backwards-with-gap", /* the second tensor comes first, 32 unused bytes in between */
     .tensors = {{"a", Q4_0, 2, {32, 2}, 64}, {"b", F32, 4, {1, 2, 1, 2}, 0}},
     .data_bytes = 128},
    {.name = "meta",
     .kv = BYTES(META_RECORDS),
     .kvs = 17,
     .tensors = {{"a", F32, 1, {1}, 0}, {"b", F32, 1, {1}, 16}},
     .data_bytes = 20},
};

static void open_good(nb_tensor_list *l, uint8_t **copy, size_t i)
{
    nb_strbuf b;
    nb_error err = {0};
    nb_strbuf_init(&b, SIZE_MAX / 2);
    append_gguf(&b, &good_files[i]);
    nb_status st = parse_copy(nb_gguf_parse, l, &b, copy, &err);
    nb_strbuf_fini(&b);
    if (st != NB_OK) fail_msg("%s: %s", good_files[i].name, err.message);
}

static void test_good_files(void **state)
{
    NB_UNUSED(state);
    static const size_t counts[] = {0, 2, 2, 2};
    for (size_t i = 0; i < NB_COUNT(good_files); i++) {
        nb_tensor_list l;
        uint8_t *copy;
        open_good(&l, &copy, i);
        assert_int_equal(l.n, counts[i]);
        assert_int_equal(l.n_meta, good_files[i].kvs);
        nb_tensor_list_fini(&l);
        free(copy);
    }
}

static void test_tensor_fields(void **state)
{
    NB_UNUSED(state);
    nb_tensor_list l;
    uint8_t *copy;
    open_good(&l, &copy, 1);
    const nb_tensor *b = &l.items[1];
    assert_string_equal(b->name, "b");
    assert_int_equal(b->dtype, NB_F16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->dims[0], 2); /* outermost first */
    assert_int_equal(b->dims[1], 3);
    assert_int_equal(b->n_bytes, 12);
    assert_int_equal(b->data[0], 32); /* the data count 0, 1, 2, ... */
    nb_tensor_list_fini(&l);
    free(copy);

    open_good(&l, &copy, 2);
    assert_int_equal(l.items[0].data[0], 64);
    assert_int_equal(l.items[0].n_bytes, 36);
    assert_int_equal(l.items[1].data[0], 0);
    nb_tensor_list_fini(&l);
    free(copy);
}

static const nb_meta *find(const nb_tensor_list *l, const char *key)
{
    for (size_t i = 0; i < l->n_meta; i++) {
        if (strcmp(l->meta[i].key, key) == 0) return &l->meta[i];
    }
    fail_msg("no key %s", key);
    return NULL;
}

static void test_meta_numbers(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *key;
        bool is_int, is_float;
        int64_t i;
        double x;
    } cases[] = {
        {"u8", true, true, 255, 255},
        {"i8", true, true, -1, -1},
        {"u16", true, true, 65534, 65534},
        {"i16", true, true, -2, -2},
        {"u32", true, true, UINT32_MAX, UINT32_MAX},
        {"i32", true, true, -1, -1},
        {"f32", false, true, 0, 0.25},
        {"bool", true, false, 1, 0},
        {"str", false, false, 0, 0},
        {"ints", false, false, 0, 0},
        {"u64", false, false, 0, 0},
        {"i64", true, true, -1, -1},
        {"f64", false, true, 0, 0.5},
    };
    nb_tensor_list l;
    uint8_t *copy;
    open_good(&l, &copy, 3);
    for (size_t i = 0; i < NB_COUNT(cases); i++) {
        int64_t n = 0;
        double x = 0;
        assert_int_equal(nb_meta_int(find(&l, cases[i].key), &n), cases[i].is_int);
        assert_int_equal(nb_meta_float(find(&l, cases[i].key), &x), cases[i].is_float);
        if (cases[i].is_int) assert_int_equal(n, cases[i].i);
        if (cases[i].is_float) assert_true(x == cases[i].x);
    }
    bool yes = false;
    assert_true(nb_meta_bool(find(&l, "bool"), &yes) && yes);
    assert_false(nb_meta_bool(find(&l, "u8"), &yes));
    assert_false(nb_meta_int(NULL, &(int64_t){0}));
    nb_tensor_list_fini(&l);
    free(copy);
}

static void test_meta_strings_and_arrays(void **state)
{
    NB_UNUSED(state);
    nb_tensor_list l;
    uint8_t *copy;
    const char *s;
    size_t n, pos = 0;
    int64_t i;
    double x;
    open_good(&l, &copy, 3);
    assert_true(nb_meta_string(find(&l, "str"), &s, &n));
    assert_int_equal(n, 2);
    assert_memory_equal(s, "ab", 2);
    assert_false(nb_meta_string(find(&l, "strs"), &s, &n));

    const nb_meta *strs = find(&l, "strs"), *ints = find(&l, "ints");
    assert_int_equal(strs->n, 3);
    static const size_t lengths[] = {2, 0, 2};
    for (int k = 0; k < 3; k++) {
        assert_true(nb_meta_next_string(strs, &pos, &s, &n));
        assert_int_equal(n, lengths[k]);
    }
    assert_memory_equal(s, "ab", 2);
    assert_false(nb_meta_next_string(strs, &pos, &s, &n));
    pos = 0;
    assert_false(nb_meta_next_string(find(&l, "none"), &pos, &s, &n));
    assert_false(nb_meta_next_string(ints, &pos, &s, &n));

    assert_true(nb_meta_array_int(ints, 1, &i) && i == -1);
    assert_true(nb_meta_array_float(ints, 0, &x) && x == 1);
    assert_false(nb_meta_array_int(ints, 2, &i));
    assert_false(nb_meta_array_int(strs, 0, &i));
    nb_tensor_list_fini(&l);
    free(copy);
}

/* ---- bad files ----------------------------------------------------------------------------- */

#define ONE_F32 .tensors = {{"w", F32, 1, {2}, 0}}, .data_bytes = 8
#define NAME_65 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

static const file_spec bad_files[] = {
    /* header */
    {"cut-in-magic", "magic at byte 0: needs 4 bytes", .cut = 29},
    {"magic", "expected \"GGUF\"", .magic = "GGML"},
    {"cut-in-version", "version at byte 4", .cut = 26},
    {"version-1", "GGUF 1 is obsolete", .version = 1},
    {"version-4", "GGUF 4, expected 2 or 3", .version = 4},
    {"big-endian", "big-endian", .version = 0x03000000},
    {"cut-in-counts", "metadata count at byte 16", .cut = 12},
    {"tensor-count-bomb", "tensor count: 18446744073709551615", .n_tensors = UINT64_MAX, ONE_F32},
    {"tensor-count-too-big", "tensor record 1: tensor name", .n_tensors = 2,
     .tensors = {{"w", F32, 1, {2}, 0}}, .data_bytes = 64},
    {"kv-count-bomb", "metadata count: 4294967296", .n_kv = 1ull << 32, ONE_F32},
    {"kv-count-too-big", "tensor record 0", .n_kv = 1, ONE_F32},
    /* metadata */
    {"key-length-bomb", "metadata 0: key at byte 32", .kvs = 1,
     .kv = BYTES("\xff\xff\xff\xff\xff\xff\xff\x7f"
                 "abcdefgh")},
    {"key-length-over-limit", "key: 65536 bytes, expected at most 65535", .kvs = 1,
     .kv = BYTES("\0\0\x01\0\0\0\0\0"), .data_bytes = 70000},
    {"key-empty", "key is empty", .kvs = 1, .kv = BYTES(U64("\x00") U32("\x00") "\x01")},
    {"key-bad-utf8", "not printable UTF-8", .kvs = 1,
     .kv = BYTES(U64("\x02") "\xc3(" U32("\x00") "\x01")},
    {"key-control", "not printable UTF-8", .kvs = 1,
     .kv = BYTES(U64("\x02") "k\n" U32("\x00") "\x01")},
    {"key-duplicate", "metadata key \"k\" appears twice", .kvs = 2,
     .kv = BYTES(KEY_K U32("\x00") "\x01" KEY_K U32("\x04") U32("\x01"))},
    {"value-type", "metadata \"k\": value type: 13, expected 0 to 12", .kvs = 1,
     .kv = BYTES(KEY_K U32("\x0d") U64("\x01"))},
    {"value-cut", "metadata \"k\": value at byte 37", .kvs = 1, .cut = 20,
     .kv = BYTES(KEY_K U32("\x0a") U64("\x01"))},
    {"bool-2", "bool: 2, expected 0 or 1", .kvs = 1, .kv = BYTES(KEY_K U32("\x07") "\x02")},
    {"bool-in-array", "bool: 255, expected 0 or 1", .kvs = 1,
     .kv = BYTES(KEY_K U32("\x09") U32("\x07") U64("\x02") "\x01\xff")},
    {"string-length-bomb", "string at byte 45", .kvs = 1,
     .kv = BYTES(KEY_K U32("\x08") "\xff\xff\xff\xff\xff\xff\xff\xff")},
    {"array-length-bomb", "array length: 1152921504606846976", .kvs = 1,
     .kv = BYTES(KEY_K U32("\x09") U32("\x0a") "\0\0\0\0\0\0\0\x10")},
    {"array-length-product", "array length: 2305843009213693953", .kvs = 1, /* * 8 wraps to 8 */
     .kv = BYTES(KEY_K U32("\x09") U32("\x0a") "\x01\0\0\0\0\0\0\x20" U64("\x01"))},
    {"array-of-strings-bomb", "array length: 4294967295", .kvs = 1,
     .kv = BYTES(KEY_K U32("\x09") U32("\x08") "\xff\xff\xff\xff\0\0\0\0")},
    {"array-string-past-end", "string in array", .kvs = 1,
     .kv = BYTES(KEY_K U32("\x09") U32("\x08") U64("\x01") "\xff\xff\0\0\0\0\0\0")},
    {"array-nested", "nested array", .kvs = 1,
     .kv = BYTES(KEY_K U32("\x09") U32("\x09") U64("\x01") U32("\x00") U64("\x00"))},
    {"array-element-type", "array element type: 99", .kvs = 1,
     .kv = BYTES(KEY_K U32("\x09") U32("\x63") U64("\x00"))},
    {"alignment-zero", "general.alignment: 0, expected a power of two", .kvs = 1,
     .kv = BYTES(KV_ALIGNMENT U32("\x04") U32("\x00"))},
    {"alignment-24", "general.alignment: 24, expected a power of two", .kvs = 1,
     .kv = BYTES(KV_ALIGNMENT U32("\x04") U32("\x18"))},
    {"alignment-type", "general.alignment: type 8", .kvs = 1,
     .kv = BYTES(KV_ALIGNMENT U32("\x08") STRING_AB)},
    {"alignment-huge", "past the end of the data", .kvs = 1,
     .kv = BYTES(KV_ALIGNMENT U32("\x04") "\0\0\0\x80"), ONE_F32},
    /* tensors */
    {"name-empty", "tensor name is empty", .tensors = {{"", F32, 1, {2}, 0}}, .data_bytes = 8},
    {"name-too-long", "tensor name: 65 bytes, expected at most 64",
     .tensors = {{NAME_65, F32, 1, {2}, 0}}, .data_bytes = 8},
    {"name-control", "not printable UTF-8", .tensors = {{"w\x1b[2J", F32, 1, {2}, 0}},
     .data_bytes = 8},
    {"name-duplicate", "tensor \"w\" appears twice",
     .tensors = {{"w", F32, 1, {2}, 0}, {"w", F32, 1, {2}, 32}}, .data_bytes = 40},
    {"dims-none", "0 dimensions, expected 1 to 4", .tensors = {{"w", F32, 0, {0}, 0}},
     .data_bytes = 8},
    {"dims-five", "5 dimensions, expected 1 to 4", .tensors = {{"w", F32, 5, {1, 1, 1, 1, 2}, 0}},
     .data_bytes = 8},
    {"dims-bomb", "4294967295 dimensions", .tensors = {{"w", F32, UINT32_MAX, {1, 1}, 0}},
     .data_bytes = 8},
    {"dim-zero", "dimension 1 is 0", .tensors = {{"w", F32, 2, {2, 0}, 0}}, .data_bytes = 8},
    {"dim-above-int64", "dimension 0 is 9223372036854775808",
     .tensors = {{"w", F32, 1, {1ull << 63}, 0}}, .data_bytes = 8},
    {"dims-product", "product of its dimensions overflows",
     .tensors = {{"w", F32, 3, {1ull << 40, 1ull << 40, 1ull << 40}, 0}}, .data_bytes = 8},
    {"dims-bytes", "overflow the size", .tensors = {{"w", F32, 1, {1ull << 62}, 0}},
     .data_bytes = 8},
    {"type-unknown", "tensor \"w\": ggml type 77 (unknown) is not supported",
     .tensors = {{"w", 77, 1, {2}, 0}}, .data_bytes = 8},
    {"type-unsupported", "tensor \"w\": ggml type 16 (iq2_xxs) is not supported",
     .tensors = {{"w", 16, 1, {256}, 0}}, .data_bytes = 66},
    {"block-q4_0", "rows of 48 values, expected a multiple of 32 for q4_0",
     .tensors = {{"w", Q4_0, 2, {48, 2}, 0}}, .data_bytes = 54},
    {"block-q4_k", "rows of 128 values, expected a multiple of 256 for q4_k",
     .tensors = {{"w", Q4_K, 2, {128, 2}, 0}}, .data_bytes = 144},
    {"offset-unaligned", "offset 8, expected a multiple of 32", .tensors = {{"w", F32, 1, {2}, 8}},
     .data_bytes = 16},
    {"offset-outside", "8 bytes at offset 64 reach past the end of the data (32 bytes)",
     .tensors = {{"w", F32, 1, {2}, 64}}, .data_bytes = 32},
    {"offset-wraps", "past the end of the data", .tensors = {{"w", F32, 1, {16}, UINT64_MAX - 31}},
     .data_bytes = 64},
    {"overlap", "tensor \"b\": its data overlaps tensor \"a\"",
     .tensors = {{"a", F32, 1, {9}, 0}, {"b", F32, 1, {2}, 32}}, .data_bytes = 40},
    {"same-place", "overlaps", .tensors = {{"a", F32, 1, {2}, 0}, {"b", F32, 1, {2}, 0}},
     .data_bytes = 8},
    {"data-cut", "past the end of the data (7 bytes)", ONE_F32, .cut = 1},
    {"data-missing", "past the end of the data (0 bytes)", .tensors = {{"w", F32, 1, {2}, 0}}},
    {"cut-in-tensor", "tensor record 0: tensor offset at byte 57",
     .tensors = {{"w", F32, 2, {2, 1}, 0}}, .cut = 36},
};

static void test_bad_files(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(bad_files); i++) {
        nb_strbuf b;
        nb_strbuf_init(&b, SIZE_MAX / 2);
        append_gguf(&b, &bad_files[i]);
        assert_parser_refuses(nb_gguf_parse, bad_files[i].name, &b, bad_files[i].expected);
        nb_strbuf_fini(&b);
    }
}

/* Every prefix of a good file is refused or, where only unused padding is gone, read. */
static void test_every_truncation(void **state)
{
    NB_UNUSED(state);
    nb_strbuf b;
    nb_strbuf_init(&b, SIZE_MAX / 2);
    append_gguf(&b, &good_files[3]);
    size_t whole = b.n_bytes;
    for (size_t n = 0; n < whole; n++) {
        nb_tensor_list l;
        uint8_t *copy;
        b.n_bytes = n;
        assert_int_equal(parse_copy(nb_gguf_parse, &l, &b, &copy, NULL), NB_EINPUT);
        free(copy);
    }
    nb_strbuf_fini(&b);
}

/* ---- files on demand ----------------------------------------------------------------------- */

static int write_files(const char *dir, const file_spec *files, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char name[100];
        nb_strbuf b;
        nb_strbuf_init(&b, SIZE_MAX / 2);
        append_gguf(&b, &files[i]);
        snprintf(name, sizeof name, "gguf-%s.gguf", files[i].name);
        write_to_dir(dir, name, b.data, b.n_bytes);
        nb_strbuf_fini(&b);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[2], "valid") == 0) {
        return write_files(argv[1], good_files, NB_COUNT(good_files));
    }
    if (argc > 1) return write_files(argv[1], bad_files, NB_COUNT(bad_files));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_files),   cmocka_unit_test(test_tensor_fields),
        cmocka_unit_test(test_meta_numbers), cmocka_unit_test(test_meta_strings_and_arrays),
        cmocka_unit_test(test_bad_files),    cmocka_unit_test(test_every_truncation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
