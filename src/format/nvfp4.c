/* NVFP4: E2M1 in blocks of 16 with an E4M3 scale each and one fp32 number above them.
 *
 *   w = value(code) * (s * g)        value, s: minifloat.h; the sign of s is not used by writers
 *
 * g is one per row: per row of a weight matrix, per token of activations. Other tools and tensor
 * cores have one per tensor; a tensor of theirs is read by repeating it.
 *
 *   nvfp4     g = a / (6 * 448) for a, the largest magnitude of the row; s = E4M3(b / 6 / g) for b,
 *             that of the block, ties to even; s = 0 makes a block of zeros
 *   nvfp4:46  "four over six": g = a / (6 * 256); a block is encoded with s, which puts its largest
 *             value on 6, and with E4M3(1.5 b / 6 / g), which puts it on 4, where the grid is
 * finer; the second is kept if its squared error (weighted by importance) is strictly lower
 *   :matrix   weights: one g for all rows of a matrix, the largest, which each of them stores
 *
 * Planes of a row of n values in G = ceil(n / 16) blocks, the last one possibly shorter:
 *
 *   codes   ceil(n / 2) bytes |s ee m of code 2i+1|s ee m of code 2i|, an odd end: high half 0
 *   scales  G x E4M3
 *   bases   1 x fp32, g
 *
 * Sources: NVIDIA's NVFP4; J. Cook et al., "Four Over Six", arXiv 2512.02010 and its reference
 * implementation (mit-han-lab/fouroversix). */
#include <stdio.h>
#include <string.h>

#include "format/bits.h"
#include "format/format.h"
#include "format/minifloat.h"
#include "format/scale.h"
#include "format/ste.h"
#include "format/word.h"

enum { BLOCK = 16 };
enum { RULE_6 = 0, RULE_46 = 1 }; /* nb_format.variant */

/* ---- words ----------------------------------------------------------------------------- */

static int parse_nvfp4(const char *word, nb_format *f, nb_error *err)
{
    const char *s = word;
    if (!nb_word_take(&s, "nvfp4")) return 0;
    f->variant = nb_word_take(&s, ":46") ? RULE_46 : RULE_6;
    f->matrix = nb_word_take(&s, ":matrix");
    if (*s) return nb_word_fail(word, "expected :46, :matrix, both or nothing at the end", err);
    f->bits = 4;
    f->sym = true;
    f->group = BLOCK;
    snprintf(f->word, sizeof f->word, "%s", word);
    return 1;
}

static unsigned uses_nvfp4(const nb_format *f)
{
    return f->matrix ? NB_FOR_WEIGHTS : NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV;
}

/* ---- one block ------------------------------------------------------------------------- */

static void encode_nvfp4(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                         uint8_t *codes)
{
    NB_UNUSED(f);
    if (p->scale == 0) {
        memset(codes, 0, (size_t)n);
    } else {
        nb_minifloat_encode_row(NB_E2M1, p->scale, w, n, codes);
    }
}

static void decode_nvfp4(const nb_format *f, const nb_qparam *p, const uint8_t *codes, int64_t n,
                         float *w)
{
    NB_UNUSED(f);
    nb_minifloat_decode_row(NB_E2M1, p->scale, codes, n, w);
}

static void round_each_nvfp4(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                             uint8_t *codes, float *back)
{
    NB_UNUSED(f);
    nb_minifloat_round_each(NB_E2M1, p, w, n, codes, back);
    for (int64_t i = 0; i < n; i++) { /* a scale of 0 gives NaN */
        codes[i] = p[i].scale == 0 ? 0 : codes[i];
        back[i] = p[i].scale == 0 ? 0 : back[i];
    }
}

static nb_qparam param_of(float base, uint8_t s)
{
    return (nb_qparam){.scale = nb_minifloat_decode(NB_E4M3, s) * base, .base = base, .id = s};
}

/* g for the largest magnitude a. */
static float base_of(const nb_format *f, float a)
{
    return a > 0 ? fmaxf(a / (f->variant == RULE_46 ? 6 * 256 : 6 * 448), FLT_MIN) : 1;
}

static float fit_base_nvfp4(const nb_format *f, const float *w, const float *importance,
                            int64_t n_in, const float *clip_lo, const float *clip_hi)
{
    NB_UNUSED(importance);
    float max = 0;
    for (int64_t g = 0; g < nb_format_groups(f, n_in); g++) {
        max = fmaxf(max, nb_group_absmax(w + nb_group_begin(f, g), nb_group_length(f, n_in, g),
                                         clip_lo ? clip_lo[g] : 1, clip_hi ? clip_hi[g] : 1));
    }
    return base_of(f, max);
}

static void fit_nvfp4(const nb_format *f, const float *w, const float *importance, int64_t n,
                      float clip_lo, float clip_hi, nb_qparam *p)
{
    float max = nb_group_absmax(w, n, clip_lo, clip_hi);
    float base = p->base > 0 ? p->base : base_of(f, max), s = max / 6 / base;
    *p = param_of(base, nb_minifloat_encode(NB_E4M3, s));
    if (f->variant == RULE_6) return;
    nb_qparam four = param_of(base, nb_minifloat_encode(NB_E4M3, 1.5f * s));
    if (nb_format_error(f, &four, w, importance, n) < nb_format_error(f, p, w, importance, n)) {
        *p = four;
    }
}

/* The scale of nvfp4 follows the block's maximum as far as an E4M3 can; :46 is a search. */
static void grid_nvfp4(const nb_format *f, const nb_qparam *p, nb_grid *out)
{
    NB_UNUSED(p);
    nb_scale_rule rule = f->variant == RULE_6 ? NB_SCALE_ABSMAX : NB_SCALE_STEPPED;
    *out = nb_grid_symmetric(6, nb_minifloat_ulp(NB_E2M1, 6), rule);
}

/* ---- rows ------------------------------------------------------------------------------ */

static int planes_nvfp4(const nb_format *f, int64_t n_in, nb_plane_spec out[NB_MAX_PLANES])
{
    int64_t groups = nb_format_groups(f, n_in), bytes = nb_bits_bytes(n_in, 4);
    out[0] = (nb_plane_spec){"codes", NB_U8, bytes, bytes};
    out[1] = (nb_plane_spec){"scales", NB_F8_E4M3, groups, groups};
    out[2] = (nb_plane_spec){"bases", NB_F32, 1, 4};
    return 3;
}

static void pack_row_nvfp4(const nb_format *f, const uint8_t *codes, const nb_qparam *p,
                           int64_t n_in, uint8_t *const plane[])
{
    nb_bits_pack(codes, n_in, 4, plane[0]);
    for (int64_t g = 0; g < nb_format_groups(f, n_in); g++) plane[1][g] = p[g].id;
    nb_scale_save(plane[2], 0, p[0].base, true);
}

static nb_qparam load_param(const uint8_t *const plane[], int64_t g)
{
    return param_of(nb_scale_load(plane[2], 0, true), plane[1][g]);
}

static void unpack_row_nvfp4(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                             uint8_t *codes, nb_qparam *p)
{
    nb_bits_unpack(plane[0], n_in, 4, codes);
    for (int64_t g = 0; g < nb_format_groups(f, n_in); g++) p[g] = load_param(plane, g);
}

static void dequant_row_nvfp4(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                              float *w)
{
    for (int64_t g = 0; g < nb_format_groups(f, n_in); g++) {
        uint8_t codes[BLOCK];
        nb_qparam p = load_param(plane, g);
        int64_t at = nb_group_begin(f, g), n = nb_group_length(f, n_in, g);
        nb_bits_unpack(plane[0] + at / 2, n, 4, codes);
        decode_nvfp4(f, &p, codes, n, w + at);
    }
}

const nb_format_family nb_format_family_nvfp4 = {
    .name = "nvfp4",
    .usage = "nvfp4[:46][:matrix]",
    .parse = parse_nvfp4,
    .uses = uses_nvfp4,
    .planes = planes_nvfp4,
    .fit_base = fit_base_nvfp4,
    .fit = fit_nvfp4,
    .encode = encode_nvfp4,
    .decode = decode_nvfp4,
    .grid = grid_nvfp4,
    .pack_row = pack_row_nvfp4,
    .unpack_row = unpack_row_nvfp4,
    .dequant_row = dequant_row_nvfp4,
    .round_each = round_each_nvfp4,
};
