#include "format/minifloat.h"

#include "format/half.h"

#define F32_INF 0x7f800000
#define F32_NAN 0x7fc00000

const nb_minifloat_info nb_minifloats[NB_N_MINIFLOATS] = {
    /* name, bits, m_bits, bias, max_code, inf_code, nan_code, max, max_paper */
    [NB_E2M1] = {"e2m1", 4, 1, 1, 0x07, 0, 0x07, 6, 6},
    [NB_E3M0] = {"e3m0", 4, 0, 3, 0x07, 0, 0x07, 16, 16},
    [NB_E2M3] = {"e2m3", 6, 3, 1, 0x1f, 0, 0x1f, 7.5f, 7.5f},
    [NB_E3M2] = {"e3m2", 6, 2, 3, 0x1f, 0, 0x1f, 28, 28},
    [NB_E4M3] = {"e4m3", 8, 3, 7, 0x7e, 0, 0x7f, 448, 480},
    [NB_E5M2] = {"e5m2", 8, 2, 15, 0x7b, 0x7c, 0x7f, 57344, 114688},
};

/* The same numbers as the loops use them. All are bits of fp32 and below 2^31, hence signed:
 * baseline x86 has no unsigned comparison of vectors. */
typedef struct shape {
    int shift;      /* from the mantissa of fp32 to that of the type             */
    int sign_shift; /* from bit 31 to the sign of the type                       */
    int32_t rebias; /* difference of the exponents' biases, in units of the code */
    int32_t min;    /* smallest normal value                                     */
    int32_t magic;  /* power of two whose ulp is the smallest value of the type  */
    int32_t max, max_code, inf_code, nan_code, mag_mask;
} shape;

static shape shape_of(nb_minifloat t)
{
    const nb_minifloat_info *i = &nb_minifloats[t];
    return (shape){.shift = 23 - i->m_bits,
                   .sign_shift = 32 - i->bits,
                   .rebias = (127 - i->bias) << i->m_bits,
                   .min = (128 - i->bias) << 23,
                   .magic = (151 - i->bias - i->m_bits) << 23,
                   .max = (int32_t)nb_f32_bits(i->max),
                   .max_code = i->max_code,
                   .inf_code = i->inf_code,
                   .nan_code = i->nan_code,
                   .mag_mask = (1 << (i->bits - 1)) - 1};
}

static inline float as_float(int32_t bits) { return nb_f32_from_bits((uint32_t)bits); }

static inline int32_t as_bits(float x) { return (int32_t)nb_f32_bits(x); }

/* a where `mask` is all ones, b where it is 0. Written out because the compilers do not turn a
 * branch around a float operation into a blend. */
static inline int32_t blend(int32_t mask, int32_t a, int32_t b) { return (mask & a) | (~mask & b); }

/* Normal values round in the integer domain, where a carry runs into the exponent as it should;
 * below the smallest of them the addition of `magic` rounds, and leaves the code in the mantissa.
 */
static inline int32_t encode_hw(const shape *s, float x)
{
    uint32_t u = nb_f32_bits(x);
    int32_t a = (int32_t)(u & 0x7fffffffu), sign = (int32_t)(u >> 31 << 31 >> s->sign_shift);
    int32_t is_nan = -(int32_t)(a > F32_INF);
    a = a < s->max ? a : s->max;
    int32_t half = (1 << (s->shift - 1)) - 1 + (a >> s->shift & 1);
    int32_t normal = ((a + half) >> s->shift) - s->rebias;
    int32_t small = as_bits(as_float(a) + as_float(s->magic)) - s->magic;
    int32_t code = blend(-(int32_t)(a < s->min), small, normal) | sign;
    return blend(is_nan, s->nan_code, code);
}

static inline int32_t encode_paper(const shape *s, float x)
{
    uint32_t u = nb_f32_bits(x), half = 1u << (s->shift - 1), a = u & 0x7fffffffu;
    int32_t sign = (int32_t)(u >> 31 << 31 >> s->sign_shift), code;
    if ((int32_t)a < s->min) {
        uint32_t v = nb_f32_bits(nb_f32_from_bits(a) + as_float(s->min));
        code = (int32_t)((v + half) >> s->shift) - (s->min >> s->shift);
        return code == 0 ? 0 : code | sign;
    }
    code = (int32_t)((a + half) >> s->shift) - s->rebias;
    return (code < s->mag_mask ? code : s->mag_mask) | sign;
}

/* Bits of the value, no code reserved. */
static inline int32_t decode_bits(const shape *s, int32_t code)
{
    int32_t a = code & s->mag_mask;
    uint32_t sign = (uint32_t)(code & (s->mag_mask + 1)) << s->sign_shift;
    int32_t small = as_bits(as_float(s->magic + a) - as_float(s->magic));
    int32_t is_small = -(int32_t)((a + s->rebias) << s->shift < s->min);
    return blend(is_small, small, (a + s->rebias) << s->shift) | (int32_t)sign;
}

static inline float decode_hw(const shape *s, int32_t code)
{
    int32_t a = code & s->mag_mask, value = decode_bits(s, code);
    int32_t special = blend(-(int32_t)(a == s->inf_code), F32_INF, F32_NAN) | (value & INT32_MIN);
    return as_float(blend(-(int32_t)(a > s->max_code), special, value));
}

uint8_t nb_minifloat_encode(nb_minifloat t, float x)
{
    shape s = shape_of(t);
    return (uint8_t)encode_hw(&s, x);
}

uint8_t nb_minifloat_encode_paper(nb_minifloat t, float x)
{
    shape s = shape_of(t);
    return (uint8_t)encode_paper(&s, x);
}

float nb_minifloat_decode(nb_minifloat t, uint8_t code)
{
    shape s = shape_of(t);
    return decode_hw(&s, code);
}

float nb_minifloat_decode_paper(nb_minifloat t, uint8_t code)
{
    shape s = shape_of(t);
    return as_float(decode_bits(&s, code));
}

/* `omp simd` because neither compiler sees by itself that a vector pays for a byte per value. */
void nb_minifloat_encode_row(nb_minifloat t, float scale, const float *restrict w, int64_t n,
                             uint8_t *restrict codes)
{
    const shape s = shape_of(t);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)encode_hw(&s, w[i] / scale);
}

void nb_minifloat_decode_row(nb_minifloat t, float scale, const uint8_t *restrict codes, int64_t n,
                             float *restrict w)
{
    const shape s = shape_of(t);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) w[i] = decode_hw(&s, codes[i]) * scale;
}

void nb_minifloat_round_each(nb_minifloat t, const nb_qparam *restrict p, const float *restrict w,
                             int64_t n, uint8_t *restrict codes, float *restrict back)
{
    const shape s = shape_of(t);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float scale = p[i].scale;
        int32_t code = encode_hw(&s, w[i] / scale);
        codes[i] = (uint8_t)code;
        back[i] = decode_hw(&s, code) * scale;
    }
}
