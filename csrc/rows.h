/* Rows that each have their own statistic and share per-column parameters: layer norm and RMS norm.

   Included once per (storage S, arithmetic T). Short rows are taken several at a time and in stages (all sums and squares,
   all means and variances, all roots, all outputs), so that the latency of one row's reductions, root and division hides behind the
   next row's work. A row's result depends on its own values and length alone. */

#define FN_ROWS 8 /* as the numbers of rows are taken */

/* What comes after short rows the processor fetches by itself; beyond the cache they take 0.83 to 0.97 of the time where it is helped, on
   a Zen 3 and a Zen 5, but up to a tenth longer on a Zen 4, for which doubles in halves are. */
#define SHORT_ROWS_ARE_HELPED (FN_LEVEL != 3 || FN_NATIVE_D == 64)

/* Eight rows, if they stay in L1, or as many as make 4 KB, which share latencies; 2 KB of streamed ones. (32 rows of 64 took half again
   as long beyond the cache: reads and writes no longer overlap.) */
FN_INLINE ptrdiff_t NAME(rows_at_once)(ptrdiff_t len, int stream) {
    ptrdiff_t fit = FN_BLOCK / 2 / (len > 0 ? len : 1), more = fit / (stream ? 4 : 2) / FN_ROWS * FN_ROWS;
    return fit < 1 ? 1 : fit < FN_ROWS ? fit : more < FN_ROWS ? FN_ROWS : more > FN_SOME ? FN_SOME : more;
}

/* Streamed rows meet within cache lines unless they are whole lines long and begin with one. The ends of rows that share
   lines are put together here and streamed as whole lines: stored as two halves, such a line cost as much as ten others. */
typedef struct { S line[FN_SOME + 1][LINE]; } __attribute__((aligned(64))) NAME(seams);

/* The lines of `rows` rows. The first is shared with rows done `before`; the last waits for what comes `after`. */
FN_OUTLINE void NAME(close_seams)(NAME(seams) *s, S *y, ptrdiff_t rows, ptrdiff_t len, int before, int after) {
    for (ptrdiff_t k = 0; k <= rows; k++) {
        S *p = y + k * len;
        ptrdiff_t in = NAME(into_line)(p);
        if (in == 0) continue;
        if (k == 0 && !before) memcpy(p, s->line[0] + in, 64 - (size_t)in * sizeof(S));
        else if (k < rows) fn_stream_line(p - in, s->line[k]);
        else if (after) memcpy(s->line[0], s->line[k], 64);
        else memcpy(p - in, s->line[k], (size_t)in * sizeof(S));
    }
}

/* Where the ends of a row go, by column: into the row itself, or into seams. */
typedef struct { S *head, *tail; } NAME(ends);
FN_INLINE NAME(ends) NAME(ends_of)(NAME(seams) *s, ptrdiff_t k, S *y, ptrdiff_t len) {
    NAME(ends) e = {y, y};
    if (s) {
        e.head = s->line[k] + NAME(into_line)(y);
        e.tail = s->line[k + 1] + NAME(into_line)(y + len) - len;
    }
    return e;
}
/* The same from column t on; a row has one head. */
FN_INLINE NAME(ends) NAME(ends_in)(NAME(ends) e, ptrdiff_t t) {
    if (t) e.head = e.tail + t;
    e.tail += t;
    return e;
}

/* xhat = ((x - hi) - lo)·rstd */
FN_INLINE V NAME(standardize)(V x, V hi, V lo, V rstd, int centred) {
    return centred ? MUL(SUB(SUB(x, hi), lo), rstd) : MUL(x, rstd);
}

#define ROW_OUT(j, n) NAME(row_out)(NAME(col_load)(x + (j), n), has_gamma ? NAME(param)(gamma + (j), n) : rstd, \
                                    has_beta ? NAME(param)(beta + (j), n) : rstd, hi, lo, rstd, centred, has_gamma, has_beta)
FN_INLINE V NAME(param)(const P *p, ptrdiff_t n) { return n == LANES ? LOAD_P(p) : LOAD_P_N(p, n); }
FN_INLINE V NAME(row_out)(V x, V g, V b, V hi, V lo, V rstd, int centred, int has_gamma, int has_beta) {
    V z = NAME(standardize)(x, hi, lo, rstd, centred);
    if (has_gamma) z = MUL(z, g);
    if (has_beta) z = ADD(z, b);
    return z;
}

/* What y of rows takes. */
typedef struct { T hi[FN_SOME], lo[FN_SOME], rstd[FN_SOME]; } NAME(row_norms);

FN_INLINE void NAME(row_apply_body)(const S *x, S *y, ptrdiff_t rows, ptrdiff_t len, const P *gamma, const P *beta,
                                    const NAME(row_norms) *q, int centred, int has_gamma, int has_beta, int stream,
                                    NAME(seams) *seams, ptrdiff_t ahead) {
    for (ptrdiff_t k = 0; k < rows; k++, x += len, y += len) {
        V hi = SET1(q->hi[k]), lo = SET1(q->lo[k]), rstd = SET1(q->rstd[k]);
        NAME(ends) e = NAME(ends_of)(seams, k, y, len);
#define FULL(n) /* stored when all are loaded: spans.h says why */                                                       \
    do {                                                                                                                 \
        V z[AHEAD_OF_STORES];                                                                                            \
        EACH_OF((n) / LANES, c) z[c] = ROW_OUT(j + c * LANES, LANES);                                                    \
        if (ahead) EACH_OF((n) / LANES, c) fn_prefetch(x + j + c * LANES + ahead);                                       \
        PUT_SOME((n) / LANES, y + j, z, stream)                                                                          \
    } while (0)
#define PART(n) STORE_N((j < LINE ? e.head : e.tail) + j, ROW_OUT(j, n), n)
        if (stream || len >= FN_LONG) EACH_IN_ROW_BY(AHEAD_OF_STORES, y, len, 1, FULL, PART);
        else EACH_IN_ROW(y, len, 0, FULL, PART);
#undef PART
#undef FULL
    }
}

/* Rows of whole vectors, but too short for partial ones of their own where they do not begin with a cache line: every store is a
   line all the same, and one in each row holds the end of the row before it too. A line stored in two parts, at two times, costs
   more than a row, so that the end of some rows waits for those that come after. (Layer norm of rows of 64 takes 0.87 of the time
   in cache; beyond it, streamed, 0.9, and half where another thread shares the core.) */
typedef struct {
    ptrdiff_t in; /* how far into a line rows begin; 0: this is not for them */
    int before, after; /* does the end of the row before wait for these rows, and the end of the last of these for those after? */
    T hi, lo, rstd, b, c; /* of the row before */
    P gamma[LANES], beta[LANES]; /* as shared lines take them */
} NAME(across);

FN_INLINE int NAME(are_short)(ptrdiff_t len) { return !GENERIC && LANES == LINE && len % LANES == 0 && len < FN_LONG; }
FN_INLINE NAME(across) NAME(across_of)(const S *y, ptrdiff_t rows, ptrdiff_t len, const P *gamma, const P *beta) {
    NAME(across) a = {rows > 1 && NAME(are_short)(len) ? NAME(into_line)(y) : 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}};
    for (ptrdiff_t i = 0; a.in && i < LANES; i++) {
        ptrdiff_t column = i < a.in ? len - a.in + i : i - a.in;
        if (gamma) a.gamma[i] = gamma[column];
        if (beta) a.beta[i] = beta[column];
    }
    return a;
}

FN_INLINE void NAME(rows_across_body)(const S *x, S *y, ptrdiff_t rows, ptrdiff_t len, const P *gamma, const P *beta,
                                      const NAME(row_norms) *q, int centred, int has_gamma, int has_beta, int stream, NAME(across) *a,
                                      ptrdiff_t ahead) {
    const ptrdiff_t in = a->in;
    V g = LOAD_P(a->gamma), b = LOAD_P(a->beta), hi = SET1(a->hi), lo = SET1(a->lo), rstd = SET1(a->rstd);
    for (ptrdiff_t k = 0; k < rows; k++, x += len, y += len) {
        V hi0 = hi, lo0 = lo, rstd0 = rstd;
        ptrdiff_t j = 0;
        hi = SET1(q->hi[k]);
        lo = SET1(q->lo[k]);
        rstd = SET1(q->rstd[k]);
        if (ahead) fn_prefetch(x - in + ahead);
        if (k > 0 || a->before) {
            V z = NAME(row_out)(LOAD(x - in), g, b, FIRST_OR(hi0, hi, in), FIRST_OR(lo0, lo, in), FIRST_OR(rstd0, rstd, in), centred,
                                has_gamma, has_beta);
            if (stream) STREAM(y - in, z); else STORE(y - in, z);
        } else STORE_N(y, ROW_OUT(0, LANES - in), LANES - in);
        for (j = LANES - in; j <= len - LANES; j += LANES) {
            if (ahead) fn_prefetch(x + j + ahead);
            if (stream) STREAM(y + j, ROW_OUT(j, LANES)); else STORE(y + j, ROW_OUT(j, LANES));
        }
        if (k + 1 == rows && !a->after) STORE_N(y + j, ROW_OUT(j, in), in);
    }
    a->before = a->after;
    a->hi = q->hi[rows - 1];
    a->lo = q->lo[rows - 1];
    a->rstd = q->rstd[rows - 1];
}

/* y of at most FN_SOME rows, in T: across (or NULL), or with seams (or NULL). */
FN_OUTLINE void NAME(rows_apply)(const S *x, S *y, ptrdiff_t rows, ptrdiff_t len, const P *g, const P *b,
                                 const NAME(row_norms) *q, int centred, int stream, NAME(seams) *seams, NAME(across) *across,
                                 ptrdiff_t ahead) {
#define BODY(centred, has_gamma, has_beta, stream)                                                                       \
    do {                                                                                                                 \
        if (across) NAME(rows_across_body)(x, y, rows, len, g, b, q, centred, has_gamma, has_beta, stream, across, ahead); \
        else NAME(row_apply_body)(x, y, rows, len, g, b, q, centred, has_gamma, has_beta, stream, seams, ahead);         \
    } while (0)
    if (GENERIC) BODY(centred, g != NULL, b != NULL, 0);
    else if (!centred) { if (stream) BODY(0, g != NULL, 0, 1); else BODY(0, g != NULL, 0, 0); }
    else if (g && b) { if (stream) BODY(1, 1, 1, 1); else BODY(1, 1, 1, 0); }
    else { if (stream) BODY(1, g != NULL, b != NULL, 1); else BODY(1, g != NULL, b != NULL, 0); }
#undef BODY
}

FN_OUTLINE void NAME(row_apply)(const void *x, void *y, ptrdiff_t len, const void *g, const void *b, const fn_norm *p,
                                int centred, int flags, ptrdiff_t ahead) {
#ifdef WIDER
    if (FN_UNLIKELY(p->wide)) { WIDER(row_apply)(x, y, len, g, b, p, centred, flags, ahead); return; }
#endif
    NAME(row_norms) q;
    q.hi[0] = (T)p->mean;
    q.lo[0] = (T)((p->mean - (double)q.hi[0]) + p->mean_lo);
    q.rstd[0] = (T)p->scale;
    NAME(rows_apply)(x, y, 1, len, g, b, &q, centred, !!(flags & FN_STREAM), NULL, NULL, ahead);
}

/* s = x + residual, rounded to the storage type. */
FN_OUTLINE void NAME(add)(const void *xv, const void *rv, void *sv, ptrdiff_t len) {
    const S *x = xv, *res = rv;
    S *s = sv;
    ptrdiff_t i = 0;
    for (; i <= len - LANES; i += LANES) STORE(s + i, ADD(LOAD(x + i), LOAD(res + i)));
    if (i < len) STORE_N(s + i, ADD(LOAD_N(x + i, len - i), LOAD_N(res + i, len - i)), len - i);
}

/* to = dy where y > 0 (or is NaN), else 0. */
FN_OUTLINE void NAME(gate_row)(const void *dyv, const void *yv, void *tov, ptrdiff_t len) {
    const S *dy = dyv, *y = yv;
    S *to = tov;
    ptrdiff_t i = 0;
    for (; i <= len - LANES; i += LANES) STORE(to + i, POSITIVE(LOAD(y + i), LOAD(dy + i)));
    if (i < len) STORE_N(to + i, POSITIVE(LOAD_N(y + i, len - i), LOAD_N(dy + i, len - i)), len - i);
}

/* Σx² of a contiguous run; meanwhile what lies `ahead` of it is fetched. */
FN_INLINE ACC NAME(squares_of)(const S *x, ptrdiff_t len, ptrdiff_t ahead) {
    ACC even = ACC_ZERO(), odd = ACC_ZERO();
    ptrdiff_t i = 0;
    for (; i <= len - 2 * LANES; i += 2 * LANES) {
        W x0 = WIDE_AT(x + i), x1 = WIDE_AT(x + i + LANES);
        if (ahead) { fn_prefetch(x + i + ahead); fn_prefetch(x + i + LANES + ahead); }
        even = ACC_PRODUCT(even, x0, x0);
        odd = ACC_PRODUCT(odd, x1, x1);
    }
    for (; i < len; i += LANES) {
        W x0 = WIDE(NAME(col_load)(x + i, len - i < LANES ? len - i : LANES));
        even = ACC_PRODUCT(even, x0, x0);
    }
    return ACC_JOIN(even, odd);
}

/* Moments of one row, about its mean or about zero. */
FN_OUTLINE void NAME(row_moments)(const void *xv, ptrdiff_t len, int centred, fn_moments *m) {
    const S *x = xv;
    if (centred) {
        fn_spans s = {len, 1, 0};
        NAME(moments)(x, s, m);
        return;
    }
    fn_dd q = {0, 0};
    for (ptrdiff_t i = 0; i < len; i += FN_BLOCK) {
        ptrdiff_t n = len - i < FN_BLOCK ? len - i : FN_BLOCK;
        q = fn_dd_add(q, ACC_SUM(NAME(squares_of)(x + i, n, n == FN_BLOCK ? FN_BLOCK : 0)));
    }
    m->n = (double)len;
    m->sum = m->sum_lo = m->mean = m->mean_lo = 0;
    q = fn_two_sum(q.hi, q.lo);
    m->m2 = q.hi;
    m->m2_lo = q.lo;
}

/* Zeros for rows that are not there. */
FN_INLINE void NAME(clear)(fn_some *v, ptrdiff_t k) {
    vd zero = vd_zero();
    vd_store(v->sum + k, zero);
    vd_store(v->square + k, zero);
    vd_store(v->mean + k, zero);
    vd_store(v->mean_lo + k, zero);
    vd_store(v->m2 + k, zero);
}

/* Moments of `rows` rows of one block each; what happens once per row is done for eight of them in vectors, and no number is
   stored alone that a vector loads soon: such a load waits for all stores before it, which wait for memory. What lies `ahead` is
   fetched meanwhile (layer norm of (2048, 4096) takes two thirds of the time for it). */
FN_INLINE void NAME(some_moments)(const S *x, ptrdiff_t rows, ptrdiff_t len, fn_divisor number, int centred, ptrdiff_t ahead, fn_some *v) {
    FOLDED sums[FN_SOME], squares[FN_SOME];
    double lost[FN_ROWS], squares_lost[FN_ROWS];
    for (ptrdiff_t k = 0; k < rows; k++) {
        const S *row = x + k * len;
        if (!centred) {
            squares[k] = ACC_FOLDED(ahead ? NAME(squares_of)(row, len, ahead) : NAME(squares_of)(row, len, 0));
            continue;
        }
        NAME(look) a = NAME(look_span)(NAME(look_zero)(), row, len, ahead);
        sums[k] = ACC_FOLDED(a.sum);
        squares[k] = ACC_FOLDED(NAME(look_squares)(a));
    }
    for (ptrdiff_t k = 0; k < rows; k += FN_ROWS) {
        ptrdiff_t n = rows - k < FN_ROWS ? rows - k : FN_ROWS;
        ACC_SUMS(squares + k, n, v->square + k, squares_lost);
        fn_vdd square = {vd_load(v->square + k), vd_first(vd_load(squares_lost), n)}, mean = {vd_zero(), vd_zero()};
        vd m2 = vd_add(square.hi, square.lo);
        if (centred) {
            ACC_SUMS(sums + k, n, v->sum + k, lost);
            fn_vdd sum = {vd_load(v->sum + k), vd_first(vd_load(lost), n)};
            mean = vdd_div(sum, number);
            m2 = sizeof(T) == 8 ? vdd_about(square, sum, mean) : vd_sub(square.hi, vd_mul(sum.hi, mean.hi));
        }
        vdd_put(v->mean + k, v->mean_lo + k, mean, FN_ROWS);
        vd_store(v->m2 + k, m2);
        if (!centred || FN_LIKELY(vl_all(vd_are_kept(m2, square.hi)))) continue;
        for (ptrdiff_t i = k; i < k + n; i++) {
            fn_dd about = {v->mean[i], v->mean_lo[i]};
            if (!fn_is_kept(v->m2[i], v->square[i])) v->m2[i] = NAME(second_look)(x + i * len, len, 1, 0, about);
        }
    }
}

FN_OUTLINE void NAME(moments_beside)(const void *x, ptrdiff_t count, ptrdiff_t len, double *mean, double *mean_lo, double *m2) {
    fn_some v;
    if (count < FN_ROWS) NAME(clear)(&v, 0);
    NAME(some_moments)(x, count, len, fn_divisor_of((double)len), 1, 0, &v);
    fn_put(mean, vd_load(v.mean), count);
    fn_put(mean_lo, vd_load(v.mean_lo), count);
    fn_put(m2, vd_load(v.m2), count);
}

/* Layer norm (centred) or RMS norm of `rows` rows; `to` receives their statistics, unless its arrays are NULL. sum, when not NULL,
   receives x + residual first and is what is normalized. */
FN_OUTLINE void NAME(rows_forward)(const void *xv, const void *rv, void *sv, void *yv, ptrdiff_t rows, ptrdiff_t len,
                                   const void *gamma, const void *beta, double eps, int centred, fn_row_stats to, int flags) {
    const S *x = xv, *res = rv;
    S *s = sv, *y = yv;
    NAME(across) across = NAME(across_of)(y, rows, len, gamma, beta);
    if (len < 8 * LINE && !NAME(are_short)(len)) flags &= ~FN_STREAM; /* every line in two parts */
    int stream = !!(flags & FN_STREAM), before = 0;
    ptrdiff_t group = NAME(rows_at_once)(len, stream), some;
    ptrdiff_t soon = !centred && len == FN_BLOCK ? FN_BLOCK : stream && (len >= 8 * LINE || SHORT_ROWS_ARE_HELPED) ? SOON : 0;
    if (flags & FN_NEAR) soon = 0;
    NAME(seams) seams;
    fn_divisor number = fn_divisor_of((double)len);
    NAME(row_norms) q;
    fn_some v;
    for (ptrdiff_t r = 0; r < rows; r += some) {
        some = rows - r < group ? rows - r : group;
        if (some % FN_ROWS) NAME(clear)(&v, some / FN_ROWS * FN_ROWS);
        const S *in = x + r * len;
        S *out = y + r * len;
        if (res) {
            NAME(add)(in, res + r * len, s + r * len, some * len);
            in = s + r * len;
        }
        if (len <= FN_BLOCK) NAME(some_moments)(in, some, len, number, centred, soon, &v);
        else for (ptrdiff_t k = 0; k < some; k++) {
            fn_moments m;
            NAME(row_moments)(in + k * len, len, centred, &m);
            v.mean[k] = m.mean;
            v.mean_lo[k] = m.mean_lo;
            v.m2[k] = m.m2;
        }
        int plain = 1;
        for (ptrdiff_t k = 0; k < some; k += FN_ROWS) {
            vd mean = vd_load(v.mean + k), m2 = vd_load(v.m2 + k), var = vd_over(m2, number);
            vd rstd = vd_div(vd_set1(1), vd_sqrt(vd_add(var, vd_set1(eps))));
            vd_store(v.rstd + k, rstd);
            PUT8(q.hi + k, mean);
            PUT8(q.lo + k, vd_add(vd_sub(mean, GET8(q.hi + k)), vd_load(v.mean_lo + k)));
            PUT8(q.rstd + k, rstd);
            plain &= vl_all(vl_and(vl_plain(rstd), vl_and(vd_within(mean, 0x1p-90, 0x1p125), vd_within(m2, 0, FN_M2_END))));
            if (!to.rstd) continue;
            ptrdiff_t n = some - k < FN_ROWS ? some - k : FN_ROWS;
            fn_put(to.mean + r + k, mean, n);
            fn_put(to.mean_lo + r + k, vd_load(v.mean_lo + k), n);
            fn_put(to.rstd + r + k, rstd, n);
        }
        ptrdiff_t ahead = flags & FN_NEXT && !res ? group * len : 0;
        if (FN_LIKELY(plain)) {
            int after = across.after = r + some < rows;
            NAME(rows_apply)(in, out, some, len, gamma, beta, &q, centred, stream, stream && !across.in ? &seams : NULL,
                             across.in ? &across : NULL, ahead);
            if (stream && !across.in) NAME(close_seams)(&seams, out, some, len, before, after);
            before = stream && after && !across.in;
        } else {
            if (before) NAME(close_seams)(&seams, out, 0, len, 1, 0);
            if (across.before) { /* the end of the last row: a row of its own */
                NAME(row_norms) last = {{across.hi}, {across.lo}, {across.rstd}};
                NAME(rows_apply)(in - across.in, out - across.in, 1, across.in, gamma ? across.gamma : NULL, beta ? across.beta : NULL,
                                 &last, centred, 0, NULL, NULL, 0);
            }
            before = across.before = 0;
            for (ptrdiff_t k = 0; k < some; k++) {
                fn_norm p = {v.mean[k], v.mean_lo[k], v.rstd[k], 0, fn_needs_wide(v.mean[k], v.m2[k], v.rstd[k]), 0};
                NAME(row_apply)(in + k * len, out + k * len, len, gamma, beta, &p, centred, flags, ahead);
            }
        }
    }
    if (flags & FN_STREAM) fn_fence();
}
