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

bool nb_all_finite(const float *x, int64_t n);
int64_t nb_count_nonfinite(const float *x, int64_t n);

/* Parameters of every group of a row that arrives online: p [groups]. */
void nb_fit_online_row(const nb_format *f, const float *x, int64_t n, nb_qparam *p);

/* Those, and codes [n]. A row that is not finite becomes NaN, or saturates (nb_fake_quant_row);
 * returns how many values did. */
int64_t nb_quant_row(const nb_format *f, const float *x, int64_t n, uint8_t *codes, nb_qparam *p);

/* out = decode(encode(x)) with parameters fitted to each group of the row. out may be x. A row
 * that is not finite is copied, so that NaN reaches the loss, where it is reported; formats with a
 * rule for it (fit_online) saturate such values instead. Returns how many did, for
 * nb_backend.nonfinite. */
int64_t nb_fake_quant_row(const nb_format *f, const float *x, int64_t n, float *out);

/* The same for n_rows rows, ld and ld_out floats apart, that begin where a group of several rows
 * (nb_format.tile) does. */
int64_t nb_fake_quant_rows(const nb_format *f, const float *x, int64_t ld, int64_t n_rows,
                           int64_t n, float *out, int64_t ld_out);
/* Rows that have to stay together. */
static inline int64_t nb_tile_rows(const nb_format *f) { return f && f->tile > 1 ? f->tile : 1; }

#endif
