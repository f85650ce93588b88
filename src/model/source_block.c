/* Host weights of one block, or of the ends, under Hugging Face names: shapes checked against the
 * configuration, rows of Q and K in the order of rotary pairs that the configuration has. */
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "model/source.h"

#define NAME_BYTES 192

/* What one tensor is called here and in the file. */
typedef struct loader {
    const nb_source *s;
    nb_arena *arena;
    nb_error *err;
    int layer; /* -1: outside the blocks */
} loader;

static nb_status out_of_memory(const loader *l, const char *name)
{
    return nb_fail(l->err, NB_ERESOURCE, "out of memory: %s", name);
}

/* ---- names ------------------------------------------------------------------------------ */

nb_status nb_source_resolve(nb_source *s, nb_error *err)
{
    if (nb_checkpoint_container(s->ckpt) == NB_GGUF) return NB_OK;
    char name[NAME_BYTES];
    bool packed = nb_source_format(s, s->cfg.family->embed).family != NULL;
    snprintf(name, sizeof name, "%s.weight%s", s->cfg.family->embed, packed ? ".codes" : "");
    if (nb_checkpoint_find(s->ckpt, name)) return NB_OK;
    s->short_prefix = nb_checkpoint_find(s->ckpt, name + strlen("model.")) != NULL;
    if (s->short_prefix) return NB_OK;
    return nb_fail(err, NB_EINPUT, "%s: tensor %s is missing", nb_checkpoint_path(s->ckpt), name);
}

/* Hugging Face module name with the layer filled in; lives in the arena. */
static const char *module_name(const loader *l, const char *pattern)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, pattern, l->layer);
    return nb_arena_strndup(l->arena, name, strlen(name));
}

static const nb_tensor *find(const loader *l, const char *module, const char *gguf,
                             const char *suffix)
{
    char name[NAME_BYTES];
    if (nb_checkpoint_container(l->s->ckpt) == NB_GGUF) {
        char base[NAME_BYTES / 2];
        snprintf(base, sizeof base, gguf, l->layer);
        snprintf(name, sizeof name, "%s.%s", base, suffix);
    } else {
        if (l->s->short_prefix && strncmp(module, "model.", 6) == 0) module += 6;
        snprintf(name, sizeof name, "%s.%s", module, suffix);
    }
    return nb_checkpoint_find(l->s->ckpt, name);
}

static nb_status missing(const loader *l, const char *module, const char *suffix)
{
    return nb_fail(l->err, NB_EINPUT, "%s: tensor %s.%s is missing", nb_checkpoint_path(l->s->ckpt),
                   module, suffix);
}

/* ---- vectors ---------------------------------------------------------------------------- */

static nb_status load_vector(const loader *l, const nb_tensor *t, int64_t n, const float **out)
{
    if (t->n_dims != 1 || t->dims[0] != n) {
        return nb_fail(l->err, NB_EINPUT,
                       "%s: %d dimensions, first %lld: expected a vector of %lld", t->name,
                       t->n_dims, (long long)(t->n_dims ? t->dims[0] : 0), (long long)n);
    }
    const nb_dtype_info *d = &nb_dtypes[t->dtype];
    if (!d->decode || n % d->block_elems != 0) {
        return nb_fail(l->err, NB_EINPUT, "%s: type %s: expected a float type", t->name, d->name);
    }
    float *v = nb_arena_alloc(l->arena, (size_t)n, sizeof *v);
    if (!v) return out_of_memory(l, t->name);
    d->decode(t->data, n, v);
    *out = v;
    return NB_OK;
}

/* ---- matrices --------------------------------------------------------------------------- */

static nb_status check_plane(const loader *l, const nb_tensor *t, const nb_plane_spec *p,
                             int64_t n_out)
{
    if (t->dtype != p->dtype || t->n_dims != 2 || t->dims[0] != n_out || t->dims[1] != p->cols) {
        return nb_fail(l->err, NB_EINPUT, "%s: %s [%lld, %lld]: expected %s [%lld, %lld]", t->name,
                       nb_dtypes[t->dtype].name, (long long)t->dims[0],
                       (long long)(t->n_dims > 1 ? t->dims[1] : 0), nb_dtypes[p->dtype].name,
                       (long long)n_out, (long long)p->cols);
    }
    return NB_OK;
}

/* A scale that is NaN would spoil everything it meets, far from here. */
static nb_status check_scales(const loader *l, const char *module, const char *stem,
                              const nb_matrix *m)
{
    for (int64_t r = 0; m->format.family->find_nan && r < m->n_out; r++) {
        const uint8_t *plane[NB_MAX_PLANES];
        nb_matrix_row(m, r, plane);
        int64_t g = m->format.family->find_nan(&m->format, plane, m->n_in);
        if (g < 0) continue;
        return nb_fail(l->err, NB_EINPUT,
                       "%s.%s.scales: row %lld, group %lld: the byte 255 is no scale", module, stem,
                       (long long)r, (long long)g);
    }
    return NB_OK;
}

/* stem: "weight", "weight.lorc_a", "weight.lorc_b" */
static nb_status load_planes(const loader *l, const char *module, const char *stem, nb_matrix *m)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = m->format.family->planes(&m->format, m->n_in, spec);
    for (int i = 0; i < n; i++) {
        char suffix[48];
        const char *dot = *spec[i].suffix ? "." : "";
        snprintf(suffix, sizeof suffix, "%s%s%s", stem, dot, spec[i].suffix);
        const nb_tensor *t = find(l, module, NULL, suffix);
        if (!t) return missing(l, module, suffix);
        NB_TRY(check_plane(l, t, &spec[i], m->n_out));
        m->plane[i] = t->data;
    }
    return check_scales(l, module, stem, m);
}

static nb_status load_plain(const loader *l, const char *module, const char *gguf, nb_matrix *m)
{
    const nb_tensor *t = find(l, module, gguf, "weight");
    if (!t) return missing(l, module, "weight");
    if (t->n_dims != 2 || t->dims[0] != m->n_out || t->dims[1] != m->n_in) {
        return nb_fail(l->err, NB_EINPUT,
                       "%s: shape [%lld, %lld] (%d dimensions), expected [%lld, %lld]", t->name,
                       (long long)(t->n_dims > 0 ? t->dims[0] : 0),
                       (long long)(t->n_dims > 1 ? t->dims[1] : 0), t->n_dims, (long long)m->n_out,
                       (long long)m->n_in);
    }
    const nb_dtype_info *d = &nb_dtypes[t->dtype];
    if (!d->decode || m->n_in % d->block_elems != 0) {
        return nb_fail(l->err, NB_EINPUT, "%s: type %s with rows of %lld: expected a weight type",
                       t->name, d->name, (long long)m->n_in);
    }
    m->format = nb_format_plain(t->dtype);
    m->plane[0] = t->data;
    return NB_OK;
}

/* ---- order of rotary pairs ---------------------------------------------------------------- */

/* Channel d of a head, as the configuration counts them, is this one of the file. Of pair i, the
 * halves keep element j at j*D/2 + i (Hugging Face), the interleaved order at 2*i + j (GGUF). */
static int64_t channel_in_file(const nb_source *s, int64_t d)
{
    int64_t half = s->cfg.head_dim / 2;
    if (s->interleaved == s->cfg.rope_interleaved) return d;
    return s->interleaved ? 2 * (d % half) + d / half : d % 2 * half + d / 2;
}

/* *rows [n_rows] of row_bytes each, whole heads: in the order of the configuration. */
static nb_status order_rows(const loader *l, const char *name, int64_t n_rows, int64_t row_bytes,
                            const void **rows)
{
    int64_t D = l->s->cfg.head_dim;
    const uint8_t *src = *rows;
    if (!src || l->s->interleaved == l->s->cfg.rope_interleaved) return NB_OK;
    uint8_t *dst = nb_arena_alloc(l->arena, (size_t)n_rows, (size_t)row_bytes);
    if (!dst) return out_of_memory(l, name);
    for (int64_t r = 0; r < n_rows; r++) {
        int64_t from = r / D * D + channel_in_file(l->s, r % D);
        memcpy(dst + r * row_bytes, src + from * row_bytes, (size_t)row_bytes);
    }
    *rows = dst;
    return NB_OK;
}

static nb_status order_linear(const loader *l, nb_host_linear *lin)
{
    const void *weight = lin->w.plane[0], *bias = lin->bias;
    int64_t row_bytes = nb_format_row_bytes(&lin->w.format, lin->w.n_in);
    NB_TRY(order_rows(l, lin->name, lin->w.n_out, row_bytes, &weight));
    NB_TRY(order_rows(l, lin->name, lin->w.n_out, sizeof(float), &bias));
    lin->w.plane[0] = weight;
    lin->bias = bias;
    return NB_OK;
}

static nb_status order_norm(const loader *l, nb_host_norm *norm)
{
    const void *weight = norm->weight, *bias = norm->bias;
    NB_TRY(order_rows(l, norm->name, norm->n, sizeof(float), &weight));
    NB_TRY(order_rows(l, norm->name, norm->n, sizeof(float), &bias));
    norm->weight = weight;
    norm->bias = bias;
    return NB_OK;
}

static nb_status load_linear(const loader *l, const char *pattern, const char *gguf, int64_t n_out,
                             int64_t n_in, bool bias, nb_host_linear *out)
{
    out->name = module_name(l, pattern);
    if (!out->name) return out_of_memory(l, pattern);
    out->w = (nb_matrix){.n_out = n_out, .n_in = n_in};
    nb_format f = nb_source_format(l->s, out->name);
    if (f.family) {
        out->w.format = f;
        NB_TRY(load_planes(l, out->name, "weight", &out->w));
    } else {
        NB_TRY(load_plain(l, out->name, gguf, &out->w));
    }
    if (!bias && !nb_source_has_bias(l->s, out->name)) return NB_OK;
    const nb_tensor *t = find(l, out->name, gguf, "bias");
    return t ? load_vector(l, t, n_out, &out->bias) : missing(l, out->name, "bias");
}

static nb_status load_norm(const loader *l, const char *pattern, const char *gguf, int64_t n,
                           nb_host_norm *out)
{
    const nb_config *c = &l->s->cfg;
    out->name = module_name(l, pattern);
    if (!out->name) return out_of_memory(l, pattern);
    out->n = n;
    if (!c->norm_affine) return NB_OK;
    const nb_tensor *t = find(l, out->name, gguf, "weight");
    if (!t) return missing(l, out->name, "weight");
    NB_TRY(load_vector(l, t, n, &out->weight));
    if (c->family->norm != NB_NORM_LAYER) return NB_OK;
    t = find(l, out->name, gguf, "bias");
    return t ? load_vector(l, t, n, &out->bias) : missing(l, out->name, "bias");
}

/* ---- blocks ----------------------------------------------------------------------------- */

static void role_shape(const nb_config *c, int role, int64_t *n_out, int64_t *n_in, bool *bias)
{
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    const struct {
        int64_t n_out, n_in;
        bool bias;
    } shape[NB_N_ROLES] = {
        [NB_Q] = {q, c->n_embd, c->qkv_bias},
        [NB_K] = {kv, c->n_embd, c->qkv_bias},
        [NB_V] = {kv, c->n_embd, c->qkv_bias},
        [NB_O] = {c->n_embd, q, c->o_bias},
        [NB_GATE] = {c->n_ffn, c->n_embd, c->mlp_bias},
        [NB_UP] = {c->n_ffn, c->n_embd, c->mlp_bias},
        [NB_DOWN] = {c->n_embd, c->n_ffn, c->mlp_bias},
    };
    *n_out = shape[role].n_out;
    *n_in = shape[role].n_in;
    *bias = shape[role].bias;
}

/* Low-rank factors of a quantized linear inside the blocks. */
static nb_status load_lorc(const loader *l, nb_host_linear *lin)
{
    lin->lorc = l->s->lorc;
    if (lin->lorc.rank == 0) {
        const nb_tensor *t = find(l, lin->name, "", "weight.lorc_a");
        if (!t) t = find(l, lin->name, "", "weight.lorc_a.codes");
        return t ? nb_fail(l->err, NB_EINPUT, "%s: quantization_config.lorc is missing", t->name)
                 : NB_OK;
    }
    if (!nb_lorc_shape(&lin->lorc, lin->w.n_out, lin->w.n_in)) {
        return nb_fail(l->err, NB_EINPUT,
                       "%s: quantization_config.lorc.rank %d: the weight is [%lld, %lld]",
                       lin->name, lin->lorc.rank, (long long)lin->w.n_out, (long long)lin->w.n_in);
    }
    NB_TRY(load_planes(l, lin->name, "weight.lorc_a", &lin->lorc.a));
    return load_planes(l, lin->name, "weight.lorc_b", &lin->lorc.b);
}

static nb_status load_role(const loader *l, int role, nb_host_linear *out)
{
    const nb_family *f = l->s->cfg.family;
    if (!f->linear[role]) return NB_OK;
    int64_t n_out, n_in;
    bool bias;
    role_shape(&l->s->cfg, role, &n_out, &n_in, &bias);
    NB_TRY(load_linear(l, f->linear[role], nb_gguf_linear[role], n_out, n_in, bias, out));
    out->act = nb_source_act(l->s, out->name, nb_format_is_quantized(&out->w.format));
    if (nb_format_is_quantized(&out->w.format)) NB_TRY(load_lorc(l, out));
    return role == NB_Q || role == NB_K ? order_linear(l, out) : NB_OK;
}

nb_status nb_source_block(const nb_source *s, int layer, nb_arena *arena, nb_host_block *out,
                          nb_error *err)
{
    *out = (nb_host_block){.layer = layer, .attn = s->attn, .rotation = s->rotation};
    loader l = {.s = s, .arena = arena, .err = err, .layer = layer};
    const nb_config *c = &s->cfg;
    for (int r = 0; r < NB_N_ROLES; r++) NB_TRY(load_role(&l, r, &out->linear[r]));
    for (int r = 0; r < NB_N_NORMS; r++) {
        bool head = r == NB_NORM_Q || r == NB_NORM_K;
        if (!c->family->norms[r] || (head && !c->family->qk_norm)) continue;
        NB_TRY(load_norm(&l, c->family->norms[r], nb_gguf_norms[r], head ? c->head_dim : c->n_embd,
                         &out->norm[r]));
        if (head) NB_TRY(order_norm(&l, &out->norm[r]));
    }
    if (s->fold_threads == 0) return NB_OK;
    return nb_host_block_rotate(out, s->rotation.stream, arena, s->fold_threads, s->fold_cpu, err);
}

nb_status nb_source_ends(const nb_source *s, nb_arena *arena, nb_host_ends *out, nb_error *err)
{
    *out = (nb_host_ends){.stream = s->rotation.stream};
    loader l = {.s = s, .arena = arena, .err = err, .layer = -1};
    const nb_config *c = &s->cfg;
    const nb_family *f = c->family;
    int64_t width = c->embd_proj ? c->embd_proj : c->n_embd;
    NB_TRY(load_linear(&l, f->embed, NB_GGUF_EMBED, c->n_vocab, width, false, &out->embed));
    if (f->positions) {
        NB_TRY(load_linear(&l, f->positions, "", (int64_t)c->n_ctx + f->position_offset, c->n_embd,
                           false, &out->positions));
    }
    if (c->embd_proj) {
        NB_TRY(load_linear(&l, f->proj_in, "", c->n_embd, width, false, &out->proj_in));
        NB_TRY(load_linear(&l, f->proj_out, "", width, c->n_embd, false, &out->proj_out));
    }
    if (c->final_norm) {
        NB_TRY(load_norm(&l, f->final_norm, NB_GGUF_FINAL_NORM, c->n_embd, &out->final_norm));
    }
    if (!c->tied)
        return load_linear(&l, f->head, NB_GGUF_HEAD, c->n_vocab, width, false, &out->head);
    out->head.w = out->embed.w;
    return NB_OK;
}

void nb_source_release(const nb_source *s, int layer)
{
    char a[NAME_BYTES];
    bool gguf = nb_checkpoint_container(s->ckpt) == NB_GGUF;
    snprintf(a, sizeof a, gguf ? "blk.%d." : s->cfg.family->linear[NB_Q], layer);
    if (!gguf) { /* the part up to and with "layers.N." */
        char number[24];
        int n = snprintf(number, sizeof number, ".%d.", layer);
        char *end = strstr(a, number);
        if (!end) return;
        end[n] = 0;
    }
    const char *prefix = s->short_prefix ? a + strlen("model.") : a;
    for (size_t i = 0; i < nb_checkpoint_count(s->ckpt); i++) {
        const nb_tensor *t = nb_checkpoint_at(s->ckpt, i);
        if (strncmp(t->name, prefix, strlen(prefix)) == 0) nb_checkpoint_release(s->ckpt, t);
    }
}
