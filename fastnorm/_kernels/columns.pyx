"""Batch, group and instance norm where statistics lie side by side in every row of a matrix.

Design. Channels-last images and (N, C) arrays are matrices whose columns are channels; batch norm over spans too short to be
worth a horizontal sum is one whose columns are pixels, `post` to a channel. A statistic owns `segment` neighbouring columns.

The matrix is cut into tiles of whole statistics and bands of rows, by shape alone. A band of a tile stays in L2: its column
sums give each statistic's centre, a second look gives the squares about it, and bands are merged in order. A tile is
normalized right after its reduction; when there are too few tiles for the threads, all threads first reduce bands, then
normalize them.
"""
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

from fastnorm._kernels.c cimport (
    fn_accumulate, fn_column_means, fn_column_squares, fn_grad, fn_moments, fn_norm, fn_pool, omp_get_thread_num,
)
from fastnorm._kernels.core cimport threads_for
from fastnorm._kernels.job cimport Job, ceil_div, element_count, finish, grad_of, least, norm_of, statistic_count

cdef enum:
    BAND_ELEMENTS = 131072  # a band of 512 KB of float32 is in L2, or nearly, for the second look
    WIDEST = 2048  # columns: two pages of a row, so that memory is walked in long strides; more would leave too few rows in L2


# One matrix per sample (one in all for batch norm), `statistics` to a row.
ctypedef struct Matrix:
    Py_ssize_t samples, rows, width, segment, statistics
    Py_ssize_t tile, tiles  # columns in a tile; tiles in a matrix
    Py_ssize_t band, bands  # rows in a band; bands in a matrix
    Py_ssize_t in_tile, channels  # statistics, and channels, in a tile


cdef Matrix matrix_of(const Job *job) noexcept nogil:
    cdef Matrix a
    cdef Py_ssize_t n
    if job.groups == 0:
        a.samples, a.rows, a.segment = 1, job.n * job.pre, job.post
    else:
        a.samples, a.rows, a.segment = job.n, job.pre, job.c // job.groups * job.post
    a.width = job.c * job.post
    a.statistics = a.width // a.segment
    n = WIDEST // a.segment
    while n > 1 and n * a.segment % 32 != 0:  # whole cache lines, in half types too
        n -= 1
    a.in_tile = least(a.statistics, n if n > 0 else 1)
    a.tile = a.in_tile * a.segment
    a.tiles = ceil_div(a.statistics, a.in_tile)
    a.channels = a.tile // job.post
    n = BAND_ELEMENTS // a.tile // 8 * 8
    a.band = 4096 if n > 4096 else 16 if n < 16 else n
    a.bands = ceil_div(a.rows, a.band)
    return a


# One band of one tile, and where it lies.
ctypedef struct Cell:
    Py_ssize_t rows, width, offset  # offset in bytes
    Py_ssize_t first  # first column
    Py_ssize_t statistic  # first statistic, counted over all samples
    Py_ssize_t statistics


# Cell u of samples × tiles × bands.
cdef inline Cell cell_of(const Job *job, const Matrix *a, Py_ssize_t u) noexcept nogil:
    cdef Cell z
    cdef Py_ssize_t band = u % a.bands, tile = u // a.bands % a.tiles, sample = u // a.bands // a.tiles
    z.first = tile * a.tile
    z.width = least(a.tile, a.width - z.first)
    z.rows = least(a.band, a.rows - band * a.band)
    z.offset = ((sample * a.rows + band * a.band) * a.width + z.first) * job.ops.itemsize
    z.statistic = sample * a.statistics + tile * a.in_tile
    z.statistics = z.width // a.segment
    return z


cdef inline const char *at(const char *p, Py_ssize_t bytes) noexcept nogil:
    return p + bytes if p != NULL else NULL


# ---- scratch memory: one piece per thread ----

ctypedef struct Scratch:
    double *sum
    double *lost
    double *mean
    fn_norm *norms
    fn_grad *grads


cdef inline Py_ssize_t scratch_size(const Matrix *a) noexcept nogil:
    return a.tile * 3 * sizeof(double) + a.channels * (sizeof(fn_norm) + sizeof(fn_grad)) + 64


cdef inline Scratch scratch_of(const Matrix *a, char *memory) noexcept nogil:
    cdef Scratch s
    cdef char *mine = memory + omp_get_thread_num() * scratch_size(a)
    s.sum = <double *> mine
    s.lost = s.sum + a.tile
    s.mean = s.lost + a.tile
    s.grads = <fn_grad *> (s.mean + a.tile)
    s.norms = <fn_norm *> (s.grads + a.channels)
    return s


# ---- moments ----

cdef void reduce_cell(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, fn_moments *out) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    cdef Py_ssize_t j
    for j in range(z.width):
        s.sum[j] = s.lost[j] = 0
    job.ops.col_sums(job.x + z.offset, z.rows, z.width, a.width, s.sum, s.lost)
    fn_column_means(s.sum, s.lost, z.statistics, a.segment, <double> (z.rows * a.segment), out, s.mean)
    for j in range(z.width):
        s.sum[j] = 0
    job.ops.col_squares(job.x + z.offset, z.rows, z.width, a.width, s.mean, s.sum)
    fn_column_squares(s.sum, z.statistics, a.segment, out)


# The bands of tile v (of samples × tiles) into its statistics.
cdef void merge_bands(const Job *job, const Matrix *a, Py_ssize_t v, const fn_moments *parts, fn_moments *out) noexcept nogil:
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Py_ssize_t i
    for i in range(z.statistics):
        fn_pool(parts + v * a.bands * a.in_tile + i, a.bands, a.in_tile, out + i)


cdef void moments_of_tile(const Job *job, const Matrix *a, Py_ssize_t v, char *memory, fn_moments *parts,
                          fn_moments *out) noexcept nogil:
    cdef Py_ssize_t u
    cdef Cell z = cell_of(job, a, v * a.bands)
    for u in range(v * a.bands, (v + 1) * a.bands):
        reduce_cell(job, a, u, memory, parts + u * a.in_tile)
    merge_bands(job, a, v, parts, out + z.statistic)


cdef int columns_moments(const Job *job, fn_moments *out) noexcept nogil:
    cdef Matrix a = matrix_of(job)
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t u, v, tiles = a.samples * a.tiles
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef fn_moments *parts = <fn_moments *> malloc(tiles * a.bands * a.in_tile * sizeof(fn_moments))
    if memory != NULL and parts != NULL:
        for u in prange(tiles * a.bands, schedule="static", num_threads=threads, use_threads_if=threads > 1):
            reduce_cell(job, &a, u, memory, parts + u * a.in_tile)
        for v in range(tiles):
            merge_bands(job, &a, v, parts, out + cell_of(job, &a, v * a.bands).statistic)
    free(memory)
    free(parts)
    return 0 if memory != NULL and parts != NULL else -1


# ---- forward ----

# The numbers of each channel in a cell's tile.
cdef void norms_of_cell(const Job *job, const Matrix *a, const Cell *z, fn_norm *p) noexcept nogil:
    cdef Py_ssize_t k, per_statistic = a.segment // job.post
    for k in range(z.width // job.post):
        p[k] = norm_of(job, z.statistic + k // per_statistic, z.first // job.post + k)


cdef void normalize_cell(const Job *job, const Matrix *a, Py_ssize_t u, const fn_norm *p) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    job.ops.col_affine(job.x + z.offset, at(job.residual, z.offset), job.y + z.offset, z.rows, z.width, a.width, p,
                       job.post, job.flags)


cdef void normalize_cell_alone(const Job *job, const Matrix *a, Py_ssize_t u, char *memory) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    norms_of_cell(job, a, &z, s.norms)
    normalize_cell(job, a, u, s.norms)


cdef void forward_tile(const Job *job, const Matrix *a, Py_ssize_t v, char *memory, fn_moments *parts,
                       fn_moments *every) noexcept nogil:
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Scratch s = scratch_of(a, memory)
    cdef Py_ssize_t i, u
    if not job.given:
        moments_of_tile(job, a, v, memory, parts, every)
        for i in range(z.statistic, z.statistic + z.statistics):
            finish(job, i, every + i)
    norms_of_cell(job, a, &z, s.norms)
    for u in range(v * a.bands, (v + 1) * a.bands):
        normalize_cell(job, a, u, s.norms)


cdef int columns_forward(const Job *job) noexcept nogil:
    cdef Matrix a = matrix_of(job)
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t i, u, v, tiles = a.samples * a.tiles, count = statistic_count(job)
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef fn_moments *parts = NULL
    cdef fn_moments *every = NULL
    cdef bint whole_tiles = threads == 1 or tiles >= 4 * threads, ok = memory != NULL
    if not job.given:
        every = <fn_moments *> malloc(count * sizeof(fn_moments))
        ok = ok and every != NULL
        if whole_tiles:
            parts = <fn_moments *> malloc(tiles * a.bands * a.in_tile * sizeof(fn_moments))
            ok = ok and parts != NULL
    if ok and whole_tiles:
        for v in prange(tiles, schedule="static", num_threads=threads, use_threads_if=threads > 1):
            forward_tile(job, &a, v, memory, parts, every)
    elif ok:
        if not job.given:
            ok = columns_moments(job, every) == 0
            if ok:
                for i in range(count):
                    finish(job, i, every + i)
        if ok:
            for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
                normalize_cell_alone(job, &a, u, memory)
    free(memory)
    free(parts)
    free(every)
    return 0 if ok else -1


# ---- backward ----
# sums[2k], sums[2k+1] = Σdy, Σdy·(x - mean) of channel k of each sample; a cell's own lie in parts, in the same order.

cdef void sum_cell(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, double *parts) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    cdef Py_ssize_t j, k
    cdef double low[2]
    for j in range(z.width):
        s.sum[j] = s.lost[j] = 0
    norms_of_cell(job, a, &z, s.norms)
    job.ops.col_grad_sums(job.dy + z.offset, job.x + z.offset, at(job.residual, z.offset), z.rows, z.width, a.width, s.norms,
                          job.post, job.flags, s.sum, s.lost)
    for k in range(z.width // job.post):
        parts[2 * k] = parts[2 * k + 1] = low[0] = low[1] = 0
        for j in range(k * job.post, (k + 1) * job.post):
            fn_accumulate(parts + 2 * k, low, s.sum[j])
            fn_accumulate(parts + 2 * k + 1, low + 1, s.lost[j])
        parts[2 * k] += low[0]
        parts[2 * k + 1] += low[1]


cdef void merge_sums(const Job *job, const Matrix *a, Py_ssize_t v, const double *parts, double *sums, double *totals) noexcept nogil:
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Py_ssize_t band, i, k, stride = 2 * (a.tile // job.post), channels = a.segment // job.post
    cdef Py_ssize_t first = z.first // job.post, sample = z.statistic // a.statistics
    cdef double *mine = sums + 2 * (sample * job.c + first)
    cdef double *total
    cdef double gamma
    cdef double low[2]
    for k in range(2 * (z.width // job.post)):
        mine[k] = 0
        for band in range(a.bands):
            mine[k] += parts[(v * a.bands + band) * stride + k]
    for i in range(z.statistics):
        total = totals + 2 * (z.statistic + i)
        total[0] = total[1] = low[0] = low[1] = 0
        for k in range(i * channels, (i + 1) * channels):
            gamma = job.gamma[first + k] if job.gamma != NULL else 1
            fn_accumulate(total, low, gamma * mine[2 * k])
            fn_accumulate(total + 1, low + 1, gamma * mine[2 * k + 1])
        total[0] += low[0]
        total[1] += low[1]


cdef void differentiate_cell(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, const double *totals) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    cdef Py_ssize_t k, i, per_statistic = a.segment // job.post
    norms_of_cell(job, a, &z, s.norms)
    for k in range(z.width // job.post):
        i = z.statistic + k // per_statistic
        s.grads[k] = grad_of(job, i, z.first // job.post + k, totals[2 * i], totals[2 * i + 1])
    job.ops.col_grad_apply(job.dy + z.offset, job.x + z.offset, at(job.residual, z.offset), job.y + z.offset,
                           <char *> at(job.dresidual, z.offset), z.rows, z.width, a.width, s.norms, s.grads, job.post, job.flags)


cdef void backward_tile(const Job *job, const Matrix *a, Py_ssize_t v, char *memory, double *parts, double *sums,
                        double *totals) noexcept nogil:
    cdef Py_ssize_t u, stride = 2 * (a.tile // job.post)
    for u in range(v * a.bands, (v + 1) * a.bands):
        sum_cell(job, a, u, memory, parts + u * stride)
    merge_sums(job, a, v, parts, sums, totals)
    for u in range(v * a.bands, (v + 1) * a.bands):
        differentiate_cell(job, a, u, memory, totals)


cdef int columns_backward(const Job *job) noexcept nogil:
    cdef Matrix a = matrix_of(job)
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t u, v, c, tiles = a.samples * a.tiles, count = statistic_count(job), stride = 2 * (a.tile // job.post)
    cdef Py_ssize_t per_channel = a.samples * job.c
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef double *sums = <double *> malloc(2 * (per_channel + count) * sizeof(double))
    cdef double *parts = <double *> malloc(tiles * a.bands * stride * sizeof(double))
    cdef double *totals = sums + 2 * per_channel
    cdef bint ok = memory != NULL and sums != NULL and parts != NULL
    if ok and (threads == 1 or tiles >= 4 * threads):
        for v in prange(tiles, schedule="static", num_threads=threads, use_threads_if=threads > 1):
            backward_tile(job, &a, v, memory, parts, sums, totals)
    elif ok:
        for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
            sum_cell(job, &a, u, memory, parts + u * stride)
        for v in range(tiles):
            merge_sums(job, &a, v, parts, sums, totals)
        for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
            differentiate_cell(job, &a, u, memory, totals)
    if ok:
        for c in range(job.c):
            job.dgamma[c] = job.dbeta[c] = 0
        for u in range(per_channel):
            job.dgamma[u % job.c] += sums[2 * u + 1] * job.rstd[u // (a.segment // job.post)]
            job.dbeta[u % job.c] += sums[2 * u]
    free(memory)
    free(sums)
    free(parts)
    return 0 if ok else -1
