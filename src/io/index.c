#include "io/index.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* A shard lies in the directory of its index: names that lead elsewhere are an attack or an
 * accident. */
static nb_status check_shard_name(const char *shard, const char *tensor, nb_error *err)
{
    static const char suffix[] = ".safetensors";
    size_t n = strlen(shard), k = sizeof suffix - 1;
    if (strchr(shard, '/') || strstr(shard, "..")) {
        return nb_fail(err, NB_EINPUT,
                       "weight_map: \"%.80s\": shard name \"%.80s\" leads out of the directory",
                       tensor, shard);
    }
    if (n <= k || strcmp(shard + n - k, suffix) != 0) {
        return nb_fail(err, NB_EINPUT,
                       "weight_map: \"%.80s\": shard name \"%.80s\", expected NAME.safetensors",
                       tensor, shard);
    }
    return NB_OK;
}

static int compare_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static nb_status collect_shards(nb_shard_index *x, nb_arena *a, nb_error *err)
{
    x->shards = nb_arena_alloc(a, x->n, sizeof *x->shards);
    if (!x->shards) return nb_fail_memory(err, "list of shards", x->n * sizeof *x->shards);
    for (size_t i = 0; i < x->n; i++) x->shards[i] = x->entries[i].shard;
    qsort(x->shards, x->n, sizeof *x->shards, compare_string);
    for (size_t i = 0; i < x->n; i++) {
        if (i == 0 || strcmp(x->shards[i], x->shards[x->n_shards - 1]) != 0) {
            x->shards[x->n_shards++] = x->shards[i];
        }
    }
    return NB_OK;
}

static nb_status parse_map(nb_shard_index *x, nb_arena *a, json_t *map, nb_error *err)
{
    if (!json_is_object(map) || json_object_size(map) == 0) {
        return nb_fail(err, NB_EINPUT,
                       "weight_map: expected an object of tensor names and shard names");
    }
    x->entries = nb_arena_alloc(a, json_object_size(map), sizeof *x->entries);
    if (!x->entries) return nb_fail_memory(err, "weight_map", json_object_size(map));
    const char *tensor;
    json_t *v;
    json_object_foreach (map, tensor, v) {
        const char *shard = json_string_value(v);
        if (!shard) {
            return nb_fail(err, NB_EINPUT, "weight_map: \"%.80s\": expected a string", tensor);
        }
        NB_TRY(check_shard_name(shard, tensor, err));
        nb_shard_entry *e = &x->entries[x->n++];
        e->tensor = nb_arena_strndup(a, tensor, strlen(tensor));
        e->shard = nb_arena_strndup(a, shard, strlen(shard));
        if (!e->tensor || !e->shard) return nb_fail_memory(err, "weight_map", strlen(tensor));
    }
    return collect_shards(x, a, err);
}

nb_status nb_shard_index_parse(nb_shard_index *out, nb_arena *a, const char *text, size_t n_bytes,
                               nb_error *err)
{
    *out = (nb_shard_index){0};
    json_error_t e;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &e);
    if (!root && json_error_code(&e) == json_error_out_of_memory) {
        return nb_fail_memory(err, "index", n_bytes);
    }
    if (!root) {
        return nb_fail(err, NB_EINPUT, "not valid JSON: %s (line %d, column %d)", e.text, e.line,
                       e.column);
    }
    nb_status st = parse_map(out, a, json_object_get(root, "weight_map"), err);
    json_decref(root);
    return st;
}
