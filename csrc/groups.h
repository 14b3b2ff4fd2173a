/* Neighbouring channels under one statistic, each a single span: group norm. The loops of spans.h in one call for all of them,
   because a call per channel would cost as much as some fifty elements. What is each channel's own is computed, and the sums reduced, for
   eight channels side by side.

   Included once per (storage S, arithmetic T). */

#define ONE_SPAN(len) ((fn_spans){len, 1, 0})

/* y = (x - mean)·scale + shift of eight channels. Are all of them plain (scalar.h), or else looked at one by one? */
typedef struct { T scale[8], shift[8]; int plain; } NAME(eight);
FN_INLINE ptrdiff_t NAME(eight_at)(const fn_norm *shared, const fn_channels *c, ptrdiff_t first, NAME(eight) *to) {
    ptrdiff_t n = c->count - first < 8 ? c->count - first : 8;
    vd scale = vd_set1(shared->scale), shift = c->beta ? fn_at(c->beta + first, n) : vd_set1(shared->shift);
    if (c->gamma) scale = vd_mul(scale, fn_at(c->gamma + first, n));
    PUT8(to->scale, scale);
    PUT8(to->shift, vd_sub(shift, vd_finite(vd_mul(vd_set1(NAME(low_of)(shared->mean, shared->mean_lo)), scale))));
    to->plain = !shared->wide && vl_all(vl_plain(scale));
    return n;
}

FN_OUTLINE void NAME(group_affine)(const void *xv, void *yv, const fn_channels *c, const fn_norm *shared, int flags,
                                   ptrdiff_t ahead) {
    const S *x = xv;
    S *y = yv;
    NAME(affine_v) v = NAME(split)(shared);
    NAME(eight) q;
    for (ptrdiff_t first = 0, n; first < c->count; first += n) {
        n = NAME(eight_at)(shared, c, first, &q);
        for (ptrdiff_t i = 0; i < n; i++, x += c->len, y += c->len) {
#ifdef WIDER
            if (FN_UNLIKELY(!q.plain)) {
                fn_norm p = fn_channel_norm(shared, c, first + i);
                if (p.wide) { WIDER(affine)(x, NULL, y, ONE_SPAN(c->len), &p, flags, ahead, NULL); continue; }
            }
#endif
            v.scale = SET1(q.scale[i]);
            v.shift = SET1(q.shift[i]);
            if (flags & FN_RELU) NAME(affine_body)(x, NULL, y, c->len, v, NULL, 0, 0, 1, 0, ahead);
            else NAME(affine_body)(x, NULL, y, c->len, v, NULL, 0, 0, 0, 0, ahead);
        }
    }
}

FN_OUTLINE void NAME(group_grad_sums)(const void *dyv, const void *xv, const fn_channels *c, const fn_norm *shared, int flags,
                                      fn_sums *out) {
    int near = !GENERIC && shared->near;
    ptrdiff_t ahead = NAME(is_helped)(flags) ? SOON : 0;
    W mean = WIDE_SET1(shared->mean);
    vd away = vd_set1(near ? shared->mean : 0), low = vd_set1(shared->mean_lo);
    NAME(affine_v) v = NAME(split)(shared);
    NAME(eight) q;
    for (ptrdiff_t first = 0, n; first < c->count; first += n) {
        FOLDED sum[8], dot[8];
        double t[4][8];
        n = NAME(eight_at)(shared, c, first, &q);
        for (ptrdiff_t i = 0; i < n; i++) {
            const S *dy = (const S *)dyv + (first + i) * c->len, *x = (const S *)xv + (first + i) * c->len;
            NAME(sums) a = {ACC_ZERO(), ACC_ZERO()};
#define BODY(near, relu) a = NAME(grad_sums_body)(a, dy, x, NULL, c->len, v, mean, near, 0, relu, ahead, NULL, 0)
            if (flags & FN_RELU) {
                v.scale = SET1(q.scale[i]);
                v.shift = SET1(q.shift[i]);
                if (near) BODY(1, 1); else BODY(0, 1);
            } else if (near) BODY(1, 0);
            else BODY(0, 0);
#undef BODY
            sum[i] = ACC_FOLDED(a.sum);
            dot[i] = ACC_FOLDED(a.dot);
        }
        ACC_SUMS(sum, n, t[0], t[1]);
        ACC_SUMS(dot, n, t[2], t[3]);
        /* As in sums_about, to the last bit: what is streamed, or shared by threads, goes that way. */
        if (sizeof(T) == 8) vdd_put(t[2], t[3], vdd_moved(vdd_at(t[2], t[3], n), vdd_at(t[0], t[1], n), away, low), n);
        else fn_put(t[3], vd_sub(fn_at(t[3], n), vd_mul(vd_add(away, low), fn_at(t[0], n))), n);
        for (ptrdiff_t i = 0; i < n; i++) { fn_sums one = {t[0][i], t[1][i], t[2][i], t[3][i]}; out[first + i] = one; }
#ifdef WIDER
        for (ptrdiff_t k = first; FN_UNLIKELY(!q.plain) && k < first + n; k++) {
            fn_norm p = fn_channel_norm(shared, c, k);
            if (p.wide)
                WIDER(grad_sums)((const S *)dyv + k * c->len, (const S *)xv + k * c->len, NULL, ONE_SPAN(c->len), &p, flags, out + k);
        }
#endif
    }
}

FN_OUTLINE void NAME(group_grad_apply)(const void *dyv, const void *xv, void *dxv, const fn_channels *c, const fn_norm *shared,
                                       const fn_grad *g, int flags, ptrdiff_t ahead) {
    const S *dy = dyv, *x = xv;
    S *dx = dxv;
    NAME(grad_v) v = NAME(split_grad)(shared, g);
    NAME(eight) q;
    int safe = fn_are_safe(1, g->b, g->c);
    for (ptrdiff_t first = 0, n; first < c->count; first += n) {
        n = NAME(eight_at)(shared, c, first, &q);
        for (ptrdiff_t i = 0; i < n; i++, x += c->len, dy += c->len, dx += c->len) {
#ifdef WIDER
            if (FN_UNLIKELY(!(q.plain & safe))) {
                fn_norm p = fn_channel_norm(shared, c, first + i);
                fn_grad own = {p.scale, g->b, g->c};
                if (p.wide || !safe) {
                    WIDER(grad_apply)(dy, x, NULL, dx, NULL, ONE_SPAN(c->len), &p, &own, flags, ahead, NULL, NULL);
                    continue;
                }
            }
#endif
            v.a = v.v.scale = SET1(q.scale[i]);
            v.v.shift = SET1(q.shift[i]);
            if (flags & FN_RELU) NAME(grad_apply_body)(dy, x, NULL, dx, NULL, c->len, v, NULL, 0, 0, 1, 0, ahead);
            else NAME(grad_apply_body)(dy, x, NULL, dx, NULL, c->len, v, NULL, 0, 0, 0, 0, ahead);
        }
    }
    (void)safe;
}
#undef ONE_SPAN
