/* Ids to bytes, at once or one at a time. */
#include <string.h>

#include "token/tokenizer.h"

/* All characters of the GPT-2 alphabet: then they are bytes; otherwise (an added token, say) the
 * text stands for itself. */
static bool append_byte_chars(nb_text x, nb_strbuf *out)
{
    for (size_t i = 0, len; i < x.n; i += len) {
        if (nb_char_to_byte(nb_utf8_decode(x.s + i, &len)) < 0) return false;
    }
    for (size_t i = 0, len; i < x.n; i += len) {
        char byte = (char)nb_char_to_byte(nb_utf8_decode(x.s + i, &len));
        nb_strbuf_append(out, &byte, 1);
    }
    return true;
}

static void append_replaced(const nb_decoder *d, nb_text x, bool first, nb_strbuf *out)
{
    size_t copied = 0;
    for (size_t i = 0; d->from.n && i + d->from.n <= x.n;) {
        if (memcmp(x.s + i, d->from.s, d->from.n) != 0) {
            i++;
            continue;
        }
        nb_strbuf_append(out, x.s + copied, i - copied);
        if (!(first && d->drop_first)) nb_strbuf_append(out, d->to.s, d->to.n);
        copied = i += d->from.n;
    }
    nb_strbuf_append(out, x.s + copied, x.n - copied);
}

/* The bytes of one token; first: the first of the text. */
static void append_token(const nb_tokenizer *t, int32_t id, bool first, nb_strbuf *out)
{
    nb_text x = t->bpe.tokens.text[id];
    if (!x.s) return;
    int byte = t->decoder.byte_fallback ? nb_byte_token(x) : -1;
    if (byte >= 0) {
        char c = (char)byte;
        nb_strbuf_append(out, &c, 1);
    } else if (!t->decoder.byte_level || !append_byte_chars(x, out)) {
        append_replaced(&t->decoder, x, first, out);
    }
}

/* Spaces at the start of a text that is the tail of out. */
static void strip_left(const nb_decoder *d, nb_strbuf *out, size_t begin)
{
    size_t n = 0;
    if (!out->data) return;
    while (n < (size_t)d->strip_left && begin + n < out->n_bytes && out->data[begin + n] == ' ')
        n++;
    if (!n) return;
    memmove(out->data + begin, out->data + begin + n, out->n_bytes - begin - n);
    out->n_bytes -= n;
    out->data[out->n_bytes] = 0;
}

static nb_status check_id(const nb_tokenizer *t, int32_t id, nb_error *err)
{
    if (id >= 0 && (size_t)id < t->bpe.tokens.n) return NB_OK;
    return nb_fail(err, NB_EINPUT, "token id %d, expected 0 to %zu", (int)id, t->bpe.tokens.n - 1);
}

nb_status nb_tokenizer_decode(const nb_tokenizer *t, const int32_t *ids, size_t n_ids,
                              bool skip_special, nb_strbuf *out, nb_error *err)
{
    size_t begin = out->n_bytes;
    bool first = true;
    for (size_t i = 0; i < n_ids; i++) {
        NB_TRY(check_id(t, ids[i], err));
        if (skip_special && t->special[ids[i]]) continue;
        append_token(t, ids[i], first, out);
        first = false;
    }
    strip_left(&t->decoder, out, begin);
    return out->failed ? nb_fail_memory(err, "text", out->n_bytes) : NB_OK;
}

/* ---- streaming ---------------------------------------------------------------------------- */

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* True if more bytes could make a character of these 1 to 3. */
static bool may_complete(const char *s, size_t n)
{
    char probe[4];
    size_t len = nb_utf8_len(s[0]);
    if (len <= n) return false;
    /* The second byte has the narrowest range: one of these completes any valid beginning. */
    static const char fill[] = {'\x80', '\xa0', '\x90', '\x8f', '\xbf'};
    for (size_t i = 0; i < sizeof fill; i++) {
        memset(probe, '\x80', sizeof probe);
        memcpy(probe, s, n);
        probe[n] = fill[i];
        if (nb_utf8_check(probe, len) == len) return true;
    }
    return false;
}

/* Appends the characters of s[0..n), U+FFFD for what can be none; keeps an unfinished end. */
static void release(nb_stream *s, const char *p, size_t n, nb_strbuf *out)
{
    s->n_pending = 0;
    while (n) {
        size_t valid = nb_utf8_check(p, n);
        nb_strbuf_append(out, p, valid);
        p += valid;
        n -= valid;
        if (!n) break;
        if (n < 4 && may_complete(p, n)) {
            memcpy(s->pending, p, n);
            s->n_pending = n;
            break;
        }
        nb_strbuf_puts(out, REPLACEMENT);
        p++;
        n--;
    }
}

nb_status nb_tokenizer_stream(const nb_tokenizer *t, nb_stream *s, int32_t id, nb_strbuf *out,
                              nb_error *err)
{
    NB_TRY(check_id(t, id, err));
    if (t->special[id]) return NB_OK;
    nb_strbuf b;
    nb_strbuf_init(&b, NB_MAX_TOKEN_BYTES * 2);
    nb_strbuf_append(&b, s->pending, s->n_pending);
    append_token(t, id, !s->started, &b);
    if (!s->started) strip_left(&t->decoder, &b, 0);
    s->started = true;
    bool failed = b.failed;
    if (!failed && b.n_bytes) release(s, b.data, b.n_bytes, out);
    nb_strbuf_fini(&b);
    return failed || out->failed ? nb_fail_memory(err, "text", out->n_bytes) : NB_OK;
}

void nb_tokenizer_stream_end(nb_stream *s, nb_strbuf *out)
{
    if (s->n_pending) nb_strbuf_puts(out, REPLACEMENT);
    s->n_pending = 0;
}
