/* Inside of nb_source, shared by source.c and source_block.c. */
#ifndef NB_MODEL_SOURCE_H
#define NB_MODEL_SOURCE_H

#include "model/family.h"

struct json_t;

struct nb_source {
    nb_checkpoint *ckpt;
    nb_config cfg;
    struct json_t *modules; /* module -> format word; NULL: not quantized */
    struct json_t *recipe;
    nb_format act;     /* of every quantized linear's input */
    nb_lorc lorc;      /* rank and formats of every quantized linear's inside the blocks */
    bool short_prefix; /* names without the leading "model." (early OPT files) */
    int64_t source_bytes;
};

/* Finds how this checkpoint spells its names. */
nb_status nb_source_resolve(nb_source *s, nb_error *err);

#endif
