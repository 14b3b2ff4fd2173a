/* Switchable norm between its reductions: arithmetic on a number for each sample and channel, in doubles and their pairs.

   μ_ln, var_ln are mean and variance of the union of a sample's channels, μ_bn, var_bn of a channel's samples (or given):

     μ = mean(μ_in), var = mean(var_in) + mean((μ_in - μ)²)
     μ_mixed = Σ w_k·μ_k, var_mixed = Σ u_k·var_k, k = IN, LN, BN

   Means are handled as offsets from instance means, so that nothing cancels where the mean is large; and in pairs, because x - μ_mixed may
   be far smaller than the offsets that μ_mixed is mixed from. */
#ifndef FN_MIX_H
#define FN_MIX_H

#include "scalar.h"

typedef struct {
    ptrdiff_t n, c; /* samples, channels */
    double post;    /* elements of a channel in a sample */
    int training;   /* or else μ_bn and var_bn are given, and constants */
    fn_dd w[3], u[3];
    /* n·c numbers each, samples first */
    double *mean, *mean_lo, *var;   /* of instances */
    double *offset_ln, *offset_bn;  /* μ_ln - μ_in, μ_bn - μ_in */
    double *var_ln, *mean_bn, *var_bn; /* n, c and c numbers */
} fn_mix;

enum { FN_MIX_ARRAYS = 5 }; /* of n·c numbers, which a backward needs; beside them n + 2·c */

FN_INLINE void fn_mix_place(fn_mix *m, double *memory) {
    ptrdiff_t size = m->n * m->c;
    m->mean = memory;
    m->mean_lo = memory + size;
    m->var = memory + 2 * size;
    m->offset_ln = memory + 3 * size;
    m->offset_bn = memory + 4 * size;
    m->var_ln = memory + 5 * size;
    m->mean_bn = m->var_ln + m->n;
    m->var_bn = m->mean_bn + m->c;
}

FN_INLINE fn_dd fn_dd_minus(fn_dd a, fn_dd b) { fn_dd minus = {-b.hi, -b.lo}, s = fn_dd_add(a, minus); return fn_two_sum(s.hi, fn_low(s.lo)); }
FN_INLINE fn_dd fn_dd_times(fn_dd a, fn_dd b) {
    fn_dd p = fn_two_product(a.hi, b.hi);
    return fn_two_sum(p.hi, fn_low(fn_low(p.lo) + (a.hi * b.lo + a.lo * b.hi)));
}

/* Where distances are taken from: a mean nearby, or zero instead of an infinity, so that a sum of them is infinite and not NaN. */
FN_INLINE fn_dd fn_origin(double mean, double mean_lo) { fn_dd o = {fn_low(mean), mean - mean == 0 ? mean_lo : 0}; return o; }

/* Mean and variance of the union of `count` instances, `step` apart: the mean as its distance from `first`. */
FN_INLINE fn_dd fn_union(const double *mean, const double *mean_lo, const double *var, ptrdiff_t count, ptrdiff_t step, fn_dd first,
                         double *to_var) {
    fn_dd sum = {0, 0}, square = {0, 0}, centre;
    for (ptrdiff_t i = 0; i < count; i++) {
        fn_dd one = {mean[i * step], mean_lo[i * step]};
        sum = fn_dd_add(sum, fn_dd_minus(one, first));
    }
    centre = fn_dd_div(fn_two_sum(sum.hi, fn_low(sum.lo)), (double)count);
    for (ptrdiff_t i = 0; i < count; i++) {
        fn_dd one = {mean[i * step], mean_lo[i * step]}, away = fn_dd_minus(fn_dd_minus(one, first), centre);
        square = fn_dd_add_d(square, var[i * step] + away.hi * away.hi);
    }
    *to_var = fn_dd_div(fn_two_sum(square.hi, fn_low(square.lo)), (double)count).hi;
    return centre;
}

/* Everything from the instances' moments on; the mixed statistics, n·c numbers each, and 1/sqrt(var + eps). */
static void fn_mix_moments(fn_mix *m, double eps, double *mean, double *mean_lo, double *var, double *rstd) {
    const ptrdiff_t n = m->n, c = m->c;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double *hi = m->mean + i * c, *lo = m->mean_lo + i * c;
        fn_dd first = fn_origin(hi[0], lo[0]), centre = fn_union(hi, lo, m->var + i * c, c, 1, first, m->var_ln + i);
        for (ptrdiff_t k = 0; k < c; k++) {
            fn_dd one = {hi[k], lo[k]}, offset = fn_dd_minus(centre, fn_dd_minus(one, first)), mixed = fn_dd_times(m->w[1], offset);
            m->offset_ln[i * c + k] = offset.hi;
            mean[i * c + k] = mixed.hi; /* until μ_bn's part is known */
            mean_lo[i * c + k] = mixed.lo;
        }
    }
    for (ptrdiff_t k = 0; k < c; k++) {
        fn_dd first = {0, 0}, centre = {0, 0}; /* given statistics are no sample's affair */
        if (m->training) {
            first = fn_origin(m->mean[k], m->mean_lo[k]);
            centre = fn_union(m->mean + k, m->mean_lo + k, m->var + k, n, c, first, m->var_bn + k);
            fn_dd batch = fn_dd_add(first, centre);
            m->mean_bn[k] = batch.hi + fn_low(batch.lo);
        } else centre.hi = m->mean_bn[k];
        for (ptrdiff_t i = k; i < n * c; i += c) {
            fn_dd one = {m->mean[i], m->mean_lo[i]}, offset = fn_dd_minus(centre, fn_dd_minus(one, first)), of_ln = {mean[i], mean_lo[i]};
            fn_dd mixed = fn_dd_add(fn_dd_add(one, of_ln), fn_dd_times(m->w[2], offset));
            m->offset_bn[i] = offset.hi;
            mixed = fn_two_sum(mixed.hi, fn_low(mixed.lo));
            mean[i] = mixed.hi;
            mean_lo[i] = mixed.lo;
            var[i] = m->u[0].hi * m->var[i] + m->u[1].hi * m->var_ln[i / c] + m->u[2].hi * m->var_bn[k];
            rstd[i] = 1 / __builtin_sqrt(var[i] + eps);
        }
    }
}

/* The gradients through all three moments, from the sums of dy about the instances' means (of n·c channels) and the mixed rstd: dx's numbers
   in `g`, sums of c numbers, and those of three logits. `room` is for 2·n·c + 2·n + 2·c numbers. */
static void fn_mix_gradients(const fn_mix *m, const fn_sums *sums, const double *gamma, const double *rstd, double *room, fn_grad *g,
                             double *dgamma, double *dbeta, double *dmean_logits, double *dvar_logits) {
    const ptrdiff_t n = m->n, c = m->c;
    double *dmu = room, *dvar = dmu + n * c, *mu_ln = dvar + n * c, *of_var_ln = mu_ln + n, *mu_bn = of_var_ln + n, *of_var_bn = mu_bn + c;
    fn_dd of_mean[3] = {{0, 0}, {0, 0}, {0, 0}}, of_var[3] = {{0, 0}, {0, 0}, {0, 0}};
    for (ptrdiff_t i = 0; i < n; i++) {
        fn_dd all_mu = {0, 0}, all_var = {0, 0};
        for (ptrdiff_t k = 0, o = i * c; k < c; k++, o++) {
            const double offsets[3] = {0, m->offset_ln[o], m->offset_bn[o]}, vars[3] = {m->var[o], m->var_ln[i], m->var_bn[k]};
            double shift = m->w[1].hi * offsets[1] + m->w[2].hi * offsets[2]; /* μ_mixed - μ_in */
            double var = m->u[0].hi * vars[0] + m->u[1].hi * vars[1] + m->u[2].hi * vars[2];
            double total = sums[o].sum + sums[o].sum_lo, dot = (sums[o].dot + sums[o].dot_lo) - shift * total, scale = gamma ? gamma[k] : 1;
            dmu[o] = -rstd[o] * scale * total;
            dvar[o] = -0.5 * (rstd[o] * rstd[o] * rstd[o]) * scale * dot;
            all_mu = fn_dd_add_d(all_mu, dmu[o]);
            all_var = fn_dd_add_d(all_var, dvar[o]);
            for (int p = 0; p < 3; p++) {
                of_mean[p] = fn_dd_add_d(of_mean[p], dmu[o] * (offsets[p] - shift));
                of_var[p] = fn_dd_add_d(of_var[p], dvar[o] * (vars[p] - var));
            }
        }
        mu_ln[i] = all_mu.hi + all_mu.lo;
        of_var_ln[i] = all_var.hi + all_var.lo;
    }
    for (int p = 0; p < 3; p++) {
        dmean_logits[p] = m->w[p].hi * (of_mean[p].hi + of_mean[p].lo);
        dvar_logits[p] = m->u[p].hi * (of_var[p].hi + of_var[p].lo);
    }
    for (ptrdiff_t k = 0; k < c; k++) {
        fn_dd all_mu = {0, 0}, all_var = {0, 0}, slope = {0, 0}, level = {0, 0};
        for (ptrdiff_t o = k; o < n * c; o += c) {
            double shift = m->w[1].hi * m->offset_ln[o] + m->w[2].hi * m->offset_bn[o], total = sums[o].sum + sums[o].sum_lo;
            all_mu = fn_dd_add_d(all_mu, dmu[o]);
            all_var = fn_dd_add_d(all_var, dvar[o]);
            slope = fn_dd_add_d(slope, ((sums[o].dot + sums[o].dot_lo) - shift * total) * rstd[o]);
            level = fn_dd_add_d(level, total);
        }
        mu_bn[k] = all_mu.hi + all_mu.lo;
        of_var_bn[k] = all_var.hi + all_var.lo;
        dgamma[k] = slope.hi + slope.lo;
        dbeta[k] = level.hi + level.lo;
    }
    for (ptrdiff_t i = 0, o = 0; i < n; i++)
        for (ptrdiff_t k = 0; k < c; k++, o++) {
            double in_sample = m->post * (double)c, in_channel = m->post * (double)n, part = 2 * m->u[1].hi * of_var_ln[i] / in_sample;
            g[o].a = (gamma ? gamma[k] : 1) * rstd[o];
            g[o].b = 2 * m->u[0].hi * dvar[o] / m->post + part;
            /* x - μ_k = (x - μ_in) - (μ_k - μ_in) */
            g[o].c = m->w[0].hi * dmu[o] / m->post + m->w[1].hi * mu_ln[i] / in_sample - part * m->offset_ln[o];
            if (!m->training) continue;
            part = 2 * m->u[2].hi * of_var_bn[k] / in_channel;
            g[o].b += part;
            g[o].c += m->w[2].hi * mu_bn[k] / in_channel - part * m->offset_bn[o];
        }
}

#endif
