/* NumPy's .npy, version 1.0: magic, version, u16 length of a Python dict literal padded with spaces
 * so that the data begin on a 64-byte boundary, then the array in C order.
 * Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html */
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "io/io.h"

#define PREFIX_BYTES 10 /* magic (6), version (2), length (2) */

nb_status nb_npy_write_f32(const char *path, const float *data, int64_t n_rows, int64_t n_cols,
                           nb_error *err)
{
    size_t n, n_bytes;
    if (!nb_count_dims((int64_t[]){n_rows, n_cols}, 2, &n) ||
        !nb_mul_size(n, sizeof *data, &n_bytes)) {
        return nb_fail(err, NB_EUSAGE, "%s: %lld x %lld values overflow the size", path,
                       (long long)n_rows, (long long)n_cols);
    }
    char head[192];
    memcpy(head, "\x93NUMPY\x01\x00", 8);
    int len = snprintf(head + PREFIX_BYTES, sizeof head - PREFIX_BYTES,
                       "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }",
                       (long long)n_rows, (long long)n_cols);
    size_t end = PREFIX_BYTES + (size_t)len, total = nb_align_up(end + 1, 64);
    memset(head + end, ' ', total - end);
    head[total - 1] = '\n';
    head[8] = (char)(total - PREFIX_BYTES); /* below 256: the high byte is 0 */
    head[9] = 0;

    nb_outfile *f = NULL;
    nb_status st;
    NB_GOTO(st, nb_outfile_open(&f, path, err));
    NB_GOTO(st, nb_outfile_write(f, head, total, err));
    NB_GOTO(st, nb_outfile_write(f, data, n_bytes, err));
    st = nb_outfile_commit(f, err);
    f = NULL; /* commit frees it in every case */
done:
    nb_outfile_abort(f);
    return st;
}
