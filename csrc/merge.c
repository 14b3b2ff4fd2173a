/* Merging partial results: the same scalar steps at every instruction set. */
#define FN_LEVEL 0
#include "fastnorm.h"
#include "scalar.h"

void fn_accumulate(double *hi, double *lo, double x) {
    fn_dd s = fn_two_sum(*hi, x);
    *hi = s.hi;
    *lo += s.lo;
}

void fn_mean(double hi, double lo, double n, fn_moments *m) {
    fn_dd sum = {hi, lo}, mean = fn_dd_div(sum, n, 1);
    m->n = n;
    m->sum = hi;
    m->sum_lo = lo;
    m->mean = mean.hi;
    m->mean_lo = mean.lo;
}

void fn_merge(fn_moments *a, const fn_moments *b) {
    if (b->n == 0) return;
    if (a->n == 0) { *a = *b; return; }
    double n = a->n + b->n, delta = (b->mean - a->mean) + (b->mean_lo - a->mean_lo);
    fn_dd x = {a->sum, a->sum_lo}, y = {b->sum, b->sum_lo}, sum = fn_dd_add(x, y);
    a->m2 += b->m2 + delta * delta * (a->n * (b->n / n));
    fn_mean(sum.hi, sum.lo, n, a);
}

int fn_wide(double mean, double m2, double scale) { return fn_needs_wide(mean, m2, scale); }
