/* Rows that each have their own statistic and share per-column parameters: layer norm and RMS norm.

   Included once per (storage S, arithmetic T). Short rows are taken several at a time and in stages (all sums and squares,
   all means and variances, all roots, all outputs), so that the latency of one row's reductions, root and division hides behind the
   next row's work. A row's result depends on its own values and length alone. */

#define FN_ROWS 8 /* as fn_eight holds */

FN_INLINE ptrdiff_t NAME(rows_at_once)(ptrdiff_t len) {
    ptrdiff_t r = FN_BLOCK / 2 / (len > 0 ? len : 1);
    return r < 1 ? 1 : r > FN_ROWS ? FN_ROWS : r;
}

/* Streamed rows meet within cache lines unless they are whole lines long and begin with one. The ends of eight rows that share
   lines are put together here and streamed as whole lines: stored as two halves, such a line cost as much as ten others. */
typedef struct { S line[FN_ROWS + 1][LINE]; } __attribute__((aligned(64))) NAME(seams);

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

#define ROW_OUT(n) NAME(row_out)(NAME(col_load)(x + j, n), has_gamma ? NAME(param)(gamma + j, n) : rstd, \
                                 has_beta ? NAME(param)(beta + j, n) : rstd, hi, lo, rstd, centred, has_gamma, has_beta)
FN_INLINE V NAME(param)(const P *p, ptrdiff_t n) { return n == LANES ? LOAD_P(p) : LOAD_P_N(p, n); }
FN_INLINE V NAME(row_out)(V x, V g, V b, V hi, V lo, V rstd, int centred, int has_gamma, int has_beta) {
    V z = NAME(standardize)(x, hi, lo, rstd, centred);
    if (has_gamma) z = MUL(z, g);
    if (has_beta) z = ADD(z, b);
    return z;
}

/* What y of eight rows takes. */
typedef struct { T hi[FN_ROWS], lo[FN_ROWS], rstd[FN_ROWS]; } NAME(row_norms);

FN_INLINE void NAME(row_apply_body)(const S *x, S *y, ptrdiff_t rows, ptrdiff_t len, const P *gamma, const P *beta,
                                    const NAME(row_norms) *q, int centred, int has_gamma, int has_beta, int stream,
                                    NAME(seams) *seams, ptrdiff_t ahead) {
    for (ptrdiff_t k = 0; k < rows; k++, x += len, y += len) {
        V hi = SET1(q->hi[k]), lo = SET1(q->lo[k]), rstd = SET1(q->rstd[k]);
        NAME(ends) e = NAME(ends_of)(seams, k, y, len);
#define FULL(n)                                                                                                          \
    do {                                                                                                                 \
        fn_prefetch(x + j + ahead);                                                                                      \
        if (stream) STREAM(y + j, ROW_OUT(n)); else STORE(y + j, ROW_OUT(n));                                            \
    } while (0)
#define PART(n) STORE_N((j < LINE ? e.head : e.tail) + j, ROW_OUT(n), n)
        EACH_IN_ROW(y, len, stream || len >= FN_LONG, FULL, PART);
#undef PART
#undef FULL
    }
}

/* y of at most eight rows, in T. */
FN_OUTLINE void NAME(rows_apply)(const S *x, S *y, ptrdiff_t rows, ptrdiff_t len, const P *g, const P *b,
                                 const NAME(row_norms) *q, int centred, int stream, NAME(seams) *seams, ptrdiff_t ahead) {
#define BODY(centred, has_gamma, has_beta, stream) \
    NAME(row_apply_body)(x, y, rows, len, g, b, q, centred, has_gamma, has_beta, stream, seams, ahead)
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
    NAME(rows_apply)(x, y, 1, len, g, b, &q, centred, !!(flags & FN_STREAM), NULL, ahead);
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
FN_INLINE fn_dd NAME(squares_of)(const S *x, ptrdiff_t len, ptrdiff_t ahead) {
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
    return ACC_SUM(ACC_JOIN(even, odd));
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
        q = fn_dd_add(q, NAME(squares_of)(x + i, n, n == FN_BLOCK ? FN_BLOCK : 0));
    }
    m->n = (double)len;
    m->sum = m->sum_lo = m->mean = m->mean_lo = 0;
    m->m2 = q.hi + q.lo;
}

FN_INLINE void NAME(moments_of_row)(const S *x, ptrdiff_t len, int centred, fn_eight *v, ptrdiff_t k) {
    fn_moments m;
    NAME(row_moments)(x, len, centred, &m);
    v->mean[k] = m.mean;
    v->mean_lo[k] = m.mean_lo;
    v->m2[k] = m.m2;
}

/* Moments of `rows` rows of one block each; what happens once per row is done for all of them in vectors. What lies `ahead` is
   fetched meanwhile (layer norm of (2048, 4096) takes two thirds of the time for it). */
FN_INLINE void NAME(some_moments)(const S *x, ptrdiff_t rows, ptrdiff_t len, ptrdiff_t ahead, fn_eight *v) {
    double hi[FN_ROWS] = {0}, lo[FN_ROWS] = {0}, q[FN_ROWS] = {0};
    for (ptrdiff_t k = 0; k < rows; k++) {
        NAME(look) a = NAME(look_span)(NAME(look_zero)(), x + k * len, len, ahead);
        fn_dd sum = ACC_SUM(a.sum);
        hi[k] = sum.hi;
        lo[k] = sum.lo;
        q[k] = ACC_SUM(NAME(look_squares)(a)).hi;
    }
    fn_vdd mean = vdd_div(vdd_at(hi, lo, FN_ROWS), vd_set1((double)len));
    vdd_put(v->mean, v->mean_lo, mean, FN_ROWS);
    vd m2 = vd_sub(vd_load(q), vd_mul(vd_load(hi), mean.hi));
    vd_store(v->m2, m2);
    if (FN_LIKELY(vl_all(vd_at_most(vd_mul(vd_load(q), vd_set1(FN_KEPT)), m2)))) return;
    for (ptrdiff_t k = 0; k < rows; k++) {
        fn_dd about = {v->mean[k], v->mean_lo[k]};
        if (!fn_is_kept(v->m2[k], q[k])) v->m2[k] = NAME(second_look)(x + k * len, len, 1, 0, about);
    }
}

/* Layer norm (centred) or RMS norm of `rows` rows; stat receives mean and rstd of each. sum, when not NULL, receives
   x + residual first and is what is normalized. */
FN_OUTLINE void NAME(rows_forward)(const void *xv, const void *rv, void *sv, void *yv, ptrdiff_t rows,
                                                         ptrdiff_t len, const void *gamma, const void *beta, double eps,
                                                         int centred, fn_norm *stat, int flags) {
    const S *x = xv, *res = rv;
    S *s = sv, *y = yv;
    ptrdiff_t group = NAME(rows_at_once)(len);
    if (len < 8 * LINE) flags &= ~FN_STREAM; /* what there is to do for shorter rows takes longer than memory does */
    int stream = !!(flags & FN_STREAM), before = 0;
    NAME(seams) seams;
    const double number = (double)len;
    for (ptrdiff_t r = 0; r < rows; r += group) {
        ptrdiff_t some = rows - r < group ? rows - r : group;
        fn_eight v = {{0}, {0}, {0}, {0}};
        const S *in = x + r * len;
        S *out = y + r * len;
        if (res) {
            NAME(add)(in, res + r * len, s + r * len, some * len);
            in = s + r * len;
        }
        if (EXACT_SQUARES && centred && len <= FN_BLOCK) NAME(some_moments)(in, some, len, stream ? SOON : 0, &v);
        else
            for (ptrdiff_t k = 0; k < some; k++) NAME(moments_of_row)(in + k * len, len, centred, &v, k);
        vd mean = vd_load(v.mean), m2 = vd_load(v.m2);
        vd scale = vd_div(vd_set1(1), vd_sqrt(vd_add(vd_div(m2, vd_set1(number)), vd_set1(eps))));
        vd_store(v.scale, scale);
        int plain = vl_all(vl_and(vl_plain(scale), vl_and(vd_within(mean, 0x1p-90, 0x1p125), vd_at_most(m2, vd_set1(0x1p250)))));
        for (ptrdiff_t k = 0; k < some; k++) {
            fn_norm *p = stat + r + k;
            p->mean = v.mean[k];
            p->mean_lo = v.mean_lo[k];
            p->scale = v.scale[k];
            p->shift = 0;
            p->wide = !plain && fn_needs_wide(p->mean, v.m2[k], p->scale);
        }
        ptrdiff_t ahead = res ? 0 : group * len;
        if (FN_LIKELY(plain)) {
            NAME(row_norms) q;
            PUT8(q.hi, mean);
            PUT8(q.lo, vd_add(vd_sub(mean, GET8(q.hi)), vd_load(v.mean_lo)));
            PUT8(q.rstd, scale);
            NAME(rows_apply)(in, out, some, len, gamma, beta, &q, centred, stream, stream ? &seams : NULL, ahead);
            int after = r + some < rows;
            if (stream) NAME(close_seams)(&seams, out, some, len, before, after);
            before = stream && after;
        } else {
            if (before) NAME(close_seams)(&seams, out, 0, len, 1, 0);
            before = 0;
            for (ptrdiff_t k = 0; k < some; k++)
                NAME(row_apply)(in + k * len, out + k * len, len, gamma, beta, stat + r + k, centred, flags, ahead);
        }
    }
    if (flags & FN_STREAM) fn_fence();
}
