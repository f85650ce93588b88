/* Public: structure, checksums and finiteness of a checkpoint. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/weights.h"
#include "base/hash.h"

typedef struct run {
    const nb_source *s;
    nb_arena *arena;
    const nb_options *opt;
    nb_verify_result *out;
    nb_error *err;
} run;

static nb_status step(const run *r, int64_t done, int64_t total)
{
    nb_progress p = {.phase = "verify", .done = done, .total = total};
    if (!r->opt->progress || r->opt->progress(r->opt->progress_user, &p)) return NB_OK;
    return nb_fail(r->err, NB_EINTERRUPTED, "verify: stopped");
}

static nb_status check_hash(const run *r, const nb_tensor *t)
{
    r->out->n_tensors++;
    r->out->bytes += (int64_t)t->n_bytes;
    if (!t->hash) return NB_OK;
    char hash[NB_HASH_CHARS];
    nb_hash(hash, t->data, t->n_bytes);
    if (strcmp(hash, t->hash) != 0) {
        return nb_fail(r->err, NB_EVERIFY, "tensor %s: XXH3-128 %s, recorded %.40s", t->name, hash,
                       t->hash);
    }
    r->out->n_checksums++;
    return NB_OK;
}

static nb_status check_finite(const run *r, const nb_weight *w)
{
    if (!w->m.format.family) return NB_OK;
    float *row = malloc((size_t)(w->m.n_in > 0 ? w->m.n_in : 1) * sizeof *row);
    if (!row) return nb_fail_memory(r->err, w->name, (size_t)w->m.n_in * sizeof *row);
    nb_status st = NB_OK;
    for (int64_t i = 0; i < w->m.n_out && st == NB_OK; i++) {
        nb_matrix_dequant(&w->m, i, 1, row);
        for (int64_t j = 0; j < w->m.n_in; j++) {
            if (isfinite(row[j])) continue;
            st = nb_fail(r->err, NB_EVERIFY, "tensor %s: row %lld, column %lld is not finite",
                         w->name, (long long)i, (long long)j);
            break;
        }
    }
    free(row);
    return st;
}

/* Opening has checked the containers; this asks for every tensor that the family needs. */
static nb_status check_structure(const run *r)
{
    nb_host_ends e;
    nb_status st = nb_source_ends(r->s, r->arena, &e, r->err);
    int n = nb_source_config(r->s)->n_layers;
    for (int i = 0; i < n && st == NB_OK; i++) {
        nb_host_block b;
        st = nb_source_block(r->s, i, r->arena, &b, r->err);
    }
    if (st == NB_EINPUT) { /* readable, but not the model it says it is */
        if (r->err) r->err->status = NB_EVERIFY;
        return NB_EVERIFY;
    }
    return st;
}

static nb_status check_all(const run *r)
{
    NB_TRY(check_structure(r));
    const nb_checkpoint *c = nb_source_checkpoint(r->s);
    nb_weight *w;
    size_t n_weights, n = nb_checkpoint_count(c);
    NB_TRY(nb_weights_list(&w, &n_weights, r->s, r->arena, r->err));
    int64_t total = (int64_t)(n + n_weights);
    for (size_t i = 0; i < n; i++) {
        NB_TRY(check_hash(r, nb_checkpoint_at(c, i)));
        NB_TRY(step(r, (int64_t)i + 1, total));
    }
    for (size_t i = 0; i < n_weights; i++) {
        NB_TRY(check_finite(r, &w[i]));
        NB_TRY(step(r, (int64_t)(n + i) + 1, total));
    }
    return NB_OK;
}

nb_status nb_verify(const char *path, const nb_options *opt, nb_verify_result *out, nb_error *err)
{
    *out = (nb_verify_result){0};
    nb_source *s = NULL;
    run r = {.opt = opt, .out = out, .err = err};
    nb_status st = nb_source_open(&s, path, err);
    if (st == NB_OK) st = nb_arena_create(&r.arena, err);
    r.s = s;
    if (st == NB_OK) st = check_all(&r);
    nb_arena_free(r.arena);
    nb_source_close(s);
    return st;
}
