/* The gradients of rows.h. With g = dy·gamma and xhat = (x - mean)·rstd:  dx = rstd·(g - Σg/n - xhat·Σ(g·xhat)/n),
   dgamma = Σ_rows dy·xhat, dbeta = Σ_rows dy.

   Included once per (storage S, arithmetic T). The sums of eight rows, then their dx while they are in cache, some vectors of columns
   at a time, whose dgamma and dbeta stay in registers through all eight rows; meanwhile, beyond the cache, the sums of the next eight. The
   sums fetch what comes SOON after them, so that memory is busy while dx is made; left to the processor, it stops at every page. */

typedef struct { T hi[FN_ROWS], lo[FN_ROWS], rstd[FN_ROWS], b[FN_ROWS], c[FN_ROWS]; } NAME(row_grads);

typedef struct { V hi, lo, rstd, b, c; } NAME(row_v);
FN_INLINE NAME(row_v) NAME(row_at)(const NAME(row_grads) *q, ptrdiff_t r) {
    NAME(row_v) v = {SET1(q->hi[r]), SET1(q->lo[r]), SET1(q->rstd[r]), SET1(q->b[r]), SET1(q->c[r])};
    return v;
}

/* dx's numbers of n rows, at most eight, in vectors; can T hold them and all that they meet? */
FN_INLINE int NAME(row_numbers)(const fn_row_stats *stat, const fn_sizes *sizes, const fn_planes *sums, ptrdiff_t n, fn_divisor number,
                                NAME(row_grads) *q) {
    vd mean = fn_at(stat->mean, n), rstd = fn_at(stat->rstd, n), minus = vd_mul(rstd, vd_set1(-1));
    vd sum = vd_add(fn_at(sums->sum, n), fn_at(sums->sum_lo, n)), dot = vd_add(fn_at(sums->dot, n), fn_at(sums->dot_lo, n));
    vd b = vd_mul(minus, vd_over(vd_mul(dot, rstd), number)), c = vd_over(vd_mul(minus, sum), number);
    PUT8(q->hi, mean);
    PUT8(q->lo, vd_add(vd_sub(mean, GET8(q->hi)), fn_at(stat->mean_lo, n)));
    PUT8(q->rstd, rstd);
    PUT8(q->b, b);
    PUT8(q->c, c);
    vl gamma = vl_and(vl_plain(vd_mul(rstd, vd_set1(sizes->least))), vl_plain(vd_mul(rstd, vd_set1(sizes->most))));
    vl norm = vl_and(vl_plain(rstd), vd_within(mean, 0x1p-90, 0x1p125)); /* rstd bounds the variance */
    return vl_all(vl_and(vl_and(gamma, norm), vl_and(vl_plain(b), vl_plain(c))));
}

/* dx = g·(gamma·rstd) + xhat·b + c */
FN_INLINE V NAME(row_dx)(V g, V xhat, V gamma, NAME(row_v) v, int has_gamma, int centred) {
    V z = ADD(MUL(g, has_gamma ? MUL(gamma, v.rstd) : v.rstd), MUL(xhat, v.b));
    return centred ? ADD(z, v.c) : z;
}

/* What a piece of eight rows shares: w columns from column t of the rows on, and where rows meet (or NULL). */
typedef struct {
    const S *dy, *x;
    const P *gamma;
    S *dx;
    ptrdiff_t stride, t, len;
    NAME(seams) *seams;
    const NAME(across) *across;
    T *dg, *db; /* sums over rows, in T; across: from the first whole line on */
} NAME(piece);

/* dx of rows [r, stop) in `count` vectors of n columns from j on, or in a `part` at the rows' ends, with what it adds to dgamma and
   dbeta: from row 0 on, nothing was added before. */
FN_INLINE void NAME(columns_grad)(const NAME(piece) *p, const NAME(row_grads) *q, ptrdiff_t r, ptrdiff_t stop, ptrdiff_t j, int count,
                                  ptrdiff_t n, int part, int has_gamma, int centred, int params, int stream, NAME(ongoing) *next) {
    NAME(ongoing) t;
    if (next) NAME(hand_over)(next, &t);
    V weight[COLUMNS_AT_ONCE], a[COLUMNS_AT_ONCE], b[COLUMNS_AT_ONCE];
    EACH_OF(count, c) {
        ptrdiff_t o = j + c * LANES;
        weight[c] = has_gamma ? HOLD(NAME(param)(p->gamma + o, n)) : SET1(0);
        a[c] = b[c] = SET1(0);
        if (params && r > 0) a[c] = LOAD_T(p->dg + o);
        if (params && r > 0 && centred) b[c] = LOAD_T(p->db + o);
    }
    for (; r < stop; r++) {
        if (next) NAME(turn)(&t, centred);
        NAME(row_v) v = NAME(row_at)(q, r);
        S *dx = p->dx + r * p->stride;
        V z[COLUMNS_AT_ONCE]; /* stored when all are loaded: spans.h says why */
        EACH_OF(count, c) {
            ptrdiff_t o = j + c * LANES;
            V g = HOLD(NAME(col_load)(p->dy + r * p->stride + o, n));
            V xhat = HOLD(NAME(standardize)(NAME(col_load)(p->x + r * p->stride + o, n), v.hi, v.lo, v.rstd, centred));
            if (params) {
                V slope = MUL(g, xhat);
                a[c] = ADD(a[c], n == LANES ? slope : FIRST(slope, n)); /* beyond n, xhat may be infinite */
                if (centred) b[c] = ADD(b[c], g);
            }
            z[c] = NAME(row_dx)(g, xhat, weight[c], v, has_gamma, centred);
            if (part) {
                NAME(ends) e = NAME(ends_in)(NAME(ends_of)(p->seams, r, dx - p->t, p->len), p->t);
                STORE_N((j < LINE ? e.head : e.tail) + o, z[c], n);
            }
        }
        if (!part) PUT_SOME(count, dx + j, z, stream)
    }
    EACH_OF(count, c) {
        if (params) STORE_T(p->dg + j + c * LANES, a[c]);
        if (params && centred) STORE_T(p->db + j + c * LANES, b[c]);
    }
    if (next) NAME(hand_over)(&t, next);
}

/* The same of rows' ends. */
FN_BULKY void NAME(columns_grad_part)(const NAME(piece) *p, const NAME(row_grads) *q, ptrdiff_t r, ptrdiff_t stop, ptrdiff_t j,
                                      ptrdiff_t n, int has_gamma, int centred, int params) {
    NAME(columns_grad)(p, q, r, stop, j, 1, n, 1, has_gamma, centred, params, 0, NULL);
}

FN_INLINE void NAME(piece_grad)(const NAME(piece) *p, const NAME(row_grads) *q, ptrdiff_t r, ptrdiff_t stop, ptrdiff_t w, int aligned,
                                int has_gamma, int centred, int params, int stream, NAME(ongoing) *next) {
#define FULL(n)                                                                                                          \
    NAME(columns_grad)(p, q, r, stop, j, (n) / LANES, LANES, 0, has_gamma, centred, params, stream,                      \
                       (n) == COLUMNS_AT_ONCE * LANES ? next : NULL)
#define PART(n) NAME(columns_grad_part)(p, q, r, stop, j, n, has_gamma, centred, params)
    EACH_IN_ROW_BY(COLUMNS_AT_ONCE, p->dx + r * p->stride, w, aligned, FULL, PART);
#undef PART
#undef FULL
}

/* ---- across lines, as in rows.h ---- */

/* The beginning of the first row, if no row before it waits: dx of its columns up to the next line, and what they add,
   in the lanes from `in` on. */
FN_OUTLINE void NAME(begin_across)(const NAME(piece) *p, const NAME(row_grads) *q, int centred, V *dg, V *db) {
    const ptrdiff_t in = p->across->in, n = LANES - in;
    T t[4 * LANES] = {0};
    NAME(row_v) v = NAME(row_at)(q, 0);
    V g = LOAD_N(p->dy, n), xhat = NAME(standardize)(LOAD_N(p->x, n), v.hi, v.lo, v.rstd, centred);
    STORE_N(p->dx, NAME(row_dx)(g, xhat, LOAD_P_N(p->gamma, n), v, 1, centred), n);
    STORE_T(t + in, FIRST(MUL(g, xhat), n));
    STORE_T(t + 2 * LANES + in, g);
    *dg = LOAD_T(t);
    *db = LOAD_T(t + 2 * LANES);
}

/* dx of the end of the row before that waits: in columns up to the first row's. */
FN_OUTLINE void NAME(end_across)(const S *dy, const S *x, S *dx, const NAME(across) *a, int centred) {
    NAME(row_v) v = {SET1(a->hi), SET1(a->lo), SET1(a->rstd), SET1(a->b), SET1(a->c)};
    V g = LOAD_N(dy - a->in, a->in), xhat = NAME(standardize)(LOAD_N(x - a->in, a->in), v.hi, v.lo, v.rstd, centred);
    STORE_N(dx - a->in, NAME(row_dx)(g, xhat, LOAD_P(a->gamma), v, 1, centred), a->in);
}

/* columns_grad of `count` lines of each row, the j-th lane of the row's on: the `first` line holds the end of the row before. What
   that end adds to dgamma and dbeta is its own group's, and added there, so that their bits do not depend on where rows lie. */
FN_INLINE void NAME(columns_across)(const NAME(piece) *p, const NAME(row_grads) *q, ptrdiff_t rows, ptrdiff_t j, int count, int first,
                                    int centred, int stream, NAME(ongoing) *next) {
    NAME(ongoing) t;
    if (next) NAME(hand_over)(next, &t);
    const NAME(across) *across = p->across;
    const ptrdiff_t in = across->in;
    const S *dy = p->dy + j - in, *x = p->x + j - in;
    S *dx = p->dx + j - in;
    V weight[COLUMNS_AT_ONCE], a[COLUMNS_AT_ONCE], b[COLUMNS_AT_ONCE], zero = SET1(0);
    NAME(row_v) last = {SET1(across->hi), SET1(across->lo), SET1(across->rstd), SET1(across->b), SET1(across->c)};
    EACH_OF(count, c) {
        weight[c] = HOLD(LOAD_P(first && c == 0 ? across->gamma : p->gamma + j - in + c * LANES));
        a[c] = b[c] = zero;
    }
    for (ptrdiff_t r = 0; r < rows; r++, dy += p->len, x += p->len, dx += p->len) {
        if (next) NAME(turn)(&t, centred);
        NAME(row_v) v = NAME(row_at)(q, r);
        V z[COLUMNS_AT_ONCE];
        int begun = 0;
        EACH_OF(count, c) {
            NAME(row_v) u = v;
            if (first && c == 0) {
                if (r == 0 && !across->before) {
                    V slope, g; /* a and b would be kept in memory, if others had their addresses */
                    NAME(begin_across)(p, q, centred, &slope, &g);
                    a[0] = ADD(zero, slope);
                    b[0] = ADD(zero, g);
                    begun = 1;
                    continue;
                }
                u.hi = FIRST_OR(last.hi, v.hi, in);
                u.lo = FIRST_OR(last.lo, v.lo, in);
                u.rstd = FIRST_OR(last.rstd, v.rstd, in);
                u.b = FIRST_OR(last.b, v.b, in);
                u.c = FIRST_OR(last.c, v.c, in);
            }
            ptrdiff_t o = c * LANES;
            V g = HOLD(LOAD(dy + o)), xhat = HOLD(NAME(standardize)(LOAD(x + o), u.hi, u.lo, u.rstd, centred)), slope = MUL(g, xhat);
            int whole = !(first && c == 0 && r == 0);
            a[c] = ADD(a[c], whole ? slope : FIRST_OR(zero, slope, in));
            if (centred) b[c] = ADD(b[c], whole ? g : FIRST_OR(zero, g, in));
            z[c] = NAME(row_dx)(g, xhat, weight[c], u, 1, centred);
        }
        EACH_OF(count, c) {
            if (first && c == 0 && begun) continue;
            if (stream) STREAM(dx + c * LANES, z[c]); else STORE(dx + c * LANES, z[c]);
        }
        if (first) last = v;
    }
    if (first) {
        V g = LOAD_N(dy, in), xhat = NAME(standardize)(LOAD_N(x, in), last.hi, last.lo, last.rstd, centred);
        a[0] = ADD(a[0], FIRST(MUL(g, xhat), in));
        b[0] = ADD(b[0], g);
        if (!across->after) STORE_N(dx, NAME(row_dx)(g, xhat, weight[0], last, 1, centred), in);
        STORE_T(p->dg + p->len, a[0]);
        STORE_T(p->db + p->len, b[0]);
    }
    EACH_OF(count, c) {
        STORE_T(p->dg + j + c * LANES, a[c]);
        STORE_T(p->db + j + c * LANES, b[c]);
    }
    if (next) NAME(hand_over)(&t, next);
}

FN_INLINE void NAME(across_grad)(const NAME(piece) *p, const NAME(row_grads) *q, ptrdiff_t rows, int centred, int stream,
                                 NAME(ongoing) *next) {
    const ptrdiff_t some = COLUMNS_AT_ONCE * LANES; /* rows are whole vectors */
    ptrdiff_t j = some;
    if (COLUMNS_AT_ONCE == 1 || p->len >= some) NAME(columns_across)(p, q, rows, 0, COLUMNS_AT_ONCE, 1, centred, stream, next);
    else { NAME(columns_across)(p, q, rows, 0, 1, 1, centred, stream, NULL); j = LANES; }
    for (; j <= p->len - some; j += some) NAME(columns_across)(p, q, rows, j, COLUMNS_AT_ONCE, 0, centred, stream, next);
    if (COLUMNS_AT_ONCE > 1) for (; j < p->len; j += LANES) NAME(columns_across)(p, q, rows, j, 1, 0, centred, stream, NULL);
}

/* Is dx of eight rows written while the next eight are summed, four vectors of each in turn? Streamed rows, sixteen of which make at most a
   megabyte of x and dy. Stores wait for memory, and sums for what they read: on an Intel Xeon rows of 768 and 4096 take 0.87 of the time, those
   of 64 0.87 (RMS norm) and 0.97; those of 96 took 1.05. A Zen 4, which is told what comes next, takes 1.2 to 1.3 times as long. Only AVX-512 has
   registers for both. */
#define ROWS_BY_TURNS (FN_LEVEL == 3 && FN_NATIVE_D == 64 && sizeof(S) == 4)
FN_INLINE int NAME(rows_by_turns)(ptrdiff_t len, int flags) {
    return ROWS_BY_TURNS && !(flags & FN_NEXT) && len >= (len % (4 * LANES) == 0 ? 4 * LANES : 32 * LINE) && len <= 8192;
}

/* How many rows are taken side by side: as many as leave two of them to a set of L1, whose eight lines hold three arrays and what the
   processor fetches ahead; streamed rows, which leave no line of dx there, four if each gives four vectors at a time. (Of rows of 4096
   four took 1.4 times as long at AVX2, and eight twice as long; in cache, eight took 1.4 times as long.) */
FN_INLINE ptrdiff_t NAME(rows_beside)(ptrdiff_t stride, int stream) {
    ptrdiff_t bytes = stride * (ptrdiff_t)sizeof(S), apart = bytes & -bytes, in_set = stream && COLUMNS_AT_ONCE == 4 ? 4 : 2;
    ptrdiff_t height = in_set * 4096 / (apart < 4096 ? apart : 4096);
    return height < FN_ROWS ? height : FN_ROWS;
}

/* What eight rows add to a parameter's gradient in w columns; or with `fresh` to zeros in its place. */
FN_INLINE void NAME(add_columns)(const T *a, ptrdiff_t w, double *to, double *lo, int fresh) {
    ptrdiff_t j = 0;
#define ADD_TO(n, fresh) ACC_PUT(ACC_ADD(ACC_ZERO(), WIDE_T(a + j)), to + j, lo ? lo + j : NULL, n, fresh)
    if (fresh) for (; j <= w - LANES; j += LANES) ADD_TO(LANES, 1);
    else for (; j <= w - LANES; j += LANES) ADD_TO(LANES, 0);
    if (j < w) ADD_TO(w - j, fresh);
#undef ADD_TO
}

/* n of a vector's lanes, to where a parameter's gradient is wanted. */
FN_INLINE void NAME(row_put)(V a, ptrdiff_t n, P *to) {
    T t[LANES];
    if (sizeof(T) == sizeof(P) && n == LANES) { STORE_T((T *)(void *)to, a); return; }
    STORE_T(t, a);
    for (ptrdiff_t i = 0; i < n; i++) to[i] = (P)t[i];
}

/* dx of a single row, whose gradients of gamma and beta (or NULL) are those of the parameters as they are. Walked from its end, which was
   read last. */
FN_INLINE void NAME(only_row)(const S *dy, const S *x, const P *gamma, S *dx, P *dgamma, P *dbeta, ptrdiff_t len, NAME(row_v) v,
                              int has_gamma, int centred, int stream) {
    V zero = SET1(0);
    ptrdiff_t in = NAME(into_line)(dx), head = in == 0 ? 0 : LINE - in < len ? LINE - in : len, end = len - (len - head) % LINE, j, n;
#define SOME(count, full)                                                                                                \
    do {                                                                                                                 \
        V g[4], xhat[4], z[4]; /* stored when all are loaded: spans.h says why */                                         \
        EACH_OF(count, c) {                                                                                              \
            g[c] = HOLD(NAME(col_load)(dy + j + c * LANES, n));                                                          \
            xhat[c] = HOLD(NAME(standardize)(NAME(col_load)(x + j + c * LANES, n), v.hi, v.lo, v.rstd, centred));        \
            z[c] = NAME(row_dx)(g[c], xhat[c], has_gamma ? NAME(param)(gamma + j + c * LANES, n) : zero, v, has_gamma, centred); \
        }                                                                                                                \
        EACH_OF(count, c) {                                                                                              \
            ptrdiff_t o = j + c * LANES;                                                                                 \
            if (!(full)) STORE_N(dx + o, z[c], n); else if (stream) STREAM(dx + o, z[c]); else STORE(dx + o, z[c]);      \
            if (dgamma) NAME(row_put)(ADD(zero, MUL(g[c], xhat[c])), n, dgamma + o);                                     \
            if (dbeta) NAME(row_put)(ADD(zero, g[c]), n, dbeta + o);                                                     \
        }                                                                                                                \
    } while (0)
    for (j = end; j < len; j += n) { n = len - j < LANES ? len - j : LANES; SOME(1, 0); }
    n = LANES;
    for (j = end; j - 4 * LANES >= head;) { j -= 4 * LANES; SOME(4, 1); }
    for (; j > head;) { j -= LANES; SOME(1, 1); }
    for (j = 0; j < head; j += n) { n = head - j < LANES ? head - j : LANES - 1; SOME(1, 0); }
#undef SOME
}

/* dx of rows [0, rows) of length len given each row's statistics and sums Σg, Σg·(x - mean), which are formed here if their arrays
   are NULL; dgamma, dbeta (or NULL) are added to, or with FN_FRESH set: eight rows in T, then widened; or with FN_SINGLE those of
   the only row, in P. `n` is the number of elements behind each statistic: len, unless these are pieces of longer rows. */
FN_OUTLINE void NAME(rows_grad)(const void *dyv, const void *xv, const void *gv, void *dxv, ptrdiff_t rows, ptrdiff_t len,
                                ptrdiff_t stride, double n, fn_row_stats stat, fn_sizes sizes, fn_planes sums, int centred, int flags,
                                double *dgamma, double *dbeta, double *dgamma_lo, double *dbeta_lo) {
    int whole = stride == len, before = 0, params = dgamma || dbeta, fresh = flags & FN_FRESH, single = flags & FN_SINGLE;
    NAME(across) across = NAME(across_of)(dxv, whole && gv && params && !single ? rows : 0, len, gv, NULL);
    int lines = across.in || (NAME(are_short)(len) && NAME(into_line)(dxv) == 0);
    int stream = flags & FN_STREAM && whole && lines ? 1 : flags & FN_STREAM && len >= (whole ? 8 * LINE : FN_LONG);
    /* In long rows dx's vectors are aligned, and in the first row dgamma's too; only the first piece has a ragged head. */
    int aligned = stream || len >= FN_LONG, alike = stride * (ptrdiff_t)sizeof(S) % 64 == 0, together = !aligned || alike;
    int seamed = stream && whole && !across.in && (alike || len <= FN_TILE - LINE); /* or else every piece of a row has ragged ends */
    /* A Zen 4 is helped with streamed rows of more than four lines too: those of 80 to 112 floats take 0.8 to 1 of the time (once 1.1), shorter ones
       up to 1.04. */
    ptrdiff_t ahead = NAME(is_helped)(flags) && (len >= 8 * LINE || (stream && (SHORT_ROWS_ARE_HELPED || len > 4 * LINE))) ? SOON : 0;
    ptrdiff_t height = together ? NAME(rows_beside)(stride, stream) : 1;
    fn_divisor number = fn_divisor_of(n);
    NAME(seams) seams;
    double memory[4 * FN_ROWS], widened[WIDENED + LANES];
    int has_wide = CAN_WIDEN && gv && !sums.sum && rows >= FN_ROWS && len <= WIDENED;
    if (has_wide) NAME(widen)(gv, len, widened);
    int turns = NAME(rows_by_turns)(len, flags) && stream && !sums.sum && gv && params && !single && whole;
    NAME(folded_sums) folded;
    NAME(ongoing) next = {.gamma = gv ? (const P *)gv + len : NULL, .len = len, .ahead = ahead, .out = &folded};
    for (ptrdiff_t r = 0; r < rows; r += FN_ROWS) {
        ptrdiff_t some = rows - r < FN_ROWS ? rows - r : FN_ROWS;
        const S *dy = (const S *)dyv + r * stride, *x = (const S *)xv + r * stride;
        S *dx = (S *)dxv + r * stride;
        fn_row_stats of = {stat.mean + r, stat.mean_lo + r, stat.rstd + r};
        fn_planes four = {memory, memory + FN_ROWS, memory + 2 * FN_ROWS, memory + 3 * FN_ROWS};
        if (turns && r) {
            while (next.row < next.rows) NAME(turn)(&next, centred);
            NAME(sums_of_rows)(&folded, some, of.mean_lo, NULL, centred, four);
        } else if (!sums.sum) NAME(some_grad_sums)(dy, x, gv, has_wide ? widened : NULL, some, len, stride, of, centred, four, ahead);
        else { fn_planes given = {sums.sum + r, sums.sum_lo + r, sums.dot + r, sums.dot_lo + r}; four = given; }
        if (turns) {
            next.dy = dy + some * len;
            next.x = x + some * len;
            next.rows = rows - r - some < FN_ROWS ? rows - r - some : FN_ROWS;
            next.row = 0;
            next.means = of.mean + some;
            NAME(begin_row)(&next, centred);
        }
        NAME(row_grads) q;
        int safe = NAME(row_numbers)(&of, &sizes, &four, some, number, &q);
#ifdef WIDER
        if (FN_UNLIKELY(!safe)) { /* row by row: a row's dx must not depend on its neighbours */
            if (across.before) NAME(end_across)(dy, x, dx, &across, centred);
            across.before = 0;
            for (ptrdiff_t k = 0; k < some; k++) {
                ptrdiff_t o = k * stride;
                fn_row_stats mine = {of.mean + k, of.mean_lo + k, of.rstd + k};
                fn_planes its = {four.sum + k, four.sum_lo + k, four.dot + k, four.dot_lo + k};
                if (k == 0 && before) NAME(close_seams)(&seams, dx, 0, len, 1, 0);
                before = 0;
                if (some > 1) NAME(rows_grad)(dy + o, x + o, gv, dx + o, 1, len, stride, n, mine, sizes, its, centred, fresh,
                                              dgamma, dbeta, dgamma_lo, dbeta_lo);
                else WIDER(rows_grad)(dy, x, gv, dx, 1, len, stride, n, mine, sizes, its, centred, fresh | single, dgamma, dbeta,
                                      dgamma_lo, dbeta_lo);
                fresh = 0;
            }
            continue;
        }
#endif
        (void)safe;
        if (single) {
#define BODY(has_gamma, centred, stream)                                                                                 \
    NAME(only_row)(dy, x, gv, dx, (P *)dgamma, centred ? (P *)dbeta : NULL, len, NAME(row_at)(&q, 0), has_gamma, centred, stream)
            if (GENERIC || !gv) BODY(gv != NULL, centred, 0);
            else if (centred) { if (stream) BODY(1, 1, 1); else BODY(1, 1, 0); }
            else if (stream) BODY(1, 0, 1);
            else BODY(1, 0, 0);
#undef BODY
            break;
        }
        for (ptrdiff_t t = 0, w; t < len; t += w) {
            ptrdiff_t in = aligned ? NAME(into_line)(dx + t) : 0, pad = across.in ? across.in : in % LANES;
            w = len - t < FN_TILE - in ? len - t : FN_TILE - in;
            T dgs[FN_TILE + 2 * LANES] __attribute__((aligned(64))), dbs[FN_TILE + 2 * LANES] __attribute__((aligned(64)));
            T *dg = dgs + pad, *db = dbs + pad;
            NAME(piece) p = {dy + t, x + t, gv ? (const P *)gv + t : NULL, dx + t, stride, t, len, seamed ? &seams : NULL, &across,
                             across.in ? dgs : dg, across.in ? dbs : db};
            if (params) { STORE_T(dg + w, SET1(0)); STORE_T(db + w, SET1(0)); } /* what lies beyond the last column is read too */
#define BODY(has_gamma, centred, params, stream, turn)                                                                   \
    for (ptrdiff_t k = 0; k < some; k += height)                                                                         \
        NAME(piece_grad)(&p, &q, k, k + height < some ? k + height : some, w, aligned, has_gamma, centred, params, stream, turn)
            if (across.in) {
                across.after = r + some < rows;
                if (centred) {
                    if (ROWS_BY_TURNS && turns) NAME(across_grad)(&p, &q, some, 1, 1, &next);
                    else if (stream) NAME(across_grad)(&p, &q, some, 1, 1, NULL);
                    else NAME(across_grad)(&p, &q, some, 1, 0, NULL);
                } else if (ROWS_BY_TURNS && turns) NAME(across_grad)(&p, &q, some, 0, 1, &next);
                else if (stream) NAME(across_grad)(&p, &q, some, 0, 1, NULL);
                else NAME(across_grad)(&p, &q, some, 0, 0, NULL);
                across.before = across.after;
                across.hi = q.hi[some - 1];
                across.lo = q.lo[some - 1];
                across.rstd = q.rstd[some - 1];
                across.b = q.b[some - 1];
                across.c = q.c[some - 1];
            } else if (GENERIC || !gv || !params) BODY(gv != NULL, centred, params, 0, NULL);
            else if (ROWS_BY_TURNS && turns) { if (centred) BODY(1, 1, 1, 1, &next); else BODY(1, 0, 1, 1, &next); }
            else if (centred) { if (stream) BODY(1, 1, 1, 1, NULL); else BODY(1, 1, 1, 0, NULL); }
            else if (stream) BODY(1, 0, 1, 1, NULL);
            else BODY(1, 0, 1, 0, NULL);
#undef BODY
            if (dgamma) NAME(add_columns)(dg, w, dgamma + t, dgamma_lo ? dgamma_lo + t : NULL, fresh);
            if (dbeta && centred) NAME(add_columns)(db, w, dbeta + t, dbeta_lo ? dbeta_lo + t : NULL, fresh);
        }
        fresh = 0;
        if (seamed) {
            int after = r + some < rows;
            NAME(close_seams)(&seams, dx, some, len, before, after);
            before = after;
        }
    }
    if (stream) fn_fence();
}
