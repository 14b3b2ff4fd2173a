/* A matrix whose columns each have their own statistic: channels-last images, (N, C) arrays, and NCHW spans too short to be
   worth a horizontal reduction (then a "column" is one pixel of one channel, and the caller adds up the columns of a channel).

   Included once per (storage S, arithmetic T). Eight rows are read side by side, so that memory is walked in order and
   squares are added as a tree of eight before they are widened, as in spans.h. Columns are taken in tiles whose per-column
   numbers stay in L1. */

#define FN_TILE 512 /* columns whose numbers are in L1 together: at most 7 arrays of float, 14 KB */

/* ---- sums ---- */

FN_INLINE V NAME(col_load)(const S *x, ptrdiff_t n) { return n == LANES ? LOAD(x) : LOAD_N(x, n); }

/* BODY(row, rows, columns) over all columns j of a band of rows: the whole band at once for full vectors, when it has the
   full height that the compiler knows; row by row for the rest. */
#define EACH_COLUMN(w, height, full, BODY)                                                                               \
    do {                                                                                                                 \
        ptrdiff_t done = !GENERIC && (full) ? (w) / LANES * LANES : 0;                                                   \
        for (ptrdiff_t j = 0; j < done; j += LANES) BODY(0, height, LANES);                                              \
        for (ptrdiff_t row = 0; row < (height); row++)                                                                   \
            for (ptrdiff_t j = done; j < (w); j += LANES) BODY(row, 1, ((w) - j < LANES ? (w) - j : LANES));             \
    } while (0)

FN_INLINE ACC NAME(col_sum8)(const S *p, ptrdiff_t stride, ptrdiff_t n) {
    ACC acc = ACC_ADD4(ACC_ZERO(), NAME(col_load)(p, n), NAME(col_load)(p + stride, n), NAME(col_load)(p + 2 * stride, n),
                       NAME(col_load)(p + 3 * stride, n));
    p += 4 * stride;
    return ACC_ADD4(acc, NAME(col_load)(p, n), NAME(col_load)(p + stride, n), NAME(col_load)(p + 2 * stride, n),
                    NAME(col_load)(p + 3 * stride, n));
}

FN_OUTLINE void NAME(col_sums)(const void *xv, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride,
                                                     double *sum, double *sum_lo) {
    const S *x = xv;
    ptrdiff_t r = 0;
#define SUM(row, rows, n)                                                                                                \
    ACC_PUT(rows == 8 ? NAME(col_sum8)(x + j, stride, n) : ACC_ADD(ACC_ZERO(), NAME(col_load)(x + (row) * stride + j, n)), \
            sum + j, sum_lo + j, n)
    for (; r + 8 <= rows; r += 8, x += 8 * stride) EACH_COLUMN(width, 8, 1, SUM);
    EACH_COLUMN(width, rows - r, 0, SUM);
#undef SUM
}

FN_INLINE V NAME(col_square)(const S *x, ptrdiff_t n, V c) { V d = SUB(NAME(col_load)(x, n), c); return MUL(d, d); }
FN_INLINE V NAME(col_square8)(const S *p, ptrdiff_t stride, ptrdiff_t n, V c) {
#define SQ(k) NAME(col_square)(p + (k) * stride, n, c)
    return ADD(TREE4(SQ, 0), TREE4(SQ, 4));
#undef SQ
}

FN_OUTLINE void NAME(col_squares)(const void *xv, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride,
                                                        const double *centre, double *m2) {
    for (ptrdiff_t t = 0; t < width; t += FN_TILE) {
        ptrdiff_t w = width - t < FN_TILE ? width - t : FN_TILE;
        const S *x = (const S *)xv + t;
        T c[FN_TILE];
        double q[FN_TILE], q_lo[FN_TILE];
        for (ptrdiff_t j = 0; j < FN_TILE; j++) {
            c[j] = j < w ? (T)centre[t + j] : 0;
            q[j] = q_lo[j] = 0;
        }
        ptrdiff_t r = 0;
#define SQUARES(row, rows, n)                                                                                            \
    ACC_PUT(rows == 8 ? ACC_ADD(ACC_ZERO(), NAME(col_square8)(x + j, stride, n, LOAD_T(c + j)))                          \
                      : ACC_SQUARE(ACC_ZERO(), NAME(col_load)(x + (row) * stride + j, n), LOAD_T(c + j)),                \
            q + j, q_lo + j, n)
        if (!EXACT_SQUARES) for (; r + 8 <= rows; r += 8, x += 8 * stride) EACH_COLUMN(w, 8, 1, SQUARES);
        EACH_COLUMN(w, rows - r, 0, SQUARES);
#undef SQUARES
        int safe = 1;
        for (ptrdiff_t j = 0; j < w; j++) safe &= fn_in_safe_range(q[j], (double)rows);
        double wide[FN_TILE];
#ifdef WIDER
        /* Columns that float cannot hold are done again in double, about the same c; the others keep their bits. */
        if (FN_UNLIKELY(!safe)) {
            double about[FN_TILE];
            for (ptrdiff_t j = 0; j < w; j++) { about[j] = (double)c[j]; wide[j] = 0; }
            WIDER(col_squares)((const S *)xv + t, rows, w, stride, about, wide);
        }
#else
        safe = 1;
#endif
        for (ptrdiff_t j = 0; j < w; j++) {
            double d = centre[t + j] - (double)c[j];
            m2[t + j] += ((safe || fn_in_safe_range(q[j], (double)rows) ? q[j] : wide[j]) - (double)rows * (d * d)) + q_lo[j];
        }
    }
}

/* ---- normalization and gradients: per-column numbers as vectors of T ---- */

typedef struct { T hi[FN_TILE], lo[FN_TILE], scale[FN_TILE], shift[FN_TILE]; } NAME(col_norms);

/* How many columns from p on, at most w, are alike in asking for wider arithmetic. */
FN_INLINE ptrdiff_t NAME(col_run)(const fn_norm *p, ptrdiff_t from, ptrdiff_t w, ptrdiff_t post) {
    ptrdiff_t k = from / post, end = (k + 1) * post;
    while (end < from + w && !p[end / post].wide == !p[k].wide) end += post;
    return end < from + w ? end - from : w;
}

/* The numbers of columns from .. from + w; a channel has `post` columns. */
FN_INLINE void NAME(col_split)(const fn_norm *p, ptrdiff_t from, ptrdiff_t w, ptrdiff_t post, NAME(col_norms) *v) {
    ptrdiff_t j = 0;
    for (ptrdiff_t k = from / post; j < w; k++) {
        ptrdiff_t end = (k + 1) * post - from < w ? (k + 1) * post - from : w;
        T hi = (T)p[k].mean, lo = (T)((p[k].mean - (double)hi) + p[k].mean_lo), scale = (T)p[k].scale, shift = (T)p[k].shift;
        for (; j < end; j++) { v->hi[j] = hi; v->lo[j] = lo; v->scale[j] = scale; v->shift[j] = shift; }
    }
    for (; j < (w + LANES - 1) / LANES * LANES; j++) v->hi[j] = v->lo[j] = v->scale[j] = v->shift[j] = 0;
}

FN_INLINE NAME(affine_v) NAME(col_norm)(const NAME(col_norms) *p, ptrdiff_t j) {
    NAME(affine_v) v = {LOAD_T(p->hi + j), LOAD_T(p->lo + j), LOAD_T(p->scale + j), LOAD_T(p->shift + j)};
    return v;
}

FN_INLINE void NAME(col_affine_one)(const S *x, const S *res, S *y, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n,
                                    NAME(affine_v) v, int has_res, int relu, int stream) {
    _Pragma("GCC unroll 4") for (ptrdiff_t r = 0; r < rows; r++) {
        ptrdiff_t o = r * stride;
        V z = NAME(normalize)(NAME(col_load)(x + o, n), v);
        z = NAME(activate)(z, has_res ? NAME(col_load)(res + o, n) : z, has_res, relu);
        if (n < LANES) STORE_N(y + o, z, n);
        else if (stream) STREAM(y + o, z);
        else STORE(y + o, z);
    }
}

FN_INLINE void NAME(col_affine_rows)(const S *x, const S *res, S *y, ptrdiff_t rows, ptrdiff_t w, ptrdiff_t stride,
                                     const NAME(col_norms) *p, int has_res, int relu, int stream) {
#define BODY(row, rows, n)                                                                                               \
    NAME(col_affine_one)(x + (row) * stride + j, has_res ? res + (row) * stride + j : NULL, y + (row) * stride + j, rows, \
                         stride, n, NAME(col_norm)(p, j), has_res, relu, stream)
    EACH_COLUMN(w, rows, rows == 4, BODY);
#undef BODY
}

FN_OUTLINE void NAME(col_affine)(const void *xv, const void *rv, void *yv, ptrdiff_t rows,
                                                       ptrdiff_t width, ptrdiff_t stride, const fn_norm *p, ptrdiff_t post, int flags) {
    NAME(col_norms) v;
    /* Streaming needs every row of every tile to start on a cache line. */
    int stream = (flags & FN_STREAM) && ((uintptr_t)yv & 63) == 0 && (stride * (ptrdiff_t)sizeof(S)) % 64 == 0;
    for (ptrdiff_t t = 0, w; t < width; t += w) {
        w = NAME(col_run)(p, t, width - t < FN_TILE ? width - t : FN_TILE, post);
        const S *x = (const S *)xv + t, *res = rv ? (const S *)rv + t : NULL;
        S *y = (S *)yv + t;
#ifdef WIDER
        if (FN_UNLIKELY(p[t / post].wide)) { /* one channel at a time */
            if (w > (t / post + 1) * post - t) w = (t / post + 1) * post - t;
            WIDER(col_affine)(x, res, y, rows, w, stride, p + t / post, w, flags & FN_RELU);
            continue;
        }
#endif
        NAME(col_split)(p, t, w, post, &v);
        stream &= ((uintptr_t)y & 63) == 0; /* a run need not begin on a cache line */
        for (ptrdiff_t r = 0; r < rows; r += 4) {
            ptrdiff_t some = rows - r < 4 ? rows - r : 4, o = r * stride;
            int relu = flags & FN_RELU;
            const S *rr = res ? res + o : NULL;
#define BODY(some, has_res, relu, stream) NAME(col_affine_rows)(x + o, rr, y + o, some, w, stride, &v, has_res, relu, stream)
            if (GENERIC || some < 4) BODY(some, rr != NULL, relu, 0);
            else if (res) { if (stream) BODY(4, 1, relu, 1); else BODY(4, 1, relu, 0); }
            else if (relu) { if (stream) BODY(4, 0, 1, 1); else BODY(4, 0, 1, 0); }
            else { if (stream) BODY(4, 0, 0, 1); else BODY(4, 0, 0, 0); }
#undef BODY
        }
    }
    if (stream) fn_fence();
}

/* Eight rows or one of the gradient sums of one vector of columns, in double as in spans.h. */
FN_INLINE NAME(sums) NAME(col_grad_one)(const S *dy, const S *x, const S *res, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n,
                                        NAME(affine_v) v, int has_res, int relu) {
    NAME(sums) s = {ACC_ZERO(), ACC_ZERO()};
    _Pragma("GCC unroll 8") for (ptrdiff_t r = 0; r < rows; r++) {
        ptrdiff_t o = r * stride;
        V xi = NAME(col_load)(x + o, n);
        V g = NAME(gate)(NAME(col_load)(dy + o, n), xi, has_res ? NAME(col_load)(res + o, n) : xi, v, has_res, relu);
        s.sum = ACC_ADD(s.sum, g);
        s.dot = ACC_DOT_EACH(s.dot, g, xi, v.hi);
    }
    return s;
}

FN_INLINE void NAME(col_grad_rows)(const S *dy, const S *x, const S *res, ptrdiff_t rows, ptrdiff_t w, ptrdiff_t stride,
                                   const NAME(col_norms) *p, int has_res, int relu, double *dsum, double *dot, double *lost) {
#define BODY(row, rows, n)                                                                                               \
    do {                                                                                                                 \
        ptrdiff_t o = (row) * stride + j;                                                                                \
        NAME(sums) s = NAME(col_grad_one)(dy + o, x + o, has_res ? res + o : NULL, rows, stride, n, NAME(col_norm)(p, j), has_res, relu); \
        ACC_PUT(s.sum, dsum + j, lost + j, n);                                                                           \
        ACC_PUT(s.dot, dot + j, lost + FN_TILE + j, n);                                                                  \
    } while (0)
    EACH_COLUMN(w, rows, rows == 8, BODY);
#undef BODY
}

FN_OUTLINE void NAME(col_grad_sums)(const void *dyv, const void *xv, const void *rv, ptrdiff_t rows, ptrdiff_t width,
                                    ptrdiff_t stride, const fn_norm *p, ptrdiff_t post, int flags, double *dsum, double *dot) {
    NAME(col_norms) v;
    double s[FN_TILE], d[FN_TILE], lost[2 * FN_TILE];
    int relu = flags & FN_RELU;
    for (ptrdiff_t t = 0; t < width; t += FN_TILE) {
        ptrdiff_t w = width - t < FN_TILE ? width - t : FN_TILE;
        const S *dy = (const S *)dyv + t, *x = (const S *)xv + t, *res = rv && relu ? (const S *)rv + t : NULL;
        NAME(col_split)(p, t, w, post, &v);
        for (ptrdiff_t j = 0; j < FN_TILE; j++) s[j] = d[j] = lost[j] = lost[FN_TILE + j] = 0;
        for (ptrdiff_t r = 0; r < rows; r += 8) {
            ptrdiff_t o = r * stride, some = rows - r < 8 ? rows - r : 8;
            const S *rr = res ? res + o : NULL;
#define BODY(some, has_res, relu) NAME(col_grad_rows)(dy + o, x + o, rr, some, w, stride, &v, has_res, relu, s, d, lost)
            if (GENERIC || some < 8) BODY(some, rr != NULL, relu);
            else if (!relu) BODY(8, 0, 0);
            else if (!rr) BODY(8, 0, 1);
            else BODY(8, 1, 1);
#undef BODY
        }
        for (ptrdiff_t j = 0; j < w; j++) {
            const fn_norm *q = p + (t + j) / post;
            double lo = (q->mean - (double)v.hi[j]) + q->mean_lo, sum = s[j] + lost[j];
            s[j] = sum;
            d[j] = (d[j] - lo * sum) + lost[FN_TILE + j];
        }
#ifdef WIDER
        /* Columns that float cannot hold are done again in double, one by one; the others keep their bits. */
        for (ptrdiff_t j = 0; j < w; j++)
            if (FN_UNLIKELY(p[(t + j) / post].wide)) {
                s[j] = d[j] = 0;
                WIDER(col_grad_sums)(dy + j, x + j, res ? res + j : NULL, rows, 1, stride, p + (t + j) / post, 1, flags, s + j, d + j);
            }
#endif
        for (ptrdiff_t j = 0; j < w; j++) { dsum[t + j] += s[j]; dot[t + j] += d[j]; }
    }
}

typedef struct { T a[FN_TILE], b[FN_TILE], c[FN_TILE]; } NAME(col_grads);

FN_INLINE int NAME(col_grad_wide)(const fn_norm *p, const fn_grad *g) { return p->wide || !fn_grad_is_safe(g); }
FN_INLINE ptrdiff_t NAME(col_grad_run)(const fn_norm *p, const fn_grad *g, ptrdiff_t from, ptrdiff_t w, ptrdiff_t post) {
    ptrdiff_t k = from / post, end = (k + 1) * post;
    int wide = NAME(col_grad_wide)(p + k, g + k);
    while (end < from + w && NAME(col_grad_wide)(p + end / post, g + end / post) == wide) end += post;
    return end < from + w ? end - from : w;
}

FN_INLINE void NAME(col_grad_apply_one)(const S *dy, const S *x, const S *res, S *dx, S *dres, ptrdiff_t rows, ptrdiff_t stride,
                                        ptrdiff_t n, NAME(affine_v) v, V a, V b, V c, int has_res, int relu, int stream) {
    _Pragma("GCC unroll 4") for (ptrdiff_t r = 0; r < rows; r++) {
        ptrdiff_t o = r * stride;
        V xi = NAME(col_load)(x + o, n);
        V g = NAME(gate)(NAME(col_load)(dy + o, n), xi, has_res ? NAME(col_load)(res + o, n) : xi, v, has_res, relu);
        V z = NAME(combine)(g, xi, v, a, b, c);
        if (dres) { if (n < LANES) STORE_N(dres + o, g, n); else STORE(dres + o, g); }
        if (n < LANES) STORE_N(dx + o, z, n);
        else if (stream) STREAM(dx + o, z);
        else STORE(dx + o, z);
    }
}

FN_INLINE void NAME(col_grad_apply_rows)(const S *dy, const S *x, const S *res, S *dx, S *dres, ptrdiff_t rows, ptrdiff_t w,
                                         ptrdiff_t stride, const NAME(col_norms) *p, const NAME(col_grads) *q, int has_res,
                                         int relu, int stream) {
#define BODY(row, rows, n)                                                                                               \
    do {                                                                                                                 \
        ptrdiff_t o = (row) * stride + j;                                                                                \
        NAME(col_grad_apply_one)(dy + o, x + o, has_res ? res + o : NULL, dx + o, dres ? dres + o : NULL, rows, stride, n, \
                                 NAME(col_norm)(p, j), LOAD_T(q->a + j), LOAD_T(q->b + j), LOAD_T(q->c + j), has_res, relu, stream); \
    } while (0)
    EACH_COLUMN(w, rows, rows == 4, BODY);
#undef BODY
}

FN_OUTLINE void NAME(col_grad_apply)(const void *dyv, const void *xv, const void *rv, void *dxv,
                                                           void *drv, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride,
                                                           const fn_norm *p, const fn_grad *g, ptrdiff_t post, int flags) {
    NAME(col_norms) v;
    NAME(col_grads) q;
    int stream = (flags & FN_STREAM) && ((uintptr_t)dxv & 63) == 0 && (stride * (ptrdiff_t)sizeof(S)) % 64 == 0;
    int relu = flags & FN_RELU;
    for (ptrdiff_t t = 0, w; t < width; t += w) {
        w = NAME(col_grad_run)(p, g, t, width - t < FN_TILE ? width - t : FN_TILE, post);
        const S *dy = (const S *)dyv + t, *x = (const S *)xv + t, *res = rv ? (const S *)rv + t : NULL;
        S *dx = (S *)dxv + t, *dres = drv ? (S *)drv + t : NULL;
#ifdef WIDER
        if (FN_UNLIKELY(NAME(col_grad_wide)(p + t / post, g + t / post))) {
            if (w > (t / post + 1) * post - t) w = (t / post + 1) * post - t;
            WIDER(col_grad_apply)(dy, x, res, dx, dres, rows, w, stride, p + t / post, g + t / post, w, relu);
            continue;
        }
#endif
        NAME(col_split)(p, t, w, post, &v);
        stream &= ((uintptr_t)dx & 63) == 0;
        ptrdiff_t j = 0;
        for (ptrdiff_t k = t / post; j < w; k++) {
            ptrdiff_t end = (k + 1) * post - t < w ? (k + 1) * post - t : w;
            for (; j < end; j++) { q.a[j] = (T)g[k].a; q.b[j] = (T)g[k].b; q.c[j] = (T)g[k].c; }
        }
        for (; j < (w + LANES - 1) / LANES * LANES; j++) q.a[j] = q.b[j] = q.c[j] = 0;
        for (ptrdiff_t r = 0; r < rows; r += 4) {
            ptrdiff_t some = rows - r < 4 ? rows - r : 4, o = r * stride;
            const S *rr = res && relu ? res + o : NULL;
            S *dr = rr && dres ? dres + o : NULL;
#define BODY(some, dr, has_res, relu, stream) \
    NAME(col_grad_apply_rows)(dy + o, x + o, rr, dx + o, dr, some, w, stride, &v, &q, has_res, relu, stream)
            if (GENERIC || some < 4 || rr) BODY(some, dr, rr != NULL, relu, 0);
            else if (relu) { if (stream) BODY(4, NULL, 0, 1, 1); else BODY(4, NULL, 0, 1, 0); }
            else { if (stream) BODY(4, NULL, 0, 0, 1); else BODY(4, NULL, 0, 0, 0); }
#undef BODY
        }
    }
    if (stream) fn_fence();
}
