/* A file of one step and block, DIR/STEP.state:
 *
 *   JSON   run, step, block, what nb_trainer and nb_train_mark hold in numbers, the report so far;
 *          filled up with blanks to a multiple of 64 bytes, the last one a line feed
 *   parts  parameters, moments and the best epoch's parameters, one after the other, as the device
 *          and the host compute with them, in the machine's byte order
 *   hash   of all that is before it, 32 characters
 *
 * Numbers of the JSON have 17 digits: they come back as they were. */
#include "method/trainer_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/hash.h"
#include "base/size.h"

enum { ALIGN = 64, HASH = NB_HASH_CHARS - 1, MAX_PARTS = 8 };
#define PIECE ((int64_t)1 << 17) /* values on their way from the device to the file */

/* ---- what is kept ------------------------------------------------------------------------- */

/* Values in a row, on the device or on the host. */
typedef struct part {
    nb_view view; /* [1, n] */
    double *host; /* NULL: the view */
    int64_t n;
} part;

typedef struct parts {
    part item[MAX_PARTS];
    int n;
} parts;

/* v: rows without gaps. */
static void add_view(parts *p, nb_view v)
{
    int64_t n = v.rows * v.cols;
    nb_view flat = {.buf = v.buf, .off = v.off, .rows = 1, .cols = n, .stride = n};
    p->item[p->n++] = (part){.view = flat, .n = n};
}

static void add_host(parts *p, double *v, int64_t n)
{
    if (n > 0) p->item[p->n++] = (part){.host = v, .n = n};
}

/* Everything that a step of the optimizer or the end of an epoch changes. */
static parts list_parts(const nb_trainer *t)
{
    parts p = {0};
    add_view(&p, t->lwc.logits);
    add_view(&p, t->lwc.m);
    add_view(&p, t->lwc.v);
    add_view(&p, t->lwc.best);
    add_host(&p, t->let.param, t->let.n);
    add_host(&p, t->let.m, t->let.n);
    add_host(&p, t->let.v, t->let.n);
    add_host(&p, t->let_best, t->let.n);
    return p;
}

static int64_t value_bytes(const nb_trainer *t, const part *p)
{
    return p->host || t->job->be->ops->real == NB_F64 ? 8 : 4;
}

static int64_t parts_bytes(const nb_trainer *t, const parts *p)
{
    int64_t sum = 0;
    for (int i = 0; i < p->n; i++) sum += p->item[i].n * value_bytes(t, &p->item[i]);
    return sum;
}

static json_t *make_header(const nb_trainer *t, const char *step, const nb_train_mark *at,
                           const json_t *report)
{
    return json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:f, s:b, s:b, s:f, s:f, s:I, s:I, s:O}",
                     "run", t->job->training->run, "step", step, "block", t->job->block->layer,
                     "level", at->level, "epoch", at->epoch, "faults", at->faults, "best", at->best,
                     "train_lwc", t->train_lwc, "train_let", t->train_let, "lwc_rate", t->lwc_rate,
                     "let_rate", t->let_rate, "optimizer_steps", (json_int_t)t->step, "steps",
                     (json_int_t)t->total, "report", report);
}

/* False: it is none. */
static bool read_header(nb_trainer *t, json_t *header, nb_train_mark *at, json_t *report)
{
    int train_lwc, train_let;
    json_int_t step, total;
    json_t *kept;
    int failed = json_unpack(header, "{s:i, s:i, s:i, s:f, s:b, s:b, s:f, s:f, s:I, s:I, s:o}",
                             "level", &at->level, "epoch", &at->epoch, "faults", &at->faults,
                             "best", &at->best, "train_lwc", &train_lwc, "train_let", &train_let,
                             "lwc_rate", &t->lwc_rate, "let_rate", &t->let_rate, "optimizer_steps",
                             &step, "steps", &total, "report", &kept);
    if (failed || json_object_update(report, kept) != 0) return false;
    t->train_lwc = train_lwc;
    t->train_let = train_let;
    t->step = step;
    t->total = total;
    return true;
}

static char *path_of(const nb_block_job *job, const char *step)
{
    char name[64];
    snprintf(name, sizeof name, "%s.state", step);
    return nb_path_join(job->training->dir, name);
}

/* ---- writing ------------------------------------------------------------------------------ */

typedef struct writer {
    nb_outfile *file;
    nb_hasher *hash;
    nb_error *err;
} writer;

static nb_status put(writer *w, const void *data, size_t n_bytes)
{
    nb_hasher_add(w->hash, data, n_bytes);
    return nb_outfile_write(w->file, data, n_bytes, w->err);
}

static nb_status put_header(writer *w, const json_t *header)
{
    static const char blanks[ALIGN] =
        "                                                               "
        "\n";
    char *text = header ? json_dumps(header, JSON_COMPACT) : NULL;
    if (!text) return nb_fail_memory(w->err, "state of a training", 0);
    size_t n = strlen(text), fill = nb_align_up(n + 1, ALIGN) - n;
    nb_status st = put(w, text, n);
    if (st == NB_OK) st = put(w, blanks + ALIGN - fill, fill);
    free(text);
    return st;
}

static nb_status put_view(writer *w, nb_backend *be, const part *p, void *piece)
{
    size_t bytes = be->ops->real == NB_F64 ? sizeof(double) : sizeof(float);
    for (int64_t at = 0; at < p->n; at += PIECE) {
        int64_t n = nb_min_i64(PIECE, p->n - at);
        be->ops->download(be, nb_view_cols(p->view, at, n), piece, be->ops->real);
        NB_TRY(be->ops->sync(be, w->err));
        NB_TRY(put(w, piece, (size_t)n * bytes));
    }
    return NB_OK;
}

static nb_status put_parts(writer *w, const nb_trainer *t)
{
    parts all = list_parts(t);
    void *piece = malloc((size_t)PIECE * sizeof(double));
    nb_status st = piece ? NB_OK : nb_fail_memory(w->err, "state of a training", PIECE);
    for (int i = 0; st == NB_OK && i < all.n; i++) {
        const part *p = &all.item[i];
        st = p->host ? put(w, p->host, (size_t)p->n * sizeof(double))
                     : put_view(w, t->job->be, p, piece);
    }
    free(piece);
    return st;
}

/* Header, parts and their hash. */
static nb_status put_all(writer *w, const nb_trainer *t, const json_t *header)
{
    char hash[NB_HASH_CHARS];
    NB_TRY(nb_hasher_create(&w->hash, w->err));
    nb_status st = put_header(w, header);
    if (st == NB_OK) st = put_parts(w, t);
    nb_hasher_finish(w->hash, hash);
    return st == NB_OK ? nb_outfile_write(w->file, hash, HASH, w->err) : st;
}

static nb_status write_state(const char *path, const nb_trainer *t, const json_t *header,
                             nb_error *err)
{
    writer w = {.err = err};
    NB_TRY(nb_outfile_open(&w.file, path, err));
    nb_status st = put_all(&w, t, header);
    if (st == NB_OK) return nb_outfile_commit(w.file, err);
    nb_outfile_abort(w.file);
    return st;
}

nb_status nb_trainer_keep(const nb_trainer *t, const char *step, const nb_train_mark *at,
                          const json_t *report, nb_error *err)
{
    if (!t->job->training) return NB_OK;
    NB_TRY(nb_make_dir(t->job->training->dir, err));
    char *path = path_of(t->job, step);
    json_t *header = make_header(t, step, at, report);
    nb_status st = path ? write_state(path, t, header, err) : nb_fail_memory(err, step, 0);
    json_decref(header);
    free(path);
    return st;
}

/* ---- reading ------------------------------------------------------------------------------ */

static nb_status damaged(const char *path, nb_error *err)
{
    return nb_fail(err, NB_EVERIFY,
                   "%s: is not what was written (truncated or changed); remove it to begin the "
                   "block anew",
                   path);
}

/* The header of a whole file; *end: behind it. NULL: the file is damaged. */
static json_t *check_file(const nb_map *m, size_t *end)
{
    char hash[NB_HASH_CHARS];
    if (m->n_bytes < HASH) return NULL;
    size_t n = m->n_bytes - HASH;
    nb_hash(hash, m->data, n);
    const unsigned char *line = memchr(m->data, '\n', n);
    if (!line || memcmp(hash, m->data + n, HASH) != 0) return NULL;
    *end = (size_t)(line - m->data) + 1;
    return json_loadb((const char *)m->data, *end, JSON_REJECT_DUPLICATES, NULL);
}

/* The parts from `data`, whose size is theirs. */
static void take_parts(nb_trainer *t, const parts *all, const unsigned char *data)
{
    nb_backend *be = t->job->be;
    for (int i = 0; i < all->n; i++) {
        const part *p = &all->item[i];
        if (p->host) {
            memcpy(p->host, data, (size_t)p->n * sizeof *p->host);
        } else {
            be->ops->upload(be, p->view, data, be->ops->real);
        }
        data += p->n * value_bytes(t, p);
    }
}

static bool is_text(const json_t *header, const char *key, const char *text)
{
    const char *found = json_string_value(json_object_get(header, key));
    return found && strcmp(found, text) == 0;
}

static nb_status read_state(nb_trainer *t, const char *path, const char *step, nb_train_mark *at,
                            json_t *report, bool *found, nb_error *err)
{
    nb_map m;
    size_t end = 0;
    json_t *header = NULL;
    parts all = list_parts(t);
    NB_TRY(nb_map_open(&m, path, err));
    nb_status st = NB_OK;
    if (!(header = check_file(&m, &end))) {
        st = damaged(path, err);
    } else if (!is_text(header, "run", t->job->training->run)) {
        st = nb_fail(err, NB_EUSAGE, "%s: is of another run; remove it to begin the block anew",
                     path);
    } else if (is_text(header, "step", step) &&
               json_integer_value(json_object_get(header, "block")) == t->job->block->layer) {
        bool whole = m.n_bytes == end + (size_t)parts_bytes(t, &all) + HASH;
        *found = whole && read_header(t, header, at, report);
        if (*found) take_parts(t, &all, m.data + end);
        st = *found ? t->job->be->ops->sync(t->job->be, err) : damaged(path, err);
    }
    json_decref(header);
    nb_map_close(&m);
    return st;
}

nb_status nb_trainer_recall(nb_trainer *t, const char *step, nb_train_mark *at, json_t *report,
                            bool *found, nb_error *err)
{
    *found = false;
    if (!t->job->training) return NB_OK;
    char *path = path_of(t->job, step);
    if (!path) return nb_fail_memory(err, step, 0);
    nb_status st = NB_OK;
    if (nb_path_exists(path)) st = read_state(t, path, step, at, report, found, err);
    free(path);
    return st;
}
