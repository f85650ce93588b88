/* Uniform integers of 2 to 8 bits: "int4:g128", "int3:row:sym", "int8:token".
 *
 *   w = (code - zero) * scale            one scale and one zero per group of a row
 *
 *   asym   codes 0 .. 2^bits - 1, zero stored (OmniQuant eq. 2; rules for partial and one-sided
 *          groups: an interval that always contains 0, so that 0 <= zero <= 2^bits - 1)
 *   sym    zero = 2^(bits-1) - 1 fixed; fit and encode use the levels -zero .. +zero, code
 *          2 zero + 1 is legal when read
 *
 *   gN     groups of N inputs, N a multiple of 8 (so every group begins on a byte); fp16 scales
 *   row    one group; fp16 scale
 *   token  one group per row of activations or of the KV cache; the scale stays fp32
 *
 * Planes of a row of n values in G groups, bit 0 the lowest bit of a byte:
 *
 *   codes   ceil(n bits / 8) bytes: code i is bits [i bits, (i+1) bits) of the row, read as one
 *           little-endian integer; the unused high bits of the last byte are 0
 *
 *             4 bits:  byte 0 |c1 c1 c1 c1 c0 c0 c0 c0|
 *             3 bits:  byte 0 |c2 c2 c1 c1 c1 c0 c0 c0|  byte 1 |c5 c4 c4 c4 c3 c3 c3 c2|  ...
 *
 *   scales  G x fp16 (token: 1 x fp32), little-endian
 *   zeros   asym only: ceil(G bits / 8) bytes, packed as the codes are
 *
 * The scale is rounded to its stored type first; zero and codes follow from the rounded value, so
 * that what is stored is what was fitted. */
#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/format.h"
#include "format/half.h"

#define SCALE_MIN_ASYM 1e-5f    /* OmniQuant section 3.1: absolute */
#define F16_MAX        65504.0f /* largest finite fp16 */
#define F16_TINY       0x1p-24f /* smallest positive fp16 */
#define GROUP_MAX      65536

enum { STORED_F16, STORED_F32 }; /* nb_format.variant: type of the scale */

static int32_t code_max(const nb_format *f) { return (1 << f->bits) - 1; }

static int32_t sym_zero(const nb_format *f) { return (1 << (f->bits - 1)) - 1; }

/* ---- words ----------------------------------------------------------------------------- */

static int fail_word(const char *word, const char *why, nb_error *err)
{
    nb_fail(err, NB_EUSAGE, "format \"%.40s\": %s", word, why);
    return -1;
}

/* Takes "row", "token" or "gN" off the front of *s. */
static bool take_granularity(const char **s, nb_format *f)
{
    static const struct {
        const char *name;
        int variant;
    } whole[] = {{"row", STORED_F16}, {"token", STORED_F32}};
    for (size_t i = 0; i < NB_COUNT(whole); i++) {
        size_t n = strlen(whole[i].name);
        if (strncmp(*s, whole[i].name, n) != 0) continue;
        f->variant = whole[i].variant;
        *s += n;
        return true;
    }
    if (**s != 'g' || (*s)[1] < '1' || (*s)[1] > '9') return false;
    int n = 0;
    for (++*s; **s >= '0' && **s <= '9' && n <= GROUP_MAX; ++*s) n = n * 10 + (**s - '0');
    f->group = n;
    f->variant = STORED_F16;
    return true;
}

static int parse_int(const char *word, nb_format *f, nb_error *err)
{
    if (strncmp(word, "int", 3) != 0) return 0;
    const char *s = word + 3;
    if (s[0] < '2' || s[0] > '8' || s[1] != ':') {
        return fail_word(word, "expected int2: to int8:, then row, token or gN", err);
    }
    f->bits = s[0] - '0';
    s += 2;
    if (!take_granularity(&s, f)) return fail_word(word, "expected row, token or gN", err);
    if (f->group % 8 != 0 || f->group > GROUP_MAX) {
        return fail_word(word, "a group must be a multiple of 8 from 8 to 65536", err);
    }
    bool token = f->variant == STORED_F32;
    f->sym = token;
    if (strcmp(s, ":sym") == 0) {
        f->sym = true;
    } else if (strcmp(s, ":asym") == 0) {
        f->sym = false;
    } else if (*s) {
        return fail_word(word, "expected :sym, :asym or nothing at the end", err);
    }
    char size[16] = "row";
    if (token) memcpy(size, "token", sizeof "token");
    if (f->group) snprintf(size, sizeof size, "g%d", f->group);
    const char *tail = f->sym == token ? "" : f->sym ? ":sym" : ":asym";
    snprintf(f->word, sizeof f->word, "int%d:%s%s", f->bits, size, tail);
    return 1;
}

static unsigned uses_int(const nb_format *f)
{
    return f->variant == STORED_F32 ? NB_FOR_ACTS | NB_FOR_KV : NB_FOR_WEIGHTS;
}

/* ---- one group ------------------------------------------------------------------------- */

static float store_scale(const nb_format *f, float h)
{
    if (f->variant == STORED_F32) return fmaxf(fminf(h, FLT_MAX), FLT_MIN);
    return nb_f16_to_f32(nb_f16_from_f32(fmaxf(fminf(h, F16_MAX), F16_TINY)));
}

/* Range of the group, shrunk by the clip ratios and widened to contain 0. */
static void clipped_range(const float *w, int64_t n, float clip_lo, float clip_hi, float *lo,
                          float *hi)
{
    float min = 0, max = 0;
    for (int64_t i = 0; i < n; i++) {
        min = w[i] < min ? w[i] : min;
        max = w[i] > max ? w[i] : max;
    }
    *lo = clip_lo * min;
    *hi = clip_hi * max;
}

static void fit_int(const nb_format *f, const float *w, const float *importance, int64_t n,
                    float clip_lo, float clip_hi, nb_qparam *p)
{
    NB_UNUSED(importance); /* a range, not a search */
    float lo, hi;
    clipped_range(w, n, clip_lo, clip_hi, &lo, &hi);
    *p = (nb_qparam){.scale = 1, .zero = f->sym ? sym_zero(f) : 0};
    if (lo == 0 && hi == 0) return;
    if (f->sym) {
        p->scale = store_scale(f, fmaxf(-lo, hi) / (float)sym_zero(f));
        return;
    }
    float q = (float)code_max(f);
    p->scale = store_scale(f, fmaxf((hi - lo) / q, SCALE_MIN_ASYM));
    p->zero = (int32_t)fminf(rintf(-lo / p->scale), q);
}

/* Nearest integer, ties to even, for |x| < 2^22: the addition leaves no fraction bits. Equal to
 * rintf, and vectorizes on every machine. */
static inline int32_t round_even(float x)
{
    const float magic = 0x1.8p23f;
    return (int32_t)((x + magic) - magic);
}

static void encode_int(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                       uint8_t *codes)
{
    /* Clamping before rounding gives what clamping after gives: the bounds are integers. */
    float scale = p->scale, lo = (float)-p->zero;
    float hi = (float)(f->sym ? p->zero : code_max(f) - p->zero);
    for (int64_t i = 0; i < n; i++) {
        float x = w[i] / scale;
        x = x < lo ? lo : x;
        x = x > hi ? hi : x;
        codes[i] = (uint8_t)(round_even(x) + p->zero);
    }
}

static void decode_int(const nb_format *f, const nb_qparam *p, const uint8_t *codes, int64_t n,
                       float *w)
{
    NB_UNUSED(f);
    float scale = p->scale;
    int32_t zero = p->zero;
    for (int64_t i = 0; i < n; i++) w[i] = (float)((int32_t)codes[i] - zero) * scale;
}

/* ---- bits ------------------------------------------------------------------------------ */

static int64_t packed_bytes(int64_t n, int bits) { return (n * bits + 7) / 8; }

/* Eight codes fill `bits` whole bytes, so all work is done in units of eight. */
static void pack_codes(const uint8_t *codes, int64_t n, int bits, uint8_t *dst)
{
    for (int64_t i = 0; i < n; i += 8) {
        int m = n - i < 8 ? (int)(n - i) : 8;
        uint64_t v = 0;
        for (int k = 0; k < m; k++) {
            assert(codes[i + k] >> bits == 0);
            v |= (uint64_t)codes[i + k] << (k * bits);
        }
        int bytes = (int)packed_bytes(m, bits);
        for (int k = 0; k < bytes; k++) *dst++ = (uint8_t)(v >> (8 * k));
    }
}

static void unpack_codes_4(const uint8_t *src, int64_t n, uint8_t *codes)
{
    for (int64_t i = 0; i < n / 2; i++) {
        codes[2 * i] = src[i] & 15;
        codes[2 * i + 1] = src[i] >> 4;
    }
    if (n % 2) codes[n - 1] = src[n / 2] & 15;
}

static void unpack_codes(const uint8_t *src, int64_t n, int bits, uint8_t *codes)
{
    if (bits == 8) {
        memcpy(codes, src, (size_t)n);
        return;
    }
    if (bits == 4) {
        unpack_codes_4(src, n, codes);
        return;
    }
    uint8_t mask = (uint8_t)((1 << bits) - 1);
    for (int64_t i = 0; i < n; i += 8) {
        int m = n - i < 8 ? (int)(n - i) : 8;
        int bytes = (int)packed_bytes(m, bits);
        uint64_t v = 0;
        for (int k = 0; k < bytes; k++) v |= (uint64_t)*src++ << (8 * k);
        for (int k = 0; k < m; k++) codes[i + k] = (uint8_t)(v >> (k * bits)) & mask;
    }
}

/* ---- rows ------------------------------------------------------------------------------ */

static int planes_int(const nb_format *f, int64_t n_in, nb_plane_spec out[NB_MAX_PLANES])
{
    int64_t groups = nb_format_groups(f, n_in), bytes = packed_bytes(n_in, f->bits);
    bool wide = f->variant == STORED_F32;
    out[0] = (nb_plane_spec){"codes", NB_U8, bytes, bytes};
    out[1] = (nb_plane_spec){"scales", wide ? NB_F32 : NB_F16, groups, groups * (wide ? 4 : 2)};
    if (f->sym) return 2;
    bytes = packed_bytes(groups, f->bits);
    out[2] = (nb_plane_spec){"zeros", NB_U8, bytes, bytes};
    return 3;
}

/* Parameters of group g from the side planes. */
static nb_qparam load_param(const nb_format *f, const uint8_t *const plane[], int64_t g)
{
    nb_qparam p = {.zero = sym_zero(f)};
    if (f->variant == STORED_F32) {
        memcpy(&p.scale, plane[1] + 4 * g, 4);
    } else {
        uint16_t h;
        memcpy(&h, plane[1] + 2 * g, 2);
        p.scale = nb_f16_to_f32(h);
    }
    if (!f->sym) {
        const uint8_t *b = plane[2] + g * f->bits / 8;
        int shift = (int)(g * f->bits % 8);
        int32_t v = b[0] >> shift;
        if (shift + f->bits > 8) v |= b[1] << (8 - shift);
        p.zero = v & code_max(f);
    }
    return p;
}

static void pack_row_int(const nb_format *f, const uint8_t *codes, const nb_qparam *p, int64_t n_in,
                         uint8_t *const plane[])
{
    int64_t groups = nb_format_groups(f, n_in);
    pack_codes(codes, n_in, f->bits, plane[0]);
    for (int64_t g = 0; g < groups; g++) {
        if (f->variant == STORED_F32) {
            memcpy(plane[1] + 4 * g, &p[g].scale, 4);
        } else {
            uint16_t h = nb_f16_from_f32(p[g].scale);
            memcpy(plane[1] + 2 * g, &h, 2);
        }
    }
    if (f->sym) return;
    for (int64_t g = 0; g < groups; g += 8) { /* eight zeros fill whole bytes, too */
        uint8_t zeros[8];
        int m = groups - g < 8 ? (int)(groups - g) : 8;
        for (int k = 0; k < m; k++) zeros[k] = (uint8_t)p[g + k].zero;
        pack_codes(zeros, m, f->bits, plane[2] + g / 8 * f->bits);
    }
}

static void unpack_row_int(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                           uint8_t *codes, nb_qparam *p)
{
    int64_t groups = nb_format_groups(f, n_in);
    unpack_codes(plane[0], n_in, f->bits, codes);
    for (int64_t g = 0; g < groups; g++) p[g] = load_param(f, plane, g);
}

static void dequant_row_int(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                            float *w)
{
    enum { PIECE = 256 };
    int64_t groups = nb_format_groups(f, n_in);
    for (int64_t g = 0; g < groups; g++) {
        nb_qparam p = load_param(f, plane, g);
        int64_t begin = nb_group_begin(f, g), end = begin + nb_group_length(f, n_in, g);
        for (int64_t i = begin; i < end; i += PIECE) {
            uint8_t codes[PIECE];
            int64_t n = end - i < PIECE ? end - i : PIECE;
            unpack_codes(plane[0] + i * f->bits / 8, n, f->bits, codes);
            decode_int(f, &p, codes, n, w + i);
        }
    }
}

const nb_format_family nb_format_family_int = {
    .name = "int",
    .usage = "int{2..8}:{row|gN|token}[:sym|:asym]",
    .parse = parse_int,
    .uses = uses_int,
    .planes = planes_int,
    .fit = fit_int,
    .encode = encode_int,
    .decode = decode_int,
    .pack_row = pack_row_int,
    .unpack_row = unpack_row_int,
    .dequant_row = dequant_row_int,
};
