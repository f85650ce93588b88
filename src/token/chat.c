/* Chat prompts without a template engine.
 *
 * Templates are programs (Jinja), but those in use say one of five things. The style is recognised
 * by its markers; what differs within a style (spaces, a default system prompt, where the system
 * message goes) is read from the string literals of the template. A template with any other
 * marker is refused: a prompt that is nearly right is worse than none. */
#include <string.h>

#include "token/tokenizer.h"

typedef struct chat {
    const nb_tokenizer *t;
    const char *text; /* the template */
    const nb_message *messages;
    size_t n;
    nb_strbuf *out;
} chat;

typedef struct style {
    const char *markers[3]; /* all of them occur */
    const char *foreign[8]; /* none of them occurs: another dialect */
    nb_status (*render)(const chat *c, nb_error *err);
} style;

static bool has(const chat *c, const char *s) { return strstr(c->text, s) != NULL; }

static bool is_role(const nb_message *m, const char *role) { return strcmp(m->role, role) == 0; }

static void put_token(const chat *c, int32_t id)
{
    if (id < 0) return;
    nb_text x = c->t->bpe.tokens.text[id];
    nb_strbuf_append(c->out, x.s, x.n);
}

static void put(const chat *c, const char *s) { nb_strbuf_puts(c->out, s); }

static const char *skip_spaces(const char *s)
{
    size_t len;
    while (*s && nb_char_is_space(nb_utf8_decode(s, &len))) s += len;
    return s;
}

/* Without white space at the end. */
static void put_rtrimmed(const chat *c, const char *s)
{
    size_t n = strlen(s), len;
    while (n) {
        size_t last = nb_utf8_prev(s, n);
        if (!nb_char_is_space(nb_utf8_decode(s + last, &len))) break;
        n = last;
    }
    nb_strbuf_append(c->out, s, n);
}

static void put_trimmed(const chat *c, const char *s) { put_rtrimmed(c, skip_spaces(s)); }

/* ---- string literals of the template ------------------------------------------------------ */

/* The literal that begins at the quote *p: appended without its escapes; the closing quote, or
 * NULL if there is none. */
static const char *read_literal(const char *p, nb_strbuf *out)
{
    char quote = *p++;
    for (; *p && *p != quote; p++) {
        char c = *p;
        if (c == '\\' && p[1]) {
            c = *++p;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
        }
        nb_strbuf_append(out, &c, 1);
    }
    return *p ? p : NULL;
}

static bool is_quote(char c) { return c == '\'' || c == '"'; }

/* The literal that begins with `head` and has something behind it, searched from `from` on. */
static bool find_literal(const char *from, const char *head, nb_strbuf *out)
{
    for (const char *p = from; (p = strstr(p, head)); p++) {
        if (p == from || !is_quote(p[-1])) continue;
        out->n_bytes = 0;
        if (read_literal(p - 1, out) && !out->failed) return true;
    }
    return false;
}

/* ---- ChatML: <|im_start|>role\n ... <|im_end|>\n ------------------------------------------- */

/* A system prompt that the template has for conversations without one: a literal that is a whole
 * system message. */
static bool find_default_system(const chat *c, nb_strbuf *out)
{
    static const char head[] = "<|im_start|>system", tail[] = "<|im_end|>\n";
    const size_t n_head = sizeof head - 1, n_tail = sizeof tail - 1;
    for (const char *p = c->text; (p = strstr(p, head)); p++) {
        if (!find_literal(p > c->text ? p - 1 : p, head, out)) return false;
        if (out->n_bytes > n_head + n_tail + 1 && out->data[n_head] == '\n' &&
            memcmp(out->data + out->n_bytes - n_tail, tail, n_tail) == 0) {
            return true;
        }
    }
    return false;
}

/* Thoughts of earlier turns are not shown again (Qwen3, QwQ). */
static const char *skip_thoughts(const chat *c, const char *content)
{
    static const char end[] = "</think>";
    if (!has(c, end)) return content;
    for (const char *p; (p = strstr(content, end)); content = p + sizeof end - 1) continue;
    return content + strspn(content, "\n");
}

static nb_status render_chatml(const chat *c, nb_error *err)
{
    static const char answer[] = "<|im_start|>assistant";
    nb_strbuf b;
    nb_strbuf_init(&b, NB_MAX_TEXT_BYTES);
    if (has(c, "bos_token")) put_token(c, c->t->bos);
    if (!is_role(&c->messages[0], "system") && find_default_system(c, &b)) put(c, b.data);
    for (size_t i = 0; i < c->n; i++) {
        const nb_message *m = &c->messages[i];
        bool theirs = is_role(m, "assistant");
        put(c, "<|im_start|>");
        put(c, m->role);
        put(c, "\n");
        put(c, theirs ? skip_thoughts(c, m->content) : m->content);
        put(c, "<|im_end|>\n");
    }
    const char *from = strstr(c->text, "add_generation_prompt");
    put(c, from && find_literal(from, answer, &b) ? b.data : "<|im_start|>assistant\n");
    bool failed = b.failed;
    nb_strbuf_fini(&b);
    return failed ? nb_fail_memory(err, "chat template", strlen(c->text)) : NB_OK;
}

/* ---- Llama-3: <|start_header_id|>role<|end_header_id|>\n\n ... <|eot_id|> ------------------- */

static void put_header(const chat *c, const char *role)
{
    put(c, "<|start_header_id|>");
    put(c, role);
    put(c, "<|end_header_id|>\n\n");
}

/* Llama 3.1 and later: a system message in any case, which begins with two dates. "Today" is the
 * date that the template gives where it cannot ask the clock: prompts stay reproducible. */
static void put_dated_system(const chat *c, const char *system)
{
    nb_strbuf b;
    nb_strbuf_init(&b, NB_MAX_TOKEN_BYTES);
    const char *p = strstr(c->text, "date_string = \"");
    put_header(c, "system");
    put(c, "Cutting Knowledge Date: December 2023\nToday Date: ");
    if (p && read_literal(strchr(p, '"'), &b) && !b.failed) put(c, b.data);
    put(c, "\n\n");
    put_trimmed(c, system);
    put(c, "<|eot_id|>");
    nb_strbuf_fini(&b);
}

static nb_status render_llama3(const chat *c, nb_error *err)
{
    NB_UNUSED(err);
    size_t i = 0;
    put_token(c, c->t->bos);
    if (has(c, "Cutting Knowledge Date")) {
        bool system = is_role(&c->messages[0], "system");
        put_dated_system(c, system ? c->messages[0].content : "");
        i += system;
    }
    for (; i < c->n; i++) {
        put_header(c, c->messages[i].role);
        put_trimmed(c, c->messages[i].content);
        put(c, "<|eot_id|>");
    }
    put_header(c, "assistant");
    return NB_OK;
}

/* ---- Zephyr: <|role|>\n ... </s>\n --------------------------------------------------------- */

static nb_status render_zephyr(const chat *c, nb_error *err)
{
    NB_UNUSED(err);
    for (size_t i = 0; i < c->n; i++) {
        put(c, "<|");
        put(c, c->messages[i].role);
        put(c, "|>\n");
        put(c, c->messages[i].content);
        put_token(c, c->t->eos);
        put(c, "\n");
    }
    put(c, "<|assistant|>\n");
    return NB_OK;
}

/* ---- Llama-2 and Mistral: [INST] ... [/INST] ---------------------------------------------- */

/* After an optional system message the roles alternate, the user first. */
static nb_status check_turns(const chat *c, size_t first, nb_error *err)
{
    for (size_t i = first; i < c->n; i++) {
        const char *role = (i - first) % 2 ? "assistant" : "user";
        if (is_role(&c->messages[i], role)) continue;
        return nb_fail(err, NB_EUSAGE, "message %zu: role \"%.20s\", expected \"%s\"", i,
                       c->messages[i].role, role);
    }
    return NB_OK;
}

static nb_status render_llama2(const chat *c, nb_error *err)
{
    size_t first = is_role(&c->messages[0], "system");
    NB_TRY(check_turns(c, first, err));
    for (size_t i = first; i < c->n; i++) {
        const nb_message *m = &c->messages[i];
        if (is_role(m, "assistant")) {
            put(c, " ");
            put_trimmed(c, m->content);
            put(c, " ");
            put_token(c, c->t->eos);
            continue;
        }
        bool with_system = i == first && first;
        put_token(c, c->t->bos);
        put(c, "[INST] ");
        if (with_system) {
            put(c, "<<SYS>>\n");
            put(c, c->messages[0].content);
            put(c, "\n<</SYS>>\n\n");
        }
        /* The template trims the two together. */
        put_rtrimmed(c, with_system ? m->content : skip_spaces(m->content));
        put(c, " [/INST]");
    }
    return NB_OK;
}

/* Mistral changed its spaces from version to version. */
typedef struct mistral {
    nb_strbuf open, close;   /* "[INST] ", " [/INST]", ... */
    nb_strbuf before, after; /* around an answer and its EOS */
    bool trim_answer;
    bool system_first, system_last; /* the system message joins the first or last user message */
} mistral;

/* The literal that holds `mark`, wherever in it. */
static void find_around(const chat *c, const char *mark, nb_strbuf *out)
{
    const char *at = strstr(c->text, mark);
    const char *p = at;
    while (p > c->text && !is_quote(p[-1])) p--;
    if (p > c->text) read_literal(p - 1, out);
}

/* {{ ' ' + message['content']|trim + eos_token + ' ' }}: literals before the content and after the
 * EOS. */
static void read_answer(const chat *c, mistral *m)
{
    const char *eos = strstr(c->text, "eos_token"), *begin = c->text;
    for (const char *p = c->text; eos && (p = strstr(p, "{{")) && p < eos; p += 2) begin = p;
    const char *content = eos ? strstr(begin, "content") : NULL;
    if (!content || content > eos) return;
    const char *p = begin + 2 + strspn(begin + 2, "- \n");
    if (is_quote(*p)) read_literal(p, &m->before);
    p = eos + strlen("eos_token");
    p += strspn(p, " +");
    if (is_quote(*p)) read_literal(p, &m->after);
    const char *trim = strstr(content, "trim"), *strip = strstr(content, "strip");
    m->trim_answer = (trim && trim < eos) || (strip && strip < eos);
}

static void read_mistral(const chat *c, mistral *m)
{
    memset(m, 0, sizeof *m);
    nb_strbuf *all[] = {&m->open, &m->close, &m->before, &m->after};
    for (size_t i = 0; i < NB_COUNT(all); i++) {
        nb_strbuf_init(all[i], NB_MAX_TOKEN_BYTES);
        nb_strbuf_puts(all[i], "");
    }
    find_around(c, "[INST]", &m->open);
    find_around(c, "[/INST]", &m->close);
    read_answer(c, m);
    m->system_first = has(c, "loop.first and system_message");
    m->system_last = has(c, "loop.last and system_message");
}

static void mistral_fini(mistral *m)
{
    nb_strbuf_fini(&m->open);
    nb_strbuf_fini(&m->close);
    nb_strbuf_fini(&m->before);
    nb_strbuf_fini(&m->after);
}

static void put_answer(const chat *c, const mistral *m, const char *content)
{
    put(c, m->before.data);
    if (m->trim_answer)
        put_trimmed(c, content);
    else
        put(c, content);
    put_token(c, c->t->eos);
    put(c, m->after.data);
}

static nb_status put_turns(const chat *c, const mistral *m, nb_error *err)
{
    size_t first = is_role(&c->messages[0], "system");
    if (first && !m->system_first && !m->system_last) {
        return nb_fail(err, NB_EUSAGE, "the model's chat template takes no system message");
    }
    NB_TRY(check_turns(c, first, err));
    size_t with_system = !first ? c->n : m->system_first ? first : c->n - 1;
    put_token(c, c->t->bos);
    for (size_t i = first; i < c->n; i++) {
        if (is_role(&c->messages[i], "assistant")) {
            put_answer(c, m, c->messages[i].content);
            continue;
        }
        put(c, m->open.data);
        if (i == with_system) {
            put(c, c->messages[0].content);
            put(c, "\n\n");
        }
        put(c, c->messages[i].content);
        put(c, m->close.data);
    }
    return NB_OK;
}

static nb_status render_mistral(const chat *c, nb_error *err)
{
    mistral m;
    read_mistral(c, &m);
    nb_status st = put_turns(c, &m, err);
    mistral_fini(&m);
    return st;
}

/* ---- recognition -------------------------------------------------------------------------- */

static const style styles[] = {
    /* Llama-3 */
    {{"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     {"namespace functions", "provided functions",
      "<function=", "convert_data_type"}, /* functionary, firefunction */
     render_llama3},
    /* ChatML */
    {{"<|im_start|>", "<|im_end|>"},
     {"## Metadata",               /* SmolLM3 */
      "function calling AI model", /* Hermes, for tools */
      "if not enable_thinking",    /* switches that open or close thoughts by default */
      "truncate_history_thinking", "{{- '<think>\\n' }}", "strftime_now"},
     render_chatml},
    /* Zephyr */
    {{"<|user|>", "<|assistant|>", "eos_token"},
     {"<|end|>"}, /* Phi-3 */
     render_zephyr},
    /* Llama-2 */
    {{"[INST]", "[/INST]", "<<SYS>>"}, {NULL}, render_llama2},
    /* Mistral */
    {{"[INST]", "[/INST]", "eos_token"},
     {"[SYSTEM_PROMPT]"}, /* from Mistral Small 3 on */
     render_mistral},
};

static bool matches(const chat *c, const style *s)
{
    for (size_t i = 0; i < NB_COUNT(s->markers) && s->markers[i]; i++) {
        if (!has(c, s->markers[i])) return false;
    }
    for (size_t i = 0; i < NB_COUNT(s->foreign) && s->foreign[i]; i++) {
        if (has(c, s->foreign[i])) return false;
    }
    return true;
}

static nb_status check_messages(const nb_message *messages, size_t n, nb_error *err)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    if (n == 0) return nb_fail(err, NB_EUSAGE, "a chat needs at least one message");
    for (size_t i = 0; i < n; i++) {
        bool known = false;
        for (size_t k = 0; k < NB_COUNT(roles); k++) known |= is_role(&messages[i], roles[k]);
        if (!known || (i > 0 && is_role(&messages[i], "system"))) {
            return nb_fail(err, NB_EUSAGE, "message %zu: role \"%.20s\" is not expected here", i,
                           messages[i].role);
        }
        size_t n_bytes = strlen(messages[i].content);
        if (nb_utf8_check(messages[i].content, n_bytes) != n_bytes) {
            return nb_fail(err, NB_EINPUT, "message %zu: not UTF-8", i);
        }
    }
    return NB_OK;
}

nb_status nb_tokenizer_chat(const nb_tokenizer *t, const nb_message *messages, size_t n,
                            nb_strbuf *out, nb_error *err)
{
    if (!t->chat_template) {
        return nb_fail(err, NB_EUSAGE, "the model has no chat template");
    }
    NB_TRY(check_messages(messages, n, err));
    chat c = {.t = t, .text = t->chat_template, .messages = messages, .n = n, .out = out};
    for (size_t i = 0; i < NB_COUNT(styles); i++) {
        if (!matches(&c, &styles[i])) continue;
        NB_TRY(styles[i].render(&c, err));
        return out->failed ? nb_fail_memory(err, "chat prompt", out->n_bytes) : NB_OK;
    }
    return nb_fail(err, NB_EINPUT,
                   "chat template is none of ChatML, Llama-2, Llama-3, Mistral, Zephyr; it begins "
                   "with: %.160s",
                   t->chat_template);
}
