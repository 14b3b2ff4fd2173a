/* What the gradients of rows.h are formed from: Σg and Σ(g·(x - mean)) of each row, with g = dy·gamma, in double as in spans.h.

   Included once per (storage S, arithmetic T). */

/* A vector of parameters, as sums take it (spans.h). */
FN_INLINE const T *NAME(param_in_t)(const P *p, T *room) {
    return sizeof(P) == sizeof(T) ? (const T *)(const void *)p : NAME(kept)(LOAD_P(p), room);
}

/* Σg and Σg·(x - mean) or, with `near`, Σg·x of `count` rows, in double as in spans.h. */
typedef struct { FOLDED sum[FN_ROWS], dot[FN_ROWS]; } NAME(folded_sums);
FN_INLINE void NAME(row_sums)(const S *dy, const S *x, const P *gamma, const double *widened, ptrdiff_t len, ptrdiff_t stride,
                              const double *means, int count, int centred, int near, NAME(folded_sums) *out, ptrdiff_t to, ptrdiff_t ahead) {
    ptrdiff_t i = 0;
    W mean[ROWS_AT_ONCE];
    NAME(sums) a[ROWS_AT_ONCE];
    EACH_ROW(count, k, mean[k] = WIDE_SET1(centred ? means[k] : 0); a[k].sum = ACC_ZERO(); a[k].dot = ACC_ZERO());
    T weights[LANES], g_room[LANES], x_room[LANES];
#define ONE(k, g, xi)                                                                                                    \
    do {                                                                                                                 \
        if (gamma) ACC_WEIGHTED(&a[k].sum, &a[k].dot, g, weight, widened ? widened + i : NULL, xi, mean[k], near);       \
        else a[k] = NAME(sums_add)(a[k], g, xi, mean[k], 0);                                                             \
    } while (0)
    for (; i <= len - LANES; i += LANES) {
        const T *weight = gamma && !widened ? NAME(param_in_t)(gamma + i, weights) : NULL;
        EACH_ROW(count, k, {
            const S *xk = x + k * stride + i, *dyk = dy + k * stride + i;
            if (ahead) { fn_prefetch(xk + ahead); fn_prefetch(dyk + ahead); }
            ONE(k, NAME(in_t)(dyk, g_room), NAME(in_t)(xk, x_room));
        });
    }
    if (i < len) {
        ptrdiff_t n = len - i;
        const T *weight = gamma && !widened ? NAME(kept)(LOAD_P_N(gamma + i, n), weights) : NULL;
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

/* The sums of n rows, at most eight, whose products were taken about the mean or, of doubles, so far `away` from it. */
FN_INLINE void NAME(sums_of_rows)(const NAME(folded_sums) *a, ptrdiff_t n, const double *mean_lo, const double *away, int centred,
                                  fn_planes to) {
    ACC_SUMS(a->sum, n, to.sum, to.sum_lo);
    ACC_SUMS(a->dot, n, to.dot, to.dot_lo);
    if (!centred) return;
    fn_vdd sum = vdd_at(to.sum, to.sum_lo, n), dot = vdd_at(to.dot, to.dot_lo, n);
    vd low = fn_at(mean_lo, n);
    if (sizeof(S) == 8) dot = vdd_moved(dot, sum, fn_at(away, n), low);
    else dot.lo = vd_sub(dot.lo, vd_mul(low, sum.hi));
    vdd_put(to.dot, to.dot_lo, dot, n);
}

/* Gamma, WIDENED numbers at most, as sums take it, with zeros up to a whole vector. It costs as much to widen as x or dy; done once for many
   rows, the backward takes 0.89 to 0.96 of the time on a Zen 1. Twice as long, it must still stay in L1. Rows taken several at once
   share it anyway. */
#define WIDENED 1024
#define CAN_WIDEN (sizeof(T) == 4 && ROWS_AT_ONCE == 1)
FN_INLINE void NAME(widen)(const P *gamma, ptrdiff_t len, double *to) {
    for (ptrdiff_t i = 0; i < len; i += LANES) /* -0 becomes 0, which no sum from 0 on tells */
        ACC_PUT(ACC_ADD(ACC_ZERO(), WIDE(len - i < LANES ? LOAD_P_N(gamma + i, len - i) : LOAD_P(gamma + i))), to + i, NULL, LANES, 1);
}

/* Sums of any number of rows, of whose gamma there may be `widened` numbers; short ones, and those in cache, several at once, which share
   what gamma takes: (32, 128) takes 0.88 of the time. (Of rows of 768 so read from memory the backward was 8 % slower.) */
FN_OUTLINE void NAME(some_grad_sums)(const void *dyv, const void *xv, const void *gv, const double *widened, ptrdiff_t rows,
                                     ptrdiff_t len, ptrdiff_t stride, fn_row_stats stat, int centred, fn_planes to, ptrdiff_t ahead) {
    NAME(folded_sums) a;
    double away[FN_ROWS];
    for (ptrdiff_t r = 0, some; r < rows; r += some) {
        some = rows - r < FN_ROWS ? rows - r : FN_ROWS;
        for (ptrdiff_t k = 0, count; k < some; k += count) {
            const S *dy = (const S *)dyv + (r + k) * stride, *x = (const S *)xv + (r + k) * stride;
            count = !GENERIC && gv && (len < 8 * LINE || !ahead) && k + ROWS_AT_ONCE <= some ? ROWS_AT_ONCE : 1;
            int near = centred && gv && NAME(is_near_row)(stat, r + k);
            for (ptrdiff_t i = k; i < k + count; i++) away[i] = near ? stat.mean[r + i] : 0;
#define BODY(widened, count, centred, near) \
    NAME(row_sums)(dy, x, gv, widened, len, stride, stat.mean + r + k, count, centred, near, &a, k, ahead)
            if (GENERIC || !gv) { if (centred) BODY(NULL, 1, 1, 0); else BODY(NULL, 1, 0, 0); }
            else if (near) BODY(NULL, 1, 1, 1);
            else if (CAN_WIDEN && widened) { if (centred) BODY(widened, 1, 1, 0); else BODY(widened, 1, 0, 0); }
            else if (centred) { if (count > 1) BODY(NULL, ROWS_AT_ONCE, 1, 0); else BODY(NULL, 1, 1, 0); }
            else if (count > 1) BODY(NULL, ROWS_AT_ONCE, 0, 0);
            else BODY(NULL, 1, 0, 0);
#undef BODY
        }
        fn_planes here = {to.sum + r, to.sum_lo + r, to.dot + r, to.dot_lo + r};
        NAME(sums_of_rows)(&a, some, stat.mean_lo + r, away, centred, here);
    }
}

/* Sums of `rows` rows without gaps, at most eight, that go on four vectors at a time, while others are written. What is loaded is counted
   from the row's end on: a single number changes at each turn, and no pointer that had to be kept in memory, behind stores that wait. */
typedef struct {
    NAME(sums) a; /* of the row so far */
    W mean;
    ptrdiff_t left;  /* elements of the row to come */
    const S *dy, *x; /* where it ends */
    const P *gamma;
    ptrdiff_t row, rows, len, ahead;
    const double *means;
    NAME(folded_sums) *out;
} NAME(ongoing);

/* *to = *from, number by number: what was stored singly and is loaded as a vector waits until all stores before it are done, and those of
   rows that are streamed wait for memory (1.1 of the time). */
FN_INLINE void NAME(hand_over)(const NAME(ongoing) *from, NAME(ongoing) *to) {
    to->a.sum = from->a.sum;
    to->a.dot = from->a.dot;
    to->mean = from->mean;
    to->left = from->left;
    to->dy = from->dy;
    to->x = from->x;
    to->gamma = from->gamma;
    to->row = from->row;
    to->rows = from->rows;
    to->len = from->len;
    to->ahead = from->ahead;
    to->means = from->means;
    to->out = from->out;
}

/* The next row begins, if there is one. */
FN_INLINE void NAME(begin_row)(NAME(ongoing) *t, int centred) {
    t->a.sum = t->a.dot = ACC_ZERO();
    t->left = 0;
    if (t->row == t->rows) return;
    t->left = t->len;
    t->dy += t->len;
    t->x += t->len;
    if (centred) t->mean = WIDE_SET1(t->means[t->row]);
}
FN_INLINE void NAME(take)(NAME(ongoing) *t, int count, ptrdiff_t n, int centred) {
    T weights[LANES], g_room[LANES], x_room[LANES];
    W mean = WIDE_SET1(0);
    if (centred) mean = t->mean;
    const S *dy = t->dy - t->left, *x = t->x - t->left;
    const P *gamma = t->gamma - t->left;
    if (t->ahead) { FETCH(x + t->ahead, count * LANES); FETCH(dy + t->ahead, count * LANES); }
    if (n == LANES)
        EACH_OF(count, k) ACC_WEIGHTED(&t->a.sum, &t->a.dot, NAME(in_t)(dy + k * LANES, g_room), NAME(param_in_t)(gamma + k * LANES, weights), NULL,
                                       NAME(in_t)(x + k * LANES, x_room), mean, 0);
    else ACC_WEIGHTED(&t->a.sum, &t->a.dot, NAME(kept)(LOAD_N(dy, n), g_room), NAME(kept)(LOAD_P_N(gamma, n), weights), NULL,
                      NAME(kept)(LOAD_N(x, n), x_room), mean, 0);
    t->left -= n == LANES ? count * LANES : n;
}
/* What is left of a row, less than four vectors. */
FN_OUTLINE void NAME(take_rest)(NAME(ongoing) *t, int centred) {
    while (t->left >= LANES) NAME(take)(t, 1, LANES, centred);
    if (t->left) NAME(take)(t, 1, t->left, centred);
}
/* Four vectors, if any are left, and then the end of a row that has no more of them. */
FN_INLINE void NAME(turn)(NAME(ongoing) *t, int centred) {
    if (t->left < 4 * LANES) return;
    NAME(take)(t, 4, LANES, centred);
    if (t->left >= 4 * LANES) return;
    if (t->left) {
        NAME(ongoing) copy; /* or else all of *t would be kept in memory */
        NAME(hand_over)(t, &copy);
        NAME(take_rest)(&copy, centred);
        t->a = copy.a;
    }
    t->out->sum[t->row] = ACC_FOLDED(t->a.sum);
    t->out->dot[t->row++] = ACC_FOLDED(t->a.dot);
    NAME(begin_row)(t, centred);
}

FN_OUTLINE void NAME(rows_grad_sums)(const void *dy, const void *x, const void *gamma, ptrdiff_t rows, ptrdiff_t len, ptrdiff_t stride,
                                     fn_row_stats stat, int centred, fn_planes to) {
    NAME(some_grad_sums)(dy, x, gamma, NULL, rows, len, stride, stat, centred, to, len < 8 * LINE ? 0 : SOON);
}
