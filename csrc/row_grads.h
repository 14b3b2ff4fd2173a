/* The gradients of rows.h. With g = dy·gamma and xhat = (x - mean)·rstd:  dx = rstd·(g - Σg/n - xhat·Σ(g·xhat)/n),
   dgamma = Σ_rows dy·xhat, dbeta = Σ_rows dy.

   Included once per (storage S, arithmetic T). The sums of eight rows, then their dx while they are in cache, two rows side by
   side: dgamma and dbeta are loaded and stored once for both. The sums fetch what comes SOON after them, so that memory is busy
   while dx is made; left to the processor, it stops at every page. */

/* Σg and Σg·(x - mean) of one row, in double as in spans.h, x - mean always first. */
FN_INLINE NAME(sums) NAME(row_sums)(const S *dy, const S *x, const P *gamma, ptrdiff_t len, W mean) {
    NAME(sums) a = {ACC_ZERO(), ACC_ZERO()};
    ptrdiff_t i = 0, ahead = len < 8 * LINE ? 0 : SOON; /* short rows take longer than memory does */
    for (; i <= len - LANES; i += LANES) {
        fn_prefetch(x + i + ahead);
        fn_prefetch(dy + i + ahead);
        if (gamma) ACC_WEIGHTED(&a.sum, &a.dot, WIDE_AT(dy + i), WIDE_P(gamma + i), WIDE_AT(x + i), mean);
        else a = NAME(sums_add)(a, WIDE_AT(dy + i), WIDE_AT(x + i), mean, 0);
    }
    if (i < len) {
        ptrdiff_t n = len - i;
        W g = WIDE(LOAD_N(dy + i, n)), xi = WIDE(LOAD_N(x + i, n));
        if (gamma) ACC_WEIGHTED(&a.sum, &a.dot, g, WIDE(LOAD_P_N(gamma + i, n)), xi, mean);
        else a = NAME(sums_add)(a, g, xi, mean, 0);
    }
    return a;
}

FN_OUTLINE void NAME(row_grad_sums)(const void *dyv, const void *xv, const void *gv, ptrdiff_t len, const fn_norm *p, fn_sums *out) {
    W mean = WIDE_SET1(p->mean);
    *out = NAME(sums_of)(gv ? NAME(row_sums)(dyv, xv, gv, len, mean) : NAME(row_sums)(dyv, xv, NULL, len, mean), p->mean_lo);
}

typedef struct { T hi[FN_ROWS], lo[FN_ROWS], rstd[FN_ROWS], b[FN_ROWS], c[FN_ROWS]; } NAME(row_grads);

typedef struct { V hi, lo, rstd, b, c; } NAME(row_v);
FN_INLINE NAME(row_v) NAME(row_at)(const NAME(row_grads) *q, ptrdiff_t r) {
    NAME(row_v) v = {SET1(q->hi[r]), SET1(q->lo[r]), SET1(q->rstd[r]), SET1(q->b[r]), SET1(q->c[r])};
    return v;
}

/* dx = g·(gamma·rstd) + xhat·b + c */
FN_INLINE V NAME(row_dx)(V g, V xhat, V gamma, NAME(row_v) v, int has_gamma, int centred) {
    V z = ADD(MUL(g, has_gamma ? MUL(gamma, v.rstd) : v.rstd), MUL(xhat, v.b));
    return centred ? ADD(z, v.c) : z;
}

/* dx of w columns of row r, and of the next if `pair`, and their part of dgamma and dbeta, added in T. */
FN_INLINE void NAME(row_grad)(const S *dy, const S *x, const P *gamma, S *dx, ptrdiff_t w, ptrdiff_t stride,
                              const NAME(row_grads) *q, ptrdiff_t r, int pair, int has_gamma, int centred, int params,
                              int aligned, int stream, NAME(ends) e, NAME(ends) e2, T *dg, T *db) {
    NAME(row_v) v = NAME(row_at)(q, r), u = pair ? NAME(row_at)(q, r + 1) : v;
    ptrdiff_t next = pair ? stride : 0;
#define XHAT(x, v, n) NAME(standardize)(NAME(col_load)(x, n), v.hi, v.lo, v.rstd, centred)
#define DGAMMA(g, xhat, n) ((n) == LANES ? MUL(g, xhat) : FIRST(MUL(g, xhat), n))
#define GRAD(n, PUT)                                                                                                     \
    do {                                                                                                                 \
        V weight = has_gamma ? NAME(param)(gamma + j, n) : v.rstd;                                                       \
        V g = HOLD(NAME(col_load)(dy + j, n)), xhat = XHAT(x + j, v, n);                                                 \
        V g2 = pair ? HOLD(NAME(col_load)(dy + j + next, n)) : g, xhat2 = pair ? XHAT(x + j + next, u, n) : xhat;        \
        if (params) {                                                                                                    \
            V b = ADD(LOAD_T(db + j), g), a = ADD(LOAD_T(dg + j), DGAMMA(g, xhat, n));                                   \
            STORE_T(db + j, pair ? ADD(b, g2) : b);                                                                      \
            STORE_T(dg + j, pair ? ADD(a, DGAMMA(g2, xhat2, n)) : a);                                                    \
        }                                                                                                                \
        V z = NAME(row_dx)(g, xhat, weight, v, has_gamma, centred);                                                      \
        V z2 = NAME(row_dx)(g2, xhat2, weight, u, has_gamma, centred);                                                   \
        PUT(dx, e, z, n);                                                                                                \
        if (pair) PUT(dx + next, e2, z2, n);                                                                             \
    } while (0)
#define FULL(n) GRAD(LANES, WHOLE)
#define PART(n) GRAD(n, END)
#define WHOLE(p, e, z, n) do { if (stream) STREAM((p) + j, z); else STORE((p) + j, z); } while (0)
#define END(p, e, z, n) STORE_N((j < LINE ? e.head : e.tail) + j, z, n)
    EACH_IN_ROW(dx, w, aligned, FULL, PART);
#undef END
#undef WHOLE
#undef PART
#undef FULL
#undef GRAD
#undef DGAMMA
#undef XHAT
}

/* dx of rows [0, rows) of length len given each row's mean, rstd (stat) and sums Σg, Σg·(x - mean); dgamma, dbeta (or NULL)
   are added to: eight rows in T, then widened. `n` is the number of elements behind each statistic: len, unless these are
   pieces of longer rows. */
FN_OUTLINE void NAME(rows_grad)(const void *dyv, const void *xv, const void *gv, void *dxv, ptrdiff_t rows, ptrdiff_t len,
                                ptrdiff_t stride, double n, const fn_norm *stat, const fn_sums *sums, int centred, int flags,
                                double *dgamma, double *dbeta, double *dgamma_lo, double *dbeta_lo) {
    int whole = stride == len, stream = flags & FN_STREAM && len >= (whole ? 8 * LINE : FN_LONG), before = 0;
    int params = dgamma || dbeta;
    /* In long rows dx's vectors are aligned, and in the first row dgamma's too; only the first piece has a ragged head. */
    int aligned = stream || len >= FN_LONG, alike = stride * (ptrdiff_t)sizeof(S) % 64 == 0, paired = !aligned || alike;
    int seamed = stream && whole && (alike || len <= FN_TILE - LINE); /* or else every piece of a row has ragged ends */
    NAME(seams) seams;
    for (ptrdiff_t r = 0; r < rows; r += FN_ROWS) {
        ptrdiff_t some = rows - r < FN_ROWS ? rows - r : FN_ROWS;
        const S *dy = (const S *)dyv + r * stride, *x = (const S *)xv + r * stride;
        S *dx = (S *)dxv + r * stride;
        NAME(row_grads) q;
        int safe = 1;
        for (ptrdiff_t k = 0; k < some; k++) {
            const fn_norm *p = stat + r + k;
            const fn_sums *s = sums + r + k;
            fn_grad g = {p->scale, -p->scale * ((s->dot + s->dot_lo) * p->scale / n), -p->scale * (s->sum + s->sum_lo) / n};
            q.hi[k] = (T)p->mean;
            q.lo[k] = (T)((p->mean - (double)q.hi[k]) + p->mean_lo);
            q.rstd[k] = (T)p->scale;
            q.b[k] = (T)g.b;
            q.c[k] = (T)g.c;
            safe &= (p->wide == 0) & fn_are_safe(g.a, g.b, g.c);
        }
#ifdef WIDER
        if (FN_UNLIKELY(!safe)) { /* row by row: a row's dx must not depend on its neighbours */
            for (ptrdiff_t k = 0; k < some; k++) {
                ptrdiff_t o = k * stride;
                if (k == 0 && before) NAME(close_seams)(&seams, dx, 0, len, 1, 0);
                before = 0;
                if (some > 1) NAME(rows_grad)(dy + o, x + o, gv, dx + o, 1, len, stride, n, stat + r + k, sums + r + k, centred, 0,
                                              dgamma, dbeta, dgamma_lo, dbeta_lo);
                else WIDER(rows_grad)(dy, x, gv, dx, 1, len, stride, n, stat + r, sums + r, centred, 0, dgamma, dbeta, dgamma_lo, dbeta_lo);
            }
            continue;
        }
#endif
        (void)safe;
        for (ptrdiff_t t = 0, w; t < len; t += w) {
            ptrdiff_t in = aligned ? NAME(into_line)(dx + t) : 0, pad = in % LANES;
            w = len - t < FN_TILE - in ? len - t : FN_TILE - in;
            const P *g = gv ? (const P *)gv + t : NULL;
            T dgs[FN_TILE + 2 * LANES] __attribute__((aligned(64))), dbs[FN_TILE + 2 * LANES] __attribute__((aligned(64)));
            T *dg = dgs + pad, *db = dbs + pad;
            V zero = HOLD(SET1(0)); /* held, or else gcc calls memset, which costs more than a short row */
            for (ptrdiff_t j = 0; params && j < w + LANES; j += LANES) { STORE_T(dg + j, zero); STORE_T(db + j, zero); }
#define ROWS(k, pair, g, has_gamma, centred, params, stream)                                                             \
    NAME(row_grad)(dy + (k) * stride + t, x + (k) * stride + t, g, dx + (k) * stride + t, w, stride, &q, k, pair, has_gamma, \
                   centred, params, aligned, stream, ENDS(k), ENDS((pair) ? (k) + 1 : k), dg, db)
#define ENDS(k) NAME(ends_in)(NAME(ends_of)(seamed ? &seams : NULL, k, dx + (k) * stride, len), t)
#define BODY(g, has_gamma, centred, params, stream)                                                                      \
    do {                                                                                                                 \
        ptrdiff_t k = 0;                                                                                                 \
        if (!GENERIC && paired) for (; k + 2 <= some; k += 2) ROWS(k, 1, g, has_gamma, centred, params, stream);         \
        for (; k < some; k++) ROWS(k, 0, g, has_gamma, centred, params, stream);                                         \
    } while (0)
            if (GENERIC || !g || !params) BODY(g, g != NULL, centred, params, 0);
            else if (centred) { if (stream) BODY(g, 1, 1, 1, 1); else BODY(g, 1, 1, 1, 0); }
            else if (stream) BODY(g, 1, 0, 1, 1);
            else BODY(g, 1, 0, 1, 0);
#undef BODY
#undef ENDS
#undef ROWS
            for (ptrdiff_t j = 0; params && j < w; j += LANES) {
                ptrdiff_t o = t + j, m = w - j < LANES ? w - j : LANES;
                if (dgamma) ACC_PUT(ACC_ADD(ACC_ZERO(), WIDE(LOAD_T(dg + j))), dgamma + o, dgamma_lo ? dgamma_lo + o : NULL, m);
                if (dbeta) ACC_PUT(ACC_ADD(ACC_ZERO(), WIDE(LOAD_T(db + j))), dbeta + o, dbeta_lo ? dbeta_lo + o : NULL, m);
            }
        }
        if (seamed) {
            int after = r + some < rows;
            NAME(close_seams)(&seams, dx, some, len, before, after);
            before = after;
        }
    }
    if (stream) fn_fence();
}
