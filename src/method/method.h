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
    const float *hessian;     /* NB_NEED_HESSIAN: [n_in, n_in], its upper triangle            */
    const double *option;     /* of the step at work, in the order of its table               */
    uint8_t *plane[NB_MAX_PLANES]; /* [n_out, row_bytes] each: filled by the round step       */
    int threads;
    double loss;    /* what the round step minimised, of its whole matrix; < 0: nothing       */
    char note[128]; /* what the report must say of this linear; empty: nothing                */
} nb_job;

/* Statistics that the loop collects over the calibration text only where a step asks for them. */
enum {
    /* 2/n sum over n windows of x^T x, x [T, n_in] the linear's input as the stored model has it,
     * through the format of the activations. Matrices outside the blocks come without it. */
    NB_NEED_HESSIAN = 1,
};

/* A number behind the step's name, "gptq:damp=0.05"; a flag, "gptq:act_order", is 0 or 1. */
typedef enum nb_option_kind { NB_OPTION_FLAG, NB_OPTION_WHOLE, NB_OPTION_REAL } nb_option_kind;

typedef struct nb_step_option {
    const char *name; /* NULL ends a table */
    nb_option_kind kind;
    double def, min, max;
} nb_step_option;

typedef struct nb_method {
    const char *name; /* as in recipes: "minmax", "mse", "nearest" */
    nb_step_kind kind;
    unsigned needs;                /* NB_NEED_... */
    const nb_step_option *options; /* at most NB_MAX_OPTIONS; NULL: none */
    const char *source;            /* where the mathematics comes from */
    nb_status (*run)(nb_job *job, nb_error *err);
} nb_method;

extern const nb_method *const nb_methods[]; /* NULL-terminated, methods.c */

#define NB_MAX_OPTIONS 4
#define NB_STEP_WORD   96

/* A method with its options, parsed from a word such as "gptq:act_order:damp=0.05". */
typedef struct nb_step {
    const nb_method *method;
    char word[NB_STEP_WORD]; /* canonical: options in the order of the table, none at its default */
    double option[NB_MAX_OPTIONS];
} nb_step;

/* NB_EUSAGE names the step and lists what there is. */
nb_status nb_method_find(const nb_method **out, const char *name, nb_error *err);
nb_status nb_step_parse(nb_step *out, const char *word, nb_error *err);

/* Runs the steps in order. Weights that are not finite, before the first step or after a transform,
 * are NB_ENUMERIC naming linear, row and column. */
nb_status nb_job_run(nb_job *job, const nb_step *steps, int n_steps, nb_error *err);

#endif
