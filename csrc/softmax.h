/* Softmax, log-softmax and the gradients of both and of cross-entropy, a row at a time.

   Included once per (storage S, arithmetic T). exp is our own, so that it has the same bits everywhere: n = round(x·log2 e),
   r = x - n·ln 2 in two steps (Cody and Waite), a polynomial in r, and a scaling by 2^n in two exact steps that also reach the
   subnormals. x is ≤ 0 here and comes as hi + lo, because rounding x - max alone would cost |x - max|/2 ULP. Below 1 ULP. */

/* exp(hi + lo) for hi ≤ 0, |lo| ≤ ulp(hi)/2; NaN gives NaN. */
FN_INLINE V NAME(exp)(V hi, V lo) {
    V small = SET1(EXP_SMALLEST);
    lo = ZERO_BELOW(hi, small, lo);
    hi = AT_LEAST(hi, small);
    V k = ADD(MUL(hi, SET1((T)1.4426950408889634074)), SET1(EXP_MAGIC)), n = SUB(k, SET1(EXP_MAGIC));
    V r = ADD(SUB(SUB(hi, MUL(n, SET1(LN2_HI))), MUL(n, SET1(LN2_LO))), lo);
    V p = SET1(exp_terms[0]);
    _Pragma("GCC unroll 12") for (int i = 1; i < EXP_TERMS; i++) p = ADD(MUL(p, r), SET1(exp_terms[i]));
    p = ADD(ADD(MUL(MUL(r, r), p), r), SET1(1));
    return MUL(MUL(p, POWER_OF_TWO(k)), SET1(EXP_UNSCALE));
}

/* exp(x - max) without rounding the difference. */
FN_INLINE V NAME(exp_below)(V x, V max) {
    V d = SUB(x, max), t = SUB(d, x);
    V lo = SUB(SUB(x, SUB(d, t)), ADD(max, t));
    return NAME(exp)(d, lo);
}

/* max of a row, NaN passed over: it comes back through the sum. */
FN_INLINE T NAME(row_max)(const S *x, ptrdiff_t len) {
    V m = SET1((T)-INFINITY), m1 = m, m2 = m, m3 = m; /* four, because each waits for its last */
    ptrdiff_t i = 0;
    for (; i <= len - 4 * LANES; i += 4 * LANES) {
        m = AT_LEAST(m, LOAD(x + i));
        m1 = AT_LEAST(m1, LOAD(x + i + LANES));
        m2 = AT_LEAST(m2, LOAD(x + i + 2 * LANES));
        m3 = AT_LEAST(m3, LOAD(x + i + 3 * LANES));
    }
    for (; i <= len - LANES; i += LANES) m = AT_LEAST(m, LOAD(x + i));
    if (i < len) m1 = AT_LEAST(m1, FIRST_OR(LOAD_N(x + i, len - i), m1, len - i));
    T t[LANES];
    STORE_T(t, AT_LEAST(AT_LEAST(m, m1), AT_LEAST(m2, m3)));
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int k = 0; k < n; k++) t[k] = t[k] < t[k + n] ? t[k + n] : t[k];
    return t[0];
}

/* The row's maximum, and log Σexp(x - max). With y (not for half types) exp(x - max) is left there. */
FN_INLINE void NAME(row_lse)(const S *x, S *y, ptrdiff_t len, T *max, double *sum) {
    T top = NAME(row_max)(x, len);
    V m = SET1(top);
    ACC acc = ACC_ZERO();
    ptrdiff_t i = 0;
    for (; i <= len - 4 * LANES; i += 4 * LANES) {
        V e0 = NAME(exp_below)(LOAD(x + i), m), e1 = NAME(exp_below)(LOAD(x + i + LANES), m);
        V e2 = NAME(exp_below)(LOAD(x + i + 2 * LANES), m), e3 = NAME(exp_below)(LOAD(x + i + 3 * LANES), m);
        if (y) { STORE(y + i, e0); STORE(y + i + LANES, e1); STORE(y + i + 2 * LANES, e2); STORE(y + i + 3 * LANES, e3); }
        acc = ACC_ADD4(acc, WIDE(e0), WIDE(e1), WIDE(e2), WIDE(e3)); /* in double: a small cost is the log of 1 and a little */
    }
    for (; i < len; i += LANES) {
        ptrdiff_t n = len - i < LANES ? len - i : LANES;
        V e = NAME(exp_below)(NAME(col_load)(x + i, n), m);
        if (n < LANES) { e = FIRST(e, n); if (y) STORE_N(y + i, e, n); } else if (y) STORE(y + i, e);
        acc = ACC_ADD(acc, WIDE(e));
    }
    fn_dd s = ACC_SUM(acc);
    *max = top;
    *sum = s.hi + s.lo;
}

FN_OUTLINE void NAME(softmax)(const void *xv, void *yv, ptrdiff_t rows, ptrdiff_t len, int logarithm) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        const S *x = (const S *)xv + r * len;
        S *y = (S *)yv + r * len;
        T top;
        double sum;
        ptrdiff_t i = 0;
        if (logarithm) {
            NAME(row_lse)(x, NULL, len, &top, &sum);
            double lse = fn_log(sum);
            T hi = (T)lse;
            V m = SET1(top), h = SET1(hi), l = SET1((T)(lse - (double)hi));
            for (; i < len; i += LANES) {
                ptrdiff_t n = len - i < LANES ? len - i : LANES;
                V z = SUB(SUB(SUB(NAME(col_load)(x + i, n), m), h), l);
                if (n < LANES) STORE_N(y + i, z, n); else STORE(y + i, z);
            }
        } else if (sizeof(S) >= sizeof(T)) {
            NAME(row_lse)(x, y, len, &top, &sum);
            V scale = SET1((T)(1 / sum));
            for (; i <= len - LANES; i += LANES) STORE(y + i, MUL(LOAD(y + i), scale));
            if (i < len) STORE_N(y + i, MUL(LOAD_N(y + i, len - i), scale), len - i);
        } else { /* a half type cannot hold exp(x - max): compute it again, and round once */
            NAME(row_lse)(x, NULL, len, &top, &sum);
            V scale = SET1((T)(1 / sum)), m = SET1(top);
            for (; i < len; i += LANES) {
                ptrdiff_t n = len - i < LANES ? len - i : LANES;
                V z = MUL(NAME(exp_below)(NAME(col_load)(x + i, n), m), scale);
                if (n < LANES) STORE_N(y + i, z, n); else STORE(y + i, z);
            }
        }
    }
}

/* softmax: dx = y·(dy - Σdy·y); log-softmax: dx = dy - exp(y)·Σdy. */
FN_OUTLINE void NAME(softmax_grad)(const void *dyv, const void *yv, void *dxv, ptrdiff_t rows, ptrdiff_t len, int logarithm) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        const S *dy = (const S *)dyv + r * len, *y = (const S *)yv + r * len;
        S *dx = (S *)dxv + r * len;
        ACC acc = ACC_ZERO();
        ptrdiff_t i = 0;
        for (; i < len; i += LANES) {
            ptrdiff_t n = len - i < LANES ? len - i : LANES;
            V g = NAME(col_load)(dy + i, n);
            acc = ACC_ADD(acc, WIDE(logarithm ? g : MUL(g, NAME(col_load)(y + i, n))));
        }
        fn_dd s = ACC_SUM(acc);
        V sum = SET1((T)(s.hi + s.lo));
        for (i = 0; i < len; i += LANES) {
            ptrdiff_t n = len - i < LANES ? len - i : LANES;
            V g = NAME(col_load)(dy + i, n), yi = NAME(col_load)(y + i, n);
            V z = logarithm ? SUB(g, MUL(NAME(exp)(yi, SET1(0)), sum)) : MUL(yi, SUB(g, sum));
            if (n < LANES) STORE_N(dx + i, z, n); else STORE(dx + i, z);
        }
    }
}

/* out = max, log Σ, Σ w·(x - max - log Σ), Σ with Σ = Σexp(x - max): x - max - log Σ is the log-likelihood. */
FN_OUTLINE void NAME(lse)(const void *xv, ptrdiff_t len, const double *weight, double out[4]) {
    const S *x = xv;
    T top;
    double sum;
    NAME(row_lse)(x, NULL, len, &top, &sum);
    out[0] = (double)top;
    out[1] = fn_log(sum);
    out[3] = sum;
    out[2] = 0;
    if (weight)
        for (ptrdiff_t i = 0; i < len; i++) out[2] += weight[i] * ((TO_DOUBLE(x[i]) - out[0]) - out[1]);
}

/* dx = a·p - c·weight, with b less at `target`; p = exp(x - max)/sum. */
FN_OUTLINE void NAME(cross_entropy_grad)(const void *xv, void *dxv, ptrdiff_t len, double max, double sum, double a, double c,
                                         const double *weight, ptrdiff_t target, double b) {
    const S *x = xv;
    S *dx = dxv;
    V m = SET1((T)max), scale = SET1((T)(a / sum));
    for (ptrdiff_t i = 0; i < len; i += LANES) {
        ptrdiff_t n = len - i < LANES ? len - i : LANES;
        V z = MUL(NAME(exp_below)(NAME(col_load)(x + i, n), m), scale);
        if (weight || (target >= i && target < i + n)) {
            T t[LANES];
            STORE_T(t, z);
            if (weight) for (ptrdiff_t k = 0; k < n; k++) t[k] -= (T)(c * weight[i + k]);
            if (target >= i && target < i + n) t[target - i] -= (T)b;
            z = LOAD_T(t);
        }
        if (n < LANES) STORE_N(dx + i, z, n); else STORE(dx + i, z);
    }
}
