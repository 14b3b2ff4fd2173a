/* Which instruction sets this build contains and this processor runs. */
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "fastnorm.h"

extern const fn_ops fn_table_baseline[FN_DTYPES], fn_table_avx2[FN_DTYPES], fn_table_avx512[FN_DTYPES],
    fn_table_avx512_wide[FN_DTYPES], fn_table_neon[FN_DTYPES];

const fn_ops *fn_table(int level) {
    switch (level) {
#if defined(__aarch64__)
    case FN_NEON: return fn_table_neon;
#else
    case FN_BASELINE: return fn_table_baseline;
#endif
#if defined(__x86_64__)
    case FN_AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? fn_table_avx2 : NULL; /* they have F16C */
    case FN_AVX512:
    case FN_AVX512_WIDE:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")
                   ? (level == FN_AVX512 ? fn_table_avx512 : fn_table_avx512_wide)
                   : NULL;
#endif
    default: return NULL;
    }
}

/* AMD's family 19h, Zen 4 where it has AVX-512, widens floats to four doubles in half a cycle and to eight in almost two. */
static int fn_halves_are_faster(void) {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx || !__get_cpuid(1, &a, &b, &c, &d)) return 0;
    return (a >> 8 & 15) + (a >> 20 & 255) <= 0x19;
#else
    return 0;
#endif
}

int fn_best_level(void) {
    static const int widest_first[] = {FN_AVX512_WIDE, FN_AVX512, FN_AVX2, FN_NEON};
    for (int i = fn_halves_are_faster(); i < 4; i++)
        if (fn_table(widest_first[i])) return widest_first[i];
    return FN_BASELINE;
}
