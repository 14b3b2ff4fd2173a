/* The vocabulary under the names that the bodies use: float arithmetic, double accumulators. */
#define SET1 vf_set1
#define ADD vf_add
#define SUB vf_sub
#define MUL vf_mul
#define FIRST vf_first
#define FIRST_OR vf_first_or
#define POSITIVE vf_where_positive
#define NONZERO vf_where_nonzero
#define W fn_wide /* a vector widened to what it is added in */
#define WIDE wide_of
#define WIDE_T wide_load
#define WIDE_SET1 wide_set1
#define ACC fn_acc32
#define ACC_ZERO acc32_zero
#define ACC_ADD wide_add
#define ACC_ADD4 acc32_add4
#define ACC_JOIN wide_add
#define ACC_SUM acc32_sum
#define FOLDED vd /* an accumulator on its way to a sum */
#define ACC_FOLDED acc32_folded
#define ACC_SUMS acc32_sums
#define ACC_PRODUCT acc32_product
#define ACC_LOOK4 acc32_look4
#define ACC_LOOK8 acc32_look8
#define ACC_DOTS acc32_dots
#define ACC_SQUARE acc32_square
#define ACC_WEIGHTED acc32_weighted
#define ACC_PUT acc32_put
#define STORE_T vf_store
#define HOLD vf_hold
#define AT_LEAST vf_at_least
#define ZERO_BELOW vf_zero_below
#define ADD_EXACT vf_add_exact
#define MUL_ADD vf_fused
#define POWER vf_power
#define EXP_CARRIER FN_CARRIER32
#define EXP_RAISED FN_RAISED32
#define KEEP vf_keep
#define LOG2_E 1.44269504f
#define EXP_SMALLEST -104.0f /* exp of it rounds to 0 */
#define LN2_HI 0.693359375f
#define LN2_LO -2.12194440e-4f
#define EXP_TERMS 5
#define exp_terms fn_exp_terms32
#define COLUMNS_AT_ONCE (FN_NATIVE / 16) /* their gamma, dgamma and dbeta in twelve registers */
#define ROWS_AT_ONCE (FN_LEVEL == 3 ? FN_NATIVE_D / 16 : 1) /* their sums in sixteen */
#define VECTORS_HELD (FN_LEVEL == 3 ? 16 : 4) /* between loads and stores */
#define PUT8 vd_store_float /* eight doubles, rounded to the type of arithmetic */
#define GET8 vd_load_float
