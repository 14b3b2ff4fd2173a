/* exp of the numbers of a row, four vectors at a time, and how they are loaded and stored.

   Included once per (storage S, arithmetic T). exp is our own, so that it has the same bits everywhere: n = round(x·log2 e),
   r = x - n·ln 2 in two steps (Cody and Waite), a polynomial in r by Horner's rule with fused multiply-adds, times 2^n. It is kept
   EXP_RAISED times too large, so that nothing is subnormal before the last product, which rounds it once more. Near zero four vectors take
   every step side by side (HOLD keeps the order): one alone is a chain of steps, each waiting for the last. */

#define EXP_AT_ONCE 4
#define LOWERED(v) MUL(v, SET1(1 / EXP_RAISED))

/* x[k] = exp(r[k])·2^n·EXP_RAISED, |r| ≤ ln 2 / 2, from c = n + EXP_CARRIER. */
FN_INLINE void NAME(exp_rest)(V *x, V *r, V *c, int count) {
    V p[EXP_AT_ONCE];
    EACH_OF(count, k) p[k] = SET1(exp_terms[0]);
    _Pragma("GCC unroll 12") for (int i = 1; i < EXP_TERMS; i++) EACH_OF(count, k) p[k] = HOLD(MUL_ADD(SET1(exp_terms[i]), p[k], r[k]));
    EACH_OF(count, k) p[k] = HOLD(MUL_ADD(SET1(1), p[k], r[k]));
    EACH_OF(count, k) c[k] = POWER(c[k]);
    EACH_OF(count, k) r[k] = HOLD(MUL(r[k], c[k]));
    EACH_OF(count, k) x[k] = MUL_ADD(c[k], p[k], r[k]);
}

/* exp(hi + lo)·EXP_RAISED for hi ≤ 0, |lo| ≤ ulp(hi)/2; NaN gives NaN. */
FN_INLINE V NAME(exp)(V hi, V lo) {
    V small = SET1(EXP_SMALLEST), carrier = SET1(EXP_CARRIER);
    lo = ZERO_BELOW(hi, small, lo);
    hi = AT_LEAST(hi, small);
    V c = MUL_ADD(carrier, hi, SET1(LOG2_E)), n = SUB(c, carrier);
    V r = ADD(MUL_ADD(ADD_EXACT(hi, n, SET1(-LN2_HI)), n, SET1(-LN2_LO)), lo);
    NAME(exp_rest)(&hi, &r, &c, 1);
    return hi;
}

/* exp(x - max) of a row. The difference must not be rounded: that would cost |x - max|/2 ULP. Near zero it serves to choose n alone:
   x and max are each reduced, by m = n + N and by N = round(max·log2 e) times ln 2, to numbers below 1 whose difference is r. Farther
   away what the difference loses is kept. x = max gives 1 exactly. Below `least` exp would be rounded to 0; c - zero = m;
   rest = max - N·ln 2. */
typedef struct { V max, least, zero, rest; int near; } NAME(pivot);

FN_INLINE NAME(pivot) NAME(pivot_of)(T max) {
    V top = SET1(max), carrier = SET1(EXP_CARRIER), n = SUB(MUL_ADD(carrier, top, SET1(LOG2_E)), carrier);
    NAME(pivot) p = {top, ADD(top, SET1(EXP_SMALLEST)), SUB(carrier, n),
                     MUL_ADD(ADD_EXACT(top, n, SET1(-LN2_HI)), n, SET1(-LN2_LO)), max >= -256 && max <= 256};
    return p;
}

/* x[k] becomes exp(x[k] - max)·EXP_RAISED. */
FN_INLINE void NAME(exp_steps)(V *x, const NAME(pivot) *p, int count) {
    V c[EXP_AT_ONCE], m[EXP_AT_ONCE], r[EXP_AT_ONCE];
    EACH_OF(count, k) x[k] = HOLD(AT_LEAST(x[k], p->least));
    EACH_OF(count, k) c[k] = HOLD(MUL_ADD(SET1(EXP_CARRIER), SUB(x[k], p->max), SET1(LOG2_E)));
    EACH_OF(count, k) m[k] = HOLD(SUB(c[k], p->zero));
    EACH_OF(count, k) r[k] = HOLD(ADD_EXACT(x[k], m[k], SET1(-LN2_HI)));
    EACH_OF(count, k) r[k] = HOLD(SUB(MUL_ADD(r[k], m[k], SET1(-LN2_LO)), p->rest));
    NAME(exp_rest)(x, r, c, count);
}
#if FN_LEVEL == 0 /* a fused multiply-add is a call, which nothing goes beside */
FN_OUTLINE void NAME(exp_step)(V *x, const NAME(pivot) *p) { NAME(exp_steps)(x, p, 1); }
FN_INLINE void NAME(exp_near)(V *x, const NAME(pivot) *p, int count) { for (int k = 0; k < count; k++) NAME(exp_step)(x + k, p); }
#else
FN_INLINE void NAME(exp_near)(V *x, const NAME(pivot) *p, int count) { NAME(exp_steps)(x, p, count); }
#endif
FN_OUTLINE V NAME(exp_far)(V x, V max) {
    V d = SUB(x, max), t = SUB(d, x);
    return NAME(exp)(d, SUB(SUB(x, SUB(d, t)), ADD(max, t)));
}
FN_INLINE void NAME(exp_some)(V *x, const NAME(pivot) *p, int count) {
    if (FN_LIKELY(p->near)) NAME(exp_near)(x, p, count);
    else EACH_OF(count, k) x[k] = NAME(exp_far)(x[k], p->max);
}
FN_INLINE V NAME(exp_one)(V x, const NAME(pivot) *p) {
    NAME(exp_some)(&x, p, 1);
    return LOWERED(x);
}

/* Four vectors of a row of which `left` elements are left, and the way back. A vector beyond the end is max, a lane beyond it
   0, whose exp is not used. */
FN_INLINE ptrdiff_t NAME(exp_lanes)(ptrdiff_t left, int k) { left -= k * LANES; return left < 0 ? 0 : left < LANES ? left : LANES; }
FN_INLINE void NAME(exp_load)(V *e, const S *x, ptrdiff_t left, const NAME(pivot) *p) {
    if (FN_LIKELY(left >= EXP_AT_ONCE * LANES)) EACH_OF(EXP_AT_ONCE, k) e[k] = LOAD(x + k * LANES);
    else EACH_OF(EXP_AT_ONCE, k) {
        ptrdiff_t n = NAME(exp_lanes)(left, k);
        e[k] = n == LANES ? LOAD(x + k * LANES) : n > 0 ? LOAD_N(x + k * LANES, n) : p->max;
    }
}
FN_INLINE void NAME(exp_clear)(V *e, ptrdiff_t left) { EACH_OF(EXP_AT_ONCE, k) e[k] = FIRST(e[k], NAME(exp_lanes)(left, k)); }
FN_INLINE void NAME(exp_store)(const V *e, S *y, ptrdiff_t left) {
    if (FN_LIKELY(left >= EXP_AT_ONCE * LANES)) EACH_OF(EXP_AT_ONCE, k) STORE(y + k * LANES, e[k]);
    else EACH_OF(EXP_AT_ONCE, k) {
        ptrdiff_t n = NAME(exp_lanes)(left, k);
        if (n == LANES) STORE(y + k * LANES, e[k]); else if (n > 0) STORE_N(y + k * LANES, e[k], n);
    }
}

/* The same in T; of a half type to where there is room to spare. */
FN_INLINE void NAME(exp_keep)(const V *e, T *to, ptrdiff_t left) {
    if (sizeof(S) >= sizeof(T)) NAME(exp_store)(e, (S *)to, left);
    else EACH_OF(EXP_AT_ONCE, k) STORE_T(to + k * LANES, e[k]);
}

/* The same of an output, streamed or not. */
FN_INLINE void NAME(exp_put)(const V *e, S *y, ptrdiff_t left, int stream) {
    if (stream && left >= EXP_AT_ONCE * LANES) EACH_OF(EXP_AT_ONCE, k) STREAM(y + k * LANES, e[k]);
    else if (stream && LANES == LINE) EACH_OF(EXP_AT_ONCE, k) { /* what remains of the last line is stored */
        ptrdiff_t n = NAME(exp_lanes)(left, k);
        if (n == LANES) STREAM(y + k * LANES, e[k]); else if (n > 0) STORE_N(y + k * LANES, e[k], n);
    } else NAME(exp_store)(e, y, left);
}
/* Of a row of an output, how many elements come before four vectors at a time: up to the first whole line, if lines matter. */
FN_INLINE ptrdiff_t NAME(exp_head)(const S *y, int stream) {
    ptrdiff_t in = stream ? NAME(into_line)(y) : 0;
    return in ? LINE - in : 0;
}
