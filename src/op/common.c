#include "op/common.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"
#include "format/half.h"

static void set_message(nb_error *err, nb_status status, const char *fmt, va_list ap)
{
    err->status = status;
    vsnprintf(err->message, sizeof err->message, fmt, ap);
}

void nb_fault_set(nb_fault *f, nb_status status, const char *fmt, ...)
{
    if (f->first.status != NB_OK) return;
    va_list ap;
    va_start(ap, fmt);
    set_message(&f->first, status, fmt, ap);
    va_end(ap);
}

void nb_fault_set_memory(nb_fault *f, const char *what, size_t n_bytes)
{
    if (f->first.status == NB_OK) nb_fail_memory(&f->first, what, n_bytes);
}

nb_status nb_fault_take(nb_fault *f, nb_error *err)
{
    nb_error first = f->first;
    *f = (nb_fault){0};
    if (err && first.status != NB_OK) *err = first;
    return first.status;
}

bool nb_fault_check_ids(nb_fault *f, const char *what, const int32_t *ids, int64_t n, int64_t limit)
{
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < limit) continue;
        nb_fault_set(f, NB_EUSAGE, "%s %" PRId64 ": id %" PRId32 " is not in [0, %" PRId64 ")",
                     what, i, ids[i], limit);
        return false;
    }
    return true;
}

static void fit_online(const nb_format *f, const float *x, int64_t n, nb_qparam *p)
{
    if (f->family->fit_online) {
        f->family->fit_online(f, x, n, p);
    } else {
        f->family->fit(f, x, NULL, n, 1, 1, p);
    }
}

bool nb_row_is_finite(const float *x, int64_t n)
{
    uint32_t top = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = nb_f32_bits(x[i]) & 0x7fffffffu;
        top = u > top ? u : top;
    }
    return top < 0x7f800000u;
}

bool nb_format_is_dialect(const nb_format *f)
{
    return f->family && strcmp(f->family->name, "dialect") == 0;
}

void nb_quant_row(const nb_format *f, const float *x, int64_t n, uint8_t *codes, nb_qparam *p)
{
    int64_t groups = nb_format_groups(f, n);
    if (!nb_format_is_dialect(f) && !nb_row_is_finite(x, n)) {
        memset(codes, 0, (size_t)n);
        for (int64_t g = 0; g < groups; g++) p[g] = (nb_qparam){.scale = NAN, .base = NAN, .id = 255};
        return;
    }
    float base = nb_format_fit_base(f, x, NULL, n, NULL, NULL);
    for (int64_t g = 0; g < groups; g++) {
        int64_t begin = nb_group_begin(f, g), len = nb_group_length(f, n, g);
        p[g].base = base;
        fit_online(f, x + begin, len, &p[g]);
        f->family->encode(f, &p[g], x + begin, len, codes + begin);
    }
}

void nb_fake_quant_row(const nb_format *f, const float *x, int64_t n, float *out)
{
    enum { PIECE = 512 };
    if (!nb_format_is_dialect(f) && !nb_row_is_finite(x, n)) {
        memmove(out, x, (size_t)n * sizeof *out);
        return;
    }
    int64_t groups = nb_format_groups(f, n);
    float base = nb_format_fit_base(f, x, NULL, n, NULL, NULL);
    for (int64_t g = 0; g < groups; g++) {
        int64_t begin = nb_group_begin(f, g), end = begin + nb_group_length(f, n, g);
        nb_qparam p = {.base = base};
        fit_online(f, x + begin, end - begin, &p);
        for (int64_t i = begin; i < end; i += PIECE) {
            uint8_t codes[PIECE];
            int64_t m = nb_min_i64(end - i, PIECE);
            f->family->encode(f, &p, x + i, m, codes);
            f->family->decode(f, &p, codes, m, out + i);
        }
    }
}
