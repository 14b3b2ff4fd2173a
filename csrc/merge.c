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
    fn_dd sum = {hi, lo}, mean = fn_dd_div(sum, n);
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

void fn_column_means(const double *sum, const double *lost, ptrdiff_t segments, ptrdiff_t segment, double n, fn_moments *out,
                     double *mean) {
    for (ptrdiff_t i = 0; i < segments; i++) {
        fn_dd s = {sum[i * segment], lost[i * segment]};
        for (ptrdiff_t j = i * segment + 1; j < (i + 1) * segment; j++) {
            s = fn_dd_add_d(s, sum[j]);
            s.lo += lost[j];
        }
        fn_mean(s.hi, s.lo, n, out + i);
        for (ptrdiff_t j = i * segment; j < (i + 1) * segment; j++) mean[j] = out[i].mean;
    }
}

void fn_column_squares(const double *m2, ptrdiff_t segments, ptrdiff_t segment, fn_moments *out) {
    for (ptrdiff_t i = 0; i < segments; i++) {
        fn_dd s = {m2[i * segment], 0};
        for (ptrdiff_t j = i * segment + 1; j < (i + 1) * segment; j++) s = fn_dd_add_d(s, m2[j]);
        /* - n·mean_lo², in pairs: among neighbouring numbers it is as large as what it corrects. */
        fn_dd square = fn_two_product(out[i].mean_lo, out[i].mean_lo), all = fn_two_product(out[i].n, square.hi);
        s = fn_dd_add_d(s, -all.hi);
        s.hi += s.lo - (all.lo + out[i].n * square.lo);
        out[i].m2 = s.hi < 0 ? 0 : s.hi;
    }
}

void fn_pool(const fn_moments *parts, ptrdiff_t count, ptrdiff_t stride, fn_moments *out) {
    *out = parts[0];
    if (count == 1) return;
    fn_dd sum = {parts->sum, parts->sum_lo}, m2 = {0, 0};
    double n = parts->n;
    for (ptrdiff_t i = 1; i < count; i++) {
        fn_dd more = {parts[i * stride].sum, parts[i * stride].sum_lo};
        sum = fn_dd_add(sum, more);
        n += parts[i * stride].n;
    }
    fn_mean(sum.hi, sum.lo, n, out);
    for (ptrdiff_t i = 0; i < count; i++) {
        const fn_moments *b = parts + i * stride;
        double delta = (b->mean - out->mean) + (b->mean_lo - out->mean_lo);
        m2 = fn_dd_add_d(m2, b->m2);
        m2 = fn_dd_add_d(m2, b->n * (delta * delta));
    }
    out->m2 = m2.hi + m2.lo;
}

int fn_wide(double mean, double m2, double scale) { return fn_needs_wide(mean, m2, scale); }
