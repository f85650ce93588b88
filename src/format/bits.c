#include "format/bits.h"

#include <assert.h>
#include <string.h>

/* Eight codes fill `bits` whole bytes, so all work is done in units of eight. */
void nb_bits_pack(const uint8_t *codes, int64_t n, int bits, uint8_t *dst)
{
    for (int64_t i = 0; i < n; i += 8) {
        int m = n - i < 8 ? (int)(n - i) : 8;
        uint64_t v = 0;
        for (int k = 0; k < m; k++) {
            assert(codes[i + k] >> bits == 0);
            v |= (uint64_t)codes[i + k] << (k * bits);
        }
        int bytes = (int)nb_bits_bytes(m, bits);
        for (int k = 0; k < bytes; k++) *dst++ = (uint8_t)(v >> (8 * k));
    }
}

static void unpack_4(const uint8_t *src, int64_t n, uint8_t *codes)
{
    for (int64_t i = 0; i < n / 2; i++) {
        codes[2 * i] = src[i] & 15;
        codes[2 * i + 1] = src[i] >> 4;
    }
    if (n % 2) codes[n - 1] = src[n / 2] & 15;
}

void nb_bits_unpack(const uint8_t *src, int64_t n, int bits, uint8_t *codes)
{
    if (bits == 8) {
        memcpy(codes, src, (size_t)n);
        return;
    }
    if (bits == 4) {
        unpack_4(src, n, codes);
        return;
    }
    uint8_t mask = (uint8_t)((1 << bits) - 1);
    for (int64_t i = 0; i < n; i += 8) {
        int m = n - i < 8 ? (int)(n - i) : 8;
        int bytes = (int)nb_bits_bytes(m, bits);
        uint64_t v = 0;
        for (int k = 0; k < bytes; k++) v |= (uint64_t)*src++ << (8 * k);
        for (int k = 0; k < m; k++) codes[i + k] = (uint8_t)(v >> (k * bits)) & mask;
    }
}
