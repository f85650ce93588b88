/* Every model in tests/golden gives the logits that Hugging Face transformers gave for it, on every
 * CPU backend: || a - b || / || b || <= 1e-3 in fp32 (what is left is summation order).
 * make_golden.py beside the models says what each holds. Runs in the root of the tree. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "nibble.h"

#define GOLDEN     "tests/golden"
#define MAX_MODELS 64
#define MAX_TOKENS 256
#define TOLERANCE  1e-3

static const char *const devices[] = {"cpu", "ref"};
#define N_DEVICES (sizeof devices / sizeof devices[0])

typedef struct golden_case {
    char name[96]; /* of the test: "qwen3 on cpu" */
    char model[64];
    const char *device;
} golden_case;

/* ---- golden files ----------------------------------------------------------------------- */

static char *read_golden(const char *model, const char *file, size_t *n_bytes)
{
    char path[256];
    snprintf(path, sizeof path, GOLDEN "/%s/%s", model, file);
    char *data = NULL;
    nb_error err = {0};
    nb_file_read(path, &data, n_bytes, &err);
    if (!data) fail_msg("%s", err.message);
    return data;
}

static size_t read_tokens(const char *model, int32_t *ids)
{
    size_t n_bytes, n = 0;
    char *text = read_golden(model, "tokens.txt", &n_bytes);
    for (char *p = strtok(text, ",\n"); p && n < MAX_TOKENS; p = strtok(NULL, ",\n")) {
        ids[n++] = (int32_t)strtol(p, NULL, 10);
    }
    nb_free(text);
    return n;
}

/* fp32 C-order matrix of a version 1.0 .npy file; free with free(). */
static float *read_npy(const char *model, size_t *rows, size_t *cols)
{
    size_t n_bytes;
    char *data = read_golden(model, "logits.npy", &n_bytes);
    assert_true(n_bytes > 10 && memcmp(data, "\x93NUMPY\x01\x00", 8) == 0);
    size_t header = 10 + (size_t)(uint8_t)data[8] + 256 * (size_t)(uint8_t)data[9];
    assert_true(header <= n_bytes);
    data[header - 1] = 0;
    assert_non_null(strstr(data + 10, "'<f4'"));
    const char *shape = strstr(data + 10, "'shape': (");
    assert_non_null(shape);
    assert_int_equal(sscanf(shape, "'shape': (%zu, %zu)", rows, cols), 2);
    size_t size = *rows * *cols * sizeof(float);
    assert_int_equal(n_bytes - header, size);
    float *out = malloc(size);
    assert_non_null(out);
    memcpy(out, data + header, size);
    nb_free(data);
    return out;
}

/* A directory that holds model.gguf is opened by that file. */
static void model_path(const char *model, char *path, size_t n)
{
    snprintf(path, n, GOLDEN "/%s/model.gguf", model);
    FILE *f = fopen(path, "rb");
    if (f)
        fclose(f);
    else
        snprintf(path, n, GOLDEN "/%s", model);
}

/* ---- the test --------------------------------------------------------------------------- */

static float *compute_logits(const golden_case *c, const int32_t *ids, size_t n, size_t n_vocab)
{
    char path[256];
    model_path(c->model, path, sizeof path);
    nb_options opt;
    nb_options_default(&opt);
    opt.device = c->device;
    nb_model *m = NULL;
    nb_error err = {0};
    if (nb_model_open(&m, path, &opt, &err) != NB_OK) fail_msg("%s", err.message);
    nb_model_info info;
    nb_model_describe(m, &info);
    assert_int_equal(info.n_vocab, n_vocab);
    float *out = calloc(n * n_vocab, sizeof *out);
    assert_non_null(out);
    if (nb_logits(m, ids, n, out, &err) != NB_OK) fail_msg("%s", err.message);
    nb_model_close(m);
    return out;
}

static double relative_error(const float *a, const float *b, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(diff / norm);
}

static void test_logits(void **state)
{
    const golden_case *c = *state;
    int32_t ids[MAX_TOKENS];
    size_t n = read_tokens(c->model, ids), rows, cols;
    float *expected = read_npy(c->model, &rows, &cols);
    assert_int_equal(rows, n);
    float *got = compute_logits(c, ids, n, cols);
    double error = relative_error(got, expected, n * cols);
    printf("           %-28s relative error %.2e\n", c->name, error);
    free(got);
    free(expected);
    assert_true(error <= TOLERANCE); /* false for NaN, too */
}

static int compare_names(const void *a, const void *b) { return strcmp(a, b); }

static size_t list_models(char names[MAX_MODELS][64])
{
    size_t n = 0;
    DIR *d = opendir(GOLDEN);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d)) && n < MAX_MODELS;) {
        if (strchr(e->d_name, '.') || strchr(e->d_name, '_') || strlen(e->d_name) > 63) continue;
        strcpy(names[n++], e->d_name);
    }
    closedir(d);
    qsort(names, n, sizeof names[0], compare_names);
    return n;
}

int main(void)
{
    static char names[MAX_MODELS][64];
    static golden_case cases[MAX_MODELS * N_DEVICES];
    static struct CMUnitTest tests[MAX_MODELS * N_DEVICES];
    size_t n_models = list_models(names), n = 0;
    if (n_models < 21) {
        fprintf(stderr, "%s: %zu models, expected at least 21\n", GOLDEN, n_models);
        return 1;
    }
    for (size_t i = 0; i < n_models; i++) {
        for (size_t d = 0; d < N_DEVICES; d++, n++) {
            golden_case *c = &cases[n];
            snprintf(c->model, sizeof c->model, "%s", names[i]);
            snprintf(c->name, sizeof c->name, "%s on %s", names[i], devices[d]);
            c->device = devices[d];
            tests[n] = (struct CMUnitTest){c->name, test_logits, NULL, NULL, c};
        }
    }
    return _cmocka_run_group_tests("golden logits", tests, n, NULL, NULL);
}
