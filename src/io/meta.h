/* Sizes of GGUF metadata values; the accessors are declared in io.h. */
#ifndef NB_IO_META_H
#define NB_IO_META_H

#include "io/io.h"

#define NB_N_META_TYPES 13

/* Bytes of one value; 0: strings and arrays, whose length is in the file. */
extern const uint8_t nb_meta_bytes[NB_N_META_TYPES];

#endif
