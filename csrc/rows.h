/* Rows that each have their own statistic and share per-column parameters: layer norm and RMS norm.

   Included once per (storage S, arithmetic T). Short rows are taken several at a time and in stages (all sums, all means,
   all squares, all roots, all outputs), so that the latency of one row's reductions, root and division hides behind the
   next row's work. A row's result depends on its own values and length alone. */

#define FN_ROWS 8 /* as fn_eight holds */

FN_INLINE ptrdiff_t NAME(rows_at_once)(ptrdiff_t len) {
    ptrdiff_t r = FN_BLOCK / 2 / (len > 0 ? len : 1);
    return r < 1 ? 1 : r > FN_ROWS ? FN_ROWS : r;
}

/* Short rows are streamed if whole cache lines long: a line that two of them share would be fetched and written twice. */
FN_INLINE int NAME(streamable)(const S *y, ptrdiff_t len) {
    return len >= FN_LONG || (((uintptr_t)y | (uintptr_t)len * sizeof(S)) & 63) == 0;
}

/* xhat = ((x - hi) - lo)·rstd */
FN_INLINE V NAME(standardize)(V x, V hi, V lo, V rstd, int centred) {
    return centred ? MUL(SUB(SUB(x, hi), lo), rstd) : MUL(x, rstd);
}

#define ROW_OUT(n) NAME(row_out)(NAME(col_load)(x + i, n), has_gamma ? NAME(param)(gamma + i, n) : rstd, \
                                 has_beta ? NAME(param)(beta + i, n) : rstd, hi, lo, rstd, centred, has_gamma, has_beta)
FN_INLINE V NAME(param)(const P *p, ptrdiff_t n) { return n == LANES ? LOAD_P(p) : LOAD_P_N(p, n); }
FN_INLINE V NAME(row_out)(V x, V g, V b, V hi, V lo, V rstd, int centred, int has_gamma, int has_beta) {
    V z = NAME(standardize)(x, hi, lo, rstd, centred);
    if (has_gamma) z = MUL(z, g);
    if (has_beta) z = ADD(z, b);
    return z;
}

FN_INLINE void NAME(row_apply_body)(const S *x, S *y, ptrdiff_t len, const P *gamma, const P *beta, const fn_norm *p,
                                    int centred, int has_gamma, int has_beta, int stream, ptrdiff_t ahead) {
    T h = (T)p->mean;
    V hi = SET1(h), lo = SET1((T)((p->mean - (double)h) + p->mean_lo)), rstd = SET1((T)p->scale);
    ptrdiff_t i = 0;
    if (stream || len >= FN_LONG) {
        ptrdiff_t head = (ptrdiff_t)((-(uintptr_t)y & 63) / sizeof(S));
        for (; head > 0 && i < len;) {
            ptrdiff_t n = head < LANES ? head : LANES - 1;
            if (n > len - i) n = len - i;
            STORE_N(y + i, ROW_OUT(n), n);
            i += n;
            head -= n;
        }
    }
    for (; i <= len - LANES; i += LANES) {
        fn_prefetch(x + i + ahead);
        if (stream) STREAM(y + i, ROW_OUT(LANES)); else STORE(y + i, ROW_OUT(LANES));
    }
    if (i < len) { ptrdiff_t n = len - i; STORE_N(y + i, ROW_OUT(n), n); }
}

FN_OUTLINE void NAME(row_apply)(const void *xv, void *yv, ptrdiff_t len, const void *gv, const void *bv,
                                                      const fn_norm *p, int centred, int flags, ptrdiff_t ahead) {
    const S *x = xv;
    S *y = yv;
    const P *g = gv, *b = bv;
#ifdef WIDER
    if (FN_UNLIKELY(p->wide)) { WIDER(row_apply)(xv, yv, len, gv, bv, p, centred, flags, ahead); return; }
#endif
    int stream = !!(flags & FN_STREAM);
    if (stream) fn_prefetch_edge(y + 2 * len);
#define BODY(centred, has_gamma, has_beta, stream) NAME(row_apply_body)(x, y, len, g, b, p, centred, has_gamma, has_beta, stream, ahead)
    if (GENERIC) BODY(centred, g != NULL, b != NULL, 0);
    else if (!centred) { if (stream) BODY(0, g != NULL, 0, 1); else BODY(0, g != NULL, 0, 0); }
    else if (g && b) { if (stream) BODY(1, 1, 1, 1); else BODY(1, 1, 1, 0); }
    else { if (stream) BODY(1, g != NULL, b != NULL, 1); else BODY(1, g != NULL, b != NULL, 0); }
#undef BODY
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
        fn_dd b = ACC_SUM(NAME(squares_span)(ACC_ZERO(), x + i, n, SET1(0), n == FN_BLOCK ? FN_BLOCK : 0));
#ifdef WIDER
        if (FN_UNLIKELY(!fn_in_safe_range(b.hi, (double)n))) {
            fn_moments w;
            WIDER(row_moments)(x + i, n, 0, &w);
            b.hi = w.m2;
            b.lo = 0;
        }
#endif
        q = fn_dd_add(q, b);
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

/* Moments of `rows` rows of one block each; what happens once per row is done for all of them in vectors. */
FN_INLINE void NAME(some_moments)(const S *x, ptrdiff_t rows, ptrdiff_t len, fn_eight *v) {
    double hi[FN_ROWS] = {0}, lo[FN_ROWS] = {0};
    T c[LANES];
    vd n = vd_set1((double)len);
    for (ptrdiff_t k = 0; k < rows; k++) {
        fn_dd sum = ACC_SUM(NAME(sum_span)(ACC_ZERO(), x + k * len, len, 0));
        hi[k] = sum.hi;
        lo[k] = sum.lo;
    }
    fn_vdd mean = vdd_div(vdd_at(hi, lo, FN_ROWS), n);
    vdd_put(v->mean, v->mean_lo, mean, FN_ROWS);
    PUT8(c, mean.hi);
    for (ptrdiff_t k = 0; k < rows; k++) {
        fn_dd q = ACC_SUM(NAME(squares_span)(ACC_ZERO(), x + k * len, len, SET1(c[k]), 0));
        hi[k] = q.hi;
        lo[k] = q.lo;
    }
    vd d = vd_add(vd_sub(mean.hi, GET8(c)), mean.lo);
    vd m2 = vd_add(vd_sub(vd_load(hi), vd_mul(n, vd_mul(d, d))), vd_load(lo));
    vd_store(v->m2, vd_zero_below(m2, vd_zero(), m2));
#ifdef WIDER
    if (FN_LIKELY(vl_all(vl_and(vd_between(vd_load(v->m2), (double)len * 0x1p-100, 0x1p100), vd_between(mean.hi, -0x1p125, 0x1p125))))) return;
    for (ptrdiff_t k = 0; k < rows; k++)
        if (!fn_in_safe_range(v->m2[k], (double)len) || !(v->mean[k] >= -0x1p125 && v->mean[k] <= 0x1p125))
            WIDER(moments_of_row)(x + k * len, len, 1, v, k);
#endif
}

/* Layer norm (centred) or RMS norm of `rows` rows; stat receives mean and rstd of each. sum, when not NULL, receives
   x + residual first and is what is normalized. */
FN_OUTLINE void NAME(rows_forward)(const void *xv, const void *rv, void *sv, void *yv, ptrdiff_t rows,
                                                         ptrdiff_t len, const void *gamma, const void *beta, double eps,
                                                         int centred, fn_norm *stat, int flags) {
    const S *x = xv, *res = rv;
    S *s = sv, *y = yv;
    ptrdiff_t group = NAME(rows_at_once)(len);
    if (!NAME(streamable)(y, len)) flags &= ~FN_STREAM;
    const double number = (double)len;
    for (ptrdiff_t r = 0; r < rows; r += group) {
        ptrdiff_t some = rows - r < group ? rows - r : group;
        fn_eight v = {{0}, {0}, {0}, {0}};
        const S *in = x + r * len;
        if (res) {
            NAME(add)(in, res + r * len, s + r * len, some * len);
            in = s + r * len;
        }
        if (centred && len <= FN_BLOCK) NAME(some_moments)(in, some, len, &v);
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
            NAME(row_apply)(in + k * len, y + (r + k) * len, len, gamma, beta, p, centred, flags, res ? 0 : group * len);
        }
    }
    if (flags & FN_STREAM) fn_fence();
}

/* ---- gradients ----
   With g = dy·gamma and xhat = (x - mean)·rstd:  dx = rstd·(g - Σg/n - xhat·Σ(g·xhat)/n),
   dgamma = Σ_rows dy·xhat, dbeta = Σ_rows dy. */

/* Σg and Σg·(x - mean) of one row, in double as in spans.h. */
FN_INLINE NAME(sums) NAME(row_sums)(const S *dy, const S *x, const P *gamma, ptrdiff_t len, vd mean) {
    NAME(sums) a = {ACC_ZERO(), ACC_ZERO()};
    ptrdiff_t i = 0;
    for (; i <= len - LANES; i += LANES) {
        if (gamma) WEIGHTED_AT(&a.sum, &a.dot, dy + i, gamma + i, x + i, mean);
        else SUMS_AT(&a.sum, &a.dot, dy + i, x + i, mean);
    }
    if (i < len) {
        ptrdiff_t n = len - i;
        V g = LOAD_N(dy + i, n), xi = LOAD_N(x + i, n);
        if (gamma) ACC_WEIGHTED(&a.sum, &a.dot, g, LOAD_P_N(gamma + i, n), xi, mean);
        else {
            a.sum = ACC_ADD(a.sum, g);
            a.dot = ACC_DOT(a.dot, g, xi, mean);
        }
    }
    return a;
}

FN_OUTLINE void NAME(row_grad_sums)(const void *dyv, const void *xv, const void *gv, ptrdiff_t len, const fn_norm *p, fn_sums *out) {
    vd mean = vd_set1(p->mean);
    *out = NAME(sums_of)(gv ? NAME(row_sums)(dyv, xv, gv, len, mean) : NAME(row_sums)(dyv, xv, NULL, len, mean), p->mean_lo);
}

typedef struct { T hi[FN_ROWS], lo[FN_ROWS], rstd[FN_ROWS], b[FN_ROWS], c[FN_ROWS]; } NAME(row_grads);

/* dx of one row of w columns, and its part of dgamma and dbeta, added in T. */
FN_INLINE void NAME(row_grad)(const S *dy, const S *x, const P *gamma, S *dx, ptrdiff_t w, const NAME(row_grads) *q, ptrdiff_t r,
                              int has_gamma, int centred, int params, int aligned, int stream, T *dg, T *db) {
    V hi = SET1(q->hi[r]), lo = SET1(q->lo[r]), rstd = SET1(q->rstd[r]), b = SET1(q->b[r]), c = SET1(q->c[r]);
#define GRAD(n)                                                                                                          \
    V g = HOLD(NAME(col_load)(dy + j, n)), xhat = NAME(standardize)(NAME(col_load)(x + j, n), hi, lo, rstd, centred);          \
    if (params) {                                                                                                        \
        STORE_T(db + j, ADD(LOAD_T(db + j), g));                                                                         \
        STORE_T(dg + j, ADD(LOAD_T(dg + j), n == LANES ? MUL(g, xhat) : FIRST(MUL(g, xhat), n)));                        \
    }                                                                                                                    \
    V z = ADD(MUL(g, has_gamma ? MUL(NAME(param)(gamma + j, n), rstd) : rstd), MUL(xhat, b));                            \
    if (centred) z = ADD(z, c);
#define FULL(n) do { GRAD(LANES) if (stream) STREAM(dx + j, z); else STORE(dx + j, z); } while (0)
#define PART(n) do { GRAD(n) STORE_N(dx + j, z, n); } while (0)
    if (stream) fn_prefetch_edge(dx + w);
    EACH_IN_ROW(dx, w, aligned, FULL, PART);
#undef PART
#undef FULL
#undef GRAD
}

/* dx of rows [0, rows) of length len given each row's mean, rstd (stat) and sums Σg, Σg·(x - mean); dgamma, dbeta (or NULL)
   are added to: eight rows in T, then widened. `n` is the number of elements behind each statistic: len, unless these are
   pieces of longer rows. */
FN_OUTLINE void NAME(rows_grad)(const void *dyv, const void *xv, const void *gv, void *dxv, ptrdiff_t rows, ptrdiff_t len,
                                ptrdiff_t stride, double n, const fn_norm *stat, const fn_sums *sums, int centred, int flags,
                                double *dgamma, double *dbeta, double *dgamma_lo, double *dbeta_lo) {
    int stream = flags & FN_STREAM && NAME(streamable)(dxv, len), params = dgamma || dbeta;
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
            safe &= (p->wide == 0) & fn_grad_is_safe(&g);
        }
#ifdef WIDER
        if (FN_UNLIKELY(!safe)) { /* row by row: a row's dx must not depend on its neighbours */
            for (ptrdiff_t k = 0; k < some; k++) {
                ptrdiff_t o = k * stride;
                if (some > 1) NAME(rows_grad)(dy + o, x + o, gv, dx + o, 1, len, stride, n, stat + r + k, sums + r + k, centred, 0,
                                              dgamma, dbeta, dgamma_lo, dbeta_lo);
                else WIDER(rows_grad)(dy, x, gv, dx, 1, len, stride, n, stat + r, sums + r, centred, 0, dgamma, dbeta, dgamma_lo, dbeta_lo);
            }
            continue;
        }
#endif
        (void)safe;
        /* In long rows dx's vectors are aligned, and in the first row these sums' too; only the first piece has a ragged head. */
        int aligned = stream || len >= FN_LONG;
        for (ptrdiff_t t = 0, w; t < len; t += w) {
            ptrdiff_t pad = aligned ? (LANES - NAME(col_head)(dx + t, FN_TILE)) % LANES : 0;
            w = len - t < FN_TILE - pad ? len - t : FN_TILE - pad;
            const P *g = gv ? (const P *)gv + t : NULL;
            T dgs[FN_TILE + 2 * LANES] __attribute__((aligned(64))), dbs[FN_TILE + 2 * LANES] __attribute__((aligned(64)));
            T *dg = dgs + pad, *db = dbs + pad;
            if (params) for (ptrdiff_t j = 0; j < w + LANES; j++) dg[j] = db[j] = 0;
#define BODY(g, has_gamma, centred, params, stream)                                                                      \
    for (ptrdiff_t k = 0; k < some; k++)                                                                                 \
        NAME(row_grad)(dy + k * stride + t, x + k * stride + t, g, dx + k * stride + t, w, &q, k, has_gamma, centred, params, \
                       aligned, stream, dg, db)
            if (GENERIC || !g || !params) BODY(g, g != NULL, centred, params, 0);
            else if (centred) { if (stream) BODY(g, 1, 1, 1, 1); else BODY(g, 1, 1, 1, 0); }
            else if (stream) BODY(g, 1, 0, 1, 1);
            else BODY(g, 1, 0, 1, 0);
#undef BODY
            for (ptrdiff_t j = 0; params && j < w; j += LANES) {
                ptrdiff_t o = t + j, m = w - j < LANES ? w - j : LANES;
                if (dgamma) ACC_PUT(ACC_ADD(ACC_ZERO(), LOAD_T(dg + j)), dgamma + o, dgamma_lo ? dgamma_lo + o : NULL, m);
                if (dbeta) ACC_PUT(ACC_ADD(ACC_ZERO(), LOAD_T(db + j)), dbeta + o, dbeta_lo ? dbeta_lo + o : NULL, m);
            }
        }
    }
    if (stream) fn_fence();
}
