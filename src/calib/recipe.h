/* Fields of a recipe by key: what the YAML reader and the command's options share. */
#ifndef NB_CALIB_RECIPE_H
#define NB_CALIB_RECIPE_H

#include "calib/calib.h"

typedef enum nb_field_kind {
    NB_FIELD_NAME,
    NB_FIELD_FORMAT,
    NB_FIELD_STEPS,
    NB_FIELD_INT,
    NB_FIELD_INT64,
    NB_FIELD_CHOICE,  /* a bool: false is its first word */
    NB_FIELD_OPTION,  /* an enum: 0 where it is not given, else the place of the word from 1 */
    NB_FIELD_LINEARS, /* a mapping, in YAML alone */
} nb_field_kind;

typedef struct nb_recipe_field {
    const char *key;
    nb_field_kind kind;
    size_t off;       /* in nb_recipe */
    int64_t min, max; /* of a number; min of a format: the NB_FOR_... use it must have */
    const char *choice[2];
} nb_recipe_field;

extern const nb_recipe_field nb_recipe_fields[]; /* ends with key NULL */

const nb_recipe_field *nb_recipe_field_find(const char *key); /* NULL: unknown */

/* Sets one field from its text; the message begins with the key. */
nb_status nb_recipe_set(nb_recipe *r, const nb_recipe_field *field, const char *text,
                        nb_error *err);

/* NB_Q for "q" or "q_proj", ..., OPT's names included; NB_N_ROLES: unknown. */
nb_role nb_recipe_role(const char *name);
/* Format of one linear; key "weights" or "acts". */
nb_status nb_recipe_set_role(nb_recipe *r, nb_role role, const char *key, const char *text,
                             nb_error *err);

nb_status nb_recipe_add_step(nb_recipe *r, const char *name, nb_error *err);
nb_status nb_recipe_set_steps(nb_recipe *r, const char *list, nb_error *err); /* "a,b" */

#endif
