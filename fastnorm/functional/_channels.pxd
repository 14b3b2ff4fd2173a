cimport numpy as cnp
from fastnorm._kernels.job cimport Job


cdef class ChannelContext:
    """What the backward of batch, group or instance norm needs: references to x and residual, and statistics."""
    cdef readonly object x, residual
    cdef cnp.ndarray _x, _residual  # the same in the layout that was computed on
    cdef readonly str op
    cdef Job job
    cdef double *memory
    cdef int dtype
    cdef bint has_weight, has_bias, may_free

    cdef int reserve(self) except -1
    cdef object statistic(self, const double *values)


cdef ChannelContext prepare(str op, object x, object axis, object groups, object weight, object bias, object eps,
                            object activation, object residual)
cdef object run(ChannelContext ctx, object out, bint keep)
cdef object give_back(ChannelContext ctx, object dy, object out)
cdef double check_running(ChannelContext ctx, object running_mean, object running_var, object momentum,
                          bint updated) except? -1
cdef int use_running(ChannelContext ctx, object running_mean, object running_var) except -1
cdef int update_running(object running, double momentum, const double *batch, Py_ssize_t samples, Py_ssize_t c,
                        double factor) except -1
cdef int check_out(object out, object weight, object bias, object running_mean, object running_var) except -1
