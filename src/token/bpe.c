/* Merging one word. The order of merges is that of Hugging Face `tokenizers` (models/bpe/word.rs)
 * and of SentencePiece (bpe_model.cc): a priority queue of adjacent pairs, best rank first, then
 * leftmost; pairs that have vanished since they were queued are skipped. */
#include "token/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "base/size.h"

/* A piece of the word, linked to its neighbours: indices, -1 at the ends. */
typedef struct nb_symbol {
    int32_t id; /* -1: swallowed by its left neighbour */
    int32_t prev, next;
} nb_symbol;

/* The pair that begins at symbol `pos` becomes token `id`. */
typedef struct nb_candidate {
    uint32_t rank;
    int32_t pos, id;
} nb_candidate;

/* Room for one more; doubles, so that pushes cost O(1). */
static nb_status grow(void **data, size_t *capacity, size_t n, size_t size, nb_error *err)
{
    if (n < *capacity) return NB_OK;
    size_t more = *capacity ? *capacity : 32, bytes;
    if (!nb_add_size(more, *capacity, &more) || !nb_mul_size(more, size, &bytes)) bytes = SIZE_MAX;
    void *p = bytes < SIZE_MAX ? realloc(*data, bytes) : NULL;
    if (!p) return nb_fail_memory(err, "tokens", bytes);
    *data = p;
    *capacity = more;
    return NB_OK;
}

nb_status nb_ids_push(nb_ids *ids, int32_t id, nb_error *err)
{
    void *p = ids->data;
    NB_TRY(grow(&p, &ids->capacity, ids->n, sizeof *ids->data, err));
    ids->data = p;
    ids->data[ids->n++] = id;
    return NB_OK;
}

void nb_bpe_work_fini(nb_bpe_work *w)
{
    free(w->symbols);
    free(w->heap);
    *w = (nb_bpe_work){0};
}

static const nb_merge *find_merge(const nb_bpe *m, int32_t left, int32_t right)
{
    size_t k = nb_pair_hash(left, right) & (m->n_slots - 1);
    for (; m->slots[k]; k = (k + 1) & (m->n_slots - 1)) {
        const nb_merge *x = &m->merges[m->slots[k] - 1];
        if (x->left == left && x->right == right) return x;
    }
    return NULL;
}

/* ---- the queue: a binary heap ------------------------------------------------------------ */

static bool goes_before(nb_candidate a, nb_candidate b)
{
    return a.rank != b.rank ? a.rank < b.rank : a.pos < b.pos;
}

static nb_status heap_push(nb_bpe_work *w, nb_candidate c, nb_error *err)
{
    void *p = w->heap;
    NB_TRY(grow(&p, &w->heap_capacity, w->n_heap, sizeof *w->heap, err));
    w->heap = p;
    size_t i = w->n_heap++;
    for (; i > 0 && goes_before(c, w->heap[(i - 1) / 2]); i = (i - 1) / 2) {
        w->heap[i] = w->heap[(i - 1) / 2];
    }
    w->heap[i] = c;
    return NB_OK;
}

static nb_candidate heap_pop(nb_bpe_work *w)
{
    nb_candidate top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && goes_before(w->heap[child + 1], w->heap[child])) child++;
        if (!goes_before(w->heap[child], last)) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return top;
}

/* ---- symbols ------------------------------------------------------------------------------ */

static nb_status add_symbol(nb_bpe_work *w, int32_t id, nb_error *err)
{
    void *p = w->symbols;
    NB_TRY(grow(&p, &w->symbol_capacity, w->n_symbols, sizeof *w->symbols, err));
    w->symbols = p;
    int32_t i = (int32_t)w->n_symbols++;
    w->symbols[i] = (nb_symbol){id, i - 1, i + 1};
    return NB_OK;
}

/* True if the vocabulary has a byte token for each byte of the character. */
static bool has_bytes(const nb_bpe *m, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (m->byte_id[(uint8_t)s[i]] < 0) return false;
    }
    return true;
}

static int32_t char_token(const nb_bpe *m, const char *s, size_t *len)
{
    uint32_t c = nb_utf8_decode(s, len);
    return c < NB_BYTE_CHARS ? m->char_id[c] : nb_table_find(&m->tokens, s, *len);
}

/* The word's characters as symbols. An unknown one is written as its bytes or as `unk`; an unk
 * waits until a known character comes, because neighbours may fuse into it. */
static nb_status add_chars(const nb_bpe *m, nb_bpe_work *w, const char *s, size_t n, nb_error *err)
{
    bool unk_waits = false;
    for (size_t i = 0, len; i < n; i += len) {
        int32_t id = char_token(m, s + i, &len);
        if (id >= 0) {
            if (unk_waits) NB_TRY(add_symbol(w, m->unk, err));
            unk_waits = false;
            NB_TRY(add_symbol(w, id, err));
        } else if (m->byte_fallback && has_bytes(m, s + i, len)) {
            for (size_t k = 0; k < len; k++) {
                NB_TRY(add_symbol(w, m->byte_id[(uint8_t)s[i + k]], err));
            }
        } else if (m->unk >= 0) {
            if (unk_waits && !m->fuse_unk) NB_TRY(add_symbol(w, m->unk, err));
            unk_waits = true;
        }
    }
    return unk_waits ? add_symbol(w, m->unk, err) : NB_OK;
}

/* Queues the pair that begins at symbol i, if it can merge. */
static nb_status queue_pair(const nb_bpe *m, nb_bpe_work *w, int32_t i, nb_error *err)
{
    if (i < 0 || w->symbols[i].next < 0) return NB_OK;
    const nb_merge *x = find_merge(m, w->symbols[i].id, w->symbols[w->symbols[i].next].id);
    return x ? heap_push(w, (nb_candidate){x->rank, i, x->id}, err) : NB_OK;
}

static nb_status merge_all(const nb_bpe *m, nb_bpe_work *w, nb_error *err)
{
    nb_symbol *s = w->symbols;
    w->n_heap = 0;
    for (int32_t i = 0; i < (int32_t)w->n_symbols; i++) NB_TRY(queue_pair(m, w, i, err));
    while (w->n_heap) {
        nb_candidate c = heap_pop(w);
        if (s[c.pos].id < 0 || s[c.pos].next < 0) continue;
        int32_t right = s[c.pos].next;
        const nb_merge *x = find_merge(m, s[c.pos].id, s[right].id);
        if (!x || x->id != c.id) continue;
        s[c.pos].id = c.id;
        s[c.pos].next = s[right].next;
        s[right].id = -1;
        if (s[c.pos].next >= 0) s[s[c.pos].next].prev = c.pos;
        NB_TRY(queue_pair(m, w, s[c.pos].prev, err));
        NB_TRY(queue_pair(m, w, c.pos, err));
    }
    return NB_OK;
}

static nb_status encode_part(const nb_bpe *m, nb_bpe_work *w, const char *s, size_t n, nb_ids *out,
                             nb_error *err)
{
    w->n_symbols = 0;
    NB_TRY(add_chars(m, w, s, n, err));
    if (!w->n_symbols) return NB_OK;
    w->symbols[w->n_symbols - 1].next = -1;
    NB_TRY(merge_all(m, w, err));
    for (int32_t i = 0; i >= 0; i = w->symbols[i].next) {
        NB_TRY(nb_ids_push(out, w->symbols[i].id, err));
    }
    return NB_OK;
}

/* End of the part that begins at `from`: before the next U+2581 that follows another character. */
static size_t find_cut(const char *s, size_t n, size_t from)
{
    static const char meta[] = NB_METASPACE;
    bool was_meta = true;
    for (size_t i = from; i < n;) {
        size_t len = nb_utf8_len(s[i]);
        bool is_meta = len == 3 && memcmp(s + i, meta, 3) == 0;
        if (is_meta && !was_meta) return i;
        was_meta = is_meta;
        i += len;
    }
    return n;
}

nb_status nb_bpe_encode(const nb_bpe *m, nb_bpe_work *w, const char *word, size_t n_bytes,
                        nb_ids *out, nb_error *err)
{
    if (n_bytes > INT32_MAX) {
        return nb_fail(err, NB_EINPUT, "text: a word of %zu bytes, expected at most %d", n_bytes,
                       INT32_MAX);
    }
    if (m->ignore_merges) {
        int32_t id = nb_table_find(&m->tokens, word, n_bytes);
        if (id >= 0) return nb_ids_push(out, id, err);
    }
    for (size_t i = 0, end; i < n_bytes; i = end) {
        end = m->cuts ? find_cut(word, n_bytes, i) : n_bytes;
        NB_TRY(encode_part(m, w, word + i, end - i, out, err));
    }
    return NB_OK;
}
