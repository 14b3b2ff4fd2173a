"""Layer norm and RMS norm: rows that each have their own statistic and share per-column parameters.

Design. Threads take blocks of rows; inside a block the C primitive works on several short rows at a time. A row longer than
SLOT is reduced slot by slot, merged in order, so that a few long rows can use all threads and give the same bits on one.

Forward:   y = (x - mean)·rstd·gamma + beta; RMS: y = x·gamma/sqrt(Σx²/n + eps)
Backward:  with g = dy·gamma, dx = rstd·(g - Σg/n - xhat·Σ(g·xhat)/n); dgamma = Σ_rows dy·xhat, dbeta = Σ_rows dy. The sums
           over rows are cut into PARTS blocks of rows by shape alone, each with its own sums, added in order.
"""
from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.stdlib cimport free, malloc

from fastnorm._kernels.c cimport (
    FN_FRESH, FN_SINGLE, fn_dd, fn_dd_add, fn_merge, fn_moments, fn_needs_wide, fn_norm, fn_planes, fn_row_stats,
)
from fastnorm._kernels.core cimport threads_for
from fastnorm._kernels.job cimport at, ceil_div, least, planes_from, planes_of

cdef enum:
    SLOT = 65536  # elements of a row behind one partial result
    CHUNK = 16384  # about the elements in a piece of work
    PARTS = 16  # blocks of rows with parameter gradients of their own: enough threads' worth, and little memory
    GROUP = 8  # rows differentiated together


# The statistics from row r on.
cdef inline fn_row_stats stats_from(const Rows *job, Py_ssize_t r) noexcept nogil:
    if job.rstd == NULL:
        return fn_row_stats(NULL, NULL, NULL)
    return fn_row_stats(job.mean + r, job.mean_lo + r, job.rstd + r)


# ---- rows of at most SLOT elements ----

cdef inline Py_ssize_t rows_per_chunk(const Rows *job) noexcept nogil:
    cdef Py_ssize_t n = CHUNK // job.len
    return n if n > 1 else 1


cdef void forward_chunk(const Rows *job, Py_ssize_t chunk) noexcept nogil:
    cdef Py_ssize_t size = rows_per_chunk(job), first = chunk * size, rows = least(size, job.rows - first)
    cdef Py_ssize_t o = first * job.len * job.ops.itemsize
    job.ops.rows_forward(job.x + o, at(job.residual, o), <char *> at(job.sum, o), job.y + o, rows, job.len, job.gamma,
                         job.beta, job.eps, job.centred, stats_from(job, first), job.flags)


# Sums over rows for each column: dgamma and dbeta (NULL where there is no parameter), and for float64 what they lost, side by
# side in `memory`. A single row's are the results themselves.
ctypedef struct Columns:
    double *dgamma
    double *dbeta
    double *dgamma_lo
    double *dbeta_lo


cdef inline Py_ssize_t sums_per_column(const Rows *job) noexcept nogil:
    return 4 if job.ops.itemsize == 8 else 2


cdef inline bint is_single(const Rows *job) noexcept nogil:
    return job.rows == 1


# How the first rows' columns are written.
cdef inline int fresh(const Rows *job) noexcept nogil:
    return FN_FRESH | (FN_SINGLE if is_single(job) else 0)


cdef inline Columns columns_of(const Rows *job, double *memory, Py_ssize_t first) noexcept nogil:
    cdef Columns to
    cdef Py_ssize_t o = first * job.parameters.itemsize
    if is_single(job):
        return Columns(<double *> at(job.dgamma, o), <double *> at(job.dbeta, o), NULL, NULL)
    to.dgamma = memory + first if job.dgamma != NULL else NULL
    to.dbeta = memory + job.len + first if job.dbeta != NULL else NULL
    to.dgamma_lo = memory + 2 * job.len + first if job.ops.itemsize == 8 else NULL
    to.dbeta_lo = memory + 3 * job.len + first if job.ops.itemsize == 8 else NULL
    return to


# Rows [first, last): sets the columns' sums.
cdef void backward_rows(const Rows *job, Py_ssize_t first, Py_ssize_t last, Columns to) noexcept nogil:
    cdef Py_ssize_t o = first * job.len * job.ops.itemsize
    job.ops.rows_grad(job.dy + o, job.x + o, job.gamma, job.y + o, last - first, job.len, job.len, <double> job.len,
                      stats_from(job, first), job.sizes, fn_planes(NULL, NULL, NULL, NULL), job.centred, job.flags | fresh(job),
                      to.dgamma, to.dbeta, to.dgamma_lo, to.dbeta_lo)


# to = the sums of all parts, in order; the first part's are added to.
cdef void add_parts(const Rows *job, double *sums, Py_ssize_t parts, char *to) noexcept nogil:
    cdef Py_ssize_t j, part, step = sums_per_column(job) * job.len
    cdef fn_dd total, more
    if job.ops.itemsize == 8:
        for j in range(job.len):
            total.hi = total.lo = 0
            for part in range(parts):
                more.hi, more.lo = sums[part * step + j], sums[part * step + 2 * job.len + j]
                total = fn_dd_add(total, more)
            sums[j] = total.hi + total.lo
    else:
        for part in range(1, parts):
            job.ops.channels.collapse(sums, sums + part * step, job.len, sums)
    job.parameters.put(sums, job.len, to, job.parameters.itemsize)


cdef inline Py_ssize_t rows_per_part(const Rows *job) noexcept nogil:
    cdef Py_ssize_t n = ceil_div(ceil_div(job.rows, PARTS), GROUP) * GROUP
    return n if n > 2 * GROUP else 2 * GROUP


cdef void backward_part(const Rows *job, Py_ssize_t part, double *sums) noexcept nogil:
    cdef Py_ssize_t size = rows_per_part(job)
    backward_rows(job, part * size, least((part + 1) * size, job.rows), columns_of(job, sums, 0))


# ---- longer rows: by slots ----

cdef inline Py_ssize_t slots_of(const Rows *job) noexcept nogil:
    return ceil_div(job.len, SLOT)


cdef inline Py_ssize_t slot_size(const Rows *job, Py_ssize_t slot) noexcept nogil:
    return least(SLOT, job.len - slot * SLOT)


cdef void reduce_slot(const Rows *job, Py_ssize_t u, fn_moments *m) noexcept nogil:
    cdef Py_ssize_t slots = slots_of(job), slot = u % slots
    cdef Py_ssize_t o = (u // slots * job.len + slot * SLOT) * job.ops.itemsize, n = slot_size(job, slot)
    cdef const char *source = job.x + o
    if job.residual != NULL:
        job.ops.add(job.x + o, job.residual + o, job.sum + o, n)
        source = job.sum + o
    job.ops.row_moments(source, n, job.centred, m)


cdef fn_norm finish_row(const Rows *job, Py_ssize_t r, fn_moments *parts) noexcept nogil:
    cdef Py_ssize_t slot
    cdef fn_norm p
    for slot in range(1, slots_of(job)):
        fn_merge(parts, parts + slot)
    p.mean, p.mean_lo, p.shift = parts.mean, parts.mean_lo, 0
    p.scale, p.near = 1 / sqrt(parts.m2 / parts.n + job.eps), 0
    p.wide = fn_needs_wide(p.mean, parts.m2, p.scale)
    if job.rstd != NULL:
        job.mean[r], job.mean_lo[r], job.rstd[r] = p.mean, p.mean_lo, p.scale
    return p


cdef void normalize_slot(const Rows *job, Py_ssize_t u, const fn_norm *p) noexcept nogil:
    cdef Py_ssize_t slots = slots_of(job), slot = u % slots, column = slot * SLOT
    cdef Py_ssize_t o = (u // slots * job.len + column) * job.ops.itemsize
    job.ops.row_apply((<const char *> job.sum if job.residual != NULL else job.x) + o, job.y + o, slot_size(job, slot),
                      at(job.gamma, column * job.parameters.itemsize), at(job.beta, column * job.parameters.itemsize), p, job.centred,
                      job.flags, 0)


cdef void forward_long_row(const Rows *job, Py_ssize_t r, fn_moments *parts) noexcept nogil:
    cdef Py_ssize_t slots = slots_of(job), slot
    cdef fn_norm p
    for slot in range(slots):
        reduce_slot(job, r * slots + slot, parts + slot)
    p = finish_row(job, r, parts)
    for slot in range(slots):
        normalize_slot(job, r * slots + slot, &p)


cdef int long_forward(const Rows *job, int threads) noexcept nogil:
    cdef Py_ssize_t slots = slots_of(job), u, r
    cdef fn_moments *parts = <fn_moments *> malloc(job.rows * slots * sizeof(fn_moments))
    cdef fn_norm *stat = <fn_norm *> malloc(job.rows * sizeof(fn_norm))
    cdef bint ok = parts != NULL and stat != NULL
    if ok and (threads == 1 or job.rows >= 4 * threads):
        if threads == 1:
            for r in range(job.rows):
                forward_long_row(job, r, parts + r * slots)
        else:
            for r in prange(job.rows, schedule="static", num_threads=threads):
                forward_long_row(job, r, parts + r * slots)
    elif ok:
        for u in prange(job.rows * slots, schedule="static", num_threads=threads):
            reduce_slot(job, u, parts + u)
        for r in range(job.rows):
            stat[r] = finish_row(job, r, parts + r * slots)
        for u in prange(job.rows * slots, schedule="static", num_threads=threads):
            normalize_slot(job, u, stat + u // slots)
    free(parts)
    free(stat)
    return 0 if ok else -1


cdef void sum_slot(const Rows *job, Py_ssize_t u, fn_planes to) noexcept nogil:
    cdef Py_ssize_t slots = slots_of(job), slot = u % slots, column = slot * SLOT
    cdef Py_ssize_t o = (u // slots * job.len + column) * job.ops.itemsize
    job.ops.rows_grad_sums(job.dy + o, job.x + o, at(job.gamma, column * job.parameters.itemsize), 1, slot_size(job, slot), job.len,
                           stats_from(job, u // slots), job.centred, to)


# One slot of columns through all rows.
cdef void differentiate_slot(const Rows *job, Py_ssize_t slot, fn_planes sums, double *memory) noexcept nogil:
    cdef Py_ssize_t column = slot * SLOT, o = column * job.ops.itemsize
    cdef Columns to = columns_of(job, memory, column)
    job.ops.rows_grad(job.dy + o, job.x + o, at(job.gamma, column * job.parameters.itemsize), job.y + o, job.rows,
                      slot_size(job, slot), job.len, <double> job.len, stats_from(job, 0), job.sizes, sums, job.centred,
                      job.flags | fresh(job), to.dgamma, to.dbeta, to.dgamma_lo, to.dbeta_lo)


cdef int long_backward(const Rows *job, int threads, double *memory) noexcept nogil:
    cdef Py_ssize_t slots = slots_of(job), pieces = job.rows * slots, u
    cdef double *parts = <double *> malloc(4 * pieces * sizeof(double))
    cdef double *of_rows = <double *> malloc(4 * job.rows * sizeof(double))
    cdef fn_planes of_pieces = planes_of(parts, pieces), sums = planes_of(of_rows, job.rows)
    cdef bint ok = parts != NULL and of_rows != NULL
    if ok:
        if threads == 1:
            for u in range(pieces):
                sum_slot(job, u, planes_from(of_pieces, u))
        else:
            for u in prange(pieces, schedule="static", num_threads=threads):
                sum_slot(job, u, planes_from(of_pieces, u))
        job.ops.channels.add_runs(of_pieces.sum, of_pieces.sum_lo, slots, job.rows, sums.sum, sums.sum_lo)
        job.ops.channels.add_runs(of_pieces.dot, of_pieces.dot_lo, slots, job.rows, sums.dot, sums.dot_lo)
        if threads == 1:
            for u in range(slots):
                differentiate_slot(job, u, sums, memory)
        else:
            for u in prange(slots, schedule="static", num_threads=threads):
                differentiate_slot(job, u, sums, memory)
    free(parts)
    free(of_rows)
    return 0 if ok else -1


# ---- the two calls ----

cdef int rows_forward(const Rows *job) noexcept nogil:
    cdef int threads = threads_for(job.rows * job.len)
    cdef Py_ssize_t chunk
    if job.len > SLOT:
        return long_forward(job, threads)
    if threads == 1:
        for chunk in range(ceil_div(job.rows, rows_per_chunk(job))):
            forward_chunk(job, chunk)
    else:
        for chunk in prange(ceil_div(job.rows, rows_per_chunk(job)), schedule="static", num_threads=threads):
            forward_chunk(job, chunk)
    return 0


cdef int rows_backward(const Rows *given) noexcept nogil:
    cdef Rows copied = given[0]
    cdef const Rows *job = &copied
    cdef int threads = threads_for(job.rows * job.len), failed = 0
    cdef Py_ssize_t parts = 1 if job.len > SLOT else ceil_div(job.rows, rows_per_part(job)), part
    cdef double *sums = NULL
    copied.sizes = sizes_of(job.ops, job.gamma, job.len)
    if not is_single(job):
        sums = <double *> malloc(sums_per_column(job) * parts * job.len * sizeof(double))
        if sums == NULL:
            return -1
    if job.len > SLOT:
        failed = long_backward(job, threads, sums)
    else:
        if threads == 1:
            for part in range(parts):
                backward_part(job, part, sums + sums_per_column(job) * part * job.len)
        else:
            for part in prange(parts, schedule="static", num_threads=threads):
                backward_part(job, part, sums + sums_per_column(job) * part * job.len)
    if sums == NULL:
        return failed
    if not failed and job.dgamma != NULL:
        add_parts(job, sums, parts, job.dgamma)
    if not failed and job.dbeta != NULL:
        add_parts(job, sums + job.len, parts, job.dbeta)
    free(sums)
    return failed
