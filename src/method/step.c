/* Words of steps: NAME[:FLAG|:OPTION=NUMBER]... */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "method/method.h"

/* Index of the option, or -1. */
static int find_option(const nb_method *m, const char *name)
{
    for (int i = 0; m->options && m->options[i].name; i++) {
        if (strcmp(m->options[i].name, name) == 0) return i;
    }
    return -1;
}

static nb_status fail_option(const nb_method *m, const char *name, nb_error *err)
{
    char list[120] = "";
    size_t used = 0;
    for (int i = 0; m->options && m->options[i].name; i++) {
        const nb_step_option *o = &m->options[i];
        int n = snprintf(list + used, sizeof list - used, "%s%s%s", used ? ", " : "", o->name,
                         o->kind == NB_OPTION_FLAG ? "" : "=N");
        used += (size_t)n < sizeof list - used ? (size_t)n : 0;
    }
    return nb_fail(err, NB_EUSAGE, "step \"%s\": no option \"%.40s\"; there are %s", m->name, name,
                   used ? list : "none");
}

/* "64", "0.05", "1e-05": no sign, name or hexadecimal, which strtod would take as well. */
static bool parse_number(const nb_step_option *o, const char *text, double *out)
{
    size_t n = strspn(text, o->kind == NB_OPTION_WHOLE ? "0123456789" : "0123456789.e-");
    char *end;
    *out = strtod(text, &end);
    bool begins = text[0] == '.' || (text[0] >= '0' && text[0] <= '9');
    return begins && n < 16 && text[n] == 0 && *end == 0 && *out >= o->min && *out <= o->max;
}

/* One option, "flag" or "name=number". */
static nb_status set_option(nb_step *s, char *text, nb_error *err)
{
    char *value = strchr(text, '=');
    if (value) *value++ = 0;
    int i = find_option(s->method, text);
    if (i < 0 || (s->method->options[i].kind == NB_OPTION_FLAG) != !value)
        return fail_option(s->method, text, err);
    const nb_step_option *o = &s->method->options[i];
    double x = 1;
    if (value && !parse_number(o, value, &x)) {
        return nb_fail(err, NB_EUSAGE,
                       "step \"%s\": %s: expected a %snumber from %g to %g, found \"%.40s\"",
                       s->method->name, o->name, o->kind == NB_OPTION_WHOLE ? "whole " : "", o->min,
                       o->max, value);
    }
    s->option[i] = x;
    return NB_OK;
}

/* False: it does not fit. */
static bool print_word(nb_step *s)
{
    const nb_step_option *o = s->method->options;
    size_t used = strlen(s->method->name);
    memcpy(s->word, s->method->name, used + 1);
    for (int i = 0; o && o[i].name; i++) {
        if (s->option[i] == o[i].def) continue;
        char piece[NB_STEP_WORD];
        int n = o[i].kind == NB_OPTION_FLAG
                    ? snprintf(piece, sizeof piece, ":%s", o[i].name)
                    : snprintf(piece, sizeof piece, ":%s=%.15g", o[i].name, s->option[i]);
        if (n < 0 || used + (size_t)n >= sizeof s->word) return false;
        memcpy(s->word + used, piece, (size_t)n + 1);
        used += (size_t)n;
    }
    return true;
}

nb_status nb_step_parse(nb_step *out, const char *word, nb_error *err)
{
    char text[NB_STEP_WORD];
    *out = (nb_step){0};
    int n = snprintf(text, sizeof text, "%s", word);
    if (n < 0 || (size_t)n >= sizeof text) {
        return nb_fail(err, NB_EUSAGE, "method step \"%.40s...\": too long", word);
    }
    nb_step s = {0};
    char *rest = strchr(text, ':');
    if (rest) *rest++ = 0;
    NB_TRY(nb_method_find(&s.method, text, err));
    const nb_step_option *o = s.method->options;
    for (int i = 0; o && o[i].name; i++) s.option[i] = o[i].def;
    while (rest) {
        char *one = rest;
        rest = strchr(one, ':');
        if (rest) *rest++ = 0;
        NB_TRY(set_option(&s, one, err));
    }
    if (!print_word(&s)) {
        return nb_fail(err, NB_EUSAGE, "method step \"%.40s...\": too long", word);
    }
    *out = s;
    return NB_OK;
}

unsigned nb_step_needs(const nb_step *s)
{
    const nb_method *m = s->method;
    return m->needs | (m->needs_more ? m->needs_more(s) : 0);
}

nb_status nb_steps_lorc(const nb_step *steps, int n_steps, nb_lorc *out, nb_error *err)
{
    *out = (nb_lorc){0};
    for (int i = 0; i < n_steps; i++) {
        if (steps[i].method->lorc) NB_TRY(steps[i].method->lorc(&steps[i], out, err));
    }
    return NB_OK;
}

nb_status nb_steps_rotation(const nb_step *steps, int n_steps, const nb_config *cfg,
                            nb_rotation *out, nb_error *err)
{
    *out = (nb_rotation){0};
    for (int i = 0; i < n_steps; i++) {
        const nb_method *m = steps[i].method;
        if (m->rotation) NB_TRY(m->rotation(&steps[i], cfg, out, err));
    }
    return NB_OK;
}
