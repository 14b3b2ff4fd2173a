"""The state of the package: the instruction set in use and the number of threads.

Design: both are plain C variables, read without the GIL. The instruction set is chosen once, when imported: the widest one
that this build contains and this processor runs, unless FASTNORM_ISA names another. It never changes a result's bits.
"""
import os

from fastnorm._kernels.c cimport (
    FN_AVX2, FN_AVX512, FN_BASELINE, FN_COMPILER, FN_HAVE_OPENMP, FN_LEVELS, FN_NEON, fn_ops, fn_table,
)

# Below this many elements per thread a second thread costs more than it saves. An empty parallel region takes 1 to 3 µs on
# two cores and normalizing 32 Ki floats in cache about 10 µs.
cdef enum:
    GRAIN = 32768

# Outputs of at least this many bytes are written past the cache: a copy into an old buffer is fastest so from about half of
# the last-level cache on, and no reader could find the whole of it there.
cdef Py_ssize_t STREAM_BYTES = 12 << 20

_NAMES = {FN_BASELINE: "baseline", FN_AVX2: "avx2", FN_AVX512: "avx512", FN_NEON: "neon"}

cdef const fn_ops *_table = NULL
cdef int _level = -1
cdef int _threads = 1
_isa_reason = "the widest this processor runs"
_threads_reason = "the CPUs this process may use"


cdef const fn_ops *ops_for(int dtype) noexcept nogil:
    return _table + dtype


cdef int threads_for(Py_ssize_t elements) noexcept nogil:
    cdef Py_ssize_t n = elements // GRAIN
    return 1 if n < 1 else (<int> n if n < _threads else _threads)


cdef int streams(Py_ssize_t nbytes) noexcept nogil:
    return nbytes >= STREAM_BYTES


def available_isas():
    """Names of the instruction sets that this build contains and this processor runs, narrowest first."""
    return [_NAMES[level] for level in range(FN_LEVELS) if level in _NAMES and fn_table(level) != NULL]


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
    _threads = n if FN_HAVE_OPENMP else 1


def _after_fork():
    # libgomp's threads do not survive a fork, and waiting for them would hang the child.
    global _threads, _threads_reason
    _threads = 1
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
    global _isa_reason, _threads_reason
    *_, widest = available_isas()
    set_isa(widest)
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
        os.register_at_fork(after_in_child=_after_fork)


def reasons():
    """How the instruction set and the number of threads were chosen, as {"isa": ..., "threads": ...}."""
    return {"isa": _isa_reason, "threads": _threads_reason if FN_HAVE_OPENMP else "built without OpenMP"}


_start()
