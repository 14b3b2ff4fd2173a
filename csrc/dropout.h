/* Inverted dropout of a span: y = x·scale where the element is kept, else 0, and one bit per element that says which.

   Included once per (storage S, arithmetic T). Element i of the array is kept when word i mod 4 of Philox4x32-10 (Salmon et
   al. 2011) at counter i / 4 under the seed is at least p·2³²: the mask depends on seed and position alone. */

/* First element `start` (a multiple of 64) of the array; bits: a 64-bit word for each 64 elements. */
FN_OUTLINE void NAME(dropout)(const void *xv, void *yv, uint64_t *bits, ptrdiff_t start, ptrdiff_t len, uint64_t seed,
                              uint64_t threshold, double scale) {
    const S *x = xv;
    S *y = yv;
    V s = SET1((T)scale);
    for (ptrdiff_t i = 0; i < len; i += 64) {
        uint64_t keep = fn_philox_keep(seed, (uint64_t)(start + i) / 4, threshold);
        if (len - i < 64) keep &= ((uint64_t)1 << (len - i)) - 1;
        if (bits) bits[i / 64] = keep;
        for (ptrdiff_t j = i; j < len && j < i + 64; j += LANES) {
            ptrdiff_t n = len - j < LANES ? len - j : LANES;
            V z = KEEP(MUL(NAME(col_load)(x + j, n), s), (uint32_t)(keep >> (j - i)));
            if (n < LANES) STORE_N(y + j, z, n); else STORE(y + j, z);
        }
    }
}

/* dx = dy·scale where the bit is set, else 0. */
FN_OUTLINE void NAME(dropout_grad)(const void *dyv, void *dxv, const uint64_t *bits, ptrdiff_t len, double scale) {
    const S *dy = dyv;
    S *dx = dxv;
    V s = SET1((T)scale);
    for (ptrdiff_t j = 0; j < len; j += LANES) {
        ptrdiff_t n = len - j < LANES ? len - j : LANES;
        V z = KEEP(MUL(NAME(col_load)(dy + j, n), s), (uint32_t)(bits[j / 64] >> (j % 64)));
        if (n < LANES) STORE_N(dx + j, z, n); else STORE(dx + j, z);
    }
}
