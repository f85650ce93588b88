/* Round: to nearest. fit, encode and pack each row on its own. */
#include <math.h>
#include <stdlib.h>

#include "base/size.h"
#include "format/ste.h"
#include "method/round.h"

void nb_round_pack(const nb_job *job, const nb_plane_spec *spec, int64_t row, const uint8_t *codes,
                   const nb_qparam *p)
{
    uint8_t *plane[NB_MAX_PLANES] = {0};
    for (int i = 0; i < NB_MAX_PLANES && job->plane[i]; i++) {
        plane[i] = job->plane[i] + row * spec[i].row_bytes;
    }
    job->format->family->pack_row(job->format, codes, p, job->n_in, plane);
}

/* What a thread works on. */
typedef struct lane {
    nb_qparam *p;   /* [groups] */
    float *moved;   /* [n_in], for offsets */
    uint8_t *codes; /* [n_in] */
} lane;

/* Values at .. at + n of the row, moved by their offsets where there are any. */
static const float *move(const nb_job *job, int64_t row, int64_t at, int64_t n, float scale,
                         float *moved)
{
    const float *w = job->w + row * job->n_in + at;
    if (!job->offset) return w;
    const float *v = job->offset + row * job->n_in + at;
    for (int64_t i = 0; i < n; i++) moved[i] = nb_offset_weight(w[i], v[i], scale);
    return moved;
}

static void encode_row(const nb_job *job, const nb_plane_spec *spec, int64_t row, const lane *l)
{
    const nb_format *f = job->format;
    for (int64_t g = 0; g < nb_format_groups(f, job->n_in); g++) {
        int64_t at = nb_group_begin(f, g), n = nb_group_length(f, job->n_in, g);
        const float *w = move(job, row, at, n, l->p[g].scale, l->moved);
        f->family->encode(f, &l->p[g], w, n, l->codes + at);
    }
    nb_round_pack(job, spec, row, l->codes, l->p);
}

/* Rows that share their parameters: one, or a tile. */
static void round_rows(const nb_job *job, const nb_plane_spec *spec, int64_t row, int64_t n_rows,
                       const lane *l)
{
    const nb_format *f = job->format;
    const float *w = job->w + row * job->n_in;
    int64_t groups = nb_format_groups(f, job->n_in);
    if (f->tile > 1) {
        nb_format_fit_tile(f, w, job->n_in, n_rows, job->n_in, false, l->p);
    } else {
        nb_format_fit_row(f, w, job->importance, job->n_in, job->clip_lo + row * groups,
                          job->clip_hi + row * groups, l->p);
    }
    for (int64_t r = 0; r < n_rows; r++) encode_row(job, spec, row + r, l);
}

nb_status nb_round_nearest(nb_job *job, nb_error *err)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int64_t groups = nb_format_groups(job->format, job->n_in);
    size_t row_bytes = (size_t)job->n_in * (1 + sizeof(float)) + (size_t)groups * sizeof(nb_qparam);
    int64_t step = job->format->tile > 1 ? job->format->tile : 1;
    bool memory = true;
    job->format->family->planes(job->format, job->n_in, spec);
#pragma omp parallel num_threads(job->threads) reduction(&& : memory)
    {
        lane l = {.p = malloc(row_bytes)};
        memory = l.p != NULL;
        if (memory) l.moved = (float *)(l.p + groups);
        if (memory) l.codes = (uint8_t *)(l.moved + job->n_in);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < job->n_out; row += step) {
            int64_t n = nb_min_i64(step, job->n_out - row);
            if (l.p) round_rows(job, spec, row, n, &l);
        }
        free(l.p);
    }
    return memory ? NB_OK : nb_fail_memory(err, job->name, row_bytes);
}

const nb_method nb_method_nearest = {
    .name = "nearest",
    .kind = NB_STEP_ROUND,
    .source = "round-to-nearest",
    .run = nb_round_nearest,
};
