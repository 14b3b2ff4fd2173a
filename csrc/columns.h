/* A matrix whose columns each have their own statistic: channels-last images, (N, C) arrays, and NCHW spans too short to be
   worth a horizontal reduction (then a "column" is one pixel of one channel, and add_runs adds up the columns of a channel).

   Included once per (storage S, arithmetic T). Their sums are in column_sums.h. Outputs are written row by row, or several rows at a time,
   which share the columns' numbers, all loads before the stores: where rows lie a multiple of 4 KB apart, a load waits for any recent
   store to the same column (twice as slow). Streamed outputs go row by row, in whole cache lines. Rows without gaps that are streamed, or not taken together, go as one run, whose
   vectors go on into the next row.
   Columns are taken in pieces whose numbers stay in L1, whole rows where they can be: halves of rows of 4 KB, one half of all rows
   and then the other, took up to 1.4 times as long. */

#define FN_TILE 512 /* columns of rows that are read as one; also of a piece of rows' gradients, and channels that are evaluated together */
#define FN_PIECE (4096 / (ptrdiff_t)sizeof(T)) /* columns whose numbers are in L1 together: at most 6 arrays, 24 KB */

/* A narrow matrix without gaps is read as one several times as wide, to fill whole vectors: how many of its rows make one. */
FN_INLINE ptrdiff_t NAME(abreast)(ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride) {
    if (stride != width || width > FN_TILE / 2 || width < 1) return 1;
    ptrdiff_t m = FN_TILE / width, low = width & -width, whole = low < LANES ? LANES / low : 1;
    if (m > rows / 8) m = rows / 8;
    return m >= whole ? m / whole * whole : m < 1 ? 1 : m;
}

/* Columns to take at a time: equal parts of the width. */
FN_INLINE ptrdiff_t NAME(col_piece)(ptrdiff_t width) {
    ptrdiff_t n = (width + FN_PIECE - 1) / FN_PIECE;
    return n < 2 ? width : ((width + n - 1) / n + LANES - 1) / LANES * LANES;
}

/* STEP with `height` rows, `a` of the matrix to each, from row `done` on: all that fit with a = m, then the rest with a = 1. */
#define EACH_ABREAST(m, rows, STEP)                                                                                      \
    for (ptrdiff_t done = 0, a = (m), height; done < (rows); done += height * a, a = 1) {                                \
        height = ((rows) - done) / a;                                                                                    \
        STEP;                                                                                                            \
    }

/* Numbers 0 .. w - 1 of an array, repeated m times and for a vector more, which may reach into the next row. */
FN_INLINE void NAME(repeat)(T *v, ptrdiff_t w, ptrdiff_t m) {
    if (w >= LANES) for (ptrdiff_t j = w; j < m * w + LANES; j += LANES) STORE_T(v + j, LOAD_T(v + j - w));
    else for (ptrdiff_t j = w; j < m * w + LANES; j++) v[j] = v[j - w];
}

/* ---- per-column numbers as vectors of T ---- */

/* Column j's number is at [pad + j], so that the columns where y's vectors are aligned have theirs aligned; there is room for
   a whole vector after the last. */
#define ROOM (FN_PIECE + LINE + 3 * LANES)
typedef struct { T hi[ROOM], scale[ROOM], shift[ROOM]; ptrdiff_t pad; } __attribute__((aligned(64))) NAME(col_norms);

/* Columns before y's first aligned vector: as if there were none where rows are short, or streamed one by one. */
FN_INLINE ptrdiff_t NAME(col_head)(const S *y, ptrdiff_t w, ptrdiff_t stride, int stream) {
    if (w < 4 * LANES || (stream && w != stride)) return 0;
    return (ptrdiff_t)((-(uintptr_t)y & (LANES * sizeof(S) - 1)) / sizeof(S));
}

/* The end of channel k, or of the w columns after `from`. */
FN_INLINE ptrdiff_t NAME(channel_end)(ptrdiff_t k, ptrdiff_t post, ptrdiff_t from, ptrdiff_t w) {
    ptrdiff_t end = (k + 1) * post - from;
    return end < w ? end : w;
}

/* One number for all columns of a channel up to `end`, in whole vectors: those of the next channel come later. */
FN_INLINE void NAME(fill)(T *to, ptrdiff_t j, ptrdiff_t end, T number) {
    for (V v = SET1(number); j < end; j += LANES) STORE_T(to + j, v);
}

/* The piece [t, t + w) of columns, `post` to a channel; m times side by side. */
typedef struct { ptrdiff_t t, w, post, m; } NAME(columns);

/* One number per channel to its columns: from[k], or with `slope` from[k] - lo·slope[k] (`from` may be NULL then: zeros). */
FN_INLINE void NAME(col_spread)(const double *from, const double *slope, const fn_norms *p, NAME(columns) s, T *to) {
    const ptrdiff_t t = s.t, w = s.w, post = s.post;
    if (post == 1)
        EACH_EIGHT(w, {
            vd number = from ? fn_at(from + t + k, n) : vd_zero();
            if (slope) {
                vd mean = fn_at(p->mean + t + k, n), low;
                PUT8(to + k, mean);
                low = vd_add(vd_sub(mean, GET8(to + k)), fn_at(p->mean_lo + t + k, n));
                number = vd_sub(number, vd_finite(vd_mul(low, fn_at(slope + t + k, n))));
            }
            PUT8(to + k, number);
        })
    else
        for (ptrdiff_t j = 0, k = t / post, end; j < w; j = end, k++) {
            double number = from ? from[k] : 0;
            end = NAME(channel_end)(k, post, t, w);
            NAME(fill)(to, j, end, slope ? NAME(shifted)(number, slope[k], NAME(low_of)(p->mean[k], p->mean_lo[k])) : (T)number);
        }
    NAME(repeat)(to, w, s.m);
}

/* What y of these columns takes, or without `affine` the means alone. */
FN_INLINE void NAME(col_split)(const fn_norms *p, NAME(columns) s, ptrdiff_t head, int affine, NAME(col_norms) *v) {
    v->pad = head ? LANES - head : 0;
    NAME(col_spread)(p->mean, NULL, p, s, v->hi + v->pad);
    if (!affine) return;
    NAME(col_spread)(p->scale, NULL, p, s, v->scale + v->pad);
    NAME(col_spread)(p->shift, p->scale, p, s, v->shift + v->pad);
}

#ifdef WIDER
/* Columns from t on that need the same arithmetic, at most w; *wide: it is wider, and they belong to one channel. */
FN_INLINE ptrdiff_t NAME(col_alike)(const fn_norms *p, const fn_grads *g, ptrdiff_t t, ptrdiff_t w, ptrdiff_t post, int *wide) {
    ptrdiff_t k = t / post;
    *wide = 0;
    if (FN_LIKELY(fn_are_plain(p, g, k, (t + w - 1) / post + 1 - k))) return w;
    *wide = fn_is_wide(p, g, k);
    return *wide ? NAME(channel_end)(k, post, t, w) : fn_alike(p, g, t, w, post);
}
#endif

FN_INLINE NAME(affine_v) NAME(col_norm)(const NAME(col_norms) *p, ptrdiff_t j) {
    j += p->pad;
    NAME(affine_v) v = {LOAD_T(p->hi + j), LOAD_T(p->scale + j), LOAD_T(p->shift + j)};
    return v;
}

FN_INLINE V NAME(col_out)(const S *x, const S *res, ptrdiff_t n, NAME(affine_v) v, int has_res, int relu) {
    return NAME(activate)(NAME(normalize)(NAME(col_load)(x, n), v), has_res ? NAME(col_load)(res, n) : v.hi, has_res, relu);
}

/* ONE(n) over a row of w columns from j = 0, `count` vectors at a time where there are as many: when `lined`, first up to a cache
   line of y, and whole lines then; ONE_LAST for what is less than a vector or, of half types, than a line. */
#define EACH_IN_ROW_BY(count, y, w, lined, ONE, ONE_LAST)                                                                \
    do {                                                                                                                 \
        ptrdiff_t j = 0, head = (lined) ? (ptrdiff_t)((-(uintptr_t)(y) & 63) / sizeof(S)) : 0, until, end;               \
        until = head = head < (w) ? head : (w);                                                                          \
        end = (lined) ? (w) - ((w) - head) % LINE : (w);                                                                 \
        for (;; until = (w)) { /* twice, or ONE_LAST would be here twice */                                              \
            for (ptrdiff_t n = 0; j < until; j += n) { n = until - j < LANES ? until - j : LANES; ONE_LAST(n); }         \
            if (j >= (w)) break;                                                                                         \
            if ((count) > 1) for (; j <= end - (count) * LANES; j += (count) * LANES) ONE((count) * LANES);              \
            for (; j <= end - LANES; j += LANES) ONE(LANES);                                                             \
        }                                                                                                                \
    } while (0)
#define EACH_IN_ROW(y, w, lined, ONE, ONE_LAST) EACH_IN_ROW_BY(1, y, w, lined, ONE, ONE_LAST)

/* The same over rows of w columns without gaps, `along` vectors at a time, as one run of `count` from i = 0: j is i's column. */
#define EACH_IN_RUN(along, y, count, w, ONE, ONE_LAST)                                                                   \
    do {                                                                                                                 \
        ptrdiff_t i = 0, j = 0, until = (ptrdiff_t)((-(uintptr_t)(y) & 63) / sizeof(S));                                 \
        for (until = until < (count) ? until : (count);; until = (count)) {                                              \
            for (ptrdiff_t n = 0; i < until; NEXT(n)) { n = until - i < LANES ? until - i : LANES; ONE_LAST(n); }        \
            if (i >= (count)) break;                                                                                     \
            for (ptrdiff_t end; i <= (count) - LANES; j -= j >= (w) ? (w) : 0) {                                         \
                end = i + (w) - j <= (count) - LANES ? i + (w) - j : (count) - LANES + 1; /* no vector begins there or later */ \
                for (; i < end - ((along) - 1) * LANES; i += (along) * LANES, j += (along) * LANES) ONE((along) * LANES); \
                for (; i < end; i += LANES, j += LANES) ONE(LANES);                                                      \
            }                                                                                                            \
        }                                                                                                                \
    } while (0)
#define NEXT(n) i += (n), j += (n), j -= j >= (w) ? (w) : 0

/* Columns before the first aligned vector of rows of w. */
FN_INLINE ptrdiff_t NAME(head_in)(ptrdiff_t pad, ptrdiff_t w) { return pad && LANES - pad < w ? LANES - pad : 0; }

/* Where a piece of columns ends: with a cache line of y, so that no line is written in two pieces; streamed ones are no longer than w. */
FN_INLINE ptrdiff_t NAME(col_end)(const S *y, ptrdiff_t w, ptrdiff_t left, int stream) {
    ptrdiff_t over = (ptrdiff_t)(((uintptr_t)(y + w) & 63) / sizeof(S)), more = over ? LINE - over : 0;
    if (w == left) return w;
    if (stream) return w > over ? w - over : w;
    return w + more < left ? w + more : left;
}

/* Stored rows are taken four together, so that the columns' numbers are loaded less often; or singly where rows lie 4 KB apart and arrays
   begin alike, so that a dozen lines would share a set of L1, and a load wait for the store to another row. At AVX2 singly too where not all
   lies in L2: memory is walked from end to end (0.8 to 1 of the time). */
FN_INLINE int NAME(begin_alike)(const S *a, const S *b) { return ((uintptr_t)a - (uintptr_t)b + 256) % 4096 < 512; }
FN_INLINE int NAME(rows_together)(ptrdiff_t stride, int alike, int flags) {
    if (FN_LEVEL == 2 && !(flags & FN_NEAR)) return 1;
    return sizeof(T) == 4 && stride * (ptrdiff_t)sizeof(S) % 4096 == 0 && alike ? 1 : 4;
}
/* Are rows, m of them abreast, one run? Where they have no gaps and are streamed or not taken together. A run has no parts of vectors at
   the ends of every row: on a Zen 3 evaluation in L3 takes 0.88 to 0.92 of the time, forward and backward 0.93 to 0.97, with rows of 4 KB
   0.98 to 1. Within L2 four rows together, which share loads, take no longer. */
FN_INLINE int NAME(is_run)(ptrdiff_t w, ptrdiff_t stride, ptrdiff_t m, int alike, int flags) {
    return !GENERIC && w == stride && w >= LINE && (flags & FN_STREAM || NAME(rows_together)(m * stride, alike, flags) == 1);
}
/* How many vectors of each of `rows` rows are loaded before the first is stored (spans.h says why). */
#define ALONG(rows) (VECTORS_HELD / (rows) > AHEAD_OF_STORES ? AHEAD_OF_STORES : VECTORS_HELD / (rows))
/* SOME(count) for all rows from r on. */
#define EACH_TOGETHER(together, rows, SOME)                                                                              \
    do {                                                                                                                 \
        if ((together) == 4) for (; r + 4 <= (rows); r += 4) SOME(4);                                                    \
        for (; r < (rows); r++) SOME(1);                                                                                 \
    } while (0)

#define OUT(o, j, n) NAME(col_out)(x + (o), has_res ? res + (o) : NULL, n, NAME(col_norm)(p, j), has_res, relu)
/* y of n columns from j on of one row, at most a vector. */
FN_BULKY void NAME(col_affine_part)(const S *x, const S *res, S *y, ptrdiff_t j, ptrdiff_t n, const NAME(col_norms) *p, int relu) {
    const int has_res = res != NULL;
    STORE_N(y, OUT(0, j, n), n);
}
#define PART_AT(o, n) NAME(col_affine_part)(x + (o), has_res ? res + (o) : NULL, y + (o), j, n, p, relu)
FN_INLINE void NAME(col_affine_some)(const S *x, const S *res, S *y, int count, ptrdiff_t w, ptrdiff_t stride,
                                     const NAME(col_norms) *p, int has_res, int relu) {
    ptrdiff_t head = NAME(head_in)(p->pad, w), whole = head + (w - head) / LANES * LANES;
    for (ptrdiff_t k = 0, j = 0; k < count && head; k++) PART_AT(k * stride, head);
    ptrdiff_t j = head;
#define WHOLE(along)                                                                                                     \
    for (; j <= whole - (along) * LANES; j += (along) * LANES) {                                                         \
        V z[VECTORS_HELD];                                                                                               \
        EACH_OF(along, i) EACH_OF(count, k) {                                                                            \
            ptrdiff_t o = j + i * LANES + k * stride;                                                                    \
            z[i * count + k] = NAME(col_out)(x + o, has_res ? res + o : NULL, LANES, NAME(col_norm)(p, j + i * LANES), has_res, relu); \
        }                                                                                                                \
        EACH_OF(count, k) EACH_OF(along, i) STORE(y + j + i * LANES + k * stride, z[i * count + k]);                     \
    }
    WHOLE(ALONG(count))
    WHOLE(1)
#undef WHOLE
    for (ptrdiff_t k = 0; k < count && j < w; k++) PART_AT(j + k * stride, w - j);
}

FN_INLINE void NAME(col_affine_rows)(const S *x, const S *res, S *y, ptrdiff_t rows, ptrdiff_t w, ptrdiff_t stride, int flags,
                                     ptrdiff_t ahead, const NAME(col_norms) *p, int has_res, int relu, int stream) {
#define FULL(n)                                                                                                          \
    do {                                                                                                                 \
        V z[AHEAD_OF_STORES];                                                                                            \
        EACH_OF((n) / LANES, c) {                                                                                        \
            if (ahead) fn_prefetch(x + j + c * LANES + ahead);                                                           \
            z[c] = OUT(j + c * LANES, j + c * LANES, LANES);                                                             \
        }                                                                                                                \
        PUT_SOME((n) / LANES, y + j, z, stream)                                                                          \
    } while (0)
#define PART(n) PART_AT(j, n)
    ptrdiff_t r = 0;
#define SOME(count)                                                                                                      \
    do {                                                                                                                 \
        NAME(col_affine_some)(x, res, y, count, w, stride, p, has_res, relu);                                            \
        x += count * stride, y += count * stride, res += has_res ? count * stride : 0;                                   \
    } while (0)
    if (!GENERIC && !stream) EACH_TOGETHER(NAME(rows_together)(stride, NAME(begin_alike)(x, y), flags), rows, SOME);
    for (; r < rows; r++, x += stride, y += stride, res += has_res ? stride : 0) {
        if (stream) { NAME(fetch_shared)(y + stride); NAME(fetch_shared)(y + stride + w); }
        if (stream) EACH_IN_ROW_BY(STREAMED_AT_ONCE, y, w, 1, FULL, PART);
        else EACH_IN_ROW(y, w, 0, FULL, PART);
    }
#undef SOME
#undef PART
#undef FULL
}

/* `size` elements without gaps, whose numbers repeat after w: a row, or several side by side. */
FN_INLINE void NAME(col_affine_run)(const S *x, const S *res, S *y, ptrdiff_t size, ptrdiff_t w, const NAME(col_norms) *p,
                                    int has_res, int relu, int stream) {
#define FULL(n)                                                                                                          \
    do {                                                                                                                 \
        V z[AHEAD_OF_STORES];                                                                                            \
        EACH_OF((n) / LANES, c) {                                                                                        \
            if (stream) fn_prefetch(x + i + c * LANES + SOON);                                                           \
            z[c] = OUT(i + c * LANES, j + c * LANES, LANES);                                                             \
        }                                                                                                                \
        PUT_SOME((n) / LANES, y + i, z, stream)                                                                          \
    } while (0)
#define PART(n) PART_AT(i, n)
    if (stream) EACH_IN_RUN(STREAMED_AT_ONCE, y, size, w, FULL, PART);
    else EACH_IN_RUN(AHEAD_OF_STORES, y, size, w, FULL, PART);
#undef PART
#undef FULL
#undef PART_AT
#undef OUT
}

FN_OUTLINE void NAME(col_affine)(const void *xv, const void *rv, void *yv, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride,
                                 const fn_norms *p, ptrdiff_t post, int flags) {
    NAME(col_norms) v;
    int relu = flags & FN_RELU, stream = !!(flags & FN_STREAM);
    ptrdiff_t m = NAME(abreast)(rows, width, stride), piece = NAME(col_piece)(width);
    for (ptrdiff_t t = 0, w; t < width; t += w) {
        const S *x = (const S *)xv + t, *res = rv ? (const S *)rv + t : NULL;
        S *y = (S *)yv + t;
        w = NAME(col_end)(y, width - t < piece ? width - t : piece, width - t, stream);
#ifdef WIDER
        int wide;
        w = NAME(col_alike)(p, NULL, t, w, post, &wide);
        if (FN_UNLIKELY(wide)) {
            fn_norms one = fn_norms_from(p, t / post);
            WIDER(col_affine)(x, res, y, rows, w, stride, &one, w, flags & FN_RELU);
            continue;
        }
#endif
        if (w < width) m = 1;
        NAME(columns) s = {t, w, post, m};
        NAME(col_split)(p, s, NAME(col_head)(y, m * w, m * stride, stream), 1, &v);
        if (NAME(is_run)(w, stride, m, NAME(begin_alike)(x, y), flags)) {
#define RUN(has_res, relu, stream) NAME(col_affine_run)(x, res, y, rows * w, m * w, &v, has_res, relu, stream)
            if (res) RUN(1, relu, stream);
            else if (relu) { if (stream) RUN(0, 1, 1); else RUN(0, 1, 0); }
            else { if (stream) RUN(0, 0, 1); else RUN(0, 0, 0); }
#undef RUN
            continue;
        }
#define BODY(r, has_res, relu, stream) \
    EACH_ABREAST(m, rows, NAME(col_affine_rows)(x + done * stride, r, y + done * stride, height, a * w, a * stride, \
                                                flags, flags & FN_NEXT ? width : 0, &v, has_res, relu, stream))
        if (GENERIC) BODY(res ? res + done * stride : NULL, res != NULL, relu, 0)
        else if (res) { if (stream) BODY(res + done * stride, 1, relu, 1) else BODY(res + done * stride, 1, relu, 0) }
        else if (relu) { if (stream) BODY(NULL, 0, 1, 1) else BODY(NULL, 0, 1, 0) }
        else { if (stream) BODY(NULL, 0, 0, 1) else BODY(NULL, 0, 0, 0) }
#undef BODY
    }
    if (stream) fn_fence();
}
