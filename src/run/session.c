#include "run/session.h"

#include <math.h>
#include <stdlib.h>

/* Prompts go through the model in pieces of this many tokens: long enough for full-speed matrix
 * products, short enough for small scratch. */
#define PROMPT_CHUNK 512

struct nb_session {
    const nb_net *net;
    nb_cache *cache;
    nb_workspace *ws;
    nb_buffer *x, *logits;
    float *host; /* [n_vocab] */
    int64_t chunk, length;
};

nb_status nb_session_create(nb_session **out, const nb_net *net, int64_t capacity, nb_error *err)
{
    *out = NULL;
    nb_session *s = calloc(1, sizeof *s);
    if (!s) return nb_fail_memory(err, "session", sizeof *s);
    s->net = net;
    s->chunk = capacity < PROMPT_CHUNK ? capacity : PROMPT_CHUNK;
    nb_backend *be = net->be;
    s->host = malloc((size_t)net->cfg.n_vocab * sizeof *s->host);
    nb_status st = s->host ? NB_OK : nb_fail_memory(err, "logits", (size_t)net->cfg.n_vocab * 4);
    if (st == NB_OK) st = nb_cache_create(&s->cache, net, capacity, 0, err);
    if (st == NB_OK) st = nb_workspace_create(be, &net->cfg, s->chunk, &s->ws, err);
    if (st == NB_OK) st = be->ops->buffer_create(be, s->chunk * net->cfg.n_embd, &s->x, err);
    if (st == NB_OK) st = be->ops->buffer_create(be, net->cfg.n_vocab, &s->logits, err);
    if (st != NB_OK) {
        nb_session_free(s);
        return st;
    }
    *out = s;
    return NB_OK;
}

void nb_session_free(nb_session *s)
{
    if (!s) return;
    nb_backend *be = s->net->be;
    nb_cache_free(s->cache);
    nb_workspace_free(s->ws);
    be->ops->buffer_free(be, s->x);
    be->ops->buffer_free(be, s->logits);
    free(s->host);
    free(s);
}

int64_t nb_session_length(const nb_session *s) { return s->length; }

size_t nb_session_kv_bytes(const nb_session *s) { return nb_cache_bytes(s->cache); }

static nb_status check_finite(const float *v, int64_t n, int64_t position, nb_error *err)
{
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(v[i])) {
            return nb_fail(err, NB_ENUMERIC, "position %lld: logit %lld is not finite",
                           (long long)position, (long long)i);
        }
    }
    return NB_OK;
}

nb_status nb_session_append(nb_session *s, const int32_t *ids, int64_t n, const float **logits,
                            nb_error *err)
{
    *logits = NULL;
    if (n <= 0) return nb_fail(err, NB_EUSAGE, "a session needs at least one token");
    if (s->length + n > s->cache->capacity) {
        return nb_fail(err, NB_ERESOURCE, "KV cache: %lld positions, capacity %lld",
                       (long long)(s->length + n), (long long)s->cache->capacity);
    }
    nb_view x = {0};
    for (int64_t i = 0; i < n; i += s->chunk) {
        int64_t T = n - i < s->chunk ? n - i : s->chunk;
        x = nb_view_of(s->x, T, s->net->cfg.n_embd);
        NB_TRY(nb_net_forward(s->net, s->ws, s->cache, x, ids + i, s->length, err));
        s->length += T;
    }
    nb_backend *be = s->net->be;
    nb_view out = nb_view_of(s->logits, 1, s->net->cfg.n_vocab);
    NB_TRY(nb_ends_logits(s->net->ends, s->ws, out, nb_view_rows(x, x.rows - 1, 1), err));
    be->ops->download(be, out, s->host, NB_F32);
    NB_TRY(be->ops->sync(be, err));
    NB_TRY(check_finite(s->host, s->net->cfg.n_vocab, s->length - 1, err));
    *logits = s->host;
    return NB_OK;
}
