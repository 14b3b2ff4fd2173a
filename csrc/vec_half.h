/* The vocabulary's half types: float16 (IEEE binary16) and bfloat16 in memory, float in registers.

   Widening is exact. Narrowing rounds to nearest even, by the hardware where the level has it and by the same rule in
   integer arithmetic where not, so that every level stores the same bits; NaN stays NaN. */
#ifndef FN_VEC_HALF_H
#define FN_VEC_HALF_H

#include "vec.h"

typedef uint16_t fn_f16;
typedef uint16_t fn_bf16;

/* ---- scalars ---- */

FN_INLINE float fn_float_of(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
FN_INLINE uint32_t fn_bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

FN_INLINE float fn_float_of_bf16(fn_bf16 h) { return fn_float_of((uint32_t)h << 16); }
FN_INLINE fn_bf16 fn_bf16_of_float(float f) {
    uint32_t u = fn_bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000) return (fn_bf16)(u >> 16 | 0x40);
    return (fn_bf16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
FN_INLINE float fn_float_of_f16(fn_f16 h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    if (magnitude > 0x0f800000) return fn_float_of(sign | magnitude | 0x7fc00000); /* NaN, made quiet */
    if (magnitude == 0x0f800000) return fn_float_of(sign | 0x7f800000);
    return fn_float_of(sign | fn_bits_of(fn_float_of(magnitude) * 0x1p112f)); /* rebias; exact for subnormals too */
}
FN_INLINE fn_f16 fn_f16_of_float(float f) {
    uint32_t u = fn_bits_of(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return (fn_f16)(sign | 0x7e00 | (a >> 13 & 0x1ff));
    if (a >= 0x47800000) return (fn_f16)(sign | 0x7c00);
    if (a < 0x38800000) return (fn_f16)(sign | (fn_bits_of(fn_float_of(a) + 0.5f) - 0x3f000000)); /* adding ½ rounds at 2^-24 */
    return (fn_f16)(sign | ((a + 0xc8000fff + (a >> 13 & 1)) >> 13));
}

/* double to float, rounding to odd: a further rounding to a half type then equals one rounding from double. */
FN_INLINE float fn_float_to_odd(double d) {
    float f = (float)d;
    uint32_t u = fn_bits_of(f);
    if (d == d && (double)f != d && f - f == 0) {
        if (f != 0 && (f > d) == (f > 0)) u -= 1; /* |f| > |d|: towards 0 */
        u |= 1;
    }
    return fn_float_of(u);
}

/* ---- sixteen 16-bit words to and from 32-bit lanes ---- */

#if FN_LEVEL == 2 || FN_LEVEL == 3
/* have instructions of their own for all of this */
#elif defined(FN_X86)
FN_INLINE vu vu_load_words(const uint16_t *s) {
    vu r;
    __m128i zero = _mm_setzero_si128();
    for (int p = 0; p < 2; p++) {
        __m128i w = _mm_loadu_si128((const __m128i *)(s + 8 * p));
        r.v[2 * p] = (fn_nu)_mm_unpacklo_epi16(w, zero);
        r.v[2 * p + 1] = (fn_nu)_mm_unpackhi_epi16(w, zero);
    }
    return r;
}
FN_INLINE __m128i fn_words(vu a, int p) { /* the signed pack of sign-extended words keeps every bit pattern */
    return _mm_packs_epi32(_mm_srai_epi32(_mm_slli_epi32((__m128i)a.v[2 * p], 16), 16),
                           _mm_srai_epi32(_mm_slli_epi32((__m128i)a.v[2 * p + 1], 16), 16));
}
FN_INLINE void vu_store_words(uint16_t *d, vu a) { for (int p = 0; p < 2; p++) _mm_storeu_si128((__m128i *)(d + 8 * p), fn_words(a, p)); }
FN_INLINE void vu_stream_words(uint16_t *d, vu a) { for (int p = 0; p < 2; p++) _mm_stream_si128((__m128i *)(d + 8 * p), fn_words(a, p)); }
#else
FN_INLINE vu vu_load_words(const uint16_t *s) {
    vu r;
    FN_EACH(p, r.v[p] = (fn_nu){s[4 * p], s[4 * p + 1], s[4 * p + 2], s[4 * p + 3]});
    return r;
}
FN_INLINE void vu_store_words(uint16_t *d, vu a) { FN_EACH(p, for (int i = 0; i < 4; i++) d[4 * p + i] = (uint16_t)a.v[p][i]); }
FN_INLINE void vu_stream_words(uint16_t *d, vu a) { vu_store_words(d, a); }
#endif

FN_INLINE vf vf_of(vu a) { vf r; FN_EACH(p, r.v[p] = (fn_nf)a.v[p]); return r; }

/* ---- bfloat16 ---- */

#if FN_LEVEL == 3
FN_INLINE vf vf_of_bf16_words(__m256i w) { /* word i to the upper half of lane i */
    const __m512i to = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0,
                                        1, 0, 0, 0);
    vf r;
    r.v[0] = (fn_nf)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, to, _mm512_castsi256_si512(w));
    return r;
}
FN_INLINE vf vf_load_bf16(const fn_bf16 *s) { return vf_of_bf16_words(_mm256_loadu_si256((const __m256i *)s)); }
#elif FN_LEVEL == 2
/* Words to the upper halves of lanes: as integers widened and shifted they take an operation more. */
FN_INLINE vf vf_of_bf16_words(__m256i w) {
    vf r;
    w = _mm256_permute4x64_epi64(w, 0xd8);
    r.v[0] = (fn_nf)_mm256_unpacklo_epi16(_mm256_setzero_si256(), w);
    r.v[1] = (fn_nf)_mm256_unpackhi_epi16(_mm256_setzero_si256(), w);
    return r;
}
FN_INLINE vf vf_load_bf16(const fn_bf16 *s) { /* eight words twice are loaded at no cost */
    const __m256i to = _mm256_set_epi8(15, 14, -1, -1, 13, 12, -1, -1, 11, 10, -1, -1, 9, 8, -1, -1,
                                       7, 6, -1, -1, 5, 4, -1, -1, 3, 2, -1, -1, 1, 0, -1, -1);
    vf r;
    FN_EACH(p, r.v[p] = (fn_nf)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(s + 8 * p))), to));
    return r;
}
#else
FN_INLINE vf vf_load_bf16(const fn_bf16 *s) { vu r = vu_load_words(s); FN_EACH(p, r.v[p] <<= 16); return vf_of(r); }
#endif
#if FN_LEVEL == 2
/* a and b rounded, a's words in even places and b's in odd ones: upper halves, and one more where the lower ones lie above the middle, or
   on it beside an odd number. NaN keeps its upper half, in which it is one: arithmetic has made it quiet, or it comes from bfloat16. Sixteen
   words at once take eleven operations, and as integers of 32 bits they took seventeen (0.8 to 0.9 of the time of what stores them). */
FN_INLINE __m256i fn_rounded(fn_nf a, fn_nf b) {
    const __m256i u = (__m256i)a, v = (__m256i)b, largest = _mm256_set1_epi16(0x7fbf);
    __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(u, 16), v, 0xaa), lower = _mm256_blend_epi16(u, _mm256_slli_epi32(v, 16), 0xaa);
    __m256i nan = _mm256_cmpgt_epi16(_mm256_and_si256(upper, _mm256_set1_epi16(0x7fff)), largest);
    __m256i less = _mm256_or_si256(_mm256_andnot_si256(upper, _mm256_set1_epi16(1)), nan);
    return _mm256_add_epi16(upper, _mm256_srli_epi16(_mm256_subs_epu16(lower, less), 15));
}
#endif
/* In the upper halves; the lower ones are left over. */
FN_INLINE vu fn_to_bf16(vf a) {
    vu r;
#if FN_LEVEL == 3
    __m512i u = (__m512i)a.v[0], down = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), nan_is_quiet = _mm512_set1_epi32(0x22); /* a table */
    __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
    __m512i even = _mm512_mask_add_epi32(down, odd, u, _mm512_set1_epi32(0x8000));
    r.v[0] = (fn_nu)_mm512_fixupimm_ps((__m512)even, (__m512)u, nan_is_quiet, 0);
#elif FN_LEVEL == 2
    FN_EACH(p, {
        fn_nu u = (fn_nu)a.v[p], even = u + 0x7fff + (u >> 16 & 1);
        __m256 nan = _mm256_cmp_ps((__m256)a.v[p], (__m256)a.v[p], _CMP_UNORD_Q);
        r.v[p] = (fn_nu)_mm256_blendv_ps((__m256)even, (__m256)(u | 0x400000), nan);
    });
#else
    FN_EACH(p, {
        fn_nu u = (fn_nu)a.v[p], nan = (fn_nu)(a.v[p] != a.v[p]);
        r.v[p] = ((u + 0x7fff + (u >> 16 & 1)) & ~nan) | ((u | 0x400000) & nan);
    });
#endif
    return r;
}
#if FN_LEVEL == 3
FN_INLINE __m256i vf_bf16_words(vf x) {
    vu a = fn_to_bf16(x);
    const __m512i odd = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                                         11, 9, 7, 5, 3, 1);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(odd, (__m512i)a.v[0]));
}
FN_INLINE void vf_store_bf16(fn_bf16 *d, vf a) { _mm256_storeu_si256((__m256i *)d, vf_bf16_words(a)); }
FN_INLINE void vf_stream_bf16(fn_bf16 *d, vf a) { _mm256_stream_si256((__m256i *)d, vf_bf16_words(a)); }
#elif FN_LEVEL == 2
FN_INLINE __m256i vf_bf16_words(vf a) { /* the even ones of each half, then the odd ones; and then quarters in their order */
    const __m256i low = _mm256_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0,
                                        15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0);
    return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(fn_rounded(a.v[0], a.v[1]), low), 0xd8);
}
FN_INLINE void vf_store_bf16(fn_bf16 *d, vf a) { _mm256_storeu_si256((__m256i *)d, vf_bf16_words(a)); }
FN_INLINE void vf_stream_bf16(fn_bf16 *d, vf a) { _mm256_stream_si256((__m256i *)d, vf_bf16_words(a)); }
#else
FN_INLINE vu fn_upper(vu a) { FN_EACH(p, a.v[p] >>= 16); return a; }
FN_INLINE void vf_store_bf16(fn_bf16 *d, vf a) { vu_store_words(d, fn_upper(fn_to_bf16(a))); }
FN_INLINE void vf_stream_bf16(fn_bf16 *d, vf a) { vu_stream_words(d, fn_upper(fn_to_bf16(a))); }
#endif
/* Thirty-two elements as the even and the odd ones: a shift and a mask to load them, where neighbours take a permutation each. */
typedef uint32_t fn_nu_words __attribute__((vector_size(FN_NATIVE), aligned(2), may_alias));
FN_INLINE void vf_load_pair_bf16(const fn_bf16 *s, vf *even, vf *odd) {
    FN_EACH(p, {
        fn_nu u = *(const fn_nu_words *)(s + p * (FN_NATIVE / 2));
        even->v[p] = (fn_nf)(u << 16);
        odd->v[p] = (fn_nf)(u & 0xffff0000u);
    });
}
FN_INLINE vu fn_pair_to_bf16(vf even, vf odd) {
#if FN_LEVEL == 2
    vu r;
    FN_EACH(p, r.v[p] = (fn_nu)fn_rounded(even.v[p], odd.v[p]));
    return r;
#else
    vu a = fn_to_bf16(even), b = fn_to_bf16(odd);
#if FN_LEVEL == 3
    a.v[0] = (fn_nu)_mm512_ternarylogic_epi32((__m512i)(a.v[0] >> 16), (__m512i)b.v[0], _mm512_set1_epi32((int)0xffff0000), 0xf8); /* a | b & c */
#else
    FN_EACH(p, a.v[p] = (a.v[p] >> 16) | (b.v[p] & 0xffff0000u));
#endif
    return a;
#endif
}
FN_INLINE void vf_store_pair_bf16(fn_bf16 *d, vf even, vf odd) {
    vu a = fn_pair_to_bf16(even, odd);
    FN_EACH(p, *(fn_nu_words *)(d + p * (FN_NATIVE / 2)) = a.v[p]);
}
FN_INLINE void vf_stream_pair_bf16(fn_bf16 *d, vf even, vf odd) { vf_stream((float *)(void *)d, vf_of(fn_pair_to_bf16(even, odd))); }
FN_INLINE vf vf_round_bf16(vf a) { vu r = fn_to_bf16(a); FN_EACH(p, r.v[p] &= 0xffff0000u); return vf_of(r); }

/* ---- float16 ---- */

#if FN_LEVEL == 3
FN_INLINE vf vf_of_f16_words(__m256i w) { vf r; r.v[0] = (fn_nf)_mm512_cvtph_ps(w); return r; }
FN_INLINE vf vf_load_f16(const fn_f16 *s) { return vf_of_f16_words(_mm256_loadu_si256((const __m256i *)s)); }
FN_INLINE __m256i vf_f16_words(vf a) { return _mm512_cvtps_ph((__m512)a.v[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FN_INLINE void vf_store_f16(fn_f16 *d, vf a) { _mm256_storeu_si256((__m256i *)d, vf_f16_words(a)); }
FN_INLINE void vf_stream_f16(fn_f16 *d, vf a) { _mm256_stream_si256((__m256i *)d, vf_f16_words(a)); }
FN_INLINE vf vf_round_f16(vf a) { return vf_of_f16_words(vf_f16_words(a)); }
#elif FN_LEVEL == 2
FN_INLINE vf vf_load_f16(const fn_f16 *s) {
    vf r;
    FN_EACH(p, r.v[p] = (fn_nf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(s + 8 * p))));
    return r;
}
FN_INLINE vf vf_of_f16_words(__m256i w) {
    vf r;
    r.v[0] = (fn_nf)_mm256_cvtph_ps(_mm256_castsi256_si128(w));
    r.v[1] = (fn_nf)_mm256_cvtph_ps(_mm256_extracti128_si256(w, 1));
    return r;
}
FN_INLINE __m128i fn_to_f16(fn_nf a) { return _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT); }
FN_INLINE __m256i vf_f16_words(vf a) { return _mm256_inserti128_si256(_mm256_castsi128_si256(fn_to_f16(a.v[0])), fn_to_f16(a.v[1]), 1); }
FN_INLINE void vf_store_f16(fn_f16 *d, vf a) { FN_EACH(p, _mm_storeu_si128((__m128i *)(d + 8 * p), fn_to_f16(a.v[p]))); }
FN_INLINE void vf_stream_f16(fn_f16 *d, vf a) { FN_EACH(p, _mm_stream_si128((__m128i *)(d + 8 * p), fn_to_f16(a.v[p]))); }
FN_INLINE vf vf_round_f16(vf a) { FN_EACH(p, a.v[p] = (fn_nf)_mm256_cvtph_ps(fn_to_f16(a.v[p]))); return a; }
#else
/* In integers; what loads and stores them is not inlined: thirty operations here and there in every kernel would be a quarter of the library. */
FN_INLINE vu fn_to_f16(vf x) {
    vu r;
    FN_EACH(p, {
        fn_nu u = (fn_nu)x.v[p], sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
        fn_nu nan = (fn_nu)(a > 0x7f800000), big = (fn_nu)(a >= 0x47800000), small = (fn_nu)(a < 0x38800000);
        fn_nu subnormal = (fn_nu)((fn_nf)a + 0.5f) - 0x3f000000, normal = (a + 0xc8000fff + (a >> 13 & 1)) >> 13;
        r.v[p] = sign | (nan & (0x7e00 | (a >> 13 & 0x1ff))) | (big & ~nan & 0x7c00) | (small & subnormal) | (~(big | small) & normal);
    });
    return r;
}
FN_INLINE vf fn_of_f16(vu h) {
    vf r;
    FN_EACH(p, {
        fn_nu m = (h.v[p] & 0x7fff) << 13, sign = (h.v[p] & 0x8000) << 16;
        fn_nu big = (fn_nu)(m >= 0x0f800000), nan = (fn_nu)(m > 0x0f800000);
        fn_nu finite = (fn_nu)((fn_nf)m * 0x1p112f);
        r.v[p] = (fn_nf)(sign | (~big & finite) | (big & (m | 0x7f800000)) | (nan & 0x400000));
    });
    return r;
}
FN_OUTLINE vf vf_load_f16(const fn_f16 *s) { return fn_of_f16(vu_load_words(s)); }
FN_OUTLINE void vf_store_f16(fn_f16 *d, vf a) { vu_store_words(d, fn_to_f16(a)); }
FN_OUTLINE void vf_stream_f16(fn_f16 *d, vf a) { vu_stream_words(d, fn_to_f16(a)); }
FN_OUTLINE vf vf_round_f16(vf a) { return fn_of_f16(fn_to_f16(a)); }
#endif

/* ---- partial vectors ---- */

#if FN_LEVEL == 3
#define FN_HALF(type)                                                                                                    \
    FN_INLINE vf vf_load_##type##_n(const uint16_t *s, ptrdiff_t n) {                                                    \
        return vf_of_##type##_words(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), s));                          \
    }                                                                                                                    \
    FN_INLINE void vf_store_##type##_n(uint16_t *d, vf a, ptrdiff_t n) {                                                 \
        _mm256_mask_storeu_epi16(d, (__mmask16)((1u << n) - 1), vf_##type##_words(a));                                   \
    }
#elif FN_LEVEL == 2
/* By halves, as floats are stored: memcpy of a length that the compiler does not know took four times as long (spans of 49 and rows of 100 take
   0.3 to 0.6 of the time). Less than eight words are at most two loads, which may overlap; nothing beyond them is read. */
FN_INLINE __m128i fn_some_words(const uint16_t *s, ptrdiff_t n) {
    uint64_t low = 0, high = 0;
    if (n >= 4) {
        memcpy(&low, s, 8);
        memcpy(&high, s + n - 4, 8);
        high = n == 4 ? 0 : high >> (128 - 16 * n);
    } else if (n >= 2) {
        uint32_t first, last;
        memcpy(&first, s, 4);
        memcpy(&last, s + n - 2, 4);
        low = (uint64_t)last << (16 * n - 32) | first;
    } else if (n) low = *s;
    return _mm_set_epi64x((long long)high, (long long)low);
}
FN_OUTLINE __m256i fn_words_n(const uint16_t *s, ptrdiff_t n) {
    if (n & 16) return _mm256_loadu_si256((const __m256i *)s);
    if (n >= 8) return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)s)), fn_some_words(s + 8, n - 8), 1);
    return _mm256_inserti128_si256(_mm256_setzero_si256(), fn_some_words(s, n), 0);
}
FN_INLINE void fn_put_words_n(uint16_t *d, __m256i a, ptrdiff_t n) {
    __m128i q = _mm256_castsi256_si128(a);
    if (n & 16) { _mm256_storeu_si256((__m256i *)d, a); return; }
    if (n & 8) { _mm_storeu_si128((__m128i *)d, q); d += 8; q = _mm256_extracti128_si256(a, 1); }
    if (n & 4) { _mm_storel_epi64((__m128i *)d, q); d += 4; q = _mm_srli_si128(q, 8); }
    if (n & 2) { int two = _mm_cvtsi128_si32(q); memcpy(d, &two, 4); d += 2; q = _mm_srli_si128(q, 4); }
    if (n & 1) *d = (uint16_t)_mm_extract_epi16(q, 0);
}
#define FN_HALF(type)                                                                                                    \
    FN_INLINE vf vf_load_##type##_n(const uint16_t *s, ptrdiff_t n) {                                                    \
        return vf_of_##type##_words(fn_words_n(s, n));                                                                   \
    }                                                                                                                    \
    FN_INLINE void vf_store_##type##_n(uint16_t *d, vf a, ptrdiff_t n) { fn_put_words_n(d, vf_##type##_words(a), n); }
#else
#define FN_HALF(type)                                                                                                    \
    FN_OUTLINE vf vf_load_##type##_n(const uint16_t *s, ptrdiff_t n) {                                                   \
        uint16_t t[16] = {0};                                                                                            \
        memcpy(t, s, (size_t)n * 2);                                                                                     \
        return vf_load_##type(t);                                                                                        \
    }                                                                                                                    \
    FN_OUTLINE void vf_store_##type##_n(uint16_t *d, vf a, ptrdiff_t n) {                                                \
        uint16_t t[16];                                                                                                  \
        vf_store_##type(t, a);                                                                                           \
        memcpy(d, t, (size_t)n * 2);                                                                                     \
    }
#endif
FN_HALF(f16)
FN_HALF(bf16)

/* bfloat16 under double arithmetic; the range of float16 never needs it. */
FN_OUTLINE vd vd_load_bf16_n(const fn_bf16 *s, ptrdiff_t n) {
    vd low, high;
    vf_widen(vf_load_bf16_n(s, n), &low, &high);
    return low;
}
FN_OUTLINE void vd_store_bf16_n(fn_bf16 *d, vd a, ptrdiff_t n) {
    double t[8];
    vd_store(t, a);
    for (ptrdiff_t i = 0; i < n; i++) d[i] = fn_bf16_of_float(fn_float_to_odd(t[i]));
}
FN_OUTLINE vd vd_load_bf16(const fn_bf16 *s) { return vd_load_bf16_n(s, 8); }
FN_OUTLINE void vd_store_bf16(fn_bf16 *d, vd a) { vd_store_bf16_n(d, a, 8); }
FN_OUTLINE vd vd_round_bf16(vd a) { uint16_t t[8]; vd_store_bf16(t, a); return vd_load_bf16(t); }

#endif
