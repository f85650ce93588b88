/* Tensor-level operations: the seam between models and devices.
 *
 * Above this header nobody computes an address: memory is an opaque nb_buffer, a matrix is an
 * nb_view. Operations are queued (a device may run them later) and return nothing; the first
 * failure sticks in the backend and nb_backend_sync reports it. Host pointers in arguments (ids,
 * targets) may be reused as soon as the call returns.
 *
 * Letters: T tokens, C channels, H query heads, K key/value heads, D head size, V vocabulary,
 * S keys. All matrices are row-major [rows, cols]. */
#ifndef NB_OP_OP_H
#define NB_OP_OP_H

#include "base/status.h"
#include "format/format.h"

typedef struct nb_backend nb_backend;
typedef struct nb_buffer nb_buffer;
/* A weight in the form the device likes, with bias and formats. */
typedef struct nb_linear nb_linear;
/* Keys and values of one layer and one sequence, in the formats of its attention. */
typedef struct nb_kv nb_kv;

/* A matrix of the backend's real type (fp32; double on "ref64"). */
typedef struct nb_view {
    nb_buffer *buf;
    int64_t off; /* elements from the buffer's start */
    int64_t rows, cols;
    int64_t stride; /* elements from row to row, >= cols */
} nb_view;

typedef enum nb_norm_kind { NB_NORM_RMS, NB_NORM_LAYER } nb_norm_kind;

typedef struct nb_norm {
    nb_norm_kind kind;
    float eps;
    nb_buffer *weight, *bias; /* [cols]; either may be NULL: 1, 0 */
} nb_norm;

typedef enum nb_act_kind { NB_ACT_SILU, NB_ACT_RELU, NB_ACT_GELU } nb_act_kind;

typedef struct nb_attention {
    int n_heads, n_kv_heads, head_dim;
    float scale;  /* of q k^T; > 0 */
    int64_t pos0; /* position of the first query; query t sees keys 0 .. pos0 + t */
    int window;   /* > 0: only the last `window` of them, itself included; 0: all */
} nb_attention;

/* How attention quantizes its operands; family NULL: as they are. Q and K per token and head along
 * head_dim. P and V: formats with blocks along the sequence, in blocks aligned to absolute
 * positions; others (V only) per token and head. */
typedef struct nb_attn_formats {
    nb_format q, k, v, p;
} nb_attn_formats;

typedef struct nb_kv_desc {
    int n_kv_heads, head_dim;
    int64_t capacity; /* tokens; memory is taken by pages as they come */
    nb_attn_formats formats;
    /* Where V has blocks along the sequence of B tokens, a query at position i reads quantized
     * values of the chunks below floor(i/B), and FP16 values, with softmax weights as they are, of
     * its own: so a prompt at once and token by token agree (spec: BlockDialect D16). paper: of all
     * full chunks, though later tokens shaped them, as the paper evaluates. */
    bool paper;
} nb_kv_desc;

/* Low-rank correction of a weight, W ~ dequant(w) + A B (LoRC, ZeroQuant-V2 section 4); each row
 * of both matrices is one rank component. rank 0: none. */
typedef struct nb_lorc {
    int rank;
    nb_matrix a; /* [rank, n_out]: A transposed */
    nb_matrix b; /* [rank, n_in] */
} nb_lorc;

typedef struct nb_linear_desc {
    const nb_matrix *w;
    const float *bias; /* [n_out] or NULL */
    nb_format act;     /* of the input; family NULL: as it is */
    nb_lorc lorc;      /* out += (act(x) b^T) a */
} nb_linear_desc;

/* Shapes of the factors for a weight [n_out, n_in]; false if the rank is above either. */
bool nb_lorc_shape(nb_lorc *l, int64_t n_out, int64_t n_in);
int64_t nb_lorc_bytes(const nb_lorc *l); /* of the planes; 0 for rank 0 */
/* w [n_rows, n_in] += rows [row, row + n_rows) of A B; a [rank, n_out] and b [rank, n_in] are the
 * factors as fp32. */
void nb_lorc_add(const nb_lorc *l, const float *a, const float *b, int64_t row, int64_t n_rows,
                 float *w);

typedef struct nb_ops {
    const char *name;

    /* -- life -- */
    nb_status (*create)(nb_backend *be, nb_error *err); /* fills be->state */
    void (*destroy)(nb_backend *be);
    nb_status (*sync)(nb_backend *be, nb_error *err); /* waits; the first failure since the last */

    /* -- memory: n elements, zeroed -- */
    nb_status (*buffer_create)(nb_backend *be, int64_t n, nb_buffer **out, nb_error *err);
    void (*buffer_free)(nb_backend *be, nb_buffer *b);
    /* Host memory is [rows, cols] contiguous; dtype NB_F32 or NB_F64. download waits. */
    void (*upload)(nb_backend *be, nb_view dst, const void *src, nb_dtype dtype);
    void (*download)(nb_backend *be, nb_view src, void *dst, nb_dtype dtype);
    void (*copy)(nb_backend *be, nb_view dst, nb_view src);

    /* -- keys and values -- */
    nb_status (*kv_create)(nb_backend *be, const nb_kv_desc *d, nb_kv **out, nb_error *err);
    void (*kv_free)(nb_backend *be, nb_kv *kv);
    size_t (*kv_bytes)(const nb_kv *kv); /* allocated now */
    /* k (after RoPE) and v [T, K*D] of positions pos0 ..: 0 begins a new sequence, otherwise as
     * many as there are. Each value is quantized once. NB_ERESOURCE beyond the capacity. */
    void (*kv_append)(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0);
    /* attention_forward over what was appended; q are the queries of the last append's rows. With a
     * format of its own, each operand is quantized first; then everything is in fp32. */
    void (*kv_attention)(nb_backend *be, nb_view out, nb_view q, nb_kv *kv, const nb_attention *a);

    /* -- linears -- */
    nb_status (*linear_create)(nb_backend *be, const nb_linear_desc *d, nb_linear **out,
                               nb_error *err); /* keeps d->w's planes: they must outlive it */
    void (*linear_free)(nb_backend *be, nb_linear *l);
    size_t (*linear_bytes)(const nb_linear *l);

    /* -- forward -- */
    /* out [T, C] = rows ids[0..T) of the table w [V, C]. */
    void (*embed_forward)(nb_backend *be, nb_view out, const nb_linear *w, const int32_t *ids);
    /* out [T, N] = (add ? out : 0) + act(x [T, M]) w^T + bias. */
    void (*linear_forward)(nb_backend *be, nb_view out, nb_view x, const nb_linear *w, bool add);
    /* The triangle out[i][j], j >= i, of out [C, C] += q^T q, q = act(x [T, C]), summed over the
     * rows in one order and never in bf16; what lies below it is scratch. act NULL: q = x. unit:
     * each row of q is scaled to a mean square of 1 (a row of zeros stays one). */
    void (*gram_forward)(nb_backend *be, nb_view out, nb_view x, const nb_format *act, bool unit);
    /* Each row of x normalised: RMS x/sqrt(mean x^2 + eps) or LayerNorm; out may be x. */
    void (*norm_forward)(nb_backend *be, nb_view out, nb_view x, const nb_norm *norm);
    /* Rotates x [T, heads*D] in place, half-split pairs (i, i + R/2) of each head's first R
     * channels. table [T, R]: cos of the R/2 angles, then sin, of these rows' positions. */
    void (*rope_forward)(nb_backend *be, nb_view x, int n_heads, nb_view table);
    /* out [T, H*D] = softmax(scale q k^T + mask) v per head; q [T, H*D], k and v [S, K*D] with
     * S = pos0 + T; query head h reads KV head h / (H/K). */
    void (*attention_forward)(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                              const nb_attention *a);
    void (*add_forward)(nb_backend *be, nb_view out, nb_view a, nb_view b); /* out may be a or b */
    /* out = act(gate) * up; out may be gate or up. */
    void (*glu_forward)(nb_backend *be, nb_view out, nb_view gate, nb_view up, nb_act_kind act);
    void (*act_forward)(nb_backend *be, nb_view out, nb_view x, nb_act_kind act); /* out may be x */
    /* nll[t] = log sum exp(logits[t]) - logits[t][targets[t]], host memory; waits. */
    void (*nll_forward)(nb_backend *be, double *nll, nb_view logits, const int32_t *targets);
    /* Per row: kl[t] = sum p log(p/q), p = softmax(ref), q = softmax(logits); same[t] = both have
     * their maximum (lowest index on a tie) at one place. Host memory; waits. */
    void (*kl_forward)(nb_backend *be, double *kl, uint8_t *same, nb_view ref, nb_view logits);
} nb_ops;

/* Common head of every backend; `state` is the backend's own. */
struct nb_backend {
    const nb_ops *ops;
    nb_compute compute;
    int threads;
    unsigned cpu; /* features that may be used */
    void *state;
};

/* NULL-terminated: backends.c. "ref" (scalar float), "ref64" (scalar double), "cpu". */
extern const nb_ops *const nb_backends[];

/* NB_EUSAGE names the device and lists what there is. threads 0: all. */
nb_status nb_backend_create(nb_backend **out, const nb_options *opt, nb_error *err);
void nb_backend_free(nb_backend *be);

/* Bytes of one token's keys and values of one layer; those of a chunk are shared by its tokens,
 * FP16 values of the last chunk are not counted. */
double nb_kv_token_bytes(const nb_kv_desc *d);

/* ---- views ------------------------------------------------------------------------------ */

static inline nb_view nb_view_of(nb_buffer *b, int64_t rows, int64_t cols)
{
    return (nb_view){.buf = b, .rows = rows, .cols = cols, .stride = cols};
}

static inline nb_view nb_view_rows(nb_view v, int64_t row, int64_t n_rows)
{
    v.off += row * v.stride;
    v.rows = n_rows;
    return v;
}

static inline nb_view nb_view_cols(nb_view v, int64_t col, int64_t n_cols)
{
    v.off += col;
    v.cols = n_cols;
    return v;
}

/* [T, n*c] contiguous rows seen as [T*n, c]; needs stride == cols. */
static inline nb_view nb_view_split(nb_view v, int64_t n)
{
    return (nb_view){v.buf, v.off, v.rows * n, v.cols / n, v.cols / n};
}

#endif
