/* model.safetensors.index.json: which shard holds which tensor. */
#ifndef NB_IO_INDEX_H
#define NB_IO_INDEX_H

#include "base/arena.h"

typedef struct nb_shard_entry {
    const char *tensor, *shard; /* shard: a plain file name */
} nb_shard_entry;

typedef struct nb_shard_index {
    nb_shard_entry *entries; /* in file order */
    size_t n;
    const char **shards; /* sorted, each once */
    size_t n_shards;
} nb_shard_index;

/* Pure over the text; everything in *out lies in the arena. */
nb_status nb_shard_index_parse(nb_shard_index *out, nb_arena *a, const char *text, size_t n_bytes,
                               nb_error *err);

#endif
