from fastnorm._kernels.c cimport fn_moments
from fastnorm._kernels.job cimport Job

cdef int spans_forward(const Job *job) noexcept nogil
cdef int spans_backward(const Job *job) noexcept nogil
cdef int spans_moments(const Job *job, fn_moments *out) noexcept nogil
