/* safetensors: good files, what the writer makes, and every way that a header can lie. */
#include "container_util.h"

#include "base/hash.h"

#define F32_2 "'dtype':'F32','shape':[2],'data_offsets'"

/* ---- bad files ----------------------------------------------------------------------------- */

static const struct bad_header {
    const char *name;
    const char *header; /* with ' for " */
    size_t data_bytes;
    const char *expected; /* part of the message */
} bad_headers[] = {
    {"not-json", "{hello}", 0, "not valid JSON"},
    {"unclosed", "{'w':{" F32_2 ":[0,8]}", 8, "not valid JSON"},
    {"array", "[]", 0, "begins with '{'"},
    {"leading-space", " {}", 0, "begins with '{'"},
    {"empty-header", "", 0, "begins with '{'"},
    {"text-behind", "{} x", 0, "not valid JSON"},
    {"duplicate-tensor", "{'w':{" F32_2 ":[0,8]},'w':{" F32_2 ":[0,8]}}", 8, "duplicate"},
    {"duplicate-field", "{'w':{'shape':[2],'dtype':'F32','dtype':'F32'}}", 8, "duplicate"},
    {"duplicate-meta", "{'__metadata__':{'a':'1','a':'2'}}", 0, "duplicate"},
    {"bad-utf8", "{'w\xff':{" F32_2 ":[0,8]}}", 8, "unable to decode byte 0xff"},
    {"bad-utf8-escape", "{'\\ud800':{" F32_2 ":[0,8]}}", 8, "not valid JSON"},
    {"nul-in-name", "{'w\\u0000x':{" F32_2 ":[0,8]}}", 8, "not valid JSON"},
    {"control-in-name", "{'w\\u001b[31m':{" F32_2 ":[0,8]}}", 8, "not printable UTF-8"},
    {"empty-name", "{'':{" F32_2 ":[0,8]}}", 8, "tensor name is empty"},
    {"meta-number", "{'__metadata__':{'epoch':3}}", 0,
     "__metadata__: \"epoch\": expected a string"},
    {"meta-nested", "{'__metadata__':{'a':{'b':'c'}}}", 0,
     "__metadata__: \"a\": expected a string"},
    {"meta-array", "{'__metadata__':['a']}", 0, "__metadata__: expected an object"},
    {"meta-hash", "{'__metadata__':{'xxh3:w':'123'},'w':{" F32_2 ":[0,8]}}", 8,
     "expected 32 hexadecimal digits"},
    {"tensor-number", "{'w':7}", 0, "tensor \"w\": expected an object"},
    {"tensor-missing-shape", "{'w':{'dtype':'F32','data_offsets':[0,8]}}", 8, "expected an object"},
    {"tensor-extra-field", "{'w':{" F32_2 ":[0,8],'x':1}}", 8, "expected an object of dtype"},
    {"tensor-other-field", "{'w':{'dtype':'F32','size':[2],'data_offsets':[0,8]}}", 8,
     "shape: expected an array"},
    {"dtype-unknown", "{'w':{'dtype':'F12','shape':[2],'data_offsets':[0,8]}}", 8,
     "unknown dtype \"F12\""},
    {"dtype-number", "{'w':{'dtype':32,'shape':[2],'data_offsets':[0,8]}}", 8,
     "dtype: expected a string"},
    {"shape-object", "{'w':{'dtype':'F32','shape':{},'data_offsets':[0,8]}}", 8,
     "shape: expected an array"},
    {"shape-real", "{'w':{'dtype':'F32','shape':[2.0],'data_offsets':[0,8]}}", 8,
     "shape[0]: expected an integer"},
    {"shape-negative", "{'w':{'dtype':'F32','shape':[-1,-2],'data_offsets':[0,8]}}", 8,
     "shape[0]: -1 is negative"},
    {"shape-too-big-integer",
     "{'w':{'dtype':'F32','shape':[18446744073709551616],'data_offsets':[0,8]}}", 8,
     "too big integer"},
    {"shape-product", "{'w':{'dtype':'U8','shape':[4294967296,4294967296],'data_offsets':[0,8]}}",
     8, "product of its dimensions overflows"},
    {"shape-product-beside-zero",
     "{'w':{'dtype':'U8','shape':[0,4294967296,4294967296],'data_offsets':[0,0]}}", 0,
     "product of its dimensions overflows"},
    {"shape-bytes", "{'w':{'dtype':'F64','shape':[4611686018427387904],'data_offsets':[0,8]}}", 8,
     "overflow the size"},
    {"shape-five-dims", "{'w':{'dtype':'F32','shape':[1,1,1,1,2],'data_offsets':[0,8]}}", 8,
     "5 dimensions, expected at most 4"},
    {"offsets-one", "{'w':{" F32_2 ":[8]}}", 8, "expected [begin, end]"},
    {"offsets-string", "{'w':{" F32_2 ":['0','8']}}", 8, "data_offsets[0]: expected an integer"},
    {"offsets-negative", "{'w':{" F32_2 ":[-8,0]}}", 8, "data_offsets[0]: -8 is negative"},
    {"offsets-reversed", "{'w':{" F32_2 ":[8,0]}}", 8, "begin 8 is after end 0"},
    {"offsets-past-end", "{'w':{" F32_2 ":[0,8]}}", 7, "past the end of the data (7)"},
    {"offsets-huge", "{'w':{" F32_2 ":[0,9223372036854775807]}}", 8, "past the end of the data"},
    {"offsets-size", "{'w':{" F32_2 ":[0,4]}}", 4, "4 bytes, dtype and shape need 8"},
    {"overlap", "{'a':{" F32_2 ":[0,8]},'b':{" F32_2 ":[4,12]}}", 12, "overlaps"},
    {"same-place", "{'a':{" F32_2 ":[0,8]},'b':{" F32_2 ":[0,8]}}", 8, "overlaps"},
    {"hole", "{'a':{" F32_2 ":[0,8]},'b':{" F32_2 ":[12,20]}}", 20, "hole in front of it"},
    {"hole-at-start", "{'a':{" F32_2 ":[8,16]}}", 16, "hole in front of it"},
    {"trailing", "{'a':{" F32_2 ":[0,8]}}", 9, "1 trailing bytes"},
    {"no-tensors-but-data", "{}", 4, "4 trailing bytes"},
};

/* Files whose fault lies outside the JSON text. */
static void make_empty(nb_strbuf *b) { NB_UNUSED(b); }

static void make_short_length(nb_strbuf *b) { nb_strbuf_append(b, "\x02\0\0\0", 4); }

static void make_length_limit(nb_strbuf *b)
{
    append_u64(b, 100000001);
    nb_strbuf_puts(b, "{}");
}

static void make_length_bomb(nb_strbuf *b)
{
    append_u64(b, UINT64_MAX);
    nb_strbuf_puts(b, "{}");
}

static void make_truncated(nb_strbuf *b)
{
    append_safetensors(b, "{'w':{" F32_2 ":[0,8]}}", 8);
    b->n_bytes = 20;
}

static void make_deep_nesting(nb_strbuf *b)
{
    enum { DEPTH = 100000 };
    append_u64(b, 5 + DEPTH);
    nb_strbuf_puts(b, "{\"w\":");
    for (int i = 0; i < DEPTH; i++) nb_strbuf_puts(b, "[");
}

static void make_gguf_magic(nb_strbuf *b) { nb_strbuf_append(b, "GGUF\x03\0\0\0\0\0\0\0", 12); }

static const struct bad_file {
    const char *name;
    void (*make)(nb_strbuf *b);
    const char *expected;
} bad_files[] = {
    {"empty-file", make_empty, "file has 0 bytes"},
    {"short-length", make_short_length, "file has 4 bytes"},
    {"length-limit", make_length_limit, "100000001 bytes, expected at most 100000000"},
    {"length-bomb", make_length_bomb, "18446744073709551615 bytes, expected at most"},
    {"truncated", make_truncated, "header is truncated"},
    {"deep-nesting", make_deep_nesting, "maximum parsing depth"},
    {"gguf-magic", make_gguf_magic, "header length"},
};

static void test_bad_headers(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(bad_headers); i++) {
        const struct bad_header *c = &bad_headers[i];
        nb_strbuf b;
        nb_strbuf_init(&b, SIZE_MAX / 2);
        append_safetensors(&b, c->header, c->data_bytes);
        assert_parser_refuses(nb_safetensors_parse, c->name, &b, c->expected);
        nb_strbuf_fini(&b);
    }
}

static void test_bad_files(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(bad_files); i++) {
        nb_strbuf b;
        nb_strbuf_init(&b, SIZE_MAX / 2);
        bad_files[i].make(&b);
        assert_parser_refuses(nb_safetensors_parse, bad_files[i].name, &b, bad_files[i].expected);
        nb_strbuf_fini(&b);
    }
}

/* ---- good files ---------------------------------------------------------------------------- */

static const struct good_header {
    const char *name, *header;
    size_t data_bytes;
} good_headers[] = {
    {"none", "{}", 0},
    {"padded", "{'w':{" F32_2 ":[0,8]}}      ", 8},
    {"scalar", "{'w':{'dtype':'I64','shape':[],'data_offsets':[0,8]}}", 8},
    {"empty-tensors",
     "{'c':{'dtype':'BF16','shape':[3],'data_offsets':[4,10]},"
     "'b':{'dtype':'F32','shape':[0,5],'data_offsets':[4,4]},"
     "'a':{'dtype':'F16','shape':[1,2],'data_offsets':[0,4]},"
     "'d':{'dtype':'U8','shape':[0],'data_offsets':[10,10]}}",
     10},
    {"meta",
     "{'__metadata__':{'format':'pt','xxh3:w':'0123456789abcdef0123456789abcdef'},"
     "'v':{'dtype':'F8_E4M3','shape':[2,2],'data_offsets':[8,12]},'w':{" F32_2 ":[0,8]}}",
     12},
};

static void test_good_headers(void **state)
{
    NB_UNUSED(state);
    static const size_t counts[] = {0, 1, 1, 4, 2};
    for (size_t i = 0; i < NB_COUNT(good_headers); i++) {
        nb_strbuf b;
        nb_error err = {0};
        nb_tensor_list l;
        uint8_t *copy;
        nb_strbuf_init(&b, SIZE_MAX / 2);
        append_safetensors(&b, good_headers[i].header, good_headers[i].data_bytes);
        assert_int_equal(parse_copy(nb_safetensors_parse, &l, &b, &copy, &err), NB_OK);
        assert_int_equal(l.n, counts[i]);
        nb_tensor_list_fini(&l);
        free(copy);
        nb_strbuf_fini(&b);
    }
}

static void test_fields(void **state)
{
    NB_UNUSED(state);
    nb_strbuf b;
    nb_tensor_list l;
    uint8_t *copy;
    nb_strbuf_init(&b, SIZE_MAX / 2);
    append_safetensors(&b, good_headers[4].header, good_headers[4].data_bytes);
    assert_int_equal(parse_copy(nb_safetensors_parse, &l, &b, &copy, NULL), NB_OK);
    const nb_tensor *v = &l.items[0], *w = &l.items[1]; /* file order */
    assert_string_equal(v->name, "v");
    assert_int_equal(v->dtype, NB_F8_E4M3);
    assert_int_equal(v->n_dims, 2);
    assert_int_equal(v->dims[0], 2);
    assert_int_equal(v->dims[1], 2);
    assert_ptr_equal(v->data, copy + b.n_bytes - 4);
    assert_int_equal(v->n_bytes, 4);
    assert_null(v->hash);
    assert_ptr_equal(w->data, copy + b.n_bytes - 12);
    assert_string_equal(w->hash, "0123456789abcdef0123456789abcdef");
    assert_int_equal(l.n_st_meta, 2);
    assert_string_equal(l.st_meta[0], "format");
    assert_string_equal(l.st_meta[1], "pt");
    nb_tensor_list_fini(&l);
    free(copy);
    nb_strbuf_fini(&b);
}

/* ---- writer -------------------------------------------------------------------------------- */

static const uint8_t codes[5] = {9, 8, 7, 6, 5};
static const uint16_t halves[6] = {1, 2, 3, 4, 5, 6};
static const nb_tensor to_write[] = {
    {.name = "b.codes", .dtype = NB_U8, .n_dims = 1, .dims = {5}, .data = codes, .n_bytes = 5},
    {.name = "a \"q\" \xc3\xa9",
     .dtype = NB_F16,
     .n_dims = 2,
     .dims = {2, 3},
     .data = (const uint8_t *)halves,
     .n_bytes = 12},
    {.name = "empty", .dtype = NB_F32, .n_dims = 2, .dims = {0, 7}},
};
static const char *const meta_to_write[] = {"format", "nibble", "note", "line\nbreak"};

static void check_written(const nb_tensor_list *l, const uint8_t *file)
{
    assert_int_equal(l->n, NB_COUNT(to_write));
    for (size_t i = 0; i < l->n; i++) {
        const nb_tensor *x = &to_write[i], *y = &l->items[i];
        char hash[NB_HASH_CHARS];
        nb_hash(hash, x->data, x->n_bytes);
        assert_string_equal(y->name, x->name);
        assert_int_equal(y->dtype, x->dtype);
        assert_int_equal(y->n_dims, x->n_dims);
        assert_memory_equal(y->dims, x->dims, sizeof x->dims);
        assert_int_equal(y->n_bytes, x->n_bytes);
        if (x->n_bytes) assert_memory_equal(y->data, x->data, x->n_bytes);
        assert_string_equal(y->hash, hash);
    }
    assert_int_equal((size_t)(l->items[0].data - file) % 64, 0);
    assert_int_equal(l->n_st_meta, 2 + l->n);
    for (size_t i = 0; i < 4; i++) assert_string_equal(l->st_meta[i], meta_to_write[i]);
}

static void test_write_and_read(void **state)
{
    NB_UNUSED(state);
    char *dir = temp_dir(), *text[2];
    size_t n[2];
    nb_error err = {0};
    for (int i = 0; i < 2; i++) { /* twice: the same bytes */
        char *path = nb_path_join(dir, "w.safetensors");
        assert_int_equal(
            nb_safetensors_write(path, to_write, NB_COUNT(to_write), meta_to_write, 2, &err),
            NB_OK);
        assert_int_equal(nb_read_file(path, 1 << 20, &text[i], &n[i], &err), NB_OK);
        free(path);
    }
    assert_int_equal(n[0], n[1]);
    assert_memory_equal(text[0], text[1], n[0]);
    nb_tensor_list l;
    assert_int_equal(nb_safetensors_parse(&l, (const uint8_t *)text[0], n[0], &err), NB_OK);
    check_written(&l, (const uint8_t *)text[0]);
    nb_tensor_list_fini(&l);
    free(text[0]);
    free(text[1]);
    remove_dir(dir);
}

/* A refused write leaves nothing behind. */
static void test_write_refuses(void **state)
{
    NB_UNUSED(state);
    static const nb_tensor wrong[][2] = {
        {{.name = "q", .dtype = NB_Q4_1, .n_dims = 1, .dims = {32}, .data = codes, .n_bytes = 20}},
        {{.name = "s", .dtype = NB_U8, .n_dims = 1, .dims = {4}, .data = codes, .n_bytes = 5}},
        {{.name = "d", .dtype = NB_U8, .n_dims = 1, .dims = {5}, .data = codes, .n_bytes = 5},
         {.name = "d", .dtype = NB_U8, .n_dims = 1, .dims = {5}, .data = codes, .n_bytes = 5}},
    };
    static const char *const expected[] = {"cannot hold q4_1", "5 bytes given", "appears twice"};
    char *dir = temp_dir(), *path = nb_path_join(dir, "x.safetensors");
    for (size_t i = 0; i < NB_COUNT(wrong); i++) {
        nb_error err = {0};
        size_t n = wrong[i][1].name ? 2 : 1;
        assert_int_equal(nb_safetensors_write(path, wrong[i], n, NULL, 0, &err), NB_EUSAGE);
        assert_non_null(strstr(err.message, expected[i]));
        assert_false(nb_path_exists(path));
    }
    free(path);
    remove_dir(dir);
}

static void test_npy(void **state)
{
    NB_UNUSED(state);
    static const float x[6] = {1, 2, 3, 4, 5, 6};
    char *dir = temp_dir(), *path = nb_path_join(dir, "x.npy"), *text;
    size_t n;
    nb_error err = {0};
    assert_int_equal(nb_npy_write_f32(path, x, 2, 3, &err), NB_OK);
    assert_int_equal(nb_read_file(path, 1 << 20, &text, &n, &err), NB_OK);
    assert_int_equal(n, 128 + sizeof x);
    assert_memory_equal(text,
                        "\x93NUMPY\x01\0\x76\0{'descr': '<f4', 'fortran_order': False, "
                        "'shape': (2, 3), } ",
                        70);
    assert_int_equal(text[127], '\n');
    assert_memory_equal(text + 128, x, sizeof x);
    free(text);
    free(path);
    remove_dir(dir);
}

/* ---- files on demand ----------------------------------------------------------------------- */

static void write_named(const char *dir, const char *name, const nb_strbuf *b)
{
    char file[100];
    snprintf(file, sizeof file, "safetensors-%s.safetensors", name);
    write_to_dir(dir, file, b->data, b->n_bytes);
}

static int write_files(const char *dir, bool valid)
{
    size_t n = valid ? NB_COUNT(good_headers) : NB_COUNT(bad_headers);
    nb_strbuf b;
    nb_strbuf_init(&b, SIZE_MAX / 2);
    for (size_t i = 0; i < n; i++, b.n_bytes = 0) {
        const char *header = valid ? good_headers[i].header : bad_headers[i].header;
        append_safetensors(&b, header,
                           valid ? good_headers[i].data_bytes : bad_headers[i].data_bytes);
        write_named(dir, valid ? good_headers[i].name : bad_headers[i].name, &b);
    }
    for (size_t i = 0; !valid && i < NB_COUNT(bad_files); i++, b.n_bytes = 0) {
        bad_files[i].make(&b);
        write_named(dir, bad_files[i].name, &b);
    }
    nb_strbuf_fini(&b);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1) return write_files(argv[1], argc > 2 && strcmp(argv[2], "valid") == 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_headers),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_write_and_read),
        cmocka_unit_test(test_write_refuses),
        cmocka_unit_test(test_npy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
