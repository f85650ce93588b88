/* Storage types as formats: "f32", "bf16", "q4_1": one plane, the bytes as they lie in a file.
 *
 * The scalar floats are legal wherever a recipe asks for a format and mean "not quantized"; block
 * types are only read. */
#include <stdio.h>

#include "format/format.h"

static int parse_plain(const char *word, nb_format *f, nb_error *err)
{
    NB_UNUSED(err);
    int t = nb_dtype_by_name(word);
    if (t < 0 || !nb_dtypes[t].decode) return 0;
    f->bits = nb_dtypes[t].block_bytes * 8 / nb_dtypes[t].block_elems;
    f->variant = t;
    snprintf(f->word, sizeof f->word, "%s", nb_dtypes[t].name);
    return 1;
}

static unsigned uses_plain(const nb_format *f)
{
    bool is_float = f->variant == NB_F32 || f->variant == NB_F16 || f->variant == NB_BF16;
    return is_float ? NB_FOR_WEIGHTS | NB_FOR_ACTS | NB_FOR_KV : 0;
}

static int planes_plain(const nb_format *f, int64_t n_in, nb_plane_spec out[NB_MAX_PLANES])
{
    const nb_dtype_info *t = &nb_dtypes[f->variant];
    out[0] = (nb_plane_spec){.suffix = "",
                             .dtype = (nb_dtype)f->variant,
                             .cols = n_in,
                             .row_bytes = n_in / t->block_elems * t->block_bytes};
    return 1;
}

static void dequant_row_plain(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                              float *w)
{
    nb_dtypes[f->variant].decode(plane[0], n_in, w);
}

const nb_format_family nb_format_family_plain = {
    .name = "plain",
    .usage = "f32, f16, bf16 and other storage types",
    .parse = parse_plain,
    .uses = uses_plain,
    .planes = planes_plain,
    .dequant_row = dequant_row_plain,
};
