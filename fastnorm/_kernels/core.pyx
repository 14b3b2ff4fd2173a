"""The state of the package: the instruction set in use and the number of threads.

Design: both are plain C variables, read without the GIL. The instruction set is chosen once, when imported: the fastest one
that this build contains and this processor runs, unless FASTNORM_ISA names another. It never changes a result's bits.
"""
cimport numpy as cnp
import os

from cpython.pycapsule cimport PyCapsule_New
from libc.string cimport strcpy

from fastnorm._kernels.c cimport (
    FN_AVX2, FN_AVX512, FN_AVX512_WIDE, FN_BASELINE, FN_COMPILER, FN_FAR, FN_HAVE_OPENMP, FN_LEVELS, FN_NEAR, FN_NEON, FN_NEXT, FN_STREAM,
    fn_best_level, fn_fetches_next, fn_l2_bytes, fn_l3_bytes, fn_ops, fn_table,
)

# Elements per thread; below two of these one thread does it. Awake, a second thread is ready in 1 to 3 µs, but between calls it
# sleeps (see __init__.py), and waking it took 50 to 85 µs on the two cores of a virtual machine. One thread normalizes 384 Ki
# floats in cache in 100 µs, and takes their gradient in 140.
cdef enum:
    GRAIN = 196608

# Outputs of at least this many bytes are written past the cache. With x, dy and dx such a tensor fills the usual last-level
# cache of 32 MB, so that no reader would find the whole of it there; norms of 8 MB took 0.65 to 0.85 of the time on Zen 4.
cdef Py_ssize_t STREAM_BYTES = 8 << 20

_NAMES = {FN_BASELINE: "baseline", FN_AVX2: "avx2", FN_AVX512: "avx512", FN_AVX512_WIDE: "avx512_wide", FN_NEON: "neon"}

cdef extern from "build.h" nogil:
    int FN_CAN_RELEASE_TEAM
    void fn_release_team()

cdef extern from "pool.h" nogil:
    void *fn_pool_malloc(void *ctx, size_t size)
    void *fn_pool_calloc(void *ctx, size_t count, size_t size)
    void *fn_pool_realloc(void *ctx, void *p, size_t size)
    void fn_pool_free(void *ctx, void *p, size_t size)
    void fn_pool_set_limit(size_t limit)
    void fn_pool_after_fork()
    size_t fn_pool_limit()
    size_t fn_pool_bytes()

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size)
        void *(*calloc)(void *ctx, size_t count, size_t size)
        void *(*realloc)(void *ctx, void *p, size_t size)
        void (*free)(void *ctx, void *p, size_t size)
    ctypedef struct PyDataMem_Handler:
        char name[127]
        unsigned char version
        PyDataMemAllocator allocator
    object PyDataMem_SetHandler(object handler)
    object PyArray_NewLikeArray(cnp.ndarray prototype, cnp.NPY_ORDER order, cnp.PyArray_Descr *descr, int subok)

cnp.import_array()

# Arrays of at least this many bytes come from the cache: smaller ones malloc recycles by itself without new pages.
cdef enum:
    POOLED_BYTES = 131072

cdef PyDataMem_Handler _handler
cdef object _pool = None

cdef const fn_ops *_table = NULL
cdef int _level = -1
cdef int _threads = 1
cdef Py_ssize_t _grain = GRAIN
cdef Py_ssize_t _l2 = fn_l2_bytes()
cdef Py_ssize_t _far = min(4 << 20, fn_l3_bytes() // 4)  # an array so large, one of three or four, is not counted on to lie in L3
cdef int _next = FN_NEXT if fn_fetches_next() else 0
cdef bint _forked = False
_isa_reason = "the fastest on this processor"
_threads_reason = "the CPUs this process may use"


cdef const fn_ops *ops_for(int dtype) noexcept nogil:
    return _table + dtype


def set_grain(Py_ssize_t elements):
    """Elements per thread from now on, for tests: arrays that are worth several threads are large. Returns what it was."""
    global _grain
    if elements < 1:
        raise ValueError(f"elements: expected at least 1, got {elements}")
    before, _grain = _grain, elements
    return before


def set_stream_bytes(size):
    """Write outputs of at least `size` bytes past the cache from now on, for tests. Returns what it was."""
    global STREAM_BYTES
    if size < 1:
        raise ValueError(f"size: expected at least 1 byte, got {size}")
    before, STREAM_BYTES = STREAM_BYTES, size
    return before


def set_l2_bytes(Py_ssize_t size):
    """Take a core's second-level cache for one of `size` bytes from now on, for tests: no bit depends on it. Returns what it was."""
    global _l2
    if size < 1:
        raise ValueError(f"size: expected at least 1 byte, got {size}")
    before, _l2 = _l2, size
    return before


def set_fetches_next(bint on):
    """Whether this is a processor that is told what comes next, from now on, for tests: no bit depends on it. Returns what it was."""
    global _next
    before, _next = _next != 0, FN_NEXT if on else 0
    return before


cdef int threads_for(Py_ssize_t elements) noexcept nogil:
    cdef Py_ssize_t n = elements // _grain
    return 1 if n < 1 else (<int> n if n < _threads else _threads)


cdef int memory_flags(Py_ssize_t nbytes) noexcept nogil:
    cdef int flags = FN_STREAM if nbytes >= STREAM_BYTES else 0
    return flags | FN_NEAR if nbytes <= _l2 // 2 else flags | _next | (FN_FAR if nbytes >= _far else 0)


cdef Py_ssize_t l2_bytes() noexcept nogil:
    return _l2


cdef cnp.ndarray fresh(cnp.ndarray x):
    if cnp.PyArray_NBYTES(x) < POOLED_BYTES or fn_pool_limit() == 0:
        return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
    before = PyDataMem_SetHandler(_pool)
    try:
        return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)
    finally:
        PyDataMem_SetHandler(before)


def set_output_cache(limit):
    """Keep at most `limit` bytes of released output buffers; 0 keeps none."""
    if isinstance(limit, bool) or not hasattr(limit, "__index__"):
        raise TypeError(f"limit: expected an integer number of bytes, got {type(limit).__name__}")
    if limit.__index__() < 0 or limit.__index__() >= 1 << 62:
        raise ValueError(f"limit: expected a number of bytes of at least 0, got {limit}")
    fn_pool_set_limit(limit.__index__())


def output_cache():
    """(bytes kept now, most that are kept)"""
    return fn_pool_bytes(), fn_pool_limit()


def available_isas():
    """Names of the instruction sets that this build contains and this processor runs, narrowest first."""
    return [_NAMES[level] for level in range(FN_LEVELS) if level in _NAMES and fn_table(level) != NULL]


def best_isa():
    """Name of the one that this processor runs fastest: what is used unless FASTNORM_ISA says otherwise."""
    return _NAMES[fn_best_level()]


def isa():
    """Name of the instruction set in use."""
    return _NAMES[_level]


def set_isa(name):
    """Use another of `available_isas()`; results keep their bits, times change. For tests and measurements."""
    global _table, _level
    for level, known in _NAMES.items():
        if known == name and fn_table(level) != NULL:
            _table = fn_table(level)
            _level = level
            return
    raise ValueError(f"isa: expected one of {available_isas()} on this machine and build, got {name!r}")


def have_openmp():
    """Whether this build can use more than one thread."""
    return bool(FN_HAVE_OPENMP)


def compiler():
    """Name and version of the C compiler of this build."""
    return FN_COMPILER.decode().strip()


def get_num_threads():
    """The largest number of threads that a call uses."""
    return _threads


def set_num_threads(n):
    """Use at most n threads (n ≥ 1) from now on, in every Python thread of this process."""
    global _threads
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n: expected an integer number of threads, got {type(n).__name__}")
    n = n.__index__()
    if not 1 <= n <= 4096:
        raise ValueError(f"n: expected a number of threads between 1 and 4096, got {n}")
    _threads = n if FN_HAVE_OPENMP and (FN_CAN_RELEASE_TEAM or not _forked) else 1


def _after_fork():
    global _threads, _threads_reason, _forked
    _threads = 1
    _forked = True
    fn_pool_after_fork()
    _threads_reason = "one, in a process that was forked"


def _positive(name, text):
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ImportError(f"{name}: expected a whole number of at least 1, got {text!r}")
    return value


def _start():
    global _isa_reason, _threads_reason, _pool
    strcpy(_handler.name, b"fastnorm")
    _handler.version = 1
    _handler.allocator.malloc, _handler.allocator.calloc = fn_pool_malloc, fn_pool_calloc
    _handler.allocator.realloc, _handler.allocator.free = fn_pool_realloc, fn_pool_free
    _pool = PyCapsule_New(&_handler, "mem_handler", NULL)
    fn_pool_set_limit(256 << 20)
    cache = os.environ.get("FASTNORM_OUTPUT_CACHE_MB")
    if cache:
        if not cache.isdigit():
            raise ImportError(f"FASTNORM_OUTPUT_CACHE_MB: expected a whole number of at least 0, got {cache!r}")
        fn_pool_set_limit(int(cache) << 20)
    set_isa(best_isa())
    wanted = os.environ.get("FASTNORM_ISA")
    if wanted:
        if wanted not in available_isas():
            raise ImportError(f"FASTNORM_ISA: expected one of {available_isas()} on this machine and build, got {wanted!r}")
        set_isa(wanted)
        _isa_reason = "FASTNORM_ISA"
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if limit.isdigit() and 1 <= int(limit) < n:  # OpenMP ignores what it cannot read, and so is it here
        n = int(limit)
        _threads_reason = "OMP_NUM_THREADS"
    own = os.environ.get("FASTNORM_NUM_THREADS")
    if own:
        n = min(_positive("FASTNORM_NUM_THREADS", own), 4096)
        _threads_reason = "FASTNORM_NUM_THREADS"
    set_num_threads(n)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=fn_release_team, after_in_child=_after_fork)


def reasons():
    """How the instruction set and the number of threads were chosen, as {"isa": ..., "threads": ...}."""
    return {"isa": _isa_reason, "threads": _threads_reason if FN_HAVE_OPENMP else "built without OpenMP"}


_start()
