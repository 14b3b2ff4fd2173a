/* Softmax, log-softmax and the gradients of both and of cross-entropy, a row at a time.

   Included once per (storage S, arithmetic T). exp is our own, so that it has the same bits everywhere: n = round(x·log2 e),
   r = x - n·ln 2 in two steps (Cody and Waite), a polynomial in r by Horner's rule with fused multiply-adds, times 2^n. It is kept
   EXP_RAISED times too large, so that nothing is subnormal before the last product, which rounds it once more. Near zero four vectors take
   every step side by side (HOLD keeps the order): one alone is a chain of steps, each waiting for the last. */

#define EXP_AT_ONCE 4
#define LOWERED(v) MUL(v, SET1(1 / EXP_RAISED))

/* x[k] = exp(r[k])·2^n·EXP_RAISED, |r| ≤ ln 2 / 2, from c = n + EXP_CARRIER. */
FN_INLINE void NAME(exp_rest)(V *x, V *r, V *c, int count) {
    V p[EXP_AT_ONCE];
    EACH_OF(count, k) p[k] = SET1(exp_terms[0]);
    _Pragma("GCC unroll 12") for (int i = 1; i < EXP_TERMS; i++) EACH_OF(count, k) p[k] = HOLD(MUL_ADD(SET1(exp_terms[i]), p[k], r[k]));
    EACH_OF(count, k) p[k] = HOLD(MUL_ADD(SET1(1), p[k], r[k]));
    EACH_OF(count, k) c[k] = POWER(c[k]);
    EACH_OF(count, k) r[k] = HOLD(MUL(r[k], c[k]));
    EACH_OF(count, k) x[k] = MUL_ADD(c[k], p[k], r[k]);
}

/* exp(hi + lo)·EXP_RAISED for hi ≤ 0, |lo| ≤ ulp(hi)/2; NaN gives NaN. */
FN_INLINE V NAME(exp)(V hi, V lo) {
    V small = SET1(EXP_SMALLEST), carrier = SET1(EXP_CARRIER);
    lo = ZERO_BELOW(hi, small, lo);
    hi = AT_LEAST(hi, small);
    V c = MUL_ADD(carrier, hi, SET1(LOG2_E)), n = SUB(c, carrier);
    V r = ADD(MUL_ADD(ADD_EXACT(hi, n, SET1(-LN2_HI)), n, SET1(-LN2_LO)), lo);
    NAME(exp_rest)(&hi, &r, &c, 1);
    return hi;
}

/* exp(x - max) of a row. The difference must not be rounded: that would cost |x - max|/2 ULP. Near zero it serves to choose n alone:
   x and max are each reduced, by m = n + N and by N = round(max·log2 e) times ln 2, to numbers below 1 whose difference is r. Farther
   away what the difference loses is kept. x = max gives 1 exactly. Below `least` exp would be rounded to 0; c - zero = m;
   rest = max - N·ln 2. */
typedef struct { V max, least, zero, rest; int near; } NAME(pivot);

FN_INLINE NAME(pivot) NAME(pivot_of)(T max) {
    V top = SET1(max), carrier = SET1(EXP_CARRIER), n = SUB(MUL_ADD(carrier, top, SET1(LOG2_E)), carrier);
    NAME(pivot) p = {top, ADD(top, SET1(EXP_SMALLEST)), SUB(carrier, n),
                     MUL_ADD(ADD_EXACT(top, n, SET1(-LN2_HI)), n, SET1(-LN2_LO)), max >= -256 && max <= 256};
    return p;
}

/* x[k] becomes exp(x[k] - max)·EXP_RAISED. */
FN_INLINE void NAME(exp_near)(V *x, const NAME(pivot) *p, int count) {
    V c[EXP_AT_ONCE], m[EXP_AT_ONCE], r[EXP_AT_ONCE];
    EACH_OF(count, k) x[k] = HOLD(AT_LEAST(x[k], p->least));
    EACH_OF(count, k) c[k] = HOLD(MUL_ADD(SET1(EXP_CARRIER), SUB(x[k], p->max), SET1(LOG2_E)));
    EACH_OF(count, k) m[k] = HOLD(SUB(c[k], p->zero));
    EACH_OF(count, k) r[k] = HOLD(ADD_EXACT(x[k], m[k], SET1(-LN2_HI)));
    EACH_OF(count, k) r[k] = HOLD(SUB(MUL_ADD(r[k], m[k], SET1(-LN2_LO)), p->rest));
    NAME(exp_rest)(x, r, c, count);
}
FN_OUTLINE V NAME(exp_far)(V x, V max) {
    V d = SUB(x, max), t = SUB(d, x);
    return NAME(exp)(d, SUB(SUB(x, SUB(d, t)), ADD(max, t)));
}
FN_INLINE void NAME(exp_some)(V *x, const NAME(pivot) *p, int count) {
    if (FN_LIKELY(p->near)) NAME(exp_near)(x, p, count);
    else EACH_OF(count, k) x[k] = NAME(exp_far)(x[k], p->max);
}
FN_INLINE V NAME(exp_one)(V x, const NAME(pivot) *p) {
    NAME(exp_some)(&x, p, 1);
    return LOWERED(x);
}

/* Four vectors of a row of which `left` elements are left, and the way back. A vector beyond the end is max, a lane beyond it
   0, whose exp is not used. */
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

/* The same of an output, streamed or not. */
FN_INLINE void NAME(exp_put)(const V *e, S *y, ptrdiff_t left, int stream) {
    if (stream && left >= EXP_AT_ONCE * LANES) EACH_OF(EXP_AT_ONCE, k) STREAM(y + k * LANES, e[k]);
    else if (stream && LANES == LINE) EACH_OF(EXP_AT_ONCE, k) { /* what remains of the last line is stored */
        ptrdiff_t n = NAME(exp_lanes)(left, k);
        if (n == LANES) STREAM(y + k * LANES, e[k]); else if (n > 0) STORE_N(y + k * LANES, e[k], n);
    } else NAME(exp_store)(e, y, left);
}
/* Of a row of an output, how many elements come before four vectors at a time: up to the first whole line, if lines matter. */
FN_INLINE ptrdiff_t NAME(exp_head)(const S *y, int stream) {
    ptrdiff_t in = stream ? NAME(into_line)(y) : 0;
    return in ? LINE - in : 0;
}

/* max of a row, NaN passed over: it comes back through the sum. Four vectors, because each waits for its last. */
FN_INLINE void NAME(max4)(V *m, const S *x) { EACH_OF(4, k) m[k] = AT_LEAST(m[k], LOAD(x + k * LANES)); }
FN_INLINE T NAME(max_of)(V *m, const S *x, ptrdiff_t len) { /* and of `len` more */
    ptrdiff_t i = 0;
    for (; i <= len - LANES; i += LANES) m[0] = AT_LEAST(m[0], LOAD(x + i));
    if (i < len) m[1] = AT_LEAST(m[1], FIRST_OR(LOAD_N(x + i, len - i), m[1], len - i));
    T t[LANES];
    STORE_T(t, AT_LEAST(AT_LEAST(m[0], m[1]), AT_LEAST(m[2], m[3])));
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int k = 0; k < n; k++) t[k] = t[k] < t[k + n] ? t[k + n] : t[k];
    return t[0];
}
FN_OUTLINE T NAME(row_max)(const S *x, ptrdiff_t len) {
    V m[4];
    ptrdiff_t i = 0;
    EACH_OF(4, k) m[k] = SET1((T)-INFINITY);
    for (; i <= len - 4 * LANES; i += 4 * LANES) NAME(max4)(m, x + i);
    return NAME(max_of)(m, x + i, len - i);
}

#define EXP_SOON (4096 / (ptrdiff_t)sizeof(S)) /* how far ahead into L1, where rows are streamed (into L2: 1.15 of the time) */

/* What lies `ahead` of four vectors is fetched into L2: exp keeps the processor busy for as long as the next row takes to come. (Rows
   of 1000 beyond the cache take three quarters of the time for it.) */
FN_INLINE void NAME(exp_fetch)(const S *x, ptrdiff_t ahead) { EACH_OF(EXP_AT_ONCE, k) fn_prefetch(x + ahead + k * LANES); }

/* exps of four vectors of a row of which `left` elements are left, added to their sum and with `to` kept there. `fine`: every one is added
   in double, because a small cost is the log of 1 and a little; otherwise four are first added in T. */
FN_INLINE ACC NAME(exps_add)(ACC acc, const S *x, T *to, ptrdiff_t left, const NAME(pivot) *p, int fine) {
    V e[EXP_AT_ONCE];
    NAME(exp_load)(e, x, left, p);
    NAME(exp_some)(e, p, EXP_AT_ONCE);
    if (left < EXP_AT_ONCE * LANES) NAME(exp_clear)(e, left);
    if (to) NAME(exp_keep)(e, to, left);
    if (fine || FN_UNLIKELY(!p->near)) return ACC_ADD4(acc, WIDE(e[0]), WIDE(e[1]), WIDE(e[2]), WIDE(e[3]));
    return ACC_ADD(acc, WIDE(ADD(ADD(e[0], e[1]), ADD(e[2], e[3]))));
}
FN_INLINE double NAME(exps_added)(ACC acc) { fn_dd s = ACC_SUM(acc); return (s.hi + s.lo) / EXP_RAISED; }

/* Σexp(x - max), whose terms are left at `to`, too large still. */
FN_INLINE double NAME(row_exps)(const S *x, T *to, const S *soon, ptrdiff_t len, const NAME(pivot) *p, int fine) {
    ACC acc = ACC_ZERO();
    for (ptrdiff_t i = 0; i < len; i += EXP_AT_ONCE * LANES) {
        NAME(exp_fetch)(x + i, len);
        if (soon) FETCH_L1(soon + i, EXP_AT_ONCE * LANES);
        acc = NAME(exps_add)(acc, x + i, to ? to + i : NULL, len - i, p, fine);
    }
    return NAME(exps_added)(acc);
}
FN_OUTLINE double NAME(exps)(const S *x, T *to, ptrdiff_t len, const NAME(pivot) *p) { return NAME(row_exps)(x, to, NULL, len, p, 0); }
/* What lies at `soon` (or NULL) is fetched meanwhile: the row's output, whose lines would be waited for. */
FN_OUTLINE double NAME(exp_sum)(const S *x, const S *soon, ptrdiff_t len, const NAME(pivot) *p) {
    return NAME(row_exps)(x, NULL, soon, len, p, 1);
}

/* y = exp(x - max)·factor of exps that are too large still. */
FN_OUTLINE void NAME(exps_scaled)(const S *x, S *y, ptrdiff_t len, const NAME(pivot) *p, T factor) {
    V scale = SET1(factor);
    for (ptrdiff_t i = 0; i < len; i += EXP_AT_ONCE * LANES) {
        V e[EXP_AT_ONCE];
        NAME(exp_load)(e, x + i, len - i, p);
        NAME(exp_fetch)(x + i, len);
        NAME(exp_some)(e, p, EXP_AT_ONCE);
        EACH_OF(EXP_AT_ONCE, k) e[k] = MUL(e[k], scale);
        NAME(exp_store)(e, y + i, len - i);
    }
}

/* Rows that are streamed beyond the cache (0.8 of the time, where what is read is fetched meanwhile). */
FN_INLINE int NAME(softmax_streams)(ptrdiff_t len, int flags) { return flags & FN_STREAM && len >= 32 * LINE; }
/* The same where exps are computed meanwhile. (Streams of whole lines between doubles in halves took 1.8 times as long on an Intel.) */
FN_INLINE int NAME(exps_stream)(ptrdiff_t len, int flags) {
    return NAME(softmax_streams)(len, flags) && !(sizeof(T) == 8 && FN_LEVEL == 3 && FN_NATIVE_D == 32);
}
/* Of a row that waits for its sum. */
FN_INLINE ptrdiff_t NAME(room_size)(ptrdiff_t len) { return ((len * (ptrdiff_t)sizeof(T) + 255) / 256 * 256 + 64) / (ptrdiff_t)sizeof(T); }

/* OUT over a row of an output, streamed or not, four vectors at a time. */
#define EACH_IN_OUTPUT(to, len, stream)                                                                                  \
    do {                                                                                                                 \
        S *into = (to);                                                                                                  \
        if (stream) EACH_IN_ROW_BY(4, into, len, 1, FULL_STREAM, PART);                                                  \
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

/* A row whose sum is known: y = e·hi of its exps or, of log-softmax, x - hi - lo. Streamed rows meet within cache lines; what the
   one `before` leaves of such a line waits in the seam, as this one's does for the one `after`. */
typedef struct { const T *e; const S *x; S *y; V hi, lo; S *seam; int before, after; } NAME(finished);
FN_INLINE V NAME(finish)(const NAME(finished) *f, ptrdiff_t j, ptrdiff_t n, int logarithm) {
    if (logarithm) return SUB(SUB(NAME(col_load)(f->x + j, n), f->hi), f->lo);
    return MUL(sizeof(S) == sizeof(T) ? NAME(col_load)((const S *)f->e + j, n) : LOAD_T(f->e + j), f->hi);
}

#define OUT(j, n) NAME(finish)(f, from + (j), n, logarithm)
/* Up to the first whole line, if lines matter: how many elements. */
FN_INLINE ptrdiff_t NAME(finish_head)(const NAME(finished) *f, int logarithm, int stream) {
    ptrdiff_t from = 0, in = stream ? NAME(into_line)(f->y) : 0, first = in ? LINE - in : 0;
    EACH_IN_OUTPUT(f->before ? f->seam + in : f->y, first, 0);
    if (first && f->before) fn_stream_line(f->y - in, f->seam);
    return first;
}
FN_INLINE void NAME(finish_rest)(const NAME(finished) *f, ptrdiff_t from, ptrdiff_t len, int logarithm, int stream) {
    ptrdiff_t last = stream && f->after ? NAME(into_line)(f->y + len) : 0;
    EACH_IN_OUTPUT(f->y + from, len - last - from, stream);
    from = len - last;
    EACH_IN_OUTPUT(f->seam, last, 0);
}
/* What a row's maximum and sum make of it. */
FN_INLINE NAME(finished) NAME(finished_of)(const S *x, S *y, const T *e, T max, double sum, int logarithm) {
    NAME(finished) f = {e, x, y, SET1(0), SET1(0), NULL, 0, 0};
    if (logarithm) { /* max + log Σ as hi + lo: x - hi is exact where it is small */
        fn_dd lse = fn_two_sum((double)max, fn_log(sum));
        T high = (T)lse.hi;
        f.hi = SET1(high);
        f.lo = SET1((T)((lse.hi - (double)high) + lse.lo));
    } else f.hi = SET1((T)(1 / (EXP_RAISED * sum)));
    return f;
}

/* Short rows, one after the other. The next maximum is looked for before a row is written, so that nobody waits for maximum, sum and
   inverse (0.9 of the time). Without room exps of a half type are computed again. */
FN_INLINE void NAME(softmax_rows)(const S *x, S *y, ptrdiff_t rows, ptrdiff_t len, T *room, int logarithm) {
    int half = sizeof(S) < sizeof(T);
    T next = NAME(row_max)(x, len), max, *e = half ? room : (T *)y;
    for (; rows > 0; rows--, x += len, y += len) {
        NAME(pivot) p = NAME(pivot_of)(max = next);
        double sum = logarithm ? NAME(exp_sum)(x, y, len, &p) : NAME(exps)(x, e, len, &p);
        if (rows > 1) next = NAME(row_max)(x + len, len);
        NAME(finished) f = NAME(finished_of)(x, y, e, max, sum, logarithm);
        if (half && !room && !logarithm) NAME(exps_scaled)(x, y, len, &p, (T)(1 / (EXP_RAISED * sum)));
        else NAME(finish_rest)(&f, 0, len, logarithm, 0);
        if (!half) e += len;
    }
}

/* Long rows: a finished one is written while the next one's exps are found, and the maximum of the one after that: each alone would wait,
   for memory, for the sum or for the maximum. (Rows of 1000 take 0.8 of the time beyond the cache and 0.9 in it, those of 256 1.15.) */
FN_INLINE double NAME(softmax_step)(const NAME(finished) *f, const S *x, T *to, const NAME(pivot) *p, const S *later, T *max,
                                    ptrdiff_t len, int logarithm, int stream) {
    const ptrdiff_t step = EXP_AT_ONCE * LANES, first = NAME(finish_head)(f, logarithm, stream);
    ACC acc = ACC_ZERO();
    V m[4];
    EACH_OF(4, k) m[k] = SET1((T)-INFINITY);
    ptrdiff_t i = 0;
    for (; i <= len - first - step; i += step) {
        ptrdiff_t from = first + i, j = 0;
        S *into = f->y + from;
        if (stream) FETCH_L1(later + i + EXP_SOON, step);
        acc = NAME(exps_add)(acc, x + i, to ? to + i : NULL, step, p, logarithm);
        NAME(max4)(m, later + i);
        if (stream) FULL_STREAM(4 * LANES); else FULL_STORE(4 * LANES);
    }
    *max = NAME(max_of)(m, later + i, len - i);
    for (ptrdiff_t j = i; j < len; j += step) acc = NAME(exps_add)(acc, x + j, to ? to + j : NULL, len - j, p, logarithm);
    double sum = NAME(exps_added)(acc);
    NAME(finish_rest)(f, first + i, len, logarithm, stream); /* last, while maximum and sum come out of their vectors */
    return sum;
}
#undef OUT
FN_OUTLINE double NAME(softmax_next)(const NAME(finished) *f, const S *x, T *to, const NAME(pivot) *p, const S *later, T *max,
                                     ptrdiff_t len, int logarithm, int stream) {
    if (logarithm) return NAME(softmax_step)(f, x, NULL, p, later, max, len, 1, stream);
    return NAME(softmax_step)(f, x, to, p, later, max, len, 0, stream);
}

FN_OUTLINE void NAME(softmax)(const void *xv, void *yv, ptrdiff_t rows, ptrdiff_t len, int logarithm, int flags, void *roomv) {
    const S *x = xv;
    S *y = yv, seam[LINE] __attribute__((aligned(64)));
    T *room = roomv, *other = room ? room + NAME(room_size)(len) : NULL;
    int half = sizeof(S) < sizeof(T), stream = NAME(softmax_streams)(len, flags) && (logarithm || room);
    if (rows == 0) return;
    if (len < 32 * LINE || (half && !room && !logarithm)) {
        if (logarithm) NAME(softmax_rows)(x, y, rows, len, room, 1);
        else NAME(softmax_rows)(x, y, rows, len, room, 0);
        return;
    }
    if (!half && !stream) room = NULL;
    T max = NAME(row_max)(x, len), *e = room ? room : half ? NULL : (T *)y;
    NAME(pivot) p = NAME(pivot_of)(max);
    double sum = logarithm ? NAME(exp_sum)(x, NULL, len, &p) : NAME(exps)(x, e, len, &p);
    T next = rows > 1 ? NAME(row_max)(x + len, len) : max;
    for (ptrdiff_t left = rows; left > 0; left--, x += len, y += len) {
        NAME(finished) f = NAME(finished_of)(x, y, e, max, sum, logarithm);
        f.seam = seam;
        f.before = left < rows;
        f.after = left > 1;
        if (left == 1) {
            NAME(finish_rest)(&f, NAME(finish_head)(&f, logarithm, stream), len, logarithm, stream);
            break;
        }
        if (!logarithm) e = !room ? e + len : e == room ? other : room;
        p = NAME(pivot_of)(max = next);
        sum = NAME(softmax_next)(&f, x + len, e, &p, left > 2 ? x + 2 * len : x + len, &next, len, logarithm, stream);
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
   (Of rows of 1000 log-softmax takes 0.7 of the time beyond the cache and 0.95 in it, softmax 0.8 and 0.93.) */
FN_INLINE T NAME(softmax_grad_row)(const S *dy, const S *y, S *dx, ptrdiff_t len, V sum, const S *dy_next, const S *y_next,
                                   int logarithm, int stream) {
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
    NAME(row_dot) none = {ACC_ZERO(), ACC_ZERO()};
    T sum = logarithm ? NAME(dot_rest)(none, dy, y, len, 1) : NAME(dot_rest)(none, dy, y, len, 0);
    for (ptrdiff_t left = rows; left > 0; left--, dy += len, y += len, dx += len) {
        if (stream) NAME(fetch_shared)(dx + len); /* written in two parts; not fetched, it costs a dozen others */
#define BODY(logarithm, stream) \
    sum = NAME(softmax_grad_row)(dy, y, dx, len, SET1(sum), left > 1 ? dy + len : NULL, y + len, logarithm, stream)
        if (logarithm) { if (stream) BODY(1, 1); else BODY(1, 0); }
        else if (stream) BODY(0, 1);
        else BODY(0, 0);
#undef BODY
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
