"""Batch, group and instance norm where a statistic owns whole spans of memory.

Design. Batch norm's channel c owns n·pre spans of `post` elements, a stride of c·post apart; group norm's group owns one span
of c/G·post. The loops take a statistic, reduce it, and normalize it while it is in cache; meanwhile the next one is fetched,
or in the backward of large tensors already summed, a few lines of each in turn.
When there are too few statistics for the threads, all threads first reduce slots of them, then normalize.

Reductions are cut into slots by shape alone and merged in order: threads decide only who fills a slot, so their number
never changes a bit.
"""
from cython.parallel cimport prange
from libc.stdlib cimport free, malloc

from fastnorm._kernels.c cimport (
    FN_STREAM, fn_channels, fn_grad, fn_merge, fn_moments, fn_norm, fn_spans, fn_sums, fn_sums_add,
)
from fastnorm._kernels.core cimport threads_for
from fastnorm._kernels.extent cimport (
    BESIDE, NEAR_BYTES, Before, Extent, ahead_of, block_size, by_turns, extent_of, flags_of, grad_before, in_one_call, many, norm_before,
    side_by_side, slot,
)
from fastnorm._kernels.job cimport (
    Job, at, add_parameter_gradients, ceil_div, channel_norm, channels_of, element_count, finish, grad_of, least, norm_of, shared_norm,
    statistic_count, statistic_size, weigh,
)

# ---- moments ----

cdef inline void reduce_piece(const Job *job, Py_ssize_t o, fn_spans piece, fn_moments *m) noexcept nogil:
    if job.lengths:  # a single span
        job.ops.row_moments(job.x + o, piece.len, 0, m)
    else:
        job.ops.moments(job.x + o, piece, m)


cdef void reduce_statistic(const Job *job, const Extent *e, Py_ssize_t i, fn_moments *m) noexcept nogil:
    cdef Py_ssize_t j, offset = 0
    cdef fn_moments part
    cdef fn_spans piece
    for j in range(e.slots):
        piece = slot(e.all, j, &offset)
        reduce_piece(job, (i * e.step + offset) * job.ops.itemsize, piece, m if j == 0 else &part)
        if j > 0:
            fn_merge(m, &part)


cdef void reduce_slot(const Job *job, const Extent *e, Py_ssize_t u, fn_moments *m) noexcept nogil:
    cdef Py_ssize_t offset = 0
    cdef fn_spans piece = slot(e.all, u % e.slots, &offset)
    reduce_piece(job, (u // e.slots * e.step + offset) * job.ops.itemsize, piece, m)


cdef int spans_moments(const Job *job, fn_moments *out) noexcept nogil:
    cdef Extent e = extent_of(job)
    cdef Py_ssize_t i, j, u, count = statistic_count(job)
    cdef int threads = threads_for(element_count(job))
    cdef fn_moments *parts
    if many(count, threads):
        if threads == 1:
            for i in range(count):
                reduce_statistic(job, &e, i, out + i)
        else:
            for i in prange(count, schedule="static", num_threads=threads):
                reduce_statistic(job, &e, i, out + i)
        return 0
    parts = <fn_moments *> malloc(count * e.slots * sizeof(fn_moments))
    if parts == NULL:
        return -1
    for u in prange(count * e.slots, schedule="static", num_threads=threads):
        reduce_slot(job, &e, u, parts + u)
    for i in range(count):
        out[i] = parts[i * e.slots]
        for j in range(1, e.slots):
            fn_merge(out + i, parts + i * e.slots + j)
    free(parts)
    return 0


# ---- forward ----

cdef void normalize_statistic(const Job *job, const Extent *e, Py_ssize_t i, Before *b, bint more) noexcept nogil:
    cdef Py_ssize_t k, first = i * e.channels % job.c, o = i * e.step * job.ops.itemsize
    cdef fn_norm shared = shared_norm(job, i, statistic_size(job)), p
    cdef fn_channels channels = channels_of(job, first, e.channels)
    if in_one_call(job, e):
        job.ops.group_affine(job.x + o, job.y + o, &channels, &shared, job.flags, ahead_of(job, e))
        return
    for k in range(e.channels):
        o = (i * e.step + k * job.post) * job.ops.itemsize
        p = channel_norm(job, &shared, first + k)
        b.left = job.ops.affine(job.x + o, at(job.residual, o), job.y + o, e.channel, &p,
                                flags_of(job, e, more or k + 1 < e.channels), ahead_of(job, e), norm_before(b))
        if b.left:
            b.norm = p


cdef void forward_beside(const Job *job, const Extent *e, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t u, i, k, n
    cdef Before b
    b.left = False
    for u in range(ceil_div(last - first, BESIDE)):
        i = first + u * BESIDE
        n = least(BESIDE, last - i)
        job.ops.moments_beside(job.x + i * e.step * job.ops.itemsize, n, e.all.len, job.mean + i, job.mean_lo + i, job.var + i)
        job.ops.channels.finish(job.var + i, statistic_size(job), job.eps, n, job.var + i, job.rstd + i)
        for k in range(i, i + n):
            normalize_statistic(job, e, k, &b, False)


cdef void forward_block(const Job *job, const Extent *e, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef fn_moments m
    cdef Before b
    cdef Py_ssize_t i
    # The next small statistic is reduced first, so that nobody waits for roots and divisions (0.9 of the time). The gradients of
    # four arrays took up to 1.2 times as long so, and those of what leaves L1.
    cdef bint ahead = e.all.len * e.all.count * job.ops.itemsize <= NEAR_BYTES and not job.flags & FN_STREAM
    b.left = False
    if side_by_side(job, e):
        forward_beside(job, e, first, last)
        return
    for i in range(first, last):
        if not ahead or i == first:
            reduce_statistic(job, e, i, &m)
        finish(job, i, &m)
        if ahead and i + 1 < last:
            reduce_statistic(job, e, i + 1, &m)
        normalize_statistic(job, e, i, &b, i + 1 < last)
    job.ops.fence()


# Slot u of the channels of all statistics.
cdef void normalize_slot(const Job *job, const Extent *e, Py_ssize_t u) noexcept nogil:
    cdef Py_ssize_t offset = 0, unit = u // e.channel_slots, i = unit // e.channels
    cdef fn_spans piece = slot(e.channel, u % e.channel_slots, &offset)
    cdef Py_ssize_t o = (i * e.step + unit % e.channels * job.post + offset) * job.ops.itemsize
    cdef fn_norm p = norm_of(job, i, unit % job.c, statistic_size(job))
    job.ops.affine(job.x + o, at(job.residual, o), job.y + o, piece, &p, job.flags, 0, NULL)
    job.ops.fence()


cdef int spans_forward(const Job *job) noexcept nogil:
    cdef Extent e = extent_of(job)
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t i, u, count = statistic_count(job), block = block_size(count, threads)
    cdef fn_moments *m
    if many(count, threads):
        if threads == 1:
            forward_block(job, &e, 0, count)
        else:
            for i in prange(ceil_div(count, block), schedule="static", num_threads=threads):
                forward_block(job, &e, i * block, least((i + 1) * block, count))
        return 0
    m = <fn_moments *> malloc(count * sizeof(fn_moments))
    if m == NULL or spans_moments(job, m) < 0:
        free(m)
        return -1
    for i in range(count):
        finish(job, i, m + i)
    free(m)
    for u in prange(count * e.channels * e.channel_slots, schedule="static", num_threads=threads):
        normalize_slot(job, &e, u)
    return 0


# ---- backward ----
# sums[u] = Σdy, Σdy·(x - mean) of channel u (counted over all statistics).

# Slot j of channel k of statistic i, whose numbers are p.
cdef inline void sum_slot(const Job *job, const Extent *e, Py_ssize_t i, Py_ssize_t k, Py_ssize_t j, const fn_norm *p,
                          fn_sums *out) noexcept nogil:
    cdef Py_ssize_t offset = 0, o
    cdef fn_spans piece = e.channel if e.channel_slots == 1 else slot(e.channel, j, &offset)
    o = (i * e.step + k * job.post + offset) * job.ops.itemsize
    job.ops.grad_sums(job.dy + o, job.x + o, at(job.residual, o), piece, p, job.flags, out)


cdef void sum_statistic(const Job *job, const Extent *e, Py_ssize_t i, const fn_norm *shared, fn_sums *sums) noexcept nogil:
    cdef Py_ssize_t j, k, first = i * e.channels % job.c, o = i * e.step * job.ops.itemsize
    cdef fn_norm p
    cdef fn_sums part
    cdef fn_channels channels = channels_of(job, first, e.channels)
    if in_one_call(job, e):
        job.ops.group_grad_sums(job.dy + o, job.x + o, &channels, shared, job.flags, sums)
        return
    for k in range(e.channels):
        p = channel_norm(job, shared, first + k)
        sum_slot(job, e, i, k, 0, &p, sums + k)
        for j in range(1, e.channel_slots):
            sum_slot(job, e, i, k, j, &p, &part)
            fn_sums_add(sums + k, &part)


cdef void sum_alone(const Job *job, const Extent *e, Py_ssize_t i, fn_sums *sums) noexcept nogil:
    cdef fn_norm shared = shared_norm(job, i, statistic_size(job))
    sum_statistic(job, e, i, &shared, sums)


cdef void sum_nth_slot(const Job *job, const Extent *e, Py_ssize_t u, fn_sums *out) noexcept nogil:
    cdef Py_ssize_t unit = u // e.channel_slots, i = unit // e.channels, k = unit % e.channels
    cdef fn_norm p = norm_of(job, i, unit % job.c, statistic_size(job))
    sum_slot(job, e, i, k, u % e.channel_slots, &p, out)


# dx's numbers of statistic i, but for a, which is each channel's.
cdef inline fn_grad statistic_grad(const Job *job, const Extent *e, Py_ssize_t i, const fn_sums *sums) noexcept nogil:
    cdef Py_ssize_t first = i * e.channels, channel = first % job.c
    cdef fn_sums total = weigh(job, channel, e.channels, sums + first)
    return grad_of(job, i, channel, statistic_size(job), &total)


cdef void differentiate_statistic(const Job *job, const Extent *e, Py_ssize_t i, const fn_sums *sums, Before *b,
                                  bint more) noexcept nogil:
    cdef Py_ssize_t k, channel = i * e.channels % job.c
    cdef Py_ssize_t o = i * e.step * job.ops.itemsize
    cdef fn_norm shared = shared_norm(job, i, statistic_size(job)), p
    cdef fn_grad g = statistic_grad(job, e, i, sums)
    cdef fn_channels channels = channels_of(job, channel, e.channels)
    if in_one_call(job, e):
        job.ops.group_grad_apply(job.dy + o, job.x + o, job.y + o, &channels, &shared, &g, job.flags, ahead_of(job, e))
        return
    for k in range(e.channels):
        o = (i * e.step + k * job.post) * job.ops.itemsize
        p = channel_norm(job, &shared, channel + k)
        g.a = p.scale  # b and c are the statistic's
        b.left = job.ops.grad_apply(job.dy + o, job.x + o, at(job.residual, o), job.y + o, <char *> at(job.dresidual, o),
                                    e.channel, &p, &g, flags_of(job, e, more or k + 1 < e.channels), ahead_of(job, e),
                                    norm_before(b), grad_before(b))
        if b.left:
            b.norm, b.grad = p, g


# The same of statistic i, and meanwhile the sums of the next one.
cdef void differentiate_and_sum(const Job *job, const Extent *e, Py_ssize_t i, fn_sums *sums, Before *b) noexcept nogil:
    cdef Py_ssize_t j, k, offset = 0, o, next_o, first = (i + 1) * e.channels
    cdef fn_norm shared = shared_norm(job, i, statistic_size(job)), next_shared = shared_norm(job, i + 1, statistic_size(job))
    cdef fn_norm p, next_p
    cdef fn_grad g = statistic_grad(job, e, i, sums)
    cdef fn_spans piece
    cdef fn_sums part
    cdef int left = 0
    cdef const fn_norm *before
    cdef const fn_grad *grad
    cdef bint within  # does a slot begin within a span, whose line it shares with the slot before?
    for k in range(e.channels):
        p = channel_norm(job, &shared, i * e.channels % job.c + k)
        next_p = channel_norm(job, &next_shared, first % job.c + k)
        g.a = p.scale  # b and c are the statistic's
        for j in range(e.channel_slots):
            piece = slot(e.channel, j, &offset)
            within = offset % e.channel.stride > 0 if e.channel.count > 1 else offset > 0
            o = (i * e.step + k * job.post + offset) * job.ops.itemsize
            next_o = o + e.step * job.ops.itemsize
            before, grad = norm_before(b), grad_before(b)
            if within:
                before, grad = (&p if left else NULL), (&g if left else NULL)
            left = job.ops.grad_turns(job.dy + o, job.x + o, job.y + o, piece, &p, &g, flags_of(job, e, True),
                                      before, grad, job.dy + next_o, job.x + next_o, &next_p,
                                      sums + first + k if j == 0 else &part)
            if j > 0:
                fn_sums_add(sums + first + k, &part)
        b.left, b.norm, b.grad = left, p, g


cdef void backward_block(const Job *job, const Extent *e, Py_ssize_t first, Py_ssize_t last, fn_sums *sums) noexcept nogil:
    cdef bint turns = by_turns(job, e)
    cdef Before b
    cdef Py_ssize_t i
    b.left = False
    for i in range(first, last):
        if not turns or i == first:
            sum_alone(job, e, i, sums + i * e.channels)
        if turns and i + 1 < last:
            differentiate_and_sum(job, e, i, sums, &b)
        else:
            differentiate_statistic(job, e, i, sums, &b, i + 1 < last)
    job.ops.fence()


cdef void differentiate_slot(const Job *job, const Extent *e, Py_ssize_t u, const fn_sums *totals) noexcept nogil:
    cdef Py_ssize_t offset = 0, unit = u // e.channel_slots, i = unit // e.channels
    cdef fn_spans piece = slot(e.channel, u % e.channel_slots, &offset)
    cdef Py_ssize_t o = (i * e.step + unit % e.channels * job.post + offset) * job.ops.itemsize
    cdef fn_norm p = norm_of(job, i, unit % job.c, statistic_size(job))
    cdef fn_grad g = grad_of(job, i, unit % job.c, statistic_size(job), totals + i)
    job.ops.grad_apply(job.dy + o, job.x + o, at(job.residual, o), job.y + o, <char *> at(job.dresidual, o), piece, &p, &g,
                       job.flags, 0, NULL, NULL)
    job.ops.fence()


cdef int spans_backward(const Job *job) noexcept nogil:
    cdef Extent e = extent_of(job)
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t i, j, u, count = statistic_count(job), units = count * e.channels, block = block_size(count, threads)
    cdef fn_sums *sums = <fn_sums *> malloc(units * sizeof(fn_sums))
    cdef fn_sums *parts = NULL
    cdef fn_sums *totals
    if sums == NULL:
        return -1
    if many(count, threads):
        if threads == 1:
            backward_block(job, &e, 0, count, sums)
        else:
            for i in prange(ceil_div(count, block), schedule="static", num_threads=threads):
                backward_block(job, &e, i * block, least((i + 1) * block, count), sums)
    else:
        parts = <fn_sums *> malloc((units * e.channel_slots + count) * sizeof(fn_sums))
        if parts == NULL:
            free(sums)
            return -1
        totals = parts + units * e.channel_slots
        for u in prange(units * e.channel_slots, schedule="static", num_threads=threads):
            sum_nth_slot(job, &e, u, parts + u)
        for u in range(units):
            sums[u] = parts[u * e.channel_slots]
            for j in range(1, e.channel_slots):
                fn_sums_add(sums + u, parts + u * e.channel_slots + j)
        for i in range(count):
            totals[i] = weigh(job, i * e.channels % job.c, e.channels, sums + i * e.channels)
        for u in prange(units * e.channel_slots, schedule="static", num_threads=threads):
            differentiate_slot(job, &e, u, totals)
        free(parts)
    add_parameter_gradients(job, sums, units // job.c, e.channels)
    free(sums)
    return 0


# ---- the parts of the backward alone, for norms that mix statistics ----

cdef void combine_block(const Job *job, const Extent *e, Py_ssize_t first, Py_ssize_t last, const fn_grad *g) noexcept nogil:
    cdef Before b
    cdef Py_ssize_t unit, o
    cdef fn_norm p
    b.left = False
    for unit in range(first, last):
        o = (unit // e.channels * e.step + unit % e.channels * job.post) * job.ops.itemsize
        p = norm_of(job, unit // e.channels, unit % job.c, statistic_size(job))
        b.left = job.ops.grad_apply(job.dy + o, job.x + o, NULL, job.y + o, NULL, e.channel, &p, g + unit,
                                    flags_of(job, e, unit + 1 < last), ahead_of(job, e), norm_before(&b), grad_before(&b))
        if b.left:
            b.norm, b.grad = p, g[unit]
    job.ops.fence()


cdef void spans_sums(const Job *job, fn_sums *sums) noexcept nogil:
    cdef Extent e = extent_of(job)
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t i
    if threads == 1:
        for i in range(statistic_count(job)):
            sum_alone(job, &e, i, sums + i * e.channels)
    else:
        for i in prange(statistic_count(job), schedule="static", num_threads=threads):
            sum_alone(job, &e, i, sums + i * e.channels)


cdef void spans_combine(const Job *job, const fn_grad *g) noexcept nogil:
    cdef Extent e = extent_of(job)
    cdef int threads = threads_for(element_count(job))
    cdef Py_ssize_t i, count = statistic_count(job) * e.channels, block = block_size(count, threads)
    if threads == 1:
        combine_block(job, &e, 0, count, g)
    else:
        for i in prange(ceil_div(count, block), schedule="static", num_threads=threads):
            combine_block(job, &e, i * block, least((i + 1) * block, count), g)
