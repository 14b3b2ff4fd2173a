/* Scalar arithmetic beyond a double: sums and quotients as unevaluated pairs hi + lo (Dekker 1971, Knuth). */
#ifndef FN_SCALAR_H
#define FN_SCALAR_H

#include <string.h>

#include "fastnorm.h"

typedef struct { double hi, lo; } fn_dd; /* the unevaluated sum hi + lo */

/* Exact sum of two doubles (Knuth); with an infinity the error term is dropped, not made NaN. */
FN_INLINE fn_dd fn_two_sum(double a, double b) {
    double s = a + b, t = s - a, e = (a - (s - t)) + (b - t);
    fn_dd r = {s, e == e ? e : 0};
    return r;
}
FN_INLINE fn_dd fn_dd_add_d(fn_dd a, double b) { fn_dd s = fn_two_sum(a.hi, b); s.lo += a.lo; return s; }
FN_INLINE fn_dd fn_dd_add(fn_dd a, fn_dd b) { fn_dd s = fn_two_sum(a.hi, b.hi); s.lo += a.lo + b.lo; return s; }
/* 2^low ≤ |a| < 2^high, or a = 0. */
FN_INLINE int fn_within(double a, int low, int high) {
    uint64_t bits;
    memcpy(&bits, &a, sizeof bits);
    return ((bits >> 52 & 0x7ff) - (uint64_t)(1023 + low) < (uint64_t)(high - low)) | (a == 0);
}
/* Exact product, as in vec_fused.h: a fused multiply-add tells what the rounded one lost, or Dekker's splitting. */
FN_INLINE fn_dd fn_two_product(double a, double b) {
    fn_dd r = {a * b, 0};
#if !defined(__FMA__) && !defined(__aarch64__)
    if (FN_LIKELY(fn_within(a, -480, 500) & fn_within(b, -480, 500))) {
        double ca = 134217729.0 * a, cb = 134217729.0 * b, ah = ca - (ca - a), al = a - ah, bh = cb - (cb - b), bl = b - bh;
        r.lo = ((ah * bh - r.hi) + ah * bl + al * bh) + al * bl;
        return r;
    }
#endif
    r.lo = __builtin_fma(a, b, -r.hi);
    return r;
}
/* A low part; none beside an infinity. */
FN_INLINE double fn_low(double x) { return x - x == 0 ? x : 0; }
/* (hi + lo) / n, hi being the nearest double. */
FN_INLINE fn_dd fn_dd_div(fn_dd a, double n) {
    fn_dd q = {(a.hi + a.lo) / n, 0}, p = fn_two_product(q.hi, n);
    double r = (((a.hi - p.hi) - p.lo) + a.lo) / n;
    return r - r == 0 ? fn_two_sum(q.hi, r) : q;
}
/* += b, and += gamma·b */
FN_INLINE void fn_sums_add(fn_sums *a, const fn_sums *b) {
    fn_dd s = {a->sum, a->sum_lo}, t = {b->sum, b->sum_lo}, d = {a->dot, a->dot_lo}, e = {b->dot, b->dot_lo};
    s = fn_dd_add(s, t);
    d = fn_dd_add(d, e);
    a->sum = s.hi; a->sum_lo = s.lo;
    a->dot = d.hi; a->dot_lo = d.lo;
}
FN_INLINE void fn_sums_weigh(fn_sums *a, double gamma, const fn_sums *b) {
    fn_dd s = fn_two_product(gamma, b->sum), d = fn_two_product(gamma, b->dot);
    fn_sums w = {s.hi, fn_low(s.lo) + gamma * b->sum_lo, d.hi, fn_low(d.lo) + gamma * b->dot_lo};
    fn_sums_add(a, &w);
}
/* Σx² - Σx·mean. Is it known? It may be as little as a millionth of Σx², whose roundings are at worst 2^-46 of it in a block of
   floats: an eighth of an ULP. NaN is not, nor what squares beyond the largest double leave. */
#define FN_KEPT 0x1p-20
#define FN_LARGEST 0x1.fffffffffffffp1023
FN_INLINE double fn_about(fn_dd q, fn_dd sum, fn_dd mean) {
    fn_dd p = fn_two_product(sum.hi, mean.hi), m2 = fn_two_sum(q.hi, -p.hi);
    return m2.hi + (m2.lo + ((q.lo - p.lo) - (sum.hi * mean.lo + sum.lo * mean.hi)));
}
FN_INLINE int fn_is_kept(double m2, double squares) { return m2 >= squares * FN_KEPT && squares <= FN_LARGEST; }
/* Is the mean so near zero, beside the deviations, that Σg·(x - mean) may be taken as Σg·x - mean·Σg? Its roundings are those of
   Σ|g·x|, and both sums may cancel to less than float's ULP of their terms, so that two deviations is as far as it goes. */
FN_INLINE int fn_is_near(double mean, double var) { return 4 * var >= mean * mean; }

/* What the distance of the means of n and m values adds to m2 (Chan): (a - b)²·nm/(n + m); of floats in double. */
FN_INLINE fn_dd fn_between(fn_dd a, fn_dd b, double n, double m) {
    fn_dd d = fn_two_sum(a.hi, -b.hi), product = fn_two_product(n, m), weight = fn_dd_div(product, n + m);
    d = fn_two_sum(d.hi, d.lo + (a.lo - b.lo)); /* neighbours may differ in their low parts alone */
    fn_dd square = fn_two_product(d.hi, d.hi), r = fn_two_product(square.hi, weight.hi);
    r.lo = fn_low(r.lo) + fn_low(square.hi * weight.lo + (square.lo + 2 * d.hi * d.lo) * weight.hi);
    return r;
}
FN_INLINE double fn_between_floats(fn_dd a, fn_dd b, double n, double m) {
    double delta = (b.hi - a.hi) + (b.lo - a.lo);
    return delta * delta * (n * m / (n + m));
}
/* Σg·(x - c) about c + away + low instead, given Σg. */
FN_INLINE fn_dd fn_moved(fn_dd dot, fn_dd sum, double away, double low) {
    fn_dd p = fn_two_product(away, sum.hi);
    dot = fn_dd_add_d(dot, -p.hi);
    dot.lo -= (fn_low(p.lo) + away * sum.lo) + low * sum.hi;
    return dot;
}

/* Far enough from float's limits that a product with data stays inside them. */
FN_INLINE int fn_is_plain(double a) { return fn_within(a, -100, 100); }
/* Can float arithmetic hold a, b and c? */
FN_INLINE int fn_are_safe(double a, double b, double c) { return fn_is_plain(a) & fn_is_plain(b) & fn_is_plain(c); }
/* Must y = (x - mean)·scale + shift be computed in double? m2 bounds (x - mean)². A mean below 2^-90 has a low part that float
   cannot hold. */
FN_INLINE int fn_needs_wide(double mean, double m2, double scale) {
    return !(fn_is_plain(scale) & fn_within(mean, -90, 125) & (m2 <= 0x1p250));
}

/* Channel k's y = (x - mean)·(gamma·rstd) + beta, given what the channels share: their scale is rstd. */
FN_INLINE fn_norm fn_channel_norm(const fn_norm *shared, const fn_channels *c, ptrdiff_t k) {
    fn_norm p = *shared;
    if (c->gamma) p.scale *= c->gamma[k];
    if (c->beta) p.shift = c->beta[k];
    p.wide |= !fn_is_plain(p.scale);
    return p;
}

#endif
