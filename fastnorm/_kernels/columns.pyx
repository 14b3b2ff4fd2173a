"""Batch, group and instance norm where statistics lie side by side in every row of a matrix.

Design. Channels-last images and (N, C) arrays are matrices whose columns are channels; batch norm over spans too short to be
worth a horizontal sum is one whose columns are pixels, `post` to a channel. A statistic owns `segment` neighbouring columns.

The matrix is cut into tiles of whole statistics and bands of rows, by shape alone. A band of a tile stays in L2: its column
sums give each statistic's centre, a second look gives the squares about it, and bands are merged in order. A tile is
normalized right after its reduction, the last band, still in cache, first; when there are too few tiles for the threads, all
threads first reduce bands, then normalize them.
"""
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

from fastnorm._kernels.c cimport (
    fn_column_grads, fn_column_means, fn_column_squares, fn_grad, fn_moments, fn_norm, fn_pool, fn_sums, fn_sums_add,
    omp_get_thread_num,
)
from fastnorm._kernels.core cimport threads_for
from fastnorm._kernels.job cimport (
    Job, add_parameter_gradients, ceil_div, element_count, finish, grad_of, least, norm_of, statistic_count, statistic_size,
    weigh,
)

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
    double *sum  # a column's sum, and what it lost
    double *sum_lo
    double *mean  # or its second sum
    double *mean_lo
    fn_norm *norms
    fn_grad *grads


cdef inline Py_ssize_t scratch_size(const Matrix *a) noexcept nogil:
    return a.tile * 4 * sizeof(double) + a.channels * (sizeof(fn_norm) + sizeof(fn_grad)) + 64


cdef inline Scratch scratch_of(const Matrix *a, char *memory) noexcept nogil:
    cdef Scratch s
    cdef char *mine = memory + omp_get_thread_num() * scratch_size(a)
    s.sum = <double *> mine
    s.sum_lo = s.sum + a.tile
    s.mean = s.sum_lo + a.tile
    s.mean_lo = s.mean + a.tile
    s.grads = <fn_grad *> (s.mean_lo + a.tile)
    s.norms = <fn_norm *> (s.grads + a.channels)
    return s


# ---- moments ----

cdef void reduce_cell(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, fn_moments *out) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    job.ops.col_sums(job.x + z.offset, z.rows, z.width, a.width, s.sum, s.sum_lo)
    fn_column_means(s.sum, s.sum_lo, z.statistics, a.segment, <double> (z.rows * a.segment), out, s.mean)
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
    cdef Py_ssize_t i, k, per_statistic = a.segment // job.post, first = z.first // job.post
    cdef double m = statistic_size(job)
    for i in range(z.statistics):
        for k in range(i * per_statistic, (i + 1) * per_statistic):
            p[k] = norm_of(job, z.statistic + i, first + k, m)


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
    for u in range((v + 1) * a.bands - 1, v * a.bands - 1, -1):
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
# sums[k] = Σdy, Σdy·(x - mean) of channel k of each sample; a cell's own lie in parts, in the same order.

# s.norms holds the numbers of the cell's tile.
cdef void sum_cell(const Job *job, const Matrix *a, Py_ssize_t u, Scratch s, fn_sums *parts) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    job.ops.col_grad_sums(job.dy + z.offset, job.x + z.offset, at(job.residual, z.offset), z.rows, z.width, a.width, s.norms,
                          job.post, job.flags, s.sum, s.sum_lo, s.mean, s.mean_lo)
    fn_column_grads(s.sum, s.sum_lo, s.mean, s.mean_lo, z.width // job.post, job.post, parts)


cdef void merge_sums(const Job *job, const Matrix *a, Py_ssize_t v, const fn_sums *parts, fn_sums *sums, fn_sums *totals) noexcept nogil:
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Py_ssize_t band, i, k, channels = a.segment // job.post, first = z.first // job.post
    cdef const fn_sums *mine = parts + v * a.bands * a.channels
    sums += z.statistic // a.statistics * job.c + first
    for k in range(z.width // job.post):
        sums[k] = mine[k]
        for band in range(1, a.bands):
            fn_sums_add(sums + k, mine + band * a.channels + k)
    for i in range(z.statistics):
        totals[z.statistic + i] = weigh(job, first + i * channels, channels, sums + i * channels)


# dx's numbers of each channel in a cell's tile.
cdef void grads_of_cell(const Job *job, const Matrix *a, const Cell *z, const fn_sums *totals, fn_grad *g) noexcept nogil:
    cdef Py_ssize_t i, k, per_statistic = a.segment // job.post, first = z.first // job.post
    cdef double m = statistic_size(job)
    for i in range(z.statistics):
        for k in range(i * per_statistic, (i + 1) * per_statistic):
            g[k] = grad_of(job, z.statistic + i, first + k, m, totals + z.statistic + i)


cdef void differentiate_cell(const Job *job, const Matrix *a, Py_ssize_t u, Scratch s) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    job.ops.col_grad_apply(job.dy + z.offset, job.x + z.offset, at(job.residual, z.offset), job.y + z.offset,
                           <char *> at(job.dresidual, z.offset), z.rows, z.width, a.width, s.norms, s.grads, job.post, job.flags)


cdef void backward_tile(const Job *job, const Matrix *a, Py_ssize_t v, char *memory, fn_sums *parts, fn_sums *sums,
                        fn_sums *totals) noexcept nogil:
    cdef Py_ssize_t u
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Scratch s = scratch_of(a, memory)
    norms_of_cell(job, a, &z, s.norms)
    for u in range(v * a.bands, (v + 1) * a.bands):
        sum_cell(job, a, u, s, parts + u * a.channels)
    merge_sums(job, a, v, parts, sums, totals)
    grads_of_cell(job, a, &z, totals, s.grads)
    for u in range((v + 1) * a.bands - 1, v * a.bands - 1, -1):
        differentiate_cell(job, a, u, s)


cdef void sum_cell_alone(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, fn_sums *parts) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    norms_of_cell(job, a, &z, s.norms)
    sum_cell(job, a, u, s, parts)


cdef void differentiate_cell_alone(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, const fn_sums *totals) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    norms_of_cell(job, a, &z, s.norms)
    grads_of_cell(job, a, &z, totals, s.grads)
    differentiate_cell(job, a, u, s)


cdef int columns_backward(const Job *job) noexcept nogil:
    cdef Matrix a = matrix_of(job)
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t u, v, tiles = a.samples * a.tiles, per_channel = a.samples * job.c
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef fn_sums *sums = <fn_sums *> malloc((per_channel + statistic_count(job)) * sizeof(fn_sums))
    cdef fn_sums *parts = <fn_sums *> malloc(tiles * a.bands * a.channels * sizeof(fn_sums))
    cdef fn_sums *totals = sums + per_channel
    cdef bint ok = memory != NULL and sums != NULL and parts != NULL
    if ok and (threads == 1 or tiles >= 4 * threads):
        for v in prange(tiles, schedule="static", num_threads=threads, use_threads_if=threads > 1):
            backward_tile(job, &a, v, memory, parts, sums, totals)
    elif ok:
        for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
            sum_cell_alone(job, &a, u, memory, parts + u * a.channels)
        for v in range(tiles):
            merge_sums(job, &a, v, parts, sums, totals)
        for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
            differentiate_cell_alone(job, &a, u, memory, totals)
    if ok:
        add_parameter_gradients(job, sums, a.samples, a.segment // job.post)
    free(memory)
    free(sums)
    free(parts)
    return 0 if ok else -1
