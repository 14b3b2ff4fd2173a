/* Every primitive for every storage type, at the level of the translation unit that includes this file.

   Each body (spans.h, columns.h, rows.h and their gradients) is written once, in terms of: S the storage type, T the arithmetic type, P the
   type of parameter vectors, V a vector of T, W the same widened for sums, ACC what it is added into. WIDER names the same body
   with T = double, taken by the rare data that float arithmetic cannot hold (1e30 squared, or 1e-30). */
#include "vec.h"
#include "fastnorm.h"
#include "scalar.h"
#include "accumulate.h"
#include "channels.h"

/* ---- half types: float16 and bfloat16 in memory, float in registers ---- */

#include "vec_half.h"
#include "special.h"

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define EACH_OF(count, k) _Pragma("GCC unroll 8") for (int k = 0; k < (count); k++)
/* The statement for the first row, or for two or four, k being a constant (FN_WITH says why). */
#define EACH_ROW(count, k, ...)                                                                                          \
    do {                                                                                                                 \
        FN_WITH(0, k, __VA_ARGS__)                                                                                       \
        if ((count) > 1) FN_WITH(1, k, __VA_ARGS__)                                                                      \
        if ((count) > 2) { FN_WITH(2, k, __VA_ARGS__) FN_WITH(3, k, __VA_ARGS__) }                                       \
    } while (0)

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
#define WIDE_AT wide_load
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
#define LOAD_PAIR vf_load_pair_bf16
#define STORE_PAIR vf_store_pair_bf16
#define STREAM_PAIR vf_stream_pair_bf16
#define ROUND vf_round_bf16
#define LOAD_T vf_load
#define LOAD_P vf_load
#define LOAD_P_N vf_load_n
#include "arith32.h"
#include "bodies.h"

/* ---- the table ---- */

#define OPS(dtype, size)                                                                                                 \
    {size, FN_LEVEL == 3 ? 1 + (size == 4) : 0, &FN_CHANNELS, fn_fence, moments_##dtype, moments_beside_##dtype,         \
     affine_##dtype, grad_sums_##dtype, grad_apply_##dtype,                                                              \
     grad_turns_##dtype, group_affine_##dtype, group_grad_sums_##dtype, group_grad_apply_##dtype,                        \
     evaluate_##dtype, col_sums_##dtype, col_squares_##dtype, col_affine_##dtype, col_grad_sums_##dtype, col_grad_apply_##dtype,           \
     row_moments_##dtype, row_apply_##dtype, rows_forward_##dtype, rows_grad_sums_##dtype, rows_grad_##dtype,             \
     add_##dtype, gate_row_##dtype, softmax_##dtype, softmax_grad_##dtype, lse_##dtype, cross_entropy_grad_##dtype,      \
     dropout_##dtype, dropout_grad_##dtype, get_##dtype, put_##dtype}

const fn_ops FN_TABLE[FN_DTYPES] = {OPS(f32, 4), OPS(f64, 8), OPS(f16, 2), OPS(bf16, 2)};
