/* The table of steps, and the run of a list of them. Their words are parsed in step.c. */
#include <math.h>
#include <string.h>

#include "method/method.h"

extern const nb_method nb_method_awq;
extern const nb_method nb_method_awq_clip;
extern const nb_method nb_method_gptq;
extern const nb_method nb_method_lorc;
extern const nb_method nb_method_minmax;
extern const nb_method nb_method_mse;
extern const nb_method nb_method_nearest;
extern const nb_method nb_method_smooth;

const nb_method *const nb_methods[] = {
    &nb_method_smooth,  &nb_method_awq,  &nb_method_minmax, &nb_method_mse, &nb_method_awq_clip,
    &nb_method_nearest, &nb_method_gptq, &nb_method_lorc,   NULL,
};

nb_status nb_method_find(const nb_method **out, const char *name, nb_error *err)
{
    char list[200] = "";
    size_t used = 0;
    *out = NULL;
    for (int i = 0; nb_methods[i]; i++) {
        const char *known = nb_methods[i]->name;
        if (strcmp(known, name) == 0) {
            *out = nb_methods[i];
            return NB_OK;
        }
        size_t n = strlen(known);
        if (used + n + 3 > sizeof list) continue;
        if (used) memcpy(list + used, ", ", 2), used += 2;
        memcpy(list + used, known, n + 1);
        used += n;
    }
    return nb_fail(err, NB_EUSAGE, "method step \"%.40s\": unknown; there are %s", name, list);
}

/* The first row that holds a NaN or Inf, or n_out. */
static int64_t first_bad_row(const nb_job *job)
{
    int64_t bad = job->n_out;
#pragma omp parallel for num_threads(job->threads) reduction(min : bad) schedule(static)
    for (int64_t row = 0; row < job->n_out; row++) {
        const float *w = job->w + row * job->n_in;
        float sum = 0; /* 0 * x is 0 for finite x alone */
        for (int64_t i = 0; i < job->n_in; i++) sum += 0 * w[i];
        if (isnan(sum) && row < bad) bad = row;
    }
    return bad;
}

static nb_status check_finite(const nb_job *job, const char *when, nb_error *err)
{
    int64_t row = first_bad_row(job);
    if (row == job->n_out) return NB_OK;
    int64_t col = 0;
    const float *w = job->w + row * job->n_in;
    while (isfinite(w[col])) col++;
    return nb_fail(err, NB_ENUMERIC, "%s: weight [%lld, %lld] %s is %g, expected a finite number",
                   job->name, (long long)(job->row0 + row), (long long)col, when, (double)w[col]);
}

nb_status nb_job_run(nb_job *job, const nb_step *steps, int n_steps, nb_error *err)
{
    job->loss = -1;
    job->clipped = -1;
    job->note[0] = 0;
    NB_TRY(check_finite(job, "of the source", err));
    for (int i = 0; i < n_steps; i++) {
        const nb_method *m = steps[i].method;
        if (!m->run) continue; /* a step on the block: done before */
        job->option = steps[i].option;
        NB_TRY(m->run(job, err));
        if (m->kind == NB_STEP_TRANSFORM) NB_TRY(check_finite(job, "transformed", err));
    }
    return NB_OK;
}
