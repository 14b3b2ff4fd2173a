/* Which instruction sets this build contains and this processor runs. */
#include "fastnorm.h"

extern const fn_ops fn_table_baseline[FN_DTYPES], fn_table_avx2[FN_DTYPES], fn_table_avx512[FN_DTYPES], fn_table_neon[FN_DTYPES];

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
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")
                   ? fn_table_avx512
                   : NULL;
#endif
    default: return NULL;
    }
}
