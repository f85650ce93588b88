/* Opening of plug-ins, and what they call back. */
#include "op/plugin.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "op/cpu/backend_cpu.h"
#include "op/kv_store.h"

static const struct {
    const char *device, *file;
} plugins[] = {{"cuda", "libnibble-cuda.so"}};

const nb_plugin_host nb_plugin_host_table = {
    .backend_create = nb_backend_create,
    .backend_free = nb_backend_free,
    .fail = nb_fail,
    .fault_set = nb_fault_set,
    .fault_take = nb_fault_take,
    .fault_check_ids = nb_fault_check_ids,
    .matrix_dequant = nb_matrix_dequant,
    .kv_check = nb_kv_check,
    .fake_quant = nb_cpu_fake_quant,
    .dialect_round = nb_dialect_round,
    .dialect_benefit = nb_dialect_benefit,
};

/* File of the plug-in for "NAME" or "NAME:i"; NULL: none. */
static const char *find_file(const char *device)
{
    for (size_t i = 0; i < NB_COUNT(plugins); i++) {
        size_t n = strlen(plugins[i].device);
        if (strncmp(device, plugins[i].device, n) != 0) continue;
        if (device[n] == '\0' || device[n] == ':') return plugins[i].file;
    }
    return NULL;
}

bool nb_plugin_has(const char *device) { return find_file(device) != NULL; }

static nb_status open_ops(void *handle, const char *file, const nb_ops **ops, nb_error *err)
{
    nb_plugin_open_fn open;
    void *symbol = dlsym(handle, NB_PLUGIN_OPEN);
    if (!symbol) return nb_fail(err, NB_ERESOURCE, "%s: no function " NB_PLUGIN_OPEN, file);
    memcpy(&open, &symbol, sizeof open); /* C has no cast from an object to a function */
    const nb_plugin_build mine = NB_PLUGIN_BUILD;
    nb_plugin_build its = {0};
    *ops = open(&its);
    if (*ops && memcmp(&mine, &its, sizeof mine) == 0) return NB_OK;
    return nb_fail(err, NB_ERESOURCE, "%s: of another build of nibble", file);
}

nb_status nb_plugin_load(const char *device, const nb_ops **ops, void **handle, nb_error *err)
{
    const char *file = find_file(device);
    *handle = NULL;
    if (!file) return nb_fail(err, NB_EUSAGE, "device \"%.40s\": unknown", device);
    void *so = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!so) return nb_fail(err, NB_ERESOURCE, "device \"%.40s\": %.300s", device, dlerror());
    nb_status st = open_ops(so, file, ops, err);
    if (st != NB_OK) {
        nb_plugin_close(so);
        return st;
    }
    *handle = so;
    return NB_OK;
}

void nb_plugin_close(void *handle)
{
    if (handle) dlclose(handle);
}
