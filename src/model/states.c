#include "model/states.h"

#include <assert.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/size.h"

#define PIECE_BYTES ((int64_t)1 << 20) /* of one move between device and file, at least a row */

struct nb_states {
    nb_backend *be;
    nb_states_desc d;
    nb_buffer *buf;   /* all windows, or at_once of them */
    nb_scratch *file; /* or NULL */
    void *host;       /* a piece: [piece, n_embd] of the device's type */
    int64_t piece;    /* rows */
};

static int64_t real_bytes(const nb_backend *be) { return be->ops->real == NB_F64 ? 8 : 4; }

static int64_t rows_of_piece(const nb_states_desc *d, int64_t row_bytes)
{
    return nb_min_i64(nb_max_i64(1, PIECE_BYTES / row_bytes), (int64_t)d->at_once * d->seqlen);
}

int64_t nb_states_bytes(const nb_states_desc *d, bool in_file)
{
    int64_t row = 4 * d->n_embd, window = d->seqlen * row;
    return in_file ? d->at_once * window + row * rows_of_piece(d, row) : d->n_windows * window;
}

static nb_status create_file(nb_states *s, nb_error *err)
{
    int64_t row = s->d.n_embd * real_bytes(s->be);
    s->piece = rows_of_piece(&s->d, row);
    s->host = malloc((size_t)(s->piece * row));
    if (!s->host) return nb_fail_memory(err, "hidden states", (size_t)(s->piece * row));
    return nb_scratch_open(&s->file, s->d.dir, row * s->d.seqlen * s->d.n_windows, err);
}

nb_status nb_states_create(nb_states **out, nb_backend *be, const nb_states_desc *d, nb_error *err)
{
    *out = NULL;
    nb_states *s = calloc(1, sizeof *s);
    if (!s) return nb_fail_memory(err, "hidden states", sizeof *s);
    s->be = be;
    s->d = *d;
    int64_t windows = d->dir ? d->at_once : d->n_windows;
    nb_status st = be->ops->buffer_create(be, windows * d->seqlen * d->n_embd, &s->buf, err);
    if (st == NB_OK && d->dir) st = create_file(s, err);
    if (st != NB_OK) {
        nb_states_free(s);
        return st;
    }
    *out = s;
    return NB_OK;
}

void nb_states_free(nb_states *s)
{
    if (!s) return;
    s->be->ops->buffer_free(s->be, s->buf);
    nb_scratch_close(s->file);
    free(s->host);
    free(s);
}

nb_view nb_states_room(nb_states *s, int w0, int n)
{
    assert(w0 >= 0 && n > 0 && w0 + n <= s->d.n_windows && (!s->file || n <= s->d.at_once));
    int64_t windows = s->file ? s->d.at_once : s->d.n_windows;
    nb_view all = nb_view_of(s->buf, windows * s->d.seqlen, s->d.n_embd);
    return nb_view_rows(all, s->file ? 0 : (int64_t)w0 * s->d.seqlen, (int64_t)n * s->d.seqlen);
}

/* Rows [row, row + n) of the view `v` of windows w0 .., to the file or from it. */
static nb_status move_piece(nb_states *s, int w0, nb_view v, int64_t row, int64_t n, bool to_file,
                            nb_error *err)
{
    const nb_ops *op = s->be->ops;
    int64_t row_bytes = s->d.n_embd * real_bytes(s->be);
    int64_t at = ((int64_t)w0 * s->d.seqlen + row) * row_bytes;
    nb_view part = nb_view_rows(v, row, n);
    if (to_file) {
        op->download(s->be, part, s->host, op->real);
        NB_TRY(op->sync(s->be, err));
        return nb_scratch_write(s->file, at, s->host, (size_t)(n * row_bytes), err);
    }
    NB_TRY(nb_scratch_read(s->file, at, s->host, (size_t)(n * row_bytes), err));
    op->upload(s->be, part, s->host, op->real);
    return NB_OK;
}

static nb_status move(nb_states *s, int w0, int n, bool to_file, nb_error *err)
{
    nb_view v = nb_states_room(s, w0, n);
    for (int64_t row = 0; row < v.rows; row += s->piece) {
        int64_t rows = nb_min_i64(s->piece, v.rows - row);
        NB_TRY(move_piece(s, w0, v, row, rows, to_file, err));
    }
    return NB_OK;
}

nb_status nb_states_load(nb_states *s, int w0, int n, nb_view *out, nb_error *err)
{
    *out = nb_states_room(s, w0, n);
    return s->file ? move(s, w0, n, false, err) : NB_OK;
}

nb_status nb_states_store(nb_states *s, int w0, int n, nb_error *err)
{
    return s->file ? move(s, w0, n, true, err) : NB_OK;
}
