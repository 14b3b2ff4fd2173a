/* The gradients of softmax and log-softmax: dx of a long row is written while the next one is summed.

   Included once per (storage S, arithmetic T). */

/* += dy·y, or of log-softmax dy, n elements; the products of floats are made in double, those of half types are exact in float. */
FN_INLINE ACC NAME(softmax_add)(ACC a, const S *dy, const S *y, ptrdiff_t n, int logarithm) {
    if (sizeof(S) == 4 && n == LANES) return logarithm ? ACC_ADD(a, WIDE_AT(dy)) : ACC_PRODUCT(a, WIDE_AT(dy), WIDE_AT(y));
    V g = NAME(col_load)(dy, n), p = logarithm ? g : NAME(col_load)(y, n);
    if (sizeof(S) == 4 && !logarithm) return ACC_PRODUCT(a, WIDE(g), WIDE(p));
    return ACC_ADD(a, WIDE(logarithm ? g : MUL(g, p)));
}
/* The sum over a row so far, in two parts, because each addition waits for the last one. */
typedef struct { ACC even, odd; } NAME(row_dot);
FN_INLINE NAME(row_dot) NAME(dot_two)(NAME(row_dot) a, const S *dy, const S *y, int logarithm) {
    a.even = NAME(softmax_add)(a.even, dy, y, LANES, logarithm);
    a.odd = NAME(softmax_add)(a.odd, dy + LANES, y + LANES, LANES, logarithm);
    return a;
}
/* The sum with what is left of the row. */
FN_INLINE T NAME(dot_rest)(NAME(row_dot) a, const S *dy, const S *y, ptrdiff_t left, int logarithm) {
    ptrdiff_t i = 0;
    for (; i <= left - 2 * LANES; i += 2 * LANES) a = NAME(dot_two)(a, dy + i, y + i, logarithm);
    for (ptrdiff_t n; i < left; i += n) {
        n = left - i < LANES ? left - i : LANES;
        a.even = NAME(softmax_add)(a.even, dy + i, y + i, n, logarithm);
    }
    fn_dd s = ACC_SUM(ACC_JOIN(a.even, a.odd));
    return (T)(s.hi + s.lo);
}

/* dx of four vectors of a row of which `left` elements are left. */
FN_INLINE void NAME(softmax_dx)(V *z, const S *dy, const S *y, ptrdiff_t left, V sum, const NAME(pivot) *zero, int logarithm) {
    V g[EXP_AT_ONCE];
    NAME(exp_load)(z, y, left, zero);
    NAME(exp_load)(g, dy, left, zero);
    if (logarithm) NAME(exp_near)(z, zero, EXP_AT_ONCE);
    EACH_OF(EXP_AT_ONCE, k) z[k] = logarithm ? SUB(g[k], MUL(LOWERED(z[k]), sum)) : MUL(z[k], SUB(g[k], sum));
}

/* dx of a long row, while the next one (or NULL) is summed: writing waits for memory, and an addition for the last one. Returns its sum.
   (Of rows of 1000 log-softmax takes 0.7 of the time beyond the cache and 0.95 in it, softmax 0.8 and 0.93, on an Intel Xeon.) If not,
   softmax may fetch what lies `ahead` (or 0) meanwhile. */
FN_INLINE T NAME(softmax_grad_row)(const S *dy, const S *y, S *dx, ptrdiff_t len, V sum, const S *dy_next, const S *y_next,
                                   ptrdiff_t ahead, int logarithm, int stream) {
    const ptrdiff_t step = EXP_AT_ONCE * LANES, first = NAME(exp_head)(dx, stream);
    ptrdiff_t i = 0;
    NAME(pivot) zero = NAME(pivot_of)(0);
    NAME(row_dot) a = {ACC_ZERO(), ACC_ZERO()};
    V z[EXP_AT_ONCE];
    if (first) {
        NAME(softmax_dx)(z, dy, y, first, sum, &zero, logarithm);
        NAME(exp_store)(z, dx, first);
    }
    for (; i <= len - first - step; i += step) {
        ptrdiff_t at = first + i;
        if (dy_next) {
            if (stream) { FETCH_L1(dy_next + i + EXP_SOON, step); FETCH_L1((logarithm ? y + at : y_next + i) + EXP_SOON, step); }
            else if (logarithm) NAME(exp_fetch)(y + at, len);
            a = NAME(dot_two)(a, dy_next + i, y_next + i, logarithm);
            a = NAME(dot_two)(a, dy_next + i + 2 * LANES, y_next + i + 2 * LANES, logarithm);
        } else if (!logarithm && ahead) {
            NAME(exp_fetch)(dy + at, ahead);
            NAME(exp_fetch)(y + at, ahead);
        }
        NAME(softmax_dx)(z, dy + at, y + at, step, sum, &zero, logarithm);
        NAME(exp_put)(z, dx + at, step, stream);
    }
    ptrdiff_t at = first + i;
    if (at < len) {
        NAME(softmax_dx)(z, dy + at, y + at, len - at, sum, &zero, logarithm);
        NAME(exp_put)(z, dx + at, len - at, stream);
    }
    return dy_next ? NAME(dot_rest)(a, dy_next + i, y_next + i, len - i, logarithm) : 0;
}

/* Short rows, one after the other. */
FN_INLINE void NAME(softmax_grad_rows)(const S *dy, const S *y, S *dx, ptrdiff_t rows, ptrdiff_t len, int logarithm) {
    NAME(pivot) zero = NAME(pivot_of)(0);
    NAME(row_dot) none = {ACC_ZERO(), ACC_ZERO()};
    for (; rows > 0; rows--, dy += len, y += len, dx += len) {
        V sum = SET1(NAME(dot_rest)(none, dy, y, len, logarithm)), z[EXP_AT_ONCE];
        for (ptrdiff_t i = 0; logarithm && i < len; i += EXP_AT_ONCE * LANES) {
            NAME(exp_fetch)(y + i, len);
            NAME(exp_fetch)(dy + i, len);
            NAME(softmax_dx)(z, dy + i, y + i, len - i, sum, &zero, 1);
            NAME(exp_store)(z, dx + i, len - i);
        }
#define OUT(j, n) MUL(NAME(col_load)(y + (j), n), SUB(NAME(col_load)(dy + (j), n), sum))
        if (!logarithm) EACH_IN_OUTPUT(dx, len, 0);
#undef OUT
    }
}

/* softmax: dx = y·(dy - Σdy·y); log-softmax: dx = dy - exp(y)·Σdy. */
FN_OUTLINE void NAME(softmax_grad)(const void *dyv, const void *yv, void *dxv, ptrdiff_t rows, ptrdiff_t len, int logarithm, int flags) {
    const S *dy = dyv, *y = yv;
    S *dx = dxv;
    int stream = logarithm ? NAME(exps_stream)(len, flags) : NAME(softmax_streams)(len, flags);
    if (rows == 0) return;
    if (len < 32 * LINE) {
        if (logarithm) NAME(softmax_grad_rows)(dy, y, dx, rows, len, 1);
        else NAME(softmax_grad_rows)(dy, y, dx, rows, len, 0);
        return;
    }
    /* A Zen 4 takes 1.2 to 1.6 times as long by turns where dx is streamed, at AVX2 1.4. Nor must the next row be fetched meanwhile (up to 1.5
       times as long), but for rows of floats within a page (0.65 to 0.98 of the time). */
    int turns = !stream || !(flags & FN_NEXT);
    ptrdiff_t ahead = !turns && sizeof(S) == 4 && len < 64 * LINE ? len : 0;
    NAME(row_dot) none = {ACC_ZERO(), ACC_ZERO()};
#define SUM(dy, y) (logarithm ? NAME(dot_rest)(none, dy, y, len, 1) : NAME(dot_rest)(none, dy, y, len, 0))
    T sum = SUM(dy, y);
    for (ptrdiff_t left = rows; left > 0; left--, dy += len, y += len, dx += len) {
        if (stream) NAME(fetch_shared)(dx + len); /* written in two parts; not fetched, it costs a dozen others */
#define BODY(logarithm, stream) \
    sum = NAME(softmax_grad_row)(dy, y, dx, len, SET1(sum), turns && left > 1 ? dy + len : NULL, y + len, ahead, logarithm, stream)
        if (logarithm) { if (stream) BODY(1, 1); else BODY(1, 0); }
        else if (stream) BODY(0, 1);
        else BODY(0, 0);
#undef BODY
        if (!turns && left > 1) sum = SUM(dy + len, y + len);
    }
#undef SUM
    if (stream) fn_fence();
}
#undef PART
#undef FULL_STORE
#undef FULL_STREAM
#undef FULL_TO
#undef EACH_IN_OUTPUT
