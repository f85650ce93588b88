/* nb_checkpoint_tokenizer, and the driver of the checks that need large files:
 *
 *   test_vocab FILE.gguf...                each with FILE.gguf.inp and FILE.gguf.out: one line of
 *                                          a table; the status is 1 if any id differs
 *   test_vocab --ids MODEL TEXT OUT        ids of a text file as int32
 *   test_vocab --export MODEL DIR          tokenizer.json and tokenizer_config.json
 *
 * scripts/vocab_test.sh and scripts/tokenizer_parity.py use these. */
#include "container_util.h"

#include "base/clock.h"
#include "base/file.h"
#include "model/vocab.h"

#define MAX_BYTES ((size_t)1 << 30)

static nb_tokenizer *open_tokenizer(const char *path, nb_error *err)
{
    nb_checkpoint *c;
    nb_tokenizer *t = NULL;
    if (nb_checkpoint_open(&c, path, err) != NB_OK) return NULL;
    if (nb_checkpoint_tokenizer(c, &t, err) == NB_OK && !t) {
        snprintf(err->message, sizeof err->message, "no tokenizer");
    }
    nb_checkpoint_close(c);
    return t;
}

/* ---- llama.cpp's vocabulary tests --------------------------------------------------------- */

static const char separator[] = "\n__ggml_vocab_test__\n";

typedef struct tally {
    int n_tests, n_failed;
} tally;

static char *read_beside(const char *path, const char *suffix)
{
    char name[4096], *data;
    size_t n;
    nb_error err;
    snprintf(name, sizeof name, "%s%s", path, suffix);
    return nb_read_file(name, MAX_BYTES, &data, &n, &err) == NB_OK ? data : NULL;
}

/* The ids in one line of .out. */
static size_t parse_ids(const char *line, size_t n, int32_t *ids, size_t max)
{
    size_t count = 0;
    for (const char *p = line; p < line + n && count < max;) {
        char *end;
        long id = strtol(p, &end, 10);
        if (end == p || end > line + n) break;
        ids[count++] = (int32_t)id;
        p = end;
    }
    return count;
}

static bool same_ids(const nb_tokenizer *t, const char *text, size_t n, const int32_t *want,
                     size_t n_want)
{
    int32_t *ids;
    size_t n_ids;
    nb_error err;
    if (nb_tokenizer_encode(t, text, n, 0, &ids, &n_ids, &err) != NB_OK) {
        fprintf(stderr, "%s\n", err.message);
        return false;
    }
    bool same = n_ids == n_want && memcmp(ids, want, n_ids * sizeof *ids) == 0;
    if (!same) {
        fprintf(stderr, "text: \"%.*s\"\n got:", (int)n, text);
        for (size_t i = 0; i < n_ids; i++) fprintf(stderr, " %d", (int)ids[i]);
        fprintf(stderr, "\nwant:");
        for (size_t i = 0; i < n_want; i++) fprintf(stderr, " %d", (int)want[i]);
        fprintf(stderr, "\n");
    }
    free(ids);
    return same;
}

static tally run_cases(const nb_tokenizer *t, const char *inp, const char *out)
{
    tally r = {0};
    while (*out) {
        const char *end = strstr(inp, separator);
        if (!end) break;
        size_t n_line = strcspn(out, "\n");
        int32_t want[4096];
        size_t n_want = parse_ids(out, n_line, want, NB_COUNT(want));
        r.n_tests++;
        r.n_failed += !same_ids(t, inp, (size_t)(end - inp), want, n_want);
        inp = end + sizeof separator - 1;
        out += n_line + (out[n_line] == '\n');
    }
    return r;
}

static bool run_vocab(const char *path)
{
    nb_error err;
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    char *inp = read_beside(path, ".inp"), *out = read_beside(path, ".out");
    nb_tokenizer *t = open_tokenizer(path, &err);
    bool ok = true;
    if (!t) {
        const char *kind = strstr(err.message, "vocabulary of kind");
        ok = kind != NULL;
        printf("%-32s %s\n", name, kind ? kind : err.message);
    } else if (!inp || !out) {
        printf("%-32s loads, %zu tokens; no .inp and .out\n", name, nb_tokenizer_count(t));
    } else {
        tally r = run_cases(t, inp, out);
        ok = r.n_tests > 0 && r.n_failed == 0;
        printf("%-32s %d of %d %s\n", name, r.n_tests - r.n_failed, r.n_tests,
               ok ? "ok" : "FAILED");
    }
    nb_tokenizer_free(t);
    free(inp);
    free(out);
    return ok;
}

/* ---- ids and files for other programs ----------------------------------------------------- */

static int print_failure(const nb_error *err)
{
    fprintf(stderr, "%s\n", err->message);
    return 1;
}

static int write_ids(const char *model, const char *text_path, const char *out)
{
    nb_error err;
    char *text;
    size_t n, n_ids = 0;
    int32_t *ids = NULL;
    nb_tokenizer *t = open_tokenizer(model, &err);
    if (!t) return print_failure(&err);
    nb_status st = nb_read_file(text_path, MAX_BYTES, &text, &n, &err);
    double begin = nb_now();
    if (st == NB_OK) st = nb_tokenizer_encode(t, text, n, 0, &ids, &n_ids, &err);
    double seconds = nb_now() - begin;
    if (st == NB_OK) st = nb_write_file(out, ids, n_ids * sizeof *ids, &err);
    if (st == NB_OK) printf("%zu ids, %.3f s\n", n_ids, seconds);
    free(text);
    free(ids);
    nb_tokenizer_free(t);
    return st == NB_OK ? 0 : print_failure(&err);
}

static int write_files(const char *model, const char *dir)
{
    nb_error err;
    char path[4096], *json, *config;
    size_t n, n_config;
    nb_tokenizer *t = open_tokenizer(model, &err);
    if (!t) return print_failure(&err);
    nb_status st = nb_tokenizer_to_json(t, &json, &n, &config, &n_config, &err);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (st == NB_OK) st = nb_write_file(path, json, n, &err);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    if (st == NB_OK) st = nb_write_file(path, config, n_config, &err);
    free(json);
    free(config);
    nb_tokenizer_free(t);
    return st == NB_OK ? 0 : print_failure(&err);
}

static int run_driver(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "--ids") == 0) return write_ids(argv[2], argv[3], argv[4]);
    if (argc == 4 && strcmp(argv[1], "--export") == 0) return write_files(argv[2], argv[3]);
    bool ok = true;
    for (int i = 1; i < argc; i++) ok = run_vocab(argv[i]) && ok;
    return ok ? 0 : 1;
}

/* ---- tests -------------------------------------------------------------------------------- */

/* A GGUF file of metadata alone, built pair by pair. */
typedef struct gguf {
    nb_strbuf pairs;
    uint64_t n;
} gguf;

static void append_string(nb_strbuf *b, const char *s)
{
    append_u64(b, strlen(s));
    nb_strbuf_puts(b, s);
}

static void begin_pair(gguf *g, const char *key, uint32_t type)
{
    append_string(&g->pairs, key);
    append_u32(&g->pairs, type);
    g->n++;
}

static void add_string(gguf *g, const char *key, const char *value)
{
    begin_pair(g, key, NB_META_STRING);
    append_string(&g->pairs, value);
}

static void add_u32(gguf *g, const char *key, uint32_t value)
{
    begin_pair(g, key, NB_META_U32);
    append_u32(&g->pairs, value);
}

static void add_bool(gguf *g, const char *key, bool value)
{
    begin_pair(g, key, NB_META_BOOL);
    nb_strbuf_append(&g->pairs, &(char){value}, 1);
}

static void begin_array(gguf *g, const char *key, uint32_t elem, uint64_t n)
{
    begin_pair(g, key, NB_META_ARRAY);
    append_u32(&g->pairs, elem);
    append_u64(&g->pairs, n);
}

/* Words of `list`, parted by '|'. */
static void add_strings(gguf *g, const char *key, const char *list)
{
    uint64_t n = 1;
    for (const char *p = list; *p; p++) n += *p == '|';
    begin_array(g, key, NB_META_STRING, n);
    for (const char *p = list; n; n--) {
        size_t len = strcspn(p, "|");
        append_u64(&g->pairs, len);
        nb_strbuf_append(&g->pairs, p, len);
        p += len + 1;
    }
}

static void add_u32s(gguf *g, const char *key, const uint32_t *x, uint64_t n)
{
    begin_array(g, key, NB_META_U32, n);
    nb_strbuf_append(&g->pairs, x, n * sizeof *x);
}

static nb_status open_gguf(gguf *g, nb_tokenizer **t, nb_error *err)
{
    char *dir = temp_dir(), *path = nb_path_join(dir, "x.gguf");
    nb_checkpoint *c;
    nb_strbuf b;
    nb_strbuf_init(&b, MAX_BYTES);
    nb_strbuf_puts(&b, "GGUF");
    append_u32(&b, 3);
    append_u64(&b, 0);
    append_u64(&b, g->n);
    nb_strbuf_append(&b, g->pairs.data, g->pairs.n_bytes);
    while (b.n_bytes % 32) nb_strbuf_append(&b, "", 1);
    write_to_dir(dir, "x.gguf", b.data, b.n_bytes);
    *t = NULL;
    nb_status st = nb_checkpoint_open(&c, path, err);
    if (st == NB_OK) st = nb_checkpoint_tokenizer(c, t, err);
    nb_checkpoint_close(c);
    nb_strbuf_fini(&b);
    nb_strbuf_fini(&g->pairs);
    free(path);
    remove_dir(dir);
    return st;
}

static gguf new_gguf(const char *model, const char *pre)
{
    gguf g = {0};
    nb_strbuf_init(&g.pairs, MAX_BYTES);
    add_string(&g, "general.architecture", "llama");
    if (model) add_string(&g, "tokenizer.ggml.model", model);
    if (pre) add_string(&g, "tokenizer.ggml.pre", pre);
    return g;
}

static void assert_ids(const nb_tokenizer *t, const char *text, unsigned flags, const int32_t *want,
                       size_t n_want)
{
    int32_t *ids;
    size_t n;
    assert_int_equal(nb_tokenizer_encode(t, text, strlen(text), flags, &ids, &n, NULL), NB_OK);
    assert_int_equal(n, n_want);
    assert_memory_equal(ids, want, n * sizeof *ids);
    free(ids);
}

static void test_gguf_bpe(void **state)
{
    (void)state;
    static const uint32_t types[] = {1, 1, 1, 3};
    nb_tokenizer *t;
    nb_error err = {0};
    gguf g = new_gguf("gpt2", "llama-bpe");
    add_strings(&g, "tokenizer.ggml.tokens", "a|b|ab|<s>");
    add_u32s(&g, "tokenizer.ggml.token_type", types, 4);
    add_strings(&g, "tokenizer.ggml.merges", "a b");
    add_u32(&g, "tokenizer.ggml.bos_token_id", 3);
    add_u32(&g, "tokenizer.ggml.eos_token_id", UINT32_MAX);
    add_string(&g, "tokenizer.chat_template", "<|im_start|><|im_end|>");
    if (open_gguf(&g, &t, &err) != NB_OK) fail_msg("%s", err.message);
    static const int32_t want[] = {3, 2, 0, 3}; /* this pre-tokenizer adds BOS unless told */
    assert_ids(t, "aba<s>", NB_ENCODE_BOS | NB_ENCODE_SPECIAL, want, 4);
    nb_strbuf b;
    nb_strbuf_init(&b, 1000);
    assert_int_equal(nb_tokenizer_chat(t, &(nb_message){"user", "x"}, 1, &b, NULL), NB_OK);
    assert_string_equal(b.data, "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
    nb_strbuf_fini(&b);
    nb_tokenizer_free(t);
}

static void test_gguf_spm(void **state)
{
    (void)state;
    static const uint32_t types[] = {2, 3, 1, 1, 1, 1};
    static const float scores[] = {0, 0, -3, -2, -1, -4};
    nb_tokenizer *t;
    nb_error err = {0};
    gguf g = new_gguf("llama", NULL);
    add_strings(&g, "tokenizer.ggml.tokens", "<unk>|<s>|a|b|ab|\xe2\x96\x81");
    add_u32s(&g, "tokenizer.ggml.token_type", types, 6);
    begin_array(&g, "tokenizer.ggml.scores", NB_META_F32, 6);
    nb_strbuf_append(&g.pairs, scores, sizeof scores);
    add_u32(&g, "tokenizer.ggml.bos_token_id", 1);
    add_u32(&g, "tokenizer.ggml.unknown_token_id", 0);
    add_bool(&g, "tokenizer.ggml.add_bos_token", false);
    if (open_gguf(&g, &t, &err) != NB_OK) fail_msg("%s", err.message);
    static const int32_t want[] = {5, 2, 4, 0};
    assert_ids(t, "aabz", NB_ENCODE_BOS, want, 4);
    nb_tokenizer_free(t);
}

typedef void (*fault_fn)(gguf *g);

static void short_types(gguf *g)
{
    add_u32s(g, "tokenizer.ggml.token_type", (const uint32_t[]){1}, 1);
}

static void odd_types(gguf *g)
{
    add_u32s(g, "tokenizer.ggml.token_type", (const uint32_t[]){1, 1, 7}, 3);
}

static void numeric_merges(gguf *g)
{
    add_u32s(g, "tokenizer.ggml.merges", (const uint32_t[]){1}, 1);
}

static void string_bos(gguf *g) { add_string(g, "tokenizer.ggml.bos_token_id", "x"); }

static void large_bos(gguf *g) { add_u32(g, "tokenizer.ggml.bos_token_id", 3); }

static void numeric_flag(gguf *g) { add_string(g, "tokenizer.ggml.add_bos_token", "x"); }

static void numeric_template(gguf *g) { add_u32(g, "tokenizer.chat_template", 1); }

static void test_bad_gguf(void **state)
{
    (void)state;
    static const struct {
        fault_fn add;
        const char *model, *pre, *says;
    } rows[] = {
        {short_types, "gpt2", "gpt-2", "token_type: expected an array of 3 numbers, found 1"},
        {odd_types, "gpt2", "gpt-2", "types from 0 to 6"},
        {numeric_merges, "gpt2", "gpt-2", "merges: expected an array of strings"},
        {string_bos, "gpt2", "gpt-2", "bos_token_id: expected a token id"},
        {large_bos, "gpt2", "gpt-2", "bos token id 3"},
        {numeric_flag, "gpt2", "gpt-2", "add_bos_token: expected true or false"},
        {numeric_template, "gpt2", "gpt-2", "chat_template: expected a string"},
        {NULL, "gpt2", "x", "pre-tokenizer \"x\" is not known"},
        {NULL, "bert", NULL, "kind \"bert\" is not supported"},
        {NULL, "llama", NULL, "no scores"},
    };
    for (size_t i = 0; i < NB_COUNT(rows); i++) {
        nb_tokenizer *t;
        nb_error err = {0};
        gguf g = new_gguf(rows[i].model, rows[i].pre);
        add_strings(&g, "tokenizer.ggml.tokens", "a|b|ab");
        if (rows[i].add) rows[i].add(&g);
        nb_status st = open_gguf(&g, &t, &err);
        assert_bad_input(rows[i].says, st, &err, rows[i].says);
        assert_null(t);
    }
}

/* A directory with one tensor and these files; content NULL: none. */
typedef struct dir_file {
    const char *name, *content;
} dir_file;

static nb_status open_dir(const dir_file *files, size_t n, nb_tokenizer **t, nb_error *err)
{
    char *dir = temp_dir();
    nb_checkpoint *c;
    nb_strbuf b;
    nb_strbuf_init(&b, MAX_BYTES);
    append_safetensors(&b, "{'x':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}}", 4);
    write_to_dir(dir, "model.safetensors", b.data, b.n_bytes);
    write_to_dir(dir, "config.json", "{}", 2);
    for (size_t i = 0; i < n; i++) {
        write_to_dir(dir, files[i].name, files[i].content, strlen(files[i].content));
    }
    *t = NULL;
    nb_status st = nb_checkpoint_open(&c, dir, err);
    if (st == NB_OK) st = nb_checkpoint_tokenizer(c, t, err);
    nb_checkpoint_close(c);
    nb_strbuf_fini(&b);
    remove_dir(dir);
    return st;
}

static void test_directory(void **state)
{
    (void)state;
    static const char json[] = "{\"model\": {\"vocab\": {\"a\": 0, \"<s>\": 1}, \"merges\": []}}";
    static const dir_file files[] = {
        {"tokenizer.json", json},
        {"tokenizer_config.json", "{\"bos_token\": \"<s>\", \"chat_template\": \"x\"}"},
        {"chat_template.jinja", "<|im_start|><|im_end|>"},
        {"tokenizer.model", "not read"},
    };
    static const dir_file bad_model[] = {{"tokenizer.model", "x"}};
    nb_tokenizer *t;
    nb_error err = {0};
    nb_strbuf b;
    nb_strbuf_init(&b, 1000);
    assert_int_equal(open_dir(NULL, 0, &t, &err), NB_OK);
    assert_null(t);
    if (open_dir(files, 4, &t, &err) != NB_OK) fail_msg("%s", err.message);
    assert_int_equal(nb_tokenizer_bos(t), 1);
    assert_int_equal(nb_tokenizer_chat(t, &(nb_message){"user", "x"}, 1, &b, &err), NB_OK);
    nb_tokenizer_free(t);
    assert_bad_input("model", open_dir(bad_model, 1, &t, &err), &err, "tokenizer.model: ");
    nb_strbuf_fini(&b);
}

int main(int argc, char **argv)
{
    if (argc > 1) return run_driver(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf_bpe),
        cmocka_unit_test(test_gguf_spm),
        cmocka_unit_test(test_bad_gguf),
        cmocka_unit_test(test_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
