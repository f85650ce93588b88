#include "calib/outdir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "calib/shard.h"

#define JOURNAL_NAME     "journal.jsonl"
#define TRAINING_NAME    "training"
#define REPORT_NAME      "report.json"
#define REPORT_MAX_BYTES ((size_t)256 << 20)

static char *with_suffix(const char *path, const char *suffix)
{
    size_t n = strlen(path), m = strlen(suffix) + 1;
    char *p = malloc(n + m);
    if (!p) return NULL;
    memcpy(p, path, n);
    memcpy(p + n, suffix, m);
    return p;
}

static nb_status set_paths(nb_outdir *d, const char *out, nb_error *err)
{
    size_t n = strlen(out);
    while (n > 1 && out[n - 1] == '/') n--;
    d->out = strndup(out, n);
    if (d->out) {
        d->partial = with_suffix(d->out, ".partial");
        d->replaced = with_suffix(d->out, ".replaced");
        if (d->partial) d->training = nb_path_join(d->partial, TRAINING_NAME);
    }
    return d->training && d->replaced ? NB_OK : nb_fail_memory(err, out, n);
}

/* Said before the source is read: that may take minutes. */
static nb_status check_parent(const char *out, nb_error *err)
{
    const char *slash = strrchr(out, '/');
    if (!*out) return nb_fail(err, NB_EUSAGE, "the name of the directory to make is empty");
    if (!slash || slash == out) return NB_OK;
    char *parent = strndup(out, (size_t)(slash - out));
    if (!parent) return nb_fail_memory(err, out, strlen(out));
    bool found = nb_path_is_dir(parent);
    free(parent);
    if (found) return NB_OK;
    return nb_fail(err, NB_EUSAGE, "%s: the directory it shall lie in is not there", out);
}

static bool has_file(const char *dir, const char *name)
{
    char *path = nb_path_join(dir, name);
    bool found = path && nb_file_bytes(path) >= 0;
    free(path);
    return found;
}

static void remove_file(const char *dir, const char *name)
{
    char *path = nb_path_join(dir, name);
    if (path) unlink(path);
    free(path);
}

/* True and *same set if `dir` holds a report. */
static bool report_matches(const char *dir, json_t *fingerprint, bool *same)
{
    char *path = nb_path_join(dir, REPORT_NAME), *text = NULL;
    size_t n_bytes;
    json_t *report = NULL;
    if (path && nb_read_file(path, REPORT_MAX_BYTES, &text, &n_bytes, NULL) == NB_OK) {
        report = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, NULL);
    }
    json_t *found = json_object_get(report, "fingerprint");
    bool is_report = json_is_object(found);
    *same = is_report && nb_fingerprint_check(fingerprint, found, dir, NULL) == NB_OK;
    json_decref(report);
    free(text);
    free(path);
    return is_report;
}

/* OUT exists. */
static nb_status look_at_out(nb_outdir *d, const nb_quantize_options *opt, json_t *fingerprint,
                             nb_error *err)
{
    bool same, ours = report_matches(d->out, fingerprint, &same);
    if (opt->resume && same) {
        remove_file(d->out, JOURNAL_NAME);
        d->complete = true;
        return nb_remove_tree(d->replaced, err);
    }
    if (!opt->force) {
        return nb_fail(err, NB_EUSAGE,
                       "%s: exists and is not what this command makes; replace it "
                       "with --force",
                       d->out);
    }
    if (ours) return NB_OK;
    return nb_fail(err, NB_EUSAGE, "%s: is no quantized model, so --force does not replace it",
                   d->out);
}

static nb_status verify_shards(const nb_outdir *d, nb_error *err)
{
    size_t i;
    json_t *shard;
    json_array_foreach (d->journal.shards, i, shard) {
        const char *name = json_string_value(json_object_get(shard, "file"));
        const char *expected = json_string_value(json_object_get(shard, "hash"));
        char *path = name ? nb_outdir_path(d, name) : NULL, found[NB_HASH_CHARS];
        nb_status st = path && expected ? nb_file_hash(path, found, err) : NB_EVERIFY;
        if (st != NB_OK || strcmp(found, expected) != 0) {
            st = nb_fail(err, NB_EVERIFY,
                         "%s/%s: is not what was written (missing, truncated or changed); start "
                         "over with --force",
                         d->partial, name ? name : JOURNAL_NAME);
        }
        free(path);
        if (st != NB_OK) return st;
    }
    return NB_OK;
}

static nb_status start_over(nb_outdir *d, json_t *fingerprint, nb_error *err)
{
    NB_TRY(nb_make_dir(d->partial, err));
    NB_TRY(nb_outdir_drop_training(d, err));
    char *path = nb_outdir_path(d, JOURNAL_NAME);
    nb_status st = path ? nb_journal_create(&d->journal, path, fingerprint, err)
                        : nb_fail_memory(err, d->partial, 0);
    free(path);
    return st;
}

static nb_status go_on(nb_outdir *d, json_t *fingerprint, nb_error *err)
{
    if (!has_file(d->partial, JOURNAL_NAME)) return start_over(d, fingerprint, err);
    char *path = nb_outdir_path(d, JOURNAL_NAME);
    nb_status st = path ? nb_journal_open(&d->journal, path, fingerprint, err)
                        : nb_fail_memory(err, d->partial, 0);
    free(path);
    return st == NB_OK ? verify_shards(d, err) : st;
}

nb_status nb_outdir_check(nb_outdir *d, const nb_quantize_options *opt, nb_error *err)
{
    *d = (nb_outdir){0};
    NB_TRY(set_paths(d, opt->out, err));
    NB_TRY(check_parent(d->out, err));
    if (opt->resume || opt->force) return NB_OK;
    if (nb_path_exists(d->out)) {
        return nb_fail(err, NB_EUSAGE, "%s: exists; replace it with --force", d->out);
    }
    if (nb_path_exists(d->partial)) {
        return nb_fail(err, NB_EUSAGE,
                       "%s: left by an earlier run; go on with --resume or start over with --force",
                       d->partial);
    }
    return NB_OK;
}

nb_status nb_outdir_begin(nb_outdir *d, const nb_quantize_options *opt, json_t *fingerprint,
                          nb_error *err)
{
    if (nb_path_exists(d->out)) NB_TRY(look_at_out(d, opt, fingerprint, err));
    if (d->complete) return NB_OK;
    if (!nb_path_exists(d->partial)) return start_over(d, fingerprint, err);
    if (opt->resume) return go_on(d, fingerprint, err);
    NB_TRY(nb_remove_tree(d->partial, err));
    return start_over(d, fingerprint, err);
}

char *nb_outdir_path(const nb_outdir *d, const char *name)
{
    return nb_path_join(d->partial, name);
}

nb_status nb_outdir_drop_training(const nb_outdir *d, nb_error *err)
{
    return nb_remove_tree(d->training, err);
}

nb_status nb_outdir_finish(nb_outdir *d, nb_error *err)
{
    NB_TRY(nb_outdir_drop_training(d, err));
    remove_file(d->partial, NB_SCRATCH_NAME);
    if (nb_path_exists(d->out)) {
        NB_TRY(nb_remove_tree(d->replaced, err));
        NB_TRY(nb_rename(d->out, d->replaced, err));
    }
    NB_TRY(nb_rename(d->partial, d->out, err));
    remove_file(d->out, JOURNAL_NAME);
    return nb_remove_tree(d->replaced, err);
}

void nb_outdir_fini(nb_outdir *d)
{
    nb_journal_fini(&d->journal);
    free(d->out);
    free(d->partial);
    free(d->replaced);
    free(d->training);
    *d = (nb_outdir){0};
}
