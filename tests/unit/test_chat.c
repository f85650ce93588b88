/* Prompts are those of transformers' apply_chat_template for each template in
 * tests/golden/chat_templates (made by tests/golden/make_tokenizers.py). */
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

#define TEMPLATES "tests/golden/chat_templates/"
#define MAX_BYTES ((size_t)1 << 24)

/* A tokenizer with nothing but BOS, EOS and this template. */
static nb_tokenizer *make_tokenizer(const char *chat_template)
{
    static const nb_text tokens[] = {{"a", 1}, {"<s>", 3}, {"</s>", 4}};
    static const uint8_t types[] = {NB_TOKEN_NORMAL, NB_TOKEN_CONTROL, NB_TOKEN_CONTROL};
    nb_vocab v = {.tokens = tokens,
                  .types = types,
                  .n_tokens = 3,
                  .pre = "gpt-2",
                  .bos = 1,
                  .eos = 2,
                  .unk = -1,
                  .chat_template = chat_template};
    nb_tokenizer *t;
    assert_int_equal(nb_tokenizer_from_vocab(&t, &v, NULL), NB_OK);
    return t;
}

static char *read_template(const char *name)
{
    char path[256], *text;
    size_t n;
    nb_error err;
    snprintf(path, sizeof path, TEMPLATES "%s", name);
    if (nb_read_file(path, MAX_BYTES, &text, &n, &err) != NB_OK) fail_msg("%s", err.message);
    return text;
}

static void check_row(const nb_tokenizer *t, const char *name, const json_t *row)
{
    nb_message messages[8];
    const json_t *list = json_object_get(row, "messages"), *want = json_object_get(row, "prompt");
    size_t n = json_array_size(list);
    assert_in_range(n, 1, 8);
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(list, i);
        messages[i] = (nb_message){json_string_value(json_object_get(m, "role")),
                                   json_string_value(json_object_get(m, "content"))};
    }
    nb_strbuf b;
    nb_error err;
    nb_strbuf_init(&b, MAX_BYTES);
    nb_status st = nb_tokenizer_chat(t, messages, n, &b, &err);
    if (json_is_null(want)) { /* the template refuses it too */
        assert_int_equal(st, NB_EUSAGE);
    } else if (st != NB_OK) {
        fail_msg("%s: %s", name, err.message);
    } else if (strcmp(b.data, json_string_value(want)) != 0) {
        fail_msg("%s:\n%s\nexpected\n%s", name, b.data, json_string_value(want));
    }
    nb_strbuf_fini(&b);
}

static void test_golden_prompts(void **state)
{
    (void)state;
    json_error_t e;
    const char *name;
    json_t *rows, *row, *cases = json_load_file(TEMPLATES "cases.json", 0, &e);
    size_t i;
    assert_non_null(cases);
    assert_true(json_object_size(cases) >= 12);
    json_object_foreach (cases, name, rows) {
        char *text = read_template(name);
        nb_tokenizer *t = make_tokenizer(text);
        json_array_foreach (rows, i, row) check_row(t, name, row);
        nb_tokenizer_free(t);
        free(text);
    }
    json_decref(cases);
}

static void check_fault(const char *chat_template, const nb_message *m, size_t n, nb_status status,
                        const char *says)
{
    nb_tokenizer *t = make_tokenizer(chat_template);
    nb_strbuf b;
    nb_error err = {0};
    nb_strbuf_init(&b, MAX_BYTES);
    assert_int_equal(nb_tokenizer_chat(t, m, n, &b, &err), status);
    if (!strstr(err.message, says)) fail_msg("\"%s\", expected \"%s\"", err.message, says);
    nb_strbuf_fini(&b);
    nb_tokenizer_free(t);
}

static void test_faults(void **state)
{
    (void)state;
    static const char chatml[] = "<|im_start|><|im_end|>";
    static const nb_message user = {"user", "x"}, tool = {"tool", "x"}, bad = {"user", "\xff"},
                            late[] = {{"user", "x"}, {"system", "y"}};
    check_fault(NULL, &user, 1, NB_EUSAGE, "no chat template");
    check_fault("{{ something else }}", &user, 1, NB_EINPUT, "begins with: {{ something else");
    check_fault("<|im_start|><|im_end|>{{ strftime_now('%d') }}", &user, 1, NB_EINPUT, "none of");
    check_fault("<|user|><|assistant|>eos_token<|end|>", &user, 1, NB_EINPUT, "none of");
    check_fault(chatml, &user, 0, NB_EUSAGE, "at least one");
    check_fault(chatml, &tool, 1, NB_EUSAGE, "\"tool\"");
    check_fault(chatml, late, 2, NB_EUSAGE, "message 1");
    check_fault(chatml, &bad, 1, NB_EINPUT, "not UTF-8");
    check_fault("[INST] [/INST] <<SYS>>", late, 2, NB_EUSAGE, "message 1");
}

/* Templates that stop in the middle of what is searched for. */
static void test_cut_templates(void **state)
{
    (void)state;
    static const nb_message messages[] = {{"user", "x"}, {"assistant", "y"}, {"user", "z"}};
    static const char *const names[] = {"smollm2.jinja", "qwen2.5.jinja", "mistral-v0.3.jinja",
                                        "llama3.1.jinja"};
    for (size_t i = 0; i < 4; i++) {
        char *text = read_template(names[i]);
        for (size_t n = strlen(text); n > 0; n--) {
            text[n] = 0;
            nb_tokenizer *t = make_tokenizer(text);
            nb_strbuf b;
            nb_strbuf_init(&b, MAX_BYTES);
            nb_status st = nb_tokenizer_chat(t, messages, 3, &b, NULL);
            assert_true(st == NB_OK || st == NB_EINPUT);
            nb_strbuf_fini(&b);
            nb_tokenizer_free(t);
        }
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_prompts),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_cut_templates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
