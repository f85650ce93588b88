/* Every weight of a checkpoint by tensor name, packed or plain: what inspect and verify walk. */
#ifndef NB_API_WEIGHTS_H
#define NB_API_WEIGHTS_H

#include "model/model.h"

typedef struct nb_weight {
    const char *name; /* as in the file; without the plane for the planes of one packed matrix */
    int n_dims;
    int64_t dims[NB_MAX_DIMS];
    nb_matrix m;    /* all but the last dimension are rows; family NULL: no weight type ("i64") */
    nb_dtype dtype; /* of a plain tensor */
    bool packed;
    bool in_block;
    bool factor; /* NAME.weight.lorc_a, .lorc_b: no weight of its own */
} nb_weight;

/* Sorted by name, numbers by value. Items and names live in the arena, planes in the mapping.
 * Packed linears have their shapes checked against the configuration on the way. */
nb_status nb_weights_list(nb_weight **out, size_t *n, const nb_source *s, nb_arena *arena,
                          nb_error *err);

#endif
