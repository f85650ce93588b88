/* A checkpoint: one or more mapped files and one sorted list of their tensors. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/size.h"
#include "io/index.h"
#include "io/tensor_list.h"

#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE  "model.safetensors.index.json"
#define CONFIG_FILE "config.json"

#define MAX_INDEX_BYTES  ((size_t)64 << 20)
#define MAX_CONFIG_BYTES ((size_t)16 << 20)
#define HASH_STEP_BYTES  ((size_t)64 << 20) /* stay resident while the checksum is made */

typedef struct shard {
    char *path;
    nb_map map;
    nb_tensor_list list;
} shard;

struct nb_checkpoint {
    nb_container container;
    char *path, *dir;
    char *config; /* NULL: none */
    size_t config_bytes;
    shard *shards;
    size_t n_shards;
    nb_tensor *tensors; /* sorted by name */
    size_t n;
    nb_arena *arena; /* owns `tensors` and the index */
};

void nb_checkpoint_close(nb_checkpoint *c)
{
    if (!c) return;
    for (size_t i = 0; i < c->n_shards; i++) {
        nb_tensor_list_fini(&c->shards[i].list);
        nb_map_close(&c->shards[i].map);
        free(c->shards[i].path);
    }
    free(c->shards);
    nb_arena_free(c->arena);
    free(c->config);
    free(c->dir);
    free(c->path);
    free(c);
}

/* ---- opening ------------------------------------------------------------------------------- */

static nb_status alloc_shards(nb_checkpoint *c, size_t n, nb_error *err)
{
    c->shards = calloc(n, sizeof *c->shards);
    return c->shards ? NB_OK : nb_fail_memory(err, c->path, n * sizeof *c->shards);
}

/* Takes `path` (malloc'ed) over. */
static nb_status open_shard(nb_checkpoint *c, char *path, nb_error *err)
{
    if (!path) return nb_fail_memory(err, c->path, strlen(c->path));
    shard *s = &c->shards[c->n_shards++];
    s->path = path;
    NB_TRY(nb_map_open(&s->map, path, err));
    nb_status st = c->container == NB_GGUF
                       ? nb_gguf_parse(&s->list, s->map.data, s->map.n_bytes, err)
                       : nb_safetensors_parse(&s->list, s->map.data, s->map.n_bytes, err);
    return nb_wrap(err, st, "%s", path);
}

static nb_status open_single(nb_checkpoint *c, const char *path, nb_container container,
                             nb_error *err)
{
    c->container = container;
    NB_TRY(alloc_shards(c, 1, err));
    return open_shard(c, strdup(path), err);
}

static int compare_name(const void *key, const void *item)
{
    return strcmp(((const nb_tensor *)key)->name, ((const nb_tensor *)item)->name);
}

/* All tensors of all shards in one list, by name. */
static nb_status merge_shards(nb_checkpoint *c, nb_error *err)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_shards; i++) n += c->shards[i].list.n;
    c->tensors = nb_arena_alloc(c->arena, n, sizeof *c->tensors);
    if (!c->tensors) return nb_fail_memory(err, "tensor list", n * sizeof *c->tensors);
    for (size_t i = 0; i < c->n_shards; i++) {
        for (size_t k = 0; k < c->shards[i].list.n; k++) {
            c->tensors[c->n] = c->shards[i].list.items[k];
            c->tensors[c->n++].shard = (int)i;
        }
    }
    qsort(c->tensors, c->n, sizeof *c->tensors, compare_name);
    for (size_t i = 1; i < c->n; i++) {
        const nb_tensor *a = &c->tensors[i - 1], *b = &c->tensors[i];
        if (strcmp(a->name, b->name) == 0) {
            return nb_fail(err, NB_EINPUT, "%s: tensor \"%s\" is in two shards, %s and %s", c->path,
                           a->name, c->shards[a->shard].path, c->shards[b->shard].path);
        }
    }
    return NB_OK;
}

/* Every entry of the index is where the index says. */
static nb_status check_index(const nb_checkpoint *c, const nb_shard_index *x, nb_error *err)
{
    for (size_t i = 0; i < x->n; i++) {
        const nb_shard_entry *e = &x->entries[i];
        const nb_tensor *t = nb_checkpoint_find(c, e->tensor);
        if (!t || strcmp(x->shards[t->shard], e->shard) != 0) {
            return nb_fail(err, NB_EINPUT,
                           "%s: %s: weight_map: tensor \"%.100s\" is not in shard %.100s", c->path,
                           INDEX_FILE, e->tensor, e->shard);
        }
    }
    return NB_OK;
}

static nb_status open_sharded(nb_checkpoint *c, const char *index_path, nb_error *err)
{
    char *text;
    size_t n_bytes;
    nb_shard_index x;
    NB_TRY(nb_read_file(index_path, MAX_INDEX_BYTES, &text, &n_bytes, err));
    nb_status st = nb_shard_index_parse(&x, c->arena, text, n_bytes, err);
    free(text);
    if (st != NB_OK) return nb_wrap(err, st, "%s", index_path);
    NB_TRY(alloc_shards(c, x.n_shards, err));
    for (size_t i = 0; i < x.n_shards; i++) {
        NB_TRY(open_shard(c, nb_path_join(c->dir, x.shards[i]), err));
    }
    NB_TRY(merge_shards(c, err));
    return check_index(c, &x, err);
}

static bool ends_with(const char *s, const char *suffix)
{
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && strcmp(s + n - k, suffix) == 0;
}

/* malloc'ed path of the only .gguf file of the directory. */
static nb_status find_gguf(const nb_checkpoint *c, char **out, nb_error *err)
{
    *out = NULL;
    DIR *d = opendir(c->dir);
    if (!d) return nb_fail(err, NB_EINPUT, "%s: cannot list the directory", c->dir);
    size_t found = 0;
    for (struct dirent *e; (e = readdir(d));) {
        if (!ends_with(e->d_name, ".gguf") || found++ > 0) continue;
        *out = nb_path_join(c->dir, e->d_name);
    }
    closedir(d);
    if (found == 1 && !*out) return nb_fail_memory(err, c->dir, strlen(c->dir));
    if (found == 1) return NB_OK;
    free(*out);
    *out = NULL;
    if (found > 1) {
        return nb_fail(err, NB_EINPUT, "%s: %zu .gguf files; name one of them", c->dir, found);
    }
    return nb_fail(err, NB_EINPUT,
                   "%s: no weights: expected " SINGLE_FILE ", " INDEX_FILE " or a .gguf file",
                   c->dir);
}

static nb_status open_gguf_in_dir(nb_checkpoint *c, nb_error *err)
{
    char *path;
    NB_TRY(find_gguf(c, &path, err));
    nb_status st = open_single(c, path, NB_GGUF, err);
    free(path);
    return st == NB_OK ? merge_shards(c, err) : st;
}

static nb_status open_dir(nb_checkpoint *c, nb_error *err)
{
    char *single = nb_path_join(c->dir, SINGLE_FILE), *index = nb_path_join(c->dir, INDEX_FILE);
    nb_status st;
    if (!single || !index) {
        st = nb_fail_memory(err, c->dir, strlen(c->dir));
    } else if (nb_path_exists(single)) {
        st = open_single(c, single, NB_SAFETENSORS, err);
        if (st == NB_OK) st = merge_shards(c, err);
    } else if (nb_path_exists(index)) {
        st = open_sharded(c, index, err);
    } else {
        st = open_gguf_in_dir(c, err);
    }
    free(single);
    free(index);
    return st;
}

static nb_status open_file(nb_checkpoint *c, nb_error *err)
{
    if (ends_with(c->path, ".gguf")) {
        NB_TRY(open_single(c, c->path, NB_GGUF, err));
    } else if (ends_with(c->path, ".safetensors")) {
        NB_TRY(open_single(c, c->path, NB_SAFETENSORS, err));
    } else {
        return nb_fail(err, NB_EINPUT, "%s: expected a directory, a .gguf or a .safetensors file",
                       c->path);
    }
    return merge_shards(c, err);
}

/* A part of a split GGUF file has only some of the tensors. */
static nb_status check_split(const nb_checkpoint *c, nb_error *err)
{
    int64_t n;
    if (!nb_meta_int(nb_checkpoint_meta(c, "split.count"), &n) || n <= 1) return NB_OK;
    return nb_fail(err, NB_EINPUT,
                   "%s: split.count: one of %lld parts, merge them: llama-gguf-split --merge",
                   c->path, (long long)n);
}

/* The config beside a GGUF file may be another model's: GGUF has its own metadata. */
static nb_status read_config(nb_checkpoint *c, nb_error *err)
{
    if (c->container == NB_GGUF) return NB_OK;
    char *path = nb_path_join(c->dir, CONFIG_FILE);
    if (!path) return nb_fail_memory(err, c->dir, strlen(c->dir));
    nb_status st = NB_OK;
    if (nb_path_exists(path)) {
        st = nb_read_file(path, MAX_CONFIG_BYTES, &c->config, &c->config_bytes, err);
    }
    free(path);
    return st;
}

static char *parent_dir(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return strdup(".");
    return slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
}

nb_status nb_checkpoint_open(nb_checkpoint **out, const char *path, nb_error *err)
{
    *out = NULL;
    nb_checkpoint *c = calloc(1, sizeof *c);
    if (!c) return nb_fail_memory(err, path, sizeof *c);
    nb_status st;
    bool is_dir = nb_path_is_dir(path);
    c->path = strdup(path);
    c->dir = is_dir ? strdup(path) : parent_dir(path);
    NB_GOTO(st, nb_arena_create(&c->arena, err));
    NB_GOTO(st, c->path && c->dir ? NB_OK : nb_fail_memory(err, path, strlen(path)));
    if (!nb_path_exists(path)) {
        NB_GOTO(st, nb_fail(err, NB_EINPUT, "%s: no such file or directory", path));
    }
    NB_GOTO(st, is_dir ? open_dir(c, err) : open_file(c, err));
    NB_GOTO(st, check_split(c, err));
    NB_GOTO(st, read_config(c, err));
    *out = c;
    return NB_OK;
done:
    nb_checkpoint_close(c);
    return st;
}

/* ---- looking inside ------------------------------------------------------------------------ */

nb_container nb_checkpoint_container(const nb_checkpoint *c) { return c->container; }

const char *nb_checkpoint_path(const nb_checkpoint *c) { return c->path; }

const char *nb_checkpoint_dir(const nb_checkpoint *c) { return c->dir; }

const char *nb_checkpoint_config(const nb_checkpoint *c, size_t *n_bytes)
{
    if (n_bytes) *n_bytes = c->config_bytes;
    return c->config;
}

int64_t nb_checkpoint_bytes(const nb_checkpoint *c)
{
    int64_t sum = 0;
    for (size_t i = 0; i < c->n_shards; i++) sum += (int64_t)c->shards[i].map.n_bytes;
    return sum;
}

size_t nb_checkpoint_count(const nb_checkpoint *c) { return c->n; }

const nb_tensor *nb_checkpoint_at(const nb_checkpoint *c, size_t i)
{
    return i < c->n ? &c->tensors[i] : NULL;
}

const nb_tensor *nb_checkpoint_find(const nb_checkpoint *c, const char *name)
{
    nb_tensor key = {.name = name};
    if (c->n == 0) return NULL;
    return bsearch(&key, c->tensors, c->n, sizeof key, compare_name);
}

void nb_checkpoint_release(const nb_checkpoint *c, const nb_tensor *t)
{
    nb_map_release(&c->shards[t->shard].map, t->data, t->n_bytes);
}

const nb_meta *nb_checkpoint_meta(const nb_checkpoint *c, const char *key)
{
    if (c->container != NB_GGUF) return NULL;
    const nb_tensor_list *l = &c->shards[0].list;
    for (size_t i = 0; i < l->n_meta; i++) {
        if (strcmp(l->meta[i].key, key) == 0) return &l->meta[i];
    }
    return NULL;
}

/* Per tensor: name and type with their NULs, number of dimensions, dimensions, bytes. */
static void hash_tensor(nb_hasher *h, const nb_checkpoint *c, const nb_tensor *t)
{
    const char *type = nb_dtypes[t->dtype].name;
    int64_t n_dims = t->n_dims;
    nb_hasher_add(h, t->name, strlen(t->name) + 1);
    nb_hasher_add(h, type, strlen(type) + 1);
    nb_hasher_add(h, &n_dims, sizeof n_dims);
    nb_hasher_add(h, t->dims, (size_t)n_dims * sizeof *t->dims);
    for (size_t i = 0; i < t->n_bytes; i += HASH_STEP_BYTES) {
        size_t left = t->n_bytes - i, n = left < HASH_STEP_BYTES ? left : HASH_STEP_BYTES;
        nb_hasher_add(h, t->data + i, n);
        nb_map_release(&c->shards[t->shard].map, t->data + i, n);
    }
}

nb_status nb_checkpoint_hash(const nb_checkpoint *c, char out[33], nb_error *err)
{
    nb_hasher *h;
    NB_TRY(nb_hasher_create(&h, err));
    for (size_t i = 0; i < c->n; i++) hash_tensor(h, c, &c->tensors[i]);
    nb_hasher_finish(h, out);
    return NB_OK;
}
