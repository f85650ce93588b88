/* Recipes are foreign text: nothing crashes, and what is accepted survives writing and reading. */
#include <stdlib.h>
#include <string.h>

#include "calib/calib.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_round_trip(const nb_recipe *r)
{
    nb_recipe again;
    char *first, *second;
    size_t n_first, n_second;
    if (nb_recipe_write(r, &first, &n_first, NULL) != NB_OK) abort();
    if (nb_recipe_parse(&again, first, n_first, NULL) != NB_OK) abort();
    if (nb_recipe_write(&again, &second, &n_second, NULL) != NB_OK) abort();
    if (n_first != n_second || memcmp(first, second, n_first) != 0) abort();
    free(first);
    free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    nb_recipe r;
    nb_error err;
    if (nb_recipe_parse(&r, (const char *)data, size, &err) != NB_OK) return 0;
    check_round_trip(&r);
    nb_recipe_check(&r, &err);
    return 0;
}
