/* What a run has finished so far: one JSON object per line, the first one the fingerprint of the
 * run, then one per finished shard. The file is small and replaced as a whole (temp, fsync,
 * rename), so that it is never torn. */
#ifndef NB_CALIB_JOURNAL_H
#define NB_CALIB_JOURNAL_H

#include <jansson.h>

#include "base/status.h"

typedef struct nb_journal {
    char *path;
    json_t *fingerprint; /* object */
    json_t *shards;      /* array of objects, in order of the shards */
} nb_journal;

/* Begins an empty journal on disk. The fingerprint's reference is not taken over. */
nb_status nb_journal_create(nb_journal *j, const char *path, json_t *fingerprint, nb_error *err);
/* Reads a journal; NB_EUSAGE naming the field if its fingerprint is another one. */
nb_status nb_journal_open(nb_journal *j, const char *path, json_t *fingerprint, nb_error *err);
/* Appends one shard and makes it durable; takes the reference to `shard` over in every case. */
nb_status nb_journal_add(nb_journal *j, json_t *shard, nb_error *err);
void nb_journal_fini(nb_journal *j);

/* NB_EUSAGE naming the first field of `expected` that `found` has otherwise. */
nb_status nb_fingerprint_check(json_t *expected, json_t *found, const char *where, nb_error *err);

/* Reals of journal and report: error figures, of which six digits mean something. */
#define NB_JSON_FLAGS JSON_REAL_PRECISION(6)

/* JSON text of a value as a file, atomically. */
nb_status nb_json_write(const char *path, json_t *value, size_t flags, nb_error *err);

#endif
