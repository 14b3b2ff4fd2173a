/* Numbers eight at a time; products with what they lose, and the pairs hi + lo of scalar.h, in vectors. */
#ifndef FN_PAIRS_H
#define FN_PAIRS_H

#include "scalar.h"
#include "vec.h"

/* BODY with k = 0, 8, ... and the number n ≤ 8 of entries there. */
#define EACH_EIGHT(count, ...)                                                                                           \
    for (ptrdiff_t k = 0, n; k < (count); k += 8) { n = (count) - k < 8 ? (count) - k : 8; __VA_ARGS__ }

FN_INLINE vd fn_at(const double *p, ptrdiff_t n) { return FN_LIKELY(n == 8) ? vd_load(p) : vd_load_n(p, n); }
FN_INLINE void fn_put(double *p, vd a, ptrdiff_t n) { if (FN_LIKELY(n == 8)) vd_store(p, a); else vd_store_n(p, a, n); }

/* a·b exactly, as the rounded product and what it lost. */
FN_INLINE vd vd_product(vd a, vd b, vd *lost) {
    vd p = vd_mul(a, b);
    *lost = vd_lost(a, b, p);
    return p;
}

typedef struct { vd hi, lo; } fn_vdd;

FN_INLINE fn_vdd vdd_at(const double *hi, const double *lo, ptrdiff_t n) { fn_vdd r = {fn_at(hi, n), fn_at(lo, n)}; return r; }
FN_INLINE void vdd_put(double *hi, double *lo, fn_vdd a, ptrdiff_t n) { fn_put(hi, a.hi, n); fn_put(lo, a.lo, n); }
FN_INLINE fn_vdd vdd_two_sum(vd a, vd b) {
    vd s = vd_add(a, b), t = vd_sub(s, a);
    fn_vdd r = {s, vd_number(vd_add(vd_sub(a, vd_sub(s, t)), vd_sub(b, t)))};
    return r;
}
FN_INLINE fn_vdd vdd_add_d(fn_vdd a, vd b) { fn_vdd s = vdd_two_sum(a.hi, b); s.lo = vd_add(s.lo, a.lo); return s; }
FN_INLINE fn_vdd vdd_add(fn_vdd a, fn_vdd b) { fn_vdd s = vdd_two_sum(a.hi, b.hi); s.lo = vd_add(s.lo, vd_add(a.lo, b.lo)); return s; }
/* A number of elements to divide by. By a power of two, as sizes of batches are, that is a product with its inverse, to the last bit
   ((128, 1024) takes 0.96 of the time forward). */
typedef struct { vd number, inverse; int is_power; } fn_divisor;
FN_INLINE fn_divisor fn_divisor_of(double number) {
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    fn_divisor d = {vd_set1(number), vd_set1(1 / number), (bits & 0xfffffffffffff) == 0 && number >= 1 && number <= 0x1p64};
    return d;
}
FN_INLINE vd vd_over(vd a, fn_divisor n) { return n.is_power ? vd_mul(a, n.inverse) : vd_div(a, n.number); }
FN_INLINE fn_vdd vdd_div(fn_vdd a, fn_divisor n) {
    vd lost, q = vd_over(vd_add(a.hi, a.lo), n), p = vd_product(q, n.number, &lost);
    vd r = vd_over(vd_add(vd_sub(vd_sub(a.hi, p), lost), a.lo), n);
    return vdd_two_sum(q, vd_finite(r));
}
/* Σx² - Σx·mean, and where it is known (scalar.h). */
FN_INLINE vd vdd_about(fn_vdd q, fn_vdd sum, fn_vdd mean) {
    vd lost, p = vd_product(sum.hi, mean.hi, &lost), rest = vd_add(vd_mul(sum.hi, mean.lo), vd_mul(sum.lo, mean.hi));
    fn_vdd m2 = vdd_two_sum(q.hi, vd_sub(vd_zero(), p));
    return vd_add(m2.hi, vd_add(m2.lo, vd_sub(vd_sub(q.lo, lost), rest)));
}
/* Σg·(x - c) about c + away + low instead. */
FN_INLINE fn_vdd vdd_moved(fn_vdd dot, fn_vdd sum, vd away, vd low) {
    vd lost, p = vd_product(away, sum.hi, &lost);
    dot = vdd_add_d(dot, vd_sub(vd_zero(), p));
    dot.lo = vd_sub(dot.lo, vd_add(vd_add(vd_finite(lost), vd_mul(away, sum.lo)), vd_mul(low, sum.hi)));
    return dot;
}
FN_INLINE vl vd_are_kept(vd m2, vd squares) {
    return vl_and(vd_at_most(vd_mul(squares, vd_set1(FN_KEPT)), m2), vd_at_most(squares, vd_set1(FN_LARGEST)));
}

#endif
