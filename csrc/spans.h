/* Spans that share one statistic: the moments of a set, and its normalization.

   Included once per (storage S, arithmetic T). The method, per block of at most FN_BLOCK elements, which stays in L1:

     sum = Σx, q = Σx²           in one look: in double, where the squares of floats are exact; for float64 with what each rounding loses
     m2  = q - sum·mean

   That loses what the mean outweighs the deviations by. Where less than a millionth of q would remain (a mean of 1000 standard
   deviations), a second look takes the place of the last line:

     c   = fl(mean)                the centre, a constant block's own value exactly
     m2  = Σ(x - c)² - n·(mean - c)²

   Nothing cancels: c is within half an ULP of the block's mean. Blocks are merged in index order. */

#define FN_LONG 256 /* stores across cache lines cost more than a partial vector that avoids them */
#define FN_BLOCK (16384 / (ptrdiff_t)sizeof(T))

/* A vector from memory, widened. */
#ifndef WIDE_AT
#define WIDE_AT(p) WIDE(LOAD(p))
#endif

/* Two vectors of a run, in the order that the type has quickest: of bfloat16 the even elements and the odd ones. It serves where all lanes
   have the same numbers. */
#ifndef LOAD_PAIR
#define LOAD_PAIR(s, a, b) (*(a) = LOAD(s), *(b) = LOAD((s) + LANES))
#define STORE_PAIR(d, a, b) (STORE(d, a), STORE((d) + LANES, b))
#define STREAM_PAIR(d, a, b) (STREAM(d, a), STREAM((d) + LANES, b))
#endif
/* A vector, or `along` of them in pairs, to V's and from there. */
#define LOAD_SOME(along, s, to)                                                                                          \
    do {                                                                                                                 \
        if ((along) == 1) (to)[0] = LOAD(s);                                                                             \
        else EACH_OF((along) / 2, h) LOAD_PAIR((s) + 2 * h * LANES, &(to)[2 * h], &(to)[2 * h + 1]);                     \
    } while (0)
#define STORE_SOME(along, d, from, stream)                                                                               \
    do {                                                                                                                 \
        if ((along) == 1) { if (stream) STREAM(d, (from)[0]); else STORE(d, (from)[0]); }                                \
        else EACH_OF((along) / 2, h) {                                                                                   \
            if (stream) STREAM_PAIR((d) + 2 * h * LANES, (from)[2 * h], (from)[2 * h + 1]);                              \
            else STORE_PAIR((d) + 2 * h * LANES, (from)[2 * h], (from)[2 * h + 1]);                                      \
        }                                                                                                                \
    } while (0)

/* Vectors as they were loaded singly. */
#define PUT_SOME(count, d, from, stream) \
    EACH_OF(count, k_) { if (stream) STREAM((d) + k_ * LANES, (from)[k_]); else STORE((d) + k_ * LANES, (from)[k_]); }

#define LINE (64 / (ptrdiff_t)sizeof(S))
#define SOON (8192 / (ptrdiff_t)sizeof(S)) /* how far a run is fetched ahead: 2 KB came too late, 4 KB and more made no difference */

/* Is it? Not in L2; nor at AVX2 in L3, from where it comes by itself (on a Zen 3 the backward of (1, 64, 56, 56) takes 0.8 of the time for it,
   layer norm's of (256, 768) 0.95 to 0.98). */
FN_INLINE int NAME(is_helped)(int flags) { return flags & FN_FAR || (FN_LEVEL != 2 && !(flags & FN_NEAR)); }

/* Lines of one array together, then of the other: one of each in turn took up to a tenth longer. */
#define FETCH(p, n) _Pragma("GCC unroll 4") for (ptrdiff_t k_ = 0; k_ < (n); k_ += LINE) fn_prefetch((p) + k_)
#define FETCH_L1(p, n) _Pragma("GCC unroll 4") for (ptrdiff_t k_ = 0; k_ < (n); k_ += LINE) fn_prefetch_l1((p) + k_)

FN_INLINE V NAME(col_load)(const S *x, ptrdiff_t n) { return n == LANES ? LOAD(x) : LOAD_N(x, n); }
/* Sums take vectors from memory, in T: as they lie there, or kept in a room of LANES, from where floats are widened to double while
   they are loaded, without a shuffle for each half. */
#define IN_MEMORY(room) __asm__("" : "+m"(*(T(*)[LANES])(room))) /* or else gcc finds the shuffles again */
FN_INLINE const T *NAME(kept)(V a, T *room) { STORE_T(room, a); IN_MEMORY(room); return room; }
FN_INLINE const T *NAME(in_t)(const S *x, T *room) {
    return sizeof(S) == sizeof(T) ? (const T *)(const void *)x : NAME(kept)(LOAD(x), room);
}
/* Four vectors of a run, in pairs: in any order. */
FN_INLINE const T *NAME(kept4)(const V *a, T *room) { EACH_OF(4, k) NAME(kept)(a[k], room + k * LANES); return room; }
FN_INLINE const T *NAME(four_in_t)(const S *x, T *room) {
    V a[4];
    if (sizeof(S) == sizeof(T)) return (const T *)(const void *)x;
    LOAD_SOME(4, x, a);
    return NAME(kept4)(a, room);
}
/* `count` vectors of x, *step apart, and then as far as they are in the room. */
FN_INLINE const T *NAME(some_in_t)(const S *x, int count, ptrdiff_t *step, T *room) {
    if (sizeof(S) == sizeof(T)) return (const T *)(const void *)x;
    _Pragma("GCC unroll 8") for (int k = 0; k < count; k++) NAME(kept)(LOAD(x + k * *step), room + k * LANES);
    *step = LANES;
    return room;
}
FN_INLINE ptrdiff_t NAME(into_line)(const S *p) { return (ptrdiff_t)((uintptr_t)p & 63) / (ptrdiff_t)sizeof(S); }
/* A line that is stored in part among streamed ones: it would wait for memory, and stores go in order. */
FN_INLINE void NAME(fetch_shared)(const S *p) { if (NAME(into_line)(p)) fn_prefetch_l1(p); }

/* Σx and Σx²; the squares in two parts, because each addition waits for the last one. */
typedef struct { ACC sum, even, odd; } NAME(look);
FN_INLINE NAME(look) NAME(look_zero)(void) { NAME(look) a = {ACC_ZERO(), ACC_ZERO(), ACC_ZERO()}; return a; }
FN_INLINE NAME(look) NAME(look_at)(NAME(look) a, W x) {
    a.sum = ACC_ADD(a.sum, x);
    a.even = ACC_PRODUCT(a.even, x, x);
    return a;
}
FN_INLINE NAME(look) NAME(look_at4)(NAME(look) a, const S *x) {
    T room[4 * LANES];
    ACC_LOOK4(&a.sum, &a.even, &a.odd, NAME(four_in_t)(x, room), LANES);
    return a;
}
FN_INLINE ACC NAME(look_squares)(NAME(look) a) { return ACC_JOIN(a.even, a.odd); }

/* The lines of a run from i on, and the one in which it ends: a single one that is not fetched costs as much as half a page. */
FN_INLINE void NAME(fetch_rest)(const S *x, ptrdiff_t i, ptrdiff_t len) {
    for (; i < len; i += LINE) fn_prefetch(x + i);
    fn_prefetch(x + len - 1);
}

/* One contiguous span; meanwhile what lies `ahead` of it is fetched. */
FN_INLINE NAME(look) NAME(look_span)(NAME(look) a, const S *x, ptrdiff_t len, ptrdiff_t ahead) {
    ptrdiff_t i = 0;
    for (; i <= len - 4 * LANES; i += 4 * LANES) {
        if (ahead) FETCH(x + i + ahead, 4 * LANES);
        a = NAME(look_at4)(a, x + i);
    }
    if (ahead && len > 4 * LANES) NAME(fetch_rest)(x + ahead, i, len);
    for (; i <= len - LANES; i += LANES) a = NAME(look_at)(a, WIDE_AT(x + i));
    if (i < len) a = NAME(look_at)(a, WIDE(LOAD_N(x + i, len - i)));
    return a;
}

/* Σ(x - c)² of one contiguous span. */
FN_INLINE ACC NAME(squares_span)(ACC acc, const S *x, ptrdiff_t len, V c) {
    ptrdiff_t i = 0;
    for (; i <= len - LANES; i += LANES) acc = ACC_SQUARE(acc, WIDE_AT(x + i), WIDE(c));
    if (i < len) acc = ACC_SQUARE(acc, WIDE(FIRST_OR(LOAD_N(x + i, len - i), c, len - i)), WIDE(c));
    return acc;
}

/* m2 of `count` spans about c, then about their mean. */
FN_OUTLINE double NAME(second_look)(const S *x, ptrdiff_t len, ptrdiff_t count, ptrdiff_t stride, fn_dd mean) {
    T c = (T)mean.hi;
    double r = (mean.hi - (double)c) + mean.lo;
    ACC acc = ACC_ZERO();
    for (ptrdiff_t k = 0; k < count; k++) acc = NAME(squares_span)(acc, x + k * stride, len, SET1(c));
    fn_dd q = ACC_SUM(acc);
    double m2 = (q.hi - fn_low((double)(len * count) * (r * r))) + q.lo; /* of squares beyond the largest double infinity is left */
    return m2 < 0 ? 0 : m2;
}

/* One block: sum (hi, lo), mean and m2 of `count` spans of `len`. The next one lies `ahead`. */
FN_INLINE void NAME(block)(const S *x, ptrdiff_t len, ptrdiff_t count, ptrdiff_t stride, ptrdiff_t ahead, fn_dd *sum, fn_moments *b) {
    NAME(look) a = NAME(look_zero)();
    for (ptrdiff_t k = 0; k < count; k++) a = NAME(look_span)(a, x + k * stride, len, ahead);
    double n = (double)(len * count);
    fn_dd q = ACC_SUM(NAME(look_squares)(a));
    *sum = ACC_SUM(a.sum);
    fn_dd mean = fn_dd_div(*sum, n);
    double m2 = sizeof(T) == 8 ? fn_about(q, *sum, mean) : q.hi - sum->hi * mean.hi;
    if (FN_UNLIKELY(!fn_is_kept(m2, q.hi))) m2 = NAME(second_look)(x, len, count, stride, mean);
    b->n = n;
    b->sum = sum->hi;
    b->sum_lo = sum->lo;
    b->mean = mean.hi;
    b->mean_lo = mean.lo;
    b->m2 = m2;
    b->m2_lo = 0;
}

FN_OUTLINE void NAME(moments)(const void *xv, fn_spans s, fn_moments *out) {
    const S *x = xv;
    /* Cut each long span into equal pieces, or take several short spans to a block: by shape alone. */
    ptrdiff_t pieces = (s.len + FN_BLOCK - 1) / FN_BLOCK;
    if (pieces < 1) pieces = 1;
    ptrdiff_t piece = ((s.len + pieces - 1) / pieces + 8 * LANES - 1) / (8 * LANES) * (8 * LANES);
    ptrdiff_t group = pieces > 1 || s.len == 0 ? 1 : FN_BLOCK / s.len;
    if (pieces == 1) piece = s.len;
    if (pieces == 1 && s.count <= group && s.len > 0) {
        fn_dd sum;
        NAME(block)(x, s.len, s.count, s.stride, 0, &sum, out);
        return;
    }
    fn_dd sum = {0, 0}, q = {0, 0};
    double n = 0;
    for (ptrdiff_t k = 0; k < s.count; k += group) {
        ptrdiff_t spans = s.count - k < group ? s.count - k : group;
        for (ptrdiff_t i = 0; i < s.len; i += piece) {
            ptrdiff_t len = s.len - i < piece ? s.len - i : piece;
            fn_dd block_sum;
            fn_moments b;
            ptrdiff_t ahead = i + piece < s.len ? piece : spans * s.stride - i;
            NAME(block)(x + k * s.stride + i, len, spans, s.stride, ahead, &block_sum, &b);
            if (n > 0) { /* Chan's merge: nothing is added that would have to be taken off again */
                fn_dd before = fn_dd_div(sum, n), after = {b.mean, b.mean_lo};
                if (sizeof(T) == 8) q = fn_dd_add(q, fn_between(before, after, n, b.n));
                else q = fn_dd_add_d(q, fn_between_floats(before, after, n, b.n));
            }
            sum = fn_dd_add(sum, block_sum);
            q = fn_dd_add_d(q, b.m2);
            n += b.n;
        }
    }
    fn_dd mean = fn_dd_div(sum, n), m2 = fn_two_sum(q.hi, q.lo);
    out->n = n;
    out->sum = sum.hi;
    out->sum_lo = sum.lo;
    out->mean = mean.hi;
    out->mean_lo = mean.lo;
    out->m2 = m2.hi;
    out->m2_lo = m2.lo;
}

/* ---- normalization ---- */

/* y = (x - mean)·scale + shift = (x - hi)·scale + (shift - lo·scale), hi being the mean in T and lo the rest of it. x - hi is exact
   where it matters; and as no x but hi lies nearer to the mean than hi does, it is at most twice x - mean. */
typedef struct { V hi, scale, shift; } NAME(affine_v);

FN_INLINE double NAME(low_of)(double mean, double mean_lo) { return (mean - (double)(T)mean) + mean_lo; }

/* shift - lo·scale */
FN_INLINE T NAME(shifted)(double shift, double scale, double lo) { return (T)(shift - fn_low(lo * scale)); }

FN_INLINE NAME(affine_v) NAME(split)(const fn_norm *p) {
    NAME(affine_v) v;
    v.hi = SET1((T)p->mean);
    v.scale = SET1((T)p->scale);
    v.shift = SET1(NAME(shifted)(p->shift, p->scale, NAME(low_of)(p->mean, p->mean_lo)));
    return v;
}

FN_INLINE V NAME(normalize)(V x, NAME(affine_v) v) { return ADD(MUL(SUB(x, v.hi), v.scale), v.shift); }

FN_INLINE V NAME(activate)(V z, V residual, int has_residual, int relu) {
    if (has_residual) z = ADD(ROUND(z), residual);
    return relu ? POSITIVE(z, z) : z;
}

/* Streamed spans meet within cache lines. Stored as two parts, at two times, such a line costs as much as a dozen: the one who
   comes later writes all of it, the first lanes by the numbers of the spans before. */
FN_INLINE ptrdiff_t NAME(lanes_before)(ptrdiff_t i) { return i >= 0 ? 0 : -i < LANES ? -i : LANES; }

/* `left`: how many of the last elements are left to others. AHEAD_OF_STORES vectors are loaded before the first is stored: where an
   output begins a little further into a page than its input, as the second of two new arrays does, a load next to a recent store waits
   for it (2.3 times as long), and a streamed one is recent for long (on a Zen 4 0.6 to 0.9 of what one load and one streamed store after the
   other take; where arrays begin alike, as long). Not so on a Zen 3: streamed singly, spans, columns and evaluation take 0.8 to 1 of the
   time of four together, wherever arrays begin; rows gain by four as often as they lose. */
#define AHEAD_OF_STORES 4
#define STREAMED_AT_ONCE (FN_LEVEL == 2 ? 1 : AHEAD_OF_STORES)
FN_INLINE void NAME(affine_body)(const S *x, const S *res, S *y, ptrdiff_t len, NAME(affine_v) v, const NAME(affine_v) *before,
                                 ptrdiff_t left, int has_res, int relu, int stream, ptrdiff_t ahead) {
    ptrdiff_t i = 0, in = NAME(into_line)(y);
#define OUT(v, i, n) NAME(activate)(NAME(normalize)(NAME(col_load)(x + (i), n), v), has_res ? NAME(col_load)(res + (i), n) : (v).hi, has_res, relu)
    if (stream && before && in)
        for (i = -in; i < LINE - in; i += LANES) STREAM(y + i, FIRST_OR(OUT(*before, i, LANES), OUT(v, i, LANES), NAME(lanes_before)(i)));
    else if (stream || len >= FN_LONG)
        for (ptrdiff_t head = in ? LINE - in : 0, n; i < head && i < len; i += n) {
            n = head - i < LANES ? head - i : LANES - 1;
            if (n > len - i) n = len - i;
            STORE_N(y + i, OUT(v, i, n), n);
        }
    len -= left;
#define WHOLE(along)                                                                                                     \
    for (; i <= len - (along) * LANES; i += (along) * LANES) {                                                           \
        V z[AHEAD_OF_STORES], r[AHEAD_OF_STORES];                                                                        \
        LOAD_SOME(along, x + i, z);                                                                                      \
        if (has_res) LOAD_SOME(along, res + i, r);                                                                       \
        EACH_OF(along, k) z[k] = NAME(activate)(NAME(normalize)(z[k], v), has_res ? r[k] : v.hi, has_res, relu);         \
        if (ahead) EACH_OF(along, k) fn_prefetch(x + i + k * LANES + ahead);                                             \
        STORE_SOME(along, y + i, z, stream);                                                                             \
    }
    if (!GENERIC && (!stream || STREAMED_AT_ONCE > 1)) WHOLE(AHEAD_OF_STORES)
    if (LINE == 2 * LANES) WHOLE(2)
    WHOLE(1)
#undef WHOLE
    if (ahead && len > 4 * LANES) NAME(fetch_rest)(x + ahead, i, len);
    if (i < len) { ptrdiff_t n = len - i; STORE_N(y + i, OUT(v, i, n), n); }
#undef OUT
}

FN_OUTLINE int NAME(affine)(const void *xv, const void *rv, void *yv, fn_spans s, const fn_norm *p, int flags, ptrdiff_t ahead,
                            const fn_norm *before) {
    const S *x = xv, *res = rv;
    S *y = yv;
#ifdef WIDER
    if (FN_UNLIKELY(p->wide)) {
        for (ptrdiff_t k = 0, o = 0; before && k < s.count; k++, o += s.stride) {
            ptrdiff_t in = NAME(into_line)(y + o);
            fn_spans rest = {in, 1, 0};
            NAME(affine)(x + o - in, res ? res + o - in : NULL, y + o - in, rest, before, flags & FN_RELU, 0, NULL);
        }
        return WIDER(affine)(xv, rv, yv, s, p, flags & FN_RELU, ahead, NULL);
    }
#endif
    NAME(affine_v) v = NAME(split)(p), b;
    if (before) b = NAME(split)(before);
    int relu = flags & FN_RELU, stream = !GENERIC && flags & FN_STREAM, leave = stream && flags & FN_LEAVE;
    for (ptrdiff_t k = s.count; k-- > 0;) { /* what was read last is first: it is in cache (0.95 to 1 of the time) */
        ptrdiff_t o = k * s.stride, left = leave ? NAME(into_line)(y + o + s.len) : 0;
#define BODY(r, has_res, relu, stream) \
    NAME(affine_body)(x + o, r, y + o, s.len, v, before ? &b : NULL, left, has_res, relu, stream, ahead)
        if (stream && !leave) NAME(fetch_shared)(y + o + s.len);
        if (stream && !before) NAME(fetch_shared)(y + o - s.stride);
        if (GENERIC) BODY(res ? res + o : NULL, res != NULL, relu, 0);
        else if (res) { if (stream) BODY(res + o, 1, relu, 1); else BODY(res + o, 1, relu, 0); }
        else if (relu) { if (stream) BODY(NULL, 0, 1, 1); else BODY(NULL, 0, 1, 0); }
        else { if (stream) BODY(NULL, 0, 0, 1); else BODY(NULL, 0, 0, 0); }
#undef BODY
    }
    return leave;
}
