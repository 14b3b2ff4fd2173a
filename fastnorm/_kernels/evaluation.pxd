from fastnorm._kernels.job cimport Job

cdef int evaluate(const Job *job) noexcept nogil
