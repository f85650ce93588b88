#include "calib/plan.h"

#include <math.h>
#include <stdio.h>

#include "base/file.h"
#include "base/size.h"
#include "calib/block_steps.h"
#include "calib/convert.h"
#include "calib/flow.h"
#include "calib/gram.h"

#define TENSOR_BYTES  ((int64_t)256)      /* of a file's header for each tensor, roughly */
#define PROCESS_BYTES ((int64_t)48 << 20) /* code, libraries, tokenizer */

void nb_shard_name(char out[NB_SHARD_NAME], int shard, int n_shards)
{
    snprintf(out, NB_SHARD_NAME, "model-%05d-of-%05d.safetensors", shard + 1, n_shards);
}

nb_format nb_plan_end_format(const nb_recipe *recipe, const nb_host_ends *ends,
                             const nb_host_linear *l)
{
    bool vocabulary = l == &ends->embed || l == &ends->head;
    return vocabulary && recipe->embedding.family ? recipe->embedding : nb_convert_default(&l->w);
}

static int64_t vector_bytes(const float *v, int64_t n) { return v ? 4 * n + TENSOR_BYTES : 0; }

static int64_t norm_bytes(const nb_host_norm *n)
{
    return n->name ? vector_bytes(n->weight, n->n) + vector_bytes(n->bias, n->n) : 0;
}

/* Room in the file's header for the planes of one matrix. */
static int64_t header_bytes(const nb_format *f, int64_t n_in)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    return f->family->planes(f, n_in, spec) * TENSOR_BYTES;
}

typedef struct block_size {
    int64_t source, weights, planes, other; /* other: biases, norms, header    */
    int64_t largest;                        /* weights of the largest linear   */
    int64_t quantized, quantized_bytes;     /* weights that are, and their planes */
    int64_t lorc;                           /* memory of the compensate step   */
} block_size;

/* Factors of a quantized linear, and what finding them takes: its error and a Gram matrix in
 * double. */
static nb_status measure_lorc(const nb_host_linear *l, const nb_recipe *recipe, block_size *s,
                              nb_error *err)
{
    nb_lorc lorc;
    NB_TRY(nb_recipe_lorc(recipe, l->name, l->w.n_out, l->w.n_in, &lorc, err));
    if (lorc.rank == 0) return NB_OK;
    int64_t side = nb_min_i64(l->w.n_out, l->w.n_in), bytes = nb_lorc_bytes(&lorc);
    s->planes += bytes;
    s->quantized_bytes += bytes;
    s->other += header_bytes(&lorc.a.format, l->w.n_out) + header_bytes(&lorc.b.format, l->w.n_in);
    s->lorc = nb_max_i64(s->lorc, 8 * (l->w.n_out * l->w.n_in + 2 * side * side));
    return NB_OK;
}

static nb_status measure_linear(const nb_host_linear *l, const nb_format *f,
                                const nb_recipe *recipe, block_size *s, nb_error *err)
{
    int64_t n = l->w.n_out * l->w.n_in, planes = l->w.n_out * nb_format_row_bytes(f, l->w.n_in);
    s->source += nb_matrix_bytes(&l->w);
    s->weights += n;
    s->largest = nb_max_i64(s->largest, n);
    s->planes += planes;
    s->other += vector_bytes(l->bias, l->w.n_out) + header_bytes(f, l->w.n_in);
    if (!nb_format_is_quantized(f)) return NB_OK;
    s->quantized += n;
    s->quantized_bytes += planes;
    return measure_lorc(l, recipe, s, err);
}

static nb_status measure_block(const nb_host_block *b, const nb_recipe *recipe, block_size *s,
                               nb_error *err)
{
    *s = (block_size){0};
    for (int r = 0; r < NB_N_ROLES; r++) {
        const nb_host_linear *l = &b->linear[r];
        if (!l->name) continue;
        NB_TRY(measure_linear(l, nb_recipe_weights(recipe, (nb_role)r), recipe, s, err));
    }
    for (int r = 0; r < NB_N_NORMS; r++) s->other += norm_bytes(&b->norm[r]);
    return NB_OK;
}

/* Bytes in the file, and bytes that take memory while they are made: what is not only copied, and
 * the piece in fp32 with its clip ratios that it is made of. */
static void measure_ends(const nb_host_ends *e, const nb_recipe *recipe, int64_t *stored,
                         int64_t *made)
{
    int64_t piece = 0;
    const nb_host_linear *const all[] = {&e->embed, &e->positions, &e->proj_in, &e->proj_out,
                                         &e->head};
    *stored = norm_bytes(&e->final_norm);
    *made = 0;
    for (size_t i = 0; i < NB_COUNT(all); i++) {
        if (!all[i]->name) continue;
        nb_format f = nb_plan_end_format(recipe, e, all[i]);
        int64_t bytes = all[i]->w.n_out * nb_format_row_bytes(&f, all[i]->w.n_in);
        *stored += header_bytes(&f, all[i]->w.n_in);
        bool copied = !nb_format_is_quantized(&f) && f.variant == all[i]->w.format.variant;
        *stored += bytes;
        if (copied) continue;
        *made += bytes;
        piece = nb_max_i64(piece, nb_min_i64(NB_CHUNK_ELEMS, all[i]->w.n_out * all[i]->w.n_in));
    }
    *made += 5 * piece;
}

/* A block at work: its pages, what is made of them, the largest linear in fp32 with its clip
 * ratios, and the file just written, whose pages are read for the checksum; then its way through
 * the calibration text. */
static int64_t block_memory(const block_size *b, const nb_config *cfg, const nb_recipe *recipe,
                            bool calibrated)
{
    int64_t work = b->source + 2 * b->planes + b->other + 5 * b->largest + b->lorc;
    work += nb_block_steps_bytes(recipe, cfg, b->weights);
    if (!calibrated) return work;
    if (nb_recipe_needs(recipe) & NB_NEED_HESSIAN) {
        /* the largest linear is the widest input's; its factor in double and in fp32 */
        int64_t widest = nb_max_i64(cfg->n_ffn, cfg->n_embd);
        work += nb_grams_bytes(cfg) + 12 * widest * widest;
    }
    return nb_max_i64(work, b->source + b->planes + b->other + 4 * b->weights);
}

/* work: of the block or of the ends. */
static void plan_memory(nb_plan *p, const nb_recipe *recipe, const nb_config *cfg, bool calibrated,
                        int64_t work)
{
    nb_flow_desc flow = nb_flow_describe(recipe, cfg);
    int n = recipe->samples, seqlen = recipe->seqlen;
    p->memory = p->spilled_memory = PROCESS_BYTES + work;
    if (!calibrated) return;
    p->memory += nb_flow_bytes(&flow, n, seqlen, false);
    p->spilled_memory += nb_flow_bytes(&flow, n, seqlen, true);
    p->spill_bytes = nb_flow_disk_bytes(&flow, n, seqlen);
}

nb_status nb_plan_make(nb_plan *p, const nb_source *source, const nb_recipe *recipe,
                       bool calibrated, nb_arena *arena, nb_error *err)
{
    const nb_config *cfg = nb_source_config(source);
    nb_host_block block;
    nb_host_ends ends;
    nb_arena_reset(arena);
    NB_TRY(nb_source_block(source, 0, arena, &block, err));
    NB_TRY(nb_source_ends(source, arena, &ends, err));
    block_size b;
    NB_TRY(measure_block(&block, recipe, &b, err));
    int64_t ends_stored, ends_made, n = cfg->n_layers;
    measure_ends(&ends, recipe, &ends_stored, &ends_made);
    nb_arena_reset(arena);

    *p = (nb_plan){.n_shards = cfg->n_layers + 1,
                   .n_quantized = n * b.quantized,
                   .quantized_bytes = n * b.quantized_bytes,
                   .bytes = ends_stored + n * (b.planes + b.other)};
    int64_t work = block_memory(&b, cfg, recipe, calibrated);
    plan_memory(p, recipe, cfg, calibrated, nb_max_i64(work, ends_stored + ends_made));
    return NB_OK;
}

static nb_status check_memory(nb_plan *p, int64_t allowed, nb_error *err)
{
    if (allowed == 0 || p->memory <= allowed) return NB_OK;
    p->spill = p->spill_bytes > 0 && p->spilled_memory <= allowed;
    if (p->spill) return NB_OK;
    return nb_fail(err, NB_ERESOURCE,
                   "memory: needs about %lld MiB%s, allowed are %lld MiB; fewer --samples or a "
                   "shorter --seqlen need less",
                   (long long)(nb_min_i64(p->memory, p->spilled_memory) >> 20),
                   p->spill_bytes ? " with hidden states on disk" : "", (long long)(allowed >> 20));
}

nb_status nb_plan_check(nb_plan *p, const nb_quantize_options *opt, nb_error *err)
{
    NB_TRY(check_memory(p, (int64_t)opt->memory, err));
    int64_t need = opt->resume ? 0 : p->bytes; /* resumed: a part is on the disk already */
    if (p->spill) {
        p->memory = p->spilled_memory;
        need += p->spill_bytes;
    }
    if (opt->dry_run) return NB_OK;
    int64_t free_bytes = nb_disk_free(opt->out);
    if (free_bytes >= 0 && free_bytes < need) {
        return nb_fail(err, NB_ERESOURCE, "%s: needs %.1f MiB of disk, free are %.1f MiB", opt->out,
                       ldexp((double)need, -20), ldexp((double)free_bytes, -20));
    }
    return NB_OK;
}

double nb_plan_bits(const nb_plan *p)
{
    return p->n_quantized ? 8.0 * (double)p->quantized_bytes / (double)p->n_quantized : 0;
}
