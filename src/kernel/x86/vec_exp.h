/* exp over the vector type of vec_<isa>.h, which its user has included before. */
#ifndef NB_KERNEL_X86_VEC_EXP_H
#define NB_KERNEL_X86_VEC_EXP_H

/* e^r for |r| <= 0.347: Chebyshev interpolation, relative error below 2.1e-8 before rounding. */
static inline vf exp_poly(vf r)
{
    vf p = v_set1(0x1.6d7544p-10f);
    p = v_fma(p, r, v_set1(0x1.126fb8p-7f));
    p = v_fma(p, r, v_set1(0x1.5554acp-5f));
    p = v_fma(p, r, v_set1(0x1.555404p-3f));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p, r, v_set1(1));
    return v_fma(p, r, v_set1(1));
}

/* e^x within 2^-22 relative (2^-126 absolute where the result is denormal), 0 below -104, Inf
 * above 88.8, NaN for NaN (hence x second in min and max). ln 2 is split so that n hi is exact. */
static inline vf v_exp(vf x)
{
    x = v_max(v_set1(-104.5f), v_min(v_set1(89), x));
    vf n = v_round(v_mul(x, v_set1(0x1.715476p+0f)));
    vf r = v_fnma(n, v_set1(0x1.62e400p-1f), x);
    r = v_fnma(n, v_set1(0x1.7f7d1cp-20f), r);
    return v_ldexp(exp_poly(r), n);
}

/* 2^y for y <= 0 within 2^-22 relative, NaN for NaN. */
static inline vf v_exp2(vf y)
{
    y = v_max(v_set1(-151), y);
    vf n = v_round(y);
    return v_ldexp(exp_poly(v_mul(v_sub(y, n), v_set1(0x1.62e430p-1f))), n);
}

#endif
