#include "base/arena.h"

#include <stdarg.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/size.h"

/* Pieces above this get a chunk of their own, so that freeing the arena returns them at once. */
#define CHUNK_BYTES ((size_t)1 << 18)
/* Chunks from here on are mapped: malloc keeps freed ones of some megabytes for itself, and a loop
 * that makes and frees such pieces, with small lasting ones between, would grow without end. */
#define MAP_BYTES ((size_t)1 << 20)
#define ALIGN     ((size_t)64)

typedef struct chunk {
    struct chunk *next;
    size_t used, size; /* bytes of the data that follows the header */
} chunk;

struct nb_arena {
    chunk *head; /* the chunk that small pieces come from */
    size_t bytes;
};

static char *chunk_data(chunk *c) { return (char *)c + nb_align_up(sizeof(chunk), ALIGN); }

static void *map_create(size_t n_bytes)
{
    void *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static size_t chunk_bytes(size_t size)
{
    return nb_align_up(size + nb_align_up(sizeof(chunk), ALIGN), ALIGN);
}

static void chunk_free(chunk *c)
{
    size_t total = chunk_bytes(c->size);
    if (total >= MAP_BYTES) {
        munmap(c, total);
    } else {
        free(c);
    }
}

nb_status nb_arena_create(nb_arena **out, nb_error *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? NB_OK : nb_fail_memory(err, "arena", sizeof **out);
}

void nb_arena_reset(nb_arena *a)
{
    for (chunk *c = a->head; c;) {
        chunk *next = c->next;
        chunk_free(c);
        c = next;
    }
    a->head = NULL;
    a->bytes = 0;
}

void nb_arena_free(nb_arena *a)
{
    if (!a) return;
    nb_arena_reset(a);
    free(a);
}

static chunk *chunk_create(size_t size)
{
    if (size > SIZE_MAX - 3 * ALIGN) return NULL;
    size_t total = chunk_bytes(size);
    chunk *c = total >= MAP_BYTES ? map_create(total) : aligned_alloc(ALIGN, total);
    if (c) *c = (chunk){.size = size};
    return c;
}

/* A large piece goes behind the head, so that the head's free space is not lost. */
static void *alloc_large(nb_arena *a, size_t n)
{
    chunk *c = chunk_create(n);
    if (!c) return NULL;
    c->used = n;
    if (a->head) {
        c->next = a->head->next;
        a->head->next = c;
    } else {
        a->head = c;
    }
    return chunk_data(c);
}

void *nb_arena_alloc(nb_arena *a, size_t n, size_t size)
{
    size_t bytes;
    if (!nb_mul_size(n, size, &bytes) || bytes > SIZE_MAX - ALIGN) return NULL;
    bytes = nb_align_up(bytes ? bytes : 1, ALIGN);
    void *p;
    if (bytes > CHUNK_BYTES / 4) {
        p = alloc_large(a, bytes);
        if (!p) return NULL;
    } else {
        if (!a->head || a->head->size - a->head->used < bytes) {
            chunk *c = chunk_create(CHUNK_BYTES);
            if (!c) return NULL;
            c->next = a->head;
            a->head = c;
        }
        p = chunk_data(a->head) + a->head->used;
        a->head->used += bytes;
    }
    a->bytes += bytes;
    return memset(p, 0, bytes);
}

char *nb_arena_strndup(nb_arena *a, const char *s, size_t n)
{
    if (n == SIZE_MAX) return NULL;
    char *p = nb_arena_alloc(a, n + 1, 1);
    if (p) memcpy(p, s, n);
    return p;
}

char *nb_arena_printf(nb_arena *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0) return NULL;
    char *p = nb_arena_alloc(a, (size_t)n + 1, 1);
    if (!p) return NULL;
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}

size_t nb_arena_bytes(const nb_arena *a) { return a->bytes; }

void nb_heap_trim(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
