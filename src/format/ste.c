#include "format/ste.h"

/* Slopes of max(-lo, hi) times a; half each on a tie. */
static nb_slope larger_end(float lo, float hi, double a)
{
    if (-lo == hi) return (nb_slope){-a / 2, a / 2};
    return -lo > hi ? (nb_slope){-a, 0} : (nb_slope){0, a};
}

nb_slope nb_grid_slope(const nb_grid *g, float lo, float hi)
{
    float width = g->rule == NB_SCALE_RANGE ? hi - lo : fmaxf(-lo, hi);
    if (g->rule == NB_SCALE_STEPPED || width == 0) return (nb_slope){0};
    float scale = width / g->span;
    if (scale < g->scale_min || scale > g->scale_max) return (nb_slope){0};
    double a = 1 / (double)g->span;
    return g->rule == NB_SCALE_RANGE ? (nb_slope){-a, a} : larger_end(lo, hi, a);
}

nb_slope nb_grid_clip_slope(const nb_grid *g, float scale, float lo, float hi)
{
    float width = fmaxf(-lo, hi);
    if (g->rule != NB_SCALE_STEPPED || width == 0) return nb_grid_slope(g, lo, hi);
    return larger_end(lo, hi, (double)scale / width);
}
