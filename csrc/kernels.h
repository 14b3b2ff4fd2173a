/* Every primitive for every storage type, at the level of the translation unit that includes this file.

   Each body (spans.h, columns.h, rows.h) is written once, in terms of: S the storage type, T the arithmetic type, P the
   type of parameter vectors, V a vector of T, ACC the accumulator that vectors are widened into. WIDER names the same body with
   T = double, taken by the rare data that float arithmetic cannot hold (squares of 1e30 or of 1e-30). */
#include "vec.h"
#include "fastnorm.h"
#include "scalar.h"

/* ---- what float arithmetic can hold ---- */

/* Sums of squares that float arithmetic got right: no overflow on the way, and too large for underflow to matter. */
FN_INLINE int fn_in_safe_range(double q, double n) { return q >= n * 0x1p-100 && q <= 0x1p100; }
FN_INLINE int fn_square_sum_is_safe(const fn_moments *m) { return fn_in_safe_range(m->m2, m->n) && m->mean >= -0x1p125 && m->mean <= 0x1p125; }
FN_INLINE int fn_grad_is_safe(const fn_grad *g) { return fn_is_plain(g->a) & fn_is_plain(g->b) & fn_is_plain(g->c); }
/* ---- accumulators: sixteen double lanes under floats, eight compensated lanes under doubles ---- */

typedef struct { vd lo, hi; } fn_acc32;
FN_INLINE fn_acc32 acc32_zero(void) { fn_acc32 a = {vd_zero(), vd_zero()}; return a; }
FN_INLINE fn_acc32 acc32_add(fn_acc32 a, vf x) { a.lo = vd_add(a.lo, vf_low(x)); a.hi = vd_add(a.hi, vf_high(x)); return a; }
FN_INLINE fn_acc32 acc32_add4(fn_acc32 a, vf x0, vf x1, vf x2, vf x3) {
    a.lo = vd_add(a.lo, vd_add(vd_add(vf_low(x0), vf_low(x1)), vd_add(vf_low(x2), vf_low(x3))));
    a.hi = vd_add(a.hi, vd_add(vd_add(vf_high(x0), vf_high(x1)), vd_add(vf_high(x2), vf_high(x3))));
    return a;
}
/* += g·(x - mean), in double: the product of two floats is exact there. */
FN_INLINE fn_acc32 acc32_dot(fn_acc32 a, vf g, vf x, vd mean) {
    a.lo = vd_add(a.lo, vd_mul(vf_low(g), vd_sub(vf_low(x), mean)));
    a.hi = vd_add(a.hi, vd_mul(vf_high(g), vd_sub(vf_high(x), mean)));
    return a;
}
/* += (x - c)², in double */
FN_INLINE fn_acc32 acc32_square(fn_acc32 a, vf x, vf c) {
    vd lo = vd_sub(vf_low(x), vf_low(c)), hi = vd_sub(vf_high(x), vf_high(c));
    a.lo = vd_add(a.lo, vd_mul(lo, lo));
    a.hi = vd_add(a.hi, vd_mul(hi, hi));
    return a;
}
/* The same with a mean for each lane. */
FN_INLINE fn_acc32 acc32_dot_each(fn_acc32 a, vf g, vf x, vf mean) {
    a.lo = vd_add(a.lo, vd_mul(vf_low(g), vd_sub(vf_low(x), vf_low(mean))));
    a.hi = vd_add(a.hi, vd_mul(vf_high(g), vd_sub(vf_high(x), vf_high(mean))));
    return a;
}
/* += dy·gamma, and += dy·gamma·(x - mean) */
FN_INLINE void acc32_weighted(fn_acc32 *sum, fn_acc32 *dot, vf dy, vf gamma, vf x, vd mean) {
    vd lo = vd_mul(vf_low(dy), vf_low(gamma)), hi = vd_mul(vf_high(dy), vf_high(gamma));
    sum->lo = vd_add(sum->lo, lo);
    sum->hi = vd_add(sum->hi, hi);
    dot->lo = vd_add(dot->lo, vd_mul(lo, vd_sub(vf_low(x), mean)));
    dot->hi = vd_add(dot->hi, vd_mul(hi, vd_sub(vf_high(x), mean)));
}
FN_INLINE fn_dd acc32_sum(fn_acc32 a) { fn_dd r = {vd_sum(vd_add(a.lo, a.hi)), 0}; return r; }
FN_INLINE void acc32_put(fn_acc32 a, double *d, double *lost, ptrdiff_t n) {
    (void)lost;
    if (FN_LIKELY(n == 16)) {
        vd_store(d, vd_add(vd_load(d), a.lo));
        vd_store(d + 8, vd_add(vd_load(d + 8), a.hi));
    } else {
        double t[16];
        vd_store(t, a.lo);
        vd_store(t + 8, a.hi);
        for (ptrdiff_t i = 0; i < n; i++) d[i] += t[i];
    }
}

typedef struct { vd s, e; } fn_acc64;
FN_INLINE fn_acc64 acc64_zero(void) { fn_acc64 a = {vd_zero(), vd_zero()}; return a; }
FN_INLINE fn_acc64 acc64_add(fn_acc64 a, vd x) {
    vd s = vd_add(a.s, x), t = vd_sub(s, a.s);
    a.e = vd_add(a.e, vd_add(vd_sub(a.s, vd_sub(s, t)), vd_sub(x, t)));
    a.s = s;
    return a;
}
FN_INLINE fn_acc64 acc64_add4(fn_acc64 a, vd x0, vd x1, vd x2, vd x3) {
    return acc64_add(acc64_add(acc64_add(acc64_add(a, x0), x1), x2), x3);
}
/* a·b exactly, as the rounded product and what it lost (Dekker's splitting). */
FN_INLINE vd vd_split(vd a, vd *low) {
    vd c = vd_mul(a, vd_set1(134217729.0)), high = vd_sub(c, vd_sub(c, a));
    *low = vd_sub(a, high);
    return high;
}
FN_INLINE vd vd_product(vd a, vd b, vd *lost) {
    vd al, bl, ah = vd_split(a, &al), bh = vd_split(b, &bl), p = vd_mul(a, b);
    *lost = vd_add(vd_add(vd_add(vd_sub(vd_mul(ah, bh), p), vd_mul(ah, bl)), vd_mul(al, bh)), vd_mul(al, bl));
    return p;
}
/* += (g + g_low)·(x - mean): the difference and the product carry what they lose. */
FN_INLINE fn_acc64 acc64_dot_low(fn_acc64 a, vd g, vd g_low, vd x, vd mean) {
    vd d = vd_sub(x, mean), t = vd_sub(d, x), d_low = vd_sub(vd_sub(x, vd_sub(d, t)), vd_add(mean, t)), lost;
    vd p = vd_product(g, d, &lost);
    a = acc64_add(a, p);
    a.e = vd_add(a.e, vd_add(lost, vd_add(vd_mul(g, d_low), vd_mul(g_low, d))));
    return a;
}
FN_INLINE fn_acc64 acc64_dot(fn_acc64 a, vd g, vd x, vd mean) { return acc64_dot_low(a, g, vd_zero(), x, mean); }
FN_INLINE fn_acc64 acc64_dot_each(fn_acc64 a, vd g, vd x, vd mean) { return acc64_dot_low(a, g, vd_zero(), x, mean); }
FN_INLINE fn_acc64 acc64_square(fn_acc64 a, vd x, vd c) { return acc64_dot_low(a, vd_sub(x, c), vd_zero(), x, c); }
FN_INLINE void acc64_weighted(fn_acc64 *sum, fn_acc64 *dot, vd dy, vd gamma, vd x, vd mean) {
    vd lost, g = vd_product(dy, gamma, &lost);
    *sum = acc64_add(*sum, g);
    sum->e = vd_add(sum->e, lost);
    *dot = acc64_dot_low(*dot, g, lost, x, mean);
}
FN_INLINE fn_dd acc64_sum(fn_acc64 a) {
    double s[8], e[8];
    vd_store(s, a.s);
    vd_store(e, a.e);
    fn_dd r = {s[0], e[0] == e[0] ? e[0] : 0};
    for (int i = 1; i < 8; i++) {
        r = fn_dd_add_d(r, s[i]);
        if (e[i] == e[i]) r.lo += e[i]; /* NaN only beside an infinity, where the error has no meaning */
    }
    return r;
}
FN_INLINE void acc64_put(fn_acc64 a, double *d, double *lost, ptrdiff_t n) {
    double s[8], e[8];
    vd_store(s, a.s);
    vd_store(e, a.e);
    for (ptrdiff_t i = 0; i < n; i++) {
        fn_dd r = fn_two_sum(d[i], s[i]);
        d[i] = r.hi;
        lost[i] += r.lo + (e[i] == e[i] ? e[i] : 0);
    }
}

/* ---- half types: float16 and bfloat16 in memory, float in registers ---- */

#include "vec_half.h"
#include "special.h"

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define TREE4(E, i) ADD(ADD(E(i), E((i) + 1)), ADD(E((i) + 2), E((i) + 3)))

/* ---- float64 ---- */
#define S double
#define T double
#define P double
#define V vd
#define LANES 8
#define NAME(f) PASTE(f, f64)
#define GENERIC 0
#define TO_DOUBLE(x) (x)
#define FROM_DOUBLE(x) (x)
#define LOAD vd_load
#define LOAD_N vd_load_n
#define STORE vd_store
#define STORE_N vd_store_n
#define STREAM vd_stream
#define ROUND(x) (x)
#define LOAD_T vd_load
#define LOAD_P vd_load
#define LOAD_P_N vd_load_n
#include "arith64.h"
#include "bodies.h"

/* ---- float32 and bfloat16 in double arithmetic, for the rare blocks (the range of float16 never needs it) ---- */
#define S float
#define T double
#define P float
#define V vd
#define LANES 8
#define NAME(f) PASTE(f, f32_wide)
#define GENERIC 1
#define WITHOUT_SOFTMAX
#define TO_DOUBLE(x) ((double)(x))
#define FROM_DOUBLE(x) ((float)(x))
#define LOAD vd_load_float
#define LOAD_N vd_load_float_n
#define STORE vd_store_float
#define STORE_N vd_store_float_n
#define STREAM vd_store_float
#define ROUND(x) (x)
#define LOAD_T vd_load
#define LOAD_P vd_load_float
#define LOAD_P_N vd_load_float_n
#include "arith64.h"
#include "bodies.h"

#define S fn_bf16
#define T double
#define P float
#define V vd
#define LANES 8
#define NAME(f) PASTE(f, bf16_wide)
#define GENERIC 1
#define WITHOUT_SOFTMAX
#define TO_DOUBLE(x) ((double)fn_float_of_bf16(x))
#define FROM_DOUBLE(x) fn_bf16_of_float(fn_float_to_odd(x))
#define LOAD vd_load_bf16
#define LOAD_N vd_load_bf16_n
#define STORE vd_store_bf16
#define STORE_N vd_store_bf16_n
#define STREAM vd_store_bf16
#define ROUND vd_round_bf16
#define LOAD_T vd_load
#define LOAD_P vd_load_float
#define LOAD_P_N vd_load_float_n
#include "arith64.h"
#include "bodies.h"

/* ---- float32, float16, bfloat16 ---- */
#define S float
#define T float
#define P float
#define V vf
#define LANES 16
#define NAME(f) PASTE(f, f32)
#define GENERIC 0
#define TO_DOUBLE(x) ((double)(x))
#define FROM_DOUBLE(x) ((float)(x))
#define WIDER(f) PASTE(f, f32_wide)
#define LOAD vf_load
#define LOAD_N vf_load_n
#define STORE vf_store
#define STORE_N vf_store_n
#define STREAM vf_stream
#define ROUND(x) (x)
#define LOAD_T vf_load
#define LOAD_P vf_load
#define LOAD_P_N vf_load_n
#include "arith32.h"
#include "bodies.h"

#define S fn_f16
#define T float
#define P float
#define V vf
#define LANES 16
#define NAME(f) PASTE(f, f16)
#define GENERIC 0
#define TO_DOUBLE(x) ((double)fn_float_of_f16(x))
#define FROM_DOUBLE(x) fn_f16_of_float(fn_float_to_odd(x))
#define LOAD vf_load_f16
#define LOAD_N vf_load_f16_n
#define STORE vf_store_f16
#define STORE_N vf_store_f16_n
#define STREAM vf_stream_f16
#define ROUND vf_round_f16
#define LOAD_T vf_load
#define LOAD_P vf_load
#define LOAD_P_N vf_load_n
#include "arith32.h"
#include "bodies.h"

#define S fn_bf16
#define T float
#define P float
#define V vf
#define LANES 16
#define NAME(f) PASTE(f, bf16)
#define GENERIC 0
#define TO_DOUBLE(x) ((double)fn_float_of_bf16(x))
#define FROM_DOUBLE(x) fn_bf16_of_float(fn_float_to_odd(x))
#define WIDER(f) PASTE(f, bf16_wide)
#define LOAD vf_load_bf16
#define LOAD_N vf_load_bf16_n
#define STORE vf_store_bf16
#define STORE_N vf_store_bf16_n
#define STREAM vf_stream_bf16
#define ROUND vf_round_bf16
#define LOAD_T vf_load
#define LOAD_P vf_load
#define LOAD_P_N vf_load_n
#include "arith32.h"
#include "bodies.h"

/* ---- the table ---- */

#define OPS(dtype, size) \
    {size, moments_##dtype, affine_##dtype, grad_sums_##dtype, grad_apply_##dtype, col_sums_##dtype, col_squares_##dtype, \
     col_affine_##dtype, col_grad_sums_##dtype, col_grad_apply_##dtype, row_moments_##dtype, row_apply_##dtype, \
     rows_forward_##dtype, row_grad_sums_##dtype, rows_grad_##dtype, add_##dtype, softmax_##dtype, softmax_grad_##dtype, \
     lse_##dtype, cross_entropy_grad_##dtype, dropout_##dtype, dropout_grad_##dtype, get_##dtype, put_##dtype}

const fn_ops FN_TABLE[FN_DTYPES] = {OPS(f32, 4), OPS(f64, 8), OPS(f16, 2), OPS(bf16, 2)};
