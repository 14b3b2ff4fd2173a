"""Batch, group and instance norm where statistics lie side by side in every row of a matrix.

Design. Channels-last images and (N, C) arrays are matrices whose columns are channels; batch norm over spans too short to be
worth a horizontal sum is one whose columns are pixels, `post` to a channel. A statistic owns `segment` neighbouring columns.

The matrix is cut into tiles of whole statistics and bands of rows, by shape alone. A band of a tile stays in L2: its column
sums give each statistic's centre, a second look gives the squares about it, and bands are merged in order. A tile is
normalized right after its reduction, the last band, still in cache, first; when there are too few tiles for the threads, all
threads first reduce bands, then normalize them.

What is known of statistics and channels lies in arrays, one for each kind of number, so that the arithmetic per channel runs in
vectors too (csrc/channels.h).
"""
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastnorm._kernels.c cimport (
    fn_grads, fn_moments, fn_norms, fn_planes, fn_sums, fn_sums_weigh, omp_get_thread_num,
)
from fastnorm._kernels.core cimport threads_for
from fastnorm._kernels.job cimport Job, ceil_div, element_count, least, most, statistic_count, statistic_size

cdef enum:
    BAND_ELEMENTS = 131072  # a band of 512 KB of float32 is in L2, or nearly, for the second look
    NEAR_ELEMENTS = 65536  # a tile of one band, with its dy and dx, is in L2
    NARROWEST = 256  # columns: a quarter of a page in a row
    WIDEST = 2048  # columns: two pages of a row, so that memory is walked in long strides; more would leave too few rows in L2


# One matrix per sample (one in all for batch norm), `statistics` to a row.
ctypedef struct Matrix:
    Py_ssize_t samples, rows, width, segment, statistics
    Py_ssize_t tile, tiles  # columns in a tile; tiles in a matrix
    Py_ssize_t band, bands  # rows in a band; bands in a matrix
    Py_ssize_t in_tile, channels  # statistics, and channels, in a tile


# Statistics to a tile of at most `columns`, in whole cache lines (of half types too); with the tiles nearly equal where they can be.
cdef inline Py_ssize_t in_tile(const Matrix *a, Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t n = ceil_div(a.statistics, ceil_div(a.width, columns))
    while n < a.statistics and n * a.segment % 32 != 0:
        n += 1
    if n * a.segment > columns:
        n = columns // a.segment
        while n > 1 and n * a.segment % 32 != 0:
            n -= 1
    return least(a.statistics, most(n, 1))


cdef Matrix matrix_of(const Job *job) noexcept nogil:
    cdef Matrix a
    cdef Py_ssize_t columns, height, bands
    if job.groups == 0:
        a.samples, a.rows, a.segment = 1, job.n * job.pre, job.post
    else:
        a.samples, a.rows, a.segment = job.n, job.pre, job.c // job.groups * job.post
    a.width = job.c * job.post
    a.statistics = a.width // a.segment
    columns = WIDEST
    # Bands, and with them the bits, are cut by shape alone.
    height = most(16, least(4096, BAND_ELEMENTS // (a.segment * in_tile(&a, columns))))
    bands = most(1, (a.rows + height // 2) // height)
    a.band = ceil_div(ceil_div(a.rows, bands), 8) * 8  # of nearly equal height
    a.bands = ceil_div(a.rows, a.band)
    # The tiles of a single band are narrower, so that each stays near; by shape too, as a tile's last columns are done singly.
    if a.bands == 1:
        columns = most(NARROWEST, NEAR_ELEMENTS // a.rows)
    a.in_tile = in_tile(&a, columns)
    a.tile = a.in_tile * a.segment
    a.tiles = ceil_div(a.statistics, a.in_tile)
    a.channels = a.tile // job.post
    return a


# Are whole tiles shared out evenly enough? If not, the threads share bands.
cdef inline bint fills(int threads, Py_ssize_t tiles) noexcept nogil:
    return tiles % threads == 0 or tiles >= 4 * threads


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


# ---- memory ----

# One number per statistic in each array.
ctypedef struct Stats:
    double *sum
    double *sum_lo
    double *mean
    double *mean_lo
    double *m2


cdef inline Stats stats_of(double *memory, Py_ssize_t count) noexcept nogil:
    return Stats(memory, memory + count, memory + 2 * count, memory + 3 * count, memory + 4 * count)


cdef inline Stats stats_from(Stats s, Py_ssize_t i) noexcept nogil:
    return Stats(s.sum + i, s.sum_lo + i, s.mean + i, s.mean_lo + i, s.m2 + i)


# The moments of cell u's statistics.
cdef inline Stats part_of(const Matrix *a, double *parts, Py_ssize_t u) noexcept nogil:
    return stats_of(parts + 5 * u * a.in_tile, a.in_tile)


cdef inline fn_planes planes_of(double *memory, Py_ssize_t count) noexcept nogil:
    return fn_planes(memory, memory + count, memory + 2 * count, memory + 3 * count)


cdef inline fn_planes planes_from(fn_planes s, Py_ssize_t i) noexcept nogil:
    return fn_planes(s.sum + i, s.sum_lo + i, s.dot + i, s.dot_lo + i)


# What a thread needs for one tile.
ctypedef struct Scratch:
    fn_planes columns
    Stats runs  # of a statistic's columns
    fn_planes totals  # of a statistic's channels
    fn_norms norms
    fn_grads grads
    double *channels  # SPREAD arrays with a number per channel


cdef enum:
    SPREAD = 7  # mean, mean_lo, var, rstd, scale, b, c


cdef inline Py_ssize_t scratch_size(const Matrix *a) noexcept nogil:
    return (4 * a.tile + 9 * a.in_tile + SPREAD * a.channels + 8) * sizeof(double)


cdef inline Scratch scratch_of(const Matrix *a, char *memory) noexcept nogil:
    cdef Scratch s
    cdef double *mine = <double *> (memory + omp_get_thread_num() * scratch_size(a))
    s.columns = planes_of(mine, a.tile)
    s.runs = stats_of(mine + 4 * a.tile, a.in_tile)
    s.totals = planes_of(mine + 4 * a.tile + 5 * a.in_tile, a.in_tile)
    s.channels = mine + 4 * a.tile + 9 * a.in_tile
    return s


# One number per statistic becomes one per channel, `each` to a statistic; the array itself where each has one channel.
cdef inline const double *spread(const double *x, Py_ssize_t count, Py_ssize_t each, double *to) noexcept nogil:
    cdef Py_ssize_t i, k
    if each == 1:
        return x
    for i in range(count):
        for k in range(i * each, (i + 1) * each):
            to[k] = x[i]
    return to


# ---- moments ----

cdef void reduce_cell(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, Stats out) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    cdef double n = <double> (z.rows * a.segment)
    if a.segment == 1:
        job.ops.col_sums(job.x + z.offset, z.rows, z.width, a.width, out.sum, out.sum_lo)
        job.ops.channels.means(out.sum, out.sum_lo, n, z.statistics, out.mean, out.mean_lo)
        job.ops.col_squares(job.x + z.offset, z.rows, z.width, a.width, out.mean, out.m2)
        job.ops.channels.recentre(out.m2, NULL, out.mean_lo, n, z.statistics)
        return
    job.ops.col_sums(job.x + z.offset, z.rows, z.width, a.width, s.columns.sum, s.columns.sum_lo)
    job.ops.channels.add_runs(s.columns.sum, s.columns.sum_lo, a.segment, z.statistics, out.sum, out.sum_lo)
    job.ops.channels.means(out.sum, out.sum_lo, n, z.statistics, out.mean, out.mean_lo)
    spread(out.mean, z.statistics, a.segment, s.columns.dot)
    job.ops.col_squares(job.x + z.offset, z.rows, z.width, a.width, s.columns.dot, s.columns.sum)
    job.ops.channels.add_runs(s.columns.sum, NULL, a.segment, z.statistics, out.m2, s.runs.m2)
    job.ops.channels.recentre(out.m2, s.runs.m2, out.mean_lo, n, z.statistics)


# The bands of tile v (of samples × tiles) into its statistics: sums added, squares moved to the common mean.
cdef void merge_bands(const Job *job, const Matrix *a, Py_ssize_t v, char *memory, double *parts, Stats out) noexcept nogil:
    cdef Py_ssize_t u
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Scratch s = scratch_of(a, memory)
    cdef Stats part
    cdef size_t size = z.statistics * sizeof(double)
    cdef double rows = <double> a.rows
    memset(out.sum, 0, size)
    memset(out.sum_lo, 0, size)
    memset(s.runs.sum, 0, size)
    memset(s.runs.sum_lo, 0, size)
    for u in range(v * a.bands, (v + 1) * a.bands):
        part = part_of(a, parts, u)
        job.ops.channels.accumulate(part.sum, part.sum_lo, NULL, z.statistics, out.sum, out.sum_lo)
    job.ops.channels.means(out.sum, out.sum_lo, rows * <double> a.segment, z.statistics, out.mean, out.mean_lo)
    for u in range(v * a.bands, (v + 1) * a.bands):
        part = part_of(a, parts, u)
        z = cell_of(job, a, u)
        job.ops.channels.pool_squares(part.m2, part.mean, part.mean_lo, <double> (z.rows * a.segment), out.mean, out.mean_lo,
                                      z.statistics, s.runs.sum, s.runs.sum_lo)
    job.ops.channels.collapse(s.runs.sum, s.runs.sum_lo, z.statistics, out.m2)


cdef void moments_of_tile(const Job *job, const Matrix *a, Py_ssize_t v, char *memory, double *parts, Stats out) noexcept nogil:
    cdef Py_ssize_t u
    if a.bands == 1:
        reduce_cell(job, a, v, memory, out)
        return
    for u in range(v * a.bands, (v + 1) * a.bands):
        reduce_cell(job, a, u, memory, part_of(a, parts, u))
    merge_bands(job, a, v, memory, parts, out)


# The moments of every statistic; all threads share the cells.
cdef int every_moment(const Job *job, const Matrix *a, int threads, char *memory, Stats out) noexcept nogil:
    cdef Py_ssize_t u, v, tiles = a.samples * a.tiles
    cdef double *parts = <double *> malloc(5 * tiles * a.bands * a.in_tile * sizeof(double))
    if parts == NULL:
        return -1
    for u in prange(tiles * a.bands, schedule="static", num_threads=threads, use_threads_if=threads > 1):
        reduce_cell(job, a, u, memory, part_of(a, parts, u))
    for v in range(tiles):
        u = cell_of(job, a, v * a.bands).statistic
        if a.bands == 1:
            copy_stats(part_of(a, parts, v), cell_of(job, a, v).statistics, stats_from(out, u))
        else:
            merge_bands(job, a, v, memory, parts, stats_from(out, u))
    free(parts)
    return 0


cdef void copy_stats(Stats s, Py_ssize_t count, Stats to) noexcept nogil:
    cdef size_t size = count * sizeof(double)
    memcpy(to.sum, s.sum, size)
    memcpy(to.sum_lo, s.sum_lo, size)
    memcpy(to.mean, s.mean, size)
    memcpy(to.mean_lo, s.mean_lo, size)
    memcpy(to.m2, s.m2, size)


cdef int columns_moments(const Job *job, fn_moments *out) noexcept nogil:
    cdef int threads = threads_for(element_count(job)), failed = -1
    cdef Matrix a = matrix_of(job)
    cdef Py_ssize_t i, count = statistic_count(job)
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef double *numbers = <double *> malloc(5 * count * sizeof(double))
    cdef Stats s = stats_of(numbers, count)
    if memory != NULL and numbers != NULL:
        failed = every_moment(job, &a, threads, memory, s)
    if not failed:
        for i in range(count):
            out[i] = fn_moments(statistic_size(job), s.sum[i], s.sum_lo[i], s.mean[i], s.mean_lo[i], s.m2[i])
    free(memory)
    free(numbers)
    return failed


# ---- forward ----

# The moments land in the job's own arrays: m2 where the variance will be. Only the sums are elsewhere.
cdef inline Stats stats_in(const Job *job, double *sums) noexcept nogil:
    return Stats(sums, sums + statistic_count(job), job.mean, job.mean_lo, job.var)


cdef inline void finish(const Job *job, Py_ssize_t i, Py_ssize_t count) noexcept nogil:
    job.ops.channels.finish(job.var + i, statistic_size(job), job.eps, count, job.var + i, job.rstd + i)


# The numbers of each channel in a cell's tile: y = (x - mean)·(gamma·rstd) + beta.
cdef fn_norms norms_of_cell(const Job *job, const Matrix *a, const Cell *z, const Scratch *s) noexcept nogil:
    cdef fn_norms p
    cdef Py_ssize_t n = a.channels, each = a.segment // job.post, first = z.first // job.post, i = z.statistic
    p.mean = spread(job.mean + i, z.statistics, each, s.channels)
    p.mean_lo = spread(job.mean_lo + i, z.statistics, each, s.channels + n)
    p.var = spread(job.var + i, z.statistics, each, s.channels + 2 * n)
    p.scale = spread(job.rstd + i, z.statistics, each, s.channels + 3 * n)
    p.shift = job.beta + first if job.beta != NULL else NULL
    p.number = statistic_size(job)
    if job.gamma != NULL:
        job.ops.channels.multiply(p.scale, job.gamma + first, z.width // job.post, s.channels + 4 * n)
        p.scale = s.channels + 4 * n
    return p


cdef void normalize_cell(const Job *job, const Matrix *a, Py_ssize_t u, const fn_norms *p) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    job.ops.col_affine(job.x + z.offset, at(job.residual, z.offset), job.y + z.offset, z.rows, z.width, a.width, p,
                       job.post, job.flags)


cdef void normalize_cell_alone(const Job *job, const Matrix *a, Py_ssize_t u, char *memory) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    s.norms = norms_of_cell(job, a, &z, &s)
    normalize_cell(job, a, u, &s.norms)


cdef void forward_tile(const Job *job, const Matrix *a, Py_ssize_t v, char *memory, double *parts, double *sums) noexcept nogil:
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Scratch s = scratch_of(a, memory)
    cdef Py_ssize_t u
    if not job.given:
        moments_of_tile(job, a, v, memory, parts, stats_from(stats_in(job, sums), z.statistic))
        finish(job, z.statistic, z.statistics)
    s.norms = norms_of_cell(job, a, &z, &s)
    for u in range((v + 1) * a.bands - 1, v * a.bands - 1, -1):
        normalize_cell(job, a, u, &s.norms)


cdef int columns_forward(const Job *job) noexcept nogil:
    cdef int threads = threads_for(element_count(job))
    cdef Matrix a = matrix_of(job)
    cdef Py_ssize_t u, v, tiles = a.samples * a.tiles, count = statistic_count(job)
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef double *parts = NULL
    cdef double *sums = NULL
    cdef bint whole_tiles = fills(threads, tiles), ok = memory != NULL
    if not job.given:
        sums = <double *> malloc(2 * count * sizeof(double))
        ok = ok and sums != NULL
        if whole_tiles and a.bands > 1:
            parts = <double *> malloc(5 * tiles * a.bands * a.in_tile * sizeof(double))
            ok = ok and parts != NULL
    if ok and whole_tiles:
        for v in prange(tiles, schedule="static", num_threads=threads, use_threads_if=threads > 1):
            forward_tile(job, &a, v, memory, parts, sums)
    elif ok:
        if not job.given:
            ok = every_moment(job, &a, threads, memory, stats_in(job, sums)) == 0
            if ok:
                finish(job, 0, count)
        if ok:
            for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
                normalize_cell_alone(job, &a, u, memory)
    free(memory)
    free(parts)
    free(sums)
    return 0 if ok else -1


# ---- backward ----
# Σdy and Σdy·(x - mean) of channel k of each sample; a cell's own lie in parts, in the same order.

# p holds the numbers of the cell's tile.
cdef void sum_cell(const Job *job, const Matrix *a, Py_ssize_t u, const fn_norms *p, char *memory, fn_planes out) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    cdef fn_planes to = out if job.post == 1 else s.columns
    cdef Py_ssize_t channels = z.width // job.post
    job.ops.col_grad_sums(job.dy + z.offset, job.x + z.offset, at(job.residual, z.offset), z.rows, z.width, a.width, p, job.post,
                          job.flags, to)
    if job.post > 1:
        job.ops.channels.add_runs(to.sum, to.sum_lo, job.post, channels, out.sum, out.sum_lo)
        job.ops.channels.add_runs(to.dot, to.dot_lo, job.post, channels, out.dot, out.dot_lo)


cdef inline fn_planes sums_part(const Matrix *a, double *parts, Py_ssize_t u) noexcept nogil:
    return planes_of(parts + 4 * u * a.channels, a.channels)


# The sums of a cell's channels among all.
cdef inline fn_planes sums_at(const Job *job, const Matrix *a, const Cell *z, fn_planes sums) noexcept nogil:
    return planes_from(sums, z.statistic // a.statistics * job.c + z.first // job.post)


cdef void merge_sums(const Job *job, const Matrix *a, Py_ssize_t v, double *parts, fn_planes sums) noexcept nogil:
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Py_ssize_t u, channels = z.width // job.post
    cdef size_t size = channels * sizeof(double)
    cdef fn_planes to = sums_at(job, a, &z, sums), part = sums_part(a, parts, v * a.bands)
    memcpy(to.sum, part.sum, size)
    memcpy(to.sum_lo, part.sum_lo, size)
    memcpy(to.dot, part.dot, size)
    memcpy(to.dot_lo, part.dot_lo, size)
    for u in range(v * a.bands + 1, (v + 1) * a.bands):
        part = sums_part(a, parts, u)
        job.ops.channels.accumulate(part.sum, part.sum_lo, NULL, channels, to.sum, to.sum_lo)
        job.ops.channels.accumulate(part.dot, part.dot_lo, NULL, channels, to.dot, to.dot_lo)


# Σγ·dy and Σγ·dy·(x - mean) of a tile's statistics, each of several channels.
cdef void weigh(const Job *job, const Matrix *a, const Cell *z, fn_planes sums, fn_planes totals) noexcept nogil:
    cdef Py_ssize_t i, k, each = a.segment // job.post, first = z.first // job.post
    cdef fn_sums one, total
    for i in range(z.statistics):
        total = fn_sums(0, 0, 0, 0)
        for k in range(i * each, (i + 1) * each):
            one = fn_sums(sums.sum[k], sums.sum_lo[k], sums.dot[k], sums.dot_lo[k])
            fn_sums_weigh(&total, job.gamma[first + k] if job.gamma != NULL else 1, &one)
        totals.sum[i], totals.sum_lo[i], totals.dot[i], totals.dot_lo[i] = total.sum, total.sum_lo, total.dot, total.dot_lo


# dx's numbers of each channel in a cell's tile: dx = a·dy + b·(x - mean) + c.
cdef fn_grads grads_of_cell(const Job *job, const Matrix *a, const Cell *z, const Scratch *s, fn_planes sums) noexcept nogil:
    cdef fn_grads g
    cdef Py_ssize_t n = a.channels, each = a.segment // job.post
    cdef double *b = s.channels + 5 * n
    cdef double *c = s.channels + 6 * n
    cdef double m = statistic_size(job)
    g.a = s.norms.scale
    if job.given:
        memset(b, 0, n * sizeof(double))
        memset(c, 0, n * sizeof(double))
        g.b, g.c = b, c
    elif each == 1:
        job.ops.channels.slopes(sums, job.gamma + z.first // job.post if job.gamma != NULL else NULL, job.rstd + z.statistic, m,
                                z.statistics, b, c)
        g.b, g.c = b, c
    else:
        weigh(job, a, z, sums, s.totals)
        job.ops.channels.slopes(s.totals, NULL, job.rstd + z.statistic, m, z.statistics, s.runs.sum, s.runs.sum_lo)
        g.b = spread(s.runs.sum, z.statistics, each, b)
        g.c = spread(s.runs.sum_lo, z.statistics, each, c)
    return g


cdef void differentiate_cell(const Job *job, const Matrix *a, Py_ssize_t u, const Scratch *s) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    job.ops.col_grad_apply(job.dy + z.offset, job.x + z.offset, at(job.residual, z.offset), job.y + z.offset,
                           <char *> at(job.dresidual, z.offset), z.rows, z.width, a.width, &s.norms, &s.grads, job.post, job.flags)


cdef void backward_tile(const Job *job, const Matrix *a, Py_ssize_t v, char *memory, double *parts, fn_planes sums) noexcept nogil:
    cdef Py_ssize_t u
    cdef Cell z = cell_of(job, a, v * a.bands)
    cdef Scratch s = scratch_of(a, memory)
    s.norms = norms_of_cell(job, a, &z, &s)
    if a.bands == 1:
        sum_cell(job, a, v, &s.norms, memory, sums_at(job, a, &z, sums))
    else:
        for u in range(v * a.bands, (v + 1) * a.bands):
            sum_cell(job, a, u, &s.norms, memory, sums_part(a, parts, u))
        merge_sums(job, a, v, parts, sums)
    s.grads = grads_of_cell(job, a, &z, &s, sums_at(job, a, &z, sums))
    for u in range((v + 1) * a.bands - 1, v * a.bands - 1, -1):
        differentiate_cell(job, a, u, &s)


cdef void sum_cell_alone(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, double *parts) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    s.norms = norms_of_cell(job, a, &z, &s)
    sum_cell(job, a, u, &s.norms, memory, sums_part(a, parts, u))


cdef void differentiate_cell_alone(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, fn_planes sums) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    s.norms = norms_of_cell(job, a, &z, &s)
    s.grads = grads_of_cell(job, a, &z, &s, sums_at(job, a, &z, sums))
    differentiate_cell(job, a, u, &s)


# dgamma = Σ dy·xhat and dbeta = Σ dy from the sums of the channels of each sample; `numbers` has room for five per channel.
cdef void parameter_gradients(const Job *job, const Matrix *a, fn_planes sums, double *numbers) noexcept nogil:
    cdef Py_ssize_t n, each = a.segment // job.post
    cdef fn_planes one, total = planes_of(numbers, job.c)
    cdef const double *rstd
    memset(numbers, 0, 4 * job.c * sizeof(double))
    for n in range(a.samples):
        one = planes_from(sums, n * job.c)
        rstd = spread(job.rstd + n * a.statistics, a.statistics, each, numbers + 4 * job.c)
        job.ops.channels.accumulate(one.dot, one.dot_lo, rstd, job.c, total.dot, total.dot_lo)
        job.ops.channels.accumulate(one.sum, one.sum_lo, NULL, job.c, total.sum, total.sum_lo)
    job.ops.channels.collapse(total.dot, total.dot_lo, job.c, job.dgamma)
    job.ops.channels.collapse(total.sum, total.sum_lo, job.c, job.dbeta)


cdef int columns_backward(const Job *job) noexcept nogil:
    cdef int threads = threads_for(element_count(job))
    cdef Matrix a = matrix_of(job)
    cdef Py_ssize_t u, v, tiles = a.samples * a.tiles, per_channel = a.samples * job.c
    cdef bint whole_tiles = fills(threads, tiles), ok
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef double *numbers = <double *> malloc((4 * per_channel + 5 * job.c) * sizeof(double))
    cdef double *parts = NULL
    cdef fn_planes sums = planes_of(numbers, per_channel)
    ok = memory != NULL and numbers != NULL
    if not whole_tiles or a.bands > 1:
        parts = <double *> malloc(4 * tiles * a.bands * a.channels * sizeof(double))
        ok = ok and parts != NULL
    if ok and whole_tiles:
        for v in prange(tiles, schedule="static", num_threads=threads, use_threads_if=threads > 1):
            backward_tile(job, &a, v, memory, parts, sums)
    elif ok:
        for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
            sum_cell_alone(job, &a, u, memory, parts)
        for v in range(tiles):
            merge_sums(job, &a, v, parts, sums)
        for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
            differentiate_cell_alone(job, &a, u, memory, sums)
    if ok:
        parameter_gradients(job, &a, sums, numbers + 4 * per_channel)
    free(memory)
    free(numbers)
    free(parts)
    return 0 if ok else -1
