/* Text to ids: cut out added tokens, normalize what lies between, cut that into words, merge each
 * word. The order is that of Hugging Face `tokenizers` (added_vocabulary.rs,
 * extract_and_normalize). */
#include <stdlib.h>
#include <string.h>

#include "token/tokenizer.h"

/* Scratch of one call. */
typedef struct encoder {
    const nb_tokenizer *t;
    nb_matcher *matcher;
    nb_bpe_work bpe;
    nb_strbuf normal;
    nb_pieces words, tmp;
    nb_ids ids;
    bool specials;
} encoder;

static nb_status encode_words(encoder *e, nb_text text, bool at_start, nb_error *err)
{
    const nb_tokenizer *t = e->t;
    e->words.text.n_bytes = 0;
    nb_strbuf_append(&e->words.text, text.s, text.n);
    if (e->words.text.failed) return nb_fail_memory(err, "text", text.n);
    NB_TRY(nb_pretokenize(t->pre, t->n_pre, e->matcher, &e->words, &e->tmp, at_start, err));
    for (size_t i = 0; i < e->words.n; i++) {
        nb_span w = e->words.spans[i];
        NB_TRY(nb_bpe_encode(&t->bpe, &e->bpe, e->words.text.data + w.begin, w.end - w.begin,
                             &e->ids, err));
    }
    return NB_OK;
}

/* A part between added tokens; those that are looked for in normalized text come now. */
static nb_status encode_part(encoder *e, nb_text text, bool at_start, nb_error *err)
{
    const nb_tokenizer *t = e->t;
    if (t->n_norm) {
        e->normal.n_bytes = 0;
        NB_TRY(nb_normalize(t->norm, t->n_norm, e->matcher, text, &e->normal, err));
        text = (nb_text){e->normal.data ? e->normal.data : "", e->normal.n_bytes};
    }
    nb_scan scan = {.set = &t->normalized, .s = text.s, .n = text.n, .specials = e->specials};
    size_t done = 0, begin, end;
    for (const nb_added *x; (x = nb_scan_next(&scan, &begin, &end)); done = end) {
        if (begin > done) {
            nb_text part = {text.s + done, begin - done};
            NB_TRY(encode_words(e, part, at_start && done == 0, err));
        }
        NB_TRY(nb_ids_push(&e->ids, x->id, err));
    }
    if (done == text.n) return NB_OK;
    return encode_words(e, (nb_text){text.s + done, text.n - done}, at_start && done == 0, err);
}

static nb_status encode_all(encoder *e, nb_text text, nb_error *err)
{
    nb_scan scan = {.set = &e->t->raw, .s = text.s, .n = text.n, .specials = e->specials};
    size_t done = 0, begin, end;
    for (const nb_added *x; (x = nb_scan_next(&scan, &begin, &end)); done = end) {
        if (begin > done) {
            NB_TRY(encode_part(e, (nb_text){text.s + done, begin - done}, done == 0, err));
        }
        NB_TRY(nb_ids_push(&e->ids, x->id, err));
    }
    if (done == text.n) return NB_OK;
    return encode_part(e, (nb_text){text.s + done, text.n - done}, done == 0, err);
}

static nb_status push_all(encoder *e, const int32_t *ids, size_t n, nb_error *err)
{
    for (size_t i = 0; i < n; i++) NB_TRY(nb_ids_push(&e->ids, ids[i], err));
    return NB_OK;
}

static nb_status check_text(nb_text text, nb_error *err)
{
    if (text.n > INT32_MAX) {
        return nb_fail(err, NB_EINPUT, "text: %zu bytes, expected at most %d", text.n, INT32_MAX);
    }
    size_t valid = nb_utf8_check(text.s, text.n);
    if (valid == text.n) return NB_OK;
    return nb_fail(err, NB_EINPUT, "text: not UTF-8 at offset %zu (byte 0x%02x)", valid,
                   (unsigned)(uint8_t)text.s[valid]);
}

static void encoder_fini(encoder *e)
{
    nb_matcher_free(e->matcher);
    nb_bpe_work_fini(&e->bpe);
    nb_strbuf_fini(&e->normal);
    nb_pieces_fini(&e->words);
    nb_pieces_fini(&e->tmp);
    free(e->ids.data);
}

nb_status nb_tokenizer_encode(const nb_tokenizer *t, const char *text, size_t n_bytes,
                              unsigned flags, int32_t **ids, size_t *n_ids, nb_error *err)
{
    *ids = NULL;
    *n_ids = 0;
    NB_TRY(check_text((nb_text){text, n_bytes}, err));
    encoder e = {.t = t, .specials = (flags & NB_ENCODE_SPECIAL) != 0};
    nb_strbuf_init(&e.normal, NB_MAX_TEXT_BYTES);
    nb_pieces_init(&e.words);
    nb_pieces_init(&e.tmp);
    bool around = (flags & NB_ENCODE_BOS) != 0;
    nb_status st = nb_matcher_create(&e.matcher, err);
    if (st == NB_OK && around) st = push_all(&e, t->before, t->n_before, err);
    if (st == NB_OK) st = encode_all(&e, (nb_text){text, n_bytes}, err);
    if (st == NB_OK && around) st = push_all(&e, t->after, t->n_after, err);
    if (st == NB_OK && !e.ids.data) { /* no ids are still an array that can be freed */
        e.ids.data = calloc(1, sizeof *e.ids.data);
        if (!e.ids.data) st = nb_fail_memory(err, "tokens", sizeof *e.ids.data);
    }
    if (st == NB_OK) {
        *ids = e.ids.data;
        *n_ids = e.ids.n;
        e.ids.data = NULL;
    }
    encoder_fini(&e);
    return st;
}
