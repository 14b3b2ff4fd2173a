cimport numpy as cnp
from fastnorm._kernels.c cimport fn_ops

# The kernels of one storage type (FN_F32 ...) at the instruction set in use.
cdef const fn_ops *ops_for(int dtype) noexcept nogil
# How many threads a piece of work over `elements` elements is worth. A loop opens no parallel region for one thread: libgomp
# makes a team and a system call for it all the same, 0.6 µs, which is as much as a small call takes.
cdef int threads_for(Py_ssize_t elements) noexcept nogil
# Whether an output of `nbytes` should go past the cache.
cdef int streams(Py_ssize_t nbytes) noexcept nogil
# A new array of x's shape, dtype and layout, from the cache of released outputs if it is large; its elements are not set.
cdef cnp.ndarray fresh(cnp.ndarray x)
