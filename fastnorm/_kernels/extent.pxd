"""Spans of memory that a statistic owns: where they lie, and how they are cut into slots and blocks. For spans.pyx."""

from fastnorm._kernels.c cimport FN_LEAVE, FN_NEAR, FN_NEXT, FN_STREAM, fn_grad, fn_norm, fn_spans
from fastnorm._kernels.core cimport l2_bytes
from fastnorm._kernels.job cimport Job, ceil_div, least

cdef enum:
    SLOT = 65536  # elements behind one partial result: 256 KB of float32, some 20 µs of work
    NEAR_BYTES = 8192  # a statistic's data, y beside it, and the next one's are in L1
    SOON_BYTES = 8192  # how far ahead a walk that goes on is fetched, as by csrc/spans.h
    BESIDE = 8  # statistics
    BESIDE_BYTES = 4096  # of each: all of them are in L1
    TURN_BYTES = 32768  # a channel's: with its dy and dx beside it is not


# ---- geometry ----

# What one statistic owns, how many channels lie in it, and where the next statistic begins.
ctypedef struct Extent:
    fn_spans all  # every span of the statistic
    fn_spans channel  # the spans of one of its channels
    Py_ssize_t channels, step, slots, channel_slots


cdef inline Py_ssize_t spans_per_slot(fn_spans s) noexcept nogil:
    return least(s.count, SLOT // s.len) if 0 < s.len < SLOT else 1


cdef inline Py_ssize_t slot_count(fn_spans s) noexcept nogil:
    return ceil_div(s.len, SLOT) * s.count if s.len > SLOT else ceil_div(s.count, spans_per_slot(s))


# Slot i of s: its offset, and the spans in it.
cdef inline fn_spans slot(fn_spans s, Py_ssize_t i, Py_ssize_t *offset) noexcept nogil:
    cdef fn_spans piece = s
    cdef Py_ssize_t cuts, size, first
    if s.len > SLOT:
        cuts = ceil_div(s.len, SLOT)
        size = ceil_div(ceil_div(s.len, cuts), 64) * 64
        first = least((i % cuts) * size, s.len)
        offset[0] = (i // cuts) * s.stride + first
        piece.len = least(size, s.len - first)
        piece.count = 1
    else:
        size = spans_per_slot(s)
        offset[0] = i * size * s.stride
        piece.count = least(size, s.count - i * size)
    return piece


cdef inline Extent extent_of(const Job *job) noexcept nogil:
    cdef Extent e
    if job.groups == 0:
        e.channels, e.step = 1, job.post
        e.all.len, e.all.count, e.all.stride = job.post, job.n * job.pre, job.c * job.post
    else:
        e.channels, e.step = job.c // job.groups, job.c // job.groups * job.post
        e.all.len, e.all.count, e.all.stride = e.step, 1, 0
    e.channel = e.all
    e.channel.len = job.post
    e.slots, e.channel_slots = slot_count(e.all), slot_count(e.channel)
    return e


# Whether the channels of a statistic are done in one call.
cdef inline bint in_one_call(const Job *job, const Extent *e) noexcept nogil:
    return e.channels > 1 and e.channel_slots == 1 and job.residual == NULL and not job.flags & FN_STREAM


# How far ahead of what is written x (and dy) are fetched: by a statistic, where y is streamed (0.8 to 1 of the time on a Zen 3; smaller
# tensors, which lie in L3 there, took 1.1 to 1.2); where that does not pay, as far as the walk will soon be, if what was read before did
# not stay in L2; else not at all.
cdef inline Py_ssize_t ahead_of(const Job *job, const Extent *e) noexcept nogil:
    if job.flags & FN_NEXT and job.flags & FN_STREAM:
        return e.step
    return SOON_BYTES // job.ops.itemsize if e.all.len * e.all.count * job.ops.itemsize > l2_bytes() // 4 else 0


# Are statistics reduced eight at a time, with their roots and divisions in vectors?
cdef inline bint side_by_side(const Job *job, const Extent *e) noexcept nogil:
    return (e.all.count == 1 and e.step == e.all.len and e.all.len * job.ops.itemsize <= BESIDE_BYTES and not job.lengths
            and not job.flags & FN_STREAM)


# Is dx of a statistic written while the next one is summed? Where x and dy of both stay in L2; or where those of one leave it anyway.
# Between the two, what is left of it there counts for more. Only AVX-512 has registers for both: else only where memory is waited for
# (at AVX2 channels beyond L2 0.9 to 1 of the time; in L2 up to 1.4). With AVX-512 what is streamed goes so on Intel's processors alone:
# a Zen 4, which is told what comes next instead, took 1.1 to 1.3 times as long; of a Zen 5 that is not known. Of tensors that are not
# streamed, but larger than half of L2, channels that leave L1 in any case, of float32 with AVX-512: 0.91 to 1 of the time on an Emerald
# Rapids, 0.9 to 1 on a Zen 4; smaller ones up to 1.2.
cdef inline bint by_turns(const Job *job, const Extent *e) noexcept nogil:
    cdef Py_ssize_t both = 4 * e.all.len * e.all.count * job.ops.itemsize
    cdef bint large = e.channel.len * e.channel.count * job.ops.itemsize >= TURN_BYTES and not job.flags & FN_NEAR
    if job.residual != NULL or job.given:
        return False
    if job.flags & FN_STREAM and job.flags & FN_NEXT and job.ops.turns > 0:
        return False
    return ((job.flags & FN_STREAM or (large and job.ops.turns > 1))
            and ((both <= l2_bytes() // 8 * 7 and job.ops.turns > 0) or both >= l2_bytes() // 2 * 5))


# Enough statistics to give every thread whole ones.
cdef inline bint many(Py_ssize_t count, int threads) noexcept nogil:
    return threads == 1 or count >= 4 * threads


# ---- cache lines that spans share ----

# Channels that follow each other in memory are done in blocks: each writes the line that it shares with the one before.
ctypedef struct Before:
    bint left  # has the channel before left its last lines?
    fn_norm norm
    fn_grad grad


cdef inline int flags_of(const Job *job, const Extent *e, bint more) noexcept nogil:
    return job.flags | (FN_LEAVE if more and job.flags & FN_STREAM and e.channel.len * job.ops.itemsize >= 256 else 0)


cdef inline const fn_norm *norm_before(const Before *b) noexcept nogil:
    return &b.norm if b.left else NULL


cdef inline const fn_grad *grad_before(const Before *b) noexcept nogil:
    return &b.grad if b.left else NULL


# Statistics in a block: as many as leave the threads enough blocks to share. One thread takes all as one.
cdef inline Py_ssize_t block_size(Py_ssize_t count, int threads) noexcept nogil:
    return ceil_div(count, 4 * threads)
