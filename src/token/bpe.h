/* Byte-pair encoding of one word: the tokens, the merges between them, and the merging itself.
 *
 * Both kinds use it. Byte-level BPE ranks each pair by its place in the list of merges.
 * SentencePiece ranks by the score of what a pair becomes; pairs that make the same token then
 * share a rank and the leftmost goes first. */
#ifndef NB_TOKEN_BPE_H
#define NB_TOKEN_BPE_H

#include "base/arena.h"
#include "token/token.h"
#include "token/utf8.h"

/* Far above any real vocabulary (2^18); bounds what a hostile file makes us allocate. */
#define NB_MAX_TOKENS      (1u << 22)
#define NB_MAX_MERGES      (1u << 24)
#define NB_MAX_TOKEN_BYTES 8192

/* Texts by id and ids by text. */
typedef struct nb_token_table {
    nb_arena *arena; /* the owner's */
    nb_text *text;   /* [n], index = id; s NULL for an id that has no token */
    size_t n;
    uint32_t *slots; /* [n_slots] id + 1, 0: free; open addressing */
    size_t n_slots;  /* power of two */
    char *pool;      /* texts are packed into shared blocks */
    size_t pool_left;
} nb_token_table;

nb_status nb_table_init(nb_token_table *t, nb_arena *arena, size_t n, nb_error *err);
/* Copies the text. An id may be set once; of two ids with one text the first is found. */
nb_status nb_table_set(nb_token_table *t, int32_t id, nb_text text, nb_error *err);
int32_t nb_table_find(const nb_token_table *t, const char *s, size_t n_bytes); /* -1: none */

/* left + right -> id; the lowest rank goes first. */
typedef struct nb_merge {
    int32_t left, right, id;
    uint32_t rank;
} nb_merge;

typedef struct nb_bpe {
    nb_token_table tokens;
    nb_merge *merges; /* [n_merges] in order of rank */
    size_t n_merges;
    uint32_t *slots; /* merges by (left, right): index + 1, 0: free */
    size_t n_slots;
    int32_t byte_id[256];           /* "<0x00>" ... of byte fallback; -1: none              */
    int32_t char_id[NB_BYTE_CHARS]; /* tokens of one low character, to save a look-up; -1   */
    int32_t unk;                    /* -1: unknown characters are left out                  */
    bool byte_fallback, fuse_unk, ignore_merges;
    bool cuts; /* no merge joins anything but U+2581 to a U+2581 on its right */
} nb_bpe;

static inline size_t nb_pair_hash(int32_t left, int32_t right)
{
    uint64_t x = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (size_t)(x ^ x >> 32);
}

/* Indexes m->merges (of two with one pair the last holds) and fills byte_id and char_id; tokens
 * and flags are set. */
nb_status nb_bpe_index(nb_bpe *m, nb_error *err);

/* "left right": the first space that has something before it parts the two. */
bool nb_split_merge(nb_text merge, nb_text *left, nb_text *right);

/* Room for n merges, then one after the other in order of rank. NB_EINPUT if a part or what they
 * make is no token. */
nb_status nb_bpe_alloc_merges(nb_bpe *m, size_t n, nb_error *err);
nb_status nb_bpe_add_merge(nb_bpe *m, nb_text left, nb_text right, nb_error *err);

/* All merges of a SentencePiece vocabulary: every way to cut a token into two others, ranked by
 * the token's score, highest first. joinable [n tokens]: may be part or result of a merge. */
nb_status nb_bpe_merges_from_scores(nb_bpe *m, const float *scores, const bool *joinable,
                                    nb_error *err);

typedef struct nb_ids {
    int32_t *data; /* malloc'ed */
    size_t n, capacity;
} nb_ids;

nb_status nb_ids_push(nb_ids *ids, int32_t id, nb_error *err);

/* Scratch of one caller: zero it before the first word, fini it after the last. */
typedef struct nb_bpe_work {
    struct nb_symbol *symbols;
    size_t n_symbols, symbol_capacity;
    struct nb_candidate *heap;
    size_t n_heap, heap_capacity;
} nb_bpe_work;

void nb_bpe_work_fini(nb_bpe_work *w);

/* Appends the ids of one word (UTF-8). O(n log n) in its length. */
nb_status nb_bpe_encode(const nb_bpe *m, nb_bpe_work *w, const char *word, size_t n_bytes,
                        nb_ids *out, nb_error *err);

/* The byte of a token text "<0xAB>"; -1 if it is not of this form. */
int nb_byte_token(nb_text text);

#endif
