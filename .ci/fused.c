/* Is the soft c + a·b of machines without the instruction rounded once? Against the C library's fmaf and fma, over random bits,
   exponents that meet, and sums made to lie half-way between two numbers or just beside. And what does a product lose? Exits with 1
   where a bit differs, or if to round twice would have done. */
#define FN_LEVEL 0
#include <math.h>
#include <stdio.h>

#include "pairs.h"

static uint64_t state = 88172645463325252u;
static uint64_t word(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 16;
}
static uint64_t word64(void) { return word() << 32 ^ word(); }

/* Any bits; around 1; few digits. */
static float number(int kind) {
    uint32_t u = (uint32_t)word();
    if (kind == 1) u = (u & 0x807fffff) | (uint32_t)(117 + word() % 20) << 23;
    if (kind == 2) u = (u & 0x807ff000) | (uint32_t)(100 + word() % 50) << 23;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static double number64(int kind) {
    uint64_t u = word64();
    if (kind == 1) u = (u & 0x800fffffffffffff) | (uint64_t)(1003 + word() % 40) << 52;
    if (kind == 2) u = (u & 0x800ffffff8000000) | (uint64_t)(960 + word() % 120) << 52;
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static long bad, close;

static void floats(void) {
    float a[16], b[16], c[16], r[16];
    for (int i = 0; i < 16; i++) {
        a[i] = number(word() % 3);
        b[i] = number(word() % 3);
        c[i] = number(word() % 3);
        if (word() % 3 == 0) { /* a·b is about half the last place of c */
            int exponent;
            c[i] = number(1);
            frexpf(c[i], &exponent);
            a[i] = word() % 2 ? 1 : 1 + (float)(word() & 0x7fffff) * 0x1p-23f;
            b[i] = ldexpf(word() % 2 ? 1 : 1 + 0x1p-23f, exponent - 24 - (int)(word() % 4));
        }
    }
    vf_store(r, vf_fused(vf_load(c), vf_load(a), vf_load(b)));
    for (int i = 0; i < 16; i++) {
        float want = fmaf(a[i], b[i], c[i]);
        if (!(fabsf(want) >= 0x1p-126f)) continue; /* NaN, or subnormal: not asked for */
        close += want != (float)((double)a[i] * b[i] + c[i]);
        if (memcmp(&want, &r[i], sizeof want) && bad++ < 9) printf("%a + %a * %a: %a, not %a\n", c[i], a[i], b[i], r[i], want);
    }
}

static void doubles(void) {
    double a[8], b[8], c[8], r[8], lost[8];
    for (int i = 0; i < 8; i++) {
        a[i] = number64(word() % 3);
        b[i] = number64(word() % 3);
        c[i] = number64(1 + word() % 2);
        if (word() % 3 == 0) {
            int exponent;
            c[i] = number64(1);
            frexp(c[i], &exponent);
            a[i] = word() % 2 ? 1 : 1 + (double)(word64() & 0xfffffffffffff) * 0x1p-52;
            b[i] = ldexp(word() % 2 ? 1 : 1 + 0x1p-52, exponent - 53 - (int)(word() % 4));
        }
    }
    vd rest;
    vd_product(vd_load(a), vd_load(b), &rest);
    vd_store(lost, rest);
    vd_store(r, vd_fused(vd_load(c), vd_load(a), vd_load(b)));
    for (int i = 0; i < 8; i++) {
        double want = fma(a[i], b[i], -(a[i] * b[i]));
        if (want == want && want != lost[i] && bad++ < 9) printf("%a * %a loses %a, not %a\n", a[i], b[i], want, lost[i]);
        want = fma(a[i], b[i], c[i]);
        if (!(fabs(want) >= 0x1p-900 && fabs(want) < 0x1p1000)) continue; /* far from where exp calls it */
        close += want != a[i] * b[i] + c[i];
        if (memcmp(&want, &r[i], sizeof want) && bad++ < 9) printf("%a + %a * %a: %a, not %a\n", c[i], a[i], b[i], r[i], want);
    }
}

int main(void) {
    const long count = 4000000;
    for (long n = 0; n < count; n++) floats();
    long first = close;
    for (long n = 0; n < count; n++) doubles();
    printf("%ld of %ld wrong; rounding twice is wrong for %ld and %ld\n", bad, 24 * count, first, close - first);
    return bad || !first || close == first;
}
