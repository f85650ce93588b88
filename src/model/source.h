/* Inside of nb_source, shared by source.c and source_block.c. */
#ifndef NB_MODEL_SOURCE_H
#define NB_MODEL_SOURCE_H

#include "model/family.h"

struct nb_source {
    nb_checkpoint *ckpt;
    nb_config cfg;
    struct json_t *modules;     /* module -> format word; NULL: not quantized */
    struct json_t *act_modules; /* module -> format word of its input, where it is not `act` */
    struct json_t *biases;      /* a set: linears with a bias that the configuration lacks */
    struct json_t *recipe;
    nb_format act;        /* of a quantized linear's input */
    nb_attn_formats attn; /* of every block */
    nb_lorc lorc;         /* rank and formats of every quantized linear's inside the blocks */
    bool interleaved;     /* order of rotary pairs in the file; in blocks: cfg.rope_interleaved */
    bool short_prefix;    /* names without the leading "model." (early OPT files) */
    int64_t source_bytes;

    nb_rotation rotation;
    int fold_threads; /* > 0: blocks are rotated as they are read (nb_source_rotate) */
    unsigned fold_cpu;
};

/* Format of the input of a linear inside a block; family NULL: none. */
nb_format nb_source_act(const nb_source *s, const char *module, bool quantized);
/* True for a linear that a step gave a bias. */
bool nb_source_has_bias(const nb_source *s, const char *module);

/* Finds how this checkpoint spells its names. */
nb_status nb_source_resolve(nb_source *s, nb_error *err);

#endif
