/* The vocabulary's c + a·b with one rounding, whatever the product; of doubles, where c is the product rounded: what that lost.
   Part of vec.h.

   Where the instruction is missing: a product of floats is exact in double, and their sum rounded to double and then to float is the
   sum rounded once, unless the double lies half-way between two floats. Callers see to it that a subnormal result is exact: it
   would be half-way elsewhere. */
#ifndef FN_VEC_FUSED_H
#define FN_VEC_FUSED_H

#include "vec.h"

#if FN_LEVEL == 2 || FN_LEVEL == 3 || defined(FN_ARM)
FN_INLINE vf vf_fused(vf c, vf a, vf b) { return vf_add_exact(c, a, b); }
FN_INLINE vd vd_fused(vd c, vd a, vd b) { return vd_add_exact(c, a, b); }
#else
/* p + c rounded to odd: the last bit is set where something was lost, so that rounding it again, to float, gives what one rounding
   would (Boldo and Melquiond 2008). */
FN_INLINE fn_nd fn_odd_sum(fn_nd p, fn_nd c) {
    fn_nd s = p + c, t = s - p, lost = (p - (s - t)) + (c - t);
    fn_nl inward = (fn_nl)(lost < 0) ^ (fn_nl)(s < 0), step = ((fn_nl)(lost > 0) | (fn_nl)(lost < 0)) & ~(fn_nl)s & 1;
    return (fn_nd)((fn_nl)s + (step & ~inward) - (step & inward));
}
FN_OUTLINE vf fn_fused_odd(vf c, vf a, vf b) {
    float r[16];
    vd p = vd_mul(vf_low(a), vf_low(b)), q = vd_mul(vf_high(a), vf_high(b)), s = vf_low(c), t = vf_high(c);
    FN_EACH_D(i, s.v[i] = fn_odd_sum(p.v[i], s.v[i]));
    FN_EACH_D(i, t.v[i] = fn_odd_sum(q.v[i], t.v[i]));
    vd_store_float(r, s);
    vd_store_float(r + 8, t);
    return vf_load(r);
}
/* Half-way: of the 29 bits that float lacks, the first alone is set. SSE2 compares words of 32 bits; the upper ones never match. */
FN_INLINE fn_nl fn_is_tie(fn_nd s) {
    fn_nul lacks = (fn_nul){0} + 0x1fffffff, half = (fn_nul){0} + 0xffffffff10000000;
    return (fn_nl)((fn_nu)((fn_nul)s & lacks) == (fn_nu)half);
}
FN_OUTLINE vf vf_fused(vf c, vf a, vf b) {
    float r[16];
    vd s = vd_add(vd_mul(vf_low(a), vf_low(b)), vf_low(c)), t = vd_add(vd_mul(vf_high(a), vf_high(b)), vf_high(c));
    fn_nl tie = (fn_nl){0};
    FN_EACH_D(i, tie |= fn_is_tie(s.v[i]) | fn_is_tie(t.v[i]));
    if (tie[0] | tie[1]) return fn_fused_odd(c, a, b);
    vd_store_float(r, s);
    vd_store_float(r + 8, t);
    return vf_load(r);
}
#endif

/* a·b - p, p being a·b rounded: exact, but for products below 2^-969 or beyond the largest double. */
#if FN_LEVEL == 2 || FN_LEVEL == 3
FN_INLINE vd vd_lost(vd a, vd b, vd p) {
    FN_EACH_D(i, a.v[i] = (fn_nd)FN_MD(fmsub_pd)((fn_md)a.v[i], (fn_md)b.v[i], (fn_md)p.v[i]));
    return a;
}
#elif defined(FN_ARM)
FN_INLINE vd vd_lost(vd a, vd b, vd p) { return vd_add_exact(vd_sub(vd_zero(), p), a, b); }
#else
/* Dekker's splitting, in whose range everything is exact; elsewhere libm's fma, which is as the instruction. */
FN_INLINE vd vd_split(vd a, vd *low) {
    vd c = vd_mul(a, vd_set1(134217729.0)), high = vd_sub(c, vd_sub(c, a));
    *low = vd_sub(a, high);
    return high;
}
FN_OUTLINE vd fn_lost_far(vd a, vd b, vd p) {
    FN_EACH_D(i, for (int j = 0; j < 2; j++) a.v[i][j] = __builtin_fma(a.v[i][j], b.v[i][j], -p.v[i][j]));
    return a;
}
FN_INLINE vd vd_lost(vd a, vd b, vd p) {
    if (FN_UNLIKELY(!vl_all(vl_and(vd_within(a, 0x1p-480, 0x1p500), vd_within(b, 0x1p-480, 0x1p500))))) return fn_lost_far(a, b, p);
    vd al, bl, ah = vd_split(a, &al), bh = vd_split(b, &bl);
    return vd_add(vd_add(vd_add(vd_sub(vd_mul(ah, bh), p), vd_mul(ah, bl)), vd_mul(al, bh)), vd_mul(al, bl));
}

/* Of doubles: the product in two parts, the sum of three numbers in two and a rest, and that rounded to odd before the last addition
   (Boldo and Melquiond 2008). */
FN_OUTLINE vd vd_fused(vd c, vd a, vd b) {
    vd p = vd_mul(a, b), lost = vd_lost(a, b, p);
    FN_EACH_D(i, {
        fn_nd t = c.v[i] + lost.v[i], u = t - c.v[i], low = (c.v[i] - (t - u)) + (lost.v[i] - u);
        fn_nd s = p.v[i] + t, w = s - p.v[i], rest = (p.v[i] - (s - w)) + (t - w);
        c.v[i] = s + fn_odd_sum(low, rest);
    });
    return c;
}
#endif

#endif
