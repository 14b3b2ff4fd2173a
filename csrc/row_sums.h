/* What the gradients of rows.h are formed from: Σg and Σ(g·(x - mean)) of each row, with g = dy·gamma, in double as in spans.h.

   Included once per (storage S, arithmetic T). */

/* A vector of parameters, as sums take it (spans.h). */
FN_INLINE const T *NAME(param_in_t)(const P *p, T *room) {
    return sizeof(P) == sizeof(T) ? (const T *)(const void *)p : NAME(kept)(LOAD_P(p), room);
}

/* Σg and Σg·(x - mean) or, with `near`, Σg·x of `count` rows, in double as in spans.h. */
typedef struct { FOLDED sum[FN_ROWS], dot[FN_ROWS]; } NAME(folded_sums);
FN_INLINE void NAME(row_sums)(const S *dy, const S *x, const P *gamma, ptrdiff_t len, ptrdiff_t stride, const double *means, int count,
                              int centred, int near, NAME(folded_sums) *out, ptrdiff_t to, ptrdiff_t ahead) {
    ptrdiff_t i = 0;
    W mean[ROWS_AT_ONCE];
    NAME(sums) a[ROWS_AT_ONCE];
    EACH_ROW(count, k, mean[k] = WIDE_SET1(centred ? means[k] : 0); a[k].sum = ACC_ZERO(); a[k].dot = ACC_ZERO());
    T weights[LANES], g_room[LANES], x_room[LANES];
#define ONE(k, g, xi)                                                                                                    \
    do {                                                                                                                 \
        if (gamma) ACC_WEIGHTED(&a[k].sum, &a[k].dot, g, weight, xi, mean[k], near);                                     \
        else a[k] = NAME(sums_add)(a[k], g, xi, mean[k], 0);                                                             \
    } while (0)
    for (; i <= len - LANES; i += LANES) {
        const T *weight = gamma ? NAME(param_in_t)(gamma + i, weights) : NULL;
        EACH_ROW(count, k, {
            const S *xk = x + k * stride + i, *dyk = dy + k * stride + i;
            if (ahead) { fn_prefetch(xk + ahead); fn_prefetch(dyk + ahead); }
            ONE(k, NAME(in_t)(dyk, g_room), NAME(in_t)(xk, x_room));
        });
    }
    if (i < len) {
        ptrdiff_t n = len - i;
        const T *weight = gamma ? NAME(kept)(LOAD_P_N(gamma + i, n), weights) : NULL;
        EACH_ROW(count, k, ONE(k, NAME(kept)(LOAD_N(dy + k * stride + i, n), g_room), NAME(kept)(LOAD_N(x + k * stride + i, n), x_room)));
    }
#undef ONE
    EACH_ROW(count, k, out->sum[to + k] = ACC_FOLDED(a[k].sum); out->dot[to + k] = ACC_FOLDED(a[k].dot));
}

/* Are a row's products taken about zero, and moved to the mean afterwards? Of doubles, whose sums carry what they lose, they can be
   unless the mean is a million deviations away; of floats it would not be faster. */
FN_INLINE int NAME(is_near_row)(fn_row_stats stat, ptrdiff_t k) {
    double deviations = stat.mean[k] * stat.rstd[k];
    return sizeof(S) == 8 && deviations <= 0x1p20 && deviations >= -0x1p20;
}

/* The same of any number of rows; short ones, and those in cache, several at once, which share what gamma takes: (32, 128) takes 0.88 of
   the time. (Of rows of 768 so read from memory the backward was 8 % slower.) */
FN_OUTLINE void NAME(some_grad_sums)(const void *dyv, const void *xv, const void *gv, ptrdiff_t rows, ptrdiff_t len, ptrdiff_t stride,
                                     fn_row_stats stat, int centred, fn_planes to, ptrdiff_t ahead) {
    NAME(folded_sums) a;
    double away[FN_ROWS];
    for (ptrdiff_t r = 0, some; r < rows; r += some) {
        some = rows - r < FN_ROWS ? rows - r : FN_ROWS;
        for (ptrdiff_t k = 0, count; k < some; k += count) {
            const S *dy = (const S *)dyv + (r + k) * stride, *x = (const S *)xv + (r + k) * stride;
            count = !GENERIC && gv && (len < 8 * LINE || !ahead) && k + ROWS_AT_ONCE <= some ? ROWS_AT_ONCE : 1;
            int near = centred && gv && NAME(is_near_row)(stat, r + k);
            for (ptrdiff_t i = k; i < k + count; i++) away[i] = near ? stat.mean[r + i] : 0;
#define BODY(gamma, count, centred, near) \
    NAME(row_sums)(dy, x, gamma, len, stride, stat.mean + r + k, count, centred, near, &a, k, ahead)
            if (GENERIC || !gv) { if (centred) BODY(gv, 1, 1, 0); else BODY(gv, 1, 0, 0); }
            else if (near) BODY(gv, 1, 1, 1);
            else if (centred) { if (count > 1) BODY(gv, ROWS_AT_ONCE, 1, 0); else BODY(gv, 1, 1, 0); }
            else if (count > 1) BODY(gv, ROWS_AT_ONCE, 0, 0);
            else BODY(gv, 1, 0, 0);
#undef BODY
        }
        ACC_SUMS(a.sum, some, to.sum + r, to.sum_lo + r);
        ACC_SUMS(a.dot, some, to.dot + r, to.dot_lo + r);
        if (centred) {
            fn_vdd sum = vdd_at(to.sum + r, to.sum_lo + r, some), dot = vdd_at(to.dot + r, to.dot_lo + r, some);
            vd low = fn_at(stat.mean_lo + r, some);
            if (sizeof(S) == 8) dot = vdd_moved(dot, sum, fn_at(away, some), low);
            else dot.lo = vd_sub(dot.lo, vd_mul(low, sum.hi));
            vdd_put(to.dot + r, to.dot_lo + r, dot, some);
        }
    }
}

FN_OUTLINE void NAME(rows_grad_sums)(const void *dy, const void *x, const void *gamma, ptrdiff_t rows, ptrdiff_t len, ptrdiff_t stride,
                                     fn_row_stats stat, int centred, fn_planes to) {
    NAME(some_grad_sums)(dy, x, gamma, rows, len, stride, stat, centred, to, len < 8 * LINE ? 0 : SOON);
}
