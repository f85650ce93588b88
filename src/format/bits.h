/* Codes of 1 to 8 bits as a row of bytes: code i is bits [i bits, (i+1) bits) of the row, read as
 * one little-endian integer; the unused high bits of the last byte are 0.
 *
 *   6 bits:  byte 0 |c1 c1 c0 c0 c0 c0 c0 c0|  byte 1 |c2 c2 c2 c2 c1 c1 c1 c1|  ...
 *   4 bits:  byte 0 |c1 c1 c1 c1 c0 c0 c0 c0|  ...
 *   3 bits:  byte 0 |c2 c2 c1 c1 c1 c0 c0 c0|  byte 1 |c5 c4 c4 c4 c3 c3 c3 c2|  ... */
#ifndef NB_FORMAT_BITS_H
#define NB_FORMAT_BITS_H

#include <stdint.h>

static inline int64_t nb_bits_bytes(int64_t n, int bits) { return (n * bits + 7) / 8; }

/* dst [nb_bits_bytes(n, bits)] = codes [n], each below 2^bits; and back. */
void nb_bits_pack(const uint8_t *codes, int64_t n, int bits, uint8_t *dst);
void nb_bits_unpack(const uint8_t *src, int64_t n, int bits, uint8_t *codes);

#endif
