/* Calibration windows: the texts, tokenized once, and the windows drawn from them. */
#ifndef NB_CALIB_SAMPLES_H
#define NB_CALIB_SAMPLES_H

#include "base/hash.h"
#include "calib/calib.h"

typedef struct nb_samples {
    int n, seqlen; /* n 0: no calibration text */
    int32_t *ids;  /* [n, seqlen] */
    int64_t n_tokens;
    char hash[NB_HASH_CHARS]; /* of the joined text */
} nb_samples;

/* Texts joined by an empty line, as WikiText-2 is for the reference implementations (OmniQuant
 * section 6, "Calibration data"); window starts by CPython's generator, both ends inclusive:
 * randint(0, n_tokens - seqlen - 1). */
nb_status nb_samples_load(nb_samples *s, const nb_source *source, const nb_recipe *recipe,
                          const nb_quantize_options *opt, nb_error *err);
void nb_samples_fini(nb_samples *s);

#endif
