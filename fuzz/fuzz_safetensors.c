#include "fuzz_container.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
    fuzz_container(nb_safetensors_parse, data, n_bytes);
    return 0;
}
