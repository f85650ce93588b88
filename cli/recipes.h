/* Recipes by name: where the command looks for NAME.yaml. */
#ifndef NB_CLI_RECIPES_H
#define NB_CLI_RECIPES_H

#include "nibble.h"

/* Text of a recipe given as a file (ends in .yaml or .yml, or has a '/') or as a name, looked up
 * in $NIBBLE_RECIPES, ./recipes, and ../recipes and ../share/nibble/recipes beside the executable.
 * *text goes back with nb_free. NB_EUSAGE lists the names there are. */
nb_status cli_read_recipe(const char *name_or_file, char **text, nb_error *err);

#endif
