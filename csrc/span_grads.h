/* The gradients of spans.h: dx = a·dy + b·(x - mean) + c from Σdy and Σdy·(x - mean), with dy masked where a ReLU was fused.

   Included once per (storage S, arithmetic T). Sums are made as in spans.h, in double under floats; about zero instead of the mean where
   the mean is near it, which spares a subtraction. */

/* dy where the forward's output was positive, else 0. */
FN_INLINE V NAME(gate)(V dy, V x, V res, NAME(affine_v) v, int has_res, int relu) {
    if (!relu) return dy;
    V z = NAME(normalize)(x, v);
    if (has_res) z = ADD(ROUND(z), res);
    return POSITIVE(ROUND(z), dy);
}

/* Σg, and Σg·(x - mean) or, with `near`, Σg·x. */
typedef struct { ACC sum, dot; } NAME(sums);
FN_INLINE NAME(sums) NAME(sums_add)(NAME(sums) a, const T *g, const T *x, W mean, int near) {
    ACC_DOTS(&a.sum, &a.dot, g, x, mean, near);
    return a;
}

/* Both sums about the mean with their low parts, given those about its hi part or, with `near`, about zero. */
FN_INLINE fn_sums NAME(sums_about)(NAME(sums) a, const fn_norm *p, int near) {
    fn_dd sum = ACC_SUM(a.sum), dot = ACC_SUM(a.dot);
    if (sizeof(T) == 8) dot = fn_moved(dot, sum, near ? p->mean : 0, p->mean_lo);
    else dot.lo -= (near ? p->mean + p->mean_lo : p->mean_lo) * sum.hi; /* float needs no more */
    fn_sums out = {sum.hi, sum.lo, dot.hi, dot.lo};
    return out;
}

/* dx = a·dy + b·(x - mean) + c, with c - b·lo as y's shift; given statistics have b = 0, and then x does not matter, be it infinite. */
FN_INLINE V NAME(combine)(V g, V x, V hi, V a, V b, V c) { return ADD(ADD(MUL(g, a), NONZERO(b, MUL(SUB(x, hi), b))), c); }

/* What dx takes: the forward's numbers, and a, b and c. */
typedef struct { NAME(affine_v) v; V a, b, c; } NAME(grad_v);
FN_INLINE NAME(grad_v) NAME(split_grad)(const fn_norm *p, const fn_grad *g) {
    T c = NAME(shifted)(g->c, g->b, NAME(low_of)(p->mean, p->mean_lo));
    NAME(grad_v) r = {NAME(split)(p), SET1((T)g->a), SET1((T)g->b), SET1(c)};
    return r;
}

/* Elements whose dx is written, or streamed, in whole cache lines, while others are summed. */
typedef struct { const S *dy, *x; S *dx; NAME(grad_v) q; } NAME(beside);

/* Σdy and Σdy·(x - mean), or with `near` Σdy·x, of one span, every product and sum in double: they may cancel. After each four vectors
   those `beside` (or NULL) have their turn. */
FN_INLINE NAME(sums) NAME(grad_sums_body)(NAME(sums) a, const S *dy, const S *x, const S *res, ptrdiff_t len, NAME(affine_v) v, W mean,
                                          int near, int has_res, int relu, ptrdiff_t ahead, const NAME(beside) *beside, int stream) {
    ptrdiff_t i = 0;
    T g_room[4 * LANES], x_room[4 * LANES];
#define ONE(i)                                                                                                           \
    do {                                                                                                                 \
        const T *xt = NAME(in_t)(x + (i), x_room);                                                                       \
        if (!relu) { a = NAME(sums_add)(a, NAME(in_t)(dy + (i), g_room), xt, mean, near); break; }                       \
        V xi = LOAD(x + (i)), g = NAME(gate)(LOAD(dy + (i)), xi, has_res ? LOAD(res + (i)) : xi, v, has_res, relu);      \
        a = NAME(sums_add)(a, NAME(kept)(g, g_room), xt, mean, near);                                                    \
    } while (0)
    for (; i <= len - 4 * LANES; i += 4 * LANES) {
        if (ahead) {
            FETCH(x + i + ahead, 4 * LANES);
            FETCH(dy + i + ahead, 4 * LANES);
        }
        if (sizeof(S) == sizeof(T)) { ONE(i); ONE(i + LANES); ONE(i + 2 * LANES); ONE(i + 3 * LANES); }
        else {
            V g[4], xs[4], r[4];
            LOAD_SOME(4, dy + i, g);
            LOAD_SOME(4, x + i, xs);
            if (has_res) LOAD_SOME(4, res + i, r);
            EACH_OF(4, k) g[k] = NAME(gate)(g[k], xs[k], has_res ? r[k] : xs[k], v, has_res, relu);
            const T *gt = NAME(kept4)(g, g_room), *xt = NAME(kept4)(xs, x_room);
            EACH_OF(4, k) a = NAME(sums_add)(a, gt + k * LANES, xt + k * LANES, mean, near);
        }
        if (beside) {
            const NAME(grad_v) *q = &beside->q;
            V g[4], z[4];
            LOAD_SOME(4, beside->dy + i, g);
            LOAD_SOME(4, beside->x + i, z);
            EACH_OF(4, k) z[k] = NAME(combine)(NAME(gate)(g[k], z[k], z[k], q->v, 0, relu), z[k], q->v.hi, q->a, q->b, q->c);
            STORE_SOME(4, beside->dx + i, z, stream);
        }
    }
    if (ahead && len > 4 * LANES) {
        NAME(fetch_rest)(x + ahead, i, len);
        NAME(fetch_rest)(dy + ahead, i, len);
    }
    for (; i <= len - LANES; i += LANES) ONE(i);
#undef ONE
    if (i < len) {
        ptrdiff_t n = len - i;
        V xi = LOAD_N(x + i, n);
        V g = FIRST(NAME(gate)(LOAD_N(dy + i, n), xi, has_res ? LOAD_N(res + i, n) : xi, v, has_res, relu), n);
        a = NAME(sums_add)(a, NAME(kept)(g, g_room), NAME(kept)(xi, x_room), mean, near);
    }
    return a;
}

FN_OUTLINE void NAME(grad_sums)(const void *dyv, const void *xv, const void *rv, fn_spans s, const fn_norm *p, int flags,
                                fn_sums *out) {
#ifdef WIDER
    if (FN_UNLIKELY(p->wide)) { WIDER(grad_sums)(dyv, xv, rv, s, p, flags, out); return; }
#endif
    const S *dy = dyv, *x = xv, *res = rv;
    NAME(affine_v) v = NAME(split)(p);
    W mean = WIDE_SET1(p->mean);
    NAME(sums) a = {ACC_ZERO(), ACC_ZERO()};
    int relu = flags & FN_RELU, near = !GENERIC && p->near;
    /* The pass before has fetched these lines too, but a busy processor drops what it is asked to fetch: without this second request
       gradients of long spans took up to 1.7 times as long. */
    ptrdiff_t most = s.len > SOON ? (s.len - SOON) / (4 * LANES) * (4 * LANES) : 0; /* of a span, until the next one is fetched */
    for (ptrdiff_t k = 0; k < s.count; k++) {
        for (ptrdiff_t i = 0, n, o = k * s.stride; i < s.len; i += n, o += n) {
            const S *r = res ? res + o : NULL;
            ptrdiff_t ahead = !NAME(is_helped)(flags) ? 0 : i < most || k + 1 == s.count ? SOON : s.stride - most;
            n = i < most ? most : s.len - i;
#define BODY(r, near, has_res, relu) a = NAME(grad_sums_body)(a, dy + o, x + o, r, n, v, mean, near, has_res, relu, ahead, NULL, 0)
            if (GENERIC || !near) BODY(r, 0, r && relu, relu);
            else if (!relu) BODY(NULL, 1, 0, 0);
            else if (r) BODY(r, 1, 1, 1);
            else BODY(NULL, 1, 0, 1);
#undef BODY
        }
    }
    *out = NAME(sums_about)(a, p, near);
}

FN_INLINE void NAME(grad_apply_body)(const S *dy, const S *x, const S *res, S *dx, S *dres, ptrdiff_t len, NAME(grad_v) q,
                                     const NAME(grad_v) *before, ptrdiff_t left, int has_res, int relu, int stream, ptrdiff_t ahead) {
    ptrdiff_t i = 0, in = NAME(into_line)(dx);
#define GATED(q, i, n) \
    NAME(gate)(NAME(col_load)(dy + (i), n), NAME(col_load)(x + (i), n), has_res ? NAME(col_load)(res + (i), n) : (q).v.hi, (q).v, has_res, relu)
#define OUT(q, g, i, n) NAME(combine)(g, NAME(col_load)(x + (i), n), (q).v.hi, (q).a, (q).b, (q).c)
#define ONE(n)                                                                                                           \
    do {                                                                                                                 \
        V g = GATED(q, i, n), z = OUT(q, g, i, n);                                                                       \
        if (dres) STORE_N(dres + i, g, n);                                                                               \
        STORE_N(dx + i, z, n);                                                                                           \
    } while (0)
    if (stream && before && in)
        for (i = -in; i < LINE - in; i += LANES) {
            V first = OUT(*before, GATED(*before, i, LANES), i, LANES), rest = OUT(q, GATED(q, i, LANES), i, LANES);
            STREAM(dx + i, FIRST_OR(first, rest, NAME(lanes_before)(i)));
        }
    else if (stream || len >= FN_LONG)
        for (ptrdiff_t head = in ? LINE - in : 0, n; i < head && i < len; i += n) {
            n = head - i < LANES ? head - i : LANES - 1;
            if (n > len - i) n = len - i;
            ONE(n);
        }
    len -= left;
#define WHOLE(along)                                                                                                     \
    for (; i <= len - (along) * LANES; i += (along) * LANES) {                                                           \
        V g[AHEAD_OF_STORES], z[AHEAD_OF_STORES], r[AHEAD_OF_STORES];                                                    \
        LOAD_SOME(along, dy + i, g);                                                                                     \
        LOAD_SOME(along, x + i, z);                                                                                      \
        if (has_res) LOAD_SOME(along, res + i, r);                                                                       \
        EACH_OF(along, k) {                                                                                              \
            g[k] = NAME(gate)(g[k], z[k], has_res ? r[k] : q.v.hi, q.v, has_res, relu);                                  \
            z[k] = NAME(combine)(g[k], z[k], q.v.hi, q.a, q.b, q.c);                                                     \
        }                                                                                                                \
        if (ahead) EACH_OF(along, k) {                                                                                   \
            fn_prefetch(x + i + k * LANES + ahead);                                                                      \
            fn_prefetch(dy + i + k * LANES + ahead);                                                                     \
        }                                                                                                                \
        if (dres) STORE_SOME(along, dres + i, g, 0);                                                                     \
        STORE_SOME(along, dx + i, z, stream);                                                                            \
    }
    if (!GENERIC && (!stream || STREAMED_AT_ONCE > 1)) WHOLE(AHEAD_OF_STORES)
    if (LINE == 2 * LANES) WHOLE(2)
    WHOLE(1)
#undef WHOLE
    if (ahead && len > 4 * LANES) {
        NAME(fetch_rest)(x + ahead, i, len);
        NAME(fetch_rest)(dy + ahead, i, len);
    }
    if (i < len) { ptrdiff_t n = len - i; ONE(n); }
#undef ONE
#undef OUT
#undef GATED
}

FN_OUTLINE int NAME(grad_apply)(const void *dyv, const void *xv, const void *rv, void *dxv, void *drv, fn_spans s, const fn_norm *p,
                                const fn_grad *g, int flags, ptrdiff_t ahead, const fn_norm *before, const fn_grad *g_before) {
    const S *dy = dyv, *x = xv, *res = rv;
    S *dx = dxv, *dr = drv;
#ifdef WIDER
    if (FN_UNLIKELY(p->wide || !fn_are_safe(g->a, g->b, g->c))) {
        for (ptrdiff_t k = 0, o = 0; before && k < s.count; k++, o += s.stride) {
            ptrdiff_t in = NAME(into_line)(dx + o);
            fn_spans rest = {in, 1, 0};
            NAME(grad_apply)(dy + o - in, x + o - in, NULL, dx + o - in, NULL, rest, before, g_before, flags & FN_RELU, 0, NULL, NULL);
        }
        return WIDER(grad_apply)(dyv, xv, rv, dxv, drv, s, p, g, flags & FN_RELU, ahead, NULL, NULL);
    }
#endif
    NAME(grad_v) q = NAME(split_grad)(p, g), b;
    if (before) b = NAME(split_grad)(before, g_before);
    int relu = flags & FN_RELU, stream = !GENERIC && flags & FN_STREAM, leave = stream && !res && flags & FN_LEAVE;
    for (ptrdiff_t k = s.count; k-- > 0;) { /* as in spans.h */
        ptrdiff_t o = k * s.stride, left = leave ? NAME(into_line)(dx + o + s.len) : 0;
        const S *r = res ? res + o : NULL;
        S *drk = dr ? dr + o : NULL;
#define BODY(r, dr, has_res, relu, stream) \
    NAME(grad_apply_body)(dy + o, x + o, r, dx + o, dr, s.len, q, before ? &b : NULL, left, has_res, relu, stream, ahead)
        if (stream && !leave) NAME(fetch_shared)(dx + o + s.len);
        if (stream && !before) NAME(fetch_shared)(dx + o - s.stride);
        if (GENERIC) BODY(r, drk, r && relu, relu, 0);
        else if (!relu) { if (stream) BODY(NULL, NULL, 0, 0, 1); else BODY(NULL, NULL, 0, 0, 0); }
        else if (r) { if (stream) BODY(r, drk, 1, 1, 1); else BODY(r, drk, 1, 1, 0); }
        else { if (stream) BODY(NULL, NULL, 0, 1, 1); else BODY(NULL, NULL, 0, 1, 0); }
#undef BODY
    }
    return leave;
}

/* The ends of a span. */
FN_OUTLINE void NAME(grad_apply_end)(const S *dy, const S *x, S *dx, ptrdiff_t len, const NAME(grad_v) *q, const NAME(grad_v) *before,
                                     ptrdiff_t left, int relu, int stream) {
    if (!stream) NAME(grad_apply_body)(dy, x, NULL, dx, NULL, len, *q, before, left, 0, relu, 0, 0);
    else if (relu) NAME(grad_apply_body)(dy, x, NULL, dx, NULL, len, *q, before, left, 0, 1, 1, 0);
    else NAME(grad_apply_body)(dy, x, NULL, dx, NULL, len, *q, before, left, 0, 0, 1, 0);
}

/* grad_apply and grad_sums of as many other spans. Stores wait for memory, and sums for what they read: taken in turns, a few
   lines of each, both go on at once. (Batch norm of (32, 512, 28, 28) takes 0.85 of the time on a Granite Rapids; the accumulators stay
   in registers, for kept in memory between turns, behind stores that wait, they cost what was gained.) */
FN_OUTLINE int NAME(grad_turns)(const void *dyv, const void *xv, void *dxv, fn_spans s, const fn_norm *p, const fn_grad *g, int flags,
                                const fn_norm *before, const fn_grad *g_before, const void *dy_next, const void *x_next,
                                const fn_norm *p_next, fn_sums *out) {
#ifdef WIDER
    if (FN_UNLIKELY(p->wide || p_next->wide || !fn_are_safe(g->a, g->b, g->c))) {
        int left = NAME(grad_apply)(dyv, xv, NULL, dxv, NULL, s, p, g, flags, 0, before, g_before);
        NAME(grad_sums)(dy_next, x_next, NULL, s, p_next, flags, out);
        return left;
    }
#endif
    NAME(grad_v) b;
    NAME(affine_v) v = NAME(split)(p_next);
    W mean = WIDE_SET1(p_next->mean);
    NAME(sums) a = {ACC_ZERO(), ACC_ZERO()};
    NAME(beside) beside;
    beside.q = NAME(split_grad)(p, g);
    if (before) b = NAME(split_grad)(before, g_before);
    int relu = flags & FN_RELU, stream = !GENERIC && flags & FN_STREAM, near = !GENERIC && p_next->near;
    for (ptrdiff_t k = 0; k < s.count; k++) {
        const S *dy = (const S *)dyv + k * s.stride, *x = (const S *)xv + k * s.stride;
        const S *g_in = (const S *)dy_next + k * s.stride, *x_in = (const S *)x_next + k * s.stride;
        S *dx = (S *)dxv + k * s.stride;
        ptrdiff_t left = flags & FN_LEAVE ? NAME(into_line)(dx + s.len) : 0, in = NAME(into_line)(dx), head = in ? LINE - in : 0;
        if (head > s.len) head = s.len;
        ptrdiff_t both = s.len - head - left < 0 ? 0 : (s.len - head - left) / (4 * LANES) * (4 * LANES), end = head + both;
        /* What comes SOON is fetched, but across the end of a span, where others begin: from there on the next one's beginning. */
        ptrdiff_t most = s.len > SOON ? (s.len - SOON) / (4 * LANES) * (4 * LANES) : 0, more = k + 1 == s.count ? SOON : s.stride - most;
        if (most > both) most = both;
        if (head) NAME(grad_apply_end)(dy, x, dx, head, &beside.q, before ? &b : NULL, 0, relu, stream);
        beside.dy = dy + head;
        beside.x = x + head;
        beside.dx = dx + head;
#define BODY(near, relu, beside, stream) \
    a = NAME(grad_sums_body)(a, g_in + i, x_in + i, NULL, n, v, mean, near, 0, relu, ahead, beside, stream)
        for (ptrdiff_t i = 0, n, ahead; i < s.len; i += n) {
            n = (i < most ? most : i < both ? both : s.len) - i;
            ahead = i < most ? SOON : more;
            if (i >= both) {
                if (GENERIC || !near) BODY(0, relu, NULL, 0);
                else if (relu) BODY(1, 1, NULL, 0);
                else BODY(1, 0, NULL, 0);
                break;
            }
            if (GENERIC || !near) { if (stream) BODY(0, relu, &beside, 1); else BODY(0, relu, &beside, 0); }
            else if (relu) { if (stream) BODY(1, 1, &beside, 1); else BODY(1, 1, &beside, 0); }
            else if (stream) BODY(1, 0, &beside, 1);
            else BODY(1, 0, &beside, 0);
            beside.dy += n, beside.x += n, beside.dx += n;
        }
#undef BODY
        if (end < s.len) NAME(grad_apply_end)(dy + end, x + end, dx + end, s.len - end, &beside.q, NULL, left, relu, stream);
    }
    *out = NAME(sums_about)(a, p_next, near);
    return !!(flags & FN_LEAVE);
}
