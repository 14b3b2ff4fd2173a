/* Functions that libm would give with different bits on different machines: exp's coefficients, log, random words. */
#ifndef FN_SPECIAL_H
#define FN_SPECIAL_H

#include <math.h>

#include "vec.h"

/* (exp(r) - 1 - r) / r², |r| ≤ ln 2 / 2: for float a minimax polynomial (weighted least squares with Lawson's weights), which
   leaves exp a relative error of 3e-9; for double Taylor's series. */
static const float fn_exp_terms32[5] __attribute__((unused)) =
    {1.3814321719e-3f, 8.3688506857e-3f, 4.1668403894e-2f, 1.6666521132e-1f, 4.9999994040e-1f};
static const double fn_exp_terms64[12] __attribute__((unused)) =
    {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
     1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2};

/* log x for x > 0, below 1 ULP: x = 2^k·(1 + f), s = f / (2 + f), log(1 + f) = f - f²/2 + s·(f²/2 + R(s²)) with R the
   minimax polynomial of Sun's fdlibm. NaN gives NaN. */
FN_INLINE double fn_log(double x) {
    if (!(x > 0 && x <= 1.7976931348623157e308)) return x == 0 ? -(double)INFINITY : x;
    int k = 0;
    if (x < 0x1p-1022) { x *= 0x1p54; k = -54; }
    uint64_t u;
    memcpy(&u, &x, 8);
    u += 0x3ff0000000000000 - 0x3fe6a09e00000000; /* so that 1 + f lies in [√½, √2) */
    k += (int)(u >> 52) - 1023;
    u = (u & 0x000fffffffffffff) + 0x3fe6a09e00000000;
    memcpy(&x, &u, 8);
    double f = x - 1, half = 0.5 * f * f, s = f / (2 + f), z = s * s, w = z * z;
    double even = w * (3.999999999940941908e-1 + w * (2.222219843214978396e-1 + w * 1.531383769920937332e-1));
    double odd = z * (6.666666666666735130e-1 + w * (2.857142874366239149e-1 + w * (1.818357216161805012e-1 + w * 1.479819860511658591e-1)));
    return k * 6.93147180369123816490e-01 - ((half - (s * (half + (odd + even)) + k * 1.90821492927058770002e-10)) - f);
}

/* Bit i of 64 bits to bit 4·i. */
FN_INLINE uint64_t fn_spread(uint64_t x) {
    x = (x | x << 24) & 0x000000ff000000ff;
    x = (x | x << 12) & 0x000f000f000f000f;
    x = (x | x << 6) & 0x0303030303030303;
    return (x | x << 3) & 0x1111111111111111;
}

/* For 64 elements from 4·block on (block a multiple of 16), and as many again up to FN_WORDS: bit i is set where word i mod 4 of
   Philox4x32-10 at counter block + i / 4 is at least `threshold`. Side by side, because a round waits for the one before. */
#define FN_WORDS (FN_LEVEL == 3 ? 4 : 1) /* their counters in half of the registers */
FN_INLINE void fn_philox_keep(uint64_t seed, uint64_t block, uint64_t threshold, uint64_t *keep) {
    vu c0[FN_WORDS], c1[FN_WORDS], c2[FN_WORDS], c3[FN_WORDS];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32), t = (uint32_t)threshold;
#define EACH_WORD _Pragma("GCC unroll 4") for (int i = 0; i < FN_WORDS; i++)
    EACH_WORD {
        c0[i] = vu_count((uint32_t)block + 16 * i);
        c1[i] = vu_set1((uint32_t)((block + 16 * (uint64_t)i) >> 32));
        c2[i] = c3[i] = vu_set1(0);
    }
    for (int round = 0; round < 10; round++) {
        vu x0 = vu_set1(k0), x1 = vu_set1(k1);
        EACH_WORD {
            vu h0, l0, h1, l1;
            vu_multiply(c0[i], 0xd2511f53u, &h0, &l0);
            vu_multiply(c2[i], 0xcd9e8d57u, &h1, &l1);
            c0[i] = vu_xor(vu_xor(h1, c1[i]), x0);
            c1[i] = l1;
            c2[i] = vu_xor(vu_xor(h0, c3[i]), x1);
            c3[i] = l0;
        }
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    EACH_WORD keep[i] = fn_spread(vu_at_least(c0[i], t)) | fn_spread(vu_at_least(c1[i], t)) << 1 |
                        fn_spread(vu_at_least(c2[i], t)) << 2 | fn_spread(vu_at_least(c3[i], t)) << 3;
#undef EACH_WORD
}

#endif
