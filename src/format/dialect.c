/* BlockDialect: "dialect:b32" and its sizes b16, b64, b128. The codec is dialect_codec.c; here are
 * words, rows and which rule chooses:
 *
 *   dialect:bN       weights by the least squared error (fit), data that arrives online by the
 *                    two stages (fit_online), as the paper has it (D15)
 *   dialect:bN:mse   the least error for both       dialect:bN:2s   the two stages for both
 *   ...:bd5          exponents limited to the paper's five bits, -16 .. 15 (D8); stored as ever
 *
 *   w = half[id][code] * 2^(SE - 1)          qparam: scale = 2^(SE - 1), id = dialect, zero = 0
 *
 * Planes of a row of n values in G = ceil(n / N) blocks (D14; the last block may be shorter):
 *
 *   codes     ceil(n / 2) bytes     byte i |s idx idx idx | s idx idx idx|
 *                                           \_ code 2i+1 _/ \_ code 2i _/   an odd end: high half 0
 *   scales    G bytes               SE + 127, the byte of an E8M0 scale (2^SE); 255 is NaN
 *   dialects  ceil(G / 2) bytes     byte i |id of block 2i+1 | id of block 2i|   as the codes are
 *
 * That is 4 + 12/N bits per value. fit gives exponents up to 125. Any bytes unpack: code 8 is 0,
 * exponents 126 and 127 may overflow to Inf, byte 255 gives NaN, so that a check for finite weights
 * refuses the row (D7). */
#include <math.h>
#include <stdio.h>

#include "format/bits.h"
#include "format/dialect_codec.h"
#include "format/format.h"
#include "format/scale.h"
#include "format/ste.h"
#include "format/word.h"

enum { RULE_OF_USE = 0, RULE_MSE = 1, RULE_2S = 2, CLAMP_BD5 = 4 }; /* nb_format.variant: bits */

/* ---- words ----------------------------------------------------------------------------- */

static int take_block(const char **s)
{
    static const struct {
        const char *name;
        int size;
    } blocks[] = {{"b128", 128}, {"b16", 16}, {"b32", 32}, {"b64", 64}};
    for (size_t i = 0; i < NB_COUNT(blocks); i++) {
        if (nb_word_take(s, blocks[i].name)) return blocks[i].size;
    }
    return 0;
}

static int parse_dialect(const char *word, nb_format *f, nb_error *err)
{
    const char *s = word;
    if (!nb_word_take(&s, "dialect")) return 0;
    if (nb_word_take(&s, ":")) f->group = take_block(&s);
    if (f->group == 0)
        return nb_word_fail(word, "expected dialect: and b16, b32, b64 or b128", err);
    if (nb_word_take(&s, ":mse")) f->variant = RULE_MSE;
    if (f->variant == RULE_OF_USE && nb_word_take(&s, ":2s")) f->variant = RULE_2S;
    if (nb_word_take(&s, ":bd5")) f->variant |= CLAMP_BD5;
    if (*s)
        return nb_word_fail(word, "expected :mse or :2s, then :bd5, or nothing at the end", err);
    f->bits = 4;
    f->sym = true;
    snprintf(f->word, sizeof f->word, "%s", word); /* there is one spelling of each */
    return 1;
}

static unsigned uses_dialect(const nb_format *f)
{
    NB_UNUSED(f);
    return NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV;
}

/* ---- scale and exponent byte ----------------------------------------------------------- */

/* 2^(SE - 1) for SE = byte - 127: the field of the float is byte - 1; the lowest two, 2^-128 and
 * 2^-127, are subnormal. */
static float scale_of_byte(unsigned byte)
{
    if (byte == 255) return NAN;
    return nb_f32_from_bits(byte < 2 ? 0x00200000u << byte : (byte - 1) << 23);
}

static unsigned byte_of_scale(float scale)
{
    uint32_t bits = nb_f32_bits(scale) & 0x7fffffffu, field = bits >> 23;
    if (field == 0) return bits >> 22;
    return field < 255 ? field + 1 : 255;
}

static nb_dialect dialect_of(const nb_qparam *p)
{
    return (nb_dialect){.se = (int)byte_of_scale(p->scale) - 127, .id = p->id};
}

/* ---- one block ------------------------------------------------------------------------- */

static nb_qparam fit_block(const nb_format *f, bool least_error, const float *w,
                           const float *importance, int64_t n, uint32_t max)
{
    bool bd5 = f->variant & CLAMP_BD5;
    nb_dialect_rule rule = {
        .least_error = least_error,
        .se_min = bd5 ? NB_DIALECT_SE_MIN_BD5 : NB_DIALECT_SE_MIN,
        .se_max = bd5 ? NB_DIALECT_SE_MAX_BD5 : NB_DIALECT_SE_MAX,
    };
    nb_dialect d = nb_dialect_fit(&rule, w, importance, n, max);
    return (nb_qparam){.scale = scale_of_byte((unsigned)(d.se + 127)), .id = (uint8_t)d.id};
}

/* Clip ratios shrink the maximum that the exponent and stage 1 see; values beyond saturate. */
static void fit_dialect(const nb_format *f, const float *w, const float *importance, int64_t n,
                        float clip_lo, float clip_hi, nb_qparam *p)
{
    float lo, hi;
    nb_group_range(w, n, clip_lo, clip_hi, &lo, &hi);
    uint32_t top = nb_dialect_magnitude(fmaxf(-lo, hi));
    *p = fit_block(f, !(f->variant & RULE_2S), w, importance, n, top);
}

static void fit_online_dialect(const nb_format *f, const float *x, int64_t n, nb_qparam *p)
{
    *p = fit_block(f, f->variant & RULE_MSE, x, NULL, n, nb_dialect_max(x, n));
}

static void encode_dialect(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                           uint8_t *codes)
{
    NB_UNUSED(f);
    nb_dialect_encode(dialect_of(p), w, n, codes);
}

/* Exact: h has four bits, and 2^(SE - 1) >= 2^-128. */
static void decode_dialect(const nb_format *f, const nb_qparam *p, const uint8_t *codes, int64_t n,
                           float *w)
{
    NB_UNUSED(f);
    const int8_t *half = nb_dialect_half[p->id];
    for (int64_t i = 0; i < n; i++) w[i] = (float)half[codes[i]] * p->scale;
}

static void grid_dialect(const nb_format *f, const nb_qparam *p, nb_grid *out)
{
    NB_UNUSED(f);
    const int8_t *half = nb_dialect_half[p->id];
    *out = nb_grid_symmetric(half[7], (float)(half[7] - half[6]), NB_SCALE_STEPPED);
}

/* ---- rows ------------------------------------------------------------------------------ */

static int planes_dialect(const nb_format *f, int64_t n_in, nb_plane_spec out[NB_MAX_PLANES])
{
    int64_t groups = nb_format_groups(f, n_in);
    int64_t codes = nb_bits_bytes(n_in, 4), ids = nb_bits_bytes(groups, 4);
    out[0] = (nb_plane_spec){"codes", NB_U8, codes, codes};
    out[1] = (nb_plane_spec){"scales", NB_U8, groups, groups};
    out[2] = (nb_plane_spec){"dialects", NB_U8, ids, ids};
    return 3;
}

static nb_qparam load_param(const uint8_t *const plane[], int64_t g)
{
    unsigned ids = plane[2][g / 2];
    return (nb_qparam){.scale = scale_of_byte(plane[1][g]), .id = g % 2 ? ids >> 4 : ids & 15};
}

static void pack_row_dialect(const nb_format *f, const uint8_t *codes, const nb_qparam *p,
                             int64_t n_in, uint8_t *const plane[])
{
    int64_t groups = nb_format_groups(f, n_in);
    nb_bits_pack(codes, n_in, 4, plane[0]);
    for (int64_t g = 0; g < groups; g++) {
        uint8_t *ids = &plane[2][g / 2];
        plane[1][g] = (uint8_t)byte_of_scale(p[g].scale);
        *ids = (uint8_t)(g % 2 ? *ids | p[g].id << 4 : p[g].id);
    }
}

static void unpack_row_dialect(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                               uint8_t *codes, nb_qparam *p)
{
    int64_t groups = nb_format_groups(f, n_in);
    nb_bits_unpack(plane[0], n_in, 4, codes);
    for (int64_t g = 0; g < groups; g++) p[g] = load_param(plane, g);
}

static void dequant_row_dialect(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                                float *w)
{
    int64_t groups = nb_format_groups(f, n_in);
    for (int64_t g = 0; g < groups; g++) {
        uint8_t codes[NB_DIALECT_BLOCK_MAX];
        nb_qparam p = load_param(plane, g);
        int64_t at = nb_group_begin(f, g), n = nb_group_length(f, n_in, g);
        nb_bits_unpack(plane[0] + at / 2, n, 4, codes);
        decode_dialect(f, &p, codes, n, w + at);
    }
}

const nb_format_family nb_format_family_dialect = {
    .name = "dialect",
    .usage = "dialect:{b16|b32|b64|b128}[:mse|:2s][:bd5]",
    .parse = parse_dialect,
    .uses = uses_dialect,
    .planes = planes_dialect,
    .fit = fit_dialect,
    .fit_online = fit_online_dialect,
    .encode = encode_dialect,
    .decode = decode_dialect,
    .grid = grid_dialect,
    .pack_row = pack_row_dialect,
    .unpack_row = unpack_row_dialect,
    .dequant_row = dequant_row_dialect,
};
