/* The tables of bpe.h: tokens by text, merges by pair. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/size.h"
#include "token/bpe.h"

#define POOL_BYTES ((size_t)1 << 16)

/* SentencePiece allows 16 characters a piece by default; the longest known pieces are runs of 31
 * metaspaces. The bound keeps the search for cuts linear in the size of the file. */
#define MAX_PIECE_BYTES 1024

/* Slots for n entries at a load of one half at most. */
static size_t slots_for(size_t n)
{
    size_t s = 16;
    while (s < 2 * n) s *= 2;
    return s;
}

nb_status nb_table_init(nb_token_table *t, nb_arena *arena, size_t n, nb_error *err)
{
    *t = (nb_token_table){.arena = arena, .n = n, .n_slots = slots_for(n)};
    if (n > NB_MAX_TOKENS) {
        return nb_fail(err, NB_EINPUT, "vocabulary: %zu tokens, expected at most %u", n,
                       NB_MAX_TOKENS);
    }
    t->text = nb_arena_alloc(arena, n, sizeof *t->text);
    t->slots = nb_arena_alloc(arena, t->n_slots, sizeof *t->slots);
    if (!t->text || !t->slots) return nb_fail_memory(err, "vocabulary", n * sizeof *t->text);
    return NB_OK;
}

/* The slot that holds this text, or the free one where it belongs. */
static size_t find_slot(const nb_token_table *t, const char *s, size_t n_bytes)
{
    size_t i = (size_t)XXH3_64bits(s, n_bytes) & (t->n_slots - 1);
    for (; t->slots[i]; i = (i + 1) & (t->n_slots - 1)) {
        nb_text x = t->text[t->slots[i] - 1];
        if (x.n == n_bytes && memcmp(x.s, s, n_bytes) == 0) break;
    }
    return i;
}

static char *pool_copy(nb_token_table *t, nb_text text)
{
    if (text.n + 1 > t->pool_left) {
        size_t block = text.n + 1 > POOL_BYTES ? text.n + 1 : POOL_BYTES;
        t->pool = nb_arena_alloc(t->arena, block, 1);
        t->pool_left = t->pool ? block : 0;
        if (!t->pool) return NULL;
    }
    char *p = t->pool;
    memcpy(p, text.s, text.n);
    p[text.n] = 0;
    t->pool += text.n + 1;
    t->pool_left -= text.n + 1;
    return p;
}

nb_status nb_table_set(nb_token_table *t, int32_t id, nb_text text, nb_error *err)
{
    if (id < 0 || (size_t)id >= t->n) {
        return nb_fail(err, NB_EINPUT, "token \"%.*s\": id %d, expected 0 to %zu",
                       (int)(text.n < 60 ? text.n : 60), text.s, (int)id, t->n - 1);
    }
    if (text.n > NB_MAX_TOKEN_BYTES) {
        return nb_fail(err, NB_EINPUT, "token %d: %zu bytes, expected at most %d", (int)id, text.n,
                       NB_MAX_TOKEN_BYTES);
    }
    if (nb_utf8_check(text.s, text.n) != text.n) {
        return nb_fail(err, NB_EINPUT, "token %d: not UTF-8", (int)id);
    }
    if (t->text[id].s) {
        return nb_fail(err, NB_EINPUT, "id %d: two tokens, \"%.60s\" and \"%.*s\"", (int)id,
                       t->text[id].s, (int)(text.n < 60 ? text.n : 60), text.s);
    }
    char *copy = pool_copy(t, text);
    if (!copy) return nb_fail_memory(err, "token", text.n);
    t->text[id] = (nb_text){copy, text.n};
    size_t slot = find_slot(t, copy, text.n);
    if (!t->slots[slot]) t->slots[slot] = (uint32_t)id + 1;
    return NB_OK;
}

int32_t nb_table_find(const nb_token_table *t, const char *s, size_t n_bytes)
{
    if (n_bytes > NB_MAX_TOKEN_BYTES) return -1;
    return (int32_t)t->slots[find_slot(t, s, n_bytes)] - 1;
}

int nb_byte_token(nb_text x)
{
    if (x.n != 6 || memcmp(x.s, "<0x", 3) != 0 || x.s[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = x.s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* ---- merges ------------------------------------------------------------------------------ */

static void fill_char_ids(nb_bpe *m)
{
    char s[8];
    for (uint32_t c = 0; c < NB_BYTE_CHARS; c++) {
        m->char_id[c] = nb_table_find(&m->tokens, s, nb_utf8_encode(s, c));
    }
    static const char hex[] = "0123456789ABCDEF";
    for (int b = 0; b < 256; b++) {
        char name[6] = {'<', '0', 'x', hex[b >> 4], hex[b & 15], '>'};
        m->byte_id[b] = nb_table_find(&m->tokens, name, sizeof name);
    }
}

/* SentencePiece merges run over whole texts, but in real vocabularies a token has U+2581 at its
 * start alone. Then nothing crosses the start of a word, and each can be merged by itself: the
 * same ids from a queue that stays in the cache. */
static bool find_cuts(const nb_bpe *m)
{
    const size_t n = sizeof NB_METASPACE - 1;
    if (m->ignore_merges || nb_table_find(&m->tokens, NB_METASPACE, n) < 0) return false;
    for (size_t i = 0; i < m->n_merges; i++) {
        nb_text l = m->tokens.text[m->merges[i].left], r = m->tokens.text[m->merges[i].right];
        bool right = r.n >= n && memcmp(r.s, NB_METASPACE, n) == 0;
        bool left = l.n >= n && memcmp(l.s + l.n - n, NB_METASPACE, n) == 0;
        if (right && !left) return false;
    }
    return true;
}

nb_status nb_bpe_index(nb_bpe *m, nb_error *err)
{
    m->n_slots = slots_for(m->n_merges);
    m->slots = nb_arena_alloc(m->tokens.arena, m->n_slots, sizeof *m->slots);
    if (!m->slots) return nb_fail_memory(err, "merges", m->n_slots * sizeof *m->slots);
    for (size_t i = 0; i < m->n_merges; i++) {
        size_t k = nb_pair_hash(m->merges[i].left, m->merges[i].right) & (m->n_slots - 1);
        for (; m->slots[k]; k = (k + 1) & (m->n_slots - 1)) {
            const nb_merge *x = &m->merges[m->slots[k] - 1];
            if (x->left == m->merges[i].left && x->right == m->merges[i].right) break;
        }
        m->slots[k] = (uint32_t)i + 1;
    }
    fill_char_ids(m);
    m->cuts = find_cuts(m);
    return NB_OK;
}

bool nb_split_merge(nb_text merge, nb_text *left, nb_text *right)
{
    const char *space = merge.n > 1 ? memchr(merge.s + 1, ' ', merge.n - 1) : NULL;
    if (!space) return false;
    size_t n = (size_t)(space - merge.s);
    *left = (nb_text){merge.s, n};
    *right = (nb_text){space + 1, merge.n - n - 1};
    return right->n > 0;
}

nb_status nb_bpe_alloc_merges(nb_bpe *m, size_t n, nb_error *err)
{
    if (n > NB_MAX_MERGES) {
        return nb_fail(err, NB_EINPUT, "%zu merges, expected at most %u", n, NB_MAX_MERGES);
    }
    m->merges = nb_arena_alloc(m->tokens.arena, n, sizeof *m->merges);
    return m->merges ? NB_OK : nb_fail_memory(err, "merges", n * sizeof *m->merges);
}

static nb_status find_part(const nb_bpe *m, nb_text x, int32_t *id, nb_error *err)
{
    *id = nb_table_find(&m->tokens, x.s, x.n);
    if (*id >= 0) return NB_OK;
    return nb_fail(err, NB_EINPUT, "merge %zu: \"%.*s\" is not in the vocabulary", m->n_merges,
                   (int)(x.n < 80 ? x.n : 80), x.s);
}

nb_status nb_bpe_add_merge(nb_bpe *m, nb_text left, nb_text right, nb_error *err)
{
    nb_merge x = {.rank = (uint32_t)m->n_merges};
    NB_TRY(find_part(m, left, &x.left, err));
    NB_TRY(find_part(m, right, &x.right, err));
    char joined[2 * NB_MAX_TOKEN_BYTES]; /* both are tokens, so they are no longer than that */
    memcpy(joined, left.s, left.n);
    memcpy(joined + left.n, right.s, right.n);
    NB_TRY(find_part(m, (nb_text){joined, left.n + right.n}, &x.id, err));
    m->merges[m->n_merges++] = x;
    return NB_OK;
}

typedef struct cut_list {
    nb_merge *items; /* malloc'ed; rank is that of the token's score */
    size_t n, capacity;
} cut_list;

static nb_status push_cut(cut_list *l, nb_merge cut, nb_error *err)
{
    if (l->n == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 1024;
        if (l->n >= NB_MAX_MERGES) {
            return nb_fail(err, NB_EINPUT, "vocabulary: more than %u merges", NB_MAX_MERGES);
        }
        nb_merge *p = realloc(l->items, capacity * sizeof *p);
        if (!p) return nb_fail_memory(err, "merges", capacity * sizeof *p);
        l->items = p;
        l->capacity = capacity;
    }
    l->items[l->n++] = cut;
    return NB_OK;
}

static nb_status cut_token(const nb_bpe *m, const bool *joinable, cut_list *l, int32_t id,
                           uint32_t rank, nb_error *err)
{
    nb_text x = m->tokens.text[id];
    if (x.n > MAX_PIECE_BYTES) {
        return nb_fail(err, NB_EINPUT, "token %d: %zu bytes, expected at most %d", (int)id, x.n,
                       MAX_PIECE_BYTES);
    }
    /* The longest left part first: the order in which Hugging Face's converter lists them. */
    for (size_t i = x.n ? nb_utf8_prev(x.s, x.n) : 0; i > 0; i = nb_utf8_prev(x.s, i)) {
        int32_t left = nb_table_find(&m->tokens, x.s, i);
        if (left < 0 || !joinable[left]) continue;
        int32_t right = nb_table_find(&m->tokens, x.s + i, x.n - i);
        if (right < 0 || !joinable[right]) continue;
        NB_TRY(push_cut(l, (nb_merge){left, right, id, rank}, err));
    }
    return NB_OK;
}

typedef struct scored {
    float score;
    int32_t id;
} scored;

static int compare_scored(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* In order of score, so that the list of cuts comes out in order of rank. */
static nb_status cut_tokens(const nb_bpe *m, const scored *order, size_t n, const bool *joinable,
                            cut_list *l, nb_error *err)
{
    uint32_t rank = 0;
    for (size_t i = 0; i < n; i++) {
        if (i && order[i].score != order[i - 1].score) rank++;
        NB_TRY(cut_token(m, joinable, l, order[i].id, rank, err));
    }
    return NB_OK;
}

nb_status nb_bpe_merges_from_scores(nb_bpe *m, const float *scores, const bool *joinable,
                                    nb_error *err)
{
    nb_status st = NB_OK;
    cut_list cuts = {0};
    size_t n = 0;
    scored *order = malloc((m->tokens.n + 1) * sizeof *order);
    if (!order) return nb_fail_memory(err, "vocabulary", m->tokens.n * sizeof *order);
    for (size_t i = 0; i < m->tokens.n; i++) {
        if (!joinable[i]) continue;
        if (!(scores[i] == scores[i])) {
            st = nb_fail(err, NB_EINPUT, "token %zu: score is not a number", i);
            goto done;
        }
        order[n++] = (scored){scores[i], (int32_t)i};
    }
    qsort(order, n, sizeof *order, compare_scored);
    NB_GOTO(st, cut_tokens(m, order, n, joinable, &cuts, err));
    m->merges = nb_arena_alloc(m->tokens.arena, cuts.n, sizeof *m->merges);
    if (!m->merges) {
        st = nb_fail_memory(err, "merges", cuts.n * sizeof *m->merges);
        goto done;
    }
    if (cuts.n) memcpy(m->merges, cuts.items, cuts.n * sizeof *m->merges);
    m->n_merges = cuts.n;
done:
    free(cuts.items);
    free(order);
    return st;
}
