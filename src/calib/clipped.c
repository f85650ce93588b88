#include "calib/clipped.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

/* Where the outermost codes end; false: a group of zeros. There may be codes that nobody writes:
 * the outermost are those that very large values get. */
static bool grid_ends(const nb_format *f, const nb_qparam *p, float *least, float *greatest)
{
    uint8_t codes[256] = {0};
    float end[2] = {-FLT_MAX, FLT_MAX};
    f->family->encode(f, p, end, 2, codes);
    f->family->decode(f, p, codes, 2, end);
    float value[256], lo[2] = {HUGE_VALF, HUGE_VALF}, hi[2] = {-HUGE_VALF, -HUGE_VALF};
    int n_codes = 1 << f->bits;
    for (int i = 0; i < n_codes; i++) codes[i] = (uint8_t)i;
    f->family->decode(f, p, codes, n_codes, value);
    for (int i = 0; i < n_codes; i++) { /* the two least and the two greatest */
        float v = value[i];
        if (!(v >= end[0] && v <= end[1])) continue;
        if (v < lo[0]) lo[1] = lo[0], lo[0] = v;
        if (v > lo[0] && v < lo[1]) lo[1] = v;
        if (v > hi[0]) hi[1] = hi[0], hi[0] = v;
        if (v < hi[0] && v > hi[1]) hi[1] = v;
    }
    *least = lo[0] - (lo[1] - lo[0]) / 2;
    *greatest = hi[0] + (hi[0] - hi[1]) / 2;
    return lo[0] < hi[0];
}

static int64_t count_row(const nb_matrix *m, const nb_plane_spec *spec, int n_planes, int64_t row,
                         const float *w, nb_qparam *p, uint8_t *codes)
{
    const nb_format *f = &m->format;
    const uint8_t *plane[NB_MAX_PLANES] = {0};
    for (int i = 0; i < n_planes; i++) plane[i] = m->plane[i] + row * spec[i].row_bytes;
    f->family->unpack_row(f, plane, m->n_in, codes, p);
    int64_t count = 0, groups = nb_format_groups(f, m->n_in);
    for (int64_t g = 0; g < groups; g++) {
        float least, greatest;
        if (!grid_ends(f, &p[g], &least, &greatest)) continue;
        const float *at = w + nb_group_begin(f, g);
        int64_t n = nb_group_length(f, m->n_in, g);
        for (int64_t i = 0; i < n; i++) count += at[i] < least || at[i] > greatest;
    }
    return count;
}

nb_status nb_clipped_add(const nb_matrix *m, const float *w, int64_t row0, int64_t n, int threads,
                         int64_t *count, nb_error *err)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n_planes = m->format.family->planes(&m->format, m->n_in, spec);
    size_t groups = (size_t)nb_format_groups(&m->format, m->n_in);
    size_t bytes = groups * sizeof(nb_qparam) + (size_t)m->n_in;
    int64_t sum = 0;
    bool memory = true;
#pragma omp parallel num_threads(threads) reduction(+ : sum) reduction(&& : memory)
    {
        nb_qparam *p = malloc(bytes);
        memory = p != NULL;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < n; r++) {
            if (!p) continue;
            sum +=
                count_row(m, spec, n_planes, row0 + r, w + r * m->n_in, p, (uint8_t *)(p + groups));
        }
        free(p);
    }
    *count += sum;
    return memory ? NB_OK : nb_fail_memory(err, "clipped weights", bytes);
}
