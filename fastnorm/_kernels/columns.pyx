"""Batch, group and instance norm where statistics lie side by side in every row of a matrix.

Design. Channels-last images and (N, C) arrays are matrices whose columns are channels; batch norm over spans too short to be
worth a horizontal sum is one whose columns are pixels, `post` to a channel. A statistic owns `segment` neighbouring columns.

The matrix is cut into tiles of whole statistics and bands of rows, by shape alone. A band of a tile stays in L2 for the second
look that the squares of some statistics need (csrc/spans.h); bands are merged in order. A tile is
normalized right after its reduction, the last band, still in cache, first; when there are too few tiles for the threads, all
threads first reduce bands, then normalize them.

What is known of statistics and channels lies in arrays, one for each kind of number, so that the arithmetic per channel runs in
vectors too (csrc/channels.h).
"""
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastnorm._kernels.c cimport fn_grads, fn_moments, fn_norms, fn_planes, fn_sums, fn_sums_weigh
from fastnorm._kernels.job cimport Job, at, planes_from, planes_of, statistic_count, statistic_size
from fastnorm._kernels.matrix cimport (
    Cell, Matrix, Scratch, Stats, cell_of, fills, matrix_of, part_of, scratch_of, scratch_size, spread,
    stats_from, stats_of,
)

# ---- moments ----

cdef void reduce_cell(const Job *job, const Matrix *a, Py_ssize_t u, char *memory, Stats out) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    cdef Scratch s = scratch_of(a, memory)
    cdef double n = <double> (z.rows * a.segment)
    if a.segment == 1:
        job.ops.col_sums(job.x + z.offset, z.rows, z.width, a.width, job.flags, out.sum, out.sum_lo, out.m2, s.columns.dot)
        job.ops.channels.means(out.sum, out.sum_lo, n, z.statistics, out.mean, out.mean_lo)
        if not job.ops.channels.centre(out.m2, s.columns.dot, out.sum, out.sum_lo, out.mean, out.mean_lo, z.statistics):
            job.ops.col_squares(job.x + z.offset, z.rows, z.width, a.width, out.mean, s.columns.sum)
            job.ops.channels.recentre(s.columns.sum, NULL, out.mean_lo, n, z.statistics)
            job.ops.channels.mend(out.m2, s.columns.sum, z.statistics)
        return
    job.ops.col_sums(job.x + z.offset, z.rows, z.width, a.width, job.flags, s.columns.sum, s.columns.sum_lo, s.columns.dot,
                     s.columns.dot_lo)
    job.ops.channels.add_runs(s.columns.sum, s.columns.sum_lo, a.segment, z.statistics, out.sum, out.sum_lo)
    job.ops.channels.add_runs(s.columns.dot, s.columns.dot_lo, a.segment, z.statistics, out.m2, s.runs.m2)
    job.ops.channels.means(out.sum, out.sum_lo, n, z.statistics, out.mean, out.mean_lo)
    if not job.ops.channels.centre(out.m2, s.runs.m2, out.sum, out.sum_lo, out.mean, out.mean_lo, z.statistics):
        spread(out.mean, z.statistics, a.segment, s.columns.dot)
        job.ops.col_squares(job.x + z.offset, z.rows, z.width, a.width, s.columns.dot, s.columns.sum)
        job.ops.channels.add_runs(s.columns.sum, NULL, a.segment, z.statistics, s.runs.sum, s.runs.m2)
        job.ops.channels.recentre(s.runs.sum, s.runs.m2, out.mean_lo, n, z.statistics)
        job.ops.channels.mend(out.m2, s.runs.sum, z.statistics)


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


# Where the moments of cell u's statistics go: one band's are the statistics' own.
cdef inline Stats stats_of_cell(const Job *job, const Matrix *a, Py_ssize_t u, double *parts, Stats out) noexcept nogil:
    return stats_from(out, cell_of(job, a, u).statistic) if a.bands == 1 else part_of(a, parts, u)


# The moments of every statistic; all threads share the cells.
cdef int every_moment(const Job *job, const Matrix *a, int threads, char *memory, Stats out) noexcept nogil:
    cdef Py_ssize_t u, v, tiles = a.samples * a.tiles
    cdef double *parts = <double *> malloc((5 * tiles * a.bands * a.in_tile if a.bands > 1 else 1) * sizeof(double))
    if parts == NULL:
        return -1
    if threads == 1:
        for u in range(tiles * a.bands):
            reduce_cell(job, a, u, memory, stats_of_cell(job, a, u, parts, out))
    else:
        for u in prange(tiles * a.bands, schedule="static", num_threads=threads):
            reduce_cell(job, a, u, memory, stats_of_cell(job, a, u, parts, out))
    if a.bands > 1:
        for v in range(tiles):
            merge_bands(job, a, v, memory, parts, stats_from(out, cell_of(job, a, v * a.bands).statistic))
    free(parts)
    return 0


cdef int columns_moments(const Job *job, fn_moments *out) noexcept nogil:
    cdef Matrix a = matrix_of(job)
    cdef int threads = a.threads, failed = -1
    cdef Py_ssize_t i, count = statistic_count(job)
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef double *numbers = <double *> malloc(5 * count * sizeof(double))
    cdef Stats s = stats_of(numbers, count)
    if memory != NULL and numbers != NULL:
        failed = every_moment(job, &a, threads, memory, s)
    if not failed:
        for i in range(count):
            out[i] = fn_moments(statistic_size(job), s.sum[i], s.sum_lo[i], s.mean[i], s.mean_lo[i], s.m2[i], 0)
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
    p.number, p.given = statistic_size(job), job.given
    if job.gamma != NULL:
        job.ops.channels.multiply(p.scale, job.gamma + first, z.width // job.post, s.channels + 4 * n)
        p.scale = s.channels + 4 * n
    return p


cdef void normalize_cell(const Job *job, const Matrix *a, Py_ssize_t u, const fn_norms *p) noexcept nogil:
    cdef Cell z = cell_of(job, a, u)
    job.ops.col_affine(job.x + z.offset, at(job.residual, z.offset), job.y + z.offset, z.rows, z.width, a.width, p,
                       job.post, a.flags)


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
    cdef Matrix a = matrix_of(job)
    cdef int threads = a.threads
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
        if threads == 1:
            for v in range(tiles):
                forward_tile(job, &a, v, memory, parts, sums)
        else:
            for v in prange(tiles, schedule="static", num_threads=threads):
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
                           <char *> at(job.dresidual, z.offset), z.rows, z.width, a.width, &s.norms, &s.grads, job.post, a.flags)


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


# dgamma = Σ dy·xhat and dbeta = Σ dy from the sums of the channels of each sample, added to the first one's; `numbers` has room for
# one per channel.
cdef void parameter_gradients(const Job *job, const Matrix *a, fn_planes sums, double *numbers) noexcept nogil:
    cdef Py_ssize_t n, each = a.segment // job.post
    cdef fn_planes one
    cdef const double *rstd = spread(job.rstd, a.statistics, each, numbers)
    job.ops.channels.multiply(sums.dot, rstd, job.c, sums.dot)
    job.ops.channels.multiply(sums.dot_lo, rstd, job.c, sums.dot_lo)
    for n in range(1, a.samples):
        one = planes_from(sums, n * job.c)
        rstd = spread(job.rstd + n * a.statistics, a.statistics, each, numbers)
        job.ops.channels.accumulate(one.dot, one.dot_lo, rstd, job.c, sums.dot, sums.dot_lo)
        job.ops.channels.accumulate(one.sum, one.sum_lo, NULL, job.c, sums.sum, sums.sum_lo)
    job.ops.channels.collapse(sums.dot, sums.dot_lo, job.c, job.dgamma)
    job.ops.channels.collapse(sums.sum, sums.sum_lo, job.c, job.dbeta)


cdef int columns_backward(const Job *job) noexcept nogil:
    cdef Matrix a = matrix_of(job)
    cdef int threads = a.threads
    cdef Py_ssize_t u, v, tiles = a.samples * a.tiles, per_channel = a.samples * job.c
    cdef bint whole_tiles = fills(threads, tiles), ok
    cdef char *memory = <char *> malloc(threads * scratch_size(&a))
    cdef double *numbers = <double *> malloc((4 * per_channel + job.c) * sizeof(double))
    cdef double *parts = NULL
    cdef fn_planes sums = planes_of(numbers, per_channel)
    ok = memory != NULL and numbers != NULL
    if not whole_tiles or a.bands > 1:
        parts = <double *> malloc(4 * tiles * a.bands * a.channels * sizeof(double))
        ok = ok and parts != NULL
    if ok and whole_tiles:
        if threads == 1:
            for v in range(tiles):
                backward_tile(job, &a, v, memory, parts, sums)
        else:
            for v in prange(tiles, schedule="static", num_threads=threads):
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
