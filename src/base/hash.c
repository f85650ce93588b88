#include "base/hash.h"

#include <stdio.h>
#include <xxhash.h>

static void to_hex(char out[NB_HASH_CHARS], XXH128_hash_t h)
{
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, h);
    for (size_t i = 0; i < sizeof c.digest; i++) snprintf(out + 2 * i, 3, "%02x", c.digest[i]);
}

void nb_hash(char out[NB_HASH_CHARS], const void *data, size_t n_bytes)
{
    to_hex(out, XXH3_128bits(data, n_bytes));
}

/* nb_hasher is xxHash's own state under our name. */
nb_status nb_hasher_create(nb_hasher **out, nb_error *err)
{
    XXH3_state_t *s = XXH3_createState();
    *out = (nb_hasher *)s;
    if (!s) return nb_fail_memory(err, "checksum state", 576);
    XXH3_128bits_reset(s);
    return NB_OK;
}

void nb_hasher_add(nb_hasher *h, const void *data, size_t n_bytes)
{
    XXH3_128bits_update((XXH3_state_t *)h, data, n_bytes);
}

void nb_hasher_finish(nb_hasher *h, char out[NB_HASH_CHARS])
{
    to_hex(out, XXH3_128bits_digest((XXH3_state_t *)h));
    XXH3_freeState((XXH3_state_t *)h);
}
