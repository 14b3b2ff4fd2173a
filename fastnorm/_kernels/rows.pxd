from fastnorm._kernels.c cimport fn_ops

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
    Py_ssize_t gamma_size  # bytes of one parameter
    double eps
    int centred, flags
    # One double per row; NULL in a forward that no backward follows.
    double *mean
    double *mean_lo
    double *rstd
    # One double per column, results of the backward; NULL where there is no parameter.
    double *dgamma
    double *dbeta

cdef int rows_forward(const Rows *job) noexcept nogil
cdef int rows_backward(const Rows *job) noexcept nogil
cdef int rows_norms(const Rows *job, double *norm) noexcept nogil
