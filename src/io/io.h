/* Containers of named tensors: safetensors and GGUF, mapped read-only.
 *
 * Every parser is pure over (bytes, length): no name, count, offset or product from a file is
 * trusted. A malformed file gives NB_EINPUT with file, tensor, field, expected and found. */
#ifndef NB_IO_IO_H
#define NB_IO_IO_H

#include "base/file.h"
#include "base/status.h"
#include "format/dtype.h"

#define NB_MAX_DIMS 4 /* of a weight; a file's own limit may be larger, then it is refused */

typedef struct nb_tensor {
    const char *name;
    nb_dtype dtype;
    int n_dims;
    int64_t dims[NB_MAX_DIMS]; /* outermost first (GGUF stores them reversed) */
    const uint8_t *data;       /* in the mapping */
    size_t n_bytes;
    const char *hash; /* XXH3-128 recorded in the file's metadata, or NULL */
    int shard;
} nb_tensor;

/* ---- metadata of a GGUF file ------------------------------------------------------------- */

typedef enum nb_meta_type {
    NB_META_U8,
    NB_META_I8,
    NB_META_U16,
    NB_META_I16,
    NB_META_U32,
    NB_META_I32,
    NB_META_F32,
    NB_META_BOOL,
    NB_META_STRING,
    NB_META_ARRAY,
    NB_META_U64,
    NB_META_I64,
    NB_META_F64,
} nb_meta_type; /* the numbers of the GGUF specification */

typedef struct nb_meta {
    const char *key; /* NUL-terminated copy */
    nb_meta_type type;
    nb_meta_type elem;   /* of an array (never NB_META_ARRAY)                                  */
    uint64_t n;          /* elements of an array; bytes of a string                            */
    const uint8_t *data; /* the value's bytes, unaligned, in the mapping; a string's characters
                            without their length; array strings each as u64 length + bytes     */
    size_t n_bytes;      /* of data                                                            */
} nb_meta;

/* ---- checkpoint --------------------------------------------------------------------------- */

typedef enum nb_container { NB_SAFETENSORS, NB_GGUF } nb_container;

typedef struct nb_checkpoint nb_checkpoint;

/* A directory (model.safetensors, or model.safetensors.index.json and its shards; config.json) or
 * one .gguf or .safetensors file. */
nb_status nb_checkpoint_open(nb_checkpoint **out, const char *path, nb_error *err);
void nb_checkpoint_close(nb_checkpoint *c);

nb_container nb_checkpoint_container(const nb_checkpoint *c);
const char *nb_checkpoint_path(const nb_checkpoint *c);
/* Directory that holds config.json and tokenizer files ("." for a file without one). */
const char *nb_checkpoint_dir(const nb_checkpoint *c);
/* Text of config.json, or NULL if there is none. */
const char *nb_checkpoint_config(const nb_checkpoint *c, size_t *n_bytes);
int64_t nb_checkpoint_bytes(const nb_checkpoint *c); /* of all weight files */
/* One checksum for all that the weights are made of: names, types, shapes, bytes. Reads all. */
nb_status nb_checkpoint_hash(const nb_checkpoint *c, char out[33], nb_error *err);

size_t nb_checkpoint_count(const nb_checkpoint *c);
const nb_tensor *nb_checkpoint_at(const nb_checkpoint *c, size_t i); /* by name; NULL: no more */
const nb_tensor *nb_checkpoint_find(const nb_checkpoint *c, const char *name); /* NULL: none */
/* The tensor's pages are not needed for now. */
void nb_checkpoint_release(const nb_checkpoint *c, const nb_tensor *t);

/* GGUF metadata; NULL if absent (always for safetensors). */
const nb_meta *nb_checkpoint_meta(const nb_checkpoint *c, const char *key);

/* Any integer or bool type as int64, any float or integer type as double: false if it is not one
 * or does not fit. */
bool nb_meta_int(const nb_meta *m, int64_t *out);
bool nb_meta_float(const nb_meta *m, double *out);
bool nb_meta_bool(const nb_meta *m, bool *out);
bool nb_meta_string(const nb_meta *m, const char **s, size_t *n_bytes);
/* Element i of a numeric array. */
bool nb_meta_array_int(const nb_meta *m, uint64_t i, int64_t *out);
bool nb_meta_array_float(const nb_meta *m, uint64_t i, double *out);
/* Walks an array of strings: start with *pos = 0; false at the end. */
bool nb_meta_next_string(const nb_meta *m, size_t *pos, const char **s, size_t *n_bytes);

/* ---- parsers, pure, for the fuzzers ------------------------------------------------------ */

typedef struct nb_tensor_list {
    nb_tensor *items; /* in file order */
    size_t n;
    struct nb_arena *arena; /* owns names, items and meta */
    nb_meta *meta;          /* GGUF */
    size_t n_meta;
    /* safetensors __metadata__, in file order: key, value, key, value, ... */
    const char *const *st_meta;
    size_t n_st_meta; /* pairs */
} nb_tensor_list;

nb_status nb_safetensors_parse(nb_tensor_list *out, const uint8_t *data, size_t n_bytes,
                               nb_error *err);
nb_status nb_gguf_parse(nb_tensor_list *out, const uint8_t *data, size_t n_bytes, nb_error *err);
void nb_tensor_list_fini(nb_tensor_list *l);

/* ---- writing ------------------------------------------------------------------------------ */

/* One safetensors file, atomically: tensors in the order given, header padded so that data begin
 * on a 64-byte boundary, an XXH3-128 checksum per tensor in __metadata__ under "xxh3:NAME", and
 * the pairs of `meta` (key, value, ...; n_meta pairs). Only name, dtype, dims, data and n_bytes of
 * the tensors are read. Same input, same bytes. */
nb_status nb_safetensors_write(const char *path, const nb_tensor *tensors, size_t n,
                               const char *const *meta, size_t n_meta, nb_error *err);

/* NumPy .npy version 1.0, atomically. */
nb_status nb_npy_write_f32(const char *path, const float *data, int64_t n_rows, int64_t n_cols,
                           nb_error *err);

#endif
