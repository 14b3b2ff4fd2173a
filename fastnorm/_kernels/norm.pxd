from fastnorm._kernels.c cimport fn_moments
from fastnorm._kernels.job cimport Job

# y, and mean, var, rstd unless given. -1: out of memory, nothing usable was written.
cdef int norm_forward(const Job *job) noexcept nogil
# dx (to job.y), dgamma, dbeta, and dresidual where it differs from dy.
cdef int norm_backward(const Job *job) noexcept nogil
cdef int norm_moments(const Job *job, fn_moments *out) noexcept nogil
