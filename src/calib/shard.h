/* One safetensors file of the output while it is put together. */
#ifndef NB_CALIB_SHARD_H
#define NB_CALIB_SHARD_H

#include "base/hash.h"
#include "model/model.h"

/* 7 linears of at most 4 planes, a bias and two factors of planes, 4 norms of two vectors. */
#define NB_SHARD_TENSORS (NB_N_ROLES * (3 * NB_MAX_PLANES + 1) + 2 * NB_N_NORMS)

typedef struct nb_shard {
    nb_arena *arena; /* of the names; borrowed */
    nb_tensor items[NB_SHARD_TENSORS];
    size_t n;
} nb_shard;

/* Data are borrowed until the shard is written. */
nb_status nb_shard_add_vector(nb_shard *s, const char *module, const char *field, const float *data,
                              int64_t n, nb_error *err);
/* MODULE.weight of a storage type, or MODULE.weight.PLANE of a quantized format;
 * MODULE.weight.lorc_a and .lorc_b, or their planes, where it has factors; and the bias. */
nb_status nb_shard_add_linear(nb_shard *s, const nb_host_linear *l, nb_error *err);
nb_status nb_shard_add_norm(nb_shard *s, const nb_host_norm *norm, nb_error *err);

/* Writes the file and gives its checksum and size. */
nb_status nb_shard_write(const nb_shard *s, const char *path, char hash[NB_HASH_CHARS],
                         int64_t *n_bytes, nb_error *err);

/* Checksum of a whole file, with a small resident set. */
nb_status nb_file_hash(const char *path, char hash[NB_HASH_CHARS], nb_error *err);

#endif
