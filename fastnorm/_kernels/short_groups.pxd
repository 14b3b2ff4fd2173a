from fastnorm._kernels.job cimport Job

cdef bint fits_short(const Job *job) noexcept nogil
cdef int short_forward(const Job *job) noexcept nogil
cdef int short_backward(const Job *job) noexcept nogil
