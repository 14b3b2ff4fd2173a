from fastnorm._kernels.c cimport fn_is_plain, fn_ops

# The least and the most of the sizes of float parameters other than 0; 1 for none, and for doubles, which are in no danger.
ctypedef struct Sizes:
    double least, most


cdef inline Sizes sizes_of(const fn_ops *ops, const void *gamma, Py_ssize_t len_) noexcept nogil:
    cdef Sizes s
    s.least = s.most = 1
    if gamma != NULL and ops.itemsize != 8:
        ops.channels.sizes(<const float *> gamma, len_, &s.least, &s.most)
    return s


# Whether gamma·rstd may leave what float holds well.
cdef inline int weighs_wide(double rstd, const Sizes *s) noexcept nogil:
    return not (fn_is_plain(rstd * s.least) and fn_is_plain(rstd * s.most))


# One call of layer norm (centred) or RMS norm over a matrix of rows.
ctypedef struct Rows:
    const fn_ops *ops
    Py_ssize_t rows, len
    const char *x
    const char *dy
    const char *residual
    char *sum  # x + residual, where there is a residual
    char *y  # dx in the backward
    const char *gamma  # of the arithmetic type, or NULL
    const char *beta
    const fn_ops *parameters  # for vectors of that type
    double eps
    int centred, flags
    # One double per row; NULL in a forward that no backward follows.
    double *mean
    double *mean_lo
    double *rstd
    Sizes sizes  # of gamma, in the backward
    # Of gamma's type, set by the backward, if there are rows; NULL where there is no parameter.
    char *dgamma
    char *dbeta

cdef int rows_forward(const Rows *job) noexcept nogil
cdef int rows_backward(const Rows *job) noexcept nogil
