/* The scalar reference in double: what the fp32 one is compared with. */
#define REAL      double
#define REF_NAME  "ref64"
#define REF_DTYPE NB_F64
#define REF_OPS   nb_ops_ref64

#include "op/ref/ref_tmpl.h"
