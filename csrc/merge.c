/* Merging partial results: the same steps at every instruction set. */
#define FN_LEVEL 0
#include "accumulate.h"

static inline void fn_mean(fn_dd sum, double n, fn_moments *m) {
    fn_dd mean = fn_dd_div(sum, n);
    m->n = n;
    m->sum = sum.hi;
    m->sum_lo = sum.lo;
    m->mean = mean.hi;
    m->mean_lo = mean.lo;
}

/* Σ of n neighbours and of what they lost (or NULL). */
static inline fn_dd fn_run(const double *s, const double *lo, ptrdiff_t n) {
    fn_acc64 acc = acc64_zero();
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) {
        acc = acc64_add(acc, vd_load(s + i));
        if (lo) acc.e = vd_add(acc.e, vd_load(lo + i));
    }
    fn_dd r = {0, 0};
    if (i > 0) r = acc64_sum(acc);
    for (; i < n; i++) {
        fn_dd one = {s[i], lo ? lo[i] : 0};
        r = i > 0 ? fn_dd_add(r, one) : one;
    }
    return r;
}

void fn_merge(fn_moments *a, const fn_moments *b) {
    if (b->n == 0) return;
    if (a->n == 0) { *a = *b; return; }
    double n = a->n + b->n, delta = (b->mean - a->mean) + (b->mean_lo - a->mean_lo);
    fn_dd x = {a->sum, a->sum_lo}, y = {b->sum, b->sum_lo};
    a->m2 += b->m2 + delta * delta * (a->n * (b->n / n));
    fn_mean(fn_dd_add(x, y), n, a);
}

void fn_column_means(const double *sum, const double *lost, ptrdiff_t segments, ptrdiff_t segment, double n, fn_moments *out,
                     double *mean) {
    for (ptrdiff_t i = 0; i < segments; i++) {
        fn_mean(fn_run(sum + i * segment, lost + i * segment, segment), n, out + i);
        for (ptrdiff_t j = i * segment; j < (i + 1) * segment; j++) mean[j] = out[i].mean;
    }
}

void fn_column_squares(const double *m2, ptrdiff_t segments, ptrdiff_t segment, fn_moments *out) {
    for (ptrdiff_t i = 0; i < segments; i++) {
        fn_dd s = fn_run(m2 + i * segment, NULL, segment);
        /* - n·mean_lo², in pairs: among neighbouring numbers it is as large as what it corrects. */
        fn_dd square = fn_two_product(out[i].mean_lo, out[i].mean_lo), all = fn_two_product(out[i].n, square.hi);
        s = fn_dd_add_d(s, -all.hi);
        s.hi += s.lo - (all.lo + out[i].n * square.lo);
        out[i].m2 = s.hi < 0 ? 0 : s.hi;
    }
}

void fn_column_grads(const double *sum, const double *sum_lo, const double *dot, const double *dot_lo, ptrdiff_t channels,
                     ptrdiff_t post, fn_sums *out) {
    for (ptrdiff_t k = 0; k < channels; k++) {
        fn_dd s = fn_run(sum + k * post, sum_lo + k * post, post), d = fn_run(dot + k * post, dot_lo + k * post, post);
        fn_sums one = {s.hi, s.lo, d.hi, d.lo};
        out[k] = one;
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
    fn_mean(sum, n, out);
    for (ptrdiff_t i = 0; i < count; i++) {
        const fn_moments *b = parts + i * stride;
        double delta = (b->mean - out->mean) + (b->mean_lo - out->mean_lo);
        m2 = fn_dd_add_d(m2, b->m2);
        m2 = fn_dd_add_d(m2, b->n * (delta * delta));
    }
    out->m2 = m2.hi + m2.lo;
}
