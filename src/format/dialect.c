/* BlockDialect: "dialect:b32" and its sizes b16, b64, b128. The codec is dialect_codec.c; here are
 * words, rows and which rule chooses:
 *
 *   dialect:bN       weights by the least squared error (fit), data that arrives online by the
 *                    two stages (fit_online), as the paper has it (D15)
 *   dialect:bN:mse   the least error for both       dialect:bN:2s   the two stages for both
 *   dialect:RxC      evaluation only: blocks of R rows (outputs, tokens) and C inputs, 4x4, 4x8 or
 *                    8x8 (appendix G of the paper has 8x4 for the last two in weights [K, N]: the
 *                    same after transposing). Rows are stored as ever, in groups of C: each of the
 *                    R repeats exponent and dialect
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
#include "format/dialect.h"
#include "format/scale.h"
#include "format/ste.h"
#include "format/word.h"

extern const nb_format_family nb_format_family_dialect;
extern const nb_format_family nb_format_family_dialect2d;

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

/* What follows the block. */
static int take_rule(const char *word, const char *s, nb_format *f, nb_error *err)
{
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

static int parse_dialect(const char *word, nb_format *f, nb_error *err)
{
    const char *s = word;
    if (!nb_word_take(&s, "dialect")) return 0;
    if (nb_word_take(&s, ":")) f->group = take_block(&s);
    if (f->group > 0) return take_rule(word, s, f, err);
    return nb_word_fail(word, "expected dialect: and b16, b32, b64, b128, 4x4, 4x8 or 8x8", err);
}

static int parse_dialect2d(const char *word, nb_format *f, nb_error *err)
{
    static const struct {
        const char *name;
        int rows, cols;
    } tiles[] = {{"dialect:4x4", 4, 4}, {"dialect:4x8", 4, 8}, {"dialect:8x8", 8, 8}};
    for (size_t i = 0; i < NB_COUNT(tiles); i++) {
        const char *s = word;
        if (!nb_word_take(&s, tiles[i].name)) continue;
        f->tile = tiles[i].rows;
        f->group = tiles[i].cols;
        return take_rule(word, s, f, err);
    }
    return 0;
}

static unsigned uses_dialect2d(const nb_format *f)
{
    NB_UNUSED(f);
    return NB_FOR_WEIGHTS | NB_FOR_ACTS;
}

static unsigned uses_dialect(const nb_format *f)
{
    NB_UNUSED(f);
    return NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV;
}

/* ---- scale and exponent byte ----------------------------------------------------------- */

/* 2^(SE - 1) for SE = byte - 127: the field of the float is byte - 1; the lowest two, 2^-128 and
 * 2^-127, are subnormal. */
float nb_dialect_scale(unsigned byte)
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

static nb_dialect_rule rule_of(const nb_format *f, bool least_error)
{
    bool bd5 = f->variant & CLAMP_BD5;
    return (nb_dialect_rule){
        .least_error = least_error,
        .se_min = bd5 ? NB_DIALECT_SE_MIN_BD5 : NB_DIALECT_SE_MIN,
        .se_max = bd5 ? NB_DIALECT_SE_MAX_BD5 : NB_DIALECT_SE_MAX,
    };
}

nb_dialect_rule nb_dialect_online_rule(const nb_format *f)
{
    return rule_of(f, f->variant & RULE_MSE);
}

static nb_qparam fit_block(nb_dialect_rule rule, const float *w, const float *importance, int64_t n,
                           uint32_t max)
{
    nb_dialect d = nb_dialect_fit(&rule, w, importance, n, max);
    return (nb_qparam){.scale = nb_dialect_scale((unsigned)(d.se + 127)), .id = (uint8_t)d.id};
}

/* Clip ratios shrink the maximum that the exponent and stage 1 see; values beyond saturate. */
static void fit_dialect(const nb_format *f, const float *w, const float *importance, int64_t n,
                        float clip_lo, float clip_hi, nb_qparam *p)
{
    float lo, hi;
    nb_group_range(w, n, clip_lo, clip_hi, &lo, &hi);
    uint32_t top = nb_dialect_magnitude(fmaxf(-lo, hi));
    *p = fit_block(rule_of(f, !(f->variant & RULE_2S)), w, importance, n, top);
}

static void fit_online_dialect(const nb_format *f, const float *x, int64_t n, nb_qparam *p)
{
    *p = fit_block(nb_dialect_online_rule(f), x, NULL, n, nb_dialect_max(x, n));
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

static unsigned load_id(const uint8_t *const plane[], int64_t g)
{
    return plane[2][g / 2] >> g % 2 * 4 & 15;
}

static nb_qparam load_param(const uint8_t *const plane[], int64_t g)
{
    return (nb_qparam){.scale = nb_dialect_scale(plane[1][g]), .id = (uint8_t)load_id(plane, g)};
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

/* All rows of a tile repeat the ids of its blocks: the first one has them. */
void nb_dialect_count(const nb_matrix *m, int64_t count[NB_DIALECTS])
{
    const nb_format *f = &m->format;
    if (!nb_format_is_dialect(f) && f->family != &nb_format_family_dialect2d) return;
    int64_t groups = nb_format_groups(f, m->n_in), tile = f->tile > 0 ? f->tile : 1;
    for (int64_t r = 0; r < m->n_out; r += tile) {
        const uint8_t *plane[NB_MAX_PLANES];
        nb_matrix_row(m, r, plane);
        for (int64_t g = 0; g < groups; g++) count[load_id(plane, g)]++;
    }
}

/* ---- rows as integers ------------------------------------------------------------------ */

bool nb_format_is_dialect(const nb_format *f) { return f->family == &nb_format_family_dialect; }

bool nb_dialect_is_pair(const nb_format *a, const nb_format *b)
{
    return nb_format_is_dialect(a) && nb_format_is_dialect(b) && a->group == b->group;
}

void nb_dialect_quantize_row(const nb_format *f, const float *x, int64_t n, int8_t *half,
                             uint8_t *exponent)
{
    int64_t groups = nb_format_groups(f, n);
    for (int64_t g = 0; g < groups; g++) {
        uint8_t codes[NB_DIALECT_BLOCK_MAX];
        nb_qparam p;
        int64_t at = nb_group_begin(f, g), m = nb_group_length(f, n, g);
        fit_online_dialect(f, x + at, m, &p);
        encode_dialect(f, &p, x + at, m, codes);
        for (int64_t i = 0; i < m; i++) half[at + i] = nb_dialect_half[p.id][codes[i]];
        exponent[g] = (uint8_t)byte_of_scale(p.scale);
    }
}

void nb_dialect_decode_row(const nb_format *f, const uint8_t *const plane[], int64_t n,
                           int8_t *half, uint8_t *exponent)
{
    int64_t groups = nb_format_groups(f, n);
    for (int64_t g = 0; g < groups; g++) {
        int64_t at = nb_group_begin(f, g), m = nb_group_length(f, n, g);
        const int8_t *values = nb_dialect_half[load_id(plane, g)];
        for (int64_t i = at; i < at + m; i++) half[i] = values[plane[0][i / 2] >> i % 2 * 4 & 15];
        exponent[g] = plane[1][g];
    }
}

static int64_t find_nan_dialect(const nb_format *f, const uint8_t *const plane[], int64_t n_in)
{
    return nb_e8m0_find_nan(plane[1], nb_format_groups(f, n_in));
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
    .find_nan = find_nan_dialect,
};

/* Its blocks are not those of the kernels, hence a family of its own. */
const nb_format_family nb_format_family_dialect2d = {
    .name = "dialect2d",
    .usage = "dialect:{4x4|4x8|8x8}[:mse|:2s][:bd5]",
    .parse = parse_dialect2d,
    .uses = uses_dialect2d,
    .planes = planes_dialect,
    .fit = fit_dialect,
    .fit_online = fit_online_dialect,
    .encode = encode_dialect,
    .decode = decode_dialect,
    .grid = grid_dialect,
    .pack_row = pack_row_dialect,
    .unpack_row = unpack_row_dialect,
    .dequant_row = dequant_row_dialect,
    .find_nan = find_nan_dialect,
};
