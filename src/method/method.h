/* Quantization methods: the steps of a recipe, run by calib/ on one block at a time.
 *
 * A step is a transform (edits the fp32 weights), a clip (finds the range of each group), a round
 * (weights to codes) or a compensator (side data for the error that is left). Each lives in its
 * own file and has one line in methods.c. */
#ifndef NB_METHOD_METHOD_H
#define NB_METHOD_METHOD_H

#include "base/arena.h"
#include "format/format.h"

typedef enum nb_step_kind {
    NB_STEP_TRANSFORM,
    NB_STEP_CLIP,
    NB_STEP_ROUND,
    NB_STEP_COMPENSATE
} nb_step_kind;

/* One linear on its way from fp32 to planes. */
typedef struct nb_job {
    const char *name; /* module name, for messages */
    const nb_format *format;
    int64_t n_out, n_in;
    int64_t row0;             /* first row of w in the whole matrix, for messages              */
    float *w;                 /* [n_out, n_in] fp32 working copy                              */
    const float *importance;  /* [n_in] or NULL: weights of the squared error                 */
    float *clip_lo, *clip_hi; /* [n_out, groups] in (0, 1]: set to 1 before the clip step     */
    uint8_t *plane[NB_MAX_PLANES]; /* [n_out, row_bytes] each: filled by the round step       */
    int threads;
} nb_job;

typedef struct nb_method {
    const char *name; /* as in recipes: "minmax", "mse", "nearest" */
    nb_step_kind kind;
    const char *source; /* where the mathematics comes from */
    nb_status (*run)(nb_job *job, nb_error *err);
} nb_method;

extern const nb_method *const nb_methods[]; /* NULL-terminated, methods.c */

/* NB_EUSAGE names the step and lists what there is. */
nb_status nb_method_find(const nb_method **out, const char *name, nb_error *err);

/* Runs the steps in order. Weights that are not finite, before the first step or after a transform,
 * are NB_ENUMERIC naming linear, row and column. */
nb_status nb_job_run(nb_job *job, const nb_method *const *steps, int n_steps, nb_error *err);

#endif
