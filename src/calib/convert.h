/* One matrix of the source into the form in which it is stored. */
#ifndef NB_CALIB_CONVERT_H
#define NB_CALIB_CONVERT_H

#include "calib/calib.h"

typedef struct nb_convert {
    const nb_recipe *recipe; /* steps of a quantized format */
    nb_arena *arena;         /* of the planes made */
    nb_arena *scratch;       /* reset by every call */
    int threads;
    unsigned cpu;                   /* features that may be used: NB_CPU_... */
    const float *hessian;           /* of the linear's input, for steps that need it, or NULL */
    const float *importance;        /* [n_in]: its diagonal, or NULL */
    nb_gptq_cache *factors;         /* nb_job's, or NULL */
    const float *clip_lo, *clip_hi; /* [n_out, groups] of a step on the block, or NULL: all 1 */
    const float *offset;            /* [n_out, n_in] likewise, or NULL: none */
} nb_convert;

/* What is told of a matrix. */
typedef struct nb_convert_info {
    double error;   /* sum (w - w')^2 / sum w^2, w' with the factors */
    double rounded; /* the same without them */
    double clipped; /* share of the weights beyond the grid of their group; < 0: no grid */
    int64_t driven; /* nb_job's clipped */
    double loss;    /* nb_job's */
    char note[128]; /* nb_job's */
    nb_lorc lorc;   /* made beside *out, in c->arena; rank 0: none */
} nb_convert_info;

/* *out in `format`, and the low-rank factors of the recipe where it is a whole linear. Where `out`
 * is the source's own type, it borrows the source's planes. Needs n_out * n_in fp32 of scratch for
 * a whole linear; with `by_rows` at most NB_CHUNK_ELEMS at a time. NB_ENUMERIC names the row. */
#define NB_CHUNK_ELEMS ((int64_t)1 << 25)
nb_status nb_convert_matrix(const nb_convert *c, const char *name, const nb_matrix *in,
                            const nb_format *format, bool by_rows, nb_matrix *out,
                            nb_convert_info *info, nb_error *err);

/* What a matrix that the recipe leaves alone is stored as: floats as they are, Q8_0 as the same
 * numbers in int8:g32:sym, other block types as f16. */
nb_format nb_convert_default(const nb_matrix *in);

#endif
