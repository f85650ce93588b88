#include "token/utf8.h"

#include <utf8proc.h>

/* Bytes of the valid character at s, 0 if there is none. Ranges: Unicode 15, table 3-7. */
static size_t char_check(const unsigned char *s, size_t n)
{
    unsigned char a = s[0];
    if (a < 0x80) return 1;
    size_t len = a >= 0xf0 ? 4 : a >= 0xe0 ? 3 : 2;
    if (a < 0xc2 || a > 0xf4 || n < len) return 0;
    unsigned char low = a == 0xe0 ? 0xa0 : a == 0xf0 ? 0x90 : 0x80;
    unsigned char high = a == 0xed ? 0x9f : a == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
    }
    return len;
}

size_t nb_utf8_check(const char *s, size_t n_bytes)
{
    size_t i = 0;
    while (i < n_bytes) {
        size_t len = char_check((const unsigned char *)s + i, n_bytes - i);
        if (!len) break;
        i += len;
    }
    return i;
}

size_t nb_utf8_len(char lead)
{
    unsigned char a = (unsigned char)lead;
    return a < 0xc2 || a > 0xf4 ? 1 : a < 0xe0 ? 2 : a < 0xf0 ? 3 : 4;
}

uint32_t nb_utf8_decode(const char *s, size_t *len)
{
    const unsigned char *p = (const unsigned char *)s;
    *len = nb_utf8_len(s[0]);
    switch (*len) {
    case 1:
        return p[0];
    case 2:
        return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3fu);
    case 3:
        return (uint32_t)(p[0] & 0x0f) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    default:
        return (uint32_t)(p[0] & 0x07) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 |
               (p[3] & 0x3fu);
    }
}

size_t nb_utf8_encode(char out[4], uint32_t c)
{
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)c, (utf8proc_uint8_t *)out);
}

size_t nb_utf8_prev(const char *s, size_t pos)
{
    do pos--;
    while (pos > 0 && ((unsigned char)s[pos] & 0xc0) == 0x80);
    return pos;
}

bool nb_char_is_space(uint32_t c)
{
    if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
    if (c == 0x85) return true;
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_ZS || k == UTF8PROC_CATEGORY_ZL || k == UTF8PROC_CATEGORY_ZP;
}

bool nb_char_is_word(uint32_t c)
{
    if (c == 0x200c || c == 0x200d) return true;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

/* Bytes that do not stand for themselves: 0-32, 127-160, 173; 68 of them. */
uint32_t nb_byte_to_char(uint8_t byte)
{
    if (byte <= 32) return 256u + byte;
    if (byte >= 127 && byte <= 160) return 289u + byte - 127u;
    return byte == 173 ? 323 : byte;
}

int nb_char_to_byte(uint32_t c)
{
    if (c < 256) return nb_byte_to_char((uint8_t)c) == c ? (int)c : -1;
    if (c <= 288) return (int)c - 256;
    if (c <= 322) return (int)c - 289 + 127;
    return c == 323 ? 173 : -1;
}
