/* Inverted dropout of a span: y = x·scale where the element is kept, else 0, and one bit per element that says which.

   Included once per (storage S, arithmetic T). Element i of the array is kept when word i mod 4 of Philox4x32-10 (Salmon et
   al. 2011) at counter i / 4 under the seed is at least p·2³²: the mask depends on seed and position alone. Bits are made some at a
   time, and what they decide is written in whole cache lines, wherever y begins (NumPy's large arrays begin 16 bytes into one: on a
   Zen 5 the gradient takes half the time for it). */

#define FN_BITS_AT_ONCE 1024

/* Bits first .. first + n. */
FN_INLINE uint64_t NAME(bits_at)(const uint64_t *bits, ptrdiff_t first, ptrdiff_t n) {
    uint64_t word = bits[first / 64] >> (first % 64);
    if (first % 64 + n > 64) word |= bits[first / 64 + 1] << (64 - first % 64);
    return word;
}

/* y = x·scale where the bit is set, else 0, bits from `first` on. */
FN_INLINE void NAME(keep_where)(const S *x, S *y, const uint64_t *bits, ptrdiff_t first, ptrdiff_t len, T factor, int stream) {
    V scale = SET1(factor);
#define FULL(n)                                                                                                          \
    do {                                                                                                                 \
        uint64_t word = NAME(bits_at)(bits, first + j, n);                                                               \
        if (stream) FETCH(x + j + SOON, n);                                                                              \
        EACH_OF((n) / LANES, k) {                                                                                        \
            V z = KEEP(MUL(LOAD(x + j + k * LANES), scale), (uint32_t)(word >> k * LANES));                              \
            if (stream) STREAM(y + j + k * LANES, z); else STORE(y + j + k * LANES, z);                                  \
        }                                                                                                                \
    } while (0)
#define PART(n) STORE_N(y + j, KEEP(MUL(NAME(col_load)(x + j, n), scale), (uint32_t)NAME(bits_at)(bits, first + j, n)), n)
    EACH_IN_ROW_BY(4, y, len, 1, FULL, PART);
#undef PART
#undef FULL
}
/* The same, apart from the making of bits, whose constants it would drive out of registers. */
FN_OUTLINE void NAME(keep)(const S *x, S *y, const uint64_t *bits, ptrdiff_t first, ptrdiff_t len, T factor, int flags) {
    if (flags & FN_STREAM) NAME(keep_where)(x, y, bits, first, len, factor, 1);
    else NAME(keep_where)(x, y, bits, first, len, factor, 0);
}

/* First element `start` (a multiple of 64) of the array; bits: a 64-bit word for each 64 elements, at most FN_CHUNK, or NULL. */
FN_OUTLINE void NAME(dropout)(const void *xv, void *yv, uint64_t *bits, ptrdiff_t start, ptrdiff_t len, uint64_t seed,
                              uint64_t threshold, double scale, int flags) {
    const S *x = xv;
    S *y = yv;
    uint64_t room[FN_CHUNK / 64];
    if (!bits) bits = room;
    for (ptrdiff_t made = 0, done = 0, end; done < len; done = end) {
        for (int k = 0; k < FN_BITS_AT_ONCE / 64 && made < len; k += FN_WORDS, made += 64 * FN_WORDS) {
            uint64_t keep[FN_WORDS];
            fn_philox_keep(seed, (uint64_t)(start + made) / 4, threshold, keep);
            if (len - made >= 64 * FN_WORDS) memcpy(bits + made / 64, keep, sizeof keep);
            else for (ptrdiff_t i = 0, left = len - made; left > 0; i++, left -= 64)
                bits[made / 64 + i] = left < 64 ? keep[i] & (((uint64_t)1 << left) - 1) : keep[i];
        }
        end = made < len ? made - NAME(into_line)(y + made) : len;
        NAME(keep)(x + done, y + done, bits, done, end - done, (T)scale, flags);
    }
    if (flags & FN_STREAM) fn_fence();
}

/* dx = dy·scale where the bit is set, else 0. */
FN_OUTLINE void NAME(dropout_grad)(const void *dy, void *dx, const uint64_t *bits, ptrdiff_t len, double scale, int flags) {
    NAME(keep)(dy, dx, bits, 0, len, (T)scale, flags);
    if (flags & FN_STREAM) fn_fence();
}
