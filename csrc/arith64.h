/* The vocabulary under the names that the bodies use: double arithmetic, compensated accumulators. */
#define SET1 vd_set1
#define ADD vd_add
#define SUB vd_sub
#define MUL vd_mul
#define FIRST vd_first
#define POSITIVE vd_where_positive
#define ACC fn_acc64
#define ACC_ZERO acc64_zero
#define ACC_ADD acc64_add
#define ACC_ADD4 acc64_add4
#define ACC_SUM acc64_sum
#define ACC_PUT acc64_put
