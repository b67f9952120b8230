/* Elementary functions on vectors, and the pieces that every elementwise kernel needs.
 *
 * exp: W. J. Cody & W. Waite, "Software manual for the elementary functions" (1980), chapter 6:
 * x = k ln 2 + r with ln 2 in two parts, so that r is exact, then a polynomial in r. tanh: chapter
 * 13. The polynomials are fitted in Chebyshev's sense. erfc: W. J. Cody, "Rational Chebyshev approximations for the error function",
 * Math. Comp. 23 (1969).
 *
 * Errors against float64 (against long double for the double versions) stand with the tests,
 * tests/ops/test_elementary.py. NaN gives NaN everywhere; infinities and results that overflow or
 * are subnormal come out as in libm, to the same errors.
 */
#ifndef GPULAYERS_MATHFUN_H
#define GPULAYERS_MATHFUN_H

#include "common.h"

/* ------------------------------------------------------------------------------ loads and lanes */

/* The first n < VW scalars, zeros after them. */
INLINE vec load_part(const real *p, i64 n) {
    real lanes[VEC_BYTES / sizeof(real)] = {0};
    for (i64 k = 0; k < n; k++) lanes[k] = p[k];
    return load(lanes);
}

INLINE void store_part(real *p, vec v, i64 n) {
    real lanes[VEC_BYTES / sizeof(real)];
    store(lanes, v);
    for (i64 k = 0; k < n; k++) p[k] = lanes[k];
}

/* With n the constant VW these are plain loads and stores. */
INLINE vec load_lanes(const real *p, i64 n) { return n >= VW ? load(p) : load_part(p, n); }

INLINE void store_lanes(real *p, vec v, i64 n) {
    if (n >= VW)
        store(p, v);
    else
        store_part(p, v, n);
}

/* Ask for memory that a pass will come to soon. By itself the processor looks no further than to the
 * end of a page, and a pass over large arrays waits at the beginning of each. */
#define AHEAD 8192 /* bytes */
INLINE void soon(const real *p) { __builtin_prefetch((const void *)((uintptr_t)p + AHEAD)); }
INLINE void soon_written(real *p) { __builtin_prefetch((const void *)((uintptr_t)p + AHEAD), 1); }

INLINE real sum_lanes(vec v) {
    real lanes[VEC_BYTES / sizeof(real)];
    store(lanes, v);
    for (i64 half = VW / 2; half; half /= 2)
        for (i64 k = 0; k < half; k++) lanes[k] += lanes[k + half];
    return lanes[0];
}

INLINE real max_lanes(vec v) {
    real lanes[VEC_BYTES / sizeof(real)];
    store(lanes, v);
    for (i64 half = VW / 2; half; half /= 2)
        for (i64 k = 0; k < half; k++)
            lanes[k] = lanes[k] > lanes[k + half] ? lanes[k] : lanes[k + half];
    return lanes[0];
}

/* NaN is kept: a comparison with it is false. */
INLINE vec at_most(vec x, real limit) { return select(x > splat(limit), splat(limit), x); }
INLINE vec at_least(vec x, real limit) { return select(x < splat(limit), splat(limit), x); }

#ifdef GL_DOUBLE
typedef uint64_t ubits;
#define SIGN_BIT INT64_MIN
#define EXPONENT_BIAS 1023
#define MANTISSA_BITS 52
#else
typedef uint32_t ubits;
#define SIGN_BIT INT32_MIN
#define EXPONENT_BIAS 127
#define MANTISSA_BITS 23
#endif
typedef ubits umask __attribute__((vector_size(VEC_BYTES)));

INLINE mask splat_bits(bits x) { return x - (mask){0}; }
INLINE mask lane_numbers(void) {
    mask numbers;
    for (int k = 0; k < VW; k++) numbers[k] = k;
    return numbers;
}
INLINE vec magnitude(vec x) { return (vec)((mask)x & ~splat_bits(SIGN_BIT)); }
INLINE vec with_sign_of(vec x, vec sign) {
    return (vec)((mask)x | ((mask)sign & splat_bits(SIGN_BIT)));
}

/* c[0] x^(n-1) + ... + c[n-1] */
INLINE vec polynomial(vec x, const real *c, int n) {
    vec value = splat(c[0]);
    for (int k = 1; k < n; k++) value = value * x + splat(c[k]);
    return value;
}

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* ------------------------------------------------------------------------- the exponential */

#ifdef GL_DOUBLE
#define LN2_HIGH 0x1.62e42feep-1 /* few bits: k times it is exact */
#define LN2_LOW 0x1.a39ef35793c76p-33
#define TO_INTEGER 0x1.8p52 /* adding it rounds to an integer, which the low bits then hold */
#define EXP_LOW ((real)-746)  /* below it exp is 0, above EXP_HIGH infinite */
#define EXP_HIGH ((real)710)
#define EXP_NORMAL ((real)-708) /* above it exp is a normal number */
/* (exp(r) - 1 - r) / r^2, |r| <= ln(2) / 2 */
static const real EXP_FITTED[] = {
    2.510041108201490107e-8, 2.762012171738193519e-7, 2.755726840619079503e-6,
    0.00002480152122598643248, 0.0001984126986308825442, 0.001388888891725875826,
    0.008333333333330054896, 0.04166666666662403767, 0.1666666666666666745,
    0.5000000000000001025};
#else
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW -0x1.bd0106p-13f
#define TO_INTEGER 0x1.8p23f
#define EXP_LOW ((real)-105)
#define EXP_HIGH ((real)89)
#define EXP_NORMAL ((real)-87)
static const real EXP_FITTED[] = {
    0.001392620336f, 0.008363194882f, 0.0416665545f, 0.1666657689f, 0.5f};
#endif
#define LOG2_E ((real)1.4426950408889634)

/* x = k ln 2 + r; returns exp(r) - 1, and k */
INLINE vec reduced_expm1(vec x, mask *k) {
    vec shifted = x * splat(LOG2_E) + splat(TO_INTEGER);
    vec whole = shifted - splat(TO_INTEGER);
    *k = (mask)((umask)(mask)shifted - (umask)(mask)splat(TO_INTEGER));
    vec r = (x - whole * splat(LN2_HIGH)) - whole * splat(LN2_LOW);
    return r + r * r * polynomial(r, EXP_FITTED, COUNT(EXP_FITTED));
}

/* 2^k for exponents of normal numbers */
INLINE vec power_of_two(mask k) {
    return (vec)(((umask)k + (umask)splat_bits(EXPONENT_BIAS)) << MANTISSA_BITS);
}

INLINE vec vector_exp(vec x) {
    mask k;
    vec p = reduced_expm1(at_most(at_least(x, EXP_LOW), EXP_HIGH), &k) + splat(1);
    /* in two steps, since 2^k alone may overflow or be subnormal where the product is not */
    mask half = k >> 1;
    return p * power_of_two(half) * power_of_two(k - half);
}

/* exp(x) for x <= 0; results below the smallest normal number, 0 among them, come out as 0 */
INLINE vec vector_exp_below_zero(vec x) {
    mask k;
    vec p = reduced_expm1(x, &k) + splat(1);
    vec y = (vec)((umask)(mask)p + ((umask)k << MANTISSA_BITS)); /* p 2^k */
    return (vec)((mask)y & ~(x < splat(EXP_NORMAL)));
}

/* exp(x) - 1 for x <= 0, without cancellation */
INLINE vec vector_expm1_negative(vec x) {
    mask k;
    vec p = reduced_expm1(at_least(x, -40), &k); /* there exp(x) - 1 rounds to -1 */
    vec scale = power_of_two(k);
    return p * scale + (scale - splat(1));
}

/* ------------------------------------------------------------------- what follows from it */

/* s = 1 / (1 + exp(-z)) and s (1 - s): only exp(-|z|) <= 1 is computed, nothing overflows. */
INLINE vec logistic(vec z, vec *slope) {
    vec e = vector_exp(-magnitude(z));
    vec inverse = splat(1) / (splat(1) + e);
    *slope = e * inverse * inverse;
    return select(z < splat(0), e, splat(1)) * inverse;
}

/* (tanh(x) - x) / x^3 in x^2, |x| <= 0.625 */
#ifdef GL_DOUBLE
static const real TANH_SMALL[] = {
    6.484104982405478762e-6,  -3.119892666773487439e-5, 9.256923588512032464e-5,
    -2.375896885211701224e-4, 5.896603606552671371e-4,  -1.455775353209629581e-3,
    3.592121743695985626e-3,  -8.86323510265348432e-3,  2.186948851898142877e-2,
    -5.396825396789636385e-2, 1.333333333333304103e-1,  -3.333333333333333294e-1};
#else
static const real TANH_SMALL[] = {2.292557699e-3f,  -8.34378037e-3f, 2.176868821e-2f,
                                  -5.395925338e-2f, 1.333330353e-1f, -3.333333317e-1f};
#endif

INLINE vec vector_tanh(vec x) {
    vec y = magnitude(x), square = x * x;
    vec small = y + y * square * polynomial(square, TANH_SMALL, COUNT(TANH_SMALL));
    vec large = splat(1) - splat(2) / (vector_exp(y + y) + splat(1));
    return with_sign_of(select(y < splat((real)0.625), small, large), x);
}

/* 2/(2k+1), from the highest k needed down to 1 */
#ifdef GL_DOUBLE
static const real LOG1P_SERIES[] = {2.0 / 35, 2.0 / 33, 2.0 / 31, 2.0 / 29, 2.0 / 27, 2.0 / 25,
                                    2.0 / 23, 2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13,
                                    2.0 / 11, 2.0 / 9,  2.0 / 7,  2.0 / 5,  2.0 / 3};
#else
static const real LOG1P_SERIES[] = {2.f / 17, 2.f / 15, 2.f / 13, 2.f / 11,
                                    2.f / 9,  2.f / 7,  2.f / 5,  2.f / 3};
#endif

/* log(1 + e) for 0 <= e <= 1, as 2 artanh(f), f = e / (2 + e) <= 1/3, by its series */
INLINE vec vector_log1p_unit(vec e) {
    vec f = e / (splat(2) + e), square = f * f;
    return f + f + f * square * polynomial(square, LOG1P_SERIES, COUNT(LOG1P_SERIES));
}

/* ------------------------------------------------------------------------ the error function */

/* numerators and denominators, highest power first; as in gpulayers/_erf.py */
static const real ERF_SMALL_P[] = {1.85777706184603153e-1, 3.16112374387056560e0,
                                   1.13864154151050156e2, 3.77485237685302021e2,
                                   3.20937758913846947e3};
static const real ERF_SMALL_Q[] = {1.0, 2.36012909523441209e1, 2.44024637934444173e2,
                                   1.28261652607737228e3, 2.84423683343917062e3};
static const real ERF_MIDDLE_P[] = {2.15311535474403846e-8, 5.64188496988670089e-1,
                                    8.88314979438837594e0,  6.61191906371416295e1,
                                    2.98635138197400131e2,  8.81952221241769090e2,
                                    1.71204761263407058e3,  2.05107837782607147e3,
                                    1.23033935479799725e3};
static const real ERF_MIDDLE_Q[] = {1.0,                   1.57449261107098347e1,
                                    1.17693950891312499e2, 5.37181101862009858e2,
                                    1.62138957456669019e3, 3.29079923573345963e3,
                                    4.36261909014324716e3, 3.43936767414372164e3,
                                    1.23033935480374942e3};
static const real ERF_LARGE_P[] = {1.63153871373020978e-2, 3.05326634961232344e-1,
                                   3.60344899949804439e-1, 1.25781726111229246e-1,
                                   1.60837851487422766e-2, 6.58749161529837803e-4};
static const real ERF_LARGE_Q[] = {1.0, 2.56852019228982242e0, 1.87295284992346725e0,
                                   5.27905102951428412e-1, 6.05183413124413191e-2,
                                   2.33520497626869185e-3};
#define ONE_OVER_SQRT_PI ((real)0.5641895835477562869)

INLINE vec ratio(vec x, const real *p, const real *q, int n) {
    return polynomial(x, p, n) / polynomial(x, q, n);
}

/* erfc(y) for y >= 0.46875; smaller y are taken as 0.46875 */
INLINE vec erfc_tail(vec y) {
    y = at_most(at_least(y, (real)0.46875), (real)27.5); /* erfc underflows at 27.23 */
    vec middle = ratio(at_most(y, 4), ERF_MIDDLE_P, ERF_MIDDLE_Q, COUNT(ERF_MIDDLE_P));
    vec far = at_least(y, 4);
    vec w = splat(1) / (far * far);
    vec correction = w * ratio(w, ERF_LARGE_P, ERF_LARGE_Q, COUNT(ERF_LARGE_P));
    vec large = (splat(ONE_OVER_SQRT_PI) - correction) / far;
    /* exp(-y^2) = exp(-a^2) exp(-(y - a)(y + a)), a with so few bits that a^2 is exact */
    vec a = (y * splat(16) + splat(TO_INTEGER)) - splat(TO_INTEGER);
    a = a * splat((real)0.0625);
    vec scale = vector_exp(-a * a) * vector_exp(-(y - a) * (y + a));
    return scale * select(y <= splat(4), middle, large);
}

INLINE vec vector_erfc(vec x) {
    vec y = magnitude(x), tail = erfc_tail(y);
    vec cut = at_most(at_least(x, (real)-0.46875), (real)0.46875);
    vec erf = cut * ratio(cut * cut, ERF_SMALL_P, ERF_SMALL_Q, COUNT(ERF_SMALL_P));
    vec outer = select(x < splat(0), splat(2) - tail, tail);
    return select(y <= splat((real)0.46875), splat(1) - erf, outer);
}

#endif
