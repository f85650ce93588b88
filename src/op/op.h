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
    nb_dtype real; /* of its buffers, NB_F32 or NB_F64: moved as this, nothing is rounded */

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
    /* attention_forward over what was appended; q are the queries of the last append's rows; once
     * per append. With a format of its own, each operand is quantized first; then everything is in
     * fp32. */
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
    /* Rotates x [T, heads*D] in place: of each head's first R channels the pairs (i, i + R/2), or,
     * interleaved, (2i, 2i + 1). table [T, R]: cos of the R/2 angles, then sin, of these rows'
     * positions. */
    void (*rope_forward)(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved);
    /* out [T, H*D] = softmax(scale q k^T + mask) v per head; q [T, H*D], k and v [S, K*D] with
     * S = pos0 + T; query head h reads KV head h / (H/K). */
    void (*attention_forward)(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                              const nb_attention *a);
    void (*add_forward)(nb_backend *be, nb_view out, nb_view a, nb_view b); /* out may be a or b */
    /* Each run of n columns of x in place times the Walsh-Hadamard matrix of order n over sqrt(n),
     * H[i][j] = (-1)^(number of common bits of i and j) / sqrt(n); n is a power of two that divides
     * the columns. H is symmetric and its own inverse: this is also its own backward. */
    void (*hadamard_forward)(nb_backend *be, nb_view x, int64_t n);
    /* out = act(gate) * up; out may be gate or up. */
    void (*glu_forward)(nb_backend *be, nb_view out, nb_view gate, nb_view up, nb_act_kind act);
    void (*act_forward)(nb_backend *be, nb_view out, nb_view x, nb_act_kind act); /* out may be x */
    /* nll[t] = log sum exp(logits[t]) - logits[t][targets[t]], host memory; waits. */
    void (*nll_forward)(nb_backend *be, double *nll, nb_view logits, const int32_t *targets);
    /* Per row: kl[t] = sum p log(p/q), p = softmax(ref), q = softmax(logits); same[t] = both have
     * their maximum (lowest index on a tie) at one place. Host memory; waits. */
    void (*kl_forward)(nb_backend *be, double *kl, uint8_t *same, nb_view ref, nb_view logits);

    /* -- training of one block -- gradients by straight-through, sums in a fixed order.
     * `add`: out += instead of out =. Other outputs are overwritten. Views of one op are disjoint
     * unless it says otherwise. */

    /* out [M, N] = op(a) op(b) (+ out); a is [M, K], or [K, M] if a_cols; b is [K, N], or [N, K]
     * if b_rows: x W^T, dy W and dy^T x. Operands are rounded as those of linear_forward. */
    void (*product)(nb_backend *be, nb_view out, nb_view a, bool a_cols, nb_view b, bool b_rows,
                    bool add);
    void (*bias_forward)(nb_backend *be, nb_view x, nb_view bias); /* x [T, C] += bias [1, C] */
    /* out [1, C] = sum over t of a [T, C] * b [T, C] (+ out); b.buf NULL: of a. */
    void (*col_sum)(nb_backend *be, nb_view out, nb_view a, nb_view b, bool add);
    /* Gradient of norm_forward by x, given that of its output; dx may be dy. */
    void (*norm_backward)(nb_backend *be, nb_view dx, nb_view dy, nb_view x, const nb_norm *norm,
                          bool add);
    /* Turns back what rope_forward turned: x is a gradient. */
    void (*rope_backward)(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved);
    /* attention_forward, and lse [T, H] = log sum exp of the scaled scores; pos0 = 0. */
    void (*attention_train)(nb_backend *be, nb_view out, nb_view lse, nb_view q, nb_view k,
                            nb_view v, const nb_attention *a);
    /* dq [T, H*D], dk and dv [T, K*D] from dout [T, H*D] and what attention_train read and wrote;
     * the query heads of a KV head are summed. */
    void (*attention_backward)(nb_backend *be, nb_view dq, nb_view dk, nb_view dv, nb_view dout,
                               nb_view out, nb_view lse, nb_view q, nb_view k, nb_view v,
                               const nb_attention *a);
    /* Outputs may be any of the inputs, but not each other. */
    void (*glu_backward)(nb_backend *be, nb_view dgate, nb_view dup, nb_view dout, nb_view gate,
                         nb_view up, nb_act_kind act);
    void (*act_backward)(nb_backend *be, nb_view dx, nb_view dy, nb_view x, nb_act_kind act);

    /* Each row of x as its act format leaves it (family NULL or plain: as it is). Heads: split x
     * first. Rows that are not finite are copied. out may be x. */
    void (*quant_forward)(nb_backend *be, nb_view out, nb_view x, const nb_format *fmt);
    /* Its straight-through gradient (OmniQuant section 5; format/ste.h): dx = g where x was not
     * saturated, else 0, and what flows through the scale, where that is a smooth function of the
     * range, to the largest and the smallest x of a group, ties sharing. dx may be g or x. */
    void (*quant_backward)(nb_backend *be, nb_view dx, nb_view g, nb_view x, const nb_format *fmt);
    /* out [N, M] = w' = w[i,j] row[i] col[j] as it will be stored: fitted with its range shrunk to
     * [sigmoid(l) min, sigmoid(u) max] per group, encoded, decoded (LWC, OmniQuant section 3).
     * row [1, N] and col [1, M], buf NULL: ones; u, l [N, groups]. out may be w. A plain fmt, or
     * none: out = w', and nobody looks at u, l. */
    void (*clip_forward)(nb_backend *be, nb_view out, nb_view w, nb_view row, nb_view col,
                         nb_view u, nb_view l, const nb_format *fmt);
    /* du, dl [N, groups] from g [N, M], the gradient of out; colsum [1, M] = sum over i of
     * dw'[i,j] w'[i,j] (C of section 7.4), buf NULL: not wanted. zero: the zero point learns, too.
     * du, dl may be u, l; for a plain fmt, or none, they stay as they are. */
    void (*clip_backward)(nb_backend *be, nb_view du, nb_view dl, nb_view colsum, nb_view g,
                          nb_view w, nb_view row, nb_view col, nb_view u, nb_view l, bool zero,
                          const nb_format *fmt);

    /* out [N, M] = w as it will be stored with learned rounding: fitted with its range shrunk to
     * [lo min, hi max] per group, moved by v steps of its group (nb_offset_weight), encoded,
     * decoded. v [N, M]; hi, lo [N, groups] in (0, 1]; a quantized fmt. */
    void (*round_forward)(nb_backend *be, nb_view out, nb_view w, nb_view v, nb_view hi, nb_view lo,
                          const nb_format *fmt);
    /* dv [N, M], dhi, dlo [N, groups] from g [N, M], the gradient of out, straight through the
     * rounding; zero as above. dv may be g. */
    void (*round_backward)(nb_backend *be, nb_view dv, nb_view dhi, nb_view dlo, nb_view g,
                           nb_view w, nb_view v, nb_view hi, nb_view lo, bool zero,
                           const nb_format *fmt);

    /* dy = scale weight (y - target) (+ dy); returns sum weight (y - target)^2. Waits. dy may be y.
     * weight of a token (row): 1 or, unit, 1 / mean square of its target, which makes the sum one
     * of relative errors; of a target that is zero 1. */
    double (*mse_backward)(nb_backend *be, nb_view dy, nb_view y, nb_view target, bool unit,
                           double scale, bool add);
    /* One step of Adam without weight decay, t from 1; m and v are the moments, zero at first. */
    void (*adamw_step)(nb_backend *be, nb_view param, nb_view grad, nb_view m, nb_view v, double lr,
                       double beta1, double beta2, double eps, int64_t t);
    /* param = param - lr sign(grad), within [lo, hi]; the sign of 0 and of NaN is 0. */
    void (*sign_step)(nb_backend *be, nb_view param, nb_view grad, double lr, double lo, double hi);
} nb_ops;

/* Common head of every backend; `state` is the backend's own. */
struct nb_backend {
    const nb_ops *ops;
    nb_compute compute;
    int threads;
    unsigned cpu; /* features that may be used */
    int64_t
        nonfinite; /* inputs of quantizers that were Inf or NaN and saturated; read after sync */
    void *state;
    char device[24];                   /* as it was asked for: "cuda:1" */
    const struct nb_plugin_host *host; /* what a plug-in calls back (plugin.h) */
    void *plugin;                      /* its handle, or NULL */
};

/* NULL-terminated: backends.c. "ref" (scalar float), "ref64" (scalar double), "cpu". */
extern const nb_ops *const nb_backends[];

/* One of these, or one that a plug-in brings ("cuda", "cuda:1"). NB_EUSAGE names the device and
 * lists what there is; NB_ERESOURCE: its plug-in or the device itself cannot be used. threads 0:
 * all. */
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
