/* Parameter and statistic vectors of any stride (in bytes), to and from double; eight at a time where they lie side by side in
   the type of arithmetic. */
#define SIDE_BY_SIDE(stride) (sizeof(S) == sizeof(T) && (stride) == (ptrdiff_t)sizeof(S))

FN_OUTLINE void NAME(get)(const void *src, ptrdiff_t stride, ptrdiff_t n, double *dst) {
    const char *p = src;
    ptrdiff_t i = 0;
    if (SIDE_BY_SIDE(stride)) for (; i <= n - 8; i += 8, p += 8 * sizeof(S)) vd_store(dst + i, GET8((const void *)p));
    for (; i < n; i++, p += stride) {
        S one;
        memcpy(&one, p, sizeof one);
        dst[i] = TO_DOUBLE(one);
    }
}
FN_OUTLINE void NAME(put)(const double *src, ptrdiff_t n, void *dst, ptrdiff_t stride) {
    char *p = dst;
    ptrdiff_t i = 0;
    if (SIDE_BY_SIDE(stride)) for (; i <= n - 8; i += 8, p += 8 * sizeof(S)) PUT8((void *)p, vd_load(src + i));
    for (; i < n; i++, p += stride) {
        S one = FROM_DOUBLE(src[i]);
        memcpy(p, &one, sizeof one);
    }
}
#undef SIDE_BY_SIDE
