/* One row on its way through a format, for the tests of formats. */
#ifndef NB_TESTS_FORMAT_UTIL_H
#define NB_TESTS_FORMAT_UTIL_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "format/format.h"

#define N_MAX 700

typedef struct row {
    nb_format f;
    int64_t n;
    float w[N_MAX], back[N_MAX];
    uint8_t codes[N_MAX], again[N_MAX];
    nb_qparam p[N_MAX], p_again[N_MAX];
    float clip_lo[N_MAX], clip_hi[N_MAX];
    uint8_t bytes[NB_MAX_PLANES][4 * N_MAX];
    uint8_t *plane[NB_MAX_PLANES];
    nb_plane_spec spec[NB_MAX_PLANES];
    int n_planes;
} row;

static inline void begin_row(row *r, const char *word, int64_t n)
{
    memset(r, 0, sizeof *r);
    nb_error err = {0};
    if (nb_format_parse(&r->f, word, &err) != NB_OK) fail_msg("%s", err.message);
    r->n = n;
    r->n_planes = r->f.family->planes(&r->f, n, r->spec);
    for (int i = 0; i < NB_MAX_PLANES; i++) {
        memset(r->bytes[i], 0xA5, sizeof r->bytes[i]);
        r->plane[i] = r->bytes[i];
    }
}

static inline void fill_normal(row *r, uint64_t seed, double std)
{
    nb_rng rng = {seed};
    for (int64_t i = 0; i < r->n; i++) r->w[i] = (float)(std * nb_rng_normal(&rng));
}

/* fit, encode and pack with the clip ratios of every group. */
static inline void quantize_row(row *r, float clip_lo, float clip_hi)
{
    const nb_format *f = &r->f;
    for (int64_t g = 0; g < nb_format_groups(f, r->n); g++) {
        r->clip_lo[g] = clip_lo;
        r->clip_hi[g] = clip_hi;
    }
    nb_format_fit_row(f, r->w, NULL, r->n, r->clip_lo, r->clip_hi, r->p);
    for (int64_t g = 0; g < nb_format_groups(f, r->n); g++) {
        int64_t at = nb_group_begin(f, g), m = nb_group_length(f, r->n, g);
        f->family->encode(f, &r->p[g], r->w + at, m, r->codes + at);
    }
    f->family->pack_row(f, r->codes, r->p, r->n, r->plane);
}

static inline void decode_row(const nb_format *f, const uint8_t *codes, const nb_qparam *p,
                              int64_t n, float *w)
{
    for (int64_t g = 0; g < nb_format_groups(f, n); g++) {
        int64_t at = nb_group_begin(f, g);
        f->family->decode(f, &p[g], codes + at, nb_group_length(f, n, g), w + at);
    }
}

/* Quantizes w [n]; back is what the planes hold. */
static inline void load_row(row *r, const char *word, const float *w, int64_t n)
{
    begin_row(r, word, n);
    memcpy(r->w, w, (size_t)n * sizeof *w);
    quantize_row(r, 1, 1);
    r->f.family->dequant_row(&r->f, (const uint8_t *const *)r->plane, n, r->back);
}

static inline double row_error(const row *r, int64_t begin, int64_t end)
{
    double sum = 0;
    for (int64_t i = begin; i < end; i++) {
        double d = (double)r->w[i] - (double)r->back[i];
        sum += d * d;
    }
    return sum;
}

static inline void assert_near(double got, double expected, double relative)
{
    if (!(fabs(got - expected) <= relative * fabs(expected))) {
        fail_msg("%.9g, expected %.9g", got, expected);
    }
}

/* Normal values, the size of each group lognormal(sigma). */
static inline void fill_groups(row *r, uint64_t seed, int64_t group, double sigma)
{
    nb_rng rng = {seed};
    for (int64_t i = 0; i < r->n; i += group) {
        double std = exp(sigma * nb_rng_normal(&rng));
        for (int64_t k = i; k < r->n && k < i + group; k++) {
            r->w[k] = (float)(std * nb_rng_normal(&rng));
        }
    }
}

static inline double group_error(const row *r, int64_t g)
{
    int64_t at = nb_group_begin(&r->f, g);
    return nb_format_error(&r->f, &r->p[g], r->w + at, NULL, nb_group_length(&r->f, r->n, g));
}

#endif
