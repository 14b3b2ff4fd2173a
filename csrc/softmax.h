/* Softmax and log-softmax of rows: exps of x less the row's maximum, and their sum. A long row is written while the next one's exps are found.

   Included once per (storage S, arithmetic T). */

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

/* How many elements of x, the next row, exps go ahead of the finished one's y: a step, if x lies at most so far behind y in a page, where a load
   waits for a streamed store that seems to be to its place. (Rows of 1000, 96 bytes less than a page, take 0.83 of the time on a Zen 4.) */
FN_INLINE ptrdiff_t NAME(exps_lead)(const S *x, const S *y, ptrdiff_t len) {
    const ptrdiff_t step = EXP_AT_ONCE * LANES;
    return (((uintptr_t)y - (uintptr_t)x) & 4095) <= step * sizeof(S) && len > 2 * step ? step : 0;
}

/* Long rows: a finished one is written while the next one's exps are found, and the maximum of the one after that: each alone would wait,
   for memory, for the sum or for the maximum. (Rows of 1000 take 0.8 of the time beyond the cache and 0.9 in it, those of 256 1.15.) */
FN_INLINE double NAME(softmax_step)(const NAME(finished) *f, const S *x, T *to, const NAME(pivot) *p, const S *later, T *max,
                                    ptrdiff_t len, int logarithm, int stream) {
    const ptrdiff_t step = EXP_AT_ONCE * LANES, first = NAME(finish_head)(f, logarithm, stream);
    ACC acc = ACC_ZERO();
    V m[4];
    EACH_OF(4, k) m[k] = SET1((T)-INFINITY);
    ptrdiff_t i = 0, lead = stream ? NAME(exps_lead)(x, f->y + first, len - first) : 0;
    const ptrdiff_t end = len - step - (first > lead ? first - lead : 0);
#define EXPS                                                                                                             \
    if (stream) FETCH_L1(later + i + EXP_SOON, step);                                                                    \
    acc = NAME(exps_add)(acc, x + i, to ? to + i : NULL, step, p, logarithm);                                            \
    NAME(max4)(m, later + i);
    for (; i < lead; i += step) { EXPS }
    for (; i <= end; i += step) {
        ptrdiff_t from = first + i - lead, j = 0;
        S *into = f->y + from;
        EXPS
        if (stream) FULL_STREAM(4 * LANES); else FULL_STORE(4 * LANES);
    }
#undef EXPS
    *max = NAME(max_of)(m, later + i, len - i);
    for (ptrdiff_t j = i; j < len; j += step) acc = NAME(exps_add)(acc, x + j, to ? to + j : NULL, len - j, p, logarithm);
    double sum = NAME(exps_added)(acc);
    NAME(finish_rest)(f, first + i - lead, len, logarithm, stream); /* last, while maximum and sum come out of their vectors */
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
