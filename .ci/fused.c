/* Is the soft c + a·b of machines without the instruction rounded once? Against the C library's fmaf, over random bits, exponents
   that meet, and sums made to lie half-way between two floats or just beside. Exits with 1 where a bit differs, or if to round
   twice would have done. */
#define FN_LEVEL 0
#include <math.h>
#include <stdio.h>

#include "vec.h"

static uint64_t state = 88172645463325252u;
static uint64_t word(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 16;
}
static float number(int kind) {
    uint32_t u = (uint32_t)word();
    if (kind == 1) u = (u & 0x807fffff) | (uint32_t)(117 + word() % 20) << 23; /* around 1 */
    if (kind == 2) u = (u & 0x807ff000) | (uint32_t)(100 + word() % 50) << 23; /* few digits */
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

int main(void) {
    long bad = 0, close = 0, count = 4000000;
    for (long n = 0; n < count; n++) {
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
            if (memcmp(&want, &r[i], sizeof want) && bad++ < 9)
                printf("%a + %a * %a: %a, not %a\n", c[i], a[i], b[i], r[i], want);
        }
    }
    printf("%ld of %ld wrong; rounding twice is wrong for %ld\n", bad, 16 * count, close);
    return bad || !close;
}
