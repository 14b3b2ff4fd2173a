from fastnorm._kernels.c cimport fn_grad, fn_moments, fn_sums
from fastnorm._kernels.job cimport Job

cdef int spans_forward(const Job *job) noexcept nogil
cdef int spans_backward(const Job *job) noexcept nogil
cdef int spans_moments(const Job *job, fn_moments *out) noexcept nogil
# sums[u] = Σdy, Σdy·(x - mean) of channel u, counted over all statistics.
cdef void spans_sums(const Job *job, fn_sums *sums) noexcept nogil
# dx = a·dy + b·(x - mean) + c with numbers of each channel's own.
cdef void spans_combine(const Job *job, const fn_grad *g) noexcept nogil
