#include "token/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "base/strbuf.h"

/* Longer than any known pre-tokenizer (deepseek-llm: 1 KB). */
#define MAX_PATTERN_BYTES 16384

/* Backtracking steps and memory of one match. A word of ordinary text takes tens of steps; a
 * megabyte of one letter, a few millions. */
#define MATCH_LIMIT     10000000
#define HEAP_LIMIT_KIB  65536
#define JIT_STACK_BYTES (1 << 20)

struct nb_regex {
    pcre2_code *code;
    char *source;
    size_t n_source;
    bool literal;
};

struct nb_matcher {
    pcre2_match_context *context;
    pcre2_match_data *data;
    pcre2_jit_stack *stack;
};

/* White_Space of Unicode; PCRE2's own \s has U+180E too. */
#define SPACES                                                                                     \
    "\\t-\\r\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}" \
    "\\x{3000}"

/* Writes the escape at p[0] == '\\'; returns its bytes. \S inside a class stays PCRE2's. */
static size_t translate_escape(nb_strbuf *b, const char *p, size_t n, bool in_class)
{
    if (n < 2) {
        nb_strbuf_append(b, p, n);
        return n;
    }
    if (p[1] == 's') {
        nb_strbuf_puts(b, in_class ? SPACES : "[" SPACES "]");
    } else if (p[1] == 'S' && !in_class) {
        nb_strbuf_puts(b, "[^" SPACES "]");
    } else {
        nb_strbuf_append(b, p, 2);
    }
    return 2;
}

/* From Oniguruma's (Ruby) syntax to PCRE2's. */
static nb_status translate(nb_strbuf *b, nb_text x, nb_error *err)
{
    size_t class_begin = 0; /* index behind the '[' of the class we are in, 0: none */
    for (size_t i = 0; i < x.n;) {
        char c = x.s[i];
        if (c == '\\') {
            i += translate_escape(b, x.s + i, x.n - i, class_begin > 0);
            continue;
        }
        if (class_begin && (c == '[' || (c == '&' && i + 1 < x.n && x.s[i + 1] == '&'))) {
            return nb_fail(err, NB_EINPUT,
                           "regular expression \"%.*s\": nested classes and intersections are "
                           "not supported (offset %zu)",
                           (int)(x.n < 120 ? x.n : 120), x.s, i);
        }
        if (!class_begin && c == '[') {
            class_begin = i + 1 + (i + 1 < x.n && x.s[i + 1] == '^');
        } else if (class_begin && c == ']' && i > class_begin) {
            class_begin = 0;
        }
        nb_strbuf_append(b, &c, 1);
        i++;
    }
    return NB_OK;
}

static nb_status compile(nb_regex *re, nb_text pattern, nb_error *err)
{
    nb_strbuf b;
    nb_strbuf_init(&b, 32 * MAX_PATTERN_BYTES);
    nb_status st = NB_OK;
    if (re->literal) {
        nb_strbuf_append(&b, pattern.s, pattern.n);
    } else {
        NB_GOTO(st, translate(&b, pattern, err));
    }
    if (b.failed) {
        st = nb_fail_memory(err, "regular expression", pattern.n);
        goto done;
    }
    uint32_t options =
        PCRE2_UTF |
        (re->literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
    int code;
    PCRE2_SIZE offset;
    re->code = pcre2_compile((PCRE2_SPTR)b.data, b.n_bytes, options, &code, &offset, NULL);
    if (!re->code) {
        char why[120];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        st = nb_fail(err, NB_EINPUT, "regular expression \"%.120s\": %s", re->source, why);
        goto done;
    }
    /* Without a compiler for this machine the interpreter does the same, slower. */
    pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE);
done:
    nb_strbuf_fini(&b);
    return st;
}

nb_status nb_regex_create(nb_regex **out, nb_text pattern, bool literal, nb_error *err)
{
    *out = NULL;
    if (pattern.n == 0 || pattern.n > MAX_PATTERN_BYTES) {
        return nb_fail(err, NB_EINPUT, "regular expression of %zu bytes, expected 1 to %d",
                       pattern.n, MAX_PATTERN_BYTES);
    }
    nb_regex *re = calloc(1, sizeof *re);
    if (!re) return nb_fail_memory(err, "regular expression", sizeof *re);
    re->literal = literal;
    re->n_source = pattern.n;
    re->source = malloc(pattern.n + 1);
    if (!re->source) {
        nb_regex_free(re);
        return nb_fail_memory(err, "regular expression", pattern.n);
    }
    memcpy(re->source, pattern.s, pattern.n);
    re->source[pattern.n] = 0;
    nb_status st = compile(re, pattern, err);
    if (st != NB_OK) {
        nb_regex_free(re);
        return st;
    }
    *out = re;
    return NB_OK;
}

void nb_regex_free(nb_regex *re)
{
    if (!re) return;
    pcre2_code_free(re->code);
    free(re->source);
    free(re);
}

nb_text nb_regex_source(const nb_regex *re) { return (nb_text){re->source, re->n_source}; }

bool nb_regex_is_literal(const nb_regex *re) { return re->literal; }

nb_status nb_matcher_create(nb_matcher **out, nb_error *err)
{
    nb_matcher *m = *out = calloc(1, sizeof *m);
    if (!m) return nb_fail_memory(err, "matcher", sizeof *m);
    m->context = pcre2_match_context_create(NULL);
    m->data = pcre2_match_data_create(1, NULL); /* only the whole match is asked for */
    m->stack = pcre2_jit_stack_create(32768, JIT_STACK_BYTES, NULL);
    if (!m->context || !m->data) {
        nb_matcher_free(m);
        *out = NULL;
        return nb_fail_memory(err, "matcher", JIT_STACK_BYTES);
    }
    pcre2_set_match_limit(m->context, MATCH_LIMIT);
    pcre2_set_heap_limit(m->context, HEAP_LIMIT_KIB);
    if (m->stack) pcre2_jit_stack_assign(m->context, NULL, m->stack);
    return NB_OK;
}

void nb_matcher_free(nb_matcher *m)
{
    if (!m) return;
    pcre2_match_context_free(m->context);
    pcre2_match_data_free(m->data);
    pcre2_jit_stack_free(m->stack);
    free(m);
}

nb_status nb_regex_find(const nb_regex *re, nb_matcher *m, const char *s, size_t n_bytes,
                        size_t from, size_t *begin, size_t *end, bool *found, nb_error *err)
{
    *found = false;
    int rc = pcre2_match(re->code, (PCRE2_SPTR)s, n_bytes, from, PCRE2_NO_UTF_CHECK, m->data,
                         m->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) { /* the interpreter keeps its stack on the heap */
        rc = pcre2_match(re->code, (PCRE2_SPTR)s, n_bytes, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         m->data, m->context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return NB_OK;
    if (rc < 0) {
        char why[120];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
        return nb_fail(err, NB_EINPUT, "regular expression \"%.120s\" at offset %zu of a text: %s",
                       re->source, from, why);
    }
    *found = true;
    *begin = pcre2_get_ovector_pointer(m->data)[0];
    *end = pcre2_get_ovector_pointer(m->data)[1];
    /* \K may set the begin behind the end or before `from`; such a pattern would never advance. */
    if (*begin < from || *end < *begin) {
        return nb_fail(err, NB_EINPUT, "regular expression \"%.120s\": matches backwards",
                       re->source);
    }
    return NB_OK;
}
