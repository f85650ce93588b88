/* What the backends share: the sticky failure, and fake quantization of one row. */
#ifndef NB_OP_COMMON_H
#define NB_OP_COMMON_H

#include "op/op.h"

/* The first failure since it was last taken; status NB_OK: none. */
typedef struct nb_fault {
    nb_error first;
} nb_fault;

void nb_fault_set(nb_fault *f, nb_status status, const char *fmt, ...) NB_PRINTF(3, 4);
void nb_fault_set_memory(nb_fault *f, const char *what, size_t n_bytes);
nb_status nb_fault_take(nb_fault *f, nb_error *err);

/* True if all n ids lie in [0, limit); otherwise a fault that names the first one. */
bool nb_fault_check_ids(nb_fault *f, const char *what, const int32_t *ids, int64_t n,
                        int64_t limit);

bool nb_row_is_finite(const float *x, int64_t n);

/* True for the family whose products are sums of small integers, and whose online rule takes any
 * values (spec: BlockDialect D6). */
bool nb_format_is_dialect(const nb_format *f);

/* Parameters [groups] fitted to each group of a row that arrives online, and codes [n]. A row that
 * is not finite becomes NaN, unless the format takes any values. */
void nb_quant_row(const nb_format *f, const float *x, int64_t n, uint8_t *codes, nb_qparam *p);

/* out = decode(encode(x)) with parameters fitted to each group of the row. out may be x. A row
 * that is not finite is copied, unless the format takes any values: NaN must reach the loss, where
 * it is reported. */
void nb_fake_quant_row(const nb_format *f, const float *x, int64_t n, float *out);

#endif
