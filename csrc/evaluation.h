/* y by given statistics: nothing has to be summed first, so that memory is walked from its beginning to its end, whatever channels
   lie there.

   Included once per (storage S, arithmetic T). Vectors are those of the whole walk, aligned, and one that holds the end of a channel
   and the beginning of the next takes its numbers from both: no cache line is stored in two parts, and spans of 7×7 cost little
   more than long ones. It takes 0.6 of the time of a copy; a channel's spans one after the other, as the sums of training need them, took
   0.9, and the same walk fetched into L2 and not L1 0.8. */

/* Of `count` elements that begin `into` channel 0 of v, each channel having `post` ≥ LANES of them. */
FN_INLINE void NAME(evaluate_body)(const S *x, const S *res, S *y, ptrdiff_t count, ptrdiff_t into, ptrdiff_t post,
                                   const NAME(col_norms) *v, int has_res, int relu, int stream) {
    ptrdiff_t head = (ptrdiff_t)((-(uintptr_t)y & (LANES * sizeof(S) - 1)) / sizeof(S)), i = 0, k = 0, end = post - into;
#define NUMBERS(k) {SET1(v->hi[k]), SET1(v->scale[k]), SET1(v->shift[k])}
    NAME(affine_v) now = NUMBERS(0);
#define OUT(v, i, n) NAME(col_out)(x + (i), has_res ? res + (i) : NULL, n, v, has_res, relu)
#define NEXT_CHANNEL(next) (now = next, k++, end = end + post < count ? end + post : count)
#define STEP(along)                                                                                                      \
    do {                                                                                                                 \
        V z[AHEAD_OF_STORES], r[AHEAD_OF_STORES];                                                                        \
        LOAD_SOME(along, x + i, z);                                                                                      \
        if (has_res) LOAD_SOME(along, res + i, r);                                                                       \
        EACH_OF(along, j) z[j] = NAME(activate)(NAME(normalize)(z[j], now), has_res ? r[j] : now.hi, has_res, relu);     \
        EACH_OF(along, j) fn_prefetch_l1(x + i + j * LANES + SOON);                                                      \
        STORE_SOME(along, y + i, z, stream);                                                                             \
        i += (along) * LANES;                                                                                            \
    } while (0)
#define WHOLE(along) while (i <= end - (along) * LANES) STEP(along)
    /* n elements, of which the last belong to the next channel. */
#define ACROSS(n)                                                                                                        \
    do {                                                                                                                 \
        ptrdiff_t of = end - i;                                                                                          \
        NAME(affine_v) next = NUMBERS(k + 1);                                                                            \
        NAME(affine_v) both = {FIRST_OR(now.hi, next.hi, of), FIRST_OR(now.scale, next.scale, of), FIRST_OR(now.shift, next.shift, of)}; \
        V z = OUT(both, i, n);                                                                                           \
        fn_prefetch_l1(x + i + SOON);                                                                                    \
        if (n < LANES) STORE_N(y + i, z, n); else if (stream) STREAM(y + i, z); else STORE(y + i, z);                    \
        i += n;                                                                                                          \
        NEXT_CHANNEL(next);                                                                                              \
    } while (0)
    if (end > count) end = count;
    if (head > count) head = count;
    if (head > end) ACROSS(head);
    else if (head) { STORE_N(y, OUT(now, 0, head), head); i = head; }
    for (;;) { /* pairs of half vectors are streamed as lines: first up to one */
        if (LINE == 2 * LANES && i <= end - LANES && NAME(into_line)(y + i)) STEP(1);
        if (!stream || STREAMED_AT_ONCE > 1) WHOLE(AHEAD_OF_STORES);
        if (LINE == 2 * LANES) WHOLE(2);
        WHOLE(1);
        if (end == count) break;
        ptrdiff_t n = count - i < LANES ? count - i : LANES;
        if (i < end) ACROSS(n);
        else { NAME(affine_v) next = NUMBERS(k + 1); NEXT_CHANNEL(next); }
    }
    if (i < end) STORE_N(y + i, OUT(now, i, end - i), end - i);
#undef ACROSS
#undef WHOLE
#undef STEP
#undef NEXT_CHANNEL
#undef OUT
#undef NUMBERS
}

FN_OUTLINE void NAME(evaluate)(const void *xv, const void *rv, void *yv, ptrdiff_t from, ptrdiff_t count, const fn_norms *p,
                               ptrdiff_t channels, ptrdiff_t post, int flags) {
    int relu = flags & FN_RELU, stream = !!(flags & FN_STREAM);
    NAME(col_norms) v;
    for (ptrdiff_t n; count > 0; from += n, count -= n) {
        const S *x = (const S *)xv + from, *res = rv ? (const S *)rv + from : NULL;
        S *y = (S *)yv + from;
        ptrdiff_t k = from / post % channels, into = from % post, some = channels - k < FN_TILE ? channels - k : FN_TILE;
        n = some * post - into < count ? some * post - into : count;
        some = (into + n + post - 1) / post;
#ifdef WIDER
        int wide;
        some = NAME(col_alike)(p, NULL, k, some, 1, &wide);
        if (n > some * post - into) n = some * post - into;
        if (FN_UNLIKELY(wide)) { /* a single channel */
            fn_norm one = {p->mean[k], p->mean_lo[k], p->scale[k], p->shift ? p->shift[k] : 0, 1, 0};
            NAME(affine)(x, res, y, (fn_spans){n, 1, 0}, &one, flags, 0, NULL);
            continue;
        }
#endif
        NAME(columns) s = {k, some, 1, 1};
        NAME(col_split)(p, s, 0, 1, &v);
#define BODY(res, has_res, relu, stream) NAME(evaluate_body)(x, res, y, n, into, post, &v, has_res, relu, stream)
        if (res) { if (stream) BODY(res, 1, relu, 1); else BODY(res, 1, relu, 0); }
        else if (relu) { if (stream) BODY(NULL, 0, 1, 1); else BODY(NULL, 0, 1, 0); }
        else { if (stream) BODY(NULL, 0, 0, 1); else BODY(NULL, 0, 0, 0); }
#undef BODY
    }
    fn_fence();
}
