/* UTF-8, the two character classes that added tokens need, and the byte alphabet of GPT-2.
 *
 * Every function but nb_utf8_check takes text that nb_utf8_check has passed. */
#ifndef NB_TOKEN_UTF8_H
#define NB_TOKEN_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NB_METASPACE "\xe2\x96\x81" /* U+2581, SentencePiece's visible space */

/* Bytes of the longest valid prefix: n_bytes if all of it is UTF-8 (no surrogates, no overlong
 * forms, at most U+10FFFF). */
size_t nb_utf8_check(const char *s, size_t n_bytes);

/* Bytes of the character that begins with this byte, 1 for a byte that begins none. */
size_t nb_utf8_len(char lead);

uint32_t nb_utf8_decode(const char *s, size_t *len);
size_t nb_utf8_encode(char out[4], uint32_t c);

/* First byte of the character that ends before s[pos]; pos > 0. */
size_t nb_utf8_prev(const char *s, size_t pos);

bool nb_char_is_space(uint32_t c); /* Unicode White_Space */
bool nb_char_is_word(uint32_t c);  /* letters, marks, numbers, connectors, joiners */

/* GPT-2 writes every byte as a visible character: printable Latin-1 stands for itself, the others
 * are U+0100 and up in byte order (Radford et al. 2019, encoder.py, bytes_to_unicode). */
#define NB_BYTE_CHARS 324 /* one above the highest of them */
uint32_t nb_byte_to_char(uint8_t byte);
int nb_char_to_byte(uint32_t c); /* -1: not in the alphabet */

#endif
