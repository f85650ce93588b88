/* nb_checkpoint_tokenizer, and the driver of the checks that need large files:
 *
 *   test_vocab FILE.gguf...                each with FILE.gguf.inp and FILE.gguf.out: one line of
 *                                          a table; the status is 1 if any id differs
 *   test_vocab --ids MODEL TEXT OUT        ids of a text file as int32
 *   test_vocab --export MODEL DIR          tokenizer.json and tokenizer_config.json
 *
 * scripts/vocab_test.sh and scripts/tokenizer_parity.py use these. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

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
        printf("%-32s %s\n", name, err.message);
    } else if (!inp || !out) {
        printf("%-32s loads, %zu tokens; no .inp and .out\n", name, nb_tokenizer_count(t));
    } else {
        tally r = run_cases(t, inp, out);
        ok = r.n_tests > 0 && r.n_failed == 0;
        printf("%-32s %d of %d %s\n", name, r.n_tests - r.n_failed, r.n_tests, ok ? "ok" : "FAILED");
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

int main(int argc, char **argv)
{
    if (argc > 1) return run_driver(argc, argv);
    return 0;
}
