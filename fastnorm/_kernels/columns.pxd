from fastnorm._kernels.c cimport fn_moments
from fastnorm._kernels.job cimport Job

cdef int columns_forward(const Job *job) noexcept nogil
cdef int columns_backward(const Job *job) noexcept nogil
cdef int columns_moments(const Job *job, fn_moments *out) noexcept nogil
