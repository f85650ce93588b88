/* Progress on standard error and the wish to stop.
 *
 * On a terminal one line is redrawn: bar, count, time left, note. Elsewhere a plain line appears
 * every few seconds. The first SIGINT makes the library stop at its next progress call (exit
 * status 130, work can be resumed); a second one kills. */
#ifndef NB_CLI_PROGRESS_H
#define NB_CLI_PROGRESS_H

#include "nibble.h"

typedef struct cli_progress {
    bool terminal, drawn; /* drawn: a bar stands on the current line */
    char phase[32];
    double begin, last;  /* seconds: start of the phase, last line printed */
    int64_t done_before; /* done already when the phase began (a resumed run) */
} cli_progress;

void cli_progress_init(cli_progress *p);

/* nb_progress_fn over a cli_progress. */
bool cli_progress_show(void *progress, const nb_progress *p);

/* Takes the bar away, so that a message or a result can be printed. */
void cli_progress_end(cli_progress *p);

void cli_signals_init(void);
bool cli_interrupted(void);

double cli_now(void); /* monotonic seconds */

#endif
