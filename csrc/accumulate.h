/* What vectors are added into: sixteen double lanes under floats; eight compensated lanes under doubles, each a sum and what
   its roundings lost. Products of two floats are exact in double; products of doubles carry what they lose. */
#ifndef FN_ACCUMULATE_H
#define FN_ACCUMULATE_H

#include "pairs.h"

/* Sixteen floats as doubles. Widening while loading spares a shuffle for each half (the sum of a span takes 0.6 of the time). */
typedef struct { vd lo, hi; } fn_wide;
FN_INLINE fn_wide wide_of(vf x) { fn_wide a; vf_widen(x, &a.lo, &a.hi); return a; }
FN_INLINE fn_wide wide_load(const float *x) { fn_wide a = {vd_load_float(x), vd_load_float(x + 8)}; return a; }
FN_INLINE fn_wide wide_set1(double c) { fn_wide a = {vd_set1(c), vd_set1(c)}; return a; }
FN_INLINE fn_wide wide_add(fn_wide a, fn_wide b) { a.lo = vd_add(a.lo, b.lo); a.hi = vd_add(a.hi, b.hi); return a; }
FN_INLINE fn_wide wide_add_beside(fn_wide a, fn_wide b) { a.lo = vd_add_beside(a.lo, b.lo); a.hi = vd_add_beside(a.hi, b.hi); return a; }
FN_INLINE fn_wide wide_sub(fn_wide a, fn_wide b) { a.lo = vd_sub(a.lo, b.lo); a.hi = vd_sub(a.hi, b.hi); return a; }
FN_INLINE fn_wide wide_mul(fn_wide a, fn_wide b) { a.lo = vd_mul(a.lo, b.lo); a.hi = vd_mul(a.hi, b.hi); return a; }

typedef fn_wide fn_acc32;
FN_INLINE fn_acc32 acc32_zero(void) { return wide_set1(0); }
FN_INLINE fn_acc32 acc32_add4(fn_acc32 a, fn_wide x0, fn_wide x1, fn_wide x2, fn_wide x3) {
    fn_wide first = wide_add(x0, x1);
    if (FN_LEVEL != 3) return wide_add(a, wide_add(first, wide_add(x2, x3))); /* AVX2 has no register for the ones */
    return wide_add_beside(a, wide_add(first, wide_add_beside(x2, x3)));
}
/* += a·b: exact products of two floats */
FN_INLINE fn_acc32 acc32_product(fn_acc32 acc, fn_wide a, fn_wide b) {
    acc.lo = vd_add_exact(acc.lo, a.lo, b.lo);
    acc.hi = vd_add_exact(acc.hi, a.hi, b.hi);
    return acc;
}
/* += (x - c)² */
FN_INLINE fn_acc32 acc32_square(fn_acc32 a, fn_wide x, fn_wide c) { fn_wide d = wide_sub(x, c); return wide_add(a, wide_mul(d, d)); }

/* Sums of vectors in memory, one native vector of doubles after the other: two or three accumulators take eight or twelve of AVX2's
   sixteen registers, and lay on the stack while whole vectors were widened. (In cache the forward takes 0.77 to 0.95 of the time for
   this order, the backward 0.9 to 1.) */
#define FN_D (FN_NATIVE_D / 8) /* doubles in a native vector */
#define FN_PART(a, p) (*((p) < FN_PARTS_D ? &(a).lo.v[(p) % FN_PARTS_D] : &(a).hi.v[(p) % FN_PARTS_D]))
FN_INLINE fn_nd nd_at(const float *x, int p) { return nd_load_float(x + p * FN_D); }
FN_INLINE void nd_put(double *d, int p, fn_nd a) { fn_nd_mem *to = (fn_nd_mem *)(d + p * FN_D); *to += a; }

/* Four vectors `step` apart: += Σx, and Σx² of the first and third and of the others. */
FN_INLINE void nd_look4(fn_nd *sum, fn_nd *even, fn_nd *odd, const float *x, ptrdiff_t step, int p) {
    fn_nd x0 = nd_at(x, p), x1 = nd_at(x + step, p), first = x0 + x1;
    *even = nd_add_exact(*even, x0, x0);
    *odd = nd_add_exact(*odd, x1, x1);
    fn_nd x2 = nd_at(x + 2 * step, p), x3 = nd_at(x + 3 * step, p), rest = FN_LEVEL == 3 ? nd_add_beside(x2, x3) : x2 + x3;
    *even = nd_add_exact(*even, x2, x2);
    *odd = nd_add_exact(*odd, x3, x3);
    *sum = FN_LEVEL == 3 ? nd_add_beside(*sum, first + rest) : *sum + (first + rest); /* AVX2 has no register for the ones */
}
FN_INLINE void acc32_look4(fn_acc32 *sum, fn_acc32 *even, fn_acc32 *odd, const float *x, ptrdiff_t step) {
    FN_EACH_W(p, nd_look4(&FN_PART(*sum, p), &FN_PART(*even, p), &FN_PART(*odd, p), x, step, p));
}
/* Eight vectors, whose sums and squares are added to doubles in memory. */
FN_INLINE void acc32_look8(const float *x, ptrdiff_t step, double *sum, double *sum_lo, double *square, double *square_lo) {
    (void)sum_lo, (void)square_lo;
    FN_EACH_W(p, {
        fn_nd all = {0}, even = all, odd = all;
        nd_look4(&all, &even, &odd, x, step, p);
        nd_look4(&all, &even, &odd, x + 4 * step, step, p);
        nd_put(sum, p, all);
        nd_put(square, p, even + odd);
    });
}
/* += g, and += g·(x - mean) or, with `near`, g·x */
FN_INLINE void acc32_dots(fn_acc32 *sum, fn_acc32 *dot, const float *g, const float *x, fn_wide mean, int near) {
    FN_EACH_W(p, {
        fn_nd gp = nd_at(g, p), xp = nd_at(x, p);
        FN_PART(*sum, p) = nd_add_beside(FN_PART(*sum, p), gp);
        if (near) FN_PART(*dot, p) = nd_add_exact(FN_PART(*dot, p), gp, xp);
        else FN_PART(*dot, p) = nd_add_beside(FN_PART(*dot, p), gp * (xp - FN_PART(mean, p)));
    });
}
/* += dy·gamma, and += dy·gamma·(x - mean); gamma `widened` already, or NULL */
FN_INLINE void acc32_weighted(fn_acc32 *sum, fn_acc32 *dot, const float *dy, const float *gamma, const double *widened, const float *x,
                              fn_wide mean, int near) {
    (void)near; /* about zero instead: three factors are not exact in double */
    FN_EACH_W(p, {
        fn_nd gp = nd_at(dy, p), away = nd_at(x, p) - FN_PART(mean, p);
        fn_nd weight = widened ? (fn_nd) * (const fn_nd_mem *)(widened + p * FN_D) : nd_at(gamma, p);
        FN_PART(*sum, p) = nd_add_exact(FN_PART(*sum, p), gp, weight);
        FN_PART(*dot, p) = nd_add_beside(FN_PART(*dot, p), gp * weight * away);
    });
}

FN_INLINE vd acc32_folded(fn_acc32 a) { return vd_add(a.lo, a.hi); }
FN_INLINE fn_dd acc32_sum(fn_acc32 a) { fn_dd r = {vd_sum(acc32_folded(a)), 0}; return r; }
/* The sums of n ≤ 8 folded accumulators, and what they lost. */
FN_INLINE void acc32_sums(const vd *a, ptrdiff_t n, double *to, double *lost) {
    if (FN_LIKELY(n == 8)) { vd_store(to, vd_sums(a)); vd_store(lost, vd_zero()); }
    else for (ptrdiff_t k = 0; k < n; k++) { to[k] = vd_sum(a[k]); lost[k] = 0; }
}
/* Added to n doubles, or with `fresh` to zeros in their place; acc64 keeps in `lost` what that loses. */
FN_INLINE void acc32_put(fn_acc32 a, double *d, double *lost, ptrdiff_t n, int fresh) {
    (void)lost;
    if (FN_LIKELY(n == 16)) {
        vd_store(d, vd_add(fresh ? vd_zero() : vd_load(d), a.lo));
        vd_store(d + 8, vd_add(fresh ? vd_zero() : vd_load(d + 8), a.hi));
    } else {
        double t[16];
        vd_store(t, a.lo);
        vd_store(t + 8, a.hi);
        for (ptrdiff_t i = 0; i < n; i++) d[i] = (fresh ? 0 : d[i]) + t[i];
    }
}

typedef struct { vd s, e; } fn_acc64;
FN_INLINE fn_acc64 acc64_zero(void) { fn_acc64 a = {vd_zero(), vd_zero()}; return a; }
FN_INLINE fn_acc64 acc64_add(fn_acc64 a, vd x) {
    vd s = vd_add(a.s, x), t = vd_sub(s, a.s);
    a.e = vd_add(a.e, vd_add(vd_sub(a.s, vd_sub(s, t)), vd_sub(x, t)));
    a.s = s;
    return a;
}
FN_INLINE fn_acc64 acc64_add4(fn_acc64 a, vd x0, vd x1, vd x2, vd x3) {
    return acc64_add(acc64_add(acc64_add(acc64_add(a, x0), x1), x2), x3);
}
FN_INLINE fn_acc64 acc64_join(fn_acc64 a, fn_acc64 b) { a = acc64_add(a, b.s); a.e = vd_add(a.e, b.e); return a; }
FN_INLINE fn_acc64 acc64_product(fn_acc64 acc, vd a, vd b) {
    vd lost, p = vd_product(a, b, &lost);
    acc = acc64_add(acc, p);
    acc.e = vd_add(acc.e, lost);
    return acc;
}
FN_INLINE void acc64_look4(fn_acc64 *sum, fn_acc64 *even, fn_acc64 *odd, const double *x, ptrdiff_t step) {
    vd x0 = vd_load(x), x1 = vd_load(x + step), x2 = vd_load(x + 2 * step), x3 = vd_load(x + 3 * step);
    *sum = acc64_add4(*sum, x0, x1, x2, x3);
    *even = acc64_product(acc64_product(*even, x0, x0), x2, x2);
    *odd = acc64_product(acc64_product(*odd, x1, x1), x3, x3);
}
/* += (g + g_low)·(x - mean): the difference and the product carry what they lose. */
FN_INLINE fn_acc64 acc64_dot_low(fn_acc64 a, vd g, vd g_low, vd x, vd mean) {
    vd d = vd_sub(x, mean), t = vd_sub(d, x), d_low = vd_sub(vd_sub(x, vd_sub(d, t)), vd_add(mean, t)), lost;
    vd p = vd_product(g, d, &lost);
    a = acc64_add(a, p);
    a.e = vd_add(a.e, vd_add(lost, vd_add(vd_mul(g, d_low), vd_mul(g_low, d))));
    return a;
}
FN_BULKY void acc64_dots(fn_acc64 *sum, fn_acc64 *dot, const double *g, const double *x, vd mean, int near) {
    vd gv = vd_load(g), xv = vd_load(x);
    *sum = acc64_add(*sum, gv);
    *dot = near ? acc64_product(*dot, gv, xv) : acc64_dot_low(*dot, gv, vd_zero(), xv, mean);
}
FN_INLINE fn_acc64 acc64_square(fn_acc64 a, vd x, vd c) { return acc64_dot_low(a, vd_sub(x, c), vd_zero(), x, c); }
FN_BULKY void acc64_weighted(fn_acc64 *sum, fn_acc64 *dot, const double *dy, const double *gamma, const double *widened, const double *x,
                             vd mean, int near) {
    (void)widened; /* it is double */
    vd lost, low, g = vd_product(vd_load(dy), vd_load(gamma), &lost), xv = vd_load(x), p;
    *sum = acc64_add(*sum, g);
    sum->e = vd_add(sum->e, lost);
    if (!near) { *dot = acc64_dot_low(*dot, g, lost, xv, mean); return; }
    p = vd_product(g, xv, &low);
    *dot = acc64_add(*dot, p);
    dot->e = vd_add(dot->e, vd_add(low, vd_mul(lost, xv)));
}
/* Lanes i and i+4, then i+2, then i+1, each sum exact. */
FN_INLINE fn_dd acc64_sum(fn_acc64 a) {
    double s[8], e[8];
    vd_store(s, a.s);
    vd_store(e, a.e);
    fn_dd r[8];
    for (int i = 0; i < 8; i++) { fn_dd lane = {s[i], e[i] == e[i] ? e[i] : 0}; r[i] = lane; } /* NaN only beside an infinity */
    for (int n = 4; n > 0; n /= 2)
        for (int i = 0; i < n; i++) r[i] = fn_dd_add(r[i], r[i + n]);
    return r[0];
}
FN_INLINE void acc64_sums(const fn_acc64 *a, ptrdiff_t n, double *to, double *lost) {
    if (FN_UNLIKELY(n < 8)) {
        for (ptrdiff_t k = 0; k < n; k++) { fn_dd r = acc64_sum(a[k]); to[k] = r.hi; lost[k] = r.lo; }
        return;
    }
    vd s[8], e[8];
    fn_vdd r[8];
    for (int k = 0; k < 8; k++) { s[k] = a[k].s; e[k] = vd_number(a[k].e); }
    vd_transpose(s);
    vd_transpose(e);
    for (int i = 0; i < 8; i++) { fn_vdd lane = {s[i], e[i]}; r[i] = lane; }
    for (int half = 4; half > 0; half /= 2)
        for (int i = 0; i < half; i++) r[i] = vdd_add(r[i], r[i + half]);
    vdd_put(to, lost, r[0], 8);
}
/* Sums of float data have no low parts: without `lost`, hi + lo. */
FN_INLINE void acc64_put(fn_acc64 a, double *d, double *lost, ptrdiff_t n, int fresh) {
    vd zero = vd_zero();
    fn_vdd r = vdd_two_sum(fresh ? zero : fn_at(d, n), a.s);
    r.lo = vd_add(r.lo, vd_number(a.e));
    if (!lost) { fn_put(d, vd_add(r.hi, r.lo), n); return; }
    r.lo = vd_add(fresh ? zero : fn_at(lost, n), r.lo);
    vdd_put(d, lost, r, n);
}
FN_INLINE void acc64_look8(const double *x, ptrdiff_t step, double *sum, double *sum_lo, double *square, double *square_lo) {
    fn_acc64 all = acc64_zero(), even = all, odd = all;
    acc64_look4(&all, &even, &odd, x, step);
    acc64_look4(&all, &even, &odd, x + 4 * step, step);
    acc64_put(all, sum, sum_lo, 8, 0);
    acc64_put(acc64_join(even, odd), square, square_lo, 8, 0);
}

#endif
