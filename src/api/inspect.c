/* Public: what is in a checkpoint. Weights are listed as the file holds them; the planes of one
 * packed linear are one entry. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "api/api_model.h"
#include "api/weights.h"
#include "format/dialect.h"

typedef struct inspection {
    nb_inspection pub; /* first: the public handle is this object */
    nb_arena *arena;
    nb_source *source;
    nb_tensor_desc *items;
    nb_weight *weights;
    size_t n;
} inspection;

static double bits_of(int64_t bytes, int64_t n)
{
    return n > 0 ? 8.0 * (double)bytes / (double)n : 0;
}

static int64_t count_of(const nb_tensor_desc *d)
{
    int64_t n = 1;
    for (int i = 0; i < d->n_dims; i++) n *= d->dims[i];
    return n;
}

static void describe(nb_tensor_desc *d, const nb_weight *w)
{
    const nb_dtype_info *t = &nb_dtypes[w->dtype];
    int64_t n = w->m.n_out * w->m.n_in;
    *d = (nb_tensor_desc){
        .name = w->name,
        .format = w->packed ? w->m.format.word : t->name,
        .n_dims = w->n_dims,
        .bytes = w->m.format.family ? nb_matrix_bytes(&w->m) : n / t->block_elems * t->block_bytes,
        .quantized = w->packed && w->in_block,
    };
    memcpy(d->dims, w->dims, sizeof d->dims);
    d->bits_per_weight = bits_of(d->bytes, n);
}

/* Of the quantized linears with their low-rank factors; where there are none, of every tensor. */
static double bits_per_weight(const inspection *in)
{
    int64_t bytes[2] = {0}, n[2] = {0};
    for (size_t i = 0; i < in->n; i++) {
        const nb_tensor_desc *d = &in->items[i];
        for (int q = 0; q <= d->quantized; q++) {
            bytes[q] += d->bytes;
            n[q] += in->weights[i].factor ? 0 : count_of(d);
        }
    }
    int which = n[1] > 0;
    return bits_of(bytes[which], n[which]);
}

static nb_status list(inspection *in, nb_error *err)
{
    NB_TRY(nb_weights_list(&in->weights, &in->n, in->source, in->arena, err));
    in->items = nb_arena_alloc(in->arena, in->n, sizeof *in->items);
    if (!in->items) return nb_fail_memory(err, "list of tensors", in->n * sizeof *in->items);
    for (size_t i = 0; i < in->n; i++) describe(&in->items[i], &in->weights[i]);
    in->pub.bits_per_weight = bits_per_weight(in);
    return NB_OK;
}

static nb_status fill(inspection *in, const char *path, nb_error *err)
{
    NB_TRY(nb_arena_create(&in->arena, err));
    NB_TRY(nb_source_open(&in->source, path, err));
    NB_TRY(list(in, err));
    const nb_checkpoint *c = nb_source_checkpoint(in->source);
    nb_inspection *p = &in->pub;
    p->container = nb_source_is_quantized(in->source)      ? "nibble"
                   : nb_checkpoint_container(c) == NB_GGUF ? "gguf"
                                                           : "safetensors";
    nb_describe_source(in->source, &p->info);
    nb_tokenizer *t = NULL;
    NB_TRY(nb_source_tokenizer(in->source, &t, err));
    p->info.has_tokenizer = t != NULL;
    nb_tokenizer_free(t);
    p->recipe = nb_source_recipe(in->source);
    p->bytes = nb_checkpoint_bytes(c);
    p->source_bytes = nb_source_source_bytes(in->source);
    if (p->source_bytes < 0) p->source_bytes = p->bytes;
    p->tensors = in->items;
    p->n_tensors = in->n;
    return NB_OK;
}

nb_status nb_inspect(nb_inspection **out, const char *path, nb_error *err)
{
    *out = NULL;
    inspection *in = calloc(1, sizeof *in);
    if (!in) return nb_fail_memory(err, "inspection", sizeof *in);
    nb_status st = fill(in, path, err);
    if (st != NB_OK) {
        nb_inspection_free(&in->pub);
        return st;
    }
    *out = &in->pub;
    return NB_OK;
}

void nb_inspection_free(nb_inspection *i)
{
    if (!i) return;
    inspection *in = (inspection *)i;
    nb_source_close(in->source);
    nb_arena_free(in->arena);
    free(in);
}

int64_t nb_inspection_dialects(const nb_inspection *i, size_t tensor, int64_t count[NB_DIALECTS])
{
    int64_t n = 0;
    memset(count, 0, NB_DIALECTS * sizeof *count);
    nb_dialect_count(&((const inspection *)i)->weights[tensor].m, count);
    for (int id = 0; id < NB_DIALECTS; id++) n += count[id];
    return n;
}

/* ---- one tensor ------------------------------------------------------------------------- */

/* Two sweeps over the rows: range and moments, then the histogram that needs the range. */
static void sweep_moments(const float *v, int64_t n, nb_tensor_stats *s, double m[3])
{
    for (int64_t i = 0; i < n; i++) {
        double x = (double)v[i];
        s->n++;
        if (!isfinite(x)) {
            s->n_nonfinite++;
            continue;
        }
        if (x == 0) s->n_zero++;
        s->min = fmin(s->min, x);
        s->max = fmax(s->max, x);
        m[0] += x;
        m[1] += x * x;
    }
}

static void sweep_histogram(const float *v, int64_t n, nb_tensor_stats *s, double m[3])
{
    double width = (s->max - s->min) / NB_HISTOGRAM_BINS;
    for (int64_t i = 0; i < n; i++) {
        double x = (double)v[i];
        if (!isfinite(x)) continue;
        int bin = width > 0 ? (int)((x - s->min) / width) : 0;
        s->histogram[bin < NB_HISTOGRAM_BINS ? bin : NB_HISTOGRAM_BINS - 1]++;
        m[2] += pow(x - s->mean, 4);
    }
}

static nb_status stats_of(const nb_matrix *w, nb_tensor_stats *s, nb_error *err)
{
    float *row = malloc((size_t)(w->n_in > 0 ? w->n_in : 1) * sizeof *row);
    if (!row) return nb_fail_memory(err, "row", (size_t)w->n_in * sizeof *row);
    double m[3] = {0};
    *s = (nb_tensor_stats){.min = INFINITY, .max = -INFINITY};
    for (int64_t r = 0; r < w->n_out; r++) {
        nb_matrix_dequant(w, r, 1, row);
        sweep_moments(row, w->n_in, s, m);
    }
    int64_t n = s->n - s->n_nonfinite;
    if (n > 0) {
        s->mean = m[0] / (double)n;
        s->std = sqrt(fmax(0, m[1] / (double)n - s->mean * s->mean));
        s->absmax = fmax(fabs(s->min), fabs(s->max));
        for (int64_t r = 0; r < w->n_out; r++) {
            nb_matrix_dequant(w, r, 1, row);
            sweep_histogram(row, w->n_in, s, m);
        }
        if (s->std > 0) s->kurtosis = m[2] / (double)n / pow(s->std, 4);
    } else {
        s->min = s->max = 0;
    }
    free(row);
    return NB_OK;
}

static nb_status find_weight(nb_weight *out, const nb_source *s, nb_arena *arena, const char *name,
                             nb_error *err)
{
    nb_weight *w;
    size_t n;
    NB_TRY(nb_weights_list(&w, &n, s, arena, err));
    for (size_t i = 0; i < n; i++) {
        if (strcmp(w[i].name, name) != 0) continue;
        *out = w[i];
        if (w[i].m.format.family) return NB_OK;
        return nb_fail(err, NB_EUSAGE, "tensor \"%.200s\": %s is no weight type", name,
                       nb_dtypes[w[i].dtype].name);
    }
    return nb_fail(err, NB_EUSAGE, "tensor \"%.200s\": not in %s", name,
                   nb_checkpoint_path(nb_source_checkpoint(s)));
}

nb_status nb_inspect_tensor(const char *path, const char *name, nb_tensor_stats *out, nb_error *err)
{
    nb_source *s = NULL;
    nb_arena *arena = NULL;
    nb_weight w;
    nb_status st = nb_source_open(&s, path, err);
    if (st == NB_OK) st = nb_arena_create(&arena, err);
    if (st == NB_OK) st = find_weight(&w, s, arena, name, err);
    if (st == NB_OK) st = stats_of(&w.m, out, err);
    nb_arena_free(arena);
    nb_source_close(s);
    return st;
}
