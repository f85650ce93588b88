/* Rows of 4-bit fields: field 2i in the low half of byte i; an odd row ends in four zero bits. */
#ifndef NB_FORMAT_NIBBLES_H
#define NB_FORMAT_NIBBLES_H

#include <stdint.h>

static inline int64_t nb_nibble_bytes(int64_t n) { return (n + 1) / 2; }

static inline unsigned nb_nibble_at(const uint8_t *src, int64_t i)
{
    return src[i / 2] >> (i % 2 * 4) & 15u;
}

static inline void nb_nibbles_pack(const uint8_t *fields, int64_t n, uint8_t *dst)
{
    for (int64_t i = 0; i < n / 2; i++) {
        dst[i] = (uint8_t)(fields[2 * i] | fields[2 * i + 1] << 4);
    }
    if (n % 2) dst[n / 2] = fields[n - 1];
}

static inline void nb_nibbles_unpack(const uint8_t *src, int64_t n, uint8_t *fields)
{
    for (int64_t i = 0; i < n / 2; i++) {
        fields[2 * i] = src[i] & 15;
        fields[2 * i + 1] = src[i] >> 4;
    }
    if (n % 2) fields[n - 1] = src[n / 2] & 15;
}

#endif
