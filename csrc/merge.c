/* Merging partial results: the same steps at every instruction set. */
#include "scalar.h"

void fn_merge(fn_moments *a, const fn_moments *b) {
    if (b->n == 0) return;
    if (a->n == 0) { *a = *b; return; }
    fn_dd x = {a->sum, a->sum_lo}, y = {b->sum, b->sum_lo}, from = {a->mean, a->mean_lo}, to = {b->mean, b->mean_lo};
    fn_dd p = {a->m2, a->m2_lo}, q = {b->m2, b->m2_lo}, sum = fn_dd_add(x, y), mean = fn_dd_div(sum, a->n + b->n);
    fn_dd m2 = fn_dd_add(fn_dd_add(p, q), fn_between(from, to, a->n, b->n));
    m2 = fn_two_sum(m2.hi, m2.lo);
    a->n += b->n;
    a->sum = sum.hi;
    a->sum_lo = sum.lo;
    a->mean = mean.hi;
    a->mean_lo = mean.lo;
    a->m2 = m2.hi;
    a->m2_lo = m2.lo;
}
