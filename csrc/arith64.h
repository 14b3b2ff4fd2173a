/* The vocabulary under the names that the bodies use: double arithmetic, compensated accumulators. */
#define SET1 vd_set1
#define ADD vd_add
#define SUB vd_sub
#define MUL vd_mul
#define FIRST vd_first
#define FIRST_OR vd_first_or
#define POSITIVE vd_where_positive
#define NONZERO vd_where_nonzero
#define W vd /* a vector as it is added: there is nothing wider */
#define WIDE(x) (x)
#define WIDE_T LOAD_T
#define WIDE_SET1 vd_set1
#define ACC fn_acc64
#define ACC_ZERO acc64_zero
#define ACC_ADD acc64_add
#define ACC_ADD4 acc64_add4
#define ACC_JOIN acc64_join
#define ACC_SUM acc64_sum
#define FOLDED fn_acc64 /* an accumulator on its way to a sum */
#define ACC_FOLDED(a) (a)
#define ACC_SUMS acc64_sums
#define ACC_PRODUCT acc64_product
#define ACC_LOOK4 acc64_look4
#define ACC_LOOK8 acc64_look8
#define ACC_DOTS acc64_dots
#define ACC_SQUARE acc64_square
#define ACC_WEIGHTED acc64_weighted
#define ACC_PUT acc64_put
#define STORE_T vd_store
#define HOLD vd_hold
#define AT_LEAST vd_at_least
#define ZERO_BELOW vd_zero_below
#define ADD_EXACT vd_add_exact
#define MUL_ADD vd_fused
#define POWER vd_power
#define EXP_CARRIER FN_CARRIER64
#define EXP_RAISED FN_RAISED64
#define KEEP vd_keep
#define LOG2_E 1.4426950408889634074
#define EXP_SMALLEST -746.0 /* exp of it rounds to 0 */
#define LN2_HI 6.93145751953125e-1
#define LN2_LO 1.42860682030941723212e-6
#define EXP_TERMS 12
#define exp_terms fn_exp_terms64
#define COLUMNS_AT_ONCE (FN_NATIVE_D / 16) /* their gamma, dgamma and dbeta in twelve registers */
#define ROWS_AT_ONCE 1
#define VECTORS_HELD (FN_LEVEL == 3 ? 8 : 4) /* between loads and stores */
#define PUT8 vd_store /* eight doubles, rounded to the type of arithmetic */
#define GET8 vd_load
