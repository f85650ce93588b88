#include "calib/convert.h"

#include <math.h>
#include <string.h>

#include "base/size.h"
#include "calib/clipped.h"
#include "format/half.h"

nb_format nb_convert_default(const nb_matrix *in)
{
    nb_format f;
    switch ((nb_dtype)in->format.variant) {
    case NB_F32:
    case NB_F16:
    case NB_BF16:
        return in->format;
    case NB_Q8_0:
        nb_format_parse(&f, "int8:g32:sym", NULL);
        return f;
    default:
        return nb_format_plain(NB_F16);
    }
}

static nb_status alloc_planes(nb_arena *arena, const char *name, nb_matrix *m,
                              uint8_t *plane[NB_MAX_PLANES], nb_error *err)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = m->format.family->planes(&m->format, m->n_in, spec);
    for (int i = 0; i < n; i++) {
        plane[i] = nb_arena_alloc(arena, (size_t)m->n_out, (size_t)spec[i].row_bytes);
        if (!plane[i]) return nb_fail_memory(err, name, (size_t)(m->n_out * spec[i].row_bytes));
        m->plane[i] = plane[i];
    }
    return NB_OK;
}

/* ---- Q8_0 -------------------------------------------------------------------------------- */

/* A block is an fp16 d and 32 int8 q, w = d q; a group of int8:g32:sym an fp16 scale and codes
 * q + 127, w = scale (code - 127): the same numbers. -128, which is no code, becomes +128 with the
 * sign of d turned; then 127 is the smallest of -q, and still a code. */
static void copy_q8_0_block(const uint8_t *block, uint8_t *codes, uint8_t *scale)
{
    bool turn = memchr(block + 2, 0x80, 32) != NULL;
    for (int i = 0; i < 32; i++) {
        int q = (int8_t)block[2 + i];
        codes[i] = (uint8_t)((turn ? -q : q) + 127);
    }
    scale[0] = block[0];
    scale[1] = block[1] ^ (turn ? 0x80 : 0);
}

static nb_status copy_q8_0(const nb_convert *c, const char *name, const nb_matrix *in,
                           nb_matrix *out, nb_error *err)
{
    uint8_t *plane[NB_MAX_PLANES];
    NB_TRY(alloc_planes(c->arena, name, out, plane, err));
    int64_t n = in->n_out * (in->n_in / 32), bad = n;
#pragma omp parallel for num_threads(c->threads) reduction(min : bad) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *block = in->plane[0] + 34 * i;
        copy_q8_0_block(block, plane[0] + 32 * i, plane[1] + 2 * i);
        if ((block[1] & 0x7c) == 0x7c && i < bad) bad = i;
    }
    if (bad == n) return NB_OK;
    return nb_fail(err, NB_ENUMERIC, "%s: the scale of a block in row %lld is not finite", name,
                   (long long)(bad / (in->n_in / 32)));
}

/* ---- rows [row0, row0 + n) as fp32 --------------------------------------------------------- */

static float *load_rows(const nb_convert *c, const nb_matrix *in, int64_t row0, int64_t n)
{
    float *w = nb_arena_alloc(c->scratch, (size_t)(n * in->n_in), sizeof *w);
    if (!w) return NULL;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t r = 0; r < n; r++) nb_matrix_dequant(in, row0 + r, 1, w + r * in->n_in);
    return w;
}

typedef struct error_sum {
    double error, rounded, power; /* rounded: without the low-rank factors */
    int64_t clipped;
} error_sum;

static double square_error(const float *w, const float *back, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)w[i] - (double)back[i];
        sum += d * d;
    }
    return sum;
}

/* Both factors as fp32, A [rank, n_out], then B; NULL: out of memory. */
static float *expand_factors(const nb_convert *c, const nb_lorc *l)
{
    int64_t n = (int64_t)l->rank * (l->a.n_in + l->b.n_in);
    float *a = nb_arena_alloc(c->scratch, (size_t)n, sizeof *a);
    if (!a || l->rank == 0) return a;
    nb_matrix_dequant(&l->a, 0, l->rank, a);
    nb_matrix_dequant(&l->b, 0, l->rank, a + l->rank * l->a.n_in);
    return a;
}

/* Sums per row, then in the order of the rows: the same for any number of threads. */
static nb_status add_errors(const nb_convert *c, const float *w, const nb_matrix *out,
                            const nb_lorc *lorc, int64_t row0, int64_t n, error_sum *total,
                            nb_error *err)
{
    error_sum *sums = nb_arena_alloc(c->scratch, (size_t)n, sizeof *sums);
    float *back = nb_arena_alloc(c->scratch, (size_t)(c->threads * out->n_in), sizeof *back);
    const float *a = expand_factors(c, lorc);
    if (!sums || !back || !a) return nb_fail_memory(err, "error sums", (size_t)n * sizeof *sums);
#pragma omp parallel num_threads(c->threads)
    {
        float *mine = NULL;
#pragma omp critical
        {
            mine = back;
            back += out->n_in;
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n; r++) {
            nb_matrix_dequant(out, row0 + r, 1, mine);
            const float *row = w + r * out->n_in;
            for (int64_t i = 0; i < out->n_in; i++) {
                sums[r].power += (double)row[i] * (double)row[i];
            }
            sums[r].rounded = sums[r].error = square_error(row, mine, out->n_in);
            if (lorc->rank == 0) continue;
            nb_lorc_add(lorc, a, a + lorc->rank * out->n_out, row0 + r, 1, mine);
            sums[r].error = square_error(row, mine, out->n_in);
        }
    }
    for (int64_t r = 0; r < n; r++) {
        total->error += sums[r].error;
        total->rounded += sums[r].rounded;
        total->power += sums[r].power;
    }
    return NB_OK;
}

/* ---- floats ------------------------------------------------------------------------------- */

static void store_row(nb_dtype t, const float *w, int64_t n, uint8_t *dst)
{
    if (t == NB_F32) {
        memcpy(dst, w, (size_t)n * sizeof *w);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = t == NB_F16 ? nb_f16_from_f32(w[i]) : nb_bf16_from_f32(w[i]);
        memcpy(dst + 2 * i, &h, 2);
    }
}

static nb_status store_rows(const nb_convert *c, const char *name, const float *w,
                            const nb_matrix *out, int64_t row0, int64_t n, uint8_t *plane,
                            nb_error *err)
{
    nb_dtype t = (nb_dtype)out->format.variant;
    int64_t row_bytes = nb_format_row_bytes(&out->format, out->n_in), bad = n;
    float limit = t == NB_F16 ? 65504.0f : 3.3e38f;
#pragma omp parallel for num_threads(c->threads) reduction(min : bad) schedule(static)
    for (int64_t r = 0; r < n; r++) {
        const float *row = w + r * out->n_in;
        bool fits = true;
        for (int64_t i = 0; i < out->n_in; i++) fits = fits && fabsf(row[i]) <= limit;
        store_row(t, row, out->n_in, plane + (row0 + r) * row_bytes);
        if (!fits && r < bad) bad = r;
    }
    if (bad == n) return NB_OK;
    return nb_fail(err, NB_ENUMERIC, "%s: a weight in row %lld is not finite or does not fit %s",
                   name, (long long)(row0 + bad), out->format.word);
}

/* ---- quantized ------------------------------------------------------------------------------ */

static nb_status quantize_rows(const nb_convert *c, const char *name, float *w,
                               const nb_matrix *out, int64_t row0, int64_t n,
                               uint8_t *const plane[], nb_convert_info *info, nb_error *err)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n_planes = out->format.family->planes(&out->format, out->n_in, spec);
    nb_job job = {.name = name,
                  .format = &out->format,
                  .n_out = n,
                  .n_in = out->n_in,
                  .row0 = row0,
                  .w = w,
                  .importance = c->importance,
                  .offset = c->offset ? c->offset + row0 * out->n_in : NULL,
                  .hessian = c->hessian,
                  .factors = c->factors,
                  .threads = c->threads,
                  .cpu = c->cpu};
    for (int i = 0; i < n_planes; i++) job.plane[i] = plane[i] + row0 * spec[i].row_bytes;
    job.lorc = info->lorc;
    for (int i = 0; i < NB_MAX_PLANES; i++) { /* of make_lorc: not yet what readers may see */
        job.lorc_a[i] = (uint8_t *)info->lorc.a.plane[i];
        job.lorc_b[i] = (uint8_t *)info->lorc.b.plane[i];
    }
    size_t n_clips = (size_t)(n * nb_format_groups(&out->format, out->n_in));
    job.clip_lo = nb_arena_alloc(c->scratch, n_clips, sizeof(float));
    job.clip_hi = nb_arena_alloc(c->scratch, n_clips, sizeof(float));
    if (!job.clip_lo || !job.clip_hi) return nb_fail_memory(err, name, n_clips * sizeof(float));
    size_t at = (size_t)row0 * (n_clips / (size_t)n);
    for (size_t i = 0; i < n_clips; i++) {
        job.clip_lo[i] = c->clip_lo ? c->clip_lo[at + i] : 1;
        job.clip_hi[i] = c->clip_hi ? c->clip_hi[at + i] : 1;
    }
    NB_TRY(nb_job_run(&job, c->recipe->steps, c->recipe->n_steps, err));
    if (job.loss >= 0) info->loss = fmax(info->loss, 0) + job.loss;
    if (job.clipped >= 0) info->driven = nb_max_i64(info->driven, 0) + job.clipped;
    if (!*info->note) memcpy(info->note, job.note, sizeof info->note);
    return NB_OK;
}

/* ---- a matrix ------------------------------------------------------------------------------- */

static nb_status convert_rows(const nb_convert *c, const char *name, const nb_matrix *in,
                              const nb_matrix *out, int64_t row0, int64_t n, uint8_t *const plane[],
                              error_sum *sum, nb_convert_info *info, nb_error *err)
{
    nb_arena_reset(c->scratch);
    float *w = load_rows(c, in, row0, n);
    if (!w) return nb_fail_memory(err, name, (size_t)(n * in->n_in) * sizeof *w);
    if (nb_format_is_quantized(&out->format)) {
        NB_TRY(quantize_rows(c, name, w, out, row0, n, plane, info, err));
        NB_TRY(nb_clipped_add(out, w, row0, n, c->threads, &sum->clipped, err));
    } else {
        NB_TRY(store_rows(c, name, w, out, row0, n, plane[0], err));
    }
    return add_errors(c, w, out, &info->lorc, row0, n, sum, err);
}

/* Room for the factors that the recipe's steps will fill. */
static nb_status make_lorc(const nb_convert *c, const char *name, const nb_matrix *out,
                           nb_lorc *lorc, nb_error *err)
{
    uint8_t *plane[NB_MAX_PLANES];
    NB_TRY(nb_recipe_lorc(c->recipe, name, out->n_out, out->n_in, lorc, err));
    if (lorc->rank == 0) return NB_OK;
    NB_TRY(alloc_planes(c->arena, name, &lorc->a, plane, err));
    return alloc_planes(c->arena, name, &lorc->b, plane, err);
}

nb_status nb_convert_matrix(const nb_convert *c, const char *name, const nb_matrix *in,
                            const nb_format *format, bool by_rows, nb_matrix *out,
                            nb_convert_info *info, nb_error *err)
{
    *info = (nb_convert_info){.loss = -1, .clipped = -1, .driven = -1};
    *out = (nb_matrix){.format = *format, .n_out = in->n_out, .n_in = in->n_in};
    bool plain = !nb_format_is_quantized(&in->format);
    if (plain && !nb_format_is_quantized(format) && in->format.variant == format->variant) {
        memcpy(out->plane, in->plane, sizeof out->plane);
        return NB_OK;
    }
    if (plain && in->format.variant == NB_Q8_0 && strcmp(format->word, "int8:g32:sym") == 0) {
        return copy_q8_0(c, name, in, out, err);
    }
    uint8_t *plane[NB_MAX_PLANES];
    NB_TRY(alloc_planes(c->arena, name, out, plane, err));
    if (!by_rows && nb_format_is_quantized(format)) {
        NB_TRY(make_lorc(c, name, out, &info->lorc, err));
    }
    by_rows = by_rows && !format->matrix &&
              format->tile <= 1; /* rows that share something stay together */
    int64_t chunk = by_rows ? nb_max_i64(1, NB_CHUNK_ELEMS / in->n_in) : in->n_out;
    error_sum sum = {0};
    nb_status st = NB_OK;
    for (int64_t row = 0; st == NB_OK && row < in->n_out; row += chunk) {
        int64_t n = nb_min_i64(chunk, in->n_out - row);
        st = convert_rows(c, name, in, out, row, n, plane, &sum, info, err);
    }
    nb_arena_reset(c->scratch);
    info->error = sum.power > 0 ? sum.error / sum.power : 0;
    info->rounded = sum.power > 0 ? sum.rounded / sum.power : 0;
    if (nb_format_is_quantized(format)) {
        info->clipped = (double)sum.clipped / ((double)in->n_out * (double)in->n_in);
    }
    return st;
}
