/* tokenizer.json: what is accepted encodes a text and decodes the ids without a fault, twice the
 * same, and writes a tokenizer.json that is accepted again. */
#include <stdlib.h>
#include <string.h>

#include "fuzz_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    nb_tokenizer *t;
    if (nb_tokenizer_from_json(&t, (const char *)data, n_bytes, NULL, 0, NULL) != NB_OK) {
        if (t) abort();
        return 0;
    }
    check_tokenizer(t);
    nb_tokenizer_free(t);
    return 0;
}
