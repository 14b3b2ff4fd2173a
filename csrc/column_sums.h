/* Sums down the columns of columns.h, in the same pieces.

   Included once per (storage S, arithmetic T). Eight rows (of two arrays: four) are read side by side, so that a column's accumulators are
   loaded and stored once for eight rows; meanwhile what comes next is fetched. Squares are taken in one look or two, as in spans.h. */

/* BODY(row, rows, columns) over all columns j of a band of rows: the whole band at once for full vectors, when it has the
   full height that the compiler knows; row by row for the rest. */
#define EACH_COLUMN(w, height, full, BODY)                                                                               \
    do {                                                                                                                 \
        ptrdiff_t done = !GENERIC && (full) ? (w) / LANES * LANES : 0;                                                   \
        for (ptrdiff_t j = 0; j < done; j += LANES) BODY(0, height, LANES);                                              \
        for (ptrdiff_t row = 0; row < (height); row++)                                                                   \
            for (ptrdiff_t j = done; j < (w); j += LANES) BODY(row, 1, ((w) - j < LANES ? (w) - j : LANES));             \
    } while (0)

/* Are the next rows fetched? Beyond the cache, or else sums take up to twice as long; and where rows are near each other, though not at AVX2
   (spans.h says why; there sums of what lies in L3 take 0.8 to 0.9 of the time without). In cache the processor reads rows of a page and more as
   quickly, and help costs a tenth. */
FN_INLINE int NAME(col_is_helped)(ptrdiff_t stride, int flags) {
    return flags & FN_FAR || (stride * (ptrdiff_t)sizeof(S) < 4096 && NAME(is_helped)(flags));
}
/* What is fetched while `some` rows are summed side by side: with the vector of column j of row i what lies ahead + turn·j + apart·i beyond that
   of row 0. Rows without gaps are fetched line after line, as memory gives them fastest: beyond the cache a Zen 3 takes 0.83 to 0.93 of
   the time backward and 0.92 to 0.96 forward that it takes if lines are fetched side by side too. Twice `some` rows on, each line has the
   time of `some` rows to arrive. Of other rows the next ones are fetched, or after the last the first of the next columns. (Of
   (32, 2048, 7, 7) the forward takes 0.97 of the time, the backward 0.94.) */
typedef struct { ptrdiff_t ahead, turn, apart; } NAME(fetching);
FN_INLINE NAME(fetching) NAME(rows_ahead)(ptrdiff_t r, ptrdiff_t some, ptrdiff_t rows, ptrdiff_t w, ptrdiff_t stride, int fetch) {
    NAME(fetching) f = {0, 0, 0};
    if (!fetch) return f;
    if (w == stride) { f.ahead = 2 * some * stride; f.turn = some - 1; f.apart = LANES; }
    else { f.ahead = r + 2 * some <= rows ? some * stride : w - r * stride; f.apart = stride; }
    return f;
}

FN_OUTLINE void NAME(col_look_add)(const S *x, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride, int fetch, double *sum,
                                   double *sum_lo, double *square, double *square_lo) {
    ptrdiff_t r = 0;
#define LOOK(row, rows, n)                                                                                               \
    do {                                                                                                                 \
        if (rows == 8) {                                                                                                 \
            T room[8 * LANES];                                                                                           \
            ptrdiff_t step = stride;                                                                                     \
            if (f.ahead) EACH_OF(8, i) fn_prefetch(x + j + f.ahead + f.turn * j + f.apart * i);                          \
            const T *from = NAME(some_in_t)(x + j, 8, &step, room);                                                      \
            ACC_LOOK8(from, step, sum + j, sum_lo + j, square + j, square_lo + j);                                       \
            break;                                                                                                       \
        }                                                                                                                \
        NAME(look) a = NAME(look_at)(NAME(look_zero)(), WIDE(NAME(col_load)(x + (row) * stride + j, n)));                \
        ACC_PUT(a.sum, sum + j, sum_lo + j, n, 0);                                                                       \
        ACC_PUT(NAME(look_squares)(a), square + j, square_lo + j, n, 0);                                                 \
    } while (0)
    for (; r + 8 <= rows; r += 8, x += 8 * stride) {
        const NAME(fetching) f = NAME(rows_ahead)(r, 8, rows, width, stride, fetch);
        EACH_COLUMN(width, 8, 1, LOOK);
    }
    const NAME(fetching) f = {0, 0, 0};
    EACH_COLUMN(width, rows - r, 0, LOOK);
#undef LOOK
}

FN_OUTLINE void NAME(col_sums)(const void *xv, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride, int flags, double *sum,
                               double *sum_lo, double *square, double *square_lo) {
    const S *x = xv;
    int fetch = NAME(col_is_helped)(stride, flags);
    ptrdiff_t m = NAME(abreast)(rows, width, stride), piece = NAME(col_piece)(width);
    for (ptrdiff_t t = 0; t < width; t += piece) {
        ptrdiff_t w = width - t < piece ? width - t : piece;
        double room[4][FN_TILE], *const there[] = {sum + t, sum_lo + t, square + t, square_lo + t}, *sums[4];
        for (int i = 0; i < 4; i++) {
            sums[i] = m > 1 ? room[i] : there[i];
            memset(sums[i], 0, (size_t)(m * w) * sizeof(double));
        }
        EACH_ABREAST(m, rows, NAME(col_look_add)(x + t + done * stride, height, a * w, a * stride, fetch, sums[0], sums[1], sums[2], sums[3]))
        for (int i = 0; i < 4 && m > 1; i += 2) fn_fold(sums[i], sums[i + 1], w, m, there[i], there[i + 1]);
    }
}

FN_OUTLINE void NAME(col_squares_add)(const S *x, ptrdiff_t rows, ptrdiff_t w, ptrdiff_t stride, const T *c, double *q, double *q_lo) {
#define SQUARES(row, rows, n) \
    ACC_PUT(ACC_SQUARE(ACC_ZERO(), WIDE(NAME(col_load)(x + (row) * stride + j, n)), WIDE(LOAD_T(c + j))), q + j, q_lo + j, n, 0)
    EACH_COLUMN(w, rows, 0, SQUARES);
#undef SQUARES
}

FN_OUTLINE void NAME(col_squares)(const void *xv, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride, const double *centre, double *m2) {
    const S *x = xv;
    ptrdiff_t m = NAME(abreast)(rows, width, stride), piece = NAME(col_piece)(width);
    for (ptrdiff_t t = 0; t < width; t += piece) {
        ptrdiff_t w = width - t < piece ? width - t : piece;
        T c[FN_PIECE + 2 * LANES];
        double room[FN_TILE], *q = m > 1 ? room : m2 + t, q_lo[FN_PIECE];
        EACH_EIGHT(w, PUT8(c + k, fn_at(centre + t + k, n));)
        NAME(repeat)(c, w, m);
        for (ptrdiff_t j = 0; j < m * w; j++) q[j] = q_lo[j] = 0;
        EACH_ABREAST(m, rows, NAME(col_squares_add)(x + t + done * stride, height, a * w, a * stride, c, q, q_lo))
        if (m > 1) fn_fold(q, q_lo, w, m, m2 + t, q_lo);
        q = m2 + t;
        vd r = vd_set1((double)rows);
        EACH_EIGHT(w, {
            vd d = vd_sub(fn_at(centre + t + k, n), GET8(c + k));
            fn_put(q + k, vd_add(vd_sub(fn_at(q + k, n), vd_mul(r, vd_mul(d, d))), fn_at(q_lo + k, n)), n);
        })
    }
}
