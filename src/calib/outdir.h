/* The directory that a run makes: OUT.partial while it works, OUT when it is whole.
 *
 * Any instant may be the last one. What each leaves, and what --resume makes of it:
 *   OUT.partial without a journal        nothing is finished: starts over
 *   OUT.partial with a journal           goes on behind the last shard in it
 *   OUT with a journal in it             whole; only the journal was still to be removed
 *   OUT.replaced                         an older OUT, on its way out (--force)
 *   OUT.partial/training                 of the block at work; of an older one: is left aside */
#ifndef NB_CALIB_OUTDIR_H
#define NB_CALIB_OUTDIR_H

#include "calib/journal.h"
#include "nibble.h"

typedef struct nb_outdir {
    char *out, *partial, *replaced;
    char *training; /* OUT.partial/training: nb_training's directory */
    nb_journal journal;
    bool complete; /* OUT is there, made by the same command: nothing to do */
} nb_outdir;

/* Fills the paths; NB_EUSAGE if something is in the way that neither resume nor force allows for.
 */
nb_status nb_outdir_check(nb_outdir *d, const nb_quantize_options *opt, nb_error *err);
/* Then: checks what is there against the fingerprint and begins or continues. NB_EUSAGE: it was
 * made another way; NB_EVERIFY: a finished shard is not what was written. */
nb_status nb_outdir_begin(nb_outdir *d, const nb_quantize_options *opt, json_t *fingerprint,
                          nb_error *err);
/* malloc'ed path of a file in OUT.partial; NULL when memory is out. */
char *nb_outdir_path(const nb_outdir *d, const char *name);
/* The block that was in training is finished. */
nb_status nb_outdir_drop_training(const nb_outdir *d, nb_error *err);
/* OUT.partial becomes OUT. */
nb_status nb_outdir_finish(nb_outdir *d, nb_error *err);
void nb_outdir_fini(nb_outdir *d);

#endif
