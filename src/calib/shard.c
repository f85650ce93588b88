#include "calib/shard.h"

#include "base/size.h"

static nb_status add(nb_shard *s, const char *name, nb_dtype dtype, const int64_t *dims, int n_dims,
                     const void *data, size_t n_bytes, nb_error *err)
{
    if (!name) return nb_fail_memory(err, "tensor name", 0);
    if (s->n == NB_SHARD_TENSORS) {
        return nb_fail(err, NB_EINPUT, "%s: more than %d tensors in a block", name,
                       NB_SHARD_TENSORS);
    }
    nb_tensor *t = &s->items[s->n++];
    *t = (nb_tensor){
        .name = name, .dtype = dtype, .n_dims = n_dims, .data = data, .n_bytes = n_bytes};
    for (int i = 0; i < n_dims; i++) t->dims[i] = dims[i];
    return NB_OK;
}

nb_status nb_shard_add_vector(nb_shard *s, const char *module, const char *field, const float *data,
                              int64_t n, nb_error *err)
{
    const char *name = nb_arena_printf(s->arena, "%s.%s", module, field);
    return add(s, name, NB_F32, &n, 1, data, (size_t)n * sizeof *data, err);
}

static nb_status add_plane(nb_shard *s, const char *module, const char *stem, const nb_matrix *w,
                           int i, const nb_plane_spec *spec, nb_error *err)
{
    const char *dot = *spec->suffix ? "." : "";
    const char *name = nb_arena_printf(s->arena, "%s.%s%s%s", module, stem, dot, spec->suffix);
    int64_t dims[2] = {w->n_out, spec->cols};
    size_t n_bytes;
    if (!nb_mul_size((size_t)w->n_out, (size_t)spec->row_bytes, &n_bytes)) {
        return nb_fail_memory(err, module, SIZE_MAX);
    }
    return add(s, name, spec->dtype, dims, 2, w->plane[i], n_bytes, err);
}

/* stem: "weight", "weight.lorc_a", "weight.lorc_b" */
static nb_status add_planes(nb_shard *s, const char *module, const char *stem, const nb_matrix *w,
                            nb_error *err)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = w->format.family->planes(&w->format, w->n_in, spec);
    for (int i = 0; i < n; i++) NB_TRY(add_plane(s, module, stem, w, i, &spec[i], err));
    return NB_OK;
}

nb_status nb_shard_add_linear(nb_shard *s, const nb_host_linear *l, nb_error *err)
{
    NB_TRY(add_planes(s, l->name, "weight", &l->w, err));
    if (l->lorc.rank > 0) {
        NB_TRY(add_planes(s, l->name, "weight.lorc_a", &l->lorc.a, err));
        NB_TRY(add_planes(s, l->name, "weight.lorc_b", &l->lorc.b, err));
    }
    return l->bias ? nb_shard_add_vector(s, l->name, "bias", l->bias, l->w.n_out, err) : NB_OK;
}

nb_status nb_shard_add_norm(nb_shard *s, const nb_host_norm *norm, nb_error *err)
{
    if (!norm->name) return NB_OK;
    if (norm->weight) {
        NB_TRY(nb_shard_add_vector(s, norm->name, "weight", norm->weight, norm->n, err));
    }
    if (!norm->bias) return NB_OK;
    return nb_shard_add_vector(s, norm->name, "bias", norm->bias, norm->n, err);
}

nb_status nb_file_hash(const char *path, char hash[NB_HASH_CHARS], nb_error *err)
{
    enum { PIECE = 16 << 20 };
    nb_map m;
    nb_hasher *h;
    NB_TRY(nb_map_open(&m, path, err));
    nb_status st = nb_hasher_create(&h, err);
    if (st == NB_OK) {
        for (size_t at = 0; at < m.n_bytes; at += PIECE) {
            size_t n = m.n_bytes - at < PIECE ? m.n_bytes - at : PIECE;
            nb_hasher_add(h, m.data + at, n);
            nb_map_release(&m, m.data + at, n);
        }
        nb_hasher_finish(h, hash);
    }
    nb_map_close(&m);
    return st;
}

nb_status nb_shard_write(const nb_shard *s, const char *path, char hash[NB_HASH_CHARS],
                         int64_t *n_bytes, nb_error *err)
{
    const char *const meta[] = {"format", "pt"}; /* what transformers insists on */
    NB_TRY(nb_safetensors_write(path, s->items, s->n, meta, 1, err));
    *n_bytes = nb_file_bytes(path);
    return nb_file_hash(path, hash, err);
}
