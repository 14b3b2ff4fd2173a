"""What Cython sees of the C storey (csrc/fastnorm.h says what each primitive computes)."""

from libc.stdint cimport uint64_t

cdef extern from "fastnorm.h" nogil:
    ctypedef struct fn_moments:
        double n, sum, sum_lo, mean, mean_lo, m2, m2_lo
    ctypedef struct fn_norm:
        double mean, mean_lo, scale, shift
        int wide, near
    ctypedef struct fn_channels:
        const double *gamma
        const double *beta
        Py_ssize_t count, len
    ctypedef struct fn_sums:
        double sum, sum_lo, dot, dot_lo
    ctypedef struct fn_grad:
        double a, b, c
    ctypedef struct fn_norms:
        const double *mean
        const double *mean_lo
        const double *scale
        const double *shift
        const double *var
        double number
        int given
    ctypedef struct fn_grads:
        const double *a
        const double *b
        const double *c
    ctypedef struct fn_planes:
        double *sum
        double *sum_lo
        double *dot
        double *dot_lo
    ctypedef struct fn_row_stats:
        double *mean
        double *mean_lo
        double *rstd
    ctypedef struct fn_sizes:
        double least, most
    ctypedef struct fn_spans:
        Py_ssize_t len, count, stride
    enum: FN_RELU, FN_STREAM, FN_LEAVE, FN_FRESH, FN_SINGLE, FN_FAR, FN_NEAR, FN_NEXT
    enum: FN_CHUNK
    enum: FN_F32, FN_F64, FN_F16, FN_BF16
    enum: FN_BASELINE, FN_AVX2, FN_AVX512, FN_AVX512_WIDE, FN_NEON, FN_LEVELS
    ctypedef struct fn_channel_ops:
        void add_runs(const double *s, const double *lo, Py_ssize_t length, Py_ssize_t count, double *to, double *to_lo) noexcept nogil
        void means(const double *sum, const double *sum_lo, double number, Py_ssize_t count, double *mean,
                   double *mean_lo) noexcept nogil
        int centre(double *m2, const double *m2_lo, const double *sum, const double *sum_lo, const double *mean,
                   const double *mean_lo, Py_ssize_t count) noexcept nogil
        void mend(double *m2, const double *again, Py_ssize_t count) noexcept nogil
        void recentre(double *m2, const double *m2_lo, const double *mean_lo, double number, Py_ssize_t count) noexcept nogil
        void pool_squares(const double *m2, const double *mean, const double *mean_lo, double number, const double *centre,
                          const double *centre_lo, Py_ssize_t count, double *to, double *to_lo) noexcept nogil
        void finish(const double *m2, double number, double eps, Py_ssize_t count, double *var, double *rstd) noexcept nogil
        void multiply(const double *a, const double *b, Py_ssize_t count, double *to) noexcept nogil
        void accumulate(const double *x, const double *x_lo, const double *weight, Py_ssize_t count, double *to,
                        double *to_lo) noexcept nogil
        void collapse(const double *hi, const double *lo, Py_ssize_t count, double *to) noexcept nogil
        void slopes(fn_planes sums, const double *gamma, const double *rstd, double number, Py_ssize_t count, double *b,
                    double *c) noexcept nogil
        fn_sizes sizes(const float *v, Py_ssize_t count) noexcept nogil
        void blend(double *running, double step, double factor, const double *batch, Py_ssize_t count) noexcept nogil
    ctypedef struct fn_ops:
        Py_ssize_t itemsize
        bint turns
        const fn_channel_ops *channels
        void fence() noexcept nogil
        void moments_beside(const void *x, Py_ssize_t count, Py_ssize_t len, double *mean, double *mean_lo,
                            double *m2) noexcept nogil
        void moments(const void *x, fn_spans s, fn_moments *out) noexcept nogil
        int affine(const void *x, const void *residual, void *y, fn_spans s, const fn_norm *p, int flags, Py_ssize_t ahead,
                   const fn_norm *before) noexcept nogil
        void grad_sums(const void *dy, const void *x, const void *residual, fn_spans s, const fn_norm *p, int flags,
                       fn_sums *out) noexcept nogil
        int grad_apply(const void *dy, const void *x, const void *residual, void *dx, void *dresidual, fn_spans s,
                       const fn_norm *p, const fn_grad *g, int flags, Py_ssize_t ahead, const fn_norm *before,
                       const fn_grad *g_before) noexcept nogil
        int grad_turns(const void *dy, const void *x, void *dx, fn_spans s, const fn_norm *p, const fn_grad *g, int flags,
                       const fn_norm *before, const fn_grad *g_before, const void *dy_next, const void *x_next,
                       const fn_norm *p_next, fn_sums *out) noexcept nogil
        void group_affine(const void *x, void *y, const fn_channels *c, const fn_norm *shared, int flags,
                          Py_ssize_t ahead) noexcept nogil
        void group_grad_sums(const void *dy, const void *x, const fn_channels *c, const fn_norm *shared, int flags,
                             fn_sums *out) noexcept nogil
        void group_grad_apply(const void *dy, const void *x, void *dx, const fn_channels *c, const fn_norm *shared,
                              const fn_grad *g, int flags, Py_ssize_t ahead) noexcept nogil
        void evaluate(const void *x, const void *residual, void *y, Py_ssize_t start, Py_ssize_t count, const fn_norms *p,
                      Py_ssize_t channels, Py_ssize_t post, int flags) noexcept nogil
        void col_sums(const void *x, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t stride, int flags, double *sum,
                      double *sum_lo, double *square, double *square_lo) noexcept nogil
        void col_squares(const void *x, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t stride, const double *centre,
                         double *m2) noexcept nogil
        void col_affine(const void *x, const void *residual, void *y, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t stride,
                        const fn_norms *p, Py_ssize_t post, int flags) noexcept nogil
        void col_grad_sums(const void *dy, const void *x, const void *residual, Py_ssize_t rows, Py_ssize_t width,
                           Py_ssize_t stride, const fn_norms *p, Py_ssize_t post, int flags, fn_planes to) noexcept nogil
        void col_grad_apply(const void *dy, const void *x, const void *residual, void *dx, void *dresidual, Py_ssize_t rows,
                            Py_ssize_t width, Py_ssize_t stride, const fn_norms *p, const fn_grads *g, Py_ssize_t post,
                            int flags) noexcept nogil
        void row_moments(const void *x, Py_ssize_t len, int centred, fn_moments *m) noexcept nogil
        void row_apply(const void *x, void *y, Py_ssize_t len, const void *gamma, const void *beta, const fn_norm *p,
                       int centred, int flags, Py_ssize_t ahead) noexcept nogil
        void rows_forward(const void *x, const void *residual, void *sum, void *y, Py_ssize_t rows, Py_ssize_t len,
                          const void *gamma, const void *beta, double eps, int centred, fn_row_stats to, int flags) noexcept nogil
        void rows_grad_sums(const void *dy, const void *x, const void *gamma, Py_ssize_t rows, Py_ssize_t len, Py_ssize_t stride,
                            fn_row_stats stat, int centred, fn_planes to) noexcept nogil
        void rows_grad(const void *dy, const void *x, const void *gamma, void *dx, Py_ssize_t rows, Py_ssize_t len,
                       Py_ssize_t stride, double n, fn_row_stats stat, fn_sizes sizes, fn_planes sums, int centred, int flags,
                       double *dgamma, double *dbeta, double *dgamma_lo, double *dbeta_lo) noexcept nogil
        void add(const void *x, const void *residual, void *sum, Py_ssize_t len) noexcept nogil
        void gate_row(const void *dy, const void *y, void *to, Py_ssize_t len) noexcept nogil
        void softmax(const void *x, void *y, Py_ssize_t rows, Py_ssize_t len, int logarithm, int flags,
                     void *room) noexcept nogil
        void softmax_grad(const void *dy, const void *y, void *dx, Py_ssize_t rows, Py_ssize_t len, int logarithm,
                          int flags) noexcept nogil
        void lse(const void *x, Py_ssize_t len, const double *weight, double *out) noexcept nogil
        void cross_entropy_grad(const void *x, void *dx, Py_ssize_t len, double max, double sum, double a, double c,
                                const double *weight, Py_ssize_t target, double b, int flags) noexcept nogil
        void dropout(const void *x, void *y, uint64_t *bits, Py_ssize_t start, Py_ssize_t len, uint64_t seed,
                     uint64_t threshold, double scale, int flags) noexcept nogil
        void dropout_grad(const void *dy, void *dx, const uint64_t *bits, Py_ssize_t len, double scale, int flags) noexcept nogil
        void get(const void *src, Py_ssize_t stride, Py_ssize_t n, double *dst) noexcept nogil
        void put(const double *src, Py_ssize_t n, void *dst, Py_ssize_t stride) noexcept nogil
    void fn_merge(fn_moments *a, const fn_moments *b) noexcept
    const fn_ops *fn_table(int level) noexcept
    int fn_best_level() noexcept
    Py_ssize_t fn_l2_bytes() noexcept
    Py_ssize_t fn_l3_bytes() noexcept
    int fn_fetches_next() noexcept

cdef extern from "scalar.h" nogil:
    ctypedef struct fn_dd:
        double hi, lo
    fn_dd fn_dd_add(fn_dd a, fn_dd b) noexcept
    void fn_sums_add(fn_sums *a, const fn_sums *b) noexcept
    void fn_sums_weigh(fn_sums *a, double gamma, const fn_sums *b) noexcept
    int fn_is_plain(double a) noexcept
    fn_norm fn_channel_norm(const fn_norm *shared, const fn_channels *c, Py_ssize_t k) noexcept
    int fn_is_near(double mean, double var) noexcept
    int fn_needs_wide(double mean, double m2, double scale) noexcept

cdef extern from "build.h" nogil:
    int FN_HAVE_OPENMP
    const char *FN_COMPILER
    int omp_get_thread_num() noexcept
