/* Gradients of the norms of columns.h, in the same pieces and rows.

   Included once per (storage S, arithmetic T). With xhat = (x - mean)·rstd: dx = a·dy + b·(x - mean) + c, a number of each kind
   per column, from Σdy and Σdy·(x - mean). */

/* col_load; at AVX2 the parts of vectors of half types apart, for whose sake gcc 12 kept less of the whole ones in registers (1.14 of the time). */
FN_OUTLINE V NAME(col_part)(const S *x, ptrdiff_t n) { return LOAD_N(x, n); }
FN_INLINE V NAME(col_load_apart)(const S *x, ptrdiff_t n) {
    return FN_LEVEL != 2 || n == LANES || sizeof(S) > 2 ? NAME(col_load)(x, n) : NAME(col_part)(x, n);
}

/* Four rows or one of the gradient sums of one vector of columns, in double as in spans.h. */
FN_INLINE NAME(sums) NAME(col_grad_one)(const S *dy, const S *x, const S *res, ptrdiff_t rows, ptrdiff_t stride, NAME(fetching) f, ptrdiff_t n,
                                        NAME(affine_v) v, V centre, int near, int has_res, int relu) {
    NAME(sums) s = {ACC_ZERO(), ACC_ZERO()};
    W mean = near ? WIDE_SET1(0) : WIDE(centre);
    T g_room[LANES], x_room[LANES];
    _Pragma("GCC unroll 4") for (ptrdiff_t r = 0; r < rows; r++) {
        ptrdiff_t o = r * stride;
        if (rows == 4 && f.ahead) { /* all eight at once: 1.1 of the time */
            fn_prefetch(dy + f.ahead + f.apart * r);
            fn_prefetch(x + f.ahead + f.apart * r);
        }
        if (!relu && n == LANES) { s = NAME(sums_add)(s, NAME(in_t)(dy + o, g_room), NAME(in_t)(x + o, x_room), mean, near); continue; }
        V xi = NAME(col_load_apart)(x + o, n);
        V g = NAME(gate)(NAME(col_load_apart)(dy + o, n), xi, has_res ? NAME(col_load_apart)(res + o, n) : xi, v, has_res, relu);
        s = NAME(sums_add)(s, NAME(kept)(g, g_room), NAME(kept)(xi, x_room), mean, near);
    }
    return s;
}

/* The same of n columns from j on, added up. */
FN_INLINE void NAME(col_grad_add)(const S *dy, const S *x, const S *res, ptrdiff_t rows, ptrdiff_t stride, NAME(fetching) f, ptrdiff_t j,
                                  ptrdiff_t n, const NAME(col_norms) *p, const T *centre, int near, int has_res, int relu, fn_planes to) {
    V zero = SET1(0);
    NAME(affine_v) v = {zero, zero, zero};
    if (f.ahead) f.ahead += f.turn * j;
    if (relu) v = NAME(col_norm)(p, j); /* or else they may never have been written */
    NAME(sums) s = NAME(col_grad_one)(dy + j, x + j, has_res ? res + j : NULL, rows, stride, f, n, v,
                                      near ? zero : LOAD_T(centre + j), near, has_res, relu);
    ACC_PUT(s.sum, to.sum + j, to.sum_lo + j, n, 0);
    ACC_PUT(s.dot, to.dot + j, to.dot_lo + j, n, 0);
}
/* Row by row, columns from `from` on: what is less than a vector or than four rows. */
FN_OUTLINE void NAME(col_grad_singly)(const S *dy, const S *x, const S *res, ptrdiff_t rows, ptrdiff_t from, ptrdiff_t w, ptrdiff_t stride,
                                      const NAME(col_norms) *p, const T *centre, int near, int relu, fn_planes to) {
    const NAME(fetching) none = {0, 0, 0};
    for (; rows > 0; rows--, dy += stride, x += stride, res += res ? stride : 0)
        for (ptrdiff_t j = from; j < w; j += LANES)
            NAME(col_grad_add)(dy, x, res, 1, stride, none, j, w - j < LANES ? w - j : LANES, p, centre, near, res != NULL, relu, to);
}
FN_INLINE void NAME(col_grad_rows)(const S *dy, const S *x, const S *res, ptrdiff_t rows, ptrdiff_t w, ptrdiff_t stride, int fetch,
                                   const NAME(col_norms) *p, const T *centre, int near, int has_res, int relu, fn_planes to) {
    ptrdiff_t r = 0, whole = GENERIC ? 0 : w / LANES * LANES;
    for (; r + 4 <= rows; r += 4, dy += 4 * stride, x += 4 * stride, res += has_res ? 4 * stride : 0) {
        const NAME(fetching) f = NAME(rows_ahead)(r, 4, rows, w, stride, fetch);
        for (ptrdiff_t j = 0; j < whole; j += LANES)
            NAME(col_grad_add)(dy, x, res, 4, stride, f, j, LANES, p, centre, near, has_res, relu, to);
        if (whole < w) NAME(col_grad_singly)(dy, x, has_res ? res : NULL, 4, whole, w, stride, p, centre, near, relu, to);
    }
    if (r < rows) NAME(col_grad_singly)(dy, x, has_res ? res : NULL, rows - r, 0, w, stride, p, centre, near, relu, to);
}

/* What is taken off x of columns from t on before it is multiplied: nothing where the mean is near zero. */
FN_INLINE void NAME(col_centres)(const fn_norms *p, ptrdiff_t t, ptrdiff_t w, ptrdiff_t post, ptrdiff_t m, const T *hi, T *centre) {
    for (ptrdiff_t j = 0, k = t / post; j < w; k++) {
        int near = !GENERIC && fn_is_near_at(p, k);
        for (ptrdiff_t end = NAME(channel_end)(k, post, t, w); j < end; j++) centre[j] = near ? 0 : hi[j];
    }
    NAME(repeat)(centre, w, m);
}

FN_OUTLINE void NAME(col_grad_sums)(const void *dyv, const void *xv, const void *rv, ptrdiff_t rows, ptrdiff_t width,
                                    ptrdiff_t stride, const fn_norms *p, ptrdiff_t post, int flags, fn_planes to) {
    NAME(col_norms) v;
    double room[4][FN_TILE];
    T centre[ROOM];
    int relu = flags & FN_RELU, fetch = NAME(col_is_helped)(stride, flags);
    ptrdiff_t m = NAME(abreast)(rows, width, stride), piece = NAME(col_piece)(width);
    for (ptrdiff_t t = 0; t < width; t += piece) {
        ptrdiff_t w = width - t < piece ? width - t : piece, first = t / post, channels = (t + w - 1) / post + 1 - first;
        const S *dy = (const S *)dyv + t, *x = (const S *)xv + t, *res = rv && relu ? (const S *)rv + t : NULL;
        fn_planes end = {to.sum + t, to.sum_lo + t, to.dot + t, to.dot_lo + t}, q = {room[0], room[1], room[2], room[3]};
        if (m == 1) q = end;
        int near = !GENERIC && fn_are_near(p, first, channels);
        NAME(columns) s = {t, w, post, m};
        if (GENERIC || relu || !near) NAME(col_split)(p, s, 0, relu, &v); /* or else nobody looks at it */
        if (near) memset(centre, 0, (size_t)(w + LANES) * sizeof(T)); else NAME(col_centres)(p, t, w, post, m, v.hi, centre);
        double *const sums[] = {q.sum, q.sum_lo, q.dot, q.dot_lo};
        for (int i = 0; i < 4; i++) memset(sums[i], 0, (size_t)(m * w) * sizeof(double));
#define BODY(r, near, has_res, relu)                                                                                     \
    EACH_ABREAST(m, rows, NAME(col_grad_rows)(dy + done * stride, x + done * stride, r, height, a * w, a * stride, fetch, \
                                              &v, centre, near, has_res, relu, q))
        if (GENERIC || !near) BODY(res ? res + done * stride : NULL, 0, res != NULL, relu)
        else if (!relu) BODY(NULL, 1, 0, 0)
        else if (!res) BODY(NULL, 1, 0, 1)
        else BODY(res + done * stride, 1, 1, 1)
#undef BODY
        if (m > 1) {
            fn_fold(q.sum, q.sum_lo, w, m, end.sum, end.sum_lo);
            fn_fold(q.dot, q.dot_lo, w, m, end.dot, end.dot_lo);
        }
        /* The part of the mean not yet subtracted. */
#define MOVE(j, n, away, low)                                                                                            \
    vdd_put(end.dot + (j), end.dot_lo + (j),                                                                             \
            vdd_moved(vdd_at(end.dot + (j), end.dot_lo + (j), n), vdd_at(end.sum + (j), end.sum_lo + (j), n), away, low), n)
        if (post == 1)
            EACH_EIGHT(w, MOVE(k, n, vd_sub(fn_at(p->mean + t + k, n), GET8(centre + k)), fn_at(p->mean_lo + t + k, n));)
        else
            for (ptrdiff_t from = 0, c = first, last; from < w; from = last, c++) {
                vd away = vd_set1(p->mean[c] - (double)centre[from]), low = vd_set1(p->mean_lo[c]);
                last = NAME(channel_end)(c, post, t, w);
                EACH_EIGHT(last - from, MOVE(from + k, n, away, low);)
            }
#undef MOVE
#ifdef WIDER
        /* Columns that float cannot hold are done again in double, one by one; the others keep their bits. */
        if (FN_LIKELY(fn_are_plain(p, NULL, first, channels))) continue;
        for (ptrdiff_t j = 0; j < w; j++) {
            ptrdiff_t k = (t + j) / post;
            if (!fn_is_wide(p, NULL, k)) continue;
            fn_norms one = fn_norms_from(p, k);
            fn_planes there = {end.sum + j, end.sum_lo + j, end.dot + j, end.dot_lo + j};
            WIDER(col_grad_sums)(dy + j, x + j, res ? res + j : NULL, rows, 1, stride, &one, 1, flags, there);
        }
#endif
    }
}

typedef struct { T a[ROOM], b[ROOM], c[ROOM]; } __attribute__((aligned(64))) NAME(col_grads);

#define GRAD(g, z, o, n)                                                                                                 \
    V xi_##z = NAME(col_load)(x + (o), n);                                                                               \
    V g = NAME(gate)(NAME(col_load)(dy + (o), n), xi_##z, has_res ? NAME(col_load)(res + (o), n) : xi_##z, v, has_res, relu); \
    V z = NAME(combine)(g, xi_##z, v.hi, LOAD_T(q->a + p->pad + j), LOAD_T(q->b + p->pad + j), LOAD_T(q->c + p->pad + j));
/* dx, and dres unless it is NULL, of n columns from j on of one row, at most a vector. */
FN_BULKY void NAME(col_grad_apply_part)(const S *dy, const S *x, const S *res, S *dx, S *dres, ptrdiff_t j, ptrdiff_t n,
                                        const NAME(col_norms) *p, const NAME(col_grads) *q, int relu) {
    const int has_res = res != NULL;
    NAME(affine_v) v = NAME(col_norm)(p, j);
    GRAD(g, z, 0, n)
    if (dres) STORE_N(dres, g, n);
    STORE_N(dx, z, n);
}
FN_INLINE void NAME(col_grad_apply_some)(const S *dy, const S *x, S *dx, int count, ptrdiff_t w, ptrdiff_t stride,
                                         const NAME(col_norms) *p, const NAME(col_grads) *q, int relu) {
    const S *res = NULL;
    const int has_res = 0;
    ptrdiff_t head = NAME(head_in)(p->pad, w), whole = head + (w - head) / LANES * LANES;
#define PART(k, n) \
    NAME(col_grad_apply_part)(dy + j + (k) * stride, x + j + (k) * stride, NULL, dx + j + (k) * stride, NULL, j, n, p, q, relu)
    for (ptrdiff_t k = 0, j = 0; k < count && head; k++) PART(k, head);
    ptrdiff_t from = head;
#define WHOLE(along)                                                                                                     \
    for (; from <= whole - (along) * LANES; from += (along) * LANES) {                                                   \
        V all[VECTORS_HELD];                                                                                             \
        EACH_OF(along, i) {                                                                                              \
            ptrdiff_t j = from + i * LANES;                                                                              \
            NAME(affine_v) v = NAME(col_norm)(p, j);                                                                     \
            EACH_OF(count, k) {                                                                                          \
                GRAD(g, z, j + k * stride, LANES)                                                                        \
                all[i * count + k] = z;                                                                                  \
            }                                                                                                            \
        }                                                                                                                \
        EACH_OF(count, k) EACH_OF(along, i) STORE(dx + from + i * LANES + k * stride, all[i * count + k]);               \
    }
    WHOLE(ALONG(count))
    WHOLE(1)
#undef WHOLE
    for (ptrdiff_t k = 0, j = whole; k < count && j < w; k++) PART(k, w - j);
#undef PART
}

/* Do two of these arrays begin alike? */
FN_INLINE int NAME(any_alike)(const S *a, const S *b, const S *c) {
    return NAME(begin_alike)(a, b) || NAME(begin_alike)(a, c) || NAME(begin_alike)(b, c);
}

FN_INLINE void NAME(col_grad_apply_rows)(const S *dy, const S *x, const S *res, S *dx, S *dres, ptrdiff_t rows, ptrdiff_t w,
                                         ptrdiff_t stride, int flags, ptrdiff_t ahead, const NAME(col_norms) *p,
                                         const NAME(col_grads) *q, int has_res, int relu, int stream) {
#define FULL(n)                                                                                                          \
    do {                                                                                                                 \
        V gs[AHEAD_OF_STORES], zs[AHEAD_OF_STORES];                                                                      \
        const ptrdiff_t from = j;                                                                                        \
        EACH_OF((n) / LANES, c) {                                                                                        \
            ptrdiff_t j = from + c * LANES;                                                                              \
            if (ahead) { fn_prefetch(x + j + ahead); fn_prefetch(dy + j + ahead); }                                      \
            NAME(affine_v) v = NAME(col_norm)(p, j);                                                                     \
            GRAD(g, z, j, LANES)                                                                                         \
            gs[c] = g, zs[c] = z;                                                                                        \
        }                                                                                                                \
        if (dres) PUT_SOME((n) / LANES, dres + j, gs, 0)                                                                 \
        PUT_SOME((n) / LANES, dx + j, zs, stream)                                                                        \
    } while (0)
#define PART(n) \
    NAME(col_grad_apply_part)(dy + j, x + j, has_res ? res + j : NULL, dx + j, dres ? dres + j : NULL, j, n, p, q, relu)
    ptrdiff_t r = 0;
#define SOME(count)                                                                                                      \
    do {                                                                                                                 \
        NAME(col_grad_apply_some)(dy, x, dx, count, w, stride, p, q, relu);                                              \
        dy += count * stride, x += count * stride, dx += count * stride;                                                 \
    } while (0)
    if (!GENERIC && !stream && !has_res) EACH_TOGETHER(NAME(rows_together)(stride, NAME(any_alike)(dy, x, dx), flags), rows, SOME);
    for (; r < rows; r++, dy += stride, x += stride, dx += stride) {
        if (stream) { NAME(fetch_shared)(dx + stride); NAME(fetch_shared)(dx + stride + w); }
        if (stream) EACH_IN_ROW_BY(STREAMED_AT_ONCE, dx, w, 1, FULL, PART);
        else EACH_IN_ROW(dx, w, 0, FULL, PART);
        if (has_res) res += stride;
        if (dres) dres += stride;
    }
#undef SOME
#undef PART
#undef FULL
}

/* `size` elements without gaps, whose numbers repeat after w: a row, or several side by side. */
FN_INLINE void NAME(col_grad_apply_run)(const S *dy, const S *x, S *dx, ptrdiff_t size, ptrdiff_t w, const NAME(col_norms) *p,
                                        const NAME(col_grads) *q, int relu, int stream) {
    const S *res = NULL;
    const int has_res = 0;
#define FULL(n)                                                                                                          \
    do {                                                                                                                 \
        V zs[AHEAD_OF_STORES];                                                                                           \
        const ptrdiff_t from = j;                                                                                        \
        EACH_OF((n) / LANES, c) {                                                                                        \
            ptrdiff_t j = from + c * LANES;                                                                              \
            if (stream) { fn_prefetch(x + i + c * LANES + SOON); fn_prefetch(dy + i + c * LANES + SOON); }               \
            NAME(affine_v) v = NAME(col_norm)(p, j);                                                                     \
            GRAD(g, z, i + c * LANES, LANES)                                                                             \
            zs[c] = z;                                                                                                   \
        }                                                                                                                \
        PUT_SOME((n) / LANES, dx + i, zs, stream)                                                                        \
    } while (0)
#define PART(n) NAME(col_grad_apply_part)(dy + i, x + i, NULL, dx + i, NULL, j, n, p, q, relu)
    if (stream) EACH_IN_RUN(STREAMED_AT_ONCE, dx, size, w, FULL, PART);
    else EACH_IN_RUN(AHEAD_OF_STORES, dx, size, w, FULL, PART);
#undef PART
#undef FULL
#undef GRAD
}

FN_OUTLINE void NAME(col_grad_apply)(const void *dyv, const void *xv, const void *rv, void *dxv, void *drv, ptrdiff_t rows,
                                     ptrdiff_t width, ptrdiff_t stride, const fn_norms *p, const fn_grads *g, ptrdiff_t post,
                                     int flags) {
    NAME(col_norms) v;
    NAME(col_grads) q;
    int relu = flags & FN_RELU, stream = !!(flags & FN_STREAM);
    ptrdiff_t m = NAME(abreast)(rows, width, stride), piece = NAME(col_piece)(width);
    for (ptrdiff_t t = 0, w; t < width; t += w) {
        const S *dy = (const S *)dyv + t, *x = (const S *)xv + t, *res = rv && relu ? (const S *)rv + t : NULL;
        S *dx = (S *)dxv + t, *dres = drv && res ? (S *)drv + t : NULL;
        w = NAME(col_end)(dx, width - t < piece ? width - t : piece, width - t, stream);
#ifdef WIDER
        int wide;
        w = NAME(col_alike)(p, g, t, w, post, &wide);
        if (FN_UNLIKELY(wide)) {
            fn_norms one = fn_norms_from(p, t / post);
            fn_grads slope = fn_grads_from(g, t / post);
            WIDER(col_grad_apply)(dy, x, res, dx, dres, rows, w, stride, &one, &slope, w, relu);
            continue;
        }
#endif
        if (w < width) m = 1;
        NAME(columns) s = {t, w, post, m};
        NAME(col_split)(p, s, NAME(col_head)(dx, m * w, m * stride, stream && !res), relu, &v);
        NAME(col_spread)(g->a, NULL, p, s, q.a + v.pad);
        NAME(col_spread)(g->b, NULL, p, s, q.b + v.pad);
        NAME(col_spread)(g->c, g->b, p, s, q.c + v.pad);
        if (!res && NAME(is_run)(w, stride, m, NAME(any_alike)(dy, x, dx), flags)) {
#define RUN(relu, stream) NAME(col_grad_apply_run)(dy, x, dx, rows * w, m * w, &v, &q, relu, stream)
            if (relu) { if (stream) RUN(1, 1); else RUN(1, 0); }
            else { if (stream) RUN(0, 1); else RUN(0, 0); }
#undef RUN
            continue;
        }
#define BODY(r, dr, has_res, relu, stream)                                                                               \
    EACH_ABREAST(m, rows, NAME(col_grad_apply_rows)(dy + done * stride, x + done * stride, r, dx + done * stride, dr, height, \
                                                    a * w, a * stride, flags, flags & FN_NEXT ? width : 0, &v, &q, has_res, relu, stream))
        if (GENERIC || res)
            BODY(res ? res + done * stride : NULL, dres ? dres + done * stride : NULL, res != NULL, relu, 0)
        else if (relu) { if (stream) BODY(NULL, NULL, 0, 1, 1) else BODY(NULL, NULL, 0, 1, 0) }
        else { if (stream) BODY(NULL, NULL, 0, 0, 1) else BODY(NULL, NULL, 0, 0, 0) }
#undef BODY
    }
    if (stream) fn_fence();
}
