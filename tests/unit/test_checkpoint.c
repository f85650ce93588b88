/* Checkpoints: one file, shards with an index, a directory with a GGUF file; and their faults. */
#include "container_util.h"

#include <sys/stat.h>
#include <unistd.h>

#define SINGLE "model.safetensors"
#define INDEX  "model.safetensors.index.json"

/* Headers of two-value tensors; data_offsets in file order. */
#define TENSOR(name, begin, end)                                                                   \
    "'" name "':{'dtype':'F32','shape':[2],'data_offsets':[" begin "," end "]}"
#define HEADER_A  "{" TENSOR("a", "0", "8") "}"
#define HEADER_B  "{" TENSOR("b", "0", "8") "}"
#define HEADER_CA "{" TENSOR("c", "0", "8") "," TENSOR("a", "8", "16") "}"

#define MAP_AB "{'weight_map':{'a':'s1.safetensors','b':'s2.safetensors'}}"

/* A directory of up to three safetensors files, an index and a config; ' for ". */
typedef struct dir_spec {
    const char *name;
    const char *expected; /* part of the message; NULL: a good checkpoint */
    struct {
        const char *name, *header; /* data: as much as the header needs, below */
        size_t data_bytes;
    } files[3];
    const char *index, *config;
    const char *large; /* a file that is grown beyond every limit, without using disk */
} dir_spec;

static const dir_spec good_dirs[] = {
    {"single", .files = {{SINGLE, HEADER_CA, 16}}, .config = "{}"},
    {"sharded", .files = {{"s1.safetensors", HEADER_CA, 16}, {"s2.safetensors", HEADER_B, 8}},
     .index = "{'metadata':{'total_size':24},'weight_map':{'b':'s2.safetensors',"
              "'a':'s1.safetensors','c':'s1.safetensors'}}"},
};

static const dir_spec bad_dirs[] = {
    {"no-weights", "no weights: expected model.safetensors", .config = "{}"},
    {"single-malformed", "model.safetensors: tensor \"a\": data_offsets",
     .files = {{SINGLE, HEADER_A, 4}}},
    {"config-too-large", "config.json: 67108865 bytes, expected at most 16777216",
     .files = {{SINGLE, HEADER_A, 8}}, .large = "config.json"},
    {"index-too-large", INDEX ": 67108865 bytes, expected at most 67108864", .large = INDEX},
    {"index-not-json", INDEX ": not valid JSON", .index = "{'weight_map':"},
    {"index-array", "weight_map: expected an object", .index = "[]"},
    {"index-empty", "weight_map: expected an object", .index = "{'weight_map':{}}"},
    {"index-no-map", "weight_map: expected an object", .index = "{'metadata':{}}"},
    {"index-map-not-object", "weight_map: expected an object", .index = "{'weight_map':['a']}"},
    {"index-shard-number", "weight_map: \"a\": expected a string",
     .index = "{'weight_map':{'a':1}}"},
    {"index-duplicate", "duplicate object key",
     .index = "{'weight_map':{'a':'s1.safetensors','a':'s2.safetensors'}}"},
    {"index-traversal", "leads out of the directory",
     .index = "{'weight_map':{'a':'../s1.safetensors'}}"},
    {"index-absolute", "leads out of the directory",
     .index = "{'weight_map':{'a':'/etc/s1.safetensors'}}"},
    {"index-subdirectory", "leads out of the directory",
     .index = "{'weight_map':{'a':'x/s1.safetensors'}}"},
    {"index-dots", "leads out of the directory", .index = "{'weight_map':{'a':'..safetensors'}}"},
    {"index-other-file", "expected NAME.safetensors",
     .index = "{'weight_map':{'a':'config.json'}}"},
    {"index-no-name", "expected NAME.safetensors", .index = "{'weight_map':{'a':'.safetensors'}}"},
    {"shard-missing", "s2.safetensors: cannot open", .files = {{"s1.safetensors", HEADER_A, 8}},
     .index = MAP_AB},
    {"shard-malformed", "s2.safetensors: data: 1 trailing bytes",
     .files = {{"s1.safetensors", HEADER_A, 8}, {"s2.safetensors", HEADER_B, 9}}, .index = MAP_AB},
    {"tensor-not-in-shard", "tensor \"b\" is not in shard s2.safetensors",
     .files = {{"s1.safetensors", HEADER_CA, 16}, {"s2.safetensors", "{}", 0}}, .index = MAP_AB},
    {"tensor-in-other-shard", "is not in shard",
     .files = {{"s1.safetensors", HEADER_B, 8}, {"s2.safetensors", HEADER_A, 8}}, .index = MAP_AB},
    {"tensor-in-two-shards", "tensor \"a\" is in two shards",
     .files = {{"s1.safetensors", HEADER_A, 8}, {"s2.safetensors", HEADER_CA, 16}},
     .index = "{'weight_map':{'a':'s1.safetensors','c':'s2.safetensors'}}"},
};

static void write_text(const char *dir, const char *name, const char *text)
{
    char *copy = strdup(text);
    if (!copy) exit(1);
    for (char *p = copy; *p; p++) *p = *p == '\'' ? '"' : *p;
    write_to_dir(dir, name, copy, strlen(copy));
    free(copy);
}

/* Makes root/PREFIX NAME and returns its malloc'ed path. */
static char *make_dir(const char *root, const char *prefix, const dir_spec *d)
{
    char name[100];
    snprintf(name, sizeof name, "%s%s", prefix, d->name);
    char *dir = nb_path_join(root, name);
    if (!dir || nb_make_dir(dir, NULL) != NB_OK) exit(1);
    for (size_t i = 0; i < NB_COUNT(d->files) && d->files[i].name; i++) {
        nb_strbuf b;
        nb_strbuf_init(&b, SIZE_MAX / 2);
        append_safetensors(&b, d->files[i].header, d->files[i].data_bytes);
        write_to_dir(dir, d->files[i].name, b.data, b.n_bytes);
        nb_strbuf_fini(&b);
    }
    if (d->index) write_text(dir, INDEX, d->index);
    if (d->config) write_text(dir, "config.json", d->config);
    if (d->large) {
        char *path = nb_path_join(dir, d->large);
        write_text(dir, d->large, "{}");
        if (!path || truncate(path, (64 << 20) + 1) != 0) exit(1);
        free(path);
    }
    return dir;
}

/* The smallest GGUF: no tensors; optionally as part 0 of a split file. */
static void write_gguf(const char *dir, const char *name, bool split)
{
    nb_strbuf b;
    nb_strbuf_init(&b, 1 << 10);
    nb_strbuf_append(&b, "GGUF\x03\0\0\0", 8);
    append_u64(&b, 0);
    append_u64(&b, split);
    if (split) {
        append_u64(&b, strlen("split.count"));
        nb_strbuf_puts(&b, "split.count");
        append_u32(&b, NB_META_U16);
        nb_strbuf_append(&b, "\x03\0", 2);
    }
    write_to_dir(dir, name, b.data, b.n_bytes);
    nb_strbuf_fini(&b);
}

/* Faults that no dir_spec describes. */
static void make_two_ggufs(const char *dir)
{
    write_gguf(dir, "a.gguf", false);
    write_gguf(dir, "b.gguf", false);
}

static void make_split_gguf(const char *dir) { write_gguf(dir, "m-00001-of-00003.gguf", true); }

static void make_empty_gguf(const char *dir) { write_to_dir(dir, "m.gguf", "", 0); }

static void make_single_as_dir(const char *dir)
{
    char *path = nb_path_join(dir, SINGLE);
    if (!path || nb_make_dir(path, NULL) != NB_OK) exit(1);
    free(path);
}

static const struct {
    const char *name;
    void (*make)(const char *dir);
    const char *expected;
} bad_others[] = {
    {"two-ggufs", make_two_ggufs, "2 .gguf files; name one of them"},
    {"split-gguf", make_split_gguf, "split.count: one of 3 parts"},
    {"empty-gguf", make_empty_gguf, "m.gguf: magic"},
    {"single-is-directory", make_single_as_dir, "expected a regular file"},
};

/* ---- tests --------------------------------------------------------------------------------- */

static char *root; /* made and removed by the group's setup and teardown */

static int setup(void **state)
{
    NB_UNUSED(state);
    root = temp_dir();
    return 0;
}

static int teardown(void **state)
{
    NB_UNUSED(state);
    remove_dir(root);
    return 0;
}

static void assert_refused(const char *path, const char *expected)
{
    nb_error err = {0};
    nb_checkpoint *c = (nb_checkpoint *)&err;
    nb_status st = nb_checkpoint_open(&c, path, &err);
    assert_null(c);
    assert_bad_input(path, st, &err, expected);
}

static void test_bad_dirs(void **state)
{
    NB_UNUSED(state);
    for (size_t i = 0; i < NB_COUNT(bad_dirs); i++) {
        char *dir = make_dir(root, "bad-", &bad_dirs[i]);
        assert_refused(dir, bad_dirs[i].expected);
        free(dir);
    }
    for (size_t i = 0; i < NB_COUNT(bad_others); i++) {
        char *dir = make_dir(root, "bad-", &(dir_spec){.name = bad_others[i].name});
        bad_others[i].make(dir);
        assert_refused(dir, bad_others[i].expected);
        free(dir);
    }
}

static void test_bad_paths(void **state)
{
    NB_UNUSED(state);
    char *path = nb_path_join(root, "model.bin");
    assert_refused(path, "no such file or directory");
    write_to_dir(root, "model.bin", "x", 1);
    assert_refused(path, "expected a directory, a .gguf or a .safetensors file");
    free(path);
}

static void assert_good(const nb_checkpoint *c, const char *const *names, size_t n)
{
    assert_int_equal(nb_checkpoint_count(c), n);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(nb_checkpoint_at(c, i)->name, names[i]);
        assert_ptr_equal(nb_checkpoint_find(c, names[i]), nb_checkpoint_at(c, i));
    }
    assert_null(nb_checkpoint_at(c, n));
    assert_null(nb_checkpoint_find(c, "z"));
    assert_null(nb_checkpoint_meta(c, "general.architecture"));
}

static void test_single(void **state)
{
    NB_UNUSED(state);
    static const char *const names[] = {"a", "c"};
    char *dir = make_dir(root, "good-", &good_dirs[0]), *file = nb_path_join(dir, SINGLE);
    const char *const paths[] = {dir, file}; /* the directory and the file alone are the same */
    for (int i = 0; i < 2; i++) {
        nb_checkpoint *c;
        size_t n;
        assert_int_equal(nb_checkpoint_open(&c, paths[i], NULL), NB_OK);
        assert_good(c, names, 2);
        assert_int_equal(nb_checkpoint_container(c), NB_SAFETENSORS);
        assert_string_equal(nb_checkpoint_path(c), paths[i]);
        assert_string_equal(nb_checkpoint_dir(c), dir);
        assert_string_equal(nb_checkpoint_config(c, &n), "{}");
        assert_int_equal(n, 2);
        assert_int_equal(nb_checkpoint_bytes(c), nb_file_bytes(file));
        assert_int_equal(nb_checkpoint_find(c, "a")->data[0], 8);
        nb_checkpoint_release(c, nb_checkpoint_find(c, "a"));
        assert_int_equal(nb_checkpoint_find(c, "a")->data[0], 8);
        nb_checkpoint_close(c);
    }
    free(file);
    free(dir);
}

static void test_sharded(void **state)
{
    NB_UNUSED(state);
    static const char *const names[] = {"a", "b", "c"};
    char *dir = make_dir(root, "good-", &good_dirs[1]);
    nb_checkpoint *c;
    assert_int_equal(nb_checkpoint_open(&c, dir, NULL), NB_OK);
    assert_good(c, names, 3);
    assert_int_equal(nb_checkpoint_find(c, "b")->shard, 1);
    assert_int_equal(nb_checkpoint_find(c, "b")->data[0], 0);
    assert_null(nb_checkpoint_config(c, NULL));
    nb_checkpoint_close(c);
    free(dir);
}

static void test_gguf_in_dir(void **state)
{
    NB_UNUSED(state);
    char *dir = make_dir(root, "good-", &(dir_spec){.name = "gguf", .config = "{}"});
    write_gguf(dir, "m.gguf", false);
    nb_checkpoint *c;
    assert_int_equal(nb_checkpoint_open(&c, dir, NULL), NB_OK);
    assert_int_equal(nb_checkpoint_container(c), NB_GGUF);
    assert_string_equal(nb_checkpoint_dir(c), dir);
    assert_null(nb_checkpoint_config(c, NULL)); /* it may be another model's */
    assert_good(c, NULL, 0);
    nb_checkpoint_close(c);
    free(dir);
}

static void hash_of(char out[33], const dir_spec *d)
{
    char *dir = make_dir(root, "hash-", d);
    nb_checkpoint *c;
    assert_int_equal(nb_checkpoint_open(&c, dir, NULL), NB_OK);
    assert_int_equal(nb_checkpoint_hash(c, out, NULL), NB_OK);
    nb_checkpoint_close(c);
    free(dir);
}

/* The checksum is of the tensors: where they lie does not matter, what they are does. */
static void test_hash(void **state)
{
    NB_UNUSED(state);
#define ONE(name, dtype, shape)                                                                    \
    {                                                                                              \
        "w", .files = {                                                                            \
            {SINGLE, "{'" name "':{'dtype':'" dtype "','shape':" shape ",'data_offsets':[0,8]}}",  \
             8}                                                                                    \
        }                                                                                          \
    }
    static const dir_spec same[2] = {
        {"1", .files = {{SINGLE, "{" TENSOR("a", "0", "8") "," TENSOR("b", "8", "16") "}", 16}}},
        {"2", .files = {{SINGLE, "{" TENSOR("b", "8", "16") "," TENSOR("a", "0", "8") "}  ", 16}}},
    };
    static const dir_spec differ[] = {
        ONE("w", "F32", "[2]"),   ONE("v", "F32", "[2]"),   ONE("w", "I32", "[2]"),
        ONE("w", "F32", "[2,1]"), ONE("w", "F32", "[1,2]"),
    };
#undef ONE
    char hash[NB_COUNT(differ)][33], first[33], second[33];
    hash_of(first, &same[0]);
    hash_of(second, &same[1]);
    assert_string_equal(first, second);
    for (size_t i = 0; i < NB_COUNT(differ); i++) {
        hash_of(hash[i], &differ[i]);
        for (size_t k = 0; k < i; k++) assert_string_not_equal(hash[i], hash[k]);
    }
}

/* ---- files on demand ----------------------------------------------------------------------- */

static int write_files(const char *dir)
{
    for (size_t i = 0; i < NB_COUNT(bad_dirs); i++) {
        free(make_dir(dir, "checkpoint-", &bad_dirs[i]));
    }
    for (size_t i = 0; i < NB_COUNT(bad_others); i++) {
        char *d = make_dir(dir, "checkpoint-", &(dir_spec){.name = bad_others[i].name});
        bad_others[i].make(d);
        free(d);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1) return write_files(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single),      cmocka_unit_test(test_sharded),
        cmocka_unit_test(test_gguf_in_dir), cmocka_unit_test(test_bad_dirs),
        cmocka_unit_test(test_bad_paths),   cmocka_unit_test(test_hash),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
