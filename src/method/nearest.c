/* Round: to nearest. fit, encode and pack each row on its own. */
#include <math.h>
#include <stdlib.h>

#include "base/size.h"
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

static void encode_row(const nb_job *job, const nb_plane_spec *spec, int64_t row, uint8_t *codes,
                       const nb_qparam *p)
{
    const nb_format *f = job->format;
    const float *w = job->w + row * job->n_in;
    for (int64_t g = 0; g < nb_format_groups(f, job->n_in); g++) {
        int64_t at = nb_group_begin(f, g), n = nb_group_length(f, job->n_in, g);
        f->family->encode(f, &p[g], w + at, n, codes + at);
    }
    nb_round_pack(job, spec, row, codes, p);
}

/* Rows that share their parameters: one, or a tile. */
static void round_rows(const nb_job *job, const nb_plane_spec *spec, int64_t row, int64_t n_rows,
                       uint8_t *codes, nb_qparam *p)
{
    const nb_format *f = job->format;
    const float *w = job->w + row * job->n_in;
    int64_t groups = nb_format_groups(f, job->n_in);
    if (f->tile > 1) {
        nb_format_fit_tile(f, w, job->n_in, n_rows, job->n_in, false, p);
    } else {
        nb_format_fit_row(f, w, job->importance, job->n_in, job->clip_lo + row * groups,
                          job->clip_hi + row * groups, p);
    }
    for (int64_t r = 0; r < n_rows; r++) encode_row(job, spec, row + r, codes, p);
}

nb_status nb_round_nearest(nb_job *job, nb_error *err)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int64_t groups = nb_format_groups(job->format, job->n_in);
    size_t row_bytes = (size_t)job->n_in + (size_t)groups * sizeof(nb_qparam);
    int64_t step = job->format->tile > 1 ? job->format->tile : 1;
    bool memory = true;
    job->format->family->planes(job->format, job->n_in, spec);
#pragma omp parallel num_threads(job->threads) reduction(&& : memory)
    {
        nb_qparam *p = malloc(row_bytes);
        memory = p != NULL;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < job->n_out; row += step) {
            int64_t n = nb_min_i64(step, job->n_out - row);
            if (p) round_rows(job, spec, row, n, (uint8_t *)(p + groups), p);
        }
        free(p);
    }
    return memory ? NB_OK : nb_fail_memory(err, job->name, row_bytes);
}

const nb_method nb_method_nearest = {
    .name = "nearest",
    .kind = NB_STEP_ROUND,
    .source = "round-to-nearest",
    .run = nb_round_nearest,
};
