"""Batch, group and instance norm over a tensor in memory order (n, pre, c, post): NCHW has pre = 1, channels-last post = 1.

Design. Where statistics are given memory is mostly walked as it lies (evaluation.pyx). Otherwise it offers one of three
shapes, and each has its loops. A statistic that owns whole spans is reduced along them (spans.pyx). Where statistics lie
side by side in each row of memory, columns are reduced (columns.pyx): channels-last images, (N, C) arrays, and batch norm
over spans so short that their horizontal sum and ragged end would cost more than the span. Groups of a few numbers, whose
channels are shorter than a vector, are rows as in layer norm (short_groups.pyx).

Forward:   mean = Σx/m, var = Σ(x - mean)²/m, y = (x - mean)·gamma/sqrt(var + eps) + beta
Backward:  dx = a·dy + b·(x - mean) + c with a = gamma·rstd, b = -rstd³·Σγ·dy·(x - mean)/m, c = -rstd·Σγ·dy/m
"""
from fastnorm._kernels.c cimport FN_STREAM, fn_moments
from fastnorm._kernels.columns cimport columns_backward, columns_forward, columns_moments
from fastnorm._kernels.evaluation cimport evaluate
from fastnorm._kernels.job cimport Job
from fastnorm._kernels.short_groups cimport fits_short, short_backward, short_forward
from fastnorm._kernels.spans cimport spans_backward, spans_forward, spans_moments

cdef enum:
    SHORT = 64  # elements of a span of batch norm
    VECTOR = 16  # elements
    SHORT_TO_WALK = 20  # elements of a span of batch norm beyond the cache
    SHORT_CHANNEL = VECTOR  # elements of a channel within a group; whatever the number of samples, whose bits must not depend on it
    SHORT_GROUP = 65536  # elements of a group: more are worth several threads


cdef inline bint by_columns(const Job *job) noexcept nogil:
    return job.post < SHORT if job.groups == 0 else job.pre > 1 or job.post < SHORT_CHANNEL


# Given statistics: is memory walked? Not in the cache where spans of batch norm are short: their numbers, written out for columns, are
# loaded quicker than vectors are put together (there 1.1 to 2 times as fast, but beyond it 0.7).
cdef inline bint walks(const Job *job) noexcept nogil:
    return job.post >= VECTOR and (job.groups > 0 or job.post >= SHORT or (job.flags & FN_STREAM and job.post >= SHORT_TO_WALK))


cdef inline bint by_short_groups(const Job *job) noexcept nogil:
    return job.post < SHORT_CHANNEL and job.c // job.groups * job.post <= SHORT_GROUP and fits_short(job)


cdef int norm_forward(const Job *job) noexcept nogil:
    if job.given and walks(job):
        return evaluate(job)
    if job.groups > 0 and by_short_groups(job):
        return short_forward(job)
    return columns_forward(job) if by_columns(job) else spans_forward(job)


cdef int norm_backward(const Job *job) noexcept nogil:
    if job.groups > 0 and by_short_groups(job):
        return short_backward(job)
    return columns_backward(job) if by_columns(job) else spans_backward(job)


cdef int norm_moments(const Job *job, fn_moments *out) noexcept nogil:
    return columns_moments(job, out) if by_columns(job) else spans_moments(job, out)
