/* Number formats of weights, activations and KV cache.
 *
 * A format is a value: a family (its code) and a few parameters, parsed from a word such as
 * "int4:g128". It says how ONE row of a matrix becomes codes and side data:
 *
 *   row of n_in fp32 --fit--> one nb_qparam per group --encode--> one code per value
 *                    --pack--> planes of bytes --dequant--> n_in fp32
 *
 * Groups run along the input dimension; the last group may be shorter. Methods (nearest, GPTQ,
 * learned clipping) use fit/encode/decode on one group at a time and never look at bits; kernels
 * read planes and never fit. Families are pure leaves: no heap, no I/O, no threads, no globals. */
#ifndef NB_FORMAT_FORMAT_H
#define NB_FORMAT_FORMAT_H

#include "base/status.h"
#include "format/dtype.h"

#define NB_MAX_PLANES  4
#define NB_FORMAT_WORD 32

typedef struct nb_format_family nb_format_family;

typedef struct nb_format {
    const nb_format_family *family; /* NULL: no format ("leave alone")                        */
    char word[NB_FORMAT_WORD];      /* canonical spelling: "int4:g128"                        */
    int bits;                       /* of one code                                            */
    bool sym;                       /* no zero point                                          */
    int group;                      /* values per group; 0: the whole row                     */
    int variant;                    /* the family's own (plain: nb_dtype)                     */
} nb_format;

/* Parameters of one group, exactly as they are stored. */
typedef struct nb_qparam {
    float scale;
    float base;   /* what the groups of a row share: an input of fit; 0: nothing */
    int32_t zero; /* code of the value 0 */
    uint8_t id;   /* dialect, exponent, ...: the family's own */
} nb_qparam;

/* One plane of a packed matrix: [n_out, row_bytes] bytes, rows contiguous. */
typedef struct nb_plane_spec {
    const char *suffix; /* of the tensor's name in a nibble directory: "codes", "scales", ... */
    nb_dtype dtype;     /* of its elements in the file                                        */
    int64_t cols;       /* elements per row                                                   */
    int64_t row_bytes;
} nb_plane_spec;

enum { NB_FOR_WEIGHTS = 1, NB_FOR_ACTS = 2, NB_FOR_KV = 4 };

struct nb_format_family {
    const char *name;
    const char *usage; /* spelling of its words, for messages and help */

    /* Fills *f if the word is of this family: 1; 0 if it is not; -1 if it is but malformed, with
     * the reason in *err. */
    int (*parse)(const char *word, nb_format *f, nb_error *err);

    unsigned (*uses)(const nb_format *f); /* NB_FOR_... */

    /* Planes of a row of n_in values; returns their number (1 to NB_MAX_PLANES). */
    int (*planes)(const nb_format *f, int64_t n_in, nb_plane_spec out[NB_MAX_PLANES]);

    /* What all groups of a row share (the base of power-of-two scales, the outer scale of NVFP4),
     * found before any of them is fitted; clip_lo, clip_hi: [groups] or NULL, all 1. NULL: this
     * family has nothing of the kind. */
    float (*fit_base)(const nb_format *f, const float *w, const float *importance, int64_t n_in,
                      const float *clip_lo, const float *clip_hi);

    /* Parameters for the n values of one group. clip_lo, clip_hi in (0, 1]: shrink min and max of
     * the group first (LWC, OmniQuant eq. 2). importance: [n] weights of the squared error or
     * NULL; only families whose fit is a search read it. Values must be finite. p->base: the
     * row's fit_base, 0 for a group that is a row of its own. */
    void (*fit)(const nb_format *f, const float *w, const float *importance, int64_t n,
                float clip_lo, float clip_hi, nb_qparam *p);

    /* The same for data that arrives online (activations, KV cache): no clip, any values, NaN and
     * Inf included. NULL: fit serves. For families whose rules differ between the two. */
    void (*fit_online)(const nb_format *f, const float *x, int64_t n, nb_qparam *p);

    /* Nearest codes (ties to the even code) and values of the codes, for one group. */
    void (*encode)(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                   uint8_t *codes);
    void (*decode)(const nb_format *f, const nb_qparam *p, const uint8_t *codes, int64_t n,
                   float *w);

    /* A whole row: codes [n_in], p [nb_format_groups(f, n_in)]. unpack is the exact inverse and
     * accepts any bytes. */
    void (*pack_row)(const nb_format *f, const uint8_t *codes, const nb_qparam *p, int64_t n_in,
                     uint8_t *const plane[]);
    void (*unpack_row)(const nb_format *f, const uint8_t *const plane[], int64_t n_in,
                       uint8_t *codes, nb_qparam *p);

    /* planes -> fp32, equal to unpack_row and decode bit for bit: the scalar definition of the
     * row kernel. */
    void (*dequant_row)(const nb_format *f, const uint8_t *const plane[], int64_t n_in, float *w);

    /* encode and decode of n values that each have parameters of their own, w[i] with p[i]: a piece
     * of a column. NULL: one by one. Called through nb_format_round_each. */
    void (*round_each)(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                       uint8_t *codes, float *back);
};
/* "plain" (f32, bf16, q4_1, ...: bytes as they lie in a file) has planes and dequant_row only. */

extern const nb_format_family *const nb_format_families[]; /* NULL-terminated: formats.c */

/* NB_EUSAGE names the word and lists what there is. */
nb_status nb_format_parse(nb_format *out, const char *word, nb_error *err);
nb_format nb_format_plain(nb_dtype t);
/* True for formats with fit/encode/pack; false for plain storage types and "none". */
bool nb_format_is_quantized(const nb_format *f);

/* fit_base, 0 for families without one; and base and fit of every group: p [groups]. */
float nb_format_fit_base(const nb_format *f, const float *w, const float *importance, int64_t n_in,
                         const float *clip_lo, const float *clip_hi);
void nb_format_fit_row(const nb_format *f, const float *w, const float *importance, int64_t n_in,
                       const float *clip_lo, const float *clip_hi, nb_qparam *p);

/* sum importance_i (w_i - decode(encode(w_i)))^2 over the n values of a group, in a fixed order;
 * importance NULL: all 1. */
double nb_format_error(const nb_format *f, const nb_qparam *p, const float *w,
                       const float *importance, int64_t n);

/* codes[i] = encode(w[i]) and back[i] = decode(codes[i]) with p[i]. */
void nb_format_round_each(const nb_format *f, const nb_qparam *p, const float *w, int64_t n,
                          uint8_t *codes, float *back);

int64_t nb_format_groups(const nb_format *f, int64_t n_in);
/* First value and length of group g. */
static inline int64_t nb_group_begin(const nb_format *f, int64_t g) { return g * f->group; }
int64_t nb_group_length(const nb_format *f, int64_t n_in, int64_t g);
int64_t nb_format_row_bytes(const nb_format *f, int64_t n_in); /* all planes */

/* ---- matrices in host memory ----------------------------------------------------------- */

/* The weight of one linear, y[n_out] = W[n_out, n_in] x, in any format. Borrowed: whoever made
 * the planes (a mapping, an arena) owns them. */
typedef struct nb_matrix {
    nb_format format;
    int64_t n_out, n_in;
    const uint8_t *plane[NB_MAX_PLANES]; /* [n_out, row_bytes] each */
} nb_matrix;

/* Rows [row, row + n_rows) as fp32 [n_rows, n_in]. */
void nb_matrix_dequant(const nb_matrix *m, int64_t row, int64_t n_rows, float *out);
int64_t nb_matrix_bytes(const nb_matrix *m);

#endif
