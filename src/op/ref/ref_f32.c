/* The scalar reference in fp32: what every other backend is compared with. */
#define REAL     float
#define REF_NAME "ref"
#define REF_OPS  nb_ops_ref

#include "op/ref/ref_tmpl.h"
