"""One call of a norm over channels, and the formulas for one of its statistics: what spans.pyx and columns.pyx share."""

from libc.math cimport sqrt

from fastnorm._kernels.c cimport (
    fn_channel_norm, fn_channels, fn_grad, fn_is_near, fn_moments, fn_needs_wide, fn_norm, fn_ops, fn_planes, fn_sums, fn_sums_add,
    fn_sums_weigh, omp_get_thread_num,
)

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
    int lengths  # weight norm: a statistic is Σx² itself, about zero, and nothing is centred
    int flags  # FN_RELU, and what memory_flags says
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


cdef inline const char *at(const void *p, Py_ssize_t bytes) noexcept nogil:
    return <const char *> p + bytes if p != NULL else NULL


cdef inline Py_ssize_t most(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a > b else b


# Of this thread among `threads` of ours, each of which has memory of its own. Outside our loops it may be any one of them: called in
# another library's parallel region, its number is that one's.
cdef inline int place_among(int threads) noexcept nogil:
    return omp_get_thread_num() % threads


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t element_count(const Job *job) noexcept nogil:
    return job.n * job.pre * job.c * job.post


cdef inline Py_ssize_t statistic_count(const Job *job) noexcept nogil:
    return job.c if job.groups == 0 else job.n * job.groups


# m, the number of elements behind one statistic.
cdef inline double statistic_size(const Job *job) noexcept nogil:
    if job.lengths:
        return 1
    cdef Py_ssize_t m = job.n * job.pre * job.post if job.groups == 0 else job.pre * (job.c // job.groups) * job.post
    return <double> m


cdef inline void finish(const Job *job, Py_ssize_t i, const fn_moments *m) noexcept nogil:
    job.mean[i] = m.mean
    job.mean_lo[i] = m.mean_lo
    job.var[i] = m.m2 if job.lengths else m.m2 / m.n
    job.rstd[i] = 1 / sqrt(job.var[i] + job.eps)


# xhat = (x - mean)·rstd under statistic i, of m elements: what its channels share.
cdef inline fn_norm shared_norm(const Job *job, Py_ssize_t i, double m) noexcept nogil:
    cdef fn_norm p
    p.mean = job.mean[i]
    p.mean_lo = job.mean_lo[i]
    p.scale = job.rstd[i]
    p.shift = 0
    p.wide = fn_needs_wide(p.mean, job.var[i] * m, 1)  # the scale is each channel's, looked at in channel_norm
    p.near = not job.given and fn_is_near(p.mean, job.var[i])
    return p


# Channels first, first + 1, ... of one statistic.
cdef inline fn_channels channels_of(const Job *job, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    cdef fn_channels c
    c.gamma = job.gamma + first if job.gamma != NULL else NULL
    c.beta = job.beta + first if job.beta != NULL else NULL
    c.count, c.len = count, job.post
    return c


# y = (x - mean)·(gamma·rstd) + beta, for channel k.
cdef inline fn_norm channel_norm(const Job *job, const fn_norm *shared, Py_ssize_t k) noexcept nogil:
    cdef fn_channels all = channels_of(job, 0, job.c)
    return fn_channel_norm(shared, &all, k)


cdef inline fn_norm norm_of(const Job *job, Py_ssize_t i, Py_ssize_t k, double m) noexcept nogil:
    cdef fn_norm shared = shared_norm(job, i, m)
    return channel_norm(job, &shared, k)


# dx = a·dy + b·(x - mean) + c, given Σγ·dy and Σγ·dy·(x - mean) over statistic i; of weight norm Σdy·x, because γ and ‖v‖ may
# be far apart.
cdef inline fn_grad grad_of(const Job *job, Py_ssize_t i, Py_ssize_t k, double m, const fn_sums *total) noexcept nogil:
    cdef fn_grad g
    cdef double rstd = job.rstd[i]
    g.a = job.gamma[k] * rstd if job.gamma != NULL else rstd
    g.b = g.c = 0
    if job.lengths:
        g.b = -job.gamma[k] * ((total.dot + total.dot_lo) * rstd) * rstd * rstd
    elif not job.given:
        g.b = -rstd * (rstd * (rstd * (total.dot + total.dot_lo) / m))
        g.c = -rstd * (total.sum + total.sum_lo) / m
    return g


# Σγ·dy and Σγ·dy·(x - mean) of a statistic from the sums of its channels first, first + 1, ...
cdef inline fn_sums weigh(const Job *job, Py_ssize_t first, Py_ssize_t channels, const fn_sums *sums) noexcept nogil:
    cdef fn_sums total = fn_sums(0, 0, 0, 0)
    cdef Py_ssize_t k
    cdef const double *gamma = job.gamma + first if job.gamma != NULL and not job.lengths else NULL
    cdef double weight, sum = 0, dot = 0
    if job.ops.itemsize == 8:
        for k in range(channels):
            fn_sums_weigh(&total, gamma[k] if gamma != NULL else 1, sums + k)
        return total
    for k in range(channels):  # sums of floats are good to a double
        weight = gamma[k] if gamma != NULL else 1
        sum += weight * (sums[k].sum + sums[k].sum_lo)
        dot += weight * (sums[k].dot + sums[k].dot_lo)
    total.sum, total.dot = sum, dot
    return total


# A channel's sums in one sample, Σdy·(x - mean) as Σdy·xhat.
cdef inline fn_sums scaled(const fn_sums *s, double rstd) noexcept nogil:
    return fn_sums(s.sum, s.sum_lo, s.dot * rstd, s.dot_lo * rstd)


# dgamma = Σ dy·xhat and dbeta = Σ dy from the sums of the channels of each sample; a statistic has `channels` of them.
cdef inline void add_parameter_gradients(const Job *job, const fn_sums *sums, Py_ssize_t samples, Py_ssize_t channels) noexcept nogil:
    cdef Py_ssize_t groups = job.c // channels, g, c, n
    cdef fn_sums total, one
    for g in range(groups):
        for c in range(g * channels, (g + 1) * channels):
            total = scaled(sums + c, job.rstd[g])
            for n in range(1, samples):
                one = scaled(sums + n * job.c + c, job.rstd[n * groups + g])
                fn_sums_add(&total, &one)
            job.dgamma[c] = 0 + total.dot + total.dot_lo  # -0 as 0
            job.dbeta[c] = 0 + total.sum + total.sum_lo


# Sums in four arrays, one after the other in memory, and the same from the i-th on.
cdef inline fn_planes planes_of(double *memory, Py_ssize_t count) noexcept nogil:
    return fn_planes(memory, memory + count, memory + 2 * count, memory + 3 * count)


cdef inline fn_planes planes_from(fn_planes s, Py_ssize_t i) noexcept nogil:
    return fn_planes(s.sum + i, s.sum_lo + i, s.dot + i, s.dot_lo + i)
