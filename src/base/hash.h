/* XXH3-128 checksums as 32 hexadecimal digits (canonical, big-endian order). */
#ifndef NB_BASE_HASH_H
#define NB_BASE_HASH_H

#include "base/status.h"

#define NB_HASH_CHARS 33 /* with the NUL */

void nb_hash(char out[NB_HASH_CHARS], const void *data, size_t n_bytes);

/* For data that comes in pieces. */
typedef struct nb_hasher nb_hasher;
nb_status nb_hasher_create(nb_hasher **out, nb_error *err);
void nb_hasher_add(nb_hasher *h, const void *data, size_t n_bytes);
void nb_hasher_finish(nb_hasher *h, char out[NB_HASH_CHARS]); /* frees h */

#endif
