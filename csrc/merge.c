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
    m->mean = mean.hi;
    m->mean_lo = mean.lo;
}

void fn_merge(fn_moments *a, const fn_moments *b) {
    if (b->n == 0) return;
    if (a->n == 0) { *a = *b; return; }
    double n = a->n + b->n, delta = (b->mean - a->mean) + (b->mean_lo - a->mean_lo), step = delta * (b->n / n);
    fn_dd mean = fn_two_sum(a->mean, step);
    a->mean = mean.hi;
    a->mean_lo += mean.lo;
    a->m2 += b->m2 + delta * delta * (a->n * (b->n / n));
    a->n = n;
}

int fn_wide(double mean, double m2, double scale) { return fn_needs_wide(mean, m2, scale); }
