/* Hidden states of many windows: on the device, or in a scratch file where they would take too much
 * memory. The bytes are the same either way: they are kept as the device computes them. */
#ifndef NB_MODEL_STATES_H
#define NB_MODEL_STATES_H

#include "op/op.h"

typedef struct nb_states_desc {
    int n_windows, seqlen;
    int64_t n_embd;
    int at_once;     /* windows of one load or room, at most */
    const char *dir; /* of the scratch file; NULL: on the device */
} nb_states_desc;

/* [n_windows * seqlen, n_embd]; each window is stored before it is loaded. */
typedef struct nb_states nb_states;
nb_status nb_states_create(nb_states **out, nb_backend *be, const nb_states_desc *d, nb_error *err);
void nb_states_free(nb_states *s);

/* *out [n * seqlen, n_embd]: windows w0 .. w0 + n. They may be written, and nb_states_store makes
 * that last. Valid until the next load or room of these states. */
nb_status nb_states_load(nb_states *s, int w0, int n, nb_view *out, nb_error *err);
/* The same where all of it is to be written first: what is there before means nothing. */
nb_view nb_states_room(nb_states *s, int w0, int n);
/* Windows w0 .. w0 + n, as the load or room at hand has them. */
nb_status nb_states_store(nb_states *s, int w0, int n, nb_error *err);

/* Memory that they take, of fp32 and with room for a piece that is on its way. */
int64_t nb_states_bytes(const nb_states_desc *d, bool in_file);

#endif
