/* How long a run would take, for --dry-run. */
#ifndef NB_CALIB_ESTIMATE_H
#define NB_CALIB_ESTIMATE_H

#include "calib/pipeline.h"

/* The steps of the first block and, with calibration text, one window through it are done for
 * real, and multiplied. Leaves out reading from disk and writing. */
nb_status nb_estimate_seconds(const nb_calib *c, double *seconds, nb_error *err);

#endif
