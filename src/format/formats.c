/* The table of format families, words, and what follows from a family's own functions. */
#include <string.h>

#include "format/format.h"

extern const nb_format_family nb_format_family_dialect;
extern const nb_format_family nb_format_family_fp;
extern const nb_format_family nb_format_family_int;
extern const nb_format_family nb_format_family_mx;
extern const nb_format_family nb_format_family_nvfp4;
extern const nb_format_family nb_format_family_plain;

/* The first family that knows a word has it: "mxfp4" is nibble's planes; GGUF's block of that name
 * is only made by nb_format_plain. */
const nb_format_family *const nb_format_families[] = {
    &nb_format_family_int,
    &nb_format_family_fp,
    &nb_format_family_mx,
    &nb_format_family_nvfp4,
    &nb_format_family_dialect,
    &nb_format_family_plain,
    NULL,
};

static nb_status fail_unknown(const char *word, nb_error *err)
{
    char list[400] = "none";
    size_t used = strlen(list);
    for (int i = 0; nb_format_families[i]; i++) {
        const char *usage = nb_format_families[i]->usage;
        size_t n = strlen(usage);
        if (used + n + 3 > sizeof list) break;
        memcpy(list + used, ", ", 2);
        memcpy(list + used + 2, usage, n + 1);
        used += n + 2;
    }
    return nb_fail(err, NB_EUSAGE, "format \"%.40s\": unknown; there are %s", word, list);
}

nb_status nb_format_parse(nb_format *out, const char *word, nb_error *err)
{
    *out = (nb_format){0};
    if (strcmp(word, "none") == 0) {
        memcpy(out->word, "none", sizeof "none");
        return NB_OK;
    }
    for (int i = 0; nb_format_families[i]; i++) {
        nb_format f = {.family = nb_format_families[i]};
        int found = f.family->parse(word, &f, err);
        if (found < 0) return NB_EUSAGE;
        if (found > 0) {
            *out = f;
            return NB_OK;
        }
    }
    return fail_unknown(word, err);
}

nb_format nb_format_plain(nb_dtype t)
{
    nb_format f = {.family = &nb_format_family_plain, .variant = (int)t};
    f.family->parse(nb_dtypes[t].name, &f, NULL);
    return f;
}

bool nb_format_is_quantized(const nb_format *f) { return f->family && f->family->fit; }

float nb_format_fit_base(const nb_format *f, const float *w, const float *importance, int64_t n_in,
                         const float *clip_lo, const float *clip_hi)
{
    if (!f->family->fit_base) return 0;
    return f->family->fit_base(f, w, importance, n_in, clip_lo, clip_hi);
}

void nb_format_fit_row(const nb_format *f, const float *w, const float *importance, int64_t n_in,
                       const float *clip_lo, const float *clip_hi, nb_qparam *p)
{
    float base = nb_format_fit_base(f, w, importance, n_in, clip_lo, clip_hi);
    int64_t groups = nb_format_groups(f, n_in);
    for (int64_t g = 0; g < groups; g++) {
        int64_t at = nb_group_begin(f, g);
        p[g].base = base;
        f->family->fit(f, w + at, importance ? importance + at : NULL, nb_group_length(f, n_in, g),
                       clip_lo ? clip_lo[g] : 1, clip_hi ? clip_hi[g] : 1, &p[g]);
    }
}

double nb_format_error(const nb_format *f, const nb_qparam *p, const float *w,
                       const float *importance, int64_t n)
{
    enum { PIECE = 256 };
    double sum[4] = {0}; /* side by side, so that one does not wait for the other */
    for (int64_t at = 0; at < n; at += PIECE) {
        uint8_t codes[PIECE];
        float back[PIECE];
        int64_t m = n - at < PIECE ? n - at : PIECE;
        f->family->encode(f, p, w + at, m, codes);
        f->family->decode(f, p, codes, m, back);
        for (int64_t i = 0; i < m; i++) {
            double d = (double)w[at + i] - (double)back[i];
            sum[i & 3] += importance ? d * d * (double)importance[at + i] : d * d;
        }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

void nb_format_round_each(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                          uint8_t *codes, float *back)
{
    if (f->family->round_each) {
        f->family->round_each(f, p, w, n, codes, back);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        f->family->encode(f, p + i, w + i, 1, codes + i);
        f->family->decode(f, p + i, codes + i, 1, back + i);
    }
}

int64_t nb_format_groups(const nb_format *f, int64_t n_in)
{
    return f->group > 0 ? (n_in + f->group - 1) / f->group : 1;
}

int64_t nb_group_length(const nb_format *f, int64_t n_in, int64_t g)
{
    if (f->group == 0) return n_in;
    int64_t left = n_in - nb_group_begin(f, g);
    return left < f->group ? left : f->group;
}

int64_t nb_format_row_bytes(const nb_format *f, int64_t n_in)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = f->family->planes(f, n_in, spec);
    int64_t bytes = 0;
    for (int i = 0; i < n; i++) bytes += spec[i].row_bytes;
    return bytes;
}

void nb_matrix_dequant(const nb_matrix *m, int64_t row, int64_t n_rows, float *out)
{
    nb_plane_spec spec[NB_MAX_PLANES];
    int n = m->format.family->planes(&m->format, m->n_in, spec);
    for (int64_t r = 0; r < n_rows; r++) {
        const uint8_t *plane[NB_MAX_PLANES] = {0};
        for (int i = 0; i < n; i++) plane[i] = m->plane[i] + (row + r) * spec[i].row_bytes;
        m->format.family->dequant_row(&m->format, plane, m->n_in, out + r * m->n_in);
    }
}

int64_t nb_matrix_bytes(const nb_matrix *m)
{
    return m->n_out * nb_format_row_bytes(&m->format, m->n_in);
}
