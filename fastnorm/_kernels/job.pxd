"""One call of a norm over channels, and the formulas for one of its statistics: what spans.pyx and columns.pyx share."""

from libc.math cimport sqrt

from fastnorm._kernels.c cimport fn_grad, fn_moments, fn_norm, fn_ops, fn_wide

ctypedef struct Job:
    const fn_ops *ops
    # The tensor's axes in memory order. groups = 0: a statistic per channel (batch norm); else per sample and group of
    # channels (group norm; instance norm with groups = c).
    Py_ssize_t n, pre, c, post, groups
    # Arrays in that order; dx goes to `y`, dresidual (where it differs from dy) to `dresidual`.
    const char *x
    const char *dy
    const char *residual
    char *y
    char *dresidual
    # One double per channel; NULL means 1 and 0.
    const double *gamma
    const double *beta
    double eps
    int given  # statistics are given, and constants in the backward
    int flags  # FN_RELU | FN_STREAM
    # One double per statistic.
    double *mean
    double *mean_lo
    double *var
    double *rstd
    # One double per channel, results of the backward.
    double *dgamma
    double *dbeta


cdef inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t element_count(const Job *job) noexcept nogil:
    return job.n * job.pre * job.c * job.post


cdef inline Py_ssize_t statistic_count(const Job *job) noexcept nogil:
    return job.c if job.groups == 0 else job.n * job.groups


# m, the number of elements behind one statistic.
cdef inline double statistic_size(const Job *job) noexcept nogil:
    cdef Py_ssize_t m = job.n * job.pre * job.post if job.groups == 0 else job.pre * (job.c // job.groups) * job.post
    return <double> m


cdef inline void finish(const Job *job, Py_ssize_t i, const fn_moments *m) noexcept nogil:
    job.mean[i] = m.mean
    job.mean_lo[i] = m.mean_lo
    job.var[i] = m.m2 / m.n
    job.rstd[i] = 1 / sqrt(job.var[i] + job.eps)


# y = (x - mean)·(gamma·rstd) + beta, for channel k under statistic i.
cdef inline fn_norm norm_of(const Job *job, Py_ssize_t i, Py_ssize_t k) noexcept nogil:
    cdef fn_norm p
    p.mean = job.mean[i]
    p.mean_lo = job.mean_lo[i]
    p.scale = job.rstd[i] * job.gamma[k] if job.gamma != NULL else job.rstd[i]
    p.shift = job.beta[k] if job.beta != NULL else 0
    p.wide = fn_wide(p.mean, job.var[i] * statistic_size(job), p.scale)
    return p


# dx = a·dy + b·(x - mean) + c, given sum = Σγ·dy and dot = Σγ·dy·(x - mean) over statistic i.
cdef inline fn_grad grad_of(const Job *job, Py_ssize_t i, Py_ssize_t k, double sum, double dot) noexcept nogil:
    cdef fn_grad g
    cdef double m = statistic_size(job), rstd = job.rstd[i]
    g.a = job.gamma[k] * rstd if job.gamma != NULL else rstd
    g.b = 0 if job.given else -rstd * (rstd * (rstd * dot / m))
    g.c = 0 if job.given else -rstd * sum / m
    return g
