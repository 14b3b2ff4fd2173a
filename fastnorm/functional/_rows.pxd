cimport numpy as cnp
from fastnorm._kernels.rows cimport Rows


cdef class RowsContext:
    """What the backward of layer or RMS norm needs: references to x (or the sum) and weight, and statistics."""
    cdef readonly object x, weight, sum
    cdef cnp.ndarray _x  # what was normalized, C-contiguous
    cdef cnp.ndarray _gamma
    cdef cnp.ndarray _beta
    cdef readonly str op
    cdef Rows job
    cdef double *memory
    cdef int dtype
    cdef bint has_residual
    cdef int lead  # the axes of the statistics: x's first ones
    cdef object statistic(self, const double *values)

cdef tuple forward(str op, object x, object normalized_shape, object weight, object bias, object eps, object residual,
                   object out, bint keep)
cdef object backward(RowsContext ctx, object dy, object out)
