"""A matrix of columns: how it is cut into tiles and bands, and the memory that a piece needs. For columns.pyx."""

from fastnorm._kernels.c cimport FN_NEXT, fn_grads, fn_norms, fn_planes
from fastnorm._kernels.core cimport l2_bytes, threads_for
from fastnorm._kernels.job cimport Job, ceil_div, element_count, least, most, place_among, planes_of

cdef enum:
    BAND_ELEMENTS = 131072  # a band of 512 KB of float32 is in L2, or nearly, for the second look
    NEAR_ELEMENTS = 65536  # a tile of one band, with its dy and dx, is in L2
    NARROWEST = 256  # columns: a quarter of a page in a row
    NARROW = 512  # columns: where L2 holds less, narrower tiles gain no more
    WHOLE_PAGE = 1024  # columns that are statistics of their own: halves of pages took up to 1.4 times as long
    WIDEST = 2048  # columns: two pages of a row, so that memory is walked in long strides; more would leave too few rows in L2
    HALVES = 32  # columns in a cache line of half types


# One matrix per sample (one in all for batch norm), `statistics` to a row.
ctypedef struct Matrix:
    Py_ssize_t samples, rows, width, segment, statistics
    Py_ssize_t tile, tiles  # columns in a tile; tiles in a matrix
    Py_ssize_t band, bands  # rows in a band; bands in a matrix
    Py_ssize_t in_tile, channels  # statistics, and channels, in a tile
    int threads
    int flags  # the job's; the next tile is fetched only where it finds room in L2 beside this one


# The least number of statistics, times a power of two, whose columns are a multiple of `line`.
cdef inline Py_ssize_t aligned(const Matrix *a, Py_ssize_t line) noexcept nogil:
    cdef Py_ssize_t n = 1
    while n * a.segment % line != 0:
        n *= 2
    return n


# Are tiles cut in whole lines? Unless that would make them too wide; the same for every type, as bits depend on it.
cdef inline bint in_lines(const Matrix *a) noexcept nogil:
    return aligned(a, HALVES) * a.segment <= WIDEST


# Statistics to a tile of about `columns`: with in_lines in whole lines of so many columns, and the tiles nearly equal where they can be.
cdef inline Py_ssize_t in_tile(const Matrix *a, Py_ssize_t columns, Py_ssize_t line) noexcept nogil:
    cdef Py_ssize_t n = ceil_div(a.statistics, ceil_div(a.width, columns)), whole = aligned(a, line)
    if not in_lines(a):
        return least(a.statistics, most(columns // a.segment, 1))
    n = ceil_div(n, whole) * whole
    if n * a.segment > columns:
        n = most(columns // a.segment // whole, 1) * whole
    return least(a.statistics, n)


cdef inline Matrix matrix_of(const Job *job) noexcept nogil:
    cdef Matrix a
    cdef Py_ssize_t columns, height, bands, arrays
    a.threads = threads_for(element_count(job))
    if job.groups == 0:
        a.samples, a.rows, a.segment = 1, job.n * job.pre, job.post
    else:
        a.samples, a.rows, a.segment = job.n, job.pre, job.c // job.groups * job.post
    a.width = job.c * job.post
    a.statistics = a.width // a.segment
    columns = WIDEST
    # Bands, and with them the bits, are cut by shape alone.
    height = most(16, least(4096, BAND_ELEMENTS // (a.segment * in_tile(&a, columns, HALVES))))
    bands = most(1, (a.rows + height // 2) // height)
    a.band = ceil_div(ceil_div(a.rows, bands), 8) * 8  # of nearly equal height
    a.bands = ceil_div(a.rows, a.band)
    # The tiles of a single band are narrower, so that each stays near. A tile's last columns are done singly, and have bits of their own:
    # tiles in whole lines have none but the matrix's last, and fit this processor's L2; others are cut by shape alone.
    if a.bands == 1:
        columns = most(WHOLE_PAGE if a.segment == 1 else NARROWEST, NEAR_ELEMENTS // a.rows)
        if in_lines(&a):
            columns = most(least(columns, WHOLE_PAGE if a.segment == 1 else NARROW), least(columns, l2_bytes() // 16 // a.rows))
    a.in_tile = in_tile(&a, columns, 64 // job.ops.itemsize)
    a.tile = a.in_tile * a.segment
    a.tiles = ceil_div(a.statistics, a.in_tile)
    a.channels = a.tile // job.post
    a.flags = job.flags
    arrays = 2 * (2 if job.dy != NULL else 1) + (1 if job.residual != NULL else 0)  # x and dy of both; what is streamed goes past L2
    if a.tiles > 1 and arrays * a.band * a.tile * job.ops.itemsize > l2_bytes():
        a.flags &= ~FN_NEXT
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
    cdef double *mine = <double *> (memory + place_among(a.threads) * scratch_size(a))
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
