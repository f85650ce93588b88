/* Recipe and the only block loop: source -> steps -> nibble directory.
 *
 * One block is in memory at a time. Output goes to OUT.partial, one shard per block, with a
 * journal; the last step renames. A run that is killed and resumed redoes at most one block, of one
 * in training at most one epoch, and gives the same bytes; so does any thread count. */
#ifndef NB_CALIB_CALIB_H
#define NB_CALIB_CALIB_H

#include "method/method.h"
#include "model/model.h"

#define NB_MAX_STEPS 8

/* Formats of one linear of every block; word empty: as the recipe says of all. */
typedef struct nb_role_formats {
    nb_format weights, acts;
} nb_role_formats;

/* Of rotary pairs in the heads of Q and K: the model's own, (i, i + D/2), (2i, 2i + 1). */
typedef enum nb_rope_order { NB_ORDER_OWN, NB_ORDER_HALF, NB_ORDER_INTERLEAVED } nb_rope_order;

typedef struct nb_recipe {
    char name[64];
    nb_format weights, acts, kv, embedding; /* family NULL: leave alone */
    nb_format keys, query, probs;           /* of attention; word empty: keys as kv, others alone */
    nb_rope_order rope;
    nb_role_formats linear[NB_N_ROLES];
    nb_step steps[NB_MAX_STEPS];
    int n_steps;
    int samples, seqlen, epochs, batch;
    int64_t seed;
    bool sequential; /* statistics again behind q, k, v, behind o, and behind gate, up */
    bool fp_stats;   /* calib_acts: fp. Statistics and hidden states without online quantizers */
} nb_recipe;

/* "custom": minmax and nearest without formats: what a recipe or options then fill. */
void nb_recipe_default(nb_recipe *r);
/* YAML text; unknown keys, wrong types and unknown words are NB_EUSAGE with line and column. */
nb_status nb_recipe_parse(nb_recipe *r, const char *yaml, size_t n_bytes, nb_error *err);
/* Options over the recipe, then what must hold as a whole. */
nb_status nb_recipe_override(nb_recipe *r, const nb_quantize_options *opt, nb_error *err);
nb_status nb_recipe_check(const nb_recipe *r, nb_error *err);

/* Formats of one linear of every block. Inputs of linears that are only converted stay as they
 * are, unless the recipe names that linear's own. */
const nb_format *nb_recipe_weights(const nb_recipe *r, nb_role role);
nb_format nb_recipe_act(const nb_recipe *r, nb_role role);
nb_attn_formats nb_recipe_attn(const nb_recipe *r);
/* False: the weights of the blocks are only converted, and no step runs. */
bool nb_recipe_quantizes(const nb_recipe *r);
/* What its steps on single linears, and those on a whole block, need: NB_NEED_... */
unsigned nb_recipe_needs(const nb_recipe *r);
unsigned nb_recipe_block_needs(const nb_recipe *r);
bool nb_recipe_has_block_steps(const nb_recipe *r);
/* Transforms that the blocks of this model have online; NB_EUSAGE: it cannot have them. */
nb_status nb_recipe_rotation(const nb_recipe *r, const nb_config *cfg, nb_rotation *out,
                             nb_error *err);
/* Low-rank factors of a quantized linear inside the blocks, without planes; rank 0: none. NB_EUSAGE
 * names the linear: the rank is above its weight's. */
nb_status nb_recipe_lorc(const nb_recipe *r, const char *name, int64_t n_out, int64_t n_in,
                         nb_lorc *out, nb_error *err);

/* Canonical YAML; parsing it gives the same recipe. malloc'ed. */
nb_status nb_recipe_write(const nb_recipe *r, char **yaml, size_t *n_bytes, nb_error *err);

nb_status nb_calib_run(const nb_quantize_options *opt, nb_quantize_result *out, nb_error *err);

#endif
