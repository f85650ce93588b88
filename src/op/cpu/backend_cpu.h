/* The CPU backend: OpenMP over rows or tiles, kernels inside, oneDNN for matrix products.
 *
 * Every op runs before it returns. How the work is cut depends on shapes alone and each piece is
 * computed by one thread, so results do not depend on the number of threads. */
#ifndef NB_OP_CPU_CPU_H
#define NB_OP_CPU_CPU_H

#include <omp.h>

#include "kernel/kernel.h"
#include "op/common.h"
#include "op/cpu/gemm.h"

/* Below this many values a loop is not worth the start of other threads (about 5 us). */
#define NB_CPU_PARALLEL_MIN 16384

/* Up to this many rows, products go through dot kernels, weights once from memory. */
#define NB_CPU_FEW_ROWS 8

struct nb_buffer {
    float *data; /* 64-byte aligned */
    int64_t n;
};

struct nb_linear {
    nb_matrix w;
    int64_t row_bytes[NB_MAX_PLANES];
    nb_dequant_fn dequant;
    float *bias; /* [n_out] or NULL */
    nb_format act;
    int64_t rank;     /* of the low-rank correction; 0: none                        */
    float *low_a;     /* [n_out, rank]                                              */
    nb_linear *low_b; /* [rank, n_in], stored as the operands of products are    */
};

/* Scratch that lives from op to op and only grows. */
typedef enum nb_cpu_slot {
    NB_CPU_INPUT_F32,
    NB_CPU_INPUT_BF16,
    NB_CPU_PANEL,   /* decoded weights; packed keys and values */
    NB_CPU_THREAD,  /* one piece per thread */
    NB_CPU_LOW,     /* inputs of low-rank factors */
    NB_CPU_INTEGER, /* inputs as half units of dialect blocks */
    NB_CPU_N_SLOTS
} nb_cpu_slot;

typedef struct nb_cpu {
    nb_kernels k;
    nb_gemm *gemm;
    nb_fault fault;
    struct {
        void *data;
        size_t n_bytes;
    } scratch[NB_CPU_N_SLOTS];
} nb_cpu;

static inline nb_cpu *nb_cpu_of(const nb_backend *be) { return be->state; }

static inline float *nb_cpu_row(nb_view v, int64_t r) { return v.buf->data + v.off + r * v.stride; }

/* 64-byte aligned, contents undefined; NULL: the fault is set. */
void *nb_cpu_scratch(nb_backend *be, nb_cpu_slot slot, size_t n_bytes);

/* nb_gemm_get with the failure in the fault; NULL then. */
const nb_gemm_op *nb_cpu_gemm(nb_backend *be, const nb_gemm_desc *d);
void nb_cpu_fail_gemm(nb_backend *be); /* oneDNN failed while running */

/* linear_cpu.c */
nb_status nb_cpu_linear_create(nb_backend *be, const nb_linear_desc *d, nb_linear **out,
                               nb_error *err);
void nb_cpu_linear_free(nb_backend *be, nb_linear *l);
size_t nb_cpu_linear_bytes(const nb_linear *l);
void nb_cpu_embed_forward(nb_backend *be, nb_view out, const nb_linear *w, const int32_t *ids);
void nb_cpu_linear_forward(nb_backend *be, nb_view out, nb_view x, const nb_linear *w, bool add);
/* Row n of the weight: its planes, and as fp32. */
void nb_cpu_row_planes(const nb_linear *w, int64_t n, const uint8_t *plane[NB_MAX_PLANES]);
void nb_cpu_dequant_row(const nb_linear *w, int64_t n, float *out);
/* out[t][n] = (add ? out[t][n] : 0) + y + bias + low-rank term; low [T, rank] or NULL. */
void nb_cpu_store(nb_backend *be, nb_view out, int64_t t, int64_t n, float y, const nb_linear *w,
                  const float *low, bool add);

/* dialect_cpu.c: nb_fake_quant_row by kernels; linears on integers, low as above */
int64_t nb_cpu_fake_quant_row(const nb_kernels *k, const nb_format *f, const float *x, int64_t n,
                              float *out);
int64_t nb_cpu_fake_quant_rows(const nb_kernels *k, const nb_format *f, const float *x, int64_t ld,
                               int64_t n_rows, int64_t n, float *out); /* out [n_rows, n] */
/* The same on all threads; rows of x are ld apart, out [n_rows, n]. */
int64_t nb_cpu_fake_quant(nb_backend *be, const nb_format *f, const float *x, int64_t ld,
                          int64_t n_rows, int64_t n, float *out);
void nb_cpu_dialect_linear(nb_backend *be, nb_view out, nb_view x, const nb_linear *w,
                           const float *low, bool add);

/* The rows of a weight that is stored as `dtype` and aligned for it; NULL: it must be decoded. */
const void *nb_cpu_plain_rows(const nb_linear *w, nb_dtype dtype);

/* lorc_cpu.c: low-rank factors as operands */
nb_status nb_cpu_lorc_create(nb_backend *be, const nb_lorc *d, nb_linear *l, nb_error *err);
void nb_cpu_lorc_free(nb_backend *be, nb_linear *l);
size_t nb_cpu_lorc_bytes(const nb_linear *l);
/* What low_a meets: x low_b^T [T, rank], fp32; NULL: the fault is set. x [T, n_in] is fp32 for few
 * rows (rounded to bf16 in that mode), else as for nb_cpu_product. */
const float *nb_cpu_lorc_input(nb_backend *be, const void *x, int64_t ldx, int64_t n_rows,
                               const nb_linear *w);

/* product_cpu.c: input [T, n_in] as operands (fp32, or bf16 in that mode), ld elements per row.
 * low: of nb_cpu_lorc_input, or NULL for a linear without factors. */
void nb_cpu_product(nb_backend *be, nb_view out, const void *x, int64_t ldx, const nb_linear *w,
                    const float *low, bool add);

/* The same of two views. */
void nb_cpu_product_views(nb_backend *be, nb_view out, nb_view a, bool a_cols, nb_view b,
                          bool b_rows, bool add);

/* gram_cpu.c */
void nb_cpu_gram_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *act, bool unit);

/* attention_cpu.c, attention_few_cpu.c */
void nb_cpu_attention_forward(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                              const nb_attention *a);
/* The same, and lse [T, H] unless its buf is NULL. */
void nb_cpu_attention_train(nb_backend *be, nb_view out, nb_view lse, nb_view q, nb_view k,
                            nb_view v, const nb_attention *a);
void nb_cpu_attention_few(nb_backend *be, nb_view out, nb_view lse, nb_view q, nb_view k, nb_view v,
                          const nb_attention *a);

/* kv_cpu.c */
nb_status nb_cpu_kv_create(nb_backend *be, const nb_kv_desc *d, nb_kv **out, nb_error *err);
void nb_cpu_kv_free(nb_backend *be, nb_kv *kv);
size_t nb_cpu_kv_bytes(const nb_kv *kv);
void nb_cpu_kv_append(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0);
void nb_cpu_kv_attention(nb_backend *be, nb_view out, nb_view q, nb_kv *kv, const nb_attention *a);

/* pointwise_cpu.c */
void nb_cpu_norm_forward(nb_backend *be, nb_view out, nb_view x, const nb_norm *norm);
void nb_cpu_rope_forward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved);
void nb_cpu_add_forward(nb_backend *be, nb_view out, nb_view a, nb_view b);
void nb_cpu_glu_forward(nb_backend *be, nb_view out, nb_view gate, nb_view up, nb_act_kind act);
void nb_cpu_act_forward(nb_backend *be, nb_view out, nb_view x, nb_act_kind act);
void nb_cpu_hadamard_forward(nb_backend *be, nb_view x, int64_t n);

/* train_cpu.c */
void nb_cpu_bias_forward(nb_backend *be, nb_view x, nb_view bias);
void nb_cpu_col_sum(nb_backend *be, nb_view out, nb_view a, nb_view b, bool add);
void nb_cpu_norm_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, const nb_norm *norm,
                          bool add);
void nb_cpu_rope_backward(nb_backend *be, nb_view x, int n_heads, nb_view table, bool interleaved);
void nb_cpu_glu_backward(nb_backend *be, nb_view dgate, nb_view dup, nb_view dout, nb_view gate,
                         nb_view up, nb_act_kind act);
void nb_cpu_act_backward(nb_backend *be, nb_view dx, nb_view dy, nb_view x, nb_act_kind act);
double nb_cpu_mse_backward(nb_backend *be, nb_view dy, nb_view y, nb_view target, bool unit,
                           double scale, bool add);
void nb_cpu_adamw_step(nb_backend *be, nb_view param, nb_view grad, nb_view m, nb_view v, double lr,
                       double beta1, double beta2, double eps, int64_t t);
void nb_cpu_sign_step(nb_backend *be, nb_view param, nb_view grad, double lr, double lo, double hi);
/* out [1, C] = sum over blocks of partial [n_blocks, C], which is overwritten (+ out). */
void nb_cpu_sum_blocks(nb_backend *be, nb_view out, float *partial, int64_t n_blocks, bool add);

/* attention_back_cpu.c */
void nb_cpu_attention_backward(nb_backend *be, nb_view dq, nb_view dk, nb_view dv, nb_view dout,
                               nb_view out, nb_view lse, nb_view q, nb_view k, nb_view v,
                               const nb_attention *a);

/* quant_cpu.c */
void nb_cpu_quant_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *fmt);
void nb_cpu_quant_backward(nb_backend *be, nb_view dx, nb_view g, nb_view x, const nb_format *fmt);
void nb_cpu_clip_forward(nb_backend *be, nb_view out, nb_view w, nb_view row, nb_view col,
                         nb_view u, nb_view l, const nb_format *fmt);
void nb_cpu_clip_backward(nb_backend *be, nb_view du, nb_view dl, nb_view colsum, nb_view g,
                          nb_view w, nb_view row, nb_view col, nb_view u, nb_view l, bool zero,
                          const nb_format *fmt);
void nb_cpu_round_forward(nb_backend *be, nb_view out, nb_view w, nb_view v, nb_view hi, nb_view lo,
                          const nb_format *fmt);
void nb_cpu_round_backward(nb_backend *be, nb_view dv, nb_view dhi, nb_view dlo, nb_view g,
                           nb_view w, nb_view v, nb_view hi, nb_view lo, bool zero,
                           const nb_format *fmt);

/* loss_cpu.c */
void nb_cpu_nll_forward(nb_backend *be, double *nll, nb_view logits, const int32_t *targets);
void nb_cpu_kl_forward(nb_backend *be, double *kl, uint8_t *same, nb_view ref, nb_view logits);

#endif
