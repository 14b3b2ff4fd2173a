/* Softmax, log-softmax and the gradients of both and of cross-entropy, a row at a time.

   Included once per (storage S, arithmetic T). exp is our own, so that it has the same bits everywhere: n = round(x·log2 e),
   r = x - n·ln 2 in two steps (Cody and Waite), a polynomial in r by Horner's rule with fused multiply-adds, and a
   scaling by 2^n that rounds once, where the result is subnormal. Near zero four vectors take every step side by side (HOLD keeps
   the order): one alone is a chain of steps, each waiting for the last. Of floats below 1.3 ULP. */

#define EXP_AT_ONCE 4

/* x[k] = exp(r[k])·2^n, |r| ≤ ln 2 / 2, from c = n + CARRIER. */
FN_INLINE void NAME(exp_rest)(V *x, const V *r, const V *c, int count) {
    V p[EXP_AT_ONCE];
    EACH_OF(count, k) p[k] = SET1(exp_terms[0]);
    _Pragma("GCC unroll 12") for (int i = 1; i < EXP_TERMS; i++) EACH_OF(count, k) p[k] = HOLD(MUL_ADD(SET1(exp_terms[i]), p[k], r[k]));
    EACH_OF(count, k) p[k] = HOLD(MUL_ADD(SET1(1), p[k], r[k]));
    EACH_OF(count, k) x[k] = SCALED(MUL_ADD(SET1(1), p[k], r[k]), c[k]);
}

/* exp(hi + lo) for hi ≤ 0, |lo| ≤ ulp(hi)/2; NaN gives NaN. */
FN_INLINE V NAME(exp)(V hi, V lo) {
    V small = SET1(EXP_SMALLEST);
    lo = ZERO_BELOW(hi, small, lo);
    hi = AT_LEAST(hi, small);
    V c = NEAREST(MUL(hi, SET1(LOG2_E))), n = SUB(c, SET1(CARRIER));
    V r = ADD(MUL_ADD(ADD_EXACT(hi, n, SET1(-LN2_HI)), n, SET1(-LN2_LO)), lo);
    NAME(exp_rest)(&hi, &r, &c, 1);
    return hi;
}

/* exp(x - max) of a row. The difference must not be rounded: that would cost |x - max|/2 ULP. Near zero it serves to choose n alone:
   x and max are each reduced, by m = n + N and by N = round(max·log2 e) times ln 2, to numbers below 1 whose difference is r.
   x = max gives 1 exactly. exp is 0 below `least`; c - zero = m; rest = max - N·ln 2. */
typedef struct { V max, least, zero, rest; int near; } NAME(pivot);

FN_INLINE NAME(pivot) NAME(pivot_of)(T max) {
    V top = SET1(max), n = SUB(NEAREST(MUL(top, SET1(LOG2_E))), SET1(CARRIER));
    NAME(pivot) p = {top, ADD(top, SET1(EXP_SMALLEST)), SUB(SET1(CARRIER), n),
                     MUL_ADD(ADD_EXACT(top, n, SET1(-LN2_HI)), n, SET1(-LN2_LO)), max >= -256 && max <= 256};
    return p;
}

/* x[k] becomes exp(x[k] - max). */
FN_INLINE void NAME(exp_near)(V *x, const NAME(pivot) *p, int count) {
    V c[EXP_AT_ONCE], m[EXP_AT_ONCE], r[EXP_AT_ONCE];
    EACH_OF(count, k) x[k] = HOLD(AT_LEAST(x[k], p->least));
    EACH_OF(count, k) c[k] = HOLD(NEAREST(MUL(SUB(x[k], p->max), SET1(LOG2_E))));
    EACH_OF(count, k) m[k] = HOLD(SUB(c[k], p->zero));
    EACH_OF(count, k) r[k] = HOLD(ADD_EXACT(x[k], m[k], SET1(-LN2_HI)));
    EACH_OF(count, k) r[k] = HOLD(SUB(MUL_ADD(r[k], m[k], SET1(-LN2_LO)), p->rest));
    NAME(exp_rest)(x, r, c, count);
}

FN_INLINE void NAME(exp_far)(V *x, const NAME(pivot) *p, int count) {
    EACH_OF(count, k) {
        V d = SUB(x[k], p->max), t = SUB(d, x[k]);
        x[k] = NAME(exp)(d, SUB(SUB(x[k], SUB(d, t)), ADD(p->max, t)));
    }
}
FN_INLINE V NAME(exp_one)(V x, const NAME(pivot) *p) {
    if (p->near) NAME(exp_near)(&x, p, 1); else NAME(exp_far)(&x, p, 1);
    return x;
}

/* Four vectors of a row of which `left` elements are left, and the way back. A vector beyond the end is max, a lane beyond it 0,
   whose exp is not used. */
FN_INLINE ptrdiff_t NAME(exp_lanes)(ptrdiff_t left, int k) { left -= k * LANES; return left < 0 ? 0 : left < LANES ? left : LANES; }
FN_INLINE void NAME(exp_load)(V *e, const S *x, ptrdiff_t left, const NAME(pivot) *p) {
    if (FN_LIKELY(left >= EXP_AT_ONCE * LANES)) EACH_OF(EXP_AT_ONCE, k) e[k] = LOAD(x + k * LANES);
    else EACH_OF(EXP_AT_ONCE, k) {
        ptrdiff_t n = NAME(exp_lanes)(left, k);
        e[k] = n == LANES ? LOAD(x + k * LANES) : n > 0 ? LOAD_N(x + k * LANES, n) : p->max;
    }
}
FN_INLINE void NAME(exp_clear)(V *e, ptrdiff_t left) { EACH_OF(EXP_AT_ONCE, k) e[k] = FIRST(e[k], NAME(exp_lanes)(left, k)); }
FN_INLINE void NAME(exp_store)(const V *e, S *y, ptrdiff_t left) {
    if (FN_LIKELY(left >= EXP_AT_ONCE * LANES)) EACH_OF(EXP_AT_ONCE, k) STORE(y + k * LANES, e[k]);
    else EACH_OF(EXP_AT_ONCE, k) {
        ptrdiff_t n = NAME(exp_lanes)(left, k);
        if (n == LANES) STORE(y + k * LANES, e[k]); else if (n > 0) STORE_N(y + k * LANES, e[k], n);
    }
}

/* The same in T; of a half type to where there is room to spare. */
FN_INLINE void NAME(exp_keep)(const V *e, T *to, ptrdiff_t left) {
    if (sizeof(S) >= sizeof(T)) NAME(exp_store)(e, (S *)to, left);
    else EACH_OF(EXP_AT_ONCE, k) STORE_T(to + k * LANES, e[k]);
}

/* max of a row, NaN passed over: it comes back through the sum. */
FN_OUTLINE T NAME(row_max)(const S *x, ptrdiff_t len) {
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

/* What lies `ahead` of four vectors is fetched into L2: exp keeps the processor busy for as long as the next row takes to come. (Rows
   of 1000 beyond the cache take three quarters of the time for it.) */
FN_INLINE void NAME(exp_fetch)(const S *x, ptrdiff_t ahead) { EACH_OF(EXP_AT_ONCE, k) fn_prefetch(x + ahead + k * LANES); }

/* Σexp(x - max); with `to`, exp(x - max) is left there. `fine`: every one is added in double, because a small cost is the log of 1 and a
   little; otherwise four are first added in T. */
FN_INLINE double NAME(row_exp)(const S *x, T *to, const S *soon, ptrdiff_t len, const NAME(pivot) *p, int near, int fine) {
    ACC acc = ACC_ZERO();
    for (ptrdiff_t i = 0; i < len; i += EXP_AT_ONCE * LANES) {
        V e[EXP_AT_ONCE];
        NAME(exp_load)(e, x + i, len - i, p);
        NAME(exp_fetch)(x + i, len);
        if (soon) FETCH_L1(soon + i, EXP_AT_ONCE * LANES);
        if (near) NAME(exp_near)(e, p, EXP_AT_ONCE); else NAME(exp_far)(e, p, EXP_AT_ONCE);
        if (len - i < EXP_AT_ONCE * LANES) NAME(exp_clear)(e, len - i);
        if (to) NAME(exp_keep)(e, to + i, len - i);
        if (fine) acc = ACC_ADD4(acc, WIDE(e[0]), WIDE(e[1]), WIDE(e[2]), WIDE(e[3]));
        else acc = ACC_ADD(acc, WIDE(ADD(ADD(e[0], e[1]), ADD(e[2], e[3]))));
    }
    fn_dd s = ACC_SUM(acc);
    return s.hi + s.lo;
}
FN_OUTLINE double NAME(exps)(const S *x, T *to, ptrdiff_t len, const NAME(pivot) *p) {
    return p->near ? NAME(row_exp)(x, to, NULL, len, p, 1, 0) : NAME(row_exp)(x, to, NULL, len, p, 0, 1);
}
/* What lies at `soon` (or NULL) is fetched meanwhile: the row's output, whose lines would be waited for. */
FN_OUTLINE double NAME(exp_sum)(const S *x, const S *soon, ptrdiff_t len, const NAME(pivot) *p) {
    return p->near ? NAME(row_exp)(x, NULL, soon, len, p, 1, 1) : NAME(row_exp)(x, NULL, soon, len, p, 0, 1);
}

/* y = exp(x - max)·scale */
FN_OUTLINE void NAME(exps_scaled)(const S *x, S *y, ptrdiff_t len, const NAME(pivot) *p, T factor) {
    V scale = SET1(factor);
    for (ptrdiff_t i = 0; i < len; i += EXP_AT_ONCE * LANES) {
        V e[EXP_AT_ONCE];
        NAME(exp_load)(e, x + i, len - i, p);
        NAME(exp_fetch)(x + i, len);
        if (p->near) NAME(exp_near)(e, p, EXP_AT_ONCE); else NAME(exp_far)(e, p, EXP_AT_ONCE);
        EACH_OF(EXP_AT_ONCE, k) e[k] = MUL(e[k], scale);
        NAME(exp_store)(e, y + i, len - i);
    }
}

/* Rows that are streamed beyond the cache (0.8 of the time, where the next row is fetched meanwhile). The line that two rows share is
   written in two parts; it is fetched before, or else it costs as much as a dozen others. */
FN_INLINE int NAME(softmax_streams)(ptrdiff_t len, int flags) { return flags & FN_STREAM && len >= 32 * LINE; }

/* OUT over a row of an output, streamed or not. */
#define EACH_IN_OUTPUT(to, len, stream)                                                                                  \
    do {                                                                                                                 \
        S *into = (to);                                                                                                  \
        if (stream) { fn_prefetch_l1(into + (len)); EACH_IN_ROW_BY(4, into, len, 1, FULL_STREAM, PART); }                \
        else EACH_IN_ROW_BY(4, into, len, 0, FULL_STORE, PART);                                                          \
    } while (0)
#define FULL_TO(TO, n)                                                                                                   \
    do {                                                                                                                 \
        V z[4];                                                                                                          \
        EACH_OF((n) / LANES, k) z[k] = OUT(j + k * LANES, LANES);                                                        \
        EACH_OF((n) / LANES, k) TO(into + j + k * LANES, z[k]);                                                          \
    } while (0)
#define FULL_STREAM(n) FULL_TO(STREAM, n)
#define FULL_STORE(n) FULL_TO(STORE, n)
#define PART(n) STORE_N(into + j, OUT(j, n), n)

FN_OUTLINE void NAME(softmax)(const void *xv, void *yv, ptrdiff_t rows, ptrdiff_t len, int logarithm, int flags, void *roomv) {
    T *room = roomv;
    int half = sizeof(S) < sizeof(T), stream = NAME(softmax_streams)(len, flags) && (logarithm || room);
    T top, next = rows > 0 ? NAME(row_max)(xv, len) : 0;
    for (ptrdiff_t r = 0; r < rows; r++) {
        const S *x = (const S *)xv + r * len;
        S *y = (S *)yv + r * len;
        NAME(pivot) p = NAME(pivot_of)(top = next);
        /* Looked for before this row is written, so that nobody waits for the maximum, the sum and its inverse (0.9 of the time). */
#define NEXT_MAX() if (r + 1 < rows) next = NAME(row_max)(x + len, len)
        if (logarithm) {
            double sum = NAME(exp_sum)(x, stream ? NULL : y, len, &p);
            NEXT_MAX();
            /* max + log Σ as hi + lo: x - hi is exact where it is small */
            fn_dd lse = fn_two_sum((double)top, fn_log(sum));
            T high = (T)lse.hi;
            V hi = SET1(high), lo = SET1((T)((lse.hi - (double)high) + lse.lo));
#define OUT(j, n) SUB(SUB(NAME(col_load)(x + (j), n), hi), lo)
            EACH_IN_OUTPUT(y, len, stream);
#undef OUT
        } else if (room && (half || stream)) {
            double sum = NAME(exps)(x, room, len, &p);
            NEXT_MAX();
            V scale = SET1((T)(1 / sum));
#define OUT(j, n) MUL(LOAD_T(room + (j)), scale)
            EACH_IN_OUTPUT(y, len, stream);
#undef OUT
        } else if (half) { /* exps are computed again */
            double sum = NAME(exps)(x, NULL, len, &p);
            NEXT_MAX();
            NAME(exps_scaled)(x, y, len, &p, (T)(1 / sum));
        } else {
            double sum = NAME(exps)(x, (T *)y, len, &p);
            NEXT_MAX();
            V scale = SET1((T)(1 / sum));
#define OUT(j, n) MUL(NAME(col_load)(y + (j), n), scale)
            EACH_IN_OUTPUT(y, len, 0);
#undef OUT
        }
#undef NEXT_MAX
    }
    if (stream) fn_fence();
}

/* += dy·y, or of log-softmax dy, n elements; the products of floats are made in double, those of half types are exact in float. */
FN_INLINE ACC NAME(softmax_add)(ACC a, const S *dy, const S *y, ptrdiff_t n, int logarithm) {
    if (sizeof(S) == 4 && n == LANES) return logarithm ? ACC_ADD(a, WIDE_AT(dy)) : ACC_PRODUCT(a, WIDE_AT(dy), WIDE_AT(y));
    V g = NAME(col_load)(dy, n), p = logarithm ? g : NAME(col_load)(y, n);
    if (sizeof(S) == 4 && !logarithm) return ACC_PRODUCT(a, WIDE(g), WIDE(p));
    return ACC_ADD(a, WIDE(logarithm ? g : MUL(g, p)));
}
/* The sum over a row, in two parts, because each addition waits for the last one. */
FN_INLINE T NAME(softmax_dot)(const S *dy, const S *y, ptrdiff_t len, int logarithm) {
    ACC even = ACC_ZERO(), odd = ACC_ZERO();
    ptrdiff_t i = 0;
    for (; i <= len - 2 * LANES; i += 2 * LANES) {
        even = NAME(softmax_add)(even, dy + i, y + i, LANES, logarithm);
        odd = NAME(softmax_add)(odd, dy + i + LANES, y + i + LANES, LANES, logarithm);
    }
    for (ptrdiff_t n; i < len; i += n) {
        n = len - i < LANES ? len - i : LANES;
        even = NAME(softmax_add)(even, dy + i, y + i, n, logarithm);
    }
    fn_dd s = ACC_SUM(ACC_JOIN(even, odd));
    return (T)(s.hi + s.lo);
}

/* softmax: dx = y·(dy - Σdy·y), streamed beyond the cache; log-softmax: dx = dy - exp(y)·Σdy. */
FN_OUTLINE void NAME(softmax_grad)(const void *dyv, const void *yv, void *dxv, ptrdiff_t rows, ptrdiff_t len, int logarithm, int flags) {
    NAME(pivot) zero = NAME(pivot_of)(0);
    int stream = !logarithm && NAME(softmax_streams)(len, flags);
    for (ptrdiff_t r = 0; r < rows; r++) {
        const S *dy = (const S *)dyv + r * len, *y = (const S *)yv + r * len;
        S *dx = (S *)dxv + r * len;
        V sum = SET1(logarithm ? NAME(softmax_dot)(dy, y, len, 1) : NAME(softmax_dot)(dy, y, len, 0));
        ptrdiff_t i = 0;
        for (; logarithm && i < len; i += EXP_AT_ONCE * LANES) {
            V e[EXP_AT_ONCE], g[EXP_AT_ONCE];
            NAME(exp_load)(e, y + i, len - i, &zero);
            NAME(exp_load)(g, dy + i, len - i, &zero);
            NAME(exp_fetch)(y + i, len);
            NAME(exp_fetch)(dy + i, len);
            NAME(exp_near)(e, &zero, EXP_AT_ONCE);
            EACH_OF(EXP_AT_ONCE, k) e[k] = SUB(g[k], MUL(e[k], sum));
            NAME(exp_store)(e, dx + i, len - i);
        }
#define OUT(j, n) MUL(NAME(col_load)(y + (j), n), SUB(NAME(col_load)(dy + (j), n), sum))
        if (!logarithm) EACH_IN_OUTPUT(dx, len, stream);
#undef OUT
    }
    if (stream) fn_fence();
}
#undef PART
#undef FULL_STORE
#undef FULL_STREAM
#undef FULL_TO
#undef EACH_IN_OUTPUT

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

/* dx = a·p - c·weight, with b less at `target`; p = exp(x - max)/sum. */
FN_OUTLINE void NAME(cross_entropy_grad)(const void *xv, void *dxv, ptrdiff_t len, double max, double sum, double a, double c,
                                         const double *weight, ptrdiff_t target, double b) {
    const S *x = xv;
    S *dx = dxv;
    NAME(pivot) p = NAME(pivot_of)((T)max);
    V scale = SET1((T)(a / sum));
    T t[LANES];
    ptrdiff_t at = target >= 0 ? target / LANES * LANES : 0, n = len - at < LANES ? len - at : LANES;
    if (target >= 0) STORE_T(t, MUL(NAME(exp_one)(NAME(col_load)(x + at, n), &p), scale)); /* before dx, which may be x */
    if (!weight) NAME(exps_scaled)(x, dx, len, &p, (T)(a / sum));
    for (ptrdiff_t i = 0; weight && i < len; i += LANES) {
        ptrdiff_t m = len - i < LANES ? len - i : LANES;
        T u[LANES];
        STORE_T(u, MUL(NAME(exp_one)(NAME(col_load)(x + i, m), &p), scale));
        for (ptrdiff_t k = 0; k < m; k++) u[k] -= (T)(c * weight[i + k]);
        if (m < LANES) STORE_N(dx + i, LOAD_T(u), m); else STORE(dx + i, LOAD_T(u));
    }
    if (target < 0) return;
    if (weight) for (ptrdiff_t k = 0; k < n; k++) t[k] -= (T)(c * weight[at + k]);
    t[target - at] -= (T)b;
    if (n < LANES) STORE_N(dx + at, LOAD_T(t), n); else STORE(dx + at, LOAD_T(t));
}
