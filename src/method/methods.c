/* The table of steps, and the run of a list of them. Their words are parsed in step.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "method/method.h"

extern const nb_method nb_method_awq;
extern const nb_method nb_method_awq_clip;
extern const nb_method nb_method_gptq;
extern const nb_method nb_method_hadamard;
extern const nb_method nb_method_lorc;
extern const nb_method nb_method_minmax;
extern const nb_method nb_method_mse;
extern const nb_method nb_method_nearest;
extern const nb_method nb_method_omniquant;
extern const nb_method nb_method_signround;
extern const nb_method nb_method_smooth;

const nb_method *const nb_methods[] = {
    &nb_method_hadamard, &nb_method_smooth,    &nb_method_awq,       &nb_method_minmax,
    &nb_method_mse,      &nb_method_awq_clip,  &nb_method_omniquant, &nb_method_nearest,
    &nb_method_gptq,     &nb_method_signround, &nb_method_lorc,      NULL,
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

/* ---- what rows share ---------------------------------------------------------------------- */

static bool is_zero(const float *w, int64_t n)
{
    int64_t i = 0;
    while (i < n && w[i] == 0) i++;
    return i == n;
}

/* The largest base of a row, with the clip ratios as they stand; of zeros alone, 0: none. */
static float matrix_base(const nb_job *job)
{
    float base = 0;
    int64_t n = job->n_in, groups = nb_format_groups(job->format, n);
#pragma omp parallel for num_threads(job->threads) reduction(max : base) schedule(static)
    for (int64_t row = 0; row < job->n_out; row++) {
        const float *w = job->w + row * n;
        if (is_zero(w, n)) continue;
        float own = nb_format_fit_base(job->format, w, job->importance, n,
                                       job->clip_lo + row * groups, job->clip_hi + row * groups);
        base = own > base ? own : base;
    }
    return base;
}

/* Scales out of the base's reach are said in the report. */
static void note_clamped(nb_job *job)
{
    int64_t count = 0, n = job->n_in, groups = nb_format_groups(job->format, n);
    if (!job->format->family->count_clamped) return;
#pragma omp parallel for num_threads(job->threads) reduction(+ : count) schedule(static)
    for (int64_t row = 0; row < job->n_out; row++) {
        count += job->format->family->count_clamped(job->format, job->w + row * n, job->importance,
                                                    n, job->clip_lo + row * groups,
                                                    job->clip_hi + row * groups);
    }
    size_t used = strlen(job->note);
    if (count > 0) {
        snprintf(job->note + used, sizeof job->note - used, "%s%lld scales of %lld out of reach",
                 used ? "; " : "", (long long)count, (long long)(job->n_out * groups));
    }
}

static nb_status run_step(nb_job *job, const nb_step *step, nb_error *err)
{
    job->option = step->option;
    NB_TRY(step->method->run(job, err));
    if (step->method->kind == NB_STEP_ROUND) note_clamped(job);
    if (step->method->kind == NB_STEP_TRANSFORM) return check_finite(job, "transformed", err);
    return NB_OK;
}

/* Blocks of several rows are for evaluation: the other steps know rows alone. */
static nb_status check_tile(const nb_job *job, const nb_step *step, nb_error *err)
{
    const char *name = step->method->name;
    if (job->format->tile <= 1 || strcmp(name, "minmax") == 0 || strcmp(name, "nearest") == 0) {
        return NB_OK;
    }
    return nb_fail(err, NB_EUSAGE,
                   "%s: step \"%s\" cannot make \"%s\": only minmax and nearest can", job->name,
                   step->word, job->format->word);
}

nb_status nb_job_run(nb_job *job, const nb_step *steps, int n_steps, nb_error *err)
{
    const nb_format *format = job->format;
    nb_format shared = *format;
    nb_status st = NB_OK;
    job->loss = -1;
    job->clipped = -1;
    job->note[0] = 0;
    NB_TRY(check_finite(job, "of the source", err));
    for (int i = 0; i < n_steps; i++) NB_TRY(check_tile(job, &steps[i], err));
    for (int i = 0; st == NB_OK && i < n_steps; i++) {
        if (!steps[i].method->run) continue;                /* a step on the block: done before */
        if (format->matrix) shared.base = matrix_base(job); /* weights and clips have changed */
        if (format->matrix) job->format = &shared;
        st = run_step(job, &steps[i], err);
        job->format = format;
    }
    return st;
}
