/* Arithmetic on statistics: arrays of doubles with a number for each statistic or channel, taken eight at a time. With scalars
   it would cost as much as a hundred elements of data per channel, which is most of an (N, C) batch. */
#ifndef FN_CHANNELS_H
#define FN_CHANNELS_H

#include "accumulate.h"

/* Σ over the m copies of w columns each, with what it loses (lo and to_lo may be NULL); `to` may be where the first copy lies. */
FN_OUTLINE void fn_fold(const double *s, const double *lo, ptrdiff_t w, ptrdiff_t m, double *to, double *to_lo) {
    EACH_EIGHT(w, {
        vd zero = vd_zero();
        fn_vdd a = {fn_at(s + k, n), lo ? fn_at(lo + k, n) : zero};
        for (ptrdiff_t i = 1; i < m; i++) {
            fn_vdd b = {fn_at(s + i * w + k, n), lo ? fn_at(lo + i * w + k, n) : zero};
            a = vdd_add(a, b);
        }
        fn_put(to + k, a.hi, n);
        if (to_lo) fn_put(to_lo + k, a.lo, n);
    })
}

/* ---- moments ---- */

/* Σ of the first `whole` of n neighbours, a multiple of 8, and of what they lost (or NULL). */
FN_INLINE fn_acc64 fn_run(const double *s, const double *lo, ptrdiff_t whole) {
    fn_acc64 acc = acc64_zero();
    for (ptrdiff_t i = 0; i < whole; i += 8) {
        acc = acc64_add(acc, vd_load(s + i));
        if (lo) acc.e = vd_add(acc.e, vd_load(lo + i));
    }
    return acc;
}

/* Eight runs side by side, and the rest one by one: the same sums. */
FN_OUTLINE void fn_add_runs(const double *s, const double *lo, ptrdiff_t length, ptrdiff_t count, double *to, double *to_lo) {
    ptrdiff_t whole = length / 8 * 8, i = 0;
    for (; i <= count - 8 && whole; i += 8, s += 8 * length, lo += lo ? 8 * length : 0) {
        fn_acc64 acc[8];
        double hi[8], rest[8];
        for (int k = 0; k < 8; k++) acc[k] = fn_run(s + k * length, lo ? lo + k * length : NULL, whole);
        acc64_sums(acc, 8, hi, rest);
        fn_vdd r = vdd_at(hi, rest, 8);
        for (ptrdiff_t j = whole; j < length; j++) {
            for (int k = 0; k < 8; k++) { hi[k] = s[k * length + j]; rest[k] = lo ? lo[k * length + j] : 0; }
            r = vdd_add(r, vdd_at(hi, rest, 8));
        }
        vdd_put(to + i, to_lo + i, r, 8);
    }
    for (; i < count; i++, s += length, lo += lo ? length : 0) {
        fn_dd r = {0, 0};
        if (whole) r = acc64_sum(fn_run(s, lo, whole));
        for (ptrdiff_t j = whole; j < length; j++) {
            fn_dd one = {s[j], lo ? lo[j] : 0};
            r = j > 0 ? fn_dd_add(r, one) : one;
        }
        to[i] = r.hi;
        to_lo[i] = r.lo;
    }
}

FN_OUTLINE void fn_means(const double *sum, const double *sum_lo, double number, ptrdiff_t count, double *mean, double *mean_lo) {
    fn_divisor m = fn_divisor_of(number);
    EACH_EIGHT(count, vdd_put(mean + k, mean_lo + k, vdd_div(vdd_at(sum + k, sum_lo + k, n), m), n);)
}

FN_OUTLINE int fn_centre(double *m2, const double *m2_lo, const double *sum, const double *sum_lo, const double *mean,
                         const double *mean_lo, ptrdiff_t count) {
    int all = 1;
    EACH_EIGHT(count, {
        fn_vdd q = vdd_at(m2 + k, m2_lo + k, n);
        vd r = vdd_about(q, vdd_at(sum + k, sum_lo + k, n), vdd_at(mean + k, mean_lo + k, n));
        if (FN_UNLIKELY(!vl_all(vd_are_kept(r, q.hi)))) {
            double had[8], has[8];
            vd_store(had, q.hi);
            vd_store(has, r);
            for (ptrdiff_t i = 0; i < n; i++) m2[k + i] = fn_is_kept(has[i], had[i]) ? has[i] : -1;
            all = 0;
        } else fn_put(m2 + k, r, n);
    })
    return all;
}

FN_OUTLINE void fn_mend(double *m2, const double *again, ptrdiff_t count) {
    for (ptrdiff_t k = 0; k < count; k++) if (m2[k] == -1) m2[k] = again[k];
}

/* n·mean_lo² in pairs: among neighbouring numbers it is as large as what it corrects. */
FN_OUTLINE void fn_recentre(double *m2, const double *m2_lo, const double *mean_lo, double number, ptrdiff_t count) {
    vd m = vd_set1(number), zero = vd_zero();
    EACH_EIGHT(count, {
        vd low = fn_at(mean_lo + k, n), square_lo, all_lo;
        vd square = vd_product(low, low, &square_lo), all = vd_product(m, square, &all_lo);
        fn_vdd q = {fn_at(m2 + k, n), m2_lo ? fn_at(m2_lo + k, n) : zero}, s = vdd_add_d(q, vd_sub(zero, vd_finite(all)));
        vd r = vd_add(s.hi, vd_sub(s.lo, vd_finite(vd_add(all_lo, vd_mul(m, square_lo)))));
        fn_put(m2 + k, vd_zero_below(r, zero, r), n);
    })
}

FN_OUTLINE void fn_pool_squares(const double *m2, const double *mean, const double *mean_lo, double number, const double *centre,
                                const double *centre_lo, ptrdiff_t count, double *to, double *to_lo) {
    vd m = vd_set1(number), zero = vd_zero();
    EACH_EIGHT(count, {
        fn_vdd d = vdd_two_sum(fn_at(mean + k, n), vd_sub(zero, fn_at(centre + k, n))), all;
        d = vdd_two_sum(d.hi, vd_add(d.lo, vd_sub(fn_at(mean_lo + k, n), fn_at(centre_lo + k, n))));
        vd lost, square_lo, square = vd_product(d.hi, d.hi, &square_lo);
        square_lo = vd_add(square_lo, vd_mul(vd_add(d.hi, d.hi), d.lo));
        all.hi = vd_product(m, square, &lost);
        all.lo = vd_finite(vd_add(lost, vd_mul(m, square_lo)));
        fn_vdd q = vdd_add_d(vdd_at(to + k, to_lo + k, n), fn_at(m2 + k, n));
        vdd_put(to + k, to_lo + k, vdd_add(q, all), n);
    })
}

FN_OUTLINE void fn_finish(const double *m2, double number, double eps, ptrdiff_t count, double *var, double *rstd) {
    fn_divisor m = fn_divisor_of(number);
    vd e = vd_set1(eps), one = vd_set1(1);
    EACH_EIGHT(count, {
        vd v = vd_over(fn_at(m2 + k, n), m);
        fn_put(var + k, v, n);
        fn_put(rstd + k, vd_div(one, vd_sqrt(vd_add(v, e))), n);
    })
}

FN_OUTLINE void fn_multiply(const double *a, const double *b, ptrdiff_t count, double *to) {
    EACH_EIGHT(count, fn_put(to + k, vd_mul(fn_at(a + k, n), fn_at(b + k, n)), n);)
}

/* Numbers of some rows. */
#define FN_SOME 32
typedef struct { double sum[FN_SOME], square[FN_SOME], mean[FN_SOME], mean_lo[FN_SOME], m2[FN_SOME], rstd[FN_SOME]; } fn_some;

/* ---- gradients ---- */

FN_OUTLINE void fn_accumulate(const double *x, const double *x_lo, const double *weight, ptrdiff_t count, double *to, double *to_lo) {
    EACH_EIGHT(count, {
        fn_vdd one = vdd_at(x + k, x_lo + k, n);
        if (weight) { vd w = fn_at(weight + k, n); one.hi = vd_mul(one.hi, w); one.lo = vd_mul(one.lo, w); }
        vdd_put(to + k, to_lo + k, vdd_add(vdd_at(to + k, to_lo + k, n), one), n);
    })
}

FN_OUTLINE void fn_collapse(const double *hi, const double *lo, ptrdiff_t count, double *to) {
    vd zero = vd_zero(); /* makes -0 0, as if a sum had begun there */
    EACH_EIGHT(count, fn_put(to + k, vd_add(vd_add(zero, fn_at(hi + k, n)), fn_at(lo + k, n)), n);)
}

FN_INLINE fn_vdd vdd_weighed(vd gamma, const double *x, const double *x_lo, ptrdiff_t n) {
    vd lost, p = vd_product(gamma, fn_at(x, n), &lost);
    fn_vdd r = {p, vd_add(vd_finite(lost), vd_mul(gamma, fn_at(x_lo, n)))};
    return r;
}

FN_OUTLINE void fn_slopes(fn_planes s, const double *gamma, const double *rstd, double number, ptrdiff_t count, double *b, double *c) {
    fn_divisor m = fn_divisor_of(number);
    vd zero = vd_zero(), one = vd_set1(1);
    EACH_EIGHT(count, {
        vd g = gamma ? fn_at(gamma + k, n) : one, r = fn_at(rstd + k, n), minus = vd_sub(zero, r);
        fn_vdd sum = vdd_weighed(g, s.sum + k, s.sum_lo + k, n), dot = vdd_weighed(g, s.dot + k, s.dot_lo + k, n);
        fn_put(b + k, vd_mul(minus, vd_mul(r, vd_over(vd_mul(r, vd_add(dot.hi, dot.lo)), m))), n);
        fn_put(c + k, vd_over(vd_mul(minus, vd_add(sum.hi, sum.lo)), m), n);
    })
}

FN_OUTLINE fn_sizes fn_sizes_of(const float *v, ptrdiff_t count) {
    vf large = vf_set1(1), small = vf_set1(-1), zero = vf_zero(); /* the least is the most of the negatives */
    vf more = large, less = small;                                /* every other vector's: each waits for the last one */
#define LOOK(large, small, a)                                                                                            \
    do {                                                                                                                 \
        vf size = vf_size(a);                                                                                            \
        large = vf_at_least(large, size);                                                                                \
        small = vf_at_least(small, vf_sub(zero, size));                                                                  \
    } while (0)
    ptrdiff_t k = 0;
    for (; k <= count - 32; k += 32) {
        LOOK(large, small, vf_load(v + k));
        LOOK(more, less, vf_load(v + k + 16));
    }
    for (; k < count; k += 16) LOOK(large, small, count - k < 16 ? vf_load_n(v + k, count - k) : vf_load(v + k));
#undef LOOK
    large = vf_at_least(large, more);
    small = vf_at_least(small, less);
    float a[16], b[16];
    fn_sizes r = {1, 1};
    vf_store(a, large);
    vf_store(b, small);
    for (int i = 0; i < 16; i++) {
        if (a[i] > r.most) r.most = a[i];
        if (-b[i] < r.least) r.least = -b[i];
    }
    return r;
}

/* ---- running statistics ---- */

FN_OUTLINE void fn_blend(double *running, double step, double factor, const double *batch, ptrdiff_t count) {
    vd old = vd_set1(1 - step), new = vd_set1(step), f = vd_set1(factor);
    EACH_EIGHT(count, {
        vd moved = vd_mul(new, vd_mul(f, fn_at(batch + k, n)));
        fn_put(running + k, vd_add(vd_mul(old, fn_at(running + k, n)), moved), n);
    })
}

static const fn_channel_ops FN_CHANNELS = {fn_add_runs, fn_means, fn_centre, fn_mend, fn_recentre, fn_pool_squares, fn_finish,
                                           fn_multiply, fn_accumulate, fn_collapse, fn_slopes, fn_sizes_of, fn_blend};

/* ---- what float arithmetic can hold, as in scalar.h ---- */

FN_INLINE vl vl_plain(vd a) { return vd_within(a, 0x1p-100, 0x1p100); }

/* Do channels from .. from + count and their gradients (or NULL) need no wider arithmetic? */
#define FN_M2_END 0x1.0000000000001p250 /* the number after 2^250, fn_needs_wide's last */
FN_OUTLINE int fn_are_plain(const fn_norms *p, const fn_grads *g, ptrdiff_t from, ptrdiff_t count) {
    vd m = vd_set1(p->number);
    vl all = vl_plain(vd_zero());
    EACH_EIGHT(count, {
        ptrdiff_t i = from + k;
        vl norm = vl_and(vl_plain(fn_at(p->scale + i, n)), vd_within(fn_at(p->mean + i, n), 0x1p-90, 0x1p125));
        all = vl_and(all, vl_and(norm, vd_within(vd_mul(fn_at(p->var + i, n), m), 0, FN_M2_END)));
        if (g) all = vl_and(all, vl_and(vl_plain(fn_at(g->a + i, n)), vl_and(vl_plain(fn_at(g->b + i, n)), vl_plain(fn_at(g->c + i, n)))));
    })
    return vl_all(all);
}
/* Is the mean of channel k, or of all channels from .. from + count, near zero? */
FN_INLINE int fn_is_near_at(const fn_norms *p, ptrdiff_t k) { return !p->given && fn_is_near(p->mean[k], p->var[k]); }
FN_OUTLINE int fn_are_near(const fn_norms *p, ptrdiff_t from, ptrdiff_t count) {
    if (p->given) return 0;
    vd four = vd_set1(4);
    vl all = vd_at_most(vd_zero(), four);
    EACH_EIGHT(count, {
        vd mean = fn_at(p->mean + from + k, n);
        all = vl_and(all, vd_at_most(vd_mul(mean, mean), vd_mul(four, fn_at(p->var + from + k, n))));
    })
    return vl_all(all);
}
FN_INLINE int fn_is_wide(const fn_norms *p, const fn_grads *g, ptrdiff_t k) {
    return fn_needs_wide(p->mean[k], p->var[k] * p->number, p->scale[k]) ||
           (g && !fn_are_safe(g->a[k], g->b[k], g->c[k]));
}
/* How many of the columns from .. from + w are alike in asking for wider arithmetic. */
FN_INLINE ptrdiff_t fn_alike(const fn_norms *p, const fn_grads *g, ptrdiff_t from, ptrdiff_t w, ptrdiff_t post) {
    ptrdiff_t k = from / post, end = (k + 1) * post - from;
    int wide = fn_is_wide(p, g, k);
    for (k++; end < w && fn_is_wide(p, g, k) == wide; k++) end += post;
    return end < w ? end : w;
}
FN_INLINE fn_norms fn_norms_from(const fn_norms *p, ptrdiff_t k) {
    fn_norms r = {p->mean + k, p->mean_lo + k, p->scale + k, p->shift ? p->shift + k : NULL, p->var + k, p->number, p->given};
    return r;
}
FN_INLINE fn_grads fn_grads_from(const fn_grads *g, ptrdiff_t k) { fn_grads r = {g->a + k, g->b + k, g->c + k}; return r; }

#endif
