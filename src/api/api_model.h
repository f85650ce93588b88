/* Inside of the public nb_model. */
#ifndef NB_API_MODEL_H
#define NB_API_MODEL_H

#include "model/model.h"

struct nb_model {
    nb_source *source;
    nb_tokenizer *tokenizer; /* NULL: the checkpoint has none */
    nb_backend *backend;
    nb_net *net;
    nb_options opt;
    nb_format kv; /* of opt.kv */
};

void nb_describe_source(const nb_source *s, nb_model_info *out);

#endif
