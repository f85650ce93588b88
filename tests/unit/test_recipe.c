/* Recipes: what is read, what is refused and where, and the canonical text. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "calib/calib.h"

static nb_status parse(nb_recipe *r, const char *yaml, nb_error *err)
{
    return nb_recipe_parse(r, yaml, strlen(yaml), err);
}

static void test_all_keys(void **state)
{
    NB_UNUSED(state);
    nb_recipe r;
    assert_int_equal(parse(&r,
                           "# a comment\n"
                           "name: my-recipe_1.0\n"
                           "weights: int4:g128:asym\n"
                           "acts: \"int8:token\"\n"
                           "kv: f16\n"
                           "embedding: int8:g32:sym\n"
                           "method: [mse, nearest]\n"
                           "samples: 16\nseqlen: 512\nepochs: 3\nbatch: 4\nseed: 4294967295\n",
                           NULL),
                     NB_OK);
    assert_string_equal(r.name, "my-recipe_1.0");
    assert_string_equal(r.weights.word, "int4:g128");
    assert_string_equal(r.acts.word, "int8:token");
    assert_string_equal(r.kv.word, "none");
    assert_string_equal(r.embedding.word, "int8:g32:sym");
    assert_int_equal(r.n_steps, 2);
    assert_string_equal(r.steps[0].word, "mse");
    assert_string_equal(r.steps[1].word, "nearest");
    assert_int_equal(r.samples, 16);
    assert_int_equal(r.seqlen, 512);
    assert_int_equal(r.epochs, 3);
    assert_int_equal(r.batch, 4);
    assert_true(r.seed == 4294967295);
    assert_int_equal(nb_recipe_check(&r, NULL), NB_OK);
}

static void test_defaults(void **state)
{
    NB_UNUSED(state);
    nb_recipe r;
    assert_int_equal(parse(&r, "weights: int3:row\nmethod: minmax,nearest\n", NULL), NB_OK);
    assert_string_equal(r.name, "custom");
    assert_int_equal(r.samples, 128);
    assert_int_equal(r.seqlen, 2048);
    assert_int_equal(r.n_steps, 2);
    assert_null(r.acts.family);
    assert_null(r.embedding.family);
}

/* Writing and reading again gives the same recipe, and the same text. */
static void test_round_trip(void **state)
{
    NB_UNUSED(state);
    static const char *const texts[] = {
        "weights: int4:g128\n",
        "name: x\nweights: bf16\nmethod: [nearest]\nseed: 7\n",
        "weights: int2:g64:sym\nacts: int8:token:asym\nembedding: f16\nmethod: [mse, nearest]\n",
    };
    for (size_t i = 0; i < NB_COUNT(texts); i++) {
        nb_recipe a, b;
        char *first, *second;
        size_t n_first, n_second;
        assert_int_equal(parse(&a, texts[i], NULL), NB_OK);
        assert_int_equal(nb_recipe_write(&a, &first, &n_first, NULL), NB_OK);
        assert_int_equal(nb_recipe_parse(&b, first, n_first, NULL), NB_OK);
        assert_int_equal(nb_recipe_write(&b, &second, &n_second, NULL), NB_OK);
        assert_int_equal(n_first, n_second);
        assert_string_equal(first, second);
        free(first);
        free(second);
    }
}

/* Each message names line and column (of the value where the value is wrong) and says what. */
static void test_bad(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *yaml, *where, *what;
    } bad[] = {
        {"", "line 1", "empty"},
        {"- a\n", "line 1", "key: value"},
        {"weights: int4:g128\nwieghts: int4:g128\n", "line 2, column 1", "wieghts"},
        {"weights: int4:g128\nweights: int4:g64\n", "line 2, column 1", "given before"},
        {"weights: int4:g100\n", "line 1, column 10", "multiple of 8"},
        {"weights: q4_1\n", "line 1, column 10", "no format for this"},
        {"weights: int8:token\n", "line 1, column 10", "no format for this"},
        {"acts: int8:g128\n", "line 1, column 7", "no format for this"},
        {"name: ../../etc\n", "line 1, column 7", "name"},
        {"name: \"a\\0b\"\n", "line 1, column 7", "NUL"},
        {"seed: -1\n", "line 1, column 7", "whole number"},
        {"seed: 4294967296\n", "line 1, column 7", "whole number"},
        {"samples: 1.5\n", "line 1, column 10", "whole number"},
        {"samples: 99999999999999999999\n", "line 1, column 10", "whole number"},
        {"samples:\n", "line 1, column 9", "whole number"},
        {"seqlen: 1\n", "line 1, column 9", "from 2"},
        {"method: [minmax, gptqq]\n", "line 1, column 18", "gptqq"},
        {"method: [[minmax], nearest]\n", "line 1, column 10", "word"},
        {"method: {a: b}\n", "line 1, column 9", "word"},
        {"method: [mse,mse,mse,mse,mse,mse,mse,mse,mse]\n", "line 1", "more than"},
        {"weights: &a int4:g128\n", "line 1, column 10", "anchors"},
        {"weights: !!str int4:g128\n", "line 1, column 10", "anchors"},
        {"weights: *a\n", "line 1, column 10", "word"},
        {"weights: [int4:g128]\n", "line 1, column 10", "word"},
        {"weights: int4:g128\n---\nweights: int4:g64\n", "line 2", "one document"},
        {"weights: \"int4\n", "line", ""},
        {"\tweights: int4:g128\n", "line 1", ""},
        {"weights: \xff\xfe\n", "", ""},
    };
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        nb_recipe r;
        nb_error err = {0};
        if (parse(&r, bad[i].yaml, &err) != NB_EUSAGE || !strstr(err.message, bad[i].where) ||
            !strstr(err.message, bad[i].what)) {
            fail_msg("case %zu: \"%s\"", i, err.message);
        }
    }
}

static void test_too_long(void **state)
{
    NB_UNUSED(state);
    size_t n = 70000;
    char *yaml = malloc(n);
    memset(yaml, '#', n);
    nb_recipe r;
    assert_int_equal(nb_recipe_parse(&r, yaml, n, NULL), NB_EUSAGE);
    free(yaml);
}

static void test_check(void **state)
{
    NB_UNUSED(state);
    static const struct {
        const char *yaml, *what;
    } bad[] = {
        {"name: x\n", "weights"},
        {"weights: none\n", "weights"},
        {"weights: int4:g128\nkv: int8:token\n", "KV cache"},
        {"weights: int4:g128\nmethod: [minmax]\n", "one round step"},
        {"weights: int4:g128\nmethod: [nearest, nearest]\n", "one round step"},
        {"weights: int4:g128\nmethod: [minmax, mse, nearest]\n", "one clip step"},
        {"weights: int4:g128\nmethod: [nearest, minmax]\n", "cannot follow"},
    };
    for (size_t i = 0; i < NB_COUNT(bad); i++) {
        nb_recipe r;
        nb_error err = {0};
        assert_int_equal(parse(&r, bad[i].yaml, NULL), NB_OK);
        assert_int_equal(nb_recipe_check(&r, &err), NB_EUSAGE);
        assert_non_null(strstr(err.message, bad[i].what));
    }
}

static void test_override(void **state)
{
    NB_UNUSED(state);
    nb_recipe r;
    nb_quantize_options opt;
    nb_quantize_options_default(&opt);
    assert_int_equal(parse(&r, "weights: int4:g128\nsamples: 16\nseed: 5\n", NULL), NB_OK);
    assert_int_equal(nb_recipe_override(&r, &opt, NULL), NB_OK);
    assert_string_equal(r.weights.word, "int4:g128");
    assert_int_equal(r.samples, 16);
    assert_int_equal(r.seed, 5);
    opt.weights = "int3:g64";
    opt.method = "mse,nearest";
    opt.samples = 8;
    opt.seed = 0;
    assert_int_equal(nb_recipe_override(&r, &opt, NULL), NB_OK);
    assert_string_equal(r.weights.word, "int3:g64");
    assert_string_equal(r.steps[0].word, "mse");
    assert_int_equal(r.samples, 8);
    assert_int_equal(r.seed, 0);
    nb_error err = {0};
    opt.acts = "int9:token";
    assert_int_equal(nb_recipe_override(&r, &opt, &err), NB_EUSAGE);
    assert_non_null(strstr(err.message, "acts"));
}

/* Every shipped recipe is whole and is called what its file is called. */
static void test_shipped(void **state)
{
    NB_UNUSED(state);
    int n = 0;
    DIR *d = opendir("recipes");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        const char *end = strstr(e->d_name, ".yaml");
        if (!end) continue;
        nb_recipe r;
        nb_error err = {0};
        char *path = nb_path_join("recipes", e->d_name), *text;
        size_t n_bytes;
        assert_int_equal(nb_read_file(path, 65536, &text, &n_bytes, NULL), NB_OK);
        nb_status st = nb_recipe_parse(&r, text, n_bytes, &err);
        if (st == NB_OK) st = nb_recipe_check(&r, &err);
        if (st != NB_OK) fail_msg("%s: %s", path, err.message);
        assert_int_equal(strlen(r.name), end - e->d_name);
        assert_memory_equal(r.name, e->d_name, strlen(r.name));
        free(text);
        free(path);
        n++;
    }
    closedir(d);
    assert_true(n >= 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_keys),   cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_bad),
        cmocka_unit_test(test_too_long),   cmocka_unit_test(test_check),
        cmocka_unit_test(test_override),   cmocka_unit_test(test_shipped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
