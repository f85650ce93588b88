/* Public: quantizing, and the two file helpers that a command needs. */
#include "base/file.h"
#include "calib/calib.h"

#define MAX_TEXT ((size_t)4 << 30)

void nb_quantize_options_default(nb_quantize_options *o)
{
    *o = (nb_quantize_options){.seed = -1};
    nb_options_default(&o->run);
}

nb_status nb_quantize(const nb_quantize_options *opt, nb_quantize_result *out, nb_error *err)
{
    *out = (nb_quantize_result){0};
    if (!opt->model) return nb_fail(err, NB_EUSAGE, "quantize: no model");
    if (!opt->out && !opt->dry_run) return nb_fail(err, NB_EUSAGE, "quantize: no output directory");
    return nb_calib_run(opt, out, err);
}

nb_status nb_file_read(const char *path, char **data, size_t *n_bytes, nb_error *err)
{
    return nb_read_file(path, MAX_TEXT, data, n_bytes, err);
}

nb_status nb_npy_write(const char *path, const float *data, int64_t n_rows, int64_t n_cols,
                       nb_error *err)
{
    return nb_npy_write_f32(path, data, n_rows, n_cols, err);
}
