/* OCP Microscaling formats: blocks of 32 with a power of two as scale: "mxfp4", "mxfp6", ...
 *
 *   w = value(code) * 2^(byte - 127)        byte: E8M0; 255 is NaN and never written
 *
 *             value (minifloat.h)                     largest power of two, 2^emax
 *   mxfp4     E2M1                                    2^2
 *   mxfp6     E2M3         mxfp6e3m2   E3M2           2^2    2^4
 *   mxfp8     E4M3         mxfp8e5m2   E5M2           2^8    2^15
 *   mxint8    n/64, |n| <= 127, two's complement      2^0    (-128, -2.0, is read)
 *
 * Scale of a block with the largest magnitude a (2^-126 for zeros), in [2^-127, 2^127]:
 *
 *   mxfp4       2^(floor(log2 a) - emax): values above the largest saturate (OCP MX, section 6.3)
 *   mxfp4:ceil  2^ceil(log2(a / largest value)): none does
 *
 * Codes are rounded to nearest, ties to even.
 *
 * Planes of a row of n values in G = ceil(n / 32) blocks, the last one possibly shorter:
 *
 *   codes   ceil(n bits / 8) bytes, one little-endian stream of bits (drawn in bits.h): of 4 bits
 *           two to a byte, even index low
 *   scales  G bytes
 *
 * Source: OCP Microscaling Formats v1.0. */
#include <math.h>
#include <stdio.h>

#include "format/bits.h"
#include "format/format.h"
#include "format/minifloat.h"
#include "format/scale.h"
#include "format/word.h"

enum { BLOCK = 32 };
enum { RULE_FLOOR = 0, RULE_CEIL = 16 }; /* nb_format.variant: index into `types` | rule */

#define INT8_UNIT 64.0f /* codes per 1.0 of mxint8 */

static const struct {
    const char *name;
    int bits;
    nb_minifloat value; /* NB_N_MINIFLOATS: mxint8 */
    int emax;
    float max;
    nb_dtype codes;
} types[] = {
    {"mxfp4", 4, NB_E2M1, 2, 6, NB_U8},
    {"mxfp6", 6, NB_E2M3, 2, 7.5f, NB_U8},
    {"mxfp6e3m2", 6, NB_E3M2, 4, 28, NB_U8},
    {"mxfp8", 8, NB_E4M3, 8, 448, NB_F8_E4M3},
    {"mxfp8e5m2", 8, NB_E5M2, 15, 57344, NB_F8_E5M2},
    {"mxint8", 8, NB_N_MINIFLOATS, 0, 127 / INT8_UNIT, NB_I8},
};

static int type_of(const nb_format *f) { return f->variant & 15; }

/* ---- words ----------------------------------------------------------------------------- */

static int parse_mx(const char *word, nb_format *f, nb_error *err)
{
    for (size_t i = 0; i < NB_COUNT(types); i++) {
        const char *s = word;
        if (!nb_word_take(&s, types[i].name) || (*s && *s != ':')) continue;
        bool ceil = nb_word_take(&s, ":ceil");
        if (*s) return nb_word_fail(word, "expected :ceil or nothing at the end", err);
        f->bits = types[i].bits;
        f->sym = true;
        f->group = BLOCK;
        f->variant = (int)i | (ceil ? RULE_CEIL : RULE_FLOOR);
        snprintf(f->word, sizeof f->word, "%s%s", types[i].name, ceil ? ":ceil" : "");
        return 1;
    }
    return 0;
}

static unsigned uses_mx(const nb_format *f)
{
    NB_UNUSED(f);
    return NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV;
}

/* ---- one block ------------------------------------------------------------------------- */

static float e8m0_value(uint8_t byte) { return byte == 255 ? NAN : ldexpf(1, byte - 127); }

static void fit_mx(const nb_format *f, const float *w, const float *importance, int64_t n,
                   float clip_lo, float clip_hi, nb_qparam *p)
{
    NB_UNUSED(importance); /* a range, not a search */
    int t = type_of(f), e;
    float max = nb_group_absmax(w, n, clip_lo, clip_hi);
    if (max == 0) max = 0x1p-126f;
    if (f->variant & RULE_CEIL) {
        double m = frexp((double)max / (double)types[t].max, &e); /* = m 2^e, m in [1/2, 1) */
        if (m == 0.5) e--;
    } else {
        e = ilogbf(max) - types[t].emax;
    }
    int hi = 127 - types[t].emax; /* the largest value stays finite */
    e = e < -127 ? -127 : e > hi ? hi : e;
    *p = (nb_qparam){.scale = ldexpf(1, e), .id = (uint8_t)(e + 127)};
}

static void encode_mx(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                      uint8_t *codes)
{
    nb_minifloat value = types[type_of(f)].value;
    if (value != NB_N_MINIFLOATS) {
        nb_minifloat_encode_row(value, p->scale, w, n, codes);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        float x = w[i] / p->scale * INT8_UNIT;
        codes[i] = (uint8_t)(int8_t)rintf(fmaxf(fminf(x, 127), -127));
    }
}

static void decode_mx(const nb_format *f, const nb_qparam *p, const uint8_t *codes, int64_t n,
                      float *w)
{
    nb_minifloat value = types[type_of(f)].value;
    if (value != NB_N_MINIFLOATS) {
        nb_minifloat_decode_row(value, p->scale, codes, n, w);
        return;
    }
    for (int64_t i = 0; i < n; i++) w[i] = (float)(int8_t)codes[i] / INT8_UNIT * p->scale;
}

static void round_each_mx(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                          uint8_t *codes, float *back)
{
    nb_minifloat value = types[type_of(f)].value;
    if (value != NB_N_MINIFLOATS) {
        nb_minifloat_round_each(value, p, w, n, codes, back);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        encode_mx(f, p + i, w + i, 1, codes + i);
        decode_mx(f, p + i, codes + i, 1, back + i);
    }
}

/* ---- rows ------------------------------------------------------------------------------ */

static int planes_mx(const nb_format *f, int64_t n_in, nb_plane_spec out[NB_MAX_PLANES])
{
    int64_t groups = nb_format_groups(f, n_in), bytes = nb_bits_bytes(n_in, f->bits);
    out[0] = (nb_plane_spec){"codes", types[type_of(f)].codes, bytes, bytes};
    out[1] = (nb_plane_spec){"scales", NB_U8, groups, groups};
    return 2;
}

static nb_qparam load_param(const uint8_t *const plane[], int64_t g)
{
    return (nb_qparam){.scale = e8m0_value(plane[1][g]), .id = plane[1][g]};
}

static void pack_row_mx(const nb_format *f, const uint8_t *codes, const nb_qparam *p, int64_t n_in,
                        uint8_t *const plane[])
{
    nb_bits_pack(codes, n_in, f->bits, plane[0]);
    for (int64_t g = 0; g < nb_format_groups(f, n_in); g++) plane[1][g] = p[g].id;
}

static void unpack_row_mx(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                          uint8_t *codes, nb_qparam *p)
{
    nb_bits_unpack(plane[0], n_in, f->bits, codes);
    for (int64_t g = 0; g < nb_format_groups(f, n_in); g++) p[g] = load_param(plane, g);
}

static void dequant_row_mx(const nb_format *f, const uint8_t *const plane[], int64_t n_in, float *w)
{
    for (int64_t g = 0; g < nb_format_groups(f, n_in); g++) {
        uint8_t codes[BLOCK];
        nb_qparam p = load_param(plane, g);
        int64_t at = nb_group_begin(f, g), n = nb_group_length(f, n_in, g);
        nb_bits_unpack(plane[0] + at * f->bits / 8, n, f->bits, codes);
        decode_mx(f, &p, codes, n, w + at);
    }
}

const nb_format_family nb_format_family_mx = {
    .name = "mx",
    .usage = "mx{fp4|fp6|fp6e3m2|fp8|fp8e5m2|int8}[:ceil]",
    .parse = parse_mx,
    .uses = uses_mx,
    .planes = planes_mx,
    .fit = fit_mx,
    .encode = encode_mx,
    .decode = decode_mx,
    .pack_row = pack_row_mx,
    .unpack_row = unpack_row_mx,
    .dequant_row = dequant_row_mx,
    .round_each = round_each_mx,
};
