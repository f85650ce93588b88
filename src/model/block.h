/* Pieces of a block that the ends of a model use too. */
#ifndef NB_MODEL_BLOCK_H
#define NB_MODEL_BLOCK_H

#include "model/model.h"

nb_status nb_norm_create(nb_backend *be, const nb_config *cfg, const nb_host_norm *h, nb_norm *out,
                         nb_error *err);
void nb_norm_free(nb_backend *be, nb_norm *n);

/* Scratch [n_rows, n_embd] that is free between blocks. */
nb_view nb_workspace_norm(nb_workspace *ws, int64_t n_rows);

#endif
