/* Helpers of the container tests: temporary directories, files made of pieces, and the loop over
 * the tables of bad files.
 *
 * Each container test is also a tool: with a directory as argument it writes its bad files there
 * ("TEST DIR"), or its small valid ones ("TEST DIR valid", seeds for the fuzzers), and tests
 * nothing. */
#ifndef NB_TESTS_CONTAINER_UTIL_H
#define NB_TESTS_CONTAINER_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "io/io.h"

static inline void append_u32(nb_strbuf *b, uint32_t x) { nb_strbuf_append(b, &x, sizeof x); }

static inline void append_u64(nb_strbuf *b, uint64_t x) { nb_strbuf_append(b, &x, sizeof x); }

/* n bytes 0, 1, 2, ... */
static inline void append_data(nb_strbuf *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t x = (uint8_t)i;
        nb_strbuf_append(b, &x, 1);
    }
}

/* A safetensors file: length, header with ' for ", data. */
static inline void append_safetensors(nb_strbuf *b, const char *header, size_t data_bytes)
{
    size_t n = strlen(header);
    append_u64(b, n);
    nb_strbuf_append(b, header, n);
    for (size_t i = b->n_bytes - n; i < b->n_bytes; i++) {
        if (b->data[i] == '\'') b->data[i] = '"';
    }
    append_data(b, data_bytes);
}

/* malloc'ed path of a new directory under $TMPDIR. */
static inline char *temp_dir(void)
{
    const char *root = getenv("TMPDIR");
    char *path = nb_path_join(root ? root : "/tmp", "nibble-test-XXXXXX");
    assert_non_null(path);
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void remove_dir(char *path)
{
    assert_int_equal(nb_remove_tree(path, NULL), NB_OK);
    free(path);
}

static inline void write_to_dir(const char *dir, const char *name, const void *data, size_t n)
{
    nb_error err = {0};
    char *path = nb_path_join(dir, name);
    if (!path || nb_write_file(path, data, n, &err) != NB_OK) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    free(path);
}

/* Status NB_EINPUT and a message that holds `expected`. */
static inline void assert_bad_input(const char *name, nb_status st, const nb_error *err,
                                    const char *expected)
{
    if (st == NB_EINPUT && err->status == NB_EINPUT && strstr(err->message, expected)) return;
    fail_msg("%s: status %d, message \"%s\", expected \"%s\"", name, st, err->message, expected);
}

typedef nb_status (*parse_fn)(nb_tensor_list *, const uint8_t *, size_t, nb_error *);

/* Parses a copy of exactly this size, so that the sanitizer sees a read behind the end. */
static inline nb_status parse_copy(parse_fn parse, nb_tensor_list *l, const nb_strbuf *b,
                                   uint8_t **copy, nb_error *err)
{
    *copy = malloc(b->n_bytes ? b->n_bytes : 1);
    assert_non_null(*copy);
    if (b->n_bytes) memcpy(*copy, b->data, b->n_bytes);
    return parse(l, *copy, b->n_bytes, err);
}

static inline void assert_parser_refuses(parse_fn parse, const char *name, const nb_strbuf *b,
                                         const char *expected)
{
    nb_error err = {0};
    nb_tensor_list l;
    uint8_t *copy;
    nb_status st = parse_copy(parse, &l, b, &copy, &err);
    free(copy);
    assert_bad_input(name, st, &err, expected);
    assert_null(l.items);
    assert_null(l.arena);
}

#endif
