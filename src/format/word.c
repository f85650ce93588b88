#include "format/word.h"

#include <stdio.h>
#include <string.h>

int nb_word_fail(const char *word, const char *why, nb_error *err)
{
    nb_fail(err, NB_EUSAGE, "format \"%.40s\": %s", word, why);
    return -1;
}

bool nb_word_take(const char **s, const char *piece)
{
    size_t n = strlen(piece);
    if (strncmp(*s, piece, n) != 0) return false;
    *s += n;
    return true;
}

bool nb_word_take_grain(const char **s, nb_grain *grain, int *group)
{
    *group = 0;
    *grain = NB_GRAIN_ROW;
    if (nb_word_take(s, "row")) return true;
    *grain = NB_GRAIN_TOKEN;
    if (nb_word_take(s, "token")) return true;
    *grain = NB_GRAIN_GROUP;
    if (**s != 'g' || (*s)[1] < '1' || (*s)[1] > '9') return false;
    int n = 0;
    for (++*s; **s >= '0' && **s <= '9' && n <= NB_GROUP_MAX; ++*s) n = n * 10 + (**s - '0');
    *group = n;
    return true;
}

void nb_word_print_grain(char out[16], nb_grain grain, int group)
{
    if (grain == NB_GRAIN_GROUP) {
        snprintf(out, 16, "g%d", group);
    } else {
        snprintf(out, 16, "%s", grain == NB_GRAIN_ROW ? "row" : "token");
    }
}
