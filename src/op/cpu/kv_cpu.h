/* Keys and values of the CPU backend. */
#ifndef NB_OP_CPU_KV_H
#define NB_OP_CPU_KV_H

#include "op/cpu/backend_cpu.h"
#include "op/kv_store.h"

struct nb_kv {
    nb_kv_desc d;
    nb_kv_store *store; /* or NULL: */
    nb_buffer k, v;     /* [rows, K*D], memory of whole pages */
    int64_t rows;
};

/* attention_kv_cpu.c */
void nb_cpu_attention_records(nb_backend *be, nb_view out, nb_view q, const nb_kv_store *s,
                              const nb_attention *a);

#endif
