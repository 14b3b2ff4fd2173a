/* Merging partial results: the same steps at every instruction set. */
#include "scalar.h"

void fn_merge(fn_moments *a, const fn_moments *b) {
    if (b->n == 0) return;
    if (a->n == 0) { *a = *b; return; }
    double n = a->n + b->n, delta = (b->mean - a->mean) + (b->mean_lo - a->mean_lo);
    fn_dd x = {a->sum, a->sum_lo}, y = {b->sum, b->sum_lo}, sum = fn_dd_add(x, y), mean = fn_dd_div(sum, n);
    a->m2 += b->m2 + delta * delta * (a->n * (b->n / n));
    a->n = n;
    a->sum = sum.hi;
    a->sum_lo = sum.lo;
    a->mean = mean.hi;
    a->mean_lo = mean.lo;
}
