/* The index of a sharded checkpoint. */
#include <stdlib.h>
#include <string.h>

#include "io/index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    nb_arena *a;
    nb_shard_index x;
    if (nb_arena_create(&a, NULL) != NB_OK) return 0;
    if (nb_shard_index_parse(&x, a, (const char *)data, n_bytes, NULL) == NB_OK) {
        if (x.n_shards == 0 || x.n_shards > x.n) abort();
        for (size_t i = 0; i < x.n; i++) {
            if (strchr(x.entries[i].shard, '/')) abort();
        }
    }
    nb_arena_free(a);
    return 0;
}
