/* The vocabulary between the types and across lanes: floats as doubles and back, sums of a vector. Part of vec.h. */
#ifndef FN_VEC_WIDE_H
#define FN_VEC_WIDE_H

#include "vec.h"

/* ---- widen: lanes 0-7 and 8-15 of a float vector as doubles; narrow: the reverse, rounding to nearest even ---- */

#if FN_NATIVE_D == 64
FN_INLINE fn_nd nd_load_float(const float *s) { return (fn_nd)_mm512_cvtps_pd(_mm256_loadu_ps(s)); }
FN_INLINE void vd_store_float(float *d, vd a) { _mm256_storeu_ps(d, _mm512_cvtpd_ps((__m512d)a.v[0])); }
#elif FN_LEVEL == 2 || FN_LEVEL == 3
FN_INLINE vd fn_widen(__m128 a, __m128 b) { vd r; r.v[0] = (fn_nd)_mm256_cvtps_pd(a); r.v[1] = (fn_nd)_mm256_cvtps_pd(b); return r; }
FN_INLINE fn_nd nd_load_float(const float *s) { return (fn_nd)_mm256_cvtps_pd(_mm_loadu_ps(s)); }
FN_INLINE void vd_store_float(float *d, vd a) { FN_EACH_D(p, _mm_storeu_ps(d + 4 * p, _mm256_cvtpd_ps((__m256d)a.v[p]))); }
#if FN_LEVEL == 2
FN_INLINE vd vf_low(vf a) { return fn_widen(_mm256_castps256_ps128((__m256)a.v[0]), _mm256_extractf128_ps((__m256)a.v[0], 1)); }
FN_INLINE vd vf_high(vf a) { return fn_widen(_mm256_castps256_ps128((__m256)a.v[1]), _mm256_extractf128_ps((__m256)a.v[1], 1)); }
#endif
#elif defined(FN_X86)
FN_INLINE vd fn_widen(fn_nf a, fn_nf b) {
    vd r;
    r.v[0] = (fn_nd)_mm_cvtps_pd((__m128)a);
    r.v[1] = (fn_nd)_mm_cvtps_pd(_mm_movehl_ps((__m128)a, (__m128)a));
    r.v[2] = (fn_nd)_mm_cvtps_pd((__m128)b);
    r.v[3] = (fn_nd)_mm_cvtps_pd(_mm_movehl_ps((__m128)b, (__m128)b));
    return r;
}
FN_INLINE vd vf_low(vf a) { return fn_widen(a.v[0], a.v[1]); }
FN_INLINE vd vf_high(vf a) { return fn_widen(a.v[2], a.v[3]); }
FN_INLINE fn_nd nd_load_float(const float *s) { return (fn_nd)_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)s))); }
FN_INLINE void vd_store_float(float *d, vd a) {
    for (int p = 0; p < 2; p++)
        _mm_storeu_ps(d + 4 * p, _mm_movelh_ps(_mm_cvtpd_ps((__m128d)a.v[2 * p]), _mm_cvtpd_ps((__m128d)a.v[2 * p + 1])));
}
#else
FN_INLINE vd fn_widen(fn_nf a, fn_nf b) {
    vd r;
    r.v[0] = (fn_nd){a[0], a[1]}; r.v[1] = (fn_nd){a[2], a[3]};
    r.v[2] = (fn_nd){b[0], b[1]}; r.v[3] = (fn_nd){b[2], b[3]};
    return r;
}
FN_INLINE vd vf_low(vf a) { return fn_widen(a.v[0], a.v[1]); }
FN_INLINE vd vf_high(vf a) { return fn_widen(a.v[2], a.v[3]); }
FN_INLINE fn_nd nd_load_float(const float *s) { return (fn_nd){s[0], s[1]}; }
FN_INLINE void vd_store_float(float *d, vd a) { FN_EACH_D(p, { d[2 * p] = (float)a.v[p][0]; d[2 * p + 1] = (float)a.v[p][1]; }); }
#endif

FN_INLINE vd vd_load_float(const float *s) { vd r; FN_EACH_D(p, r.v[p] = nd_load_float(s + p * (FN_NATIVE_D / 8))); return r; }

/* Both halves; at AVX-512, which has no vf_low and vf_high, by way of memory: three shuffles would compete with the conversions
   that follow (bfloat16 layer norm's sums take three quarters of the time). The asm keeps gcc from undoing it. */
#if FN_LEVEL == 3
FN_INLINE void vf_widen(vf a, vd *low, vd *high) {
    float t[16] __attribute__((aligned(64)));
    vf_store(t, a);
    __asm__("" : "+m"(t));
    *low = vd_load_float(t);
    *high = vd_load_float(t + 8);
}
#else
FN_INLINE void vf_widen(vf a, vd *low, vd *high) { *low = vf_low(a); *high = vf_high(a); }
#endif

/* ---- eight vectors of doubles: lane j of vector i becomes lane i of vector j ---- */

#if FN_NATIVE_D == 64
FN_INLINE void vd_transpose(vd *a) {
    __m512d r[8], s[8];
    for (int i = 0; i < 8; i += 2) {
        r[i] = _mm512_unpacklo_pd((__m512d)a[i].v[0], (__m512d)a[i + 1].v[0]);
        r[i + 1] = _mm512_unpackhi_pd((__m512d)a[i].v[0], (__m512d)a[i + 1].v[0]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) { /* lanes 0-1 and 4-5, and 2-3 and 6-7 */
            s[i + k] = _mm512_permutex2var_pd(r[i + k], _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0), r[i + k + 2]);
            s[i + k + 2] = _mm512_permutex2var_pd(r[i + k], _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2), r[i + k + 2]);
        }
    for (int k = 0; k < 4; k++) {
        a[k].v[0] = (fn_nd)_mm512_permutex2var_pd(s[k], _mm512_set_epi64(11, 10, 9, 8, 3, 2, 1, 0), s[k + 4]);
        a[k + 4].v[0] = (fn_nd)_mm512_permutex2var_pd(s[k], _mm512_set_epi64(15, 14, 13, 12, 7, 6, 5, 4), s[k + 4]);
    }
}
#elif FN_LEVEL == 2 || FN_LEVEL == 3
FN_INLINE void fn_transpose4(__m256d *a, __m256d *b, __m256d *c, __m256d *d) {
    __m256d ab = _mm256_unpacklo_pd(*a, *b), cd = _mm256_unpacklo_pd(*c, *d);
    __m256d AB = _mm256_unpackhi_pd(*a, *b), CD = _mm256_unpackhi_pd(*c, *d);
    *a = _mm256_permute2f128_pd(ab, cd, 0x20);
    *b = _mm256_permute2f128_pd(AB, CD, 0x20);
    *c = _mm256_permute2f128_pd(ab, cd, 0x31);
    *d = _mm256_permute2f128_pd(AB, CD, 0x31);
}
FN_INLINE void vd_transpose(vd *a) {
    for (int i = 0; i < 8; i += 4)
        FN_EACH_D(p, {
            __m256d r[4] = {(__m256d)a[i].v[p], (__m256d)a[i + 1].v[p], (__m256d)a[i + 2].v[p], (__m256d)a[i + 3].v[p]};
            fn_transpose4(r, r + 1, r + 2, r + 3);
            for (int k = 0; k < 4; k++) a[i + k].v[p] = (fn_nd)r[k];
        });
    for (int k = 0; k < 4; k++) { fn_nd t = a[k].v[1]; a[k].v[1] = a[k + 4].v[0]; a[k + 4].v[0] = t; }
}
#else
FN_INLINE void vd_transpose(vd *a) {
    double t[64], u[64];
    for (int i = 0; i < 8; i++) vd_store(t + 8 * i, a[i]);
    for (int i = 0; i < 64; i++) u[i] = t[i % 8 * 8 + i / 8];
    for (int i = 0; i < 8; i++) a[i] = vd_load(u + 8 * i);
}
#endif

/* ---- horizontal sum of 8 doubles in one fixed order: i with i+4, i with i+2, i with i+1 ---- */

#if FN_LEVEL == 2 || FN_LEVEL == 3
/* Lanes 0-3 and 4-7. */
#if FN_NATIVE_D == 64
FN_INLINE __m256d vd_low(vd a) { return _mm512_castpd512_pd256((__m512d)a.v[0]); }
FN_INLINE __m256d vd_high(vd a) { return _mm512_extractf64x4_pd((__m512d)a.v[0], 1); }
FN_INLINE vd vd_of(__m256d low, __m256d high) { vd r; r.v[0] = (fn_nd)_mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1); return r; }
#else
FN_INLINE __m256d vd_low(vd a) { return (__m256d)a.v[0]; }
FN_INLINE __m256d vd_high(vd a) { return (__m256d)a.v[1]; }
FN_INLINE vd vd_of(__m256d low, __m256d high) { vd r; r.v[0] = (fn_nd)low; r.v[1] = (fn_nd)high; return r; }
#endif
FN_INLINE double vd_sum(vd a) {
    __m256d h = _mm256_add_pd(vd_low(a), vd_high(a));
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return q[0] + q[1];
}
/* The same of eight vectors. */
FN_INLINE __m256d fn_sums4(const vd *a) {
#define HALVES(k) _mm256_add_pd(vd_low(a[k]), vd_high(a[k]))
    __m256d h0 = HALVES(0), h1 = HALVES(1), h2 = HALVES(2), h3 = HALVES(3);
#undef HALVES
    __m256d even = _mm256_add_pd(_mm256_permute2f128_pd(h0, h2, 0x20), _mm256_permute2f128_pd(h0, h2, 0x31));
    __m256d odd = _mm256_add_pd(_mm256_permute2f128_pd(h1, h3, 0x20), _mm256_permute2f128_pd(h1, h3, 0x31));
    return _mm256_add_pd(_mm256_unpacklo_pd(even, odd), _mm256_unpackhi_pd(even, odd));
}
FN_INLINE vd vd_sums(const vd *a) { return vd_of(fn_sums4(a), fn_sums4(a + 4)); }
#else
FN_INLINE fn_nd fn_halves(vd a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
FN_INLINE double vd_sum(vd a) { fn_nd q = fn_halves(a); return q[0] + q[1]; }
FN_INLINE vd vd_sums(const vd *a) {
    vd r;
    FN_EACH_D(p, { fn_nd b = fn_halves(a[2 * p]), c = fn_halves(a[2 * p + 1]); r.v[p] = (fn_nd){b[0], c[0]} + (fn_nd){b[1], c[1]}; });
    return r;
}
#endif

#endif
