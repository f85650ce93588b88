/* Floats of 4, 6 and 8 bits with one scale per group: "fp4:g256", "fp6:row", "fp8:token".
 *
 *   w = value(code) * scale          code and value: minifloat.h
 *
 *   fp4 E2M1   fp4e3m0 E3M0   fp6 E2M3   fp6e3m2 E3M2   fp8 E4M3   fp8e5m2 E5M2
 *
 *   gN      groups of N inputs that fill whole bytes (N even for fp4, a multiple of 4 for fp6)
 *   row     one group
 *   token   one group per row of activations or of the KV cache; the scale stays fp32
 *   m1, m2  scales of 4-bit floats tied to powers of two (below)
 *   paper   round as the paper does (minifloat.h), with its largest values: for evaluation. Its
 *           8-bit codes have no byte in a file, so there it goes with token alone
 *
 * Planes of a row of n values in G groups, bit 0 the lowest bit of a byte:
 *
 *   codes      ceil(n bits / 8) bytes, one little-endian stream of bits (drawn in bits.h)
 *   free       scales     G x fp16 (token: 1 x fp32)
 *   m1         exponents  G x int8, k: scale = 2^k
 *   m2         exponents  ceil(G / 2) bytes, |e of group 2i+1|e of group 2i|: scale = base 2^-e;
 *                         15 is reserved
 *              bases      1 x fp32
 *
 * Fit (ZeroQuant-FP, section 4 of its specification): S = largest |w| / largest value, in fp32;
 * 1 for a group of zeros. A free scale is rounded to its stored type first and codes follow from
 * what is stored; they saturate, so a scale rounded down does no harm.
 *
 *   m2   base = largest S of the row; e is the floor or the ceiling of log2(base / S), whichever
 *        gives the lower squared error (weighted by importance, in double), the smaller e if both
 *        do; 0 <= e <= 14, or 11 for E3M0: the range in which the cast to E4M3 is exact
 *        (fp4_cast.h). The ceiling clips; it is taken only when it wins.
 *   m1   the same with base = 2^k of the group with the largest scale, so that scale = 2^k
 *   :floor, :ceil   always the one or the other: of log2(base / S) in m2, of log2 S in m1; "ceil"
 *        is the paper's text for both */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/bits.h"
#include "format/fp.h"
#include "format/scale.h"
#include "format/word.h"

enum { PIECE = 256 }; /* values decoded at a time: a multiple of 8 */

/* Exponents k of m1: 2^-126 is the least normal number, 16 * 2^123 is finite. */
enum { K_MIN = -126, K_MAX = 123 };

/* ---- variants -------------------------------------------------------------------------- */

typedef enum scale_kind { SCALE_F16, SCALE_F32, SCALE_M1, SCALE_M2 } scale_kind;
typedef enum pick_rule { PICK_BEST, PICK_FLOOR, PICK_CEIL } pick_rule;

/* nb_format.variant: type | kind << 4 | pick << 8 | paper << 12 */
static int make_variant(nb_minifloat t, scale_kind kind, pick_rule pick, bool paper)
{
    return (int)t | (int)kind << 4 | (int)pick << 8 | (int)paper << 12;
}

nb_minifloat nb_fp_type(const nb_format *f) { return (nb_minifloat)(f->variant & 15); }

static scale_kind kind_of(const nb_format *f) { return (scale_kind)(f->variant >> 4 & 15); }

static pick_rule pick_of(const nb_format *f) { return (pick_rule)(f->variant >> 8 & 15); }

static bool is_paper(const nb_format *f) { return f->variant >> 12 & 1; }

bool nb_fp_has_base(const nb_format *f) { return kind_of(f) == SCALE_M1 || kind_of(f) == SCALE_M2; }

static float max_value(const nb_format *f)
{
    const nb_minifloat_info *t = &nb_minifloats[nb_fp_type(f)];
    return is_paper(f) ? t->max_paper : t->max;
}

/* ---- words ----------------------------------------------------------------------------- */

static const struct {
    const char *name;
    nb_minifloat type;
} names[] = {{"fp4", NB_E2M1},     {"fp4e3m0", NB_E3M0}, {"fp6", NB_E2M3},
             {"fp6e3m2", NB_E3M2}, {"fp8", NB_E4M3},     {"fp8e5m2", NB_E5M2}};

/* Index of the name at the front of *s, which a colon or the end follows; -1: none. */
static int take_name(const char **s)
{
    for (size_t i = 0; i < NB_COUNT(names); i++) {
        const char *rest = *s;
        if (!nb_word_take(&rest, names[i].name) || (*rest && *rest != ':')) continue;
        *s = rest;
        return (int)i;
    }
    return -1;
}

/* What follows the grain: [:m1|:m2 [:floor|:ceil]] [:paper]. */
static int take_tail(const char *word, const char *s, nb_minifloat t, nb_grain grain, nb_format *f,
                     nb_error *err)
{
    scale_kind kind = grain == NB_GRAIN_TOKEN ? SCALE_F32 : SCALE_F16;
    pick_rule pick = PICK_BEST;
    bool m1 = nb_word_take(&s, ":m1"), m2 = !m1 && nb_word_take(&s, ":m2");
    if (m1 || m2) {
        if (f->bits != 4 || grain == NB_GRAIN_TOKEN) {
            return nb_word_fail(word, "m1 and m2 are for fp4 and fp4e3m0 by row or group", err);
        }
        kind = m1 ? SCALE_M1 : SCALE_M2;
        if (nb_word_take(&s, ":floor")) pick = PICK_FLOOR;
        if (pick == PICK_BEST && nb_word_take(&s, ":ceil")) pick = PICK_CEIL;
    }
    bool paper = nb_word_take(&s, ":paper");
    if (*s) {
        return nb_word_fail(word, "expected :m1 or :m2, :floor or :ceil, :paper or nothing", err);
    }
    if (paper && f->bits == 8 && grain != NB_GRAIN_TOKEN) {
        return nb_word_fail(word, "paper values beyond 448 have no byte: only with token", err);
    }
    f->variant = make_variant(t, kind, pick, paper);
    return 1;
}

static int parse_fp(const char *word, nb_format *f, nb_error *err)
{
    const char *s = word;
    int name = take_name(&s);
    if (name < 0) return 0;
    nb_grain grain;
    f->bits = nb_minifloats[names[name].type].bits;
    f->sym = true;
    if (!nb_word_take(&s, ":") || !nb_word_take_grain(&s, &grain, &f->group)) {
        return nb_word_fail(word, "expected row, token or gN after a colon", err);
    }
    if (f->group * f->bits % 8 != 0 || f->group > NB_GROUP_MAX) {
        return nb_word_fail(word, "a group must fill whole bytes and have at most 65536 values",
                            err);
    }
    if (take_tail(word, s, names[name].type, grain, f, err) < 0) return -1;
    static const char *const kinds[] = {"", "", ":m1", ":m2"}, *const picks[] = {"", ":floor",
                                                                                 ":ceil"};
    char size[16];
    nb_word_print_grain(size, grain, f->group);
    snprintf(f->word, sizeof f->word, "%s:%s%s%s%s", names[name].name, size, kinds[kind_of(f)],
             picks[pick_of(f)], is_paper(f) ? ":paper" : "");
    return 1;
}

static unsigned uses_fp(const nb_format *f)
{
    return kind_of(f) == SCALE_F32 ? NB_FOR_ACTS | NB_FOR_KV : NB_FOR_WEIGHTS;
}

/* ---- codes of one group ---------------------------------------------------------------- */

static void encode_fp(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                      uint8_t *codes)
{
    nb_minifloat t = nb_fp_type(f);
    if (!is_paper(f)) {
        nb_minifloat_encode_row(t, p->scale, w, n, codes);
        return;
    }
    for (int64_t i = 0; i < n; i++) codes[i] = nb_minifloat_encode_paper(t, w[i] / p->scale);
}

static void decode_fp(const nb_format *f, const nb_qparam *p, const uint8_t *codes, int64_t n,
                      float *w)
{
    nb_minifloat t = nb_fp_type(f);
    if (!is_paper(f)) {
        nb_minifloat_decode_row(t, p->scale, codes, n, w);
        return;
    }
    for (int64_t i = 0; i < n; i++) w[i] = nb_minifloat_decode_paper(t, codes[i]) * p->scale;
}

static void round_each_fp(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                          uint8_t *codes, float *back)
{
    nb_minifloat t = nb_fp_type(f);
    if (!is_paper(f)) {
        nb_minifloat_round_each(t, p, w, n, codes, back);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        codes[i] = nb_minifloat_encode_paper(t, w[i] / p[i].scale);
        back[i] = nb_minifloat_decode_paper(t, codes[i]) * p[i].scale;
    }
}

/* ---- fit ------------------------------------------------------------------------------- */

typedef struct group {
    const nb_format *f;
    const float *w, *importance; /* [n]; importance may be NULL */
    int64_t n;
} group;

/* Free scale of the group in fp32; 0 for zeros. */
static float free_scale(const group *g, float clip_lo, float clip_hi)
{
    float absmax = nb_group_absmax(g->w, g->n, clip_lo, clip_hi);
    return absmax > 0 ? fmaxf(absmax / max_value(g->f), FLT_MIN) : 0;
}

static double error_with(const group *g, float scale)
{
    return nb_format_error(g->f, &(nb_qparam){.scale = scale}, g->w, g->importance, g->n);
}

static int clamp(int x, int lo, int hi) { return x < lo ? lo : x > hi ? hi : x; }

/* e in [lo, hi] such that base * 2^-e is the scale of a group with the free scale s > 0. */
static int fit_exponent(const group *g, float base, float s, int lo, int hi)
{
    int e;
    double m = frexp((double)base / (double)s, &e); /* base/s = m 2^e, m in [1/2, 1) */
    int below = clamp(e - 1, lo, hi), above = clamp(m == 0.5 ? e - 1 : e, lo, hi);
    /* In m1 the word's rule is about log2 S = log2 base - log2(base / S): the ends change places.
     */
    pick_rule pick = pick_of(g->f), floor_rule = kind_of(g->f) == SCALE_M1 ? PICK_CEIL : PICK_FLOOR;
    if (pick != PICK_BEST) return pick == floor_rule ? below : above;
    if (below == above) return below;
    double error = error_with(g, ldexpf(base, -below));
    return error_with(g, ldexpf(base, -above)) < error ? above : below;
}

/* Largest exponent under a base: below it values times 2^(largest j - e) are exact in E4M3, where
 * j = -8 .. 6 for E2M1 and -7 .. 4 for E3M0; and base * 2^-e is a normal number. */
static int e_max(const nb_format *f, float base)
{
    int cast = nb_fp_type(f) == NB_E2M1 ? 14 : 11;
    return clamp(ilogbf(base) - K_MIN, 0, cast);
}

/* Base for a group, or row, whose free scale is s: of m2 s itself, of m1 a power of two. */
static float base_alone(const group *g, float s)
{
    if (s == 0) return 1;
    if (kind_of(g->f) == SCALE_M2) return s;
    return ldexpf(1, -fit_exponent(g, 1, s, -K_MAX, -K_MIN));
}

static float fit_base_fp(const nb_format *f, const float *w, const float *importance, int64_t n_in,
                         const float *clip_lo, const float *clip_hi)
{
    if (!nb_fp_has_base(f)) return 0;
    float base = 0;
    for (int64_t i = 0; i < nb_format_groups(f, n_in); i++) {
        int64_t at = nb_group_begin(f, i);
        group g = {f, w + at, importance ? importance + at : NULL, nb_group_length(f, n_in, i)};
        float s = free_scale(&g, clip_lo ? clip_lo[i] : 1, clip_hi ? clip_hi[i] : 1);
        if (s > 0) base = fmaxf(base, base_alone(&g, s));
    }
    return base > 0 ? base : 1;
}

static void fit_fp(const nb_format *f, const float *w, const float *importance, int64_t n,
                   float clip_lo, float clip_hi, nb_qparam *p)
{
    group g = {f, w, importance, n};
    float s = free_scale(&g, clip_lo, clip_hi);
    if (!nb_fp_has_base(f)) {
        float scale = s > 0 ? nb_scale_round(s, kind_of(f) == SCALE_F32) : 1;
        *p = (nb_qparam){.scale = scale};
        return;
    }
    float base = p->base > 0 ? p->base : base_alone(&g, s);
    int e = s > 0 ? fit_exponent(&g, base, s, 0, e_max(f, base)) : 0;
    *p = (nb_qparam){.scale = ldexpf(base, -e), .base = base, .id = (uint8_t)e};
}

/* ---- rows ------------------------------------------------------------------------------ */

static int planes_fp(const nb_format *f, int64_t n_in, nb_plane_spec out[NB_MAX_PLANES])
{
    nb_minifloat t = nb_fp_type(f);
    nb_dtype dtype = t == NB_E4M3 ? NB_F8_E4M3 : t == NB_E5M2 ? NB_F8_E5M2 : NB_U8;
    int64_t groups = nb_format_groups(f, n_in), bytes = nb_bits_bytes(n_in, f->bits);
    out[0] = (nb_plane_spec){"codes", dtype, bytes, bytes};
    switch (kind_of(f)) {
    case SCALE_F16:
        out[1] = (nb_plane_spec){"scales", NB_F16, groups, 2 * groups};
        return 2;
    case SCALE_F32:
        out[1] = (nb_plane_spec){"scales", NB_F32, groups, 4 * groups};
        return 2;
    case SCALE_M1:
        out[1] = (nb_plane_spec){"exponents", NB_I8, groups, groups};
        return 2;
    case SCALE_M2:
        break;
    }
    bytes = nb_bits_bytes(groups, 4);
    out[1] = (nb_plane_spec){"exponents", NB_U8, bytes, bytes};
    out[2] = (nb_plane_spec){"bases", NB_F32, 1, 4};
    return 3;
}

static void pack_row_fp(const nb_format *f, const uint8_t *codes, const nb_qparam *p, int64_t n_in,
                        uint8_t *const plane[])
{
    int64_t groups = nb_format_groups(f, n_in);
    scale_kind kind = kind_of(f);
    nb_bits_pack(codes, n_in, f->bits, plane[0]);
    if (kind == SCALE_M2) memset(plane[1], 0, (size_t)nb_bits_bytes(groups, 4));
    for (int64_t g = 0; g < groups; g++) {
        if (kind == SCALE_M2) {
            plane[1][g / 2] |= (uint8_t)(p[g].id << g % 2 * 4);
        } else if (kind == SCALE_M1) {
            plane[1][g] = (uint8_t)ilogbf(p[g].scale);
        } else {
            nb_scale_save(plane[1], g, p[g].scale, kind == SCALE_F32);
        }
    }
    if (kind == SCALE_M2) nb_scale_save(plane[2], 0, p[0].base, true);
}

/* Parameters of group g from the side planes; m1: without what the row shares. */
static nb_qparam load_param(const nb_format *f, const uint8_t *const plane[], int64_t g)
{
    scale_kind kind = kind_of(f);
    if (kind == SCALE_M2) {
        float base = nb_scale_load(plane[2], 0, true);
        int e = plane[1][g / 2] >> g % 2 * 4 & 15;
        return (nb_qparam){.scale = ldexpf(base, -e), .base = base, .id = (uint8_t)e};
    }
    if (kind == SCALE_M1) return (nb_qparam){.scale = ldexpf(1, (int8_t)plane[1][g])};
    return (nb_qparam){.scale = nb_scale_load(plane[1], g, kind == SCALE_F32)};
}

static void unpack_row_fp(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                          uint8_t *codes, nb_qparam *p)
{
    int64_t groups = nb_format_groups(f, n_in);
    nb_bits_unpack(plane[0], n_in, f->bits, codes);
    for (int64_t g = 0; g < groups; g++) p[g] = load_param(f, plane, g);
    if (kind_of(f) != SCALE_M1) return;
    float base = 0;
    for (int64_t g = 0; g < groups; g++) base = fmaxf(base, p[g].scale);
    for (int64_t g = 0; g < groups; g++) {
        p[g].base = base;
        p[g].id = (uint8_t)(ilogbf(base) - ilogbf(p[g].scale));
    }
}

static void dequant_row_fp(const nb_format *f, const uint8_t *const plane[], int64_t n_in, float *w)
{
    int64_t groups = nb_format_groups(f, n_in);
    for (int64_t g = 0; g < groups; g++) {
        nb_qparam p = load_param(f, plane, g);
        int64_t begin = nb_group_begin(f, g), end = begin + nb_group_length(f, n_in, g);
        for (int64_t i = begin; i < end; i += PIECE) {
            uint8_t codes[PIECE];
            int64_t n = end - i < PIECE ? end - i : PIECE;
            nb_bits_unpack(plane[0] + i * f->bits / 8, n, f->bits, codes);
            decode_fp(f, &p, codes, n, w + i);
        }
    }
}

const nb_format_family nb_format_family_fp = {
    .name = "fp",
    .usage = "fp{4|4e3m0|6|6e3m2|8|8e5m2}:{row|gN|token}[:m1|:m2[:floor|:ceil]][:paper]",
    .parse = parse_fp,
    .uses = uses_fp,
    .planes = planes_fp,
    .fit_base = fit_base_fp,
    .fit = fit_fp,
    .encode = encode_fp,
    .decode = decode_fp,
    .pack_row = pack_row_fp,
    .unpack_row = unpack_row_fp,
    .dequant_row = dequant_row_fp,
    .round_each = round_each_fp,
};
