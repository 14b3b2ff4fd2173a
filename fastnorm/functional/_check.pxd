cimport numpy as cnp

# An array's axes in memory order; batch norm folds every axis before the channels into n.
ctypedef struct Layout:
    Py_ssize_t n, pre, c, post

# Each raises TypeError or ValueError naming the argument, what was expected and what came.
cdef int dtype_of(object a, str name) except -1
cdef int axis_of(object axis, int ndim, str name) except -1
cdef double eps_of(object eps) except? -1
cdef double fraction_of(object value, str name) except? -1
cdef int activation_of(object activation) except -1
cdef int parameter_dtype(object p, str name, int dtype) except -1
cdef int parameter(object p, str name, Py_ssize_t size, int dtype) except -1
cdef int countable(Py_ssize_t count, str op) except -1
cdef cnp.ndarray dense(cnp.ndarray a, int first_axis_leads)
cdef Layout layout_of(cnp.ndarray a, int axis, int samples_apart) noexcept
cdef cnp.ndarray like(object a, str name, cnp.ndarray x, int dtype)
cdef cnp.ndarray output(object out, object x, cnp.ndarray work, int dtype)
cdef bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept
cdef int apart(object out, object a, str name, int may_be_same) except -1
cdef void fetch(object p, int dtype, double *dst) noexcept
cdef object vector(const double *values, Py_ssize_t n, int dtype)
cdef object named(object kind, tuple values)
