/* Parameter and statistic vectors of any stride (in bytes), to and from double. */
FN_OUTLINE void NAME(get)(const void *src, ptrdiff_t stride, ptrdiff_t n, double *dst) {
    const char *p = src;
    for (ptrdiff_t i = 0; i < n; i++, p += stride) {
        S one;
        memcpy(&one, p, sizeof one);
        dst[i] = TO_DOUBLE(one);
    }
}
FN_OUTLINE void NAME(put)(const double *src, ptrdiff_t n, void *dst, ptrdiff_t stride) {
    char *p = dst;
    for (ptrdiff_t i = 0; i < n; i++, p += stride) {
        S one = FROM_DOUBLE(src[i]);
        memcpy(p, &one, sizeof one);
    }
}
