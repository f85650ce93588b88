/* Monotonic seconds and the process's peak memory, for reports only: never part of a result. */
#ifndef NB_BASE_CLOCK_H
#define NB_BASE_CLOCK_H

#include <stdint.h>

double nb_now(void);
int64_t nb_peak_rss(void); /* bytes */

#endif
