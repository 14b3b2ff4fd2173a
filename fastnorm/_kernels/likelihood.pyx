"""Softmax, log-softmax and cross-entropy: rows that each have their own maximum and sum of exponentials.

Design. Threads take a share of the rows each; of softmax in one piece, because a row is written while the next is read. A row's
result depends on its own values alone.

Forward:   y = exp(x - max)/Σexp(x - max);  cost = -Σ_k q_k·w_k·log y_k, q = (1 - s)·onehot(target) + s/K
Backward:  dx = scale·[(1 - s)·w_t·(y - onehot) + s/K·(y·Σw - w)]
"""
from cython.parallel cimport prange
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastnorm._kernels.c cimport FN_STREAM, fn_ops
from fastnorm._kernels.core cimport threads_for
from fastnorm._kernels.job cimport ceil_div, most

cdef enum:
    ROOM = 1048576  # bytes of each of two rows that wait for their sums: they should stay in L2, or nearly


# What a thread needs for two rows that cannot wait in y, or that go past the cache.
cdef inline Py_ssize_t room_size(const fn_ops *ops, Py_ssize_t len, int logarithm, int flags) noexcept nogil:
    cdef Py_ssize_t size = ceil_div(len * most(ops.itemsize, sizeof(float)), 256) * 256 + 64
    return 2 * size if not logarithm and size <= ROOM and (ops.itemsize < sizeof(float) or flags & FN_STREAM) else 0


# One thread's share of the rows.
cdef void softmax_share(const fn_ops *ops, const char *x, char *y, Py_ssize_t rows, Py_ssize_t len, int logarithm, int flags,
                        char *rooms, int threads, Py_ssize_t u) noexcept nogil:
    cdef Py_ssize_t first = u * rows // threads, end = (u + 1) * rows // threads, o = first * len * ops.itemsize
    ops.softmax(x + o, y + o, end - first, len, logarithm, flags,
                NULL if rooms == NULL else rooms + u * room_size(ops, len, logarithm, flags))


cdef void softmax_rows(const fn_ops *ops, const char *x, char *y, Py_ssize_t rows, Py_ssize_t len, int logarithm,
                       int flags) noexcept nogil:
    cdef Py_ssize_t u
    cdef int threads = threads_for(rows * len)
    cdef Py_ssize_t size = threads * room_size(ops, len, logarithm, flags)
    cdef char *memory = <char *> malloc(size + 63) if size > 0 else NULL
    cdef char *rooms = NULL  # where there is no memory, the kernel does without
    if memory != NULL:
        rooms = memory + (-<uintptr_t> memory) % 64
    if threads == 1:
        softmax_share(ops, x, y, rows, len, logarithm, flags, rooms, 1, 0)
    else:
        for u in prange(threads, schedule="static", num_threads=threads):
            softmax_share(ops, x, y, rows, len, logarithm, flags, rooms, threads, u)
    free(memory)


cdef void softmax_grad_share(const fn_ops *ops, const char *dy, const char *y, char *dx, Py_ssize_t rows, Py_ssize_t len,
                             int logarithm, int flags, int threads, Py_ssize_t u) noexcept nogil:
    cdef Py_ssize_t first = u * rows // threads, end = (u + 1) * rows // threads, o = first * len * ops.itemsize
    ops.softmax_grad(dy + o, y + o, dx + o, end - first, len, logarithm, flags)


cdef void softmax_grad_rows(const fn_ops *ops, const char *dy, const char *y, char *dx, Py_ssize_t rows, Py_ssize_t len,
                            int logarithm, int flags) noexcept nogil:
    cdef Py_ssize_t u
    cdef int threads = threads_for(rows * len)
    if threads == 1:
        softmax_grad_share(ops, dy, y, dx, rows, len, logarithm, flags, 1, 0)
    else:
        for u in prange(threads, schedule="static", num_threads=threads):
            softmax_grad_share(ops, dy, y, dx, rows, len, logarithm, flags, threads, u)


cdef void cost_of_row(const Likelihood *job, Py_ssize_t r) noexcept nogil:
    cdef const char *x = job.x + r * job.len * job.ops.itemsize
    cdef Py_ssize_t t = job.target[r]
    cdef double out[4]
    cdef double value
    job.ops.lse(x, job.len, job.weight if job.smoothing > 0 else NULL, out)
    job.stat[2 * r], job.stat[2 * r + 1] = out[0], out[3]
    if t < 0:
        job.loss[r] = 0
        return
    job.ops.get(x + t * job.ops.itemsize, 0, 1, &value)
    job.loss[r] = -job.weight[t] * ((value - out[0]) - out[1])
    if job.smoothing > 0:
        job.loss[r] = (1 - job.smoothing) * job.loss[r] - job.smoothing / <double> job.len * out[2]


cdef void cross_entropy_rows(const Likelihood *job) noexcept nogil:
    cdef Py_ssize_t r
    cdef int threads = threads_for(job.rows * job.len)
    if threads == 1:
        for r in range(job.rows):
            cost_of_row(job, r)
    else:
        for r in prange(job.rows, schedule="static", num_threads=threads):
            cost_of_row(job, r)


cdef void grad_of_row(const Likelihood *job, Py_ssize_t r, double scale, char *dx, int flags) noexcept nogil:
    cdef Py_ssize_t t = job.target[r], o = r * job.len * job.ops.itemsize
    cdef double hit, spread
    if t < 0:
        memset(dx + o, 0, job.len * job.ops.itemsize)  # whatever the logits of an ignored row are
        return
    hit = scale * (1 - job.smoothing) * job.weight[t]
    spread = scale * job.smoothing / <double> job.len
    job.ops.cross_entropy_grad(job.x + o, dx + o, job.len, job.stat[2 * r], job.stat[2 * r + 1],
                               hit + (spread * job.weight_sum if spread != 0 else 0), spread, job.weight if spread != 0 else NULL, t, hit,
                               flags)


cdef void grad_share(const Likelihood *job, const double *scale, char *dx, int flags, int threads, Py_ssize_t u) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(u * job.rows // threads, (u + 1) * job.rows // threads):
        grad_of_row(job, r, scale[r], dx, flags)
    job.ops.fence()


cdef void cross_entropy_grad_rows(const Likelihood *job, const double *scale, char *dx, int flags) noexcept nogil:
    cdef Py_ssize_t u
    cdef int threads = threads_for(job.rows * job.len)
    if threads == 1:
        grad_share(job, scale, dx, flags, 1, 0)
    else:
        for u in prange(threads, schedule="static", num_threads=threads):
            grad_share(job, scale, dx, flags, threads, u)
