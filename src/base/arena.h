/* Bump arena: many small and few large pieces with one lifetime; freed together. */
#ifndef NB_BASE_ARENA_H
#define NB_BASE_ARENA_H

#include "base/status.h"

typedef struct nb_arena nb_arena;

nb_status nb_arena_create(nb_arena **out, nb_error *err);
void nb_arena_free(nb_arena *a);

/* Frees everything that was allocated; the arena stays usable. */
void nb_arena_reset(nb_arena *a);

/* n * size zeroed bytes, 64-byte aligned; NULL on overflow or when memory is out. */
void *nb_arena_alloc(nb_arena *a, size_t n, size_t size);

/* A NUL-terminated copy of n bytes; NULL when memory is out. */
char *nb_arena_strndup(nb_arena *a, const char *s, size_t n);

/* printf into the arena; NULL when memory is out. */
char *nb_arena_printf(nb_arena *a, const char *fmt, ...) NB_PRINTF(2, 3);

/* Gives back to the system what the heap has free. By itself glibc does so at the heap's end only,
 * and in a long run the gaps add up; other C libraries are left to themselves. */
void nb_heap_trim(void);

/* Bytes in use, for memory estimates and reports. */
size_t nb_arena_bytes(const nb_arena *a);

#endif
