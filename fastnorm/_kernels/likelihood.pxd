from libc.stdint cimport int64_t

from fastnorm._kernels.c cimport fn_ops

# One call of cross-entropy over `rows` rows of logits, `len` classes each.
ctypedef struct Likelihood:
    const fn_ops *ops
    Py_ssize_t rows, len
    const char *x
    const int64_t *target  # class of each row; negative: the row does not count
    const double *weight  # per class
    double smoothing, weight_sum
    int weighted  # 0 if every weight is 1
    double *stat  # 2 per row: max and Σexp(x - max)
    double *loss  # 1 per row

cdef void softmax_rows(const fn_ops *ops, const char *x, char *y, Py_ssize_t rows, Py_ssize_t len, int logarithm,
                       int flags) noexcept nogil
cdef void softmax_grad_rows(const fn_ops *ops, const char *dy, const char *y, char *dx, Py_ssize_t rows, Py_ssize_t len,
                            int logarithm, int flags) noexcept nogil
cdef void cross_entropy_rows(const Likelihood *job) noexcept nogil
# dlogits of every row; scale: what the row's cost is multiplied by in the total.
cdef void cross_entropy_grad_rows(const Likelihood *job, const double *scale, char *dx, int flags) noexcept nogil
