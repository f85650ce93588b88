#include "calib/flow.h"

#include <math.h>
#include <stdlib.h>

enum { SOURCE, STORED, TARGET };

struct nb_flow {
    nb_backend *be;
    nb_config cfg;
    const nb_samples *samples;
    nb_workspace *ws;
    nb_view rope;
    nb_buffer *x[3]; /* [n * seqlen, C]: SOURCE, STORED, TARGET (or NULL) */
    nb_buffer *copy; /* [seqlen, C]: a window whose states must stay */
    float *host[2];  /* [seqlen, C] */
    bool ahead;      /* the source's states are through the block: in TARGET, or moved on */
};

int64_t nb_flow_bytes(const nb_config *cfg, int n_samples, int seqlen, bool target)
{
    int64_t hidden = (int64_t)seqlen * cfg->n_embd;
    int64_t wide = (int64_t)cfg->n_heads * cfg->head_dim + 2 * (int64_t)cfg->n_ffn;
    int64_t kv = (int64_t)cfg->n_kv_heads * cfg->head_dim; /* as made, and as kept */
    int64_t scratch = (int64_t)seqlen * (2 * cfg->n_embd + 2 * wide + 4 * kv);
    return 4 * ((target ? 3 : 2) * n_samples * hidden + 3 * hidden + scratch);
}

static nb_status create_buffers(nb_flow *f, bool target, nb_error *err)
{
    const nb_ops *op = f->be->ops;
    int64_t seqlen = f->samples->seqlen, hidden = seqlen * f->cfg.n_embd;
    NB_TRY(nb_workspace_create(f->be, &f->cfg, seqlen, &f->ws, err));
    NB_TRY(op->buffer_create(f->be, hidden, &f->copy, err));
    NB_TRY(nb_rope_table(f->be, &f->cfg, seqlen, &f->rope, err));
    for (int i = 0; i < (target ? 3 : 2); i++) {
        NB_TRY(op->buffer_create(f->be, f->samples->n * hidden, &f->x[i], err));
    }
    for (int i = 0; i < 2; i++) {
        f->host[i] = malloc((size_t)hidden * sizeof(float));
        if (!f->host[i]) return nb_fail_memory(err, "hidden states", (size_t)hidden * 4);
    }
    return NB_OK;
}

nb_status nb_flow_create(nb_flow **out, nb_backend *be, const nb_config *cfg,
                         const nb_samples *samples, bool target, nb_error *err)
{
    *out = NULL;
    nb_flow *f = calloc(1, sizeof *f);
    if (!f) return nb_fail_memory(err, "calibration", sizeof *f);
    f->be = be;
    f->cfg = *cfg;
    f->samples = samples;
    nb_status st = create_buffers(f, target, err);
    if (st != NB_OK) {
        nb_flow_free(f);
        return st;
    }
    *out = f;
    return NB_OK;
}

void nb_flow_free(nb_flow *f)
{
    if (!f) return;
    nb_buffer *const all[] = {f->rope.buf, f->x[SOURCE], f->x[STORED], f->x[TARGET], f->copy};
    for (size_t i = 0; i < NB_COUNT(all); i++) f->be->ops->buffer_free(f->be, all[i]);
    nb_workspace_free(f->ws);
    free(f->host[SOURCE]);
    free(f->host[STORED]);
    free(f);
}

/* Hidden states [seqlen, C] of window i. */
static nb_view window(const nb_flow *f, int which, int i)
{
    int64_t seqlen = f->samples->seqlen;
    nb_view all = nb_view_of(f->x[which], f->samples->n * seqlen, f->cfg.n_embd);
    return nb_view_rows(all, i * seqlen, seqlen);
}

static nb_status embed(nb_flow *f, int which, const nb_host_ends *host, nb_error *err)
{
    /* Only what embeds: the head would cost memory for nothing. */
    nb_host_ends part = {.embed = host->embed,
                         .positions = host->positions,
                         .proj_in = host->proj_in,
                         .stream = host->stream};
    nb_ends *ends;
    NB_TRY(nb_ends_create(f->be, &f->cfg, &part, &ends, err));
    nb_status st = NB_OK;
    for (int i = 0; st == NB_OK && i < f->samples->n; i++) {
        const int32_t *ids = f->samples->ids + (int64_t)i * f->samples->seqlen;
        st = nb_ends_embed(ends, window(f, which, i), ids, 0, err);
    }
    if (st == NB_OK) st = f->be->ops->sync(f->be, err);
    nb_ends_free(ends);
    return st;
}

nb_status nb_flow_begin(nb_flow *f, const nb_host_ends *source, const nb_host_ends *stored,
                        nb_error *err)
{
    NB_TRY(embed(f, SOURCE, source, err));
    return embed(f, STORED, stored, err);
}

/* Every window of `from` through the block, into the same window of `to`; to -1: into a copy that
 * is dropped. */
static nb_status forward(nb_flow *f, int from, int to, const nb_host_block *host, nb_flow_tick tick,
                         void *user, nb_error *err)
{
    nb_block *block;
    NB_TRY(nb_block_create(f->be, &f->cfg, host, &block, err));
    nb_kv *kv; /* of one window: every window starts at position 0 */
    nb_kv_desc d = nb_block_kv(block, f->samples->seqlen);
    nb_status st = f->be->ops->kv_create(f->be, &d, &kv, err);
    for (int i = 0; st == NB_OK && i < f->samples->n; i++) {
        nb_view x = window(f, from, i);
        if (to != from) {
            nb_view dst = to < 0 ? nb_view_of(f->copy, x.rows, x.cols) : window(f, to, i);
            f->be->ops->copy(f->be, dst, x);
            x = dst;
        }
        nb_block_forward(block, f->ws, x, kv, f->rope, 0);
        st = f->be->ops->sync(f->be, err);
        if (st == NB_OK) st = tick(user);
    }
    f->be->ops->kv_free(f->be, kv);
    nb_block_free(block);
    return st;
}

nb_status nb_flow_collect(nb_flow *f, const nb_host_block *block, nb_observe_fn observe,
                          void *observe_user, nb_flow_tick tick, void *user, nb_error *err)
{
    nb_workspace_observe(f->ws, observe, observe_user);
    nb_status st = forward(f, STORED, -1, block, tick, user, err);
    nb_workspace_observe(f->ws, NULL, NULL);
    return st;
}

/* Where the source's states go on. */
static int source_end(const nb_flow *f) { return f->x[TARGET] ? TARGET : SOURCE; }

nb_status nb_flow_observe(nb_flow *f, const nb_host_block *block, bool keep, nb_observe_fn observe,
                          void *observe_user, nb_flow_tick tick, void *user, nb_error *err)
{
    nb_workspace_observe(f->ws, observe, observe_user);
    nb_status st = forward(f, SOURCE, keep ? -1 : source_end(f), block, tick, user, err);
    nb_workspace_observe(f->ws, NULL, NULL);
    if (!keep) f->ahead = true;
    return st;
}

nb_flow_states nb_flow_look(const nb_flow *f)
{
    nb_flow_states s = {.n_windows = f->samples->n, .seqlen = f->samples->seqlen, .rope = f->rope};
    int64_t rows = (int64_t)f->samples->n * f->samples->seqlen;
    s.source = nb_view_of(f->x[SOURCE], rows, f->cfg.n_embd);
    s.stored = nb_view_of(f->x[STORED], rows, f->cfg.n_embd);
    if (f->x[TARGET]) s.target = nb_view_of(f->x[TARGET], rows, f->cfg.n_embd);
    return s;
}

/* One thread, one order: the same sum for any number of threads. */
static nb_status output_error(nb_flow *f, int layer, double *out, nb_error *err)
{
    const nb_ops *op = f->be->ops;
    int64_t n = (int64_t)f->samples->seqlen * f->cfg.n_embd;
    double error = 0, power = 0;
    for (int i = 0; i < f->samples->n; i++) {
        op->download(f->be, window(f, SOURCE, i), f->host[SOURCE], NB_F32);
        op->download(f->be, window(f, STORED, i), f->host[STORED], NB_F32);
        NB_TRY(op->sync(f->be, err));
        for (int64_t k = 0; k < n; k++) {
            double a = (double)f->host[SOURCE][k], d = (double)f->host[STORED][k] - a;
            error += d * d;
            power += a * a;
        }
    }
    if (!isfinite(error) || !isfinite(power)) {
        return nb_fail(err, NB_ENUMERIC,
                       "block %d: its output on the calibration text is not finite", layer);
    }
    *out = power > 0 ? error / power : 0;
    return NB_OK;
}

nb_status nb_flow_advance(nb_flow *f, const nb_host_block *source, const nb_host_block *stored,
                          nb_flow_tick tick, void *user, double *error, nb_error *err)
{
    if (!f->ahead) NB_TRY(forward(f, SOURCE, source_end(f), source, tick, user, err));
    f->ahead = false;
    if (f->x[TARGET]) {
        nb_buffer *behind = f->x[SOURCE];
        f->x[SOURCE] = f->x[TARGET];
        f->x[TARGET] = behind;
    }
    NB_TRY(forward(f, STORED, STORED, stored, tick, user, err));
    return output_error(f, source->layer, error, err);
}
