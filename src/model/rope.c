/* Rotary position tables (Su et al. 2021), with linear and Llama 3 scaling of the frequencies as
 * Hugging Face defines them (modeling_rope_utils). */
#include <math.h>
#include <stdlib.h>

#include "base/size.h"
#include "model/family.h"

#define TWO_PI 6.283185307179586

static double inv_freq(const nb_config *c, int i)
{
    return 1.0 / pow((double)c->rope_theta, 2.0 * i / c->head_dim);
}

/* Wavelengths above original/low are stretched by the factor, those below original/high stay, and
 * between them the two blend. */
static double llama3_divisor(const nb_config *c, double inv)
{
    double wavelength = TWO_PI / inv, original = c->rope_original_ctx;
    double low = (double)c->rope_low_freq, high = (double)c->rope_high_freq;
    if (wavelength > original / low) return (double)c->rope_factor;
    if (wavelength < original / high) return 1.0;
    double smooth = (original / wavelength - low) / (high - low);
    return 1.0 / ((1.0 - smooth) / (double)c->rope_factor + smooth);
}

void nb_rope_divisors(const nb_config *c, double *out)
{
    for (int i = 0; i < c->head_dim / 2; i++) {
        out[i] = c->rope_scaling == NB_ROPE_LINEAR   ? (double)c->rope_factor
                 : c->rope_scaling == NB_ROPE_LLAMA3 ? llama3_divisor(c, inv_freq(c, i))
                                                     : 1.0;
    }
}

/* Angles in fp32 as the models were trained: position * fp32 frequency, rounded. */
static void fill(const nb_config *c, int64_t n_pos, const double *div, float *out)
{
    int half = c->head_dim / 2;
    for (int64_t p = 0; p < n_pos; p++) {
        for (int i = 0; i < half; i++) {
            float angle = (float)p * (float)(inv_freq(c, i) / div[i]);
            out[p * c->head_dim + i] = (float)cos((double)angle);
            out[p * c->head_dim + half + i] = (float)sin((double)angle);
        }
    }
}

nb_status nb_rope_table(nb_backend *be, const nb_config *cfg, int64_t n_pos, nb_view *out,
                        nb_error *err)
{
    *out = (nb_view){0};
    if (!cfg->family->rotary) return NB_OK;
    size_t n;
    if (!nb_mul_size((size_t)n_pos, (size_t)cfg->head_dim, &n)) {
        return nb_fail_memory(err, "rotary table", SIZE_MAX);
    }
    float *host = malloc(n * sizeof *host);
    double *div = malloc((size_t)cfg->head_dim / 2 * sizeof *div);
    nb_buffer *buf = NULL;
    nb_status st = host && div ? NB_OK : nb_fail_memory(err, "rotary table", n * sizeof *host);
    if (st == NB_OK) st = be->ops->buffer_create(be, (int64_t)n, &buf, err);
    if (st == NB_OK) {
        nb_rope_divisors(cfg, div);
        fill(cfg, n_pos, div, host);
        *out = nb_view_of(buf, n_pos, cfg->head_dim);
        be->ops->upload(be, *out, host, NB_F32);
    }
    free(host);
    free(div);
    return st;
}
