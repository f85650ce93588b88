/* Hidden states of the calibration windows on their way through the model: once with the source's
 * weights, once with what has been stored. */
#ifndef NB_CALIB_FLOW_H
#define NB_CALIB_FLOW_H

#include "calib/samples.h"
#include "model/states.h"

typedef struct nb_flow nb_flow;

/* Asked between windows; anything but NB_OK ends the work. */
typedef nb_status (*nb_flow_tick)(void *user);

typedef struct nb_flow_desc {
    const nb_config *cfg;
    bool target;       /* room for the source block's output beside its input */
    int at_once;       /* windows that a step on the block looks at together */
    const char *spill; /* directory that the hidden states go to; NULL: they stay in memory */
} nb_flow_desc;

/* What the steps of a recipe need. */
nb_flow_desc nb_flow_describe(const nb_recipe *recipe, const nb_config *cfg);

/* Backend and samples are borrowed; the directory's name, too. */
nb_status nb_flow_create(nb_flow **out, nb_backend *be, const nb_flow_desc *d,
                         const nb_samples *samples, nb_error *err);
void nb_flow_free(nb_flow *f);

/* Embeds all windows with the ends of the source and with the stored ones. */
nb_status nb_flow_begin(nb_flow *f, const nb_host_ends *source, const nb_host_ends *stored,
                        nb_error *err);

/* Shows `observe` what the inputs of the block's linears are behind everything that has been stored
 * so far; the hidden states stay where they are. `block` holds the source's weights, with the
 * formats of the activations. */
nb_status nb_flow_collect(nb_flow *f, const nb_host_block *block, nb_observe_fn observe,
                          void *observe_user, nb_flow_tick tick, void *user, nb_error *err);

/* The same with the source's own hidden states. They go on through the block, which nb_flow_advance
 * then leaves out, into the target where the flow has one; with `keep` they stay. */
nb_status nb_flow_observe(nb_flow *f, const nb_host_block *block, bool keep, nb_observe_fn observe,
                          void *observe_user, nb_flow_tick tick, void *user, nb_error *err);

/* What the flow holds at one block, and the rotary table. */
typedef struct nb_flow_states {
    int n_windows, seqlen;
    nb_states *source, *stored, *target; /* target: NULL if there is none */
    nb_view rope;
    const char *spill; /* of the nb_flow_desc */
} nb_flow_states;
nb_flow_states nb_flow_look(const nb_flow *f);

/* Through one block. *error: sum (q - fp)^2 / sum fp^2 over its outputs. */
nb_status nb_flow_advance(nb_flow *f, const nb_host_block *source, const nb_host_block *stored,
                          nb_flow_tick tick, void *user, double *error, nb_error *err);

/* Memory that a flow takes, with states that a step makes of its own (the source block's output on
 * the stored ones) and without the block on the device; and bytes on disk where it is spilled. */
int64_t nb_flow_bytes(const nb_flow_desc *d, int n_samples, int seqlen, bool spilled);
int64_t nb_flow_disk_bytes(const nb_flow_desc *d, int n_samples, int seqlen);

#endif
