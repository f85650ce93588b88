/* What the cast of 4-bit floats (fp4_cast.c) must know about the "fp" family. */
#ifndef NB_FORMAT_FP_H
#define NB_FORMAT_FP_H

#include "format/format.h"
#include "format/minifloat.h"

/* Type of the codes. */
nb_minifloat nb_fp_type(const nb_format *f);

/* True for m1 and m2: the scale of every group is nb_qparam's base * 2^-id. */
bool nb_fp_has_base(const nb_format *f);

#endif
