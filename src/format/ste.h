/* Straight-through gradients of quantization: what training must know about a format.
 *
 * A group w becomes w^ = scale * level(w / scale). Rounding counts as the identity (OmniQuant
 * section 3), so that with g = dL/dw^ and "inside" for what was not saturated:
 *
 *   dw^/dscale = (w^ - [inside] w) / scale        G = sum g dw^/dscale
 *   dL/dw      = [inside] g + G dscale/dw
 *
 * and the scale depends on w and on the clip ratios through the ends of its range alone:
 *
 *   lo = clip_lo min(w, 0), hi = clip_hi max(w, 0)      dscale/dlo, dscale/dhi: nb_slope
 *
 * A learned offset v goes in front of the rounding alone, w^ = scale * level(w / scale + v),
 * "inside" being of what is rounded:
 *
 *   dL/dv = [inside] g scale      dw^/dscale as above, with w, not w + v scale
 *
 * Nothing flows through a zero point, unless it learns as well: then as if it were no whole number
 * (LSQ+, arXiv 2004.09576), so that what saturates moves with its own end of the range alone. With
 * S = sum of g over what saturated and the zero point's share z / span of the range
 *
 *   dL/dhi = G dscale/dhi + S share      dL/dlo = G dscale/dlo + S (1 - share)
 *
 * Nothing flows through a scale at the limit of its stored type; an end at 0 has no gradient. */
#ifndef NB_FORMAT_STE_H
#define NB_FORMAT_STE_H

#include <math.h>

#include "format/format.h"

typedef enum nb_scale_rule {
    NB_SCALE_STEPPED, /* powers of two, searches: constant but for jumps */
    NB_SCALE_RANGE,   /* (hi - lo) / span */
    NB_SCALE_ABSMAX,  /* max(-lo, hi) / span */
} nb_scale_rule;

/* The grid of one group with parameters p. */
struct nb_grid {
    float lo, hi; /* w / scale in [lo, hi] is rounded, what lies beyond saturates: the outer levels
                   * and half a step more */
    bool uniform; /* levels are the whole numbers there */
    nb_scale_rule rule;
    float span;
    float scale_min, scale_max; /* limits of the stored scale */
};

typedef struct nb_slope {
    double lo, hi; /* dscale/dlo <= 0, dscale/dhi >= 0 */
} nb_slope;

/* Slopes where a gradient may take them: 0 for a stepped scale. lo <= 0 <= hi as above. */
nb_slope nb_grid_slope(const nb_grid *g, float lo, float hi);

/* Slopes for learning clip ratios. A stepped scale counts as proportional to the larger end:
 * straight-through around the rounding of its exponent, too (S. R. Jain et al., "Trained
 * Quantization Thresholds", arXiv 1903.08066, section 3.3). */
nb_slope nb_grid_clip_slope(const nb_grid *g, float scale, float lo, float hi);

/* The zero point's share of the range where it may learn; < 0: there is none that could. */
static inline double nb_zero_share(const nb_grid *g, const nb_qparam *p, nb_slope s)
{
    bool learns = g->rule == NB_SCALE_RANGE && s.hi > 0;
    return learns ? (double)p->zero / (double)g->span : -1;
}

/* Clip ratio of a logit (LWC). */
static inline float nb_clip_ratio(float logit) { return 1 / (1 + expf(-logit)); }

/* A weight before rounding with a learned offset v in steps of its group: "signround". Training and
 * storing must agree to the bit, so nobody else writes this down. */
static inline float nb_offset_weight(float w, float v, float scale) { return w + v * scale; }

/* Grid of symmetric levels up to `top`, the last step being `step`. */
static inline nb_grid nb_grid_symmetric(float top, float step, nb_scale_rule rule)
{
    float end = top + step / 2;
    return (nb_grid){.lo = -end, .hi = end, .rule = rule, .span = top, .scale_max = INFINITY};
}

#endif
