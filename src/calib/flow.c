#include "calib/flow.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "base/size.h"

enum { SOURCE, STORED, TARGET };

/* Where no step looks at the source's states, they serve the report alone, which these give. */
enum { REPORT_WINDOWS = 8 };

struct nb_flow {
    nb_backend *be;
    nb_config cfg;
    const nb_samples *samples;
    const char *spill;
    nb_workspace *ws;
    nb_view rope;
    nb_states *x[3]; /* SOURCE, STORED, TARGET (or NULL) */
    int n_source;    /* windows of SOURCE; the others have all */
    nb_buffer *copy; /* [seqlen, C]: a window whose states must stay */
    float *host[2];  /* [seqlen, C] */
    bool ahead;      /* the source's states are through the block: in TARGET, or moved on */
};

nb_flow_desc nb_flow_describe(const nb_recipe *recipe, const nb_config *cfg)
{
    unsigned needs = nb_recipe_block_needs(recipe);
    nb_flow_desc d = {.cfg = cfg, .at_once = 1, .n_source = needs ? INT_MAX : REPORT_WINDOWS};
    d.target = needs & NB_NEED_STATES;
    if (d.target) d.at_once = (int)nb_clamp_i64(recipe->batch, 1, recipe->samples);
    return d;
}

static nb_states_desc describe_states(const nb_flow_desc *d, int n_windows, int seqlen)
{
    return (nb_states_desc){.n_windows = n_windows,
                            .seqlen = seqlen,
                            .n_embd = d->cfg->n_embd,
                            .at_once = d->at_once < n_windows ? d->at_once : n_windows,
                            .dir = d->spill};
}

static int source_windows(const nb_flow_desc *d, int n_samples)
{
    return d->n_source < n_samples ? d->n_source : n_samples;
}

/* The source's, the stored ones; where a step trains, the target and the step's own. */
static int64_t states_bytes(const nb_flow_desc *d, int n_samples, int seqlen, bool spilled)
{
    nb_states_desc source = describe_states(d, source_windows(d, n_samples), seqlen);
    nb_states_desc one = describe_states(d, n_samples, seqlen);
    return nb_states_bytes(&source, spilled) + (d->target ? 3 : 1) * nb_states_bytes(&one, spilled);
}

int64_t nb_flow_bytes(const nb_flow_desc *d, int n_samples, int seqlen, bool spilled)
{
    const nb_config *cfg = d->cfg;
    int64_t hidden = (int64_t)seqlen * cfg->n_embd;
    int64_t wide = (int64_t)cfg->n_heads * cfg->head_dim + 2 * (int64_t)cfg->n_ffn;
    int64_t kv = (int64_t)cfg->n_kv_heads * cfg->head_dim; /* as made, and as kept */
    int64_t scratch = (int64_t)seqlen * (2 * cfg->n_embd + 2 * wide + 4 * kv);
    return states_bytes(d, n_samples, seqlen, spilled) + 4 * (3 * hidden + scratch);
}

int64_t nb_flow_disk_bytes(const nb_flow_desc *d, int n_samples, int seqlen)
{
    return states_bytes(d, n_samples, seqlen, false);
}

static nb_status create_buffers(nb_flow *f, const nb_flow_desc *d, nb_error *err)
{
    int64_t seqlen = f->samples->seqlen, hidden = seqlen * f->cfg.n_embd;
    NB_TRY(nb_workspace_create(f->be, &f->cfg, seqlen, &f->ws, err));
    NB_TRY(f->be->ops->buffer_create(f->be, hidden, &f->copy, err));
    NB_TRY(nb_rope_table(f->be, &f->cfg, seqlen, &f->rope, err));
    for (int i = 0; i < (d->target ? 3 : 2); i++) {
        nb_states_desc one =
            describe_states(d, i == SOURCE ? f->n_source : f->samples->n, f->samples->seqlen);
        NB_TRY(nb_states_create(&f->x[i], f->be, &one, err));
    }
    for (int i = 0; i < 2; i++) {
        f->host[i] = malloc((size_t)hidden * sizeof(float));
        if (!f->host[i]) return nb_fail_memory(err, "hidden states", (size_t)hidden * 4);
    }
    return NB_OK;
}

nb_status nb_flow_create(nb_flow **out, nb_backend *be, const nb_flow_desc *d,
                         const nb_samples *samples, nb_error *err)
{
    *out = NULL;
    nb_flow *f = calloc(1, sizeof *f);
    if (!f) return nb_fail_memory(err, "calibration", sizeof *f);
    f->be = be;
    f->cfg = *d->cfg;
    f->samples = samples;
    f->spill = d->spill;
    f->n_source = source_windows(d, samples->n);
    nb_status st = create_buffers(f, d, err);
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
    for (size_t i = 0; i < NB_COUNT(f->x); i++) nb_states_free(f->x[i]);
    f->be->ops->buffer_free(f->be, f->rope.buf);
    f->be->ops->buffer_free(f->be, f->copy);
    nb_workspace_free(f->ws);
    free(f->host[SOURCE]);
    free(f->host[STORED]);
    free(f);
}

static int windows_of(const nb_flow *f, int which)
{
    return which == SOURCE ? f->n_source : f->samples->n;
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
    for (int i = 0; st == NB_OK && i < windows_of(f, which); i++) {
        const int32_t *ids = f->samples->ids + (int64_t)i * f->samples->seqlen;
        st = nb_ends_embed(ends, nb_states_room(f->x[which], i, 1), ids, 0, err);
        if (st == NB_OK) st = nb_states_store(f->x[which], i, 1, err);
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

/* Window i of `from` through the block, into the same window of `to`; to -1: into a copy that is
 * dropped. */
static nb_status forward_window(nb_flow *f, int from, int to, int i, nb_block *block, nb_kv *kv,
                                nb_error *err)
{
    nb_view x;
    NB_TRY(nb_states_load(f->x[from], i, 1, &x, err));
    if (to != from) {
        nb_view dst = to < 0 ? nb_view_of(f->copy, x.rows, x.cols) : nb_states_room(f->x[to], i, 1);
        f->be->ops->copy(f->be, dst, x);
        x = dst;
    }
    nb_block_forward(block, f->ws, x, kv, f->rope, 0);
    NB_TRY(f->be->ops->sync(f->be, err));
    return to < 0 ? NB_OK : nb_states_store(f->x[to], i, 1, err);
}

static nb_status forward_all(nb_flow *f, int from, int to, const nb_host_block *host,
                             nb_flow_tick tick, void *user, nb_error *err)
{
    nb_block *block;
    NB_TRY(nb_block_create(f->be, &f->cfg, host, &block, err));
    nb_kv *kv; /* of one window: every window starts at position 0 */
    nb_kv_desc d = nb_block_kv(block, f->samples->seqlen);
    nb_status st = f->be->ops->kv_create(f->be, &d, &kv, err);
    for (int i = 0; st == NB_OK && i < windows_of(f, from); i++) {
        st = forward_window(f, from, to, i, block, kv, err);
        if (st == NB_OK) st = tick(user);
    }
    f->be->ops->kv_free(f->be, kv);
    nb_block_free(block);
    return st;
}

/* Products of whole windows run faster on values than on codes, and decoding once serves all. */
static nb_status forward(nb_flow *f, int from, int to, const nb_host_block *host, nb_flow_tick tick,
                         void *user, nb_error *err)
{
    nb_arena *values;
    nb_host_block block = *host;
    NB_TRY(nb_arena_create(&values, err));
    nb_status st = NB_OK;
    for (int r = 0; st == NB_OK && r < NB_N_ROLES; r++) {
        st = nb_host_linear_unpack(&block.linear[r], values, f->be->threads, err);
    }
    if (st == NB_OK) st = forward_all(f, from, to, &block, tick, user, err);
    nb_arena_free(values);
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
    return (nb_flow_states){.n_windows = f->samples->n,
                            .seqlen = f->samples->seqlen,
                            .source = f->x[SOURCE],
                            .stored = f->x[STORED],
                            .target = f->x[TARGET],
                            .rope = f->rope,
                            .spill = f->spill};
}

/* One thread, one order: the same sum for any number of threads. */
static nb_status output_error(nb_flow *f, int layer, double *out, nb_error *err)
{
    const nb_ops *op = f->be->ops;
    int64_t n = (int64_t)f->samples->seqlen * f->cfg.n_embd;
    double error = 0, power = 0;
    for (int i = 0; i < f->n_source; i++) {
        for (int which = SOURCE; which <= STORED; which++) {
            nb_view x;
            NB_TRY(nb_states_load(f->x[which], i, 1, &x, err));
            op->download(f->be, x, f->host[which], NB_F32);
        }
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
        nb_states *behind = f->x[SOURCE];
        f->x[SOURCE] = f->x[TARGET];
        f->x[TARGET] = behind;
    }
    NB_TRY(forward(f, STORED, STORED, stored, tick, user, err));
    return output_error(f, source->layer, error, err);
}
