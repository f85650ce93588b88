/* State of one run, shared by the loop (pipeline.c), what makes a shard (build.c) and what
 * ends the run (finish.c). */
#ifndef NB_CALIB_PIPELINE_H
#define NB_CALIB_PIPELINE_H

#include "calib/flow.h"
#include "calib/outdir.h"
#include "calib/plan.h"
#include "calib/samples.h"

typedef struct nb_calib {
    const nb_quantize_options *opt;
    nb_recipe recipe;
    char *recipe_text; /* canonical */
    nb_source *source;
    nb_plan plan;
    nb_samples samples;
    nb_backend *be;
    nb_flow *flow; /* NULL: no calibration text */
    nb_outdir dir;
    char run[NB_HASH_CHARS];  /* checksum of the fingerprint */
    nb_arena *arena;          /* what lives as long as a block is at work */
    nb_arena *scratch;        /* of one matrix */
    int n_resumed;            /* shards taken over */
    double estimated_seconds; /* dry_run */
} nb_calib;

/* Progress: `done` shards are finished. NB_EINTERRUPTED: the caller of the library says stop. */
nb_status nb_calib_tell(const nb_calib *c, int done, const char *note, nb_error *err);

/* The same as an nb_flow_tick; user: an nb_ticker. */
typedef struct nb_ticker {
    const nb_calib *c;
    int done;
    nb_error *err;
} nb_ticker;
nb_status nb_calib_tick(void *user);

/* Everything beside the shards, into OUT.partial: index, config, recipe, tokenizer, report. */
nb_status nb_finish_write(const nb_calib *c, nb_error *err);

/* What config.json says under quantization_config of the shards with these lines of the journal;
 * NULL when memory is out. */
json_t *nb_finish_quantization(const nb_calib *c, const json_t *lines);

/* Bytes of all weight files by the journal. */
int64_t nb_finish_bytes(const json_t *shards);

#endif
