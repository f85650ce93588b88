/* What a run will make and need, from shapes alone. */
#ifndef NB_CALIB_PLAN_H
#define NB_CALIB_PLAN_H

#include "calib/calib.h"

typedef struct nb_plan {
    int n_shards;            /* the ends, then one per block */
    int64_t n_quantized;     /* weights in quantized linears of all blocks */
    int64_t quantized_bytes; /* their planes */
    int64_t bytes;           /* of all weight files, within some percent of their headers */
    int64_t memory;          /* estimated peak resident set */
    int64_t spilled_memory;  /* the same with the hidden states on disk */
    int64_t spill_bytes;     /* that they would take there */
    bool spill;              /* they shall: nb_plan_check */
} nb_plan;

/* Blocks of one model have the same shapes, so the first stands for all. */
nb_status nb_plan_make(nb_plan *p, const nb_source *source, const nb_recipe *recipe,
                       bool calibrated, nb_arena *arena, nb_error *err);

/* Spills where memory (opt->memory) makes it necessary; refuses what memory or disk cannot hold. */
nb_status nb_plan_check(nb_plan *p, const nb_quantize_options *opt, nb_error *err);

double nb_plan_bits(const nb_plan *p);

/* Format in which a matrix outside the blocks is stored. */
nb_format nb_plan_end_format(const nb_recipe *recipe, const nb_host_ends *ends,
                             const nb_host_linear *l);

/* "model-00002-of-00031.safetensors" for shard 1. */
#define NB_SHARD_NAME 48
void nb_shard_name(char out[NB_SHARD_NAME], int shard, int n_shards);

#endif
