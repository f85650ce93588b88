/* A whole model on a device, and the keys and values of one sequence through it. */
#include <stdlib.h>
#include <string.h>

#include "model/family.h"

static nb_status load_block(nb_net *n, const nb_source *src, int i, bool simulate,
                            const nb_format *kv, nb_error *err)
{
    nb_host_block h;
    NB_TRY(nb_source_block(src, i, n->arena, &h, err));
    if (kv) h.attn.k = h.attn.v = *kv;
    n->attn = h.attn;
    for (int r = 0; r < NB_N_ROLES && simulate; r++) {
        NB_TRY(nb_host_linear_unpack(&h.linear[r], n->arena, n->be->threads, err));
    }
    NB_TRY(nb_block_create(n->be, &n->cfg, &h, &n->blocks[i], err));
    n->weight_bytes += nb_block_bytes(n->blocks[i]);
    return NB_OK;
}

static nb_status load(nb_net *n, const nb_source *src, bool simulate, const nb_format *kv,
                      nb_error *err)
{
    NB_TRY(nb_arena_create(&n->arena, err));
    n->blocks = calloc((size_t)n->cfg.n_layers, sizeof *n->blocks);
    if (!n->blocks)
        return nb_fail_memory(err, "blocks", (size_t)n->cfg.n_layers * sizeof *n->blocks);
    nb_host_ends h;
    NB_TRY(nb_source_ends(src, n->arena, &h, err));
    NB_TRY(nb_ends_create(n->be, &n->cfg, &h, &n->ends, err));
    n->weight_bytes = nb_ends_bytes(n->ends);
    for (int i = 0; i < n->cfg.n_layers; i++) NB_TRY(load_block(n, src, i, simulate, kv, err));
    return n->be->ops->sync(n->be, err);
}

nb_status nb_net_create(nb_net **out, nb_backend *be, const nb_source *src, bool simulate,
                        const nb_format *kv, nb_error *err)
{
    *out = NULL;
    nb_net *n = calloc(1, sizeof *n);
    if (!n) return nb_fail_memory(err, "model", sizeof *n);
    n->be = be;
    n->cfg = *nb_source_config(src);
    nb_status st = load(n, src, simulate, kv, err);
    if (st != NB_OK) {
        nb_net_free(n);
        return st;
    }
    *out = n;
    return NB_OK;
}

void nb_net_free(nb_net *n)
{
    if (!n) return;
    for (int i = 0; n->blocks && i < n->cfg.n_layers; i++) nb_block_free(n->blocks[i]);
    free(n->blocks);
    nb_ends_free(n->ends);
    nb_arena_free(n->arena);
    free(n);
}

nb_status nb_cache_create(nb_cache **out, const nb_net *n, int64_t capacity, unsigned flags,
                          nb_error *err)
{
    *out = NULL;
    nb_cache *c = calloc(1, sizeof *c);
    if (!c) return nb_fail_memory(err, "KV cache", sizeof *c);
    bool shared = flags & NB_CACHE_SHARED;
    *c = (nb_cache){.be = n->be, .n_kv = shared ? 1 : n->cfg.n_layers, .capacity = capacity};
    c->kv = calloc((size_t)c->n_kv, sizeof(nb_kv *));
    nb_status st = c->kv ? NB_OK : nb_fail_memory(err, "KV cache", sizeof(nb_kv *));
    for (int i = 0; i < c->n_kv && st == NB_OK; i++) {
        nb_kv_desc d = nb_block_kv(n->blocks[i], capacity);
        d.paper = flags & NB_CACHE_PAPER;
        st = n->be->ops->kv_create(n->be, &d, &c->kv[i], err);
    }
    if (st == NB_OK) st = nb_rope_table(n->be, &n->cfg, capacity, &c->rope, err);
    if (st != NB_OK) {
        nb_cache_free(c);
        return st;
    }
    *out = c;
    return NB_OK;
}

void nb_cache_free(nb_cache *c)
{
    if (!c) return;
    for (int i = 0; c->kv && i < c->n_kv; i++) c->be->ops->kv_free(c->be, c->kv[i]);
    c->be->ops->buffer_free(c->be, c->rope.buf);
    free(c->kv);
    free(c);
}

size_t nb_cache_bytes(const nb_cache *c)
{
    size_t bytes = 0;
    for (int i = 0; i < c->n_kv; i++) bytes += c->be->ops->kv_bytes(c->kv[i]);
    return bytes;
}

nb_status nb_net_forward(const nb_net *n, nb_workspace *ws, nb_cache *c, nb_view x,
                         const int32_t *ids, int64_t pos0, nb_error *err)
{
    if (pos0 + x.rows > c->capacity) {
        return nb_fail(err, NB_ERESOURCE, "KV cache: %lld positions, capacity %lld",
                       (long long)(pos0 + x.rows), (long long)c->capacity);
    }
    NB_TRY(nb_ends_embed(n->ends, x, ids, pos0, err));
    for (int i = 0; i < n->cfg.n_layers; i++) {
        nb_block_forward(n->blocks[i], ws, x, c->kv[c->n_kv == 1 ? 0 : i], c->rope, pos0);
    }
    return n->be->ops->sync(n->be, err);
}
