/* Backends that are opened at run time: "cuda" lives in libnibble-cuda.so, so that one build of the
 * library runs with and without a GPU. The plug-in exports one function, NB_PLUGIN_OPEN. */
#ifndef NB_OP_PLUGIN_H
#define NB_OP_PLUGIN_H

#include "format/dialect_codec.h"
#include "op/common.h"

#define NB_PLUGIN_OPEN "nb_plugin_open"

/* What a plug-in calls back: the library's own code, one copy of it. */
typedef struct nb_plugin_host {
    nb_status (*backend_create)(nb_backend **out, const nb_options *opt, nb_error *err);
    void (*backend_free)(nb_backend *be);
    nb_status (*fail)(nb_error *err, nb_status status, const char *fmt, ...);
    void (*fault_set)(nb_fault *f, nb_status status, const char *fmt, ...);
    nb_status (*fault_take)(nb_fault *f, nb_error *err);
    bool (*fault_check_ids)(nb_fault *f, const char *what, const int32_t *ids, int64_t n,
                            int64_t limit);
    void (*matrix_dequant)(const nb_matrix *m, int64_t row, int64_t n_rows, float *out);
    nb_status (*kv_check)(const nb_kv_desc *d, nb_error *err);
    /* out [n_rows, n] = rows of x, ld apart, as linears quantize their input, on all threads of the
     * backend "cpu"; returns how many values saturated that were not finite. */
    int64_t (*fake_quant)(nb_backend *cpu, const nb_format *f, const float *x, int64_t ld,
                          int64_t n_rows, int64_t n, float *out);
    const uint8_t (*dialect_round)[32];      /* nb_dialect_round */
    const nb_dialect_range *dialect_benefit; /* nb_dialect_benefit */
} nb_plugin_host;

/* What a plug-in knows of the library it was built with; sizes differ where headers do. */
typedef struct nb_plugin_build {
    size_t ops_bytes, backend_bytes, format_bytes, family_bytes, host_bytes;
} nb_plugin_build;

#define NB_PLUGIN_BUILD                                                                            \
    {                                                                                              \
        sizeof(nb_ops), sizeof(struct nb_backend), sizeof(nb_format), sizeof(nb_format_family),    \
            sizeof(nb_plugin_host)                                                                 \
    }

/* Its ops; *build is what it was built with. */
typedef const nb_ops *(*nb_plugin_open_fn)(nb_plugin_build *build);

/* Opens the plug-in of a device named in full ("cuda", "cuda:1"): *ops, and *handle to close.
 * NB_EUSAGE: no plug-in knows this name. NB_ERESOURCE: it cannot be opened, or is of another
 * build. */
nb_status nb_plugin_load(const char *device, const nb_ops **ops, void **handle, nb_error *err);
void nb_plugin_close(void *handle);
bool nb_plugin_has(const char *device); /* the name is one of a plug-in's */

extern const nb_plugin_host nb_plugin_host_table;

#endif
