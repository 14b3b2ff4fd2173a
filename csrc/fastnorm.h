/* What the C storey offers: primitives on spans, rows and columns of memory, reached through one table per storage type
   and instruction set. No Python, no threads, no allocation, no errors: arguments are right when they arrive here.

   Statistics cross this border in double (double-double for means), whatever the storage type; each primitive splits or
   rounds them as its own arithmetic needs. */
#ifndef FASTNORM_H
#define FASTNORM_H

#include <stddef.h>
#include <stdint.h>

/* Unused: some bodies (params of the wide types) have no caller. */
#define FN_INLINE static inline __attribute__((always_inline, unused))
#define FN_OUTLINE static __attribute__((noinline, unused))
#define FN_LIKELY(c) __builtin_expect(!!(c), 1)
#define FN_UNLIKELY(c) __builtin_expect(!!(c), 0)

/* Count, sum and mean and sum of squared deviations (each hi + lo) of a set of values. */
typedef struct { double n, sum, sum_lo, mean, mean_lo, m2, m2_lo; } fn_moments;

/* y = (x - mean)·scale + shift, one set of numbers for a whole span. `wide` asks for double arithmetic where float would
   overflow or lose everything to underflow (fn_needs_wide); `near` tells grad_sums that the mean is near zero (fn_is_near). */
typedef struct { double mean, mean_lo, scale, shift; int wide, near; } fn_norm;

/* `count` channels one after the other, `len` elements each; gamma and beta may be NULL: 1 and 0. */
typedef struct { const double *gamma, *beta; ptrdiff_t count, len; } fn_channels;

/* Σg and Σg·(x - mean), each hi + lo. */
typedef struct { double sum, sum_lo, dot, dot_lo; } fn_sums;

/* dx = a·dy + b·(x - mean) + c */
typedef struct { double a, b, c; } fn_grad;

/* The same for channels side by side, an array for each number. shift may be NULL: 0. `number` is that of the elements behind a
   statistic, for the size of (x - mean)²; `given` statistics are not those of the data. */
typedef struct { const double *mean, *mean_lo, *scale, *shift, *var; double number; int given; } fn_norms;
typedef struct { const double *a, *b, *c; } fn_grads;
typedef struct { double *sum, *sum_lo, *dot, *dot_lo; } fn_planes;

/* Statistics of rows, an array for each; NULL where a forward need not keep them. */
typedef struct { double *mean, *mean_lo, *rstd; } fn_row_stats;
/* The least and the most of 1 and of the sizes of gamma's numbers other than 0. */
typedef struct { double least, most; } fn_sizes;

/* FN_NEAR: all data lie in L2, and nothing is fetched ahead. FN_FAR: they may come from memory. FN_NEXT: what comes after these rows is fetched
   while they are written; gradients that are streamed then do not sum it meanwhile. */
enum { FN_RELU = 1, FN_STREAM = 2, FN_LEAVE = 4, FN_FRESH = 8, FN_SINGLE = 16, FN_FAR = 32, FN_NEAR = 64, FN_NEXT = 128 };
enum { FN_CHUNK = 16384 }; /* elements of dropout that a thread takes at a time: a multiple of 64 */
enum { FN_F32, FN_F64, FN_F16, FN_BF16, FN_DTYPES };

/* `count` spans of `len` contiguous elements each, `stride` elements from the start of one to the start of the next. */
typedef struct { ptrdiff_t len, count, stride; } fn_spans;

/* Arithmetic on `count` statistics or channels; `number` is that of the elements behind each. */
typedef struct {
    /* to[i] + to_lo[i] = Σ of the i-th run of `length` entries of s + lo; lo may be NULL. */
    void (*add_runs)(const double *s, const double *lo, ptrdiff_t length, ptrdiff_t count, double *to, double *to_lo);
    /* mean = sum / number. */
    void (*means)(const double *sum, const double *sum_lo, double number, ptrdiff_t count, double *mean, double *mean_lo);
    /* m2, of squares about zero, becomes that about the mean, or -1 where that loses too much (scalar.h); are all known? */
    int (*centre)(double *m2, const double *m2_lo, const double *sum, const double *sum_lo, const double *mean,
                  const double *mean_lo, ptrdiff_t count);
    /* m2 = again where it is -1 */
    void (*mend)(double *m2, const double *again, ptrdiff_t count);
    /* m2, of squares about mean, becomes that about mean + mean_lo, and at least 0; m2_lo may be NULL. */
    void (*recentre)(double *m2, const double *m2_lo, const double *mean_lo, double number, ptrdiff_t count);
    /* to += m2 + number·(mean - centre)² */
    void (*pool_squares)(const double *m2, const double *mean, const double *mean_lo, double number, const double *centre,
                         const double *centre_lo, ptrdiff_t count, double *to, double *to_lo);
    /* var = m2 / number, rstd = 1 / sqrt(var + eps); var may be m2. */
    void (*finish)(const double *m2, double number, double eps, ptrdiff_t count, double *var, double *rstd);
    /* to = a·b */
    void (*multiply)(const double *a, const double *b, ptrdiff_t count, double *to);
    /* to += weight·x; weight may be NULL: 1. */
    void (*accumulate)(const double *x, const double *x_lo, const double *weight, ptrdiff_t count, double *to, double *to_lo);
    /* to = hi + lo */
    void (*collapse)(const double *hi, const double *lo, ptrdiff_t count, double *to);
    /* b = -rstd³·γ·dot / number, c = -rstd·γ·sum / number; gamma may be NULL: 1. */
    void (*slopes)(fn_planes sums, const double *gamma, const double *rstd, double number, ptrdiff_t count, double *b, double *c);
    fn_sizes (*sizes)(const float *v, ptrdiff_t count);
    /* running = (1 - step)·running + step·factor·batch */
    void (*blend)(double *running, double step, double factor, const double *batch, ptrdiff_t count);
} fn_channel_ops;

typedef struct {
    ptrdiff_t itemsize;
    int turns; /* does grad_turns pay where spans stay in L2 (1), and where dx does too (2)? It takes registers, and time that arithmetic leaves. */
    const fn_channel_ops *channels;

    /* Makes streamed stores visible to other threads. */
    void (*fence)(void);

    /* ---- spans that share one statistic: batch, group and instance norm; affine and grad_apply leave the fence to the caller ---- */

    /* Moments of all values in the spans: block by block, merged in order. */
    void (*moments)(const void *x, fn_spans s, fn_moments *out);
    /* The same of `count` ≤ 8 spans, one after the other, of at most 16 KB in the arithmetic type. */
    void (*moments_beside)(const void *x, ptrdiff_t count, ptrdiff_t len, double *mean, double *mean_lo, double *m2);
    /* y = relu((x - mean)·scale + shift + residual); residual may be NULL. `ahead`: elements beyond x to prefetch.
       With FN_LEAVE, and streaming, the last cache line of each span, where it is not whole, is left to whoever does the spans
       that follow these in memory: if so, the result is not 0, and p must be their `before` (or else NULL). */
    int (*affine)(const void *x, const void *residual, void *y, fn_spans s, const fn_norm *p, int flags, ptrdiff_t ahead,
                  const fn_norm *before);
    /* *out = Σdy, Σdy·(x - mean), with dy masked by the ReLU of the forward. */
    void (*grad_sums)(const void *dy, const void *x, const void *residual, fn_spans s, const fn_norm *p, int flags,
                      fn_sums *out);
    /* dx = a·dy + b·(x - mean) + c; dresidual, when not NULL, receives the masked dy. FN_LEAVE, not with a residual: as above. */
    int (*grad_apply)(const void *dy, const void *x, const void *residual, void *dx, void *dresidual, fn_spans s,
                      const fn_norm *p, const fn_grad *g, int flags, ptrdiff_t ahead, const fn_norm *before,
                      const fn_grad *g_before);

    /* dx of these spans as by grad_apply without a residual; and meanwhile the sums of as many others, as by grad_sums. */
    int (*grad_turns)(const void *dy, const void *x, void *dx, fn_spans s, const fn_norm *p, const fn_grad *g, int flags,
                      const fn_norm *before, const fn_grad *g_before, const void *dy_next, const void *x_next,
                      const fn_norm *p_next, fn_sums *out);

    /* ---- the same for neighbouring channels under one statistic (`shared`, whose scale is rstd), neither streamed nor with a
       residual: group norm. Of dx's numbers a is each channel's own. ---- */
    void (*group_affine)(const void *x, void *y, const fn_channels *c, const fn_norm *shared, int flags, ptrdiff_t ahead);
    void (*group_grad_sums)(const void *dy, const void *x, const fn_channels *c, const fn_norm *shared, int flags, fn_sums *out);
    void (*group_grad_apply)(const void *dy, const void *x, void *dx, const fn_channels *c, const fn_norm *shared, const fn_grad *g,
                             int flags, ptrdiff_t ahead);

    /* ---- channels that follow each other in memory, `post` elements to each (16 or more), over and over: elements from .. from + count of
       what begins with channel 0. p has a number per channel. ---- */
    void (*evaluate)(const void *x, const void *residual, void *y, ptrdiff_t from, ptrdiff_t count, const fn_norms *p,
                     ptrdiff_t channels, ptrdiff_t post, int flags);

    /* ---- a matrix whose columns each have their own statistic: channels last, (N, C), short spans ---- */

    /* sum[j] = Σ_r x[r,j] and square[j] = Σ_r x[r,j]² over `rows` rows, hi and lo parts. */
    void (*col_sums)(const void *x, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride, int flags, double *sum, double *sum_lo,
                     double *square, double *square_lo);
    /* m2[j] = Σ_r (x[r,j] - c)² - rows·(centre[j] - c)², c = fl(centre[j]): the squares about the centre, if it is the mean. */
    void (*col_squares)(const void *x, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride, const double *centre, double *m2);
    /* Here and below p and g have a number per channel, which owns `post` neighbouring columns. */
    void (*col_affine)(const void *x, const void *residual, void *y, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t stride,
                       const fn_norms *p, ptrdiff_t post, int flags);
    /* to.sum[j] = Σ_r dy[r,j]; to.dot[j] = Σ_r dy[r,j]·(x[r,j] - mean[j]); what the roundings lost in sum_lo, dot_lo. */
    void (*col_grad_sums)(const void *dy, const void *x, const void *residual, ptrdiff_t rows, ptrdiff_t width,
                          ptrdiff_t stride, const fn_norms *p, ptrdiff_t post, int flags, fn_planes to);
    void (*col_grad_apply)(const void *dy, const void *x, const void *residual, void *dx, void *dresidual, ptrdiff_t rows,
                           ptrdiff_t width, ptrdiff_t stride, const fn_norms *p, const fn_grads *g, ptrdiff_t post, int flags);

    /* ---- rows that each have their own statistic and share per-column parameters: layer and RMS norm ----
       Parameters are vectors of the arithmetic type (float, or double for float64). centred = 0 is RMS. */
    void (*row_moments)(const void *x, ptrdiff_t len, int centred, fn_moments *m);
    void (*row_apply)(const void *x, void *y, ptrdiff_t len, const void *gamma, const void *beta, const fn_norm *p,
                      int centred, int flags, ptrdiff_t ahead);
    /* Whole rows; `to` receives their statistics. sum, when not NULL, receives x + residual. */
    void (*rows_forward)(const void *x, const void *residual, void *sum, void *y, ptrdiff_t rows, ptrdiff_t len,
                         const void *gamma, const void *beta, double eps, int centred, fn_row_stats to, int flags);
    /* to = Σg, Σg·(x - mean) of each row with g = dy·gamma. */
    void (*rows_grad_sums)(const void *dy, const void *x, const void *gamma, ptrdiff_t rows, ptrdiff_t len, ptrdiff_t stride,
                           fn_row_stats stat, int centred, fn_planes to);
    /* dx of rows (or pieces of rows with n elements to a statistic), given their sums, or forming them where sums.sum is NULL;
       dgamma and, of centred rows, dbeta, when not NULL, are added to, or by rows with FN_FRESH set; for float64 so is what that
       loses, in dgamma_lo, dbeta_lo. With FN_SINGLE there is one row, and dgamma and dbeta are vectors of the parameters' type. */
    void (*rows_grad)(const void *dy, const void *x, const void *gamma, void *dx, ptrdiff_t rows, ptrdiff_t len,
                      ptrdiff_t stride, double n, fn_row_stats stat, fn_sizes sizes, fn_planes sums, int centred, int flags,
                      double *dgamma, double *dbeta, double *dgamma_lo, double *dbeta_lo);
    void (*add)(const void *x, const void *residual, void *sum, ptrdiff_t len);
    /* to = dy where y > 0, else 0: the gradient behind a ReLU. */
    void (*gate_row)(const void *dy, const void *y, void *to, ptrdiff_t len);

    /* ---- softmax, cross-entropy, dropout ---- */
    /* room: for two rows in the arithmetic type, each in whole 256 bytes and 64 more, or NULL. Rows that are streamed, or of a half type,
       wait there for their sum; without it none is streamed, and exps of a half type are computed twice. (Log-softmax needs none.) */
    void (*softmax)(const void *x, void *y, ptrdiff_t rows, ptrdiff_t len, int logarithm, int flags, void *room);
    void (*softmax_grad)(const void *dy, const void *y, void *dx, ptrdiff_t rows, ptrdiff_t len, int logarithm, int flags);
    /* out = max, log Σ, Σ w·(x - max - log Σ), Σ with Σ = Σexp(x - max) over one row. */
    void (*lse)(const void *x, ptrdiff_t len, const double *weight, double out[4]);
    /* dx = a·exp(x - max)/sum - c·weight, and b less at `target`; the fence is left to the caller. */
    void (*cross_entropy_grad)(const void *x, void *dx, ptrdiff_t len, double max, double sum, double a, double c,
                               const double *weight, ptrdiff_t target, double b, int flags);
    /* y = x·scale where a random word is at least `threshold`, else 0; a bit per element says which. len ≤ FN_CHUNK; bits may be NULL. */
    void (*dropout)(const void *x, void *y, uint64_t *bits, ptrdiff_t start, ptrdiff_t len, uint64_t seed,
                    uint64_t threshold, double scale, int flags);
    void (*dropout_grad)(const void *dy, void *dx, const uint64_t *bits, ptrdiff_t len, double scale, int flags);

    /* ---- parameter vectors: any stride (bytes), to and from double ---- */
    void (*get)(const void *src, ptrdiff_t stride, ptrdiff_t n, double *dst);
    void (*put)(const double *src, ptrdiff_t n, void *dst, ptrdiff_t stride);
} fn_ops;

/* Chan's merge: a becomes the moments of the union of a and b. */
void fn_merge(fn_moments *a, const fn_moments *b);

/* ---- instruction sets: one table each, chosen when imported ---- */
enum { FN_BASELINE = 0, FN_AVX2 = 2, FN_AVX512 = 3, FN_NEON = 4, FN_AVX512_WIDE = 5, FN_LEVELS };
/* The table of a level, or NULL if this build or this machine lacks it. */
const fn_ops *fn_table(int level);
/* The level that this machine runs fastest. */
int fn_best_level(void);
/* Bytes of a core's second-level cache, or what is usual where the system does not tell. */
ptrdiff_t fn_l2_bytes(void);
/* The same of the third-level cache, which cores share. */
ptrdiff_t fn_l3_bytes(void);
/* Does it pay to fetch what comes next (a channel, some rows) while this is written? */
int fn_fetches_next(void);

#endif
