"""Group and instance norm where a group is one short run of memory and a channel less than a vector: (N, C) arrays, 2×2 images.

Design. A group of a sample is a row, and gamma and beta vary along it, as in layer norm: the same primitives do the work, with
the parameters written out for every element; a ReLU is a step of its own. The backward takes one group through all samples, so
that each parameter's sum runs over the samples in order.
"""
from cython.parallel cimport prange
from libc.stdlib cimport calloc, free, malloc

from fastnorm._kernels.c cimport FN_RELU, FN_STREAM, fn_moments, fn_needs_wide, fn_norm, fn_planes, fn_row_stats, fn_spans
from fastnorm._kernels.core cimport threads_for
from fastnorm._kernels.job cimport Job, at, element_count, finish, planes_of
from fastnorm._kernels.rows cimport sizes_of


# Every element's parameter in the arithmetic type, or NULL.
cdef void *written_out(const Job *job, const double *values) noexcept nogil:
    cdef Py_ssize_t c, k, size = 8 if job.ops.itemsize == 8 else 4
    cdef void *all = malloc(job.c * job.post * size)
    if all != NULL:
        for c in range(job.c):
            for k in range(c * job.post, (c + 1) * job.post):
                if size == 8:
                    (<double *> all)[k] = values[c]
                else:
                    (<float *> all)[k] = <float> values[c]
    return all


cdef inline fn_norm row_norm(const Job *job, Py_ssize_t i) noexcept nogil:
    cdef fn_norm p
    p.mean, p.mean_lo, p.scale, p.shift = job.mean[i], job.mean_lo[i], job.rstd[i], 0
    p.wide, p.near = fn_needs_wide(p.mean, 0, p.scale), 0  # rstd bounds the variance
    return p


# y = max(y, 0), as the ReLU of the spans' affine with nothing else to do.
cdef inline void rectify(const Job *job, char *y, fn_spans all) noexcept nogil:
    cdef fn_norm identity
    identity.mean = identity.mean_lo = identity.shift = 0
    identity.scale, identity.wide = 1, 0
    job.ops.affine(y, NULL, y, all, &identity, FN_RELU, 0, NULL)


cdef void forward_sample(const Job *job, Py_ssize_t n, const void *gamma, const void *beta) noexcept nogil:
    cdef Py_ssize_t size = job.ops.itemsize, parameter = 8 if size == 8 else 4, g, i, o
    cdef fn_spans all
    cdef fn_moments m
    cdef fn_norm p
    all.len, all.count, all.stride = job.c // job.groups * job.post, 1, 0
    for g in range(job.groups):
        i = n * job.groups + g
        o = i * all.len * size
        job.ops.moments(job.x + o, all, &m)
        finish(job, i, &m)
        p = row_norm(job, i)
        job.ops.row_apply(job.x + o, job.y + o, all.len, at(gamma, g * all.len * parameter), at(beta, g * all.len * parameter), &p,
                          1, job.flags & FN_STREAM, 0)
        if job.flags & FN_RELU:
            rectify(job, job.y + o, all)
    job.ops.fence()


cdef int short_forward(const Job *job) noexcept nogil:
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t n
    cdef void *gamma = written_out(job, job.gamma) if job.gamma != NULL else NULL
    cdef void *beta = written_out(job, job.beta) if job.beta != NULL else NULL
    cdef bint ok = (gamma != NULL or job.gamma == NULL) and (beta != NULL or job.beta == NULL)
    if ok:
        if threads == 1:
            for n in range(job.n):
                forward_sample(job, n, gamma, beta)
        else:
            for n in prange(job.n, schedule="static", num_threads=threads):
                forward_sample(job, n, gamma, beta)
    free(gamma)
    free(beta)
    return 0 if ok else -1


# sums: for each element of a sample Σdy·xhat, then Σdy, then what both lost.
cdef int backward_group(const Job *job, Py_ssize_t g, const void *gamma, const void *beta, double *sums) noexcept nogil:
    cdef Py_ssize_t size = job.ops.itemsize, len_ = job.c // job.groups * job.post, width = job.c * job.post, n, o
    cdef Py_ssize_t parameter = 8 if size == 8 else 4, i
    cdef double *memory = <double *> malloc(7 * job.n * sizeof(double))
    cdef fn_row_stats stat = fn_row_stats(memory, memory + job.n, memory + 2 * job.n)
    cdef fn_planes row_sums = planes_of(memory + 3 * job.n, job.n)
    cdef fn_norm p
    cdef const char *mine = at(gamma, g * len_ * parameter)
    cdef const char *dy = job.dy
    cdef char *y = <char *> malloc(len_ * size)
    cdef bint ok = memory != NULL and y != NULL
    if job.flags & FN_RELU:
        dy = job.y  # dx holds dy behind the ReLU until it is done
    if ok:
        for n in range(job.n):
            o = (n * width + g * len_) * size
            i = n * job.groups + g
            stat.mean[n], stat.mean_lo[n], stat.rstd[n] = job.mean[i], job.mean_lo[i], job.rstd[i]
            if job.flags & FN_RELU:
                p = row_norm(job, i)
                job.ops.row_apply(job.x + o, y, len_, mine, at(beta, g * len_ * parameter), &p, 1, 0, 0)
                job.ops.gate_row(job.dy + o, y, job.y + o, len_)
        o = g * len_ * size
        sums += g * len_
        job.ops.rows_grad_sums(dy + o, job.x + o, mine, job.n, len_, width, stat, 1, row_sums)
        job.ops.rows_grad(dy + o, job.x + o, mine, job.y + o, job.n, len_, width, <double> len_, stat,
                          sizes_of(job.ops, mine, len_), row_sums, 1, job.flags & FN_STREAM, sums, sums + width, sums + 2 * width,
                          sums + 3 * width)
    free(memory)
    free(y)
    return 0 if ok else -1


cdef int short_backward(const Job *job) noexcept nogil:
    cdef int threads = threads_for(element_count(job)), failed = 0
    cdef Py_ssize_t g, c, k, width = job.c * job.post
    cdef void *gamma = written_out(job, job.gamma) if job.gamma != NULL else NULL
    cdef void *beta = written_out(job, job.beta) if job.beta != NULL else NULL
    cdef double *sums = <double *> calloc(4 * width, sizeof(double))
    if sums == NULL or (gamma == NULL and job.gamma != NULL) or (beta == NULL and job.beta != NULL):
        failed = -1
    else:
        if threads == 1:
            for g in range(job.groups):
                failed += backward_group(job, g, gamma, beta, sums)
        else:
            for g in prange(job.groups, schedule="static", num_threads=threads):
                failed += backward_group(job, g, gamma, beta, sums)
        for c in range(job.c):
            job.dgamma[c] = job.dbeta[c] = 0
            for k in range(c * job.post, (c + 1) * job.post):
                job.dgamma[c] += sums[k] + sums[2 * width + k]
                job.dbeta[c] += sums[width + k] + sums[3 * width + k]
    free(gamma)
    free(beta)
    free(sums)
    return -1 if failed else 0


cdef bint fits_short(const Job *job) noexcept nogil:
    """Whether these loops can do the job: whole groups side by side, with statistics of their own."""
    return job.pre == 1 and not job.given and job.residual == NULL
