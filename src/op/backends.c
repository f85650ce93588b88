/* The table of backends, and the head they have in common. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "op/plugin.h"

extern const nb_ops nb_ops_cpu;
extern const nb_ops nb_ops_ref;
extern const nb_ops nb_ops_ref64;

const nb_ops *const nb_backends[] = {
    &nb_ops_cpu,
    &nb_ops_ref,
    &nb_ops_ref64,
    NULL,
};

/* An option beyond any machine that this is built for. */
#define MAX_THREADS 1024

static const nb_ops *find_ops(const char *name)
{
    for (int i = 0; nb_backends[i]; i++) {
        if (strcmp(nb_backends[i]->name, name) == 0) return nb_backends[i];
    }
    return NULL;
}

static nb_status fail_device(const char *name, nb_error *err)
{
    char list[100] = "";
    for (int i = 0; nb_backends[i]; i++) {
        if (i) strncat(list, ", ", sizeof list - strlen(list) - 1);
        strncat(list, nb_backends[i]->name, sizeof list - strlen(list) - 1);
    }
    return nb_fail(err, NB_EUSAGE, "device \"%.40s\": unknown; there are %s, cuda, cuda:N", name,
                   list);
}

/* The ops of a device and, where a plug-in brings them, its handle. */
static nb_status find_device(const char *device, const nb_ops **ops, void **plugin, nb_error *err)
{
    *plugin = NULL;
    *ops = find_ops(device);
    if (*ops) return NB_OK;
    size_t room = sizeof((nb_backend *)0)->device;
    if (!nb_plugin_has(device) || strlen(device) >= room) return fail_device(device, err);
    return nb_plugin_load(device, ops, plugin, err);
}

static nb_status start(nb_backend *be, const nb_options *opt, const char *device, nb_error *err)
{
    NB_TRY(find_device(device, &be->ops, &be->plugin, err));
    snprintf(be->device, sizeof be->device, "%s", device);
    be->host = &nb_plugin_host_table;
    be->compute = opt->compute;
    be->threads = opt->threads ? opt->threads : nb_cpu_count();
    be->cpu = nb_cpu_features() & opt->cpumask;
    return be->ops->create(be, err);
}

nb_status nb_backend_create(nb_backend **out, const nb_options *opt, nb_error *err)
{
    *out = NULL;
    const char *device = opt->device ? opt->device : "cpu";
    if (opt->threads < 0 || opt->threads > MAX_THREADS) {
        return nb_fail(err, NB_EUSAGE, "threads: expected 0 to %d, got %d", MAX_THREADS,
                       opt->threads);
    }
    if (opt->compute != NB_COMPUTE_F32 && opt->compute != NB_COMPUTE_BF16) {
        return nb_fail(err, NB_EUSAGE, "compute: unknown mode %d", (int)opt->compute);
    }
    nb_backend *be = calloc(1, sizeof *be);
    if (!be) return nb_fail_memory(err, "backend", sizeof *be);
    nb_status st = start(be, opt, device, err);
    if (st != NB_OK) {
        nb_plugin_close(be->plugin);
        free(be);
        return st;
    }
    *out = be;
    return NB_OK;
}

void nb_backend_free(nb_backend *be)
{
    if (!be) return;
    be->ops->destroy(be);
    nb_plugin_close(be->plugin);
    free(be);
}
