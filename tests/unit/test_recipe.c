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

/* Formats of single linears and of attention, and what they are where nothing is said. */
static void test_formats(void **state)
{
    NB_UNUSED(state);
    nb_recipe r;
    assert_int_equal(parse(&r,
                           "weights: int4:g128\nacts: int8:token\nkv: dialect:b32\n"
                           "query: dialect:b16\nkeys: dialect:b16\nprobs: mxfp4\n"
                           "linears:\n"
                           "  down_proj: {weights: int8:g64, acts: fp8:token}\n"
                           "  fc1: {weights: bf16}\n"
                           "  out_proj: {acts: none}\n"
                           "  gate: {weights: f16, acts: mxfp8}\n"
                           "rope: half\nsequential: true\ncalib_acts: fp\n",
                           NULL),
                     NB_OK);
    assert_int_equal(nb_recipe_check(&r, NULL), NB_OK);
    static const struct {
        nb_role role;
        const char *weights, *acts;
    } want[] = {{NB_Q, "int4:g128", "int8:token"},
                {NB_O, "int4:g128", ""},
                {NB_GATE, "f16", "mxfp8"},
                {NB_UP, "bf16", ""},
                {NB_DOWN, "int8:g64", "fp8:token"}};
    for (size_t i = 0; i < NB_COUNT(want); i++) {
        nb_format act = nb_recipe_act(&r, want[i].role);
        assert_string_equal(nb_recipe_weights(&r, want[i].role)->word, want[i].weights);
        assert_string_equal(act.family ? act.word : "", want[i].acts);
    }
    nb_attn_formats a = nb_recipe_attn(&r);
    assert_string_equal(a.q.word, "dialect:b16");
    assert_string_equal(a.k.word, "dialect:b16");
    assert_string_equal(a.v.word, "dialect:b32");
    assert_string_equal(a.p.word, "mxfp4");
    assert_int_equal(r.rope, NB_ORDER_HALF);
    assert_true(r.sequential && r.fp_stats);
    assert_int_equal(parse(&r, "weights: int4:g128\nkv: fp8:token\n", NULL), NB_OK);
    a = nb_recipe_attn(&r);
    assert_string_equal(a.k.word, "fp8:token");
    assert_null(a.q.family);
    assert_null(a.p.family);
    assert_false(r.sequential || r.fp_stats);
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
    assert_int_equal(r.rope, NB_ORDER_OWN);
}

/* Writing and reading again gives the same recipe, and the same text. */
static void test_round_trip(void **state)
{
    NB_UNUSED(state);
    static const char *const texts[] = {
        "weights: int4:g128\n",
        "name: x\nweights: bf16\nmethod: [nearest]\nseed: 7\n",
        "weights: int4:g128\nrope: half\n",
        "rope: interleaved\nweights: int4:g128\n",
        "weights: int2:g64:sym\nacts: int8:token:asym\nembedding: f16\nmethod: [mse, nearest]\n",
        "weights: int4:g64\nkv: int8:token\nkeys: none\nquery: fp8:token\nprobs: mxfp4\n"
        "linears: {q: {acts: int8:token}, fc2: {weights: f16}, v: {weights: mxfp4, acts: none}}\n"
        "sequential: true\ncalib_acts: fp\n",
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
        {"rope: neox\n", "line 1, column 7", "expected half or interleaved, found \"neox\""},
        {"rope: [half]\n", "line 1, column 7", "expected a word"},
        {"seed: 4294967296\n", "line 1, column 7", "whole number"},
        {"samples: 1.5\n", "line 1, column 10", "whole number"},
        {"samples: 99999999999999999999\n", "line 1, column 10", "whole number"},
        {"samples:\n", "line 1, column 9", "whole number"},
        {"seqlen: 1\n", "line 1, column 9", "from 2"},
        {"sequential: yes\n", "line 1, column 13", "true"},
        {"calib_acts: none\n", "line 1, column 13", "quant"},
        {"linears: int4:g128\n", "line 1, column 10", "mapping"},
        {"linears: {q: int4:g128}\n", "line 1, column 14", "weights: FORMAT"},
        {"linears: {w: {acts: mxfp4}}\n", "line 1, column 11", "unknown linear"},
        {"linears: {q: {}, q_proj: {}}\n", "line 1, column 18", "given before"},
        {"linears: {q: {bits: 4}}\n", "line 1, column 21", "unknown key"},
        {"linears: {q: {acts: mxfp4, acts: mxfp4}}\n", "line 1, column 28", "each once"},
        {"linears: {q: {weights: none}}\n", "line 1, column 24", "f16"},
        {"linears: {q: {weights: int8:token}}\n", "line 1, column 24", "no format for this"},
        {"linears: {q: &a {}}\n", "line 1, column 14", "anchors"},
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
        {"weights: int4:g128\nprobs: int8:token\n", "format with blocks"},
        {"weights: int4:g128\nkv: dialect:b32\nquery: dialect:b16\n", "query"},
        {"weights: int4:g128\nkv: dialect:b32\nkeys: mxfp4\nquery: int8:token\n", "keys"},
        {"weights: int4:g128\nkv: dialect:b16\nprobs: mxfp4\n", "probs"},
        {"weights: int4:g128\nmethod: [minmax]\n", "one round step"},
        {"weights: int4:g128\nmethod: [nearest, nearest]\n", "one round step"},
        {"weights: int4:g128\nmethod: [minmax, mse, nearest]\n", "one clip"},
        {"weights: f16\nmethod: [smooth, minmax, nearest]\n", "only converted"},
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
    opt.rope = "interleaved";
    opt.method = "mse,nearest";
    opt.samples = 8;
    opt.seed = 0;
    assert_int_equal(nb_recipe_override(&r, &opt, NULL), NB_OK);
    assert_string_equal(r.weights.word, "int3:g64");
    assert_int_equal(r.rope, NB_ORDER_INTERLEAVED);
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
        cmocka_unit_test(test_all_keys), cmocka_unit_test(test_formats),
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bad),      cmocka_unit_test(test_too_long),
        cmocka_unit_test(test_check),    cmocka_unit_test(test_override),
        cmocka_unit_test(test_shipped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
