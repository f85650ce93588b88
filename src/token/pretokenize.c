#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "token/steps.h"
#include "token/utf8.h"

const char *const nb_behavior_names[NB_N_BEHAVIORS] = {
    [NB_SPLIT_REMOVED] = "Removed",
    [NB_SPLIT_ISOLATED] = "Isolated",
    [NB_SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
    [NB_SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
    [NB_SPLIT_CONTIGUOUS] = "Contiguous",
};

const char *const nb_scheme_names[NB_N_SCHEMES] = {
    [NB_PREPEND_ALWAYS] = "always",
    [NB_PREPEND_FIRST] = "first",
    [NB_PREPEND_NEVER] = "never",
};

const char nb_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

void nb_pieces_init(nb_pieces *p)
{
    *p = (nb_pieces){0};
    nb_strbuf_init(&p->text, NB_MAX_TEXT_BYTES);
}

void nb_pieces_fini(nb_pieces *p)
{
    nb_strbuf_fini(&p->text);
    free(p->spans);
    *p = (nb_pieces){0};
}

static nb_status push_span(nb_pieces *p, size_t begin, size_t end, nb_error *err)
{
    if (p->n == p->capacity) {
        size_t capacity = p->capacity ? 2 * p->capacity : 64, bytes;
        if (!nb_mul_size(capacity, sizeof *p->spans, &bytes)) bytes = SIZE_MAX;
        nb_span *s = realloc(p->spans, bytes);
        if (!s) return nb_fail_memory(err, "words", bytes);
        p->spans = s;
        p->capacity = capacity;
    }
    p->spans[p->n++] = (nb_span){begin, end};
    return NB_OK;
}

/* ---- splitting ---------------------------------------------------------------------------- */

/* Words of one piece as they come: matches and what lies between, from left to right. */
typedef struct splitter {
    nb_pieces *out;
    size_t first; /* words of this piece begin here in out->spans */
    nb_behavior behavior;
    bool invert;
    bool last_match; /* the last word is (or ends with) a match */
} splitter;

/* True if the next part belongs to the word before it. */
static bool extends_last(const splitter *s, bool match)
{
    switch (s->behavior) {
    case NB_SPLIT_MERGED_WITH_PREVIOUS:
        return match && !s->last_match;
    case NB_SPLIT_MERGED_WITH_NEXT:
        return !match && s->last_match;
    case NB_SPLIT_CONTIGUOUS:
        return match == s->last_match;
    default:
        return false;
    }
}

static nb_status emit(splitter *s, size_t begin, size_t end, bool match, nb_error *err)
{
    match ^= s->invert;
    if (s->behavior == NB_SPLIT_REMOVED && match) return NB_OK;
    if (s->out->n > s->first && extends_last(s, match)) {
        s->out->spans[s->out->n - 1].end = end;
    } else {
        NB_TRY(push_span(s->out, begin, end, err));
    }
    s->last_match = match;
    return NB_OK;
}

static void drop_empty(nb_pieces *p, size_t first)
{
    size_t n = first;
    for (size_t i = first; i < p->n; i++) {
        if (p->spans[i].end > p->spans[i].begin) p->spans[n++] = p->spans[i];
    }
    p->n = n;
}

/* Lookaround sees the piece alone, as if it were the whole text. */
static nb_status split_piece(splitter *s, const nb_regex *re, nb_matcher *m, const char *text,
                             nb_span piece, nb_error *err)
{
    size_t n = piece.end - piece.begin, from = 0, last = 0, begin, end;
    bool any = false; /* an empty match right behind another match does not count */
    while (from <= n) {
        bool found;
        NB_TRY(nb_regex_find(re, m, text + piece.begin, n, from, &begin, &end, &found, err));
        if (!found) break;
        if (begin == end && any && end == last) {
            from += from < n ? nb_utf8_len(text[piece.begin + from]) : 1;
            continue;
        }
        if (begin > last) {
            NB_TRY(emit(s, piece.begin + last, piece.begin + begin, false, err));
        }
        NB_TRY(emit(s, piece.begin + begin, piece.begin + end, true, err));
        from = last = end;
        any = true;
    }
    return last < n ? emit(s, piece.begin + last, piece.end, false, err) : NB_OK;
}

static void swap_texts(nb_pieces *a, nb_pieces *b)
{
    nb_strbuf t = a->text;
    a->text = b->text;
    b->text = t;
}

/* in -> out, with the text moved along. */
static nb_status split_all(const nb_regex *re, nb_behavior behavior, bool invert, nb_matcher *m,
                           nb_pieces *in, nb_pieces *out, nb_error *err)
{
    out->n = 0;
    for (size_t i = 0; i < in->n; i++) {
        splitter s = {.out = out, .first = out->n, .behavior = behavior, .invert = invert};
        NB_TRY(split_piece(&s, re, m, in->text.data, in->spans[i], err));
        drop_empty(out, s.first);
    }
    swap_texts(in, out);
    return NB_OK;
}

/* ---- rewriting ---------------------------------------------------------------------------- */

static void swap_pieces(nb_pieces *a, nb_pieces *b)
{
    nb_pieces t = *a;
    *a = *b;
    *b = t;
}

static nb_status close_span(nb_pieces *out, size_t begin, nb_error *err)
{
    if (out->text.failed) return nb_fail_memory(err, "text", out->text.n_bytes);
    return out->text.n_bytes > begin ? push_span(out, begin, out->text.n_bytes, err) : NB_OK;
}

static nb_status prefix_spaces(nb_pieces *in, nb_pieces *out, nb_error *err)
{
    out->n = out->text.n_bytes = 0;
    for (size_t i = 0; i < in->n; i++) {
        const char *s = in->text.data + in->spans[i].begin;
        size_t begin = out->text.n_bytes;
        if (s[0] != ' ') nb_strbuf_puts(&out->text, " ");
        nb_strbuf_append(&out->text, s, in->spans[i].end - in->spans[i].begin);
        NB_TRY(close_span(out, begin, err));
    }
    return NB_OK;
}

static nb_status map_bytes(nb_pieces *in, nb_pieces *out, nb_error *err)
{
    out->n = out->text.n_bytes = 0;
    for (size_t i = 0; i < in->n; i++) {
        size_t begin = out->text.n_bytes;
        for (size_t k = in->spans[i].begin; k < in->spans[i].end; k++) {
            char c[4];
            size_t len = nb_utf8_encode(c, nb_byte_to_char((uint8_t)in->text.data[k]));
            nb_strbuf_append(&out->text, c, len);
        }
        NB_TRY(close_span(out, begin, err));
    }
    return NB_OK;
}

/* p -> p through tmp. */
static nb_status byte_level(const nb_pre_step *s, nb_matcher *m, nb_pieces *p, nb_pieces *tmp,
                            nb_error *err)
{
    if (s->prefix_space) {
        NB_TRY(prefix_spaces(p, tmp, err));
        swap_pieces(p, tmp);
    }
    if (s->re) {
        NB_TRY(split_all(s->re, NB_SPLIT_ISOLATED, false, m, p, tmp, err));
        swap_pieces(p, tmp);
    }
    NB_TRY(map_bytes(p, tmp, err));
    swap_pieces(p, tmp);
    return NB_OK;
}

static const size_t metaspace_bytes = sizeof NB_METASPACE - 1;

static bool starts_with_metaspace(const char *s, size_t n)
{
    return n > 0 &&
           (s[0] == ' ' || (n >= metaspace_bytes && memcmp(s, NB_METASPACE, metaspace_bytes) == 0));
}

/* One word, written to out with U+2581 for each space; cut before each U+2581 if s->split. */
static nb_status metaspace_word(const nb_pre_step *s, const char *w, size_t n, bool prepend,
                                nb_pieces *out, nb_error *err)
{
    size_t begin = out->text.n_bytes;
    if (prepend && !starts_with_metaspace(w, n)) {
        nb_strbuf_append(&out->text, NB_METASPACE, metaspace_bytes);
    }
    for (size_t i = 0, len; i < n; i += len) {
        len = nb_utf8_len(w[i]);
        bool space = starts_with_metaspace(w + i, n - i);
        if (space && s->split && i > 0) {
            NB_TRY(close_span(out, begin, err));
            begin = out->text.n_bytes;
        }
        if (space)
            nb_strbuf_append(&out->text, NB_METASPACE, metaspace_bytes);
        else
            nb_strbuf_append(&out->text, w + i, len);
    }
    return close_span(out, begin, err);
}

static nb_status metaspace(const nb_pre_step *s, nb_pieces *p, nb_pieces *tmp, bool at_start,
                           nb_error *err)
{
    tmp->n = tmp->text.n_bytes = 0;
    for (size_t i = 0; i < p->n; i++) {
        nb_span x = p->spans[i];
        bool prepend = s->scheme == NB_PREPEND_ALWAYS ||
                       (s->scheme == NB_PREPEND_FIRST && at_start && x.begin == 0);
        NB_TRY(metaspace_word(s, p->text.data + x.begin, x.end - x.begin, prepend, tmp, err));
    }
    swap_pieces(p, tmp);
    return NB_OK;
}

nb_status nb_pretokenize(const nb_pre_step *steps, size_t n_steps, nb_matcher *m, nb_pieces *p,
                         nb_pieces *tmp, bool at_start, nb_error *err)
{
    p->n = 0;
    if (p->text.n_bytes) NB_TRY(push_span(p, 0, p->text.n_bytes, err));
    for (size_t i = 0; i < n_steps; i++) {
        const nb_pre_step *s = &steps[i];
        switch (s->kind) {
        case NB_PRE_SPLIT:
            NB_TRY(split_all(s->re, s->behavior, s->invert, m, p, tmp, err));
            swap_pieces(p, tmp);
            break;
        case NB_PRE_BYTE_LEVEL:
            NB_TRY(byte_level(s, m, p, tmp, err));
            break;
        case NB_PRE_METASPACE:
            NB_TRY(metaspace(s, p, tmp, at_start, err));
            break;
        }
    }
    return NB_OK;
}
