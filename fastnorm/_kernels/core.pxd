cimport numpy as cnp
from fastnorm._kernels.c cimport fn_ops

# The kernels of one storage type (FN_F32 ...) at the instruction set in use.
cdef const fn_ops *ops_for(int dtype) noexcept nogil
# How many threads a piece of work over `elements` elements is worth. A loop opens no parallel region for one thread: libgomp
# makes a team and a system call for it all the same, 0.6 µs, which is as much as a small call takes.
cdef int threads_for(Py_ssize_t elements) noexcept nogil
# What arrays of so many bytes ask of a kernel: FN_STREAM where the output goes past the cache; FN_NEAR where all of it lies in L2, and
# nothing need be fetched; else FN_NEXT, if it pays on this machine to fetch what comes next while results are written; FN_FAR where
# it may come from memory.
cdef int memory_flags(Py_ssize_t nbytes) noexcept nogil
# Of the cache that one core has.
cdef Py_ssize_t l2_bytes() noexcept nogil
# A new array of x's shape, dtype and layout, from the cache of released outputs if it is large; its elements are not set.
cdef cnp.ndarray fresh(cnp.ndarray x)
