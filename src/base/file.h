/* Files: read-only mappings, whole reads, atomic writes (temp + fsync + rename). POSIX. */
#ifndef NB_BASE_FILE_H
#define NB_BASE_FILE_H

#include "base/status.h"

/* A read-only mapping of a whole regular file; nothing ever writes into it. */
typedef struct nb_map {
    const unsigned char *data; /* NULL for an empty file */
    size_t n_bytes;
} nb_map;

nb_status nb_map_open(nb_map *out, const char *path, nb_error *err);
void nb_map_close(nb_map *m); /* zeroes *m */

/* Tells the kernel that a part of the mapping is not needed for now: keeps the resident set small
 * while a checkpoint larger than memory is walked. */
void nb_map_release(const nb_map *m, const void *p, size_t n_bytes);

/* Whole file into malloc'ed memory with a NUL behind it. Refuses more than max_bytes. */
nb_status nb_read_file(const char *path, size_t max_bytes, char **data, size_t *n_bytes,
                       nb_error *err);

/* A file that appears under `path` only when nb_outfile_commit succeeds. */
typedef struct nb_outfile nb_outfile;
nb_status nb_outfile_open(nb_outfile **out, const char *path, nb_error *err);
nb_status nb_outfile_write(nb_outfile *f, const void *data, size_t n_bytes, nb_error *err);
/* fsync, rename, fsync of the directory; frees f in every case. */
nb_status nb_outfile_commit(nb_outfile *f, nb_error *err);
void nb_outfile_abort(nb_outfile *f); /* removes the temporary file and frees f */

/* The three calls above in one. */
nb_status nb_write_file(const char *path, const void *data, size_t n_bytes, nb_error *err);

/* A file without a name, for what does not fit into memory: gone when it is closed or when the
 * process ends, however it ends. It has its name for an instant; a kill in that instant leaves an
 * empty NB_SCRATCH_NAME, which the next one in that directory takes over. */
#define NB_SCRATCH_NAME "scratch.tmp"
typedef struct nb_scratch nb_scratch;
/* With room for n_bytes, taken at once where the file system can. */
nb_status nb_scratch_open(nb_scratch **out, const char *dir, int64_t n_bytes, nb_error *err);
nb_status nb_scratch_write(nb_scratch *f, int64_t at, const void *data, size_t n_bytes,
                           nb_error *err);
/* NB_EINPUT if fewer bytes are there. */
nb_status nb_scratch_read(nb_scratch *f, int64_t at, void *data, size_t n_bytes, nb_error *err);
void nb_scratch_close(nb_scratch *f);

nb_status nb_make_dir(const char *path, nb_error *err); /* an existing directory is fine */
/* Removes a directory and what lies in it, or a file or link; a missing one is fine. */
nb_status nb_remove_tree(const char *path, nb_error *err);
nb_status nb_rename(const char *from, const char *to, nb_error *err); /* + fsync of the parent */
bool nb_path_exists(const char *path);
bool nb_path_is_dir(const char *path);
/* -1 if there is none. */
int64_t nb_file_bytes(const char *path);
/* Bytes free for an unprivileged writer on the file system of `path` (or its parent). */
int64_t nb_disk_free(const char *path);
/* malloc'ed "dir/name"; NULL when memory is out. */
char *nb_path_join(const char *dir, const char *name);

#endif
