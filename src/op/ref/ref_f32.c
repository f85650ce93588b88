/* The scalar reference in fp32: what every other backend is compared with. */
#define REAL      float
#define REF_NAME  "ref"
#define REF_DTYPE NB_F32
#define REF_OPS   nb_ops_ref

#include "op/ref/ref_tmpl.h"
