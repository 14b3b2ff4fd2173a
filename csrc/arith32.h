/* The vocabulary under the names that the bodies use: float arithmetic, double accumulators. */
#define SET1 vf_set1
#define ADD vf_add
#define SUB vf_sub
#define MUL vf_mul
#define FIRST vf_first
#define POSITIVE vf_where_positive
#define ACC fn_acc32
#define ACC_ZERO acc32_zero
#define ACC_ADD acc32_add
#define ACC_ADD4 acc32_add4
#define ACC_SUM acc32_sum
#define ACC_PUT acc32_put
