/* Quantization methods: the steps of a recipe, run by calib/ on one block at a time.
 *
 * A step is a transform (edits the fp32 weights), a clip (finds the range of each group), a round
 * (weights to codes) or a compensator (side data for the error that is left). Each lives in its
 * own file and has one line in methods.c. */
#ifndef NB_METHOD_METHOD_H
#define NB_METHOD_METHOD_H

#include <jansson.h>

#include "base/arena.h"
#include "model/model.h"
#include "model/states.h"

typedef enum nb_step_kind {
    NB_STEP_TRANSFORM,
    NB_STEP_CLIP,
    NB_STEP_ROUND,
    NB_STEP_COMPENSATE
} nb_step_kind;

typedef struct nb_gptq_cache nb_gptq_cache;
void nb_gptq_cache_fini(nb_gptq_cache *c); /* {0} is an empty one */

/* One linear on its way from fp32 to planes. */
typedef struct nb_job {
    const char *name; /* module name, for messages */
    const nb_format *format;
    int64_t n_out, n_in;
    int64_t row0;             /* first row of w in the whole matrix, for messages              */
    float *w;                 /* [n_out, n_in] fp32 working copy                              */
    const float *importance;  /* [n_in] or NULL: weights of the squared error                 */
    float *clip_lo, *clip_hi; /* [n_out, groups] in (0, 1]: set to 1 before the clip step     */
    const float *offset;      /* [n_out, n_in] learned by the round step itself, or NULL      */
    const float *hessian;     /* NB_NEED_HESSIAN: [n_in, n_in], its upper triangle            */
    const double *option;     /* of the step at work, in the order of its table               */
    uint8_t *plane[NB_MAX_PLANES]; /* [n_out, row_bytes] each: filled by the round step       */
    nb_lorc lorc; /* rank and formats of nb_steps_lorc, and shapes; rank 0: makes no factors  */
    uint8_t *lorc_a[NB_MAX_PLANES], *lorc_b[NB_MAX_PLANES]; /* filled by the compensate step  */
    nb_gptq_cache *factors; /* kept by the caller from one linear to the next, or NULL        */
    int threads;
    unsigned cpu;    /* features that may be used: NB_CPU_...                                 */
    double loss;     /* what the round step minimised, of its whole matrix; < 0: nothing      */
    int64_t clipped; /* weights beyond the ends of their group's range; < 0: not counted      */
    char note[128];  /* what the report must say of this linear; empty: nothing                */
} nb_job;

/* Statistics that the loop collects over the calibration text only where a step asks for them. */
enum {
    /* 2/n sum over n windows of x^T x, x [T, n_in] the linear's input as the stored model has it,
     * through the format of the activations, each token scaled to a mean square of 1. Matrices
     * outside the blocks come without it. */
    NB_NEED_HESSIAN = 1,
    NB_NEED_RAW_TOKENS = 8, /* the same with tokens as they are */
    /* nb_input_stats without hessian: of the source model's own hidden states. */
    NB_NEED_RANGE = 2,
    /* Hidden states themselves (nb_block_job.x_source, x_stored): steps that train. */
    NB_NEED_STATES = 4,
    /* nb_block_job.offset: learned rounding. */
    NB_NEED_OFFSETS = 16,
};

/* ---- a whole block ------------------------------------------------------------------------ */

/* Over all calibration tokens, of one input of the block's linears (nb_role_input). */
typedef struct nb_input_stats {
    int64_t n;              /* channels */
    const float *min, *max; /* [n] */
    const float *mean_abs;  /* [n] mean |x| */
    /* NB_NEED_HESSIAN of a step on the block, else NULL: [n, n], 2/n sum over n windows of x^T x,
     * each token scaled to a mean square of 1; upper triangle. */
    const float *hessian;
} nb_input_stats;

/* Where a step that trains keeps its state, so that a run that is killed goes on at its last epoch.
 */
typedef struct nb_training {
    const char *dir; /* of the block's own; made by the first that has something to keep */
    const char *run; /* checksum of all that the state follows from, but for the block */
} nb_training;

/* One block on its way: steps that move something between linears and norms (transforms), or that
 * train. They run before the linears' own steps. What a step allocates in the arena and leaves in
 * the block (a bias) stays valid until the block is stored. After each step all that is stored
 * must be finite; a norm may have a bias only where the family's norms have one. */
typedef struct nb_block_job {
    const nb_config *cfg;
    nb_backend *be;
    nb_arena *arena;      /* lives as long as the block is at work */
    nb_host_block *block; /* linears, biases and norms are fp32 copies in the arena: a step edits
                             them in place (cast const away through nb_block_weight), and may give
                             a linear or norm a bias that it did not have                       */
    const nb_format *weights; /* [NB_N_ROLES]; a plain format: rounded to that type only */
    const nb_format *acts;    /* [NB_N_ROLES] of the linears' inputs */
    const nb_attn_formats *attn;
    /* [n_out, groups] each, all 1 at first; NULL: the linear is absent or not quantized. */
    float *clip_lo[NB_N_ROLES], *clip_hi[NB_N_ROLES];

    /* NB_NEED_OFFSETS: [n_out, n_in] each, 0 at first, in [-1/2, 1/2]: steps of its group by which
     * the round step moves a weight before rounding it (nb_offset_weight). NULL likewise. */
    float *offset[NB_N_ROLES];

    /* Statistics of the input of `role`, with the source model's hidden states before the block and
     * the block as it stood when this step began, nothing quantized. Valid until the step returns,
     * the Hessian until the next call. The first call may run the calibration windows through the
     * block. Only for steps that say NB_NEED_RANGE or NB_NEED_HESSIAN. */
    nb_status (*stats)(void *user, nb_role role, nb_input_stats *out, nb_error *err);
    void *stats_user;

    /* NB_NEED_STATES: hidden states before the block, [n_windows * seqlen, C], of the source model
     * and behind everything stored so far; target: the source block's own output on x_source.
     * A step only reads them, at most `batch` windows at once. */
    int n_windows, seqlen;
    nb_states *x_source, *x_stored, *target;
    const char *spill; /* directory for states of the step's own; NULL: they stay in memory */
    const nb_training *training; /* NULL: a killed run begins the block anew */
    nb_view rope;                /* [seqlen, D] */
    int epochs, batch;           /* of the recipe */
    int64_t seed;

    const double *option; /* of the step at work */
    json_t *report;       /* object of this block: a step may add a key of its own name. No times:
                             the same run gives the same bytes */
    nb_status (*tick)(void *user); /* to be called at least once per window; not NB_OK: stop */
    void *tick_user;
} nb_block_job;

/* The fp32 weight of a linear, to be edited; [n_out, n_in]. NULL: the block has no such linear. */
float *nb_block_weight(const nb_block_job *job, nb_role role);

/* NB_ENUMERIC naming linear, row and column of what is not finite, NB_EUSAGE naming a norm that got
 * what its family has no place for. `when`, for the message: "after step \"smooth\"". */
nb_status nb_block_check(const nb_block_job *job, const char *when, nb_error *err);

/* A number behind the step's name, "gptq:damp=0.05"; a flag, "gptq:act_order", is 0 or 1. */
typedef enum nb_option_kind { NB_OPTION_FLAG, NB_OPTION_WHOLE, NB_OPTION_REAL } nb_option_kind;

typedef struct nb_step_option {
    const char *name; /* NULL ends a table */
    nb_option_kind kind;
    double def, min, max;
} nb_step_option;

struct nb_step;

typedef struct nb_method {
    const char *name; /* as in recipes: "minmax", "mse", "nearest" */
    nb_step_kind kind;
    unsigned needs;                                     /* NB_NEED_... */
    unsigned (*needs_more)(const struct nb_step *step); /* by its options; NULL: nothing */
    const nb_step_option *options;                      /* at most NB_MAX_OPTIONS; NULL: none */
    const char *source;                                 /* where the mathematics comes from */
    /* One of the two: on each linear, or on the whole block (transforms, steps that train). A round
     * step that trains has both: first on the block, then on each linear. */
    nb_status (*run)(nb_job *job, nb_error *err);
    nb_status (*run_block)(nb_block_job *job, nb_error *err);
    /* Steps that make low-rank factors: their rank and formats, no planes. NULL: makes none. */
    nb_status (*lorc)(const struct nb_step *step, nb_lorc *out, nb_error *err);
    /* Steps on the block with transforms that run online: adds theirs to *out, as run_block does to
     * the block's. NB_EUSAGE: this model cannot have them. NULL: none. */
    nb_status (*rotation)(const struct nb_step *step, const nb_config *cfg, nb_rotation *out,
                          nb_error *err);
} nb_method;

extern const nb_method *const nb_methods[]; /* NULL-terminated, methods.c */

#define NB_MAX_OPTIONS 16
#define NB_STEP_WORD   128

/* A method with its options, parsed from a word such as "gptq:act_order:damp=0.05". */
typedef struct nb_step {
    const nb_method *method;
    char word[NB_STEP_WORD]; /* canonical: options in the order of the table, none at its default */
    double option[NB_MAX_OPTIONS];
} nb_step;

/* NB_EUSAGE names the step and lists what there is. */
nb_status nb_method_find(const nb_method **out, const char *name, nb_error *err);
nb_status nb_step_parse(nb_step *out, const char *word, nb_error *err);

/* NB_NEED_... of the step with its options. */
unsigned nb_step_needs(const nb_step *s);
/* The factors that the steps give every linear of a block; rank 0: none. NB_EUSAGE: options that
 * make no sense together. */
nb_status nb_steps_lorc(const nb_step *steps, int n_steps, nb_lorc *out, nb_error *err);

/* The transforms that blocks have online behind the steps. */
nb_status nb_steps_rotation(const nb_step *steps, int n_steps, const nb_config *cfg,
                            nb_rotation *out, nb_error *err);

/* Runs the steps in order. Weights that are not finite, before the first step or after a transform,
 * are NB_ENUMERIC naming linear, row and column. */
nb_status nb_job_run(nb_job *job, const nb_step *steps, int n_steps, nb_error *err);

#endif
