/* Added tokens: what is cut out of the text before pre-tokenizing. Leftmost first, the longest of
 * those that begin at one place, as Hugging Face `tokenizers` finds them (Aho-Corasick in its
 * added_vocabulary.rs; the sets here are small, so a sorted array does). */
#include <stdlib.h>
#include <string.h>

#include "token/tokenizer.h"

static int compare_pattern(const void *a, const void *b)
{
    const nb_added *x = a, *y = b;
    size_t n = x->pattern.n < y->pattern.n ? x->pattern.n : y->pattern.n;
    int d = memcmp(x->pattern.s, y->pattern.s, n);
    if (d) return d;
    if (x->pattern.n != y->pattern.n) return x->pattern.n < y->pattern.n ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static nb_status fill_set(nb_tokenizer *t, nb_added_set *set, bool normalized, nb_error *err)
{
    set->items = nb_arena_alloc(t->arena, t->n_added, sizeof *set->items);
    if (!set->items) return nb_fail_memory(err, "added tokens", t->n_added * sizeof *set->items);
    for (size_t i = 0; i < t->n_added; i++) {
        const nb_added *x = &t->added[i];
        if (x->normalized != normalized || x->pattern.n == 0) continue;
        set->items[set->n++] = *x;
        set->starts[(uint8_t)x->pattern.s[0]] = true;
    }
    qsort(set->items, set->n, sizeof *set->items, compare_pattern);
    return NB_OK;
}

/* What a token that is looked for after the normalizer looks like then. */
static nb_status normalize_pattern(nb_tokenizer *t, nb_matcher *m, nb_added *x, nb_error *err)
{
    nb_strbuf b;
    nb_strbuf_init(&b, NB_MAX_TOKEN_BYTES * 4);
    nb_status st = nb_normalize(t->norm, t->n_norm, m, x->text, &b, err);
    if (st == NB_OK) {
        st = nb_tokenizer_keep(t, (nb_text){b.data ? b.data : "", b.n_bytes}, &x->pattern, err);
    }
    nb_strbuf_fini(&b);
    return st;
}

nb_status nb_added_index(nb_tokenizer *t, nb_error *err)
{
    nb_matcher *m;
    NB_TRY(nb_matcher_create(&m, err));
    nb_status st = NB_OK;
    for (size_t i = 0; i < t->n_added && st == NB_OK; i++) {
        nb_added *x = &t->added[i];
        t->special[x->id] |= x->special;
        x->pattern = x->text;
        if (x->normalized && t->n_norm) st = normalize_pattern(t, m, x, err);
    }
    nb_matcher_free(m);
    if (st != NB_OK) return st;
    NB_TRY(fill_set(t, &t->raw, false, err));
    return fill_set(t, &t->normalized, true, err);
}

/* First item in [lo, hi) whose byte at `depth` is not below c; all share the bytes before. */
static size_t lower_bound(const nb_added_set *set, size_t lo, size_t hi, size_t depth, int c)
{
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        nb_text p = set->items[mid].pattern;
        int byte = depth < p.n ? (uint8_t)p.s[depth] : -1;
        if (byte < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest pattern that s begins with. */
static const nb_added *longest_match(const nb_added_set *set, const char *s, size_t n)
{
    const nb_added *best = NULL;
    size_t lo = 0, hi = set->n;
    for (size_t depth = 0; depth < n && lo < hi; depth++) {
        int c = (uint8_t)s[depth];
        lo = lower_bound(set, lo, hi, depth, c);
        hi = lower_bound(set, lo, hi, depth, c + 1);
        if (lo < hi && set->items[lo].pattern.n == depth + 1) best = &set->items[lo];
    }
    return best;
}

static bool word_before(const char *s, size_t pos)
{
    size_t len;
    return pos > 0 && nb_char_is_word(nb_utf8_decode(s + nb_utf8_prev(s, pos), &len));
}

static bool word_after(const char *s, size_t n, size_t pos)
{
    size_t len;
    return pos < n && nb_char_is_word(nb_utf8_decode(s + pos, &len));
}

static size_t skip_spaces_left(const char *s, size_t pos, size_t stop)
{
    size_t len;
    while (pos > stop) {
        size_t p = nb_utf8_prev(s, pos);
        if (!nb_char_is_space(nb_utf8_decode(s + p, &len))) break;
        pos = p;
    }
    return pos > stop ? pos : stop;
}

static size_t skip_spaces_right(const char *s, size_t n, size_t pos)
{
    size_t len;
    while (pos < n && nb_char_is_space(nb_utf8_decode(s + pos, &len))) pos += len;
    return pos;
}

const nb_added *nb_scan_next(nb_scan *x, size_t *begin, size_t *end)
{
    while (x->set->n && x->pos < x->n) {
        if (!x->set->starts[(uint8_t)x->s[x->pos]]) {
            x->pos++;
            continue;
        }
        const nb_added *hit = longest_match(x->set, x->s + x->pos, x->n - x->pos);
        if (!hit) {
            x->pos++;
            continue;
        }
        size_t a = x->pos, b = a + hit->pattern.n;
        x->pos = b; /* what is passed over is not looked at again */
        if (hit->special && !x->specials) continue;
        if (hit->single_word && (word_before(x->s, a) || word_after(x->s, x->n, b))) continue;
        if (hit->lstrip) a = skip_spaces_left(x->s, a, x->last);
        if (hit->rstrip) b = skip_spaces_right(x->s, x->n, b);
        *begin = a;
        *end = x->pos = x->last = b;
        return hit;
    }
    return NULL;
}
