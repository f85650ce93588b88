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
    NB_CPU_PANEL,  /* decoded weights; packed keys and values */
    NB_CPU_THREAD, /* one piece per thread */
    NB_CPU_LOW,    /* inputs of low-rank factors */
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
/* Row n of the weight as fp32. */
void nb_cpu_dequant_row(const nb_linear *w, int64_t n, float *out);

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

/* gram_cpu.c */
void nb_cpu_gram_forward(nb_backend *be, nb_view out, nb_view x, const nb_format *act, bool unit);

/* attention_cpu.c, attention_few_cpu.c */
void nb_cpu_attention_forward(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                              const nb_attention *a);
void nb_cpu_attention_few(nb_backend *be, nb_view out, nb_view q, nb_view k, nb_view v,
                          const nb_attention *a);

/* kv_cpu.c */
nb_status nb_cpu_kv_create(nb_backend *be, const nb_kv_desc *d, nb_kv **out, nb_error *err);
void nb_cpu_kv_free(nb_backend *be, nb_kv *kv);
size_t nb_cpu_kv_bytes(const nb_kv *kv);
void nb_cpu_kv_append(nb_backend *be, nb_kv *kv, nb_view k, nb_view v, int64_t pos0);
void nb_cpu_kv_attention(nb_backend *be, nb_view out, nb_view q, nb_kv *kv, const nb_attention *a);

/* pointwise_cpu.c */
void nb_cpu_norm_forward(nb_backend *be, nb_view out, nb_view x, const nb_norm *norm);
void nb_cpu_rope_forward(nb_backend *be, nb_view x, int n_heads, nb_view table);
void nb_cpu_add_forward(nb_backend *be, nb_view out, nb_view a, nb_view b);
void nb_cpu_glu_forward(nb_backend *be, nb_view out, nb_view gate, nb_view up, nb_act_kind act);
void nb_cpu_act_forward(nb_backend *be, nb_view out, nb_view x, nb_act_kind act);

/* loss_cpu.c */
void nb_cpu_nll_forward(nb_backend *be, double *nll, nb_view logits, const int32_t *targets);
void nb_cpu_kl_forward(nb_backend *be, double *kl, uint8_t *same, nb_view ref, nb_view logits);

#endif
