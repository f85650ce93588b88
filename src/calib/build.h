/* One shard of the output: steps, conversion, file. */
#ifndef NB_CALIB_BUILD_H
#define NB_CALIB_BUILD_H

#include "calib/pipeline.h"

/* Makes shard `index` and its line for the journal (the caller's), with a note for people. */
nb_status nb_build_shard(nb_calib *c, int index, json_t **line, char note[128], nb_error *err);

/* Takes every online quantizer out of a block. */
void nb_build_leave_acts(nb_host_block *block);

#endif
