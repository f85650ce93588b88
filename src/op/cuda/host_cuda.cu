/* Ops without a kernel: operands go to buffers of a cpu backend, results come back. */
#include "op/cuda/backend_cuda.h"

nb_backend *nb_cuda_cpu(nb_backend *be)
{
    nb_cuda *c = nb_cuda_of(be);
    if (c->cpu) return c->cpu;
    nb_options opt = {};
    opt.device = "cpu";
    opt.threads = be->threads;
    opt.compute = NB_COMPUTE_F32;
    opt.cpumask = be->cpu;
    nb_error err;
    nb_status st = be->host->backend_create(&c->cpu, &opt, &err);
    if (st != NB_OK) nb_cuda_fail(be, st, err.message);
    return c->cpu;
}

static bool reserve(nb_backend *be, int i, int64_t n)
{
    nb_cuda *c = nb_cuda_of(be);
    if (c->mirror[i] && c->mirror_n[i] >= n) return true;
    c->cpu->ops->buffer_free(c->cpu, c->mirror[i]);
    c->mirror[i] = NULL;
    nb_error err;
    nb_status st = c->cpu->ops->buffer_create(c->cpu, n, &c->mirror[i], &err);
    c->mirror_n[i] = st == NB_OK ? n : 0;
    if (st != NB_OK) nb_cuda_fail(be, st, err.message);
    return st == NB_OK;
}

nb_view nb_cuda_mirror(nb_backend *be, int i, nb_view v, bool fill)
{
    nb_view none = {};
    nb_backend *cpu = v.buf ? nb_cuda_cpu(be) : NULL;
    int64_t n = v.rows * v.cols;
    if (!cpu || !reserve(be, i, n)) return none;
    nb_view m = nb_view_of(nb_cuda_of(be)->mirror[i], v.rows, v.cols);
    float *stage = fill && n ? nb_cuda_staging(be, (size_t)n * sizeof *stage) : NULL;
    if (stage) {
        nb_cuda_download(be, v, stage, NB_F32);
        cpu->ops->upload(cpu, m, stage, NB_F32);
    }
    return m;
}

void nb_cuda_reflect(nb_backend *be, nb_view v, nb_view mirror)
{
    nb_backend *cpu = nb_cuda_of(be)->cpu;
    if (!v.buf || !mirror.buf || v.rows * v.cols == 0) return;
    float *stage = nb_cuda_staging(be, (size_t)(v.rows * v.cols) * sizeof *stage);
    if (!stage) return;
    cpu->ops->download(cpu, mirror, stage, NB_F32);
    nb_cuda_upload(be, v, stage, NB_F32);
}

void nb_cuda_settle(nb_backend *be)
{
    nb_backend *cpu = nb_cuda_of(be)->cpu;
    nb_error err;
    if (!cpu) return;
    nb_status st = cpu->ops->sync(cpu, &err);
    if (st != NB_OK) nb_cuda_fail(be, st, err.message);
    be->nonfinite += cpu->nonfinite;
    cpu->nonfinite = 0;
}
