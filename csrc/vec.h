/* The vector vocabulary: everything the kernels know of the machine.

   A logical vector is 64 bytes on every instruction set: vf holds 16 floats, vd 8 doubles, each a struct of native
   vectors (four of SSE2 or NEON, two of AVX2, one of AVX-512; of doubles one or two there: dispatch.c says when). Because the
   logical width is fixed and every operation is a single IEEE operation per lane (no reassociation, no multiply-add fused but by
   name), a kernel written in this vocabulary gives the same bits at every level. A struct and not one vector_size(64): gcc 12
   turns the latter into memory traffic at the narrower levels (12 GB/s in place of 88 for a sum of squares at AVX2).

   The level is chosen by the translation unit that includes this file (level_*.c): FN_LEVEL is 0 baseline (SSE2),
   2 AVX2 + FMA + F16C, 3 AVX-512 (F, BW, DQ, VL) + FMA with FN_NATIVE_D bytes of doubles in a native vector, 4 NEON. Any other
   machine with gcc or clang takes level 0 without intrinsics. Intrinsics live in this header, vec_wide.h, vec_fused.h, vec_memory.h
   and vec_half.h, and nowhere else. */
#ifndef FN_VEC_H
#define FN_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "fastnorm.h"

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__)
#include <immintrin.h>
#define FN_X86 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define FN_ARM 1
#endif

#if FN_LEVEL == 3
#define FN_NATIVE 64
#elif FN_LEVEL == 2
#define FN_NATIVE 32
#else
#define FN_NATIVE 16
#endif
#ifndef FN_NATIVE_D /* bytes of doubles */
#define FN_NATIVE_D FN_NATIVE
#endif
/* Inlined, but at baseline: its vectors are four of SSE2, and with these inlined too its code was half of the library. */
#if FN_LEVEL == 0
#define FN_BULKY FN_OUTLINE
#else
#define FN_BULKY FN_INLINE
#endif
#define FN_PARTS (64 / FN_NATIVE)
#define FN_PARTS_D (64 / FN_NATIVE_D)

typedef float fn_nf __attribute__((vector_size(FN_NATIVE)));
typedef double fn_nd __attribute__((vector_size(FN_NATIVE_D)));
typedef int32_t fn_ni __attribute__((vector_size(FN_NATIVE)));
typedef uint32_t fn_nu __attribute__((vector_size(FN_NATIVE)));
typedef int64_t fn_nl __attribute__((vector_size(FN_NATIVE_D)));
typedef uint64_t fn_nul __attribute__((vector_size(FN_NATIVE))); /* as wide as fn_nu: at AVX-512 wider than fn_nl */
typedef float fn_nf_mem __attribute__((vector_size(FN_NATIVE), aligned(4), may_alias));
typedef double fn_nd_mem __attribute__((vector_size(FN_NATIVE_D), aligned(8), may_alias));
typedef int32_t fn_ni_mem __attribute__((vector_size(FN_NATIVE), aligned(4), may_alias));
typedef int64_t fn_nl_mem __attribute__((vector_size(FN_NATIVE_D), aligned(8), may_alias));

typedef struct { fn_nf v[FN_PARTS]; } vf; /* 16 floats */
typedef struct { fn_nd v[FN_PARTS_D]; } vd; /* 8 doubles */
typedef struct { fn_nu v[FN_PARTS]; } vu; /* 16 unsigned 32-bit integers */
typedef struct { fn_nl v[FN_PARTS_D]; } vl; /* 8 signed 64-bit integers */

/* The statement once for each native vector, p being a constant. (A loop over p keeps the vectors in memory until gcc unrolls
   it, late, and takes several times as long to compile.) */
#define FN_WITH(n, p, ...) { enum { p = n }; __VA_ARGS__; }
#define FN_EACH_1(p, ...) do { FN_WITH(0, p, __VA_ARGS__) } while (0)
#define FN_EACH_2(p, ...) do { FN_WITH(0, p, __VA_ARGS__) FN_WITH(1, p, __VA_ARGS__) } while (0)
#define FN_EACH_4(p, ...) \
    do { FN_WITH(0, p, __VA_ARGS__) FN_WITH(1, p, __VA_ARGS__) FN_WITH(2, p, __VA_ARGS__) FN_WITH(3, p, __VA_ARGS__) } while (0)
#define FN_EACH_8(p, ...) \
    do { \
        FN_WITH(0, p, __VA_ARGS__) FN_WITH(1, p, __VA_ARGS__) FN_WITH(2, p, __VA_ARGS__) FN_WITH(3, p, __VA_ARGS__) \
        FN_WITH(4, p, __VA_ARGS__) FN_WITH(5, p, __VA_ARGS__) FN_WITH(6, p, __VA_ARGS__) FN_WITH(7, p, __VA_ARGS__) \
    } while (0)
#if FN_NATIVE == 64
#define FN_EACH FN_EACH_1
#elif FN_NATIVE == 32
#define FN_EACH FN_EACH_2
#else
#define FN_EACH FN_EACH_4
#endif
#if FN_NATIVE_D == 64
#define FN_EACH_D FN_EACH_1 /* of doubles */
#define FN_EACH_W FN_EACH_2 /* of sixteen doubles */
#elif FN_NATIVE_D == 32
#define FN_EACH_D FN_EACH_2
#define FN_EACH_W FN_EACH_4
#else
#define FN_EACH_D FN_EACH_4
#define FN_EACH_W FN_EACH_8
#endif

/* x86's operations on a native vector of doubles. */
#if FN_NATIVE_D == 64
typedef __m512d fn_md;
#define FN_MD(f) _mm512_##f
#elif defined(FN_X86) && FN_NATIVE_D == 32
typedef __m256d fn_md;
#define FN_MD(f) _mm256_##f
#endif

/* ---- float: load, store, arithmetic. Each line is one IEEE operation per lane. ---- */

FN_INLINE vf vf_load(const float *s) { vf r; FN_EACH(p, r.v[p] = *(const fn_nf_mem *)(s + p * (FN_NATIVE / 4))); return r; }
FN_INLINE void vf_store(float *d, vf a) { FN_EACH(p, *(fn_nf_mem *)(d + p * (FN_NATIVE / 4)) = a.v[p]); }
FN_INLINE vf vf_set1(float c) { vf r; FN_EACH(p, r.v[p] = c - (fn_nf){0}); return r; }
FN_INLINE vf vf_zero(void) { vf r; FN_EACH(p, r.v[p] = (fn_nf){0}); return r; }
FN_INLINE vf vf_add(vf a, vf b) { FN_EACH(p, a.v[p] += b.v[p]); return a; }
FN_INLINE vf vf_sub(vf a, vf b) { FN_EACH(p, a.v[p] -= b.v[p]); return a; }
FN_INLINE vf vf_mul(vf a, vf b) { FN_EACH(p, a.v[p] *= b.v[p]); return a; }

/* The same value, in a register from here on: gcc otherwise loads again wherever it is used. */
#if defined(FN_X86)
#define FN_HOLD(a) __asm__("" : "+v"(a))
#elif defined(FN_ARM)
#define FN_HOLD(a) __asm__("" : "+w"(a))
#else
#define FN_HOLD(a) (void)0
#endif
FN_INLINE vf vf_hold(vf a) { FN_EACH(p, FN_HOLD(a.v[p])); return a; }

/* ---- double ---- */

FN_INLINE vd vd_hold(vd a) { FN_EACH_D(p, FN_HOLD(a.v[p])); return a; }

FN_INLINE vd vd_load(const double *s) { vd r; FN_EACH_D(p, r.v[p] = *(const fn_nd_mem *)(s + p * (FN_NATIVE_D / 8))); return r; }
FN_INLINE void vd_store(double *d, vd a) { FN_EACH_D(p, *(fn_nd_mem *)(d + p * (FN_NATIVE_D / 8)) = a.v[p]); }
FN_INLINE vd vd_set1(double c) { vd r; FN_EACH_D(p, r.v[p] = c - (fn_nd){0}); return r; }
FN_INLINE vd vd_zero(void) { vd r; FN_EACH_D(p, r.v[p] = (fn_nd){0}); return r; }
FN_INLINE vd vd_add(vd a, vd b) { FN_EACH_D(p, a.v[p] += b.v[p]); return a; }
FN_INLINE vd vd_sub(vd a, vd b) { FN_EACH_D(p, a.v[p] -= b.v[p]); return a; }
FN_INLINE vd vd_mul(vd a, vd b) { FN_EACH_D(p, a.v[p] *= b.v[p]); return a; }
FN_INLINE vd vd_div(vd a, vd b) { FN_EACH_D(p, a.v[p] /= b.v[p]); return a; }

/* c + a·b where the product is exact: one rounding, so that fused or not the bits are the same. */
#if FN_LEVEL == 3
FN_INLINE vf vf_add_exact(vf c, vf a, vf b) { c.v[0] = (fn_nf)_mm512_fmadd_ps((__m512)a.v[0], (__m512)b.v[0], (__m512)c.v[0]); return c; }
#elif FN_LEVEL == 2
FN_INLINE vf vf_add_exact(vf c, vf a, vf b) {
    FN_EACH(p, c.v[p] = (fn_nf)_mm256_fmadd_ps((__m256)a.v[p], (__m256)b.v[p], (__m256)c.v[p]));
    return c;
}
#elif defined(FN_ARM)
FN_INLINE vf vf_add_exact(vf c, vf a, vf b) {
    FN_EACH(p, c.v[p] = (fn_nf)vfmaq_f32((float32x4_t)c.v[p], (float32x4_t)a.v[p], (float32x4_t)b.v[p]));
    return c;
}
#else
FN_INLINE vf vf_add_exact(vf c, vf a, vf b) { return vf_add(c, vf_mul(a, b)); }
#endif
#if FN_LEVEL == 2 || FN_LEVEL == 3
FN_INLINE fn_nd nd_add_exact(fn_nd c, fn_nd a, fn_nd b) { return (fn_nd)FN_MD(fmadd_pd)((fn_md)a, (fn_md)b, (fn_md)c); }
#elif defined(FN_ARM)
FN_INLINE fn_nd nd_add_exact(fn_nd c, fn_nd a, fn_nd b) { return (fn_nd)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#else
FN_INLINE fn_nd nd_add_exact(fn_nd c, fn_nd a, fn_nd b) { return c + a * b; }
#endif
FN_INLINE vd vd_add_exact(vd c, vd a, vd b) { FN_EACH_D(p, c.v[p] = nd_add_exact(c.v[p], a.v[p], b.v[p])); return c; }

/* a + b as a + b·1: the same bits, on the multipliers, where additions and conversions compete for the other units. */
#if FN_LEVEL == 2 || FN_LEVEL == 3
FN_INLINE fn_nd nd_add_beside(fn_nd a, fn_nd b) { fn_nd one = 1 - (fn_nd){0}; FN_HOLD(one); return nd_add_exact(a, b, one); }
#else
FN_INLINE fn_nd nd_add_beside(fn_nd a, fn_nd b) { return a + b; }
#endif
FN_INLINE vd vd_add_beside(vd a, vd b) { FN_EACH_D(p, a.v[p] = nd_add_beside(a.v[p], b.v[p])); return a; }

#if FN_LEVEL == 2 || FN_LEVEL == 3
FN_INLINE vd vd_sqrt(vd a) { FN_EACH_D(p, a.v[p] = (fn_nd)FN_MD(sqrt_pd)((fn_md)a.v[p])); return a; }
#elif defined(FN_X86)
FN_INLINE vd vd_sqrt(vd a) { FN_EACH_D(p, a.v[p] = (fn_nd)_mm_sqrt_pd((__m128d)a.v[p])); return a; }
#else
FN_INLINE vd vd_sqrt(vd a) { FN_EACH_D(p, for (int i = 0; i < 2; i++) a.v[p][i] = __builtin_sqrt(a.v[p][i])); return a; }
#endif

/* ---- masks: keep lanes 0 .. n-1, or the lanes where z > 0 (NaN counts as kept), and clear the others to +0 ---- */

static const int32_t fn_lanes32[32] __attribute__((aligned(64), unused)) =
    {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};

FN_INLINE vf vf_first(vf a, ptrdiff_t n) {
    const int32_t *m = fn_lanes32 + 16 - n;
    FN_EACH(p, a.v[p] = (fn_nf)((fn_ni)a.v[p] & *(const fn_ni_mem *)(m + p * (FN_NATIVE / 4))));
    return a;
}
FN_INLINE vd vd_first(vd a, ptrdiff_t n) {
    const int32_t *m = fn_lanes32 + 16 - 2 * n;
    FN_EACH_D(p, a.v[p] = (fn_nd)((fn_nl)a.v[p] & *(const fn_nl_mem *)(m + p * (FN_NATIVE_D / 4))));
    return a;
}
/* Lanes 0 .. n-1 of a, the others from b. */
#if FN_LEVEL == 3
FN_INLINE vf vf_first_or(vf a, vf b, ptrdiff_t n) {
    a.v[0] = (fn_nf)_mm512_mask_blend_ps((__mmask16)((1u << n) - 1), (__m512)b.v[0], (__m512)a.v[0]);
    return a;
}
#elif FN_LEVEL == 2
FN_INLINE vf vf_first_or(vf a, vf b, ptrdiff_t n) {
    const float *m = (const float *)(const void *)(fn_lanes32 + 16 - n);
    FN_EACH(p, a.v[p] = (fn_nf)_mm256_blendv_ps((__m256)b.v[p], (__m256)a.v[p], _mm256_loadu_ps(m + 8 * p)));
    return a;
}
#else
FN_INLINE vf vf_first_or(vf a, vf b, ptrdiff_t n) {
    vf keep = vf_first(a, n), rest = vf_first(b, n);
    FN_EACH(p, a.v[p] = (fn_nf)((fn_ni)keep.v[p] | ((fn_ni)b.v[p] ^ (fn_ni)rest.v[p])));
    return a;
}
#endif
#if FN_LEVEL == 2
FN_INLINE vd vd_first_or(vd a, vd b, ptrdiff_t n) {
    const double *m = (const double *)(const void *)(fn_lanes32 + 16 - 2 * n);
    FN_EACH_D(p, a.v[p] = (fn_nd)_mm256_blendv_pd((__m256d)b.v[p], (__m256d)a.v[p], _mm256_loadu_pd(m + 4 * p)));
    return a;
}
#else
FN_INLINE vd vd_first_or(vd a, vd b, ptrdiff_t n) {
    vd keep = vd_first(a, n), rest = vd_first(b, n);
    FN_EACH_D(p, a.v[p] = (fn_nd)((fn_nl)keep.v[p] | ((fn_nl)b.v[p] ^ (fn_nl)rest.v[p])));
    return a;
}
#endif
FN_INLINE vf vf_where_positive(vf z, vf a) { FN_EACH(p, a.v[p] = (fn_nf)((fn_ni)a.v[p] & ~(fn_ni)(z.v[p] <= 0.0f))); return a; }
FN_INLINE vd vd_where_positive(vd z, vd a) { FN_EACH_D(p, a.v[p] = (fn_nd)((fn_nl)a.v[p] & ~(fn_nl)(z.v[p] <= 0.0))); return a; }

/* a where b is not 0, else +0. */
FN_INLINE vf vf_where_nonzero(vf b, vf a) { FN_EACH(p, a.v[p] = (fn_nf)((fn_ni)a.v[p] & ~(fn_ni)(b.v[p] == 0.0f))); return a; }
FN_INLINE vd vd_where_nonzero(vd b, vd a) { FN_EACH_D(p, a.v[p] = (fn_nd)((fn_nl)a.v[p] & ~(fn_nl)(b.v[p] == 0.0))); return a; }

/* ---- comparison: the larger of a and limit (a where a is NaN); x where a ≥ limit, else +0 ---- */

/* x86's max gives its second operand where one is NaN. */
#if FN_LEVEL == 3
FN_INLINE vf vf_at_least(vf a, vf limit) { a.v[0] = (fn_nf)_mm512_max_ps((__m512)limit.v[0], (__m512)a.v[0]); return a; }
#elif FN_LEVEL == 2
FN_INLINE vf vf_at_least(vf a, vf limit) { FN_EACH(p, a.v[p] = (fn_nf)_mm256_max_ps((__m256)limit.v[p], (__m256)a.v[p])); return a; }
#elif defined(FN_X86)
FN_INLINE vf vf_at_least(vf a, vf limit) { FN_EACH(p, a.v[p] = (fn_nf)_mm_max_ps((__m128)limit.v[p], (__m128)a.v[p])); return a; }
#else
FN_INLINE vf vf_at_least(vf a, vf limit) {
    FN_EACH(p, { fn_ni below = (fn_ni)(a.v[p] < limit.v[p]); a.v[p] = (fn_nf)(((fn_ni)limit.v[p] & below) | ((fn_ni)a.v[p] & ~below)); });
    return a;
}
#endif
FN_INLINE vd vd_at_least(vd a, vd limit) {
    FN_EACH_D(p, { fn_nl below = (fn_nl)(a.v[p] < limit.v[p]); a.v[p] = (fn_nd)(((fn_nl)limit.v[p] & below) | ((fn_nl)a.v[p] & ~below)); });
    return a;
}
FN_INLINE vf vf_zero_below(vf a, vf limit, vf x) { FN_EACH(p, x.v[p] = (fn_nf)((fn_ni)x.v[p] & ~(fn_ni)(a.v[p] < limit.v[p]))); return x; }
FN_INLINE vd vd_zero_below(vd a, vd limit, vd x) { FN_EACH_D(p, x.v[p] = (fn_nd)((fn_nl)x.v[p] & ~(fn_nl)(a.v[p] < limit.v[p]))); return x; }

/* ---- doubles: NaN as 0; NaN and infinity as 0; floats: |a|, 0 as 1; doubles: lanes (negative ones of the result)
   where low ≤ |a| < high, positive numbers, or a = 0, and where a ≤ limit ---- */

FN_INLINE vd vd_number(vd a) { FN_EACH_D(p, a.v[p] = (fn_nd)((fn_nl)a.v[p] & (fn_nl)(a.v[p] == a.v[p]))); return a; }
FN_INLINE vd vd_finite(vd a) { FN_EACH_D(p, a.v[p] = (fn_nd)((fn_nl)a.v[p] & (fn_nl)(a.v[p] - a.v[p] == 0.0))); return a; }
/* |a|, and 1 for 0. */
FN_INLINE vf vf_size(vf a) {
    FN_EACH(p, {
        fn_ni size = (fn_ni)a.v[p] & INT32_MAX, zero = (fn_ni)((fn_nf)size == 0.0f);
        a.v[p] = (fn_nf)((size & ~zero) | ((fn_ni)((fn_nf){0} + 1.0f) & zero));
    });
    return a;
}
/* By integers, which order floats alike: comparisons go through mask registers at AVX-512, for twice the time. */
FN_INLINE vl vd_within(vd a, double low, double high) {
    vl r;
    int64_t first, end;
    memcpy(&first, &low, 8);
    memcpy(&end, &high, 8);
    FN_EACH_D(p, {
        fn_nl size = (fn_nl)a.v[p] & INT64_MAX;
        r.v[p] = ~((size - first) | (end - 1 - size)) | (size - 1);
    });
    return r;
}
FN_INLINE vl vd_at_most(vd a, vd limit) { vl r; FN_EACH_D(p, r.v[p] = (fn_nl)(a.v[p] <= limit.v[p])); return r; }
FN_INLINE vl vl_and(vl a, vl b) { FN_EACH_D(p, a.v[p] &= b.v[p]); return a; }
#if FN_NATIVE_D == 64
FN_INLINE int vl_all(vl a) { return _mm512_movepi64_mask((__m512i)a.v[0]) == 255; }
#elif FN_LEVEL == 2 || FN_LEVEL == 3
FN_INLINE int vl_all(vl a) { return _mm256_movemask_pd((__m256d)(a.v[0] & a.v[1])) == 15; }
#elif defined(FN_X86)
FN_INLINE int vl_all(vl a) { return _mm_movemask_pd((__m128d)((a.v[0] & a.v[1]) & (a.v[2] & a.v[3]))) == 3; }
#else
FN_INLINE int vl_all(vl a) {
    int64_t all = -1;
    FN_EACH_D(p, for (int i = 0; i < FN_NATIVE_D / 8; i++) all &= a.v[p][i]);
    return all < 0;
}
#endif

/* ---- 2^n from c = n + FN_CARRIER32 or 64. Adding the carrier rounds to an integer (halves to the odd one), whose low bits are then those
   of n and of an exponent's bias, so that a shift alone makes the number; with 64, or 256, on top: FN_RAISED times too large, it is never
   subnormal. ---- */

#define FN_RAISED32 0x1p64f
#define FN_RAISED64 0x1p256
#define FN_CARRIER32 (0x1.8p23f + 127 + 64)
#define FN_CARRIER64 (0x1.8p52 + 1023 + 256)
FN_INLINE vf vf_power(vf c) { FN_EACH(p, c.v[p] = (fn_nf)((fn_nu)c.v[p] << 23)); return c; }
FN_INLINE vd vd_power(vd c) { FN_EACH_D(p, c.v[p] = (fn_nd)((fn_nl)c.v[p] << 52)); return c; }

/* ---- lanes whose bit is set, the others cleared to +0 ---- */

static const int32_t fn_bits32[16] __attribute__((aligned(64), unused)) =
    {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
static const int64_t fn_bits64[8] __attribute__((aligned(64), unused)) = {1, 2, 4, 8, 16, 32, 64, 128};

#if FN_LEVEL == 3
FN_INLINE vf vf_keep(vf a, uint32_t bits) { a.v[0] = (fn_nf)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)a.v[0]); return a; }
FN_INLINE vd vd_keep(vd a, uint32_t bits) {
    FN_EACH_D(p, a.v[p] = (fn_nd)FN_MD(maskz_mov_pd)((__mmask8)(bits >> p * (FN_NATIVE_D / 8)), (fn_md)a.v[p]));
    return a;
}
#else
FN_INLINE vf vf_keep(vf a, uint32_t bits) {
    FN_EACH(p, {
        fn_ni b = *(const fn_ni_mem *)(fn_bits32 + p * (FN_NATIVE / 4));
        a.v[p] = (fn_nf)((fn_ni)a.v[p] & (fn_ni)((b & (int32_t)bits) == b));
    });
    return a;
}
FN_INLINE vd vd_keep(vd a, uint32_t bits) {
    FN_EACH_D(p, {
        fn_nl b = *(const fn_nl_mem *)(fn_bits64 + p * (FN_NATIVE_D / 8));
        a.v[p] = (fn_nd)((fn_nl)a.v[p] & (fn_nl)((b & (int64_t)bits) == b));
    });
    return a;
}
#endif

/* ---- 32-bit integers: the halves of the 64-bit product with m; one bit per lane where a ≥ t (unsigned) ---- */

#if FN_LEVEL == 3
#define FN_MUL_EVEN(a, m) (fn_nul)_mm512_mul_epu32((__m512i)(a), _mm512_set1_epi32((int)(m)))
FN_INLINE uint32_t vu_at_least(vu a, uint32_t t) { return _mm512_cmpge_epu32_mask((__m512i)a.v[0], _mm512_set1_epi32((int)t)); }
#elif FN_LEVEL == 2
#define FN_MUL_EVEN(a, m) (fn_nul)_mm256_mul_epu32((__m256i)(a), _mm256_set1_epi32((int)(m)))
FN_INLINE uint32_t vu_at_least(vu a, uint32_t t) {
    uint32_t bits = 0;
    FN_EACH(p, bits |= (uint32_t)_mm256_movemask_ps((__m256)(a.v[p] >= t)) << (8 * p));
    return bits;
}
#elif defined(FN_X86)
#define FN_MUL_EVEN(a, m) (fn_nul)_mm_mul_epu32((__m128i)(a), _mm_set1_epi32((int)(m)))
FN_INLINE uint32_t vu_at_least(vu a, uint32_t t) {
    uint32_t bits = 0;
    FN_EACH(p, bits |= (uint32_t)_mm_movemask_ps((__m128)(a.v[p] >= t)) << (4 * p));
    return bits;
}
#else
#define FN_MUL_EVEN(a, m) (((fn_nul)(a) & 0xffffffffu) * (m))
FN_INLINE uint32_t vu_at_least(vu a, uint32_t t) {
    uint32_t bits = 0;
    FN_EACH(p, for (int i = 0; i < 4; i++) bits |= (uint32_t)(a.v[p][i] >= t) << (4 * p + i));
    return bits;
}
#endif
/* The products of even lanes and those of odd ones, put together by halves. */
#if FN_LEVEL == 3
#define FN_HALVES(even, odd, high, low)                                                                                  \
    *(high) = (fn_nu)_mm512_mask_shuffle_epi32((__m512i)(odd), 0x5555, (__m512i)(even), 0xf5);                           \
    *(low) = (fn_nu)_mm512_mask_shuffle_epi32((__m512i)(even), 0xaaaa, (__m512i)(odd), 0xa0)
#elif FN_LEVEL == 2
#define FN_HALVES(even, odd, high, low)                                                                                  \
    *(high) = (fn_nu)_mm256_blend_epi32((__m256i)((even) >> 32), (__m256i)(odd), 0xaa);                                  \
    *(low) = (fn_nu)_mm256_blend_epi32((__m256i)(even), (__m256i)((odd) << 32), 0xaa)
#else
#define FN_HALVES(even, odd, high, low)                                                                                  \
    *(high) = (fn_nu)(((even) >> 32) | ((odd) & ~((fn_nul){0} + 0xffffffffu)));                                          \
    *(low) = (fn_nu)(((even) & 0xffffffffu) | ((odd) << 32))
#endif
FN_INLINE void vu_multiply(vu a, uint32_t m, vu *high, vu *low) {
    FN_EACH(p, {
        fn_nul even = FN_MUL_EVEN(a.v[p], m), odd = FN_MUL_EVEN((fn_nul)a.v[p] >> 32, m);
        FN_HALVES(even, odd, &high->v[p], &low->v[p]);
    });
}
FN_INLINE vu vu_xor(vu a, vu b) { FN_EACH(p, a.v[p] ^= b.v[p]); return a; }
FN_INLINE vu vu_set1(uint32_t c) { vu r; FN_EACH(p, r.v[p] = (fn_nu){0} + c); return r; }
/* c, c + 1, ... c + 15 */
FN_INLINE vu vu_count(uint32_t c) {
    static const uint32_t steps[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vu r;
    FN_EACH(p, r.v[p] = (fn_nu)*(const fn_ni_mem *)(const void *)(steps + p * (FN_NATIVE / 4)) + c);
    return r;
}

#include "vec_wide.h"
#include "vec_fused.h"
#include "vec_memory.h"

#endif
