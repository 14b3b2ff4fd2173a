from fastnorm._kernels.c cimport fn_ops, fn_sizes

# Of float parameters; 1 for none, and for doubles, which are in no danger.
cdef inline fn_sizes sizes_of(const fn_ops *ops, const void *gamma, Py_ssize_t len_) noexcept nogil:
    if gamma == NULL or ops.itemsize == 8:
        return fn_sizes(1, 1)
    return ops.channels.sizes(<const float *> gamma, len_)


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
    fn_sizes sizes  # of gamma, in the backward
    # Of gamma's type, set by the backward, if there are rows; NULL where there is no parameter.
    char *dgamma
    char *dbeta

cdef int rows_forward(const Rows *job) noexcept nogil
cdef int rows_backward(const Rows *job) noexcept nogil
