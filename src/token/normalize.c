#include <stdlib.h>
#include <utf8proc.h>

#include "token/steps.h"
#include "token/utf8.h"

static nb_status check_out(const nb_strbuf *out, nb_error *err)
{
    return out->failed ? nb_fail_memory(err, "text", out->n_bytes) : NB_OK;
}

static nb_status replace(const nb_norm_step *s, nb_matcher *m, nb_text in, nb_strbuf *out,
                         nb_error *err)
{
    size_t copied = 0, from = 0, begin, end;
    while (from <= in.n) {
        bool found;
        NB_TRY(nb_regex_find(s->re, m, in.s, in.n, from, &begin, &end, &found, err));
        if (!found) break;
        if (end > begin) {
            nb_strbuf_append(out, in.s + copied, begin - copied);
            nb_strbuf_append(out, s->text.s, s->text.n);
            copied = from = end;
        } else { /* an empty match replaces nothing */
            from = begin < in.n ? begin + nb_utf8_len(in.s[begin]) : in.n + 1;
        }
    }
    nb_strbuf_append(out, in.s + copied, in.n - copied);
    return NB_OK;
}

static nb_status compose(nb_norm_kind kind, nb_text in, nb_strbuf *out, nb_error *err)
{
    size_t ascii = 0;
    while (ascii < in.n && !((unsigned char)in.s[ascii] & 0x80)) ascii++;
    if (ascii == in.n) { /* every form leaves ASCII alone */
        nb_strbuf_append(out, in.s, in.n);
        return NB_OK;
    }
    static const int options[] = {
        [NB_NORMALIZE_NFC] = UTF8PROC_COMPOSE,
        [NB_NORMALIZE_NFD] = UTF8PROC_DECOMPOSE,
        [NB_NORMALIZE_NFKC] = UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [NB_NORMALIZE_NFKD] = UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    utf8proc_uint8_t *s = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)in.s, (utf8proc_ssize_t)in.n, &s,
                                      (utf8proc_option_t)(UTF8PROC_STABLE | options[kind]));
    if (n < 0) return nb_fail(err, NB_ERESOURCE, "text: %s", utf8proc_errmsg(n));
    nb_strbuf_append(out, s, (size_t)n);
    free(s);
    return NB_OK;
}

static nb_status run_step(const nb_norm_step *s, nb_matcher *m, nb_text in, nb_strbuf *out,
                          nb_error *err)
{
    switch (s->kind) {
    case NB_NORMALIZE_PREPEND:
        if (in.n) nb_strbuf_append(out, s->text.s, s->text.n);
        nb_strbuf_append(out, in.s, in.n);
        break;
    case NB_NORMALIZE_REPLACE:
        NB_TRY(replace(s, m, in, out, err));
        break;
    default:
        NB_TRY(compose(s->kind, in, out, err));
        break;
    }
    return check_out(out, err);
}

nb_status nb_normalize(const nb_norm_step *steps, size_t n_steps, nb_matcher *m, nb_text in,
                       nb_strbuf *out, nb_error *err)
{
    nb_status st = NB_OK;
    nb_strbuf a, b;
    nb_strbuf_init(&a, NB_MAX_TEXT_BYTES);
    nb_strbuf_init(&b, NB_MAX_TEXT_BYTES);
    for (size_t i = 0; i < n_steps; i++) {
        b.n_bytes = 0;
        NB_GOTO(st, run_step(&steps[i], m, in, &b, err));
        nb_strbuf t = a;
        a = b;
        b = t;
        in = (nb_text){a.data ? a.data : "", a.n_bytes};
    }
    nb_strbuf_append(out, in.s, in.n);
    st = check_out(out, err);
done:
    nb_strbuf_fini(&a);
    nb_strbuf_fini(&b);
    return st;
}
