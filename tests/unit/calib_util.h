/* Runs of the block loop on tiny models, and their directories compared. */
#ifndef NB_TESTS_CALIB_UTIL_H
#define NB_TESTS_CALIB_UTIL_H

#include <dirent.h>

#include "calib/calib.h"
#include "tiny_model.h"

static char root[64]; /* all files of this test */

static const char *in_root(const char *name) { return tiny_path(root, name); }

typedef struct command {
    nb_quantize_options opt;
    const char *texts[2];
    char model[160], out[160], text[160];
    int stop_at; /* progress calls until it says stop; 0: never */
    int calls;
    nb_quantize_result result;
    nb_error err;
} command;

static bool on_progress(void *user, const nb_progress *p)
{
    NB_UNUSED(p);
    command *c = user;
    return ++c->calls != c->stop_at;
}

static void begin_command(command *c, const char *out)
{
    memset(c, 0, sizeof *c);
    nb_quantize_options_default(&c->opt);
    snprintf(c->model, sizeof c->model, "%s", in_root("model"));
    snprintf(c->out, sizeof c->out, "%s", in_root(out));
    c->opt.model = c->model;
    c->opt.out = c->out;
    c->opt.weights = "int3:g32";
    c->opt.run.threads = 1;
    c->opt.run.progress = on_progress;
    c->opt.run.progress_user = c;
}

static inline void with_text(command *c)
{
    snprintf(c->text, sizeof c->text, "%s", in_root("text.txt"));
    c->texts[0] = c->text;
    c->opt.calib = c->texts;
    c->opt.n_calib = 1;
    c->opt.samples = 3;
    c->opt.seqlen = 32;
}

static nb_status run_command(command *c) { return nb_calib_run(&c->opt, &c->result, &c->err); }

static inline void must_run(command *c)
{
    if (run_command(c) != NB_OK) fail_msg("%s", c->err.message);
}

/* Status, and every word in the message. */
static inline void must_fail(command *c, nb_status status, const char *a, const char *b)
{
    nb_status st = run_command(c);
    if (st != status || !strstr(c->err.message, a) || !strstr(c->err.message, b)) {
        fail_msg("status %d: \"%s\"", (int)st, c->err.message);
    }
}

/* ---- comparing directories --------------------------------------------------------------- */

static int count_files(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static inline void assert_same_dirs(const char *a, const char *b)
{
    assert_int_equal(count_files(a), count_files(b));
    DIR *d = opendir(a);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        char *pa = nb_path_join(a, e->d_name), *pb = nb_path_join(b, e->d_name), *ta, *tb;
        size_t na, nb;
        assert_int_equal(nb_read_file(pa, 1 << 24, &ta, &na, NULL), NB_OK);
        assert_int_equal(nb_read_file(pb, 1 << 24, &tb, &nb, NULL), NB_OK);
        if (na != nb || memcmp(ta, tb, na) != 0) fail_msg("%s differs", e->d_name);
        free(ta), free(tb), free(pa), free(pb);
    }
    closedir(d);
}

#endif
