/* Ids and texts are those of Hugging Face `tokenizers` and of SentencePiece for the files in
 * tests/golden/tokenizer_files (made by tests/golden/make_tokenizers.py); malformed files are
 * refused with a message that names the fault. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "token/token.h"

#define FILES     "tests/golden/tokenizer_files/"
#define MAX_BYTES ((size_t)1 << 24)

static char *read_fixture(const char *name, size_t *n)
{
    char path[256], *data;
    nb_error err;
    snprintf(path, sizeof path, FILES "%s", name);
    if (nb_read_file(path, MAX_BYTES, &data, n, &err) != NB_OK) fail_msg("%s", err.message);
    return data;
}

static nb_tokenizer *open_fixture(const char *name)
{
    size_t n;
    nb_error err;
    nb_tokenizer *t;
    char *data = read_fixture(name, &n);
    nb_status st = strstr(name, ".model") ? nb_tokenizer_from_spm(&t, data, n, NULL, 0, &err)
                                          : nb_tokenizer_from_json(&t, data, n, NULL, 0, &err);
    free(data);
    if (st != NB_OK) fail_msg("%s: %s", name, err.message);
    return t;
}

static json_t *load_cases(void)
{
    size_t n;
    char *data = read_fixture("cases.json", &n);
    json_t *cases = json_loadb(data, n, JSON_ALLOW_NUL, NULL);
    free(data);
    assert_non_null(cases);
    return cases;
}

/* ---- golden ids --------------------------------------------------------------------------- */

static void check_ids(const nb_tokenizer *t, const char *name, const json_t *row, const char *key,
                      unsigned flags)
{
    const json_t *text = json_object_get(row, "text"), *want = json_object_get(row, key);
    int32_t *ids;
    size_t n;
    nb_error err;
    nb_status st = nb_tokenizer_encode(t, json_string_value(text), json_string_length(text), flags,
                                       &ids, &n, &err);
    if (st != NB_OK) fail_msg("%s: %s", name, err.message);
    bool same = n == json_array_size(want);
    for (size_t i = 0; same && i < n; i++) {
        same = ids[i] == json_integer_value(json_array_get(want, i));
    }
    if (!same) {
        for (size_t i = 0; i < n; i++) print_error("%d ", (int)ids[i]);
        fail_msg("%s: %s of \"%s\": %zu ids differ from the %zu expected", name, key,
                 json_string_value(text), n, json_array_size(want));
    }
    free(ids);
}

static int32_t *row_ids(const json_t *row, size_t *n)
{
    const json_t *list = json_object_get(row, "ids");
    *n = json_array_size(list);
    int32_t *ids = calloc(*n + 1, sizeof *ids);
    for (size_t i = 0; i < *n; i++) {
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    }
    return ids;
}

static void check_text(const char *name, const char *what, const nb_strbuf *b, const json_t *want)
{
    if (b->n_bytes == json_string_length(want) &&
        memcmp(b->data ? b->data : "", json_string_value(want), b->n_bytes) == 0) {
        return;
    }
    fail_msg("%s: %s: \"%s\", expected \"%s\"", name, what, b->data ? b->data : "",
             json_string_value(want));
}

static void check_decode(const nb_tokenizer *t, const char *name, const json_t *row)
{
    size_t n;
    nb_error err;
    nb_strbuf b;
    nb_stream s = {0};
    int32_t *ids = row_ids(row, &n);
    const json_t *decoded = json_object_get(row, "decoded");
    const json_t *visible = json_object_get(row, "visible");
    nb_strbuf_init(&b, MAX_BYTES);
    assert_int_equal(nb_tokenizer_decode(t, ids, n, false, &b, &err), NB_OK);
    check_text(name, "decoded", &b, decoded);
    b.n_bytes = 0;
    assert_int_equal(nb_tokenizer_decode(t, ids, n, true, &b, &err), NB_OK);
    check_text(name, "without special tokens", &b, visible ? visible : decoded);
    b.n_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(nb_tokenizer_stream(t, &s, ids[i], &b, &err), NB_OK);
    }
    nb_tokenizer_stream_end(&s, &b);
    check_text(name, "streamed", &b, visible ? visible : decoded);
    nb_strbuf_fini(&b);
    free(ids);
}

/* A tokenizer.json written from t gives the same ids. */
static nb_tokenizer *round_trip(const nb_tokenizer *t, const char *name)
{
    char *json, *config;
    size_t n, n_config;
    nb_error err;
    nb_tokenizer *copy = NULL;
    if (nb_tokenizer_to_json(t, &json, &n, &config, &n_config, &err) != NB_OK ||
        nb_tokenizer_from_json(&copy, json, n, config, n_config, &err) != NB_OK) {
        fail_msg("%s: %s", name, err.message);
    }
    assert_int_equal(nb_tokenizer_bos(copy), nb_tokenizer_bos(t));
    assert_int_equal(nb_tokenizer_eos(copy), nb_tokenizer_eos(t));
    assert_int_equal(nb_tokenizer_count(copy), nb_tokenizer_count(t));
    free(json);
    free(config);
    return copy;
}

static void check_rows(const nb_tokenizer *t, const char *name, const json_t *rows)
{
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        bool plain = json_object_get(row, "plain") != NULL;
        check_ids(t, name, row, "ids", NB_ENCODE_SPECIAL);
        check_ids(t, name, row, plain ? "plain" : "ids", 0);
        check_decode(t, name, row);
    }
}

static void test_golden_ids(void **state)
{
    (void)state;
    json_t *cases = load_cases(), *rows;
    const char *name;
    assert_true(json_object_size(cases) >= 12);
    json_object_foreach (cases, name, rows) {
        nb_tokenizer *t = open_fixture(name);
        assert_true(json_array_size(rows) > 10);
        check_rows(t, name, rows);
        nb_tokenizer *copy = round_trip(t, name);
        check_rows(copy, name, rows);
        nb_tokenizer_free(copy);
        nb_tokenizer_free(t);
    }
    json_decref(cases);
}

/* ---- BOS, EOS, names ---------------------------------------------------------------------- */

static void test_adds_bos_and_eos(void **state)
{
    (void)state;
    nb_tokenizer *t = open_fixture("gpt2.json");
    int32_t *ids;
    size_t n;
    assert_int_equal(nb_tokenizer_encode(t, "a", 1, NB_ENCODE_BOS, &ids, &n, NULL), NB_OK);
    assert_int_equal(n, 3);
    assert_int_equal(ids[0], nb_tokenizer_find(t, "<s>", 3));
    assert_int_equal(ids[1], nb_tokenizer_find(t, "a", 1));
    assert_int_equal(ids[2], nb_tokenizer_find(t, "</s>", 4));
    assert_int_equal(nb_tokenizer_bos(t), ids[0]);
    assert_int_equal(nb_tokenizer_eos(t), ids[2]);
    assert_true(nb_tokenizer_is_end(t, ids[2]));
    assert_false(nb_tokenizer_is_end(t, ids[1]));
    assert_false(nb_tokenizer_is_end(t, -1));
    assert_int_equal(nb_tokenizer_find(t, "no such token", 13), -1);
    free(ids);
    nb_tokenizer_free(t);
}

static void test_config_names_tokens(void **state)
{
    (void)state;
    static const char config[] =
        "{\"bos_token\": {\"content\": \"</s>\"}, \"eos_token\": \"<mask>\"}";
    size_t n;
    nb_tokenizer *t;
    char *json = read_fixture("gpt2.json", &n);
    assert_int_equal(nb_tokenizer_from_json(&t, json, n, config, strlen(config), NULL), NB_OK);
    assert_int_equal(nb_tokenizer_bos(t), nb_tokenizer_find(t, "</s>", 4));
    assert_int_equal(nb_tokenizer_eos(t), nb_tokenizer_find(t, "<mask>", 6));
    nb_tokenizer_free(t);
    free(json);
}

/* ---- vocabularies of GGUF ----------------------------------------------------------------- */

#define TEXT(s)                                                                                    \
    {                                                                                              \
        s, sizeof s - 1                                                                            \
    }

/* Scores decide the order: "ab" before "bc", so "abc" is "ab" "c" unless "abc" is a token. */
static void test_spm_vocab(void **state)
{
    (void)state;
    static const nb_text tokens[] = {
        TEXT("<unk>"), TEXT("<s>"), TEXT("<0xC3>"), TEXT("<0xA9>"), TEXT("\xe2\x96\x81"),
        TEXT("a"),     TEXT("b"),   TEXT("c"),      TEXT("bc"),     TEXT("ab"),
    };
    static const float scores[] = {0, 0, 0, 0, -9, -8, -7, -6, -2, -1};
    static const uint8_t types[] = {2, 3, 6, 6, 1, 1, 1, 1, 1, 1};
    nb_vocab v = {.kind = NB_VOCAB_SPM,
                  .tokens = tokens,
                  .scores = scores,
                  .types = types,
                  .n_tokens = 10,
                  .bos = 1,
                  .eos = -1,
                  .unk = 0,
                  .add_bos = true,
                  .add_space_prefix = true};
    nb_tokenizer *t;
    int32_t *ids;
    size_t n;
    assert_int_equal(nb_tokenizer_from_vocab(&t, &v, NULL), NB_OK);
    assert_int_equal(nb_tokenizer_encode(t, "abc \xc3\xa9z", 7, NB_ENCODE_BOS, &ids, &n, NULL),
                     NB_OK);
    static const int32_t want[] = {1, 4, 9, 7, 4, 2, 3, 0};
    assert_int_equal(n, 8);
    assert_memory_equal(ids, want, sizeof want);
    nb_strbuf b;
    nb_strbuf_init(&b, 100);
    assert_int_equal(nb_tokenizer_decode(t, ids, 7, true, &b, NULL), NB_OK);
    assert_string_equal(b.data, "abc \xc3\xa9");
    nb_strbuf_fini(&b);
    free(ids);
    nb_tokenizer_free(t);
}

static nb_status bpe_vocab(const nb_text *merges, size_t n_merges, const char *pre, int32_t bos,
                           const uint8_t *types, nb_error *err)
{
    static const nb_text tokens[] = {TEXT("a"), TEXT("b"), TEXT("ab"), TEXT("\xc4\xa0")};
    nb_vocab v = {.tokens = tokens,
                  .types = types,
                  .n_tokens = 4,
                  .merges = merges,
                  .n_merges = n_merges,
                  .pre = pre,
                  .bos = bos,
                  .eos = -1,
                  .unk = -1};
    nb_tokenizer *t;
    nb_status st = nb_tokenizer_from_vocab(&t, &v, err);
    assert_int_equal(st == NB_OK, t != NULL);
    nb_tokenizer_free(t);
    return st;
}

static void check_refused(nb_status st, const nb_error *err, const char *says)
{
    if (st != NB_EINPUT || !strstr(err->message, says)) {
        fail_msg("status %d, \"%s\", expected \"%s\"", (int)st, st ? err->message : "", says);
    }
}

static void test_bad_vocab(void **state)
{
    (void)state;
    static const nb_text good[] = {TEXT("a b")}, unknown[] = {TEXT("a x")},
                         joined[] = {TEXT("b a")}, single[] = {TEXT("ab")}, empty[] = {TEXT("a ")};
    static const char *const names[] = {"gpt-2", "llama-bpe", "qwen2", "smollm", "default"};
    nb_error err = {0};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(bpe_vocab(good, 1, names[i], 0, NULL, &err), NB_OK);
    }
    check_refused(bpe_vocab(unknown, 1, "gpt-2", -1, NULL, &err), &err, "merge 0: \"x\"");
    check_refused(bpe_vocab(joined, 1, "gpt-2", -1, NULL, &err), &err, "\"ba\" is not in the voc");
    check_refused(bpe_vocab(single, 1, "gpt-2", -1, NULL, &err), &err, "expected two tokens");
    check_refused(bpe_vocab(empty, 1, "gpt-2", -1, NULL, &err), &err, "expected two tokens");
    check_refused(bpe_vocab(good, 1, "no such", -1, NULL, &err), &err, "\"no such\" is not known");
    check_refused(bpe_vocab(good, 1, "gpt-2", 4, NULL, &err), &err, "bos token id 4");
    check_refused(bpe_vocab(good, 1, "gpt-2", -2, NULL, &err), &err, "bos token id -2");
    check_refused(bpe_vocab(good, (size_t)1 << 40, "gpt-2", -1, NULL, &err), &err,
                  "merges, expected");
}

/* ---- malformed tokenizer.json ------------------------------------------------------------- */

typedef struct bad_json {
    const char *json, *says;
} bad_json;

#define MODEL(rest) "{\"model\": {\"type\": \"BPE\", " rest "}"
#define VOCAB       "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": []"
#define GOOD        MODEL(VOCAB)
#define PRE(x)      GOOD ", \"pre_tokenizer\": " x "}"
#define NORM(x)     GOOD ", \"normalizer\": " x "}"
#define POST(x)     GOOD ", \"post_processor\": " x "}"
#define DECODER(x)  GOOD ", \"decoder\": " x "}"
#define ADDED(x)    GOOD ", \"added_tokens\": [" x "]}"
#define NEST        "{\"type\": \"Sequence\", \"pretokenizers\": ["

static const bad_json bad_jsons[] = {
    {"", "line 1"},
    {"{", "line 1"},
    {"[]", "expected an object"},
    {"{}", "type \"\" is not supported"},
    {"{\"model\": {\"type\": \"Unigram\"}}", "\"Unigram\" is not supported (only BPE"},
    {"{\"model\": {\"type\": \"WordPiece\"}}", "\"WordPiece\" is not supported"},
    {"{\"model\": {\"type\": 3}}", "type: expected a string"},
    {MODEL("\"merges\": []") "}", "object \"vocab\""},
    {MODEL("\"vocab\": {}, \"merges\": []") "}", "object \"vocab\""},
    {MODEL("\"vocab\": {\"a\": 0}") "}", "array \"merges\""},
    {MODEL("\"vocab\": {\"a\": -1}, \"merges\": []") "}", "expected an id"},
    {MODEL("\"vocab\": {\"a\": 1.5}, \"merges\": []") "}", "expected an id"},
    {MODEL("\"vocab\": {\"a\": \"x\"}, \"merges\": []") "}", "expected an id"},
    {MODEL("\"vocab\": {\"a\": 99999999999}, \"merges\": []") "}", "found 99999999999"},
    {MODEL("\"vocab\": {\"a\": 4000000}, \"merges\": []") "}", "highest id 4000000"},
    {MODEL("\"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []") "}", "id 0: two tokens"},
    {MODEL("\"vocab\": {\"a\": 0, \"a\": 1}, \"merges\": []") "}", "duplicate"},
    {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [\"a a\"]") "}", "\"aa\" is not in the vocabulary"},
    {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [\"a z\"]") "}", "\"z\" is not in the vocabulary"},
    {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]") "}", "merge 0: expected two tokens"},
    {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [[\"a\"]]") "}", "merge 0: expected two tokens"},
    {MODEL("\"vocab\": {\"a\": 0}, \"merges\": [[\"a\", 1]]") "}", "merge 0: expected two tokens"},
    {MODEL(VOCAB ", \"unk_token\": \"u\"") "}", "unk_token \"u\""},
    {MODEL(VOCAB ", \"dropout\": 0.1") "}", "dropout"},
    {MODEL(VOCAB ", \"byte_fallback\": 1") "}", "byte_fallback: expected true or false"},
    {MODEL(VOCAB ", \"end_of_word_suffix\": \"</w>\"") "}", "end_of_word_suffix"},
    {ADDED("1"), "expected an id"},
    {ADDED("{\"id\": 3}"), "\"content\""},
    {ADDED("{\"id\": 3, \"content\": \"a\"}"), "id 3, but 0 in the vocabulary"},
    {ADDED("{\"id\": 0, \"content\": \"x\"}"), "two tokens"},
    {ADDED("{\"id\": 3, \"content\": \"x\", \"special\": \"yes\"}"), "special: expected true"},
    {NORM("{\"type\": \"Lowercase\"}"), "normalizer: type \"Lowercase\" is not supported"},
    {NORM("{\"type\": \"Precompiled\"}"), "\"Precompiled\" is not supported"},
    {NORM("{\"type\": \"Prepend\"}"), "string \"prepend\""},
    {NORM("{\"type\": \"Sequence\"}"), "array \"normalizers\""},
    {NORM("{\"type\": \"Replace\", \"content\": \"x\"}"), "expected a pattern"},
    {NORM("3"), "normalizer: expected an object"},
    {PRE("{\"type\": \"BertPreTokenizer\"}"), "\"BertPreTokenizer\" is not supported"},
    {PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": \"Isolated\"}"),
     "missing closing parenthesis"},
    {PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"\"}, \"behavior\": \"Isolated\"}"),
     "0 bytes"},
    {PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"[a&&b]\"}, \"behavior\": \"Isolated\"}"),
     "intersections"},
    {PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"[a[b]]\"}, \"behavior\": \"Isolated\"}"),
     "nested classes"},
    {PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"((a{999}){999}){999}\"}, "
         "\"behavior\": \"Isolated\"}"),
     "too large"},
    {PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"Other\"}"),
     "behavior \"Other\""},
    {PRE("{\"type\": \"Metaspace\", \"replacement\": \"_\"}"), "replacement \"_\""},
    {PRE(NEST NEST NEST NEST NEST NEST "]}]}]}]}]}]}"), "nested more than 4"},
    {POST("{\"type\": \"RobertaProcessing\"}"), "\"RobertaProcessing\" is not supported"},
    {POST("{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}]}"),
     "\"x\" has no ids"},
    {POST("{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}], "
          "\"special_tokens\": {\"x\": {\"ids\": [7]}}}"),
     "special token 7"},
    {"{\"model\": {\"vocab\": {\"a\": 0, \"b\": 2}, \"merges\": []}, \"post_processor\": "
     "{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"x\"}}], "
     "\"special_tokens\": {\"x\": {\"ids\": [1]}}}}",
     "special token 1 is not in the vocabulary"},
    {DECODER("{\"type\": \"WordPiece\"}"), "decoder: type \"WordPiece\""},
    {DECODER("{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}"), "fused text"},
    {DECODER("{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a\"}, \"content\": \"b\"}"),
     "Regex is not supported"},
};

static void test_bad_json(void **state)
{
    (void)state;
    nb_tokenizer *t;
    nb_error err;
    static const char good[] = GOOD "}";
    assert_int_equal(nb_tokenizer_from_json(&t, good, strlen(good), NULL, 0, &err), NB_OK);
    nb_tokenizer_free(t);
    for (size_t i = 0; i < sizeof bad_jsons / sizeof *bad_jsons; i++) {
        const char *json = bad_jsons[i].json;
        nb_status st = nb_tokenizer_from_json(&t, json, strlen(json), NULL, 0, &err);
        assert_null(t);
        check_refused(st, &err, bad_jsons[i].says);
    }
    check_refused(nb_tokenizer_from_json(&t, good, strlen(good), "{", 1, &err), &err,
                  "tokenizer_config.json: line 1");
}

/* ---- malformed tokenizer.model ------------------------------------------------------------ */

static void check_bad_spm(const void *data, size_t n, const char *says)
{
    nb_tokenizer *t;
    nb_error err;
    nb_status st = nb_tokenizer_from_spm(&t, data, n, NULL, 0, &err);
    assert_null(t);
    check_refused(st, &err, says);
}

#define BAD_SPM(bytes, says) check_bad_spm(bytes, sizeof bytes - 1, says)
#define BPE                  "\x12\x02\x18\x02" /* trainer_spec { model_type: BPE } */

static void test_bad_spm(void **state)
{
    (void)state;
    BAD_SPM("", "no pieces");
    BAD_SPM(BPE, "no pieces");
    BAD_SPM("\x0a", "truncated number");
    BAD_SPM("\x0a\x05x", "truncated field");
    BAD_SPM("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "truncated field");
    BAD_SPM("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than 64 bits");
    BAD_SPM("\x0b", "unknown wire type");
    BAD_SPM("\x0d\x01", "truncated number");
    BAD_SPM("\x0a\x03\x0a\x01"
            "a",
            "kind unigram is not supported");
    BAD_SPM(BPE "\x0a\x02\x0a\x05", "truncated field");
    BAD_SPM(BPE "\x0a\x05\x0a\x01"
                "a\x18\x09",
            "unknown type");
    BAD_SPM(BPE "\x0a\x03\x0a\x01\xff", "token 0: not UTF-8");
    BAD_SPM(BPE "\x0a\x08\x0a\x01"
                "a\x15\x00\x00\xc0\x7f",
            "score is not a number");
    BAD_SPM(BPE "\x0a\x03\x0a\x01"
                "a\x1a\x04\x12\x02xx",
            "character map (2 bytes)");
    BAD_SPM("\x12\x05\x18\x02\xc0\x01\x01\x0a\x03\x0a\x01"
            "a",
            "suffix");
}

/* Every prefix of a good model is refused or is a smaller model, never read past its end. */
static void test_truncated_spm(void **state)
{
    (void)state;
    size_t n;
    char *data = read_fixture("identity.model", &n);
    for (size_t i = 0; i < n; i += 7) {
        char *part = malloc(i + 1);
        nb_tokenizer *t;
        memcpy(part, data, i);
        nb_status st = nb_tokenizer_from_spm(&t, part, i, NULL, 0, NULL);
        assert_true(st == NB_OK || (st == NB_EINPUT && !t));
        nb_tokenizer_free(t);
        free(part);
    }
    free(data);
}

/* transformers' "legacy": false puts a space at the start of the text alone. */
static void test_spm_not_legacy(void **state)
{
    (void)state;
    static const char config[] = "{\"legacy\": false, \"add_bos_token\": false}";
    size_t n, n_ids;
    int32_t *ids;
    nb_tokenizer *t;
    char *data = read_fixture("squeeze.model", &n);
    static const char text[] = "a<tool>a";
    assert_int_equal(nb_tokenizer_from_spm(&t, data, n, config, strlen(config), NULL), NB_OK);
    assert_int_equal(nb_tokenizer_encode(t, text, strlen(text), NB_ENCODE_BOS, &ids, &n_ids, NULL),
                     NB_OK);
    assert_true(n_ids >= 3);
    assert_int_equal(ids[n_ids - 1], nb_tokenizer_find(t, "a", 1));
    assert_int_equal(ids[n_ids - 2], nb_tokenizer_find(t, "<tool>", 6));
    free(ids);
    nb_tokenizer_free(t);
    free(data);
}

/* ---- texts -------------------------------------------------------------------------------- */

static void test_bad_text(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"ab\xff", "offset 2 (byte 0xff)"}, {"\xc3", "offset 0"},
        {"a\xc0\x80", "offset 1"},          {"\xed\xa0\x80", "offset 0"},
        {"\xf4\x90\x80\x80", "offset 0"},   {"\xe2\x82", "offset 0"},
        {"\xf0\x80\x80\x80", "offset 0"},   {"ok \xe2\x82\xac \x80", "offset 7"},
    };
    nb_tokenizer *t = open_fixture("gpt2.json");
    nb_error err;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int32_t *ids;
        size_t n;
        nb_status st =
            nb_tokenizer_encode(t, rows[i].text, strlen(rows[i].text), 0, &ids, &n, &err);
        assert_null(ids);
        check_refused(st, &err, rows[i].says);
    }
    nb_strbuf b;
    nb_stream s = {0};
    nb_strbuf_init(&b, 100);
    for (int32_t id = -1; id < 1 << 20; id += 1 << 19) {
        if (id >= 0 && (size_t)id < nb_tokenizer_count(t)) continue;
        check_refused(nb_tokenizer_decode(t, &id, 1, false, &b, &err), &err, "token id");
        check_refused(nb_tokenizer_stream(t, &s, id, &b, &err), &err, "token id");
    }
    nb_strbuf_fini(&b);
    nb_tokenizer_free(t);
}

static void encode_run(const nb_tokenizer *t, const char *unit, size_t n_bytes)
{
    size_t n_unit = strlen(unit), n, n_back = n_bytes / n_unit * n_unit;
    char *text = malloc(n_bytes);
    int32_t *ids;
    nb_error err;
    for (size_t i = 0; i + n_unit <= n_bytes; i += n_unit) memcpy(text + i, unit, n_unit);
    nb_status st = nb_tokenizer_encode(t, text, n_back, 0, &ids, &n, &err);
    if (st != NB_OK) fail_msg("%s", err.message);
    nb_strbuf b;
    nb_strbuf_init(&b, 4 * n_bytes);
    assert_int_equal(nb_tokenizer_decode(t, ids, n, false, &b, &err), NB_OK);
    assert_int_equal(b.n_bytes, n_back);
    assert_memory_equal(b.data, text, n_back);
    nb_strbuf_fini(&b);
    free(ids);
    free(text);
}

/* A quadratic step would take minutes here. */
static void test_long_runs(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2.json",   "llama3.json",    "digits.json",
                                        "legacy.json", "metaspace.json", "identity.model"};
    static const char *const units[] = {"a", " ", "\n", "1", "\xe4\xbd\xa0", "ab "};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        nb_tokenizer *t = open_fixture(names[i]);
        for (size_t k = 0; k < sizeof units / sizeof *units; k++) {
            /* Metaspace "first" puts nothing before a space, and the decoder still strips one. */
            if (strcmp(names[i], "metaspace.json") == 0 && units[k][0] == ' ') continue;
            encode_run(t, units[k], (size_t)1 << 19);
        }
        nb_tokenizer_free(t);
    }
}

static void test_regex_bomb(void **state)
{
    (void)state;
    static const char json[] =
        PRE("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(?:a|a)*(?:a|a)*(?:a|a)*b\"}, "
            "\"behavior\": \"Isolated\"}");
    nb_tokenizer *t;
    nb_error err;
    int32_t *ids;
    size_t n;
    char text[64];
    memset(text, 'a', sizeof text);
    text[40] = 'c';
    text[63] = 'b'; /* otherwise PCRE2 sees at once that nothing can match */
    assert_int_equal(nb_tokenizer_from_json(&t, json, strlen(json), NULL, 0, &err), NB_OK);
    nb_status st = nb_tokenizer_encode(t, text, sizeof text, 0, &ids, &n, &err);
    check_refused(st, &err, "match limit exceeded");
    nb_tokenizer_free(t);
}

/* Bytes of a character that come one by one appear together; what can be none becomes U+FFFD. */
static void test_stream(void **state)
{
    (void)state;
    nb_tokenizer *t = open_fixture("legacy.json");
    static const char *const bytes[] = {"<0xF0>", "<0x9F>", "<0xA6>", "<0x99>", "<0xE2>", "<0x41>"};
    nb_stream s = {0};
    nb_strbuf b;
    nb_strbuf_init(&b, 100);
    for (size_t i = 0; i < 6; i++) {
        int32_t id = nb_tokenizer_find(t, bytes[i], 6);
        assert_true(id >= 0);
        assert_int_equal(nb_tokenizer_stream(t, &s, id, &b, NULL), NB_OK);
        assert_int_equal(b.n_bytes, i < 3 ? 0 : i < 5 ? 4 : 8);
    }
    assert_memory_equal(b.data,
                        "\xf0\x9f\xa6\x99\xef\xbf\xbd"
                        "A",
                        8);
    assert_int_equal(nb_tokenizer_stream(t, &s, nb_tokenizer_find(t, "<0xC3>", 6), &b, NULL),
                     NB_OK);
    assert_int_equal(b.n_bytes, 8);
    nb_tokenizer_stream_end(&s, &b);
    assert_memory_equal(b.data + 8, "\xef\xbf\xbd", 3);
    nb_strbuf_fini(&b);
    nb_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_ids),
        cmocka_unit_test(test_adds_bos_and_eos),
        cmocka_unit_test(test_config_names_tokens),
        cmocka_unit_test(test_spm_vocab),
        cmocka_unit_test(test_bad_vocab),
        cmocka_unit_test(test_bad_json),
        cmocka_unit_test(test_bad_spm),
        cmocka_unit_test(test_truncated_spm),
        cmocka_unit_test(test_spm_not_legacy),
        cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_regex_bomb),
        cmocka_unit_test(test_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
