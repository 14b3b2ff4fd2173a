/* The vocabulary's way to memory beyond whole vectors: parts of vectors, stores past the cache, lines fetched ahead. Part of vec.h. */
#ifndef FN_VEC_MEMORY_H
#define FN_VEC_MEMORY_H

#include "vec.h"

/* ---- partial load (missing lanes are +0) and partial store of the first n lanes, 0 < n ≤ lanes ---- */

#if FN_LEVEL == 3
FN_INLINE vf vf_load_n(const float *s, ptrdiff_t n) { vf r; r.v[0] = (fn_nf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), s); return r; }
FN_INLINE void vf_store_n(float *d, vf a, ptrdiff_t n) { _mm512_mask_storeu_ps(d, (__mmask16)((1u << n) - 1), (__m512)a.v[0]); }
FN_INLINE vd vd_load_n(const double *s, ptrdiff_t n) {
    vd r;
    FN_EACH_D(p, r.v[p] = (fn_nd)FN_MD(maskz_loadu_pd)((__mmask8)(((1u << n) - 1) >> 4 * p), s + 4 * p));
    return r;
}
FN_INLINE void vd_store_n(double *d, vd a, ptrdiff_t n) {
    FN_EACH_D(p, FN_MD(mask_storeu_pd)(d + 4 * p, (__mmask8)(((1u << n) - 1) >> 4 * p), (fn_md)a.v[p]));
}
#elif FN_LEVEL == 2
FN_INLINE vf vf_load_n(const float *s, ptrdiff_t n) {
    vf r;
    const int32_t *m = fn_lanes32 + 16 - n;
    FN_EACH(p, r.v[p] = (fn_nf)_mm256_maskload_ps(s + 8 * p, _mm256_loadu_si256((const __m256i *)(m + 8 * p))));
    return r;
}
/* By halves: a masked store takes a Zen 3 a dozen cycles. */
FN_INLINE void vf_store_n(float *d, vf a, ptrdiff_t n) {
    __m256 half = (__m256)a.v[0];
    if (n & 16) { vf_store(d, a); return; }
    if (n & 8) { _mm256_storeu_ps(d, half); d += 8; half = (__m256)a.v[1]; }
    __m128 q = _mm256_castps256_ps128(half);
    if (n & 4) { _mm_storeu_ps(d, q); d += 4; q = _mm256_extractf128_ps(half, 1); }
    if (n & 2) { _mm_storel_pi((__m64 *)d, q); d += 2; q = _mm_movehl_ps(q, q); }
    if (n & 1) _mm_store_ss(d, q);
}
FN_INLINE vd vd_load_n(const double *s, ptrdiff_t n) {
    vd r;
    const int32_t *m = fn_lanes32 + 16 - 2 * n;
    FN_EACH_D(p, r.v[p] = (fn_nd)_mm256_maskload_pd(s + 4 * p, _mm256_loadu_si256((const __m256i *)(m + 8 * p))));
    return r;
}
FN_INLINE void vd_store_n(double *d, vd a, ptrdiff_t n) {
    __m256d half = (__m256d)a.v[0];
    if (n & 8) { vd_store(d, a); return; }
    if (n & 4) { _mm256_storeu_pd(d, half); d += 4; half = (__m256d)a.v[1]; }
    __m128d q = _mm256_castpd256_pd128(half);
    if (n & 2) { _mm_storeu_pd(d, q); d += 2; q = _mm256_extractf128_pd(half, 1); }
    if (n & 1) _mm_store_sd(d, q);
}
#else
FN_OUTLINE vf vf_load_n(const float *s, ptrdiff_t n) { float t[16] = {0}; memcpy(t, s, (size_t)n * 4); return vf_load(t); }
FN_OUTLINE void vf_store_n(float *d, vf a, ptrdiff_t n) { float t[16]; vf_store(t, a); memcpy(d, t, (size_t)n * 4); }
FN_OUTLINE vd vd_load_n(const double *s, ptrdiff_t n) { double t[8] = {0}; memcpy(t, s, (size_t)n * 8); return vd_load(t); }
FN_OUTLINE void vd_store_n(double *d, vd a, ptrdiff_t n) { double t[8]; vd_store(t, a); memcpy(d, t, (size_t)n * 8); }
#endif
FN_OUTLINE vd vd_load_float_n(const float *s, ptrdiff_t n) { float t[8] = {0}; memcpy(t, s, (size_t)n * 4); return vd_load_float(t); }
FN_OUTLINE void vd_store_float_n(float *d, vd a, ptrdiff_t n) { float t[8]; vd_store_float(t, a); memcpy(d, t, (size_t)n * 4); }

/* ---- stores that go past the cache; d is 64-byte aligned. fn_fence() makes them visible to other threads. ---- */

#if FN_LEVEL == 3
FN_INLINE void vf_stream(float *d, vf a) { _mm512_stream_ps(d, (__m512)a.v[0]); }
#if FN_NATIVE_D == 64
FN_INLINE void vd_stream(double *d, vd a) { _mm512_stream_pd(d, (__m512d)a.v[0]); }
#else
FN_INLINE void vd_stream(double *d, vd a) {
    _mm512_stream_pd(d, _mm512_insertf64x4(_mm512_castpd256_pd512((__m256d)a.v[0]), (__m256d)a.v[1], 1));
}
#endif
#elif FN_LEVEL == 2
FN_INLINE void vf_stream(float *d, vf a) { FN_EACH(p, _mm256_stream_ps(d + 8 * p, (__m256)a.v[p])); }
FN_INLINE void vd_stream(double *d, vd a) { FN_EACH_D(p, _mm256_stream_pd(d + 4 * p, (__m256d)a.v[p])); }
#elif defined(FN_X86)
FN_INLINE void vf_stream(float *d, vf a) { FN_EACH(p, _mm_stream_ps(d + 4 * p, (__m128)a.v[p])); }
FN_INLINE void vd_stream(double *d, vd a) { FN_EACH_D(p, _mm_stream_pd(d + 2 * p, (__m128d)a.v[p])); }
#else
FN_INLINE void vf_stream(float *d, vf a) { vf_store(d, a); }
FN_INLINE void vd_stream(double *d, vd a) { vd_store(d, a); }
#endif
#ifdef FN_X86
FN_INLINE void fn_fence(void) { _mm_sfence(); }
/* Into L2 and not L1: the data are wanted one channel or row later. */
FN_INLINE void fn_prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }
/* Into L1: what a single walk through memory wants soon (evaluation takes 0.8 of the time that it takes with L2's); and a line of an output
   that streamed stores reach only in part. */
FN_INLINE void fn_prefetch_l1(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
#else
FN_INLINE void fn_fence(void) {}
FN_INLINE void fn_prefetch_l1(const void *p) { __builtin_prefetch(p, 0, 3); }
FN_INLINE void fn_prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }
#endif

FN_INLINE void fn_stream_line(void *d, const void *s) { vf_stream(d, vf_load(s)); }

#endif
