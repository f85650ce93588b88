/* Attention over records of keys and values.
 *
 * First the records that anyone sees are decoded, each once, to fp32; then a task is one tile of
 * queries of one KV head, the queries of its H/K heads as rows:
 *
 *   s [rows, keys] = q [rows, D] k^T          all keys, a tile of them at a time
 *   p = softmax(s), through the format of P   a whole row: its blocks need the final sum
 *   o = sum over blocks of keys of p v
 *
 * A row meets the same operations in the same order however many rows there are, so a prompt at
 * once and token by token give the same bits (spec: BlockDialect D16). Products of dialect values
 * are exact, and so are their sums over a block, in fp32 as in integers; blocks are added up in
 * ascending order, as the scalar reference does. */
#include <math.h>
#include <string.h>

#include "base/size.h"
#include "op/cpu/kv_cpu.h"

#define KEY_TILE   64  /* keys side by side in the transposed tiles: [D][KEY_TILE] */
#define KEY_ALIGN  128 /* of the first key: a multiple of the tile and of every block */
#define SUM_BLOCK  32  /* values per sum where no format has blocks */
#define MAX_ROWS   64
#define ROW_BYTES  ((int64_t)1 << 20) /* scores of a task: within the second-level cache */
#define PACK_BYTES ((int64_t)16 << 20)

typedef struct job {
    nb_backend *be;
    nb_view out, q;
    const nb_kv_store *s;
    const nb_attention *a;
    int64_t group, tokens;      /* heads per KV head; queries per task */
    int64_t key0, n_keys;       /* whole multiples of KEY_ALIGN */
    int64_t d_block, key_block; /* values per sum of a score; keys per sum of an output */
    nb_dequant_fn read_k, read_v;
    float *panel; /* [heads at one time][head_floats]: keys, values of records, recent values */
    int64_t head_floats;
    char *scratch;
    size_t thread_bytes;
} job;

/* A task's own memory. */
typedef struct tile {
    float *s, *q, *o; /* [rows, n_keys], [rows, D], [rows, D] */
} tile;

static int64_t rows_of(const job *j) { return j->group * j->tokens; }

/* Lays the pieces of a tile out; returns their bytes. base NULL: only measures. */
static size_t place_tile(const job *j, char *base, tile *t)
{
    size_t rows = (size_t)rows_of(j), D = (size_t)j->a->head_dim;
    size_t s = rows * (size_t)j->n_keys * sizeof(float),
           q = nb_align_up(rows * D * sizeof(float), 64);
    *t = (tile){0};
    if (base) *t = (tile){(float *)base, (float *)(base + s), (float *)(base + s + q)};
    return s + 2 * q;
}

/* ---- decoding -------------------------------------------------------------------------- */

static float *keys_of(const job *j, int64_t head) { return j->panel + head * j->head_floats; }

static float *values_of(const job *j, int64_t head)
{
    return keys_of(j, head) + j->n_keys * j->a->head_dim;
}

static float *recent_of(const job *j, int64_t head)
{
    return values_of(j, head) + j->n_keys * j->a->head_dim;
}

static void read_record(const job *j, const nb_kv_rows *r, nb_dequant_fn read, int64_t i,
                        int64_t head, float *out)
{
    const uint8_t *plane[NB_MAX_PLANES];
    nb_kv_planes(j->s, r, i, head, plane);
    read(&r->format, plane, r->n, out);
}

/* Keys key0 + at ..: a tile [D][KEY_TILE], zero behind the last one. tmp [D] */
static void read_keys(const job *j, int64_t first, int64_t head, int64_t at, float *tmp)
{
    int64_t D = j->a->head_dim;
    float *to = keys_of(j, head) + at * D;
    for (int64_t i = 0; i < KEY_TILE; i++) {
        int64_t pos = j->key0 + at + i;
        if (pos < j->s->length) {
            read_record(j, &j->s->k, j->read_k, pos, first + head, tmp);
        } else {
            memset(tmp, 0, (size_t)D * sizeof *tmp);
        }
        for (int64_t d = 0; d < D; d++) to[d * KEY_TILE + i] = tmp[d];
    }
}

/* Values of the record of token or chunk i. tmp [D, block] */
static void read_values(const job *j, int64_t first, int64_t head, int64_t i, float *tmp)
{
    int64_t D = j->a->head_dim, B = j->s->block;
    float *to = values_of(j, head);
    if (!B) {
        read_record(j, &j->s->v, j->read_v, i, first + head, to + (i - j->key0) * D);
        return;
    }
    read_record(j, &j->s->v, j->read_v, i, first + head, tmp);
    to += (i * B - j->key0) * D;
    for (int64_t k = 0; k < B; k++) {
        for (int64_t d = 0; d < D; d++) to[k * D + d] = tmp[d * B + k];
    }
}

/* Everything of `n` heads from `first` on; called by all threads. */
static void read_heads(const job *j, int64_t first, int64_t n)
{
    const nb_kv_store *s = j->s;
    float *tmp = (float *)(j->scratch + j->thread_bytes * (size_t)omp_get_thread_num());
    int64_t tiles = j->n_keys / KEY_TILE, B = s->block ? s->block : 1;
    int64_t begin = j->key0 / B, records = s->length / B - begin;
    int64_t recent = s->block ? s->length - s->recent_pos : 0;
#pragma omp for schedule(dynamic) nowait
    for (int64_t i = 0; i < n * tiles; i++) {
        read_keys(j, first, i / tiles, i % tiles * KEY_TILE, tmp);
    }
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < n * records; i++) {
        read_values(j, first, i / records, begin + i % records, tmp);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n * recent; i++) {
        int64_t head = i / recent, at = i % recent;
        nb_kv_store_recent(s, s->recent_pos + at, first + head,
                           recent_of(j, head) + at * j->a->head_dim);
    }
}

/* ---- one tile of queries --------------------------------------------------------------- */

/* Returns how many values saturated. */
static int64_t load_queries(const job *j, const tile *t, int64_t head, int64_t t0, int64_t n)
{
    int64_t D = j->a->head_dim, bad = 0;
    const nb_format *f = &j->s->d.formats.q;
    for (int64_t r = 0; r < j->group * n; r++) {
        const float *from = nb_cpu_row(j->q, t0 + r % n) + (head * j->group + r / n) * D;
        if (nb_format_is_quantized(f)) {
            bad += nb_cpu_fake_quant_row(&nb_cpu_of(j->be)->k, f, from, D, t->q + r * D);
        } else {
            memcpy(t->q + r * D, from, (size_t)D * sizeof(float));
        }
    }
    return bad;
}

/* Scores of the keys key0 + at .. + KEY_TILE for one row. */
static void score_tile(const job *j, const tile *t, int64_t r, const float *keys, int64_t at)
{
    int64_t D = j->a->head_dim;
    float *s = t->s + r * j->n_keys + at;
    const float *q = t->q + r * D;
    memset(s, 0, KEY_TILE * sizeof *s);
    for (int64_t d = 0; d < D; d += j->d_block) {
        nb_cpu_of(j->be)->k.add_rows(s, q + d, keys + d * KEY_TILE, KEY_TILE,
                                     nb_min_i64(j->d_block, D - d), KEY_TILE);
    }
}

/* s: scores of keys key0 .. to weights, quantized where they meet records, zero out of sight. */
static void weigh_row(const job *j, float *s, const nb_kv_sight *w)
{
    const nb_kernels *k = &nb_cpu_of(j->be)->k;
    const nb_format *f = &j->s->d.formats.p;
    int64_t lo = w->begin - j->key0, n = w->end - w->begin, from = w->from - j->key0;
    int64_t tail = nb_max_i64(w->to, w->end) - j->key0;
    float sum = k->exp_sum(s + lo, s + lo, k->max(s + lo, n), j->a->scale, n);
    memset(s, 0, (size_t)lo * sizeof *s);
    memset(s + lo + n, 0, (size_t)(tail - lo - n) * sizeof *s);
    k->scale(s + lo, 1 / sum, s + lo, n);
    if (nb_format_is_quantized(f) && w->to > w->from && isfinite(sum)) { /* NaN goes on */
        nb_cpu_fake_quant_row(k, f, s + from, w->to - w->from, s + from);
    }
}

static bool is_zero(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (x[i] != 0) return false;
    }
    return true;
}

/* o += the values of keys [begin, end), which lie one behind the other from v on. */
static void add_values(const job *j, float *o, const float *p, const float *v, int64_t begin,
                       int64_t end)
{
    int64_t D = j->a->head_dim;
    if (begin >= end || is_zero(p, end - begin)) return;
    nb_cpu_of(j->be)->k.add_rows(o, p, v, D, end - begin, D);
}

/* What all rows of the tile take from the block of keys at `key`. */
static void add_block(const job *j, const tile *t, int64_t head, int64_t key, int64_t t0, int64_t n)
{
    int64_t D = j->a->head_dim;
    for (int64_t r = 0; r < j->group * n; r++) {
        nb_kv_sight w = nb_kv_sight_of(j->s, j->a->pos0 + t0 + r % n, j->a->window);
        int64_t end = nb_min_i64(key + j->key_block, nb_min_i64(w.end, w.split));
        int64_t begin = nb_max_i64(key, w.begin), at = begin - j->key0; /* 0 * Inf is NaN */
        add_values(j, t->o + r * D, t->s + r * j->n_keys + at, values_of(j, head) + at * D, begin,
                   end);
    }
}

/* The fp16 values behind the records; then the row is done. */
static void finish_row(const job *j, const tile *t, int64_t head, int64_t first, int64_t t0,
                       int64_t n, int64_t r)
{
    int64_t D = j->a->head_dim;
    nb_kv_sight w = nb_kv_sight_of(j->s, j->a->pos0 + t0 + r % n, j->a->window);
    float *o = t->o + r * D;
    if (w.split < w.end) {
        add_values(j, o, t->s + r * j->n_keys + w.split - j->key0,
                   recent_of(j, head) + (w.split - j->s->recent_pos) * D, w.split, w.end);
    }
    memcpy(nb_cpu_row(j->out, t0 + r % n) + ((first + head) * j->group + r / n) * D, o,
           (size_t)D * sizeof *o);
}

static int64_t run_task(const job *j, int64_t first, int64_t head, int64_t i)
{
    tile t;
    place_tile(j, j->scratch + j->thread_bytes * (size_t)omp_get_thread_num(), &t);
    int64_t t0 = i * j->tokens, n = nb_min_i64(j->tokens, j->q.rows - t0), D = j->a->head_dim;
    int64_t rows = j->group * n, end = j->a->pos0 + t0 + n;
    int64_t begin = nb_kv_sight_of(j->s, j->a->pos0 + t0, j->a->window).from;
    int64_t bad = load_queries(j, &t, first + head, t0, n);
    int64_t at = (begin - j->key0) / KEY_TILE * KEY_TILE;
    for (; j->key0 + at < end; at += KEY_TILE) {
        for (int64_t r = 0; r < rows; r++) {
            score_tile(j, &t, r, keys_of(j, head) + at * D, at);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        nb_kv_sight w = nb_kv_sight_of(j->s, j->a->pos0 + t0 + r % n, j->a->window);
        weigh_row(j, t.s + r * j->n_keys, &w);
    }
    memset(t.o, 0, (size_t)(rows * D) * sizeof *t.o);
    int64_t key = j->key0 + (begin - j->key0) / j->key_block * j->key_block;
    for (; key < end; key += j->key_block) add_block(j, &t, head, key, t0, n);
    for (int64_t r = 0; r < rows; r++) finish_row(j, &t, head, first, t0, n, r);
    return bad;
}

/* ---- the op ---------------------------------------------------------------------------- */

static void run_heads(const job *j, int64_t first, int64_t n)
{
    int64_t bad = 0;
    int64_t tiles = (j->q.rows + j->tokens - 1) / j->tokens;
#pragma omp parallel num_threads(j->be->threads) reduction(+ : bad)
    {
        read_heads(j, first, n);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n * tiles; i++) bad += run_task(j, first, i % n, tiles - 1 - i / n);
    }
    j->be->nonfinite += bad;
}

/* Queries per task: as many as keep rows and scores small. */
static int64_t choose_tokens(const job *j)
{
    int64_t rows = nb_min_i64(MAX_ROWS, ROW_BYTES / (j->n_keys * (int64_t)sizeof(float)));
    return nb_max_i64(1, nb_min_i64(rows / j->group, j->q.rows));
}

void nb_cpu_attention_records(nb_backend *be, nb_view out, nb_view q, const nb_kv_store *s,
                              const nb_attention *a)
{
    if (q.rows == 0) return;
    job j = {.be = be, .out = out, .q = q, .s = s, .a = a, .group = a->n_heads / a->n_kv_heads};
    const nb_attn_formats *f = &s->d.formats;
    int64_t D = a->head_dim, recent = s->block ? s->length - s->recent_pos : 0;
    j.key0 = nb_kv_sight_of(s, a->pos0, a->window).from / KEY_ALIGN * KEY_ALIGN;
    j.n_keys = (s->length - j.key0 + KEY_ALIGN - 1) / KEY_ALIGN * KEY_ALIGN;
    j.tokens = choose_tokens(&j);
    j.d_block = f->k.group > 0 ? f->k.group : SUM_BLOCK;
    j.key_block = s->block ? s->block : SUM_BLOCK;
    j.read_k = nb_kernels_find_dequant(&nb_cpu_of(be)->k, &s->k.format);
    j.read_v = nb_kernels_find_dequant(&nb_cpu_of(be)->k, &s->v.format);
    tile none;
    j.thread_bytes = place_tile(&j, NULL, &none);
    size_t tmp = nb_align_up((size_t)nb_max_i64(D, s->v.n) * sizeof(float), 64);
    j.thread_bytes = tmp > j.thread_bytes ? tmp : j.thread_bytes;
    j.head_floats = (2 * j.n_keys + recent) * D;
    int64_t heads = PACK_BYTES / (j.head_floats * (int64_t)sizeof(float));
    heads = nb_max_i64(1, nb_min_i64(heads, a->n_kv_heads));
    j.scratch = nb_cpu_scratch(be, NB_CPU_THREAD, j.thread_bytes * (size_t)be->threads);
    j.panel = nb_cpu_scratch(be, NB_CPU_PANEL, (size_t)(heads * j.head_floats) * sizeof(float));
    if (!j.scratch || !j.panel) return;
    for (int64_t i = 0; i < a->n_kv_heads; i += heads) {
        run_heads(&j, i, nb_min_i64(heads, a->n_kv_heads - i));
    }
}
