/* Cross-entropy of a row and its gradient, without the probabilities in between.

   Included once per (storage S, arithmetic T). */

/* out = max, log Σ, Σ w·(x - max - log Σ), Σ with Σ = Σexp(x - max): x - max - log Σ is the log-likelihood. */
FN_OUTLINE void NAME(lse)(const void *xv, ptrdiff_t len, const double *weight, double out[4]) {
    const S *x = xv;
    T top = NAME(row_max)(x, len);
    NAME(pivot) p = NAME(pivot_of)(top);
    out[0] = (double)top;
    out[3] = NAME(exp_sum)(x, NULL, len, &p);
    out[1] = fn_log(out[3]);
    out[2] = 0;
    if (weight)
        for (ptrdiff_t i = 0; i < len; i++) out[2] += weight[i] * ((TO_DOUBLE(x[i]) - out[0]) - out[1]);
}

/* Four vectors of the next function's. */
FN_INLINE void NAME(cross_entropy_some)(V *e, const S *x, ptrdiff_t left, ptrdiff_t len, const NAME(pivot) *p, V scale, int stream) {
    NAME(exp_load)(e, x, left, p);
    if (stream) FETCH_L1(x + EXP_SOON, EXP_AT_ONCE * LANES); else NAME(exp_fetch)(x, len);
    NAME(exp_some)(e, p, EXP_AT_ONCE);
    EACH_OF(EXP_AT_ONCE, k) e[k] = MUL(LOWERED(e[k]), scale); /* an exp of 0 remains 0 */
}
/* dx = exp(x - max)·scale, with b less at `target`. */
FN_INLINE void NAME(cross_entropy_row)(const S *x, S *dx, ptrdiff_t len, const NAME(pivot) *p, V scale, ptrdiff_t target, T b, int stream) {
    const ptrdiff_t step = EXP_AT_ONCE * LANES, first = NAME(exp_head)(dx, stream);
    V e[EXP_AT_ONCE];
    if (!stream && sizeof(S) == sizeof(T)) { /* target's number comes back as it was */
        for (ptrdiff_t i = 0; i < len; i += step) {
            NAME(cross_entropy_some)(e, x + i, len - i, len, p, scale, 0);
            NAME(exp_store)(e, dx + i, len - i);
        }
        if (target >= 0) ((T *)(void *)dx)[target] -= b;
        return;
    }
    for (ptrdiff_t i = 0, n = first ? first : step; i < len;) {
        ptrdiff_t stop = target < i ? len : n < step && target >= n ? n : i + (target - i) / n * n; /* where target's vectors begin */
        for (; i < stop; i += n, n = step) {
            ptrdiff_t left = n < step ? n : len - i;
            NAME(cross_entropy_some)(e, x + i, left, len, p, scale, stream);
            NAME(exp_put)(e, dx + i, left, stream);
        }
        if (i >= len || target < i || target >= i + n) continue;
        T less[EXP_AT_ONCE * LANES] = {0};
        ptrdiff_t left = n < step ? n : len - i;
        less[target - i] = b;
        NAME(cross_entropy_some)(e, x + i, left, len, p, scale, stream);
        EACH_OF(EXP_AT_ONCE, k) e[k] = SUB(e[k], LOAD_T(less + k * LANES));
        NAME(exp_put)(e, dx + i, left, stream);
        i += n;
        n = step;
    }
}

/* dx = a·p - c·weight, with b less at `target`; p = exp(x - max)/sum. */
FN_OUTLINE void NAME(cross_entropy_grad)(const void *xv, void *dxv, ptrdiff_t len, double max, double sum, double a, double c,
                                         const double *weight, ptrdiff_t target, double b, int flags) {
    const S *x = xv;
    S *dx = dxv;
    NAME(pivot) p = NAME(pivot_of)((T)max);
    V scale = SET1((T)(a / sum));
    if (!weight) {
        if (!NAME(exps_stream)(len, flags)) { NAME(cross_entropy_row)(x, dx, len, &p, scale, target, (T)b, 0); return; }
        NAME(fetch_shared)(dx + len); /* as in softmax_grad */
        NAME(cross_entropy_row)(x, dx, len, &p, scale, target, (T)b, 1);
        return;
    }
    for (ptrdiff_t i = 0; i < len; i += LANES) {
        ptrdiff_t n = len - i < LANES ? len - i : LANES;
        T t[LANES];
        STORE_T(t, MUL(NAME(exp_one)(NAME(col_load)(x + i, n), &p), scale));
        for (ptrdiff_t k = 0; k < n; k++) t[k] -= (T)(c * weight[i + k]);
        if (i <= target && target < i + n) t[target - i] -= (T)b;
        if (n < LANES) STORE_N(dx + i, LOAD_T(t), n); else STORE(dx + i, LOAD_T(t));
    }
}
