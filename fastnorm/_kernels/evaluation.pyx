"""Batch norm by given statistics, and what switchable norm does with those it has mixed, of channels that fill vectors.

Design. Every output depends on its own input and its statistic's numbers alone, so that memory is cut into as many pieces as there are
threads, wherever channels may begin, and each is walked from end to end (csrc/evaluation.h).
"""
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastnorm._kernels.c cimport fn_norms
from fastnorm._kernels.core cimport threads_for
from fastnorm._kernels.job cimport Job, ceil_div, element_count, least, statistic_count, statistic_size

cdef enum:
    WHOLE = 64  # elements to a piece, or a multiple: whole cache lines of half types


cdef inline void evaluate_piece(const Job *job, Py_ssize_t start, Py_ssize_t size, const fn_norms *p) noexcept nogil:
    job.ops.evaluate(job.x, job.residual, job.y, start, least(size, element_count(job) - start), p, statistic_count(job), job.post,
                     job.flags)


cdef int evaluate(const Job *job) noexcept nogil:
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t i, c = job.c, count = statistic_count(job), size = ceil_div(ceil_div(element_count(job), threads), WHOLE) * WHOLE
    cdef fn_norms p = fn_norms(job.mean, job.mean_lo, job.rstd, job.beta, job.var, statistic_size(job), job.given)
    cdef double *numbers = NULL
    if job.gamma != NULL or (job.beta != NULL and count > c):
        numbers = <double *> malloc(2 * count * sizeof(double))
        if numbers == NULL:
            return -1
    if job.gamma != NULL:
        for i in range(count // c):
            job.ops.channels.multiply(job.rstd + i * c, job.gamma, c, numbers + i * c)
        p.scale = numbers
    if job.beta != NULL and count > c:  # the channels of every sample
        for i in range(count // c):
            memcpy(numbers + count + i * c, job.beta, c * sizeof(double))
        p.shift = numbers + count
    if threads == 1:
        evaluate_piece(job, 0, size, &p)
    else:
        for i in prange(threads, schedule="static", num_threads=threads):
            evaluate_piece(job, i * size, size, &p)
    free(numbers)
    return 0
