/* The scalar backend over REAL (float or double): the definition of every op. Never optimised.
 *
 * Weights and act formats are fp32 on both; what is computed from them is REAL. With
 * NB_COMPUTE_BF16 the inputs of matrix products (x, weights, q, k, v) are rounded to bf16 first;
 * softmax weights, which another backend may round as well, stay REAL. Of the low-rank product
 * (x b^T) a, what x meets is rounded: b. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

#include "base/size.h"
#include "format/dialect.h"
#include "format/half.h"
#include "format/ste.h"
#include "op/common.h"
#include "op/kv_store.h"

struct nb_buffer {
    REAL *data;
    int64_t n;
};

struct nb_linear {
    nb_matrix w;
    float *bias; /* [n_out] or NULL */
    nb_format act;
    int64_t rank;
    float *a, *b; /* [rank, n_out], [rank, n_in] where rank > 0 */
};

static nb_fault *fault(nb_backend *be) { return be->state; }

static REAL *row(nb_view v, int64_t r) { return v.buf->data + v.off + r * v.stride; }

/* What enters a product. */
static REAL operand(const nb_backend *be, REAL x)
{
    return be->compute == NB_COMPUTE_BF16 ? nb_bf16_to_f32(nb_bf16_from_f32((float)x)) : x;
}

#include "op/ref/memory_tmpl.h"

#include "op/ref/linear_tmpl.h"

#include "op/ref/attention_tmpl.h"

#include "op/ref/kv_tmpl.h"

#include "op/ref/loss_tmpl.h"
#include "op/ref/pointwise_tmpl.h"

#include "op/ref/attention_train_tmpl.h"
#include "op/ref/backward_tmpl.h"
#include "op/ref/quant_tmpl.h"

const nb_ops REF_OPS = {
    .name = REF_NAME,
    .real = REF_DTYPE,
    .create = ref_create,
    .destroy = ref_destroy,
    .sync = ref_sync,
    .buffer_create = buffer_create,
    .buffer_free = buffer_free,
    .upload = upload,
    .download = download,
    .copy = copy,
    .kv_create = kv_create,
    .kv_free = kv_free,
    .kv_bytes = kv_bytes,
    .kv_append = kv_append,
    .kv_attention = kv_attention,
    .linear_create = linear_create,
    .linear_free = linear_free,
    .linear_bytes = linear_bytes,
    .embed_forward = embed_forward,
    .linear_forward = linear_forward,
    .gram_forward = gram_forward,
    .norm_forward = norm_forward,
    .rope_forward = rope_forward,
    .hadamard_forward = hadamard_forward,
    .attention_forward = attention_forward,
    .add_forward = add_forward,
    .glu_forward = glu_forward,
    .act_forward = act_forward,
    .nll_forward = nll_forward,
    .kl_forward = kl_forward,
    .product = product,
    .bias_forward = bias_forward,
    .col_sum = col_sum,
    .norm_backward = norm_backward,
    .rope_backward = rope_backward,
    .attention_train = attention_train,
    .attention_backward = attention_backward,
    .glu_backward = glu_backward,
    .act_backward = act_backward,
    .quant_forward = quant_forward,
    .quant_backward = quant_backward,
    .clip_forward = clip_forward,
    .clip_backward = clip_backward,
    .round_forward = round_forward,
    .round_backward = round_backward,
    .mse_backward = mse_backward,
    .adamw_step = adamw_step,
    .sign_step = sign_step,
};
