#include "calib/journal.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/strbuf.h"

#define JOURNAL_MAX_BYTES ((size_t)256 << 20)

static nb_status append_line(nb_strbuf *b, json_t *value, nb_error *err)
{
    char *text = json_dumps(value, JSON_COMPACT | NB_JSON_FLAGS);
    if (!text) return nb_fail_memory(err, "journal line", 0);
    nb_strbuf_puts(b, text);
    nb_strbuf_puts(b, "\n");
    free(text);
    return NB_OK;
}

static nb_status write_all(const nb_journal *j, nb_error *err)
{
    nb_strbuf b;
    nb_strbuf_init(&b, JOURNAL_MAX_BYTES);
    char *text = NULL;
    size_t n_bytes, i;
    json_t *shard;
    nb_status st;
    NB_GOTO(st, append_line(&b, j->fingerprint, err));
    json_array_foreach (j->shards, i, shard) NB_GOTO(st, append_line(&b, shard, err));
    NB_GOTO(st, nb_strbuf_take(&b, &text, &n_bytes, err));
    NB_GOTO(st, nb_write_file(j->path, text, n_bytes, err));
done:
    nb_strbuf_fini(&b);
    free(text);
    return st;
}

static nb_status begin(nb_journal *j, const char *path, json_t *fingerprint, nb_error *err)
{
    *j = (nb_journal){
        .path = strdup(path), .fingerprint = json_incref(fingerprint), .shards = json_array()};
    if (j->path && j->shards) return NB_OK;
    nb_journal_fini(j);
    return nb_fail_memory(err, path, strlen(path));
}

nb_status nb_journal_create(nb_journal *j, const char *path, json_t *fingerprint, nb_error *err)
{
    NB_TRY(begin(j, path, fingerprint, err));
    nb_status st = write_all(j, err);
    if (st != NB_OK) nb_journal_fini(j);
    return st;
}

nb_status nb_fingerprint_check(json_t *expected, json_t *found, const char *where, nb_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach (expected, key, value) {
        if (json_equal(value, json_object_get(found, key))) continue;
        return nb_fail(err, NB_EUSAGE,
                       "%s: made with another %s; resume with what it was begun with, or start "
                       "over with --force",
                       where, key);
    }
    return NB_OK;
}

/* One line, or NULL. Never the caller's fault: the file is ours and written as a whole. */
static json_t *parse_line(const char *line, size_t n)
{
    json_t *value = json_loadb(line, n, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(value)) return value;
    json_decref(value);
    return NULL;
}

static nb_status read_lines(nb_journal *j, const char *text, size_t n_bytes, nb_error *err)
{
    const char *end = text + n_bytes;
    for (int i = 0; text < end; i++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        json_t *value = stop ? parse_line(text, (size_t)(stop - text)) : NULL;
        if (!value) return nb_fail(err, NB_EVERIFY, "%s: line %d is damaged", j->path, i + 1);
        if (i == 0) {
            nb_status st = nb_fingerprint_check(j->fingerprint, value, j->path, err);
            json_decref(value);
            if (st != NB_OK) return st;
        } else if (json_array_append_new(j->shards, value) != 0) {
            return nb_fail_memory(err, j->path, n_bytes);
        }
        text = stop + 1;
    }
    return NB_OK;
}

nb_status nb_journal_open(nb_journal *j, const char *path, json_t *fingerprint, nb_error *err)
{
    char *text = NULL;
    size_t n_bytes;
    NB_TRY(begin(j, path, fingerprint, err));
    nb_status st = nb_read_file(path, JOURNAL_MAX_BYTES, &text, &n_bytes, err);
    if (st == NB_OK) st = read_lines(j, text, n_bytes, err);
    free(text);
    if (st != NB_OK) nb_journal_fini(j);
    return st;
}

nb_status nb_journal_add(nb_journal *j, json_t *shard, nb_error *err)
{
    if (!shard || json_array_append_new(j->shards, shard) != 0) {
        return nb_fail_memory(err, j->path, 0);
    }
    return write_all(j, err);
}

void nb_journal_fini(nb_journal *j)
{
    free(j->path);
    json_decref(j->fingerprint);
    json_decref(j->shards);
    *j = (nb_journal){0};
}

nb_status nb_json_write(const char *path, json_t *value, size_t flags, nb_error *err)
{
    char *text = value ? json_dumps(value, JSON_INDENT(2) | flags) : NULL;
    if (!text) return nb_fail_memory(err, path, 0);
    size_t n = strlen(text);
    text[n] = '\n'; /* in place of the NUL: the length is passed on */
    nb_status st = nb_write_file(path, text, n + 1, err);
    free(text);
    return st;
}
