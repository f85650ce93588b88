/* Pieces of format words that several families share. */
#ifndef NB_FORMAT_WORD_H
#define NB_FORMAT_WORD_H

#include "base/status.h"

#define NB_GROUP_MAX 65536

/* "gN": groups of N inputs; "row": one group, stored with a narrow scale; "token": one group per
 * row of activations or of the KV cache, with a scale that stays fp32. */
typedef enum nb_grain { NB_GRAIN_GROUP, NB_GRAIN_ROW, NB_GRAIN_TOKEN } nb_grain;

/* What a family's parse returns for a word that is its own but malformed: -1, reason in *err. */
int nb_word_fail(const char *word, const char *why, nb_error *err);

/* Takes `piece` off the front of *s; false leaves *s alone. */
bool nb_word_take(const char **s, const char *piece);

/* Takes a grain off the front of *s. *group is N of "gN", which may be above NB_GROUP_MAX, and 0
 * for the others. */
bool nb_word_take_grain(const char **s, nb_grain *grain, int *group);

/* The canonical spelling. */
void nb_word_print_grain(char out[16], nb_grain grain, int group);

#endif
