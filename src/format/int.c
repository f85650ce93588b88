/* Uniform integers of 2 to 8 bits: "int4:g128", "int3:row:sym", "int8:row:sym:f32", "int8:token".
 *
 *   w = (code - zero) * scale            one scale and one zero per group of a row
 *
 *   asym   codes 0 .. 2^bits - 1, zero stored (OmniQuant eq. 2; rules for partial and one-sided
 *          groups: an interval that always contains 0, so that 0 <= zero <= 2^bits - 1)
 *   sym    zero = 2^(bits-1) - 1 fixed; fit and encode use the levels -zero .. +zero, code
 *          2 zero + 1 is legal when read
 *
 *   gN     groups of N inputs, N a multiple of 8 (so every group begins on a byte); fp16 scales,
 *          fp32 where the word ends in ":f32"
 *   row    one group; its scale as of groups
 *   token  one group per row of activations or of the KV cache; the scale stays fp32
 *
 * Planes of a row of n values in G groups, bit 0 the lowest bit of a byte:
 *
 *   codes   ceil(n bits / 8) bytes, one little-endian stream of bits (drawn in bits.h)
 *   scales  G x fp16 or G x fp32, little-endian
 *   zeros   asym only: ceil(G bits / 8) bytes, packed as the codes are
 *
 * The scale is rounded to its stored type first; zero and codes follow from the rounded value, so
 * that what is stored is what was fitted. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/bits.h"
#include "format/format.h"
#include "format/scale.h"
#include "format/word.h"

#define SCALE_MIN_ASYM 1e-5f /* OmniQuant section 3.1: absolute */

/* nb_format.variant: type of the scale; ONLINE is the fp32 of activations and KV cache. */
enum { STORED_F16, STORED_F32, ONLINE };

static bool is_wide(const nb_format *f) { return f->variant != STORED_F16; }

static int32_t code_max(const nb_format *f) { return (1 << f->bits) - 1; }

static int32_t sym_zero(const nb_format *f) { return (1 << (f->bits - 1)) - 1; }

/* ---- words ----------------------------------------------------------------------------- */

static int parse_int(const char *word, nb_format *f, nb_error *err)
{
    if (strncmp(word, "int", 3) != 0) return 0;
    const char *s = word + 3;
    if (s[0] < '2' || s[0] > '8' || s[1] != ':') {
        return nb_word_fail(word, "expected int2: to int8:, then row, token or gN", err);
    }
    f->bits = s[0] - '0';
    s += 2;
    nb_grain grain;
    if (!nb_word_take_grain(&s, &grain, &f->group)) {
        return nb_word_fail(word, "expected row, token or gN", err);
    }
    if (f->group % 8 != 0 || f->group > NB_GROUP_MAX) {
        return nb_word_fail(word, "a group must be a multiple of 8 from 8 to 65536", err);
    }
    bool token = grain == NB_GRAIN_TOKEN;
    f->sym = nb_word_take(&s, ":sym") || (!nb_word_take(&s, ":asym") && token);
    f->variant = token ? ONLINE : nb_word_take(&s, ":f32") ? STORED_F32 : STORED_F16;
    if (*s) {
        return nb_word_fail(word, "expected at the end :sym or :asym, then :f32 (but of token)",
                            err);
    }
    char size[16];
    nb_word_print_grain(size, grain, f->group);
    const char *tail = f->sym == token ? "" : f->sym ? ":sym" : ":asym";
    const char *scale = f->variant == STORED_F32 ? ":f32" : "";
    snprintf(f->word, sizeof f->word, "int%d:%s%s%s", f->bits, size, tail, scale);
    return 1;
}

static unsigned uses_int(const nb_format *f)
{
    return f->variant == ONLINE ? NB_FOR_ACTS | NB_FOR_KV : NB_FOR_WEIGHTS;
}

/* ---- one group ------------------------------------------------------------------------- */

static void fit_int(const nb_format *f, const float *w, const float *importance, int64_t n,
                    float clip_lo, float clip_hi, nb_qparam *p)
{
    NB_UNUSED(importance); /* a range, not a search */
    float lo, hi;
    bool wide = is_wide(f);
    nb_group_range(w, n, clip_lo, clip_hi, &lo, &hi);
    *p = (nb_qparam){.scale = 1, .zero = f->sym ? sym_zero(f) : 0};
    if (lo == 0 && hi == 0) return;
    if (f->sym) {
        p->scale = nb_scale_round(fmaxf(-lo, hi) / (float)sym_zero(f), wide);
        return;
    }
    float q = (float)code_max(f);
    p->scale = nb_scale_round(fmaxf((hi - lo) / q, SCALE_MIN_ASYM), wide);
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

/* A column: encode_int and decode_int with parameters that change from value to value. */
static void round_each_int(const nb_format *f, const nb_qparam *restrict p, const float *restrict w,
                           int64_t n, uint8_t *restrict codes, float *restrict back)
{
    int32_t max = code_max(f);
    bool sym = f->sym;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float scale = p[i].scale, lo = (float)-p[i].zero;
        float hi = (float)(sym ? p[i].zero : max - p[i].zero);
        float x = w[i] / scale;
        x = x < lo ? lo : x;
        x = x > hi ? hi : x;
        int32_t level = round_even(x);
        codes[i] = (uint8_t)(level + p[i].zero);
        back[i] = (float)level * scale;
    }
}

/* ---- rows ------------------------------------------------------------------------------ */

static int planes_int(const nb_format *f, int64_t n_in, nb_plane_spec out[NB_MAX_PLANES])
{
    int64_t groups = nb_format_groups(f, n_in), bytes = nb_bits_bytes(n_in, f->bits);
    bool wide = is_wide(f);
    out[0] = (nb_plane_spec){"codes", NB_U8, bytes, bytes};
    out[1] = (nb_plane_spec){"scales", wide ? NB_F32 : NB_F16, groups, groups * (wide ? 4 : 2)};
    if (f->sym) return 2;
    bytes = nb_bits_bytes(groups, f->bits);
    out[2] = (nb_plane_spec){"zeros", NB_U8, bytes, bytes};
    return 3;
}

/* Parameters of group g from the side planes. */
static nb_qparam load_param(const nb_format *f, const uint8_t *const plane[], int64_t g)
{
    nb_qparam p = {.scale = nb_scale_load(plane[1], g, is_wide(f)), .zero = sym_zero(f)};
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
    nb_bits_pack(codes, n_in, f->bits, plane[0]);
    for (int64_t g = 0; g < groups; g++) nb_scale_save(plane[1], g, p[g].scale, is_wide(f));
    if (f->sym) return;
    for (int64_t g = 0; g < groups; g += 8) { /* eight zeros fill whole bytes, too */
        uint8_t zeros[8];
        int m = groups - g < 8 ? (int)(groups - g) : 8;
        for (int k = 0; k < m; k++) zeros[k] = (uint8_t)p[g + k].zero;
        nb_bits_pack(zeros, m, f->bits, plane[2] + g / 8 * f->bits);
    }
}

static void unpack_row_int(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                           uint8_t *codes, nb_qparam *p)
{
    int64_t groups = nb_format_groups(f, n_in);
    nb_bits_unpack(plane[0], n_in, f->bits, codes);
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
            nb_bits_unpack(plane[0] + i * f->bits / 8, n, f->bits, codes);
            decode_int(f, &p, codes, n, w + i);
        }
    }
}

const nb_format_family nb_format_family_int = {
    .name = "int",
    .usage = "int{2..8}:{row|gN|token}[:sym|:asym][:f32]",
    .parse = parse_int,
    .uses = uses_int,
    .planes = planes_int,
    .fit = fit_int,
    .encode = encode_int,
    .decode = decode_int,
    .pack_row = pack_row_int,
    .unpack_row = unpack_row_int,
    .dequant_row = dequant_row_int,
    .round_each = round_each_int,
};
