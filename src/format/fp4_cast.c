#include "format/fp4_cast.h"

#include <assert.h>
#include <math.h>

#include "format/fp.h"

nb_fp4_cast_range nb_fp4_cast_limits(nb_minifloat from, nb_minifloat to)
{
    static const nb_fp4_cast_range limits[2][2] = {
        /* to E4M3, E5M2 */
        [NB_E2M1] = {{-8, 6}, {-15, 13}},
        [NB_E3M0] = {{-7, 4}, {-14, 11}},
    };
    assert(from <= NB_E3M0 && (to == NB_E4M3 || to == NB_E5M2));
    return limits[from][to == NB_E5M2];
}

void nb_fp4_values(float value[16], nb_minifloat from)
{
    for (int i = 0; i < 16; i++) value[i] = nb_minifloat_decode(from, (uint8_t)i);
}

void nb_int4_values(float value[16], int zero)
{
    for (int i = 0; i < 16; i++) value[i] = (float)(i - zero);
}

bool nb_fp4_cast(uint8_t out[16], const float value[16], nb_minifloat to, int j)
{
    bool exact = true;
    for (int i = 0; i < 16; i++) {
        float x = ldexpf(value[i], j);
        out[i] = nb_minifloat_encode(to, x);
        exact = exact && nb_minifloat_decode(to, out[i]) == x;
    }
    return exact;
}

bool nb_fp4_cast_row(const nb_format *f, const uint8_t *codes, const nb_qparam *p, int64_t n_in,
                     nb_minifloat to, uint8_t *out, float *scale)
{
    assert(nb_fp_has_base(f));
    nb_minifloat from = nb_fp_type(f);
    int hi = nb_fp4_cast_limits(from, to).hi;
    float value[16];
    nb_fp4_values(value, from);
    *scale = ldexpf(p[0].base, -hi);
    for (int64_t g = 0; g < nb_format_groups(f, n_in); g++) {
        uint8_t table[16];
        if (!nb_fp4_cast(table, value, to, hi - p[g].id)) return false;
        int64_t at = nb_group_begin(f, g), n = nb_group_length(f, n_in, g);
        for (int64_t i = at; i < at + n; i++) out[i] = table[codes[i]];
    }
    return true;
}
