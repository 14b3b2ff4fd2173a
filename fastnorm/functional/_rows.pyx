"""What layer norm and RMS norm share: arguments into a Rows job, one call of the kernel, results out."""
cimport numpy as cnp
import numpy as np
from libc.stdlib cimport free, malloc

from fastnorm._kernels.c cimport FN_F32, FN_F64, FN_STREAM
from fastnorm._kernels.core cimport fresh, memory_flags, ops_for
from fastnorm._kernels.rows cimport rows_backward, rows_forward
from fastnorm.functional._check cimport apart, dtype_of, eps_of, like, named, output, parameter_dtype
from fastnorm._types import NormGrads, ResidualNormGrads

cnp.import_array()

cdef enum:
    APART = 48  # between arrays of statistics, so that not all three begin in the same set of a cache (layer norm backward: 6 %)


cdef class RowsContext:
    """What a backward needs. `mean`, `rstd`: float64 arrays, one number per row; `sum`: x + residual, if there was one."""

    def __dealloc__(self):
        free(self.memory)

    def __repr__(self):
        return f"<fastnorm {self.op} context, x of shape {self.x.shape}>"

    cdef object statistic(self, const double *values):
        cdef Py_ssize_t i
        a = np.empty(self.job.rows)
        cdef double[::1] view = a
        for i in range(self.job.rows):
            view[i] = values[i]
        return a.reshape(self.x.shape[:self.lead]) if self.job.rows > 0 else a

    @property
    def mean(self):
        """The mean that was subtracted from each row (0 for RMS norm)."""
        return self.statistic(self.job.mean)

    @property
    def rstd(self):
        """1/sqrt(var + eps), or 1/sqrt(Σx²/n + eps) for RMS norm."""
        return self.statistic(self.job.rstd)


cdef tuple indices(object normalized_shape):
    """normalized_shape as a tuple of int."""
    if isinstance(normalized_shape, (str, bytes)) or isinstance(normalized_shape, bool):
        raise TypeError(f"normalized_shape: expected an integer or a sequence of them, got {normalized_shape!r}")
    try:
        if hasattr(normalized_shape, "__index__") and not getattr(normalized_shape, "shape", ()):
            return (normalized_shape.__index__(),)
        return tuple([k.__index__() for k in normalized_shape])
    except (AttributeError, TypeError):
        raise TypeError("normalized_shape: expected an integer or a sequence of them, "
                        f"got {normalized_shape!r}") from None


cdef bint are_ints(object t) except -1:
    if type(t) is not tuple:
        return False
    for k in <tuple> t:
        if type(k) is not int:
            return False
    return True


cdef int trailing(object normalized_shape, cnp.ndarray x) except -1:
    """How many axes normalized_shape has, which must equal x's last ones. No tuple is made of x's shape: that took a tenth of a
    small call."""
    cdef tuple n = <tuple> normalized_shape if are_ints(normalized_shape) else indices(normalized_shape)
    cdef int k, count = len(n), first = cnp.PyArray_NDIM(x) - count
    cdef bint equal = count > 0 and first >= 0
    for k in range(count if equal else 0):
        equal = equal and n[k] == cnp.PyArray_DIM(x, first + k)
    if not equal:
        raise ValueError(f"normalized_shape: expected the last axes of x, whose shape is {(<object> x).shape}, got {n}")
    return count


cdef cnp.ndarray row_parameter(object p, str name, cnp.ndarray x, int axes, int dtype):
    """A parameter of the shape of x's last axes as a contiguous vector of the arithmetic type: itself where it is one."""
    cdef int code = parameter_dtype(p, name, dtype), first = cnp.PyArray_NDIM(x) - axes
    if cnp.PyArray_NDIM(p) != axes or not cnp.PyArray_CompareLists(cnp.PyArray_DIMS(p), cnp.PyArray_DIMS(x) + first, axes):
        raise ValueError(f"{name}: expected shape {(<object> x).shape[first:]}, as normalized_shape, got {p.shape}")
    if code == (FN_F64 if dtype == FN_F64 else FN_F32) and cnp.PyArray_IS_C_CONTIGUOUS(p) and cnp.PyArray_ISALIGNED(p):
        return p
    return np.require(p, np.float64 if dtype == FN_F64 else np.float32, ["C", "A"])


cdef tuple forward(str op, object x, object normalized_shape, object weight, object bias, object eps, object residual,
                   object out, bint keep):
    cdef RowsContext ctx = RowsContext.__new__(RowsContext)
    cdef Rows *job = &ctx.job
    cdef int failed = 0, centred = op == "layer_norm"
    cdef cnp.ndarray work, r
    cdef cnp.ndarray total = None
    cdef int axes
    cdef Py_ssize_t size, len_, k
    ctx.op, ctx.x, ctx.weight = op, x, weight
    ctx.dtype = dtype_of(x, "x")
    axes = trailing(normalized_shape, x)
    work = x if cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_ISALIGNED(x) else cnp.PyArray_NewCopy(x, cnp.NPY_CORDER)
    len_ = 1
    for k in range(cnp.PyArray_NDIM(x) - axes, cnp.PyArray_NDIM(x)):
        len_ *= cnp.PyArray_DIM(x, k)
    size = cnp.PyArray_SIZE(x)
    job.eps = eps_of(eps)
    job.ops = ops_for(ctx.dtype)
    job.centred = centred
    job.len = len_
    job.rows = size // len_ if len_ > 0 else 0
    job.parameters = ops_for(FN_F64 if ctx.dtype == FN_F64 else FN_F32)
    ctx.lead = cnp.PyArray_NDIM(x) - axes
    if weight is not None:
        ctx._gamma = row_parameter(weight, "weight", x, axes, ctx.dtype)
        job.gamma = <const char *> cnp.PyArray_DATA(ctx._gamma)
    if bias is not None:
        ctx._beta = row_parameter(bias, "bias", x, axes, ctx.dtype)
        job.beta = <const char *> cnp.PyArray_DATA(ctx._beta)
    if residual is not None:
        r = like(residual, "residual", work, ctx.dtype)
        ctx.has_residual = True
    if out is not None:
        dtype_of(out, "out")
        # With a residual the context keeps the sum, and x is free to go.
        apart(out, x, "x", not keep or residual is not None)
        apart(out, residual, "residual", True)
        apart(out, weight, "weight", False)
        apart(out, bias, "bias", False)
    y = output(out, x, work, ctx.dtype)
    if residual is not None:
        # The sum needs memory of its own only if someone will look at it.
        total = fresh(work) if keep else y
        job.residual = <const char *> cnp.PyArray_DATA(r)
        job.sum = <char *> cnp.PyArray_DATA(total)
    if keep:
        ctx.memory = <double *> malloc(3 * (job.rows + APART) * sizeof(double))
        if ctx.memory == NULL:
            raise MemoryError(f"{op}: no memory for the statistics")
        k = job.rows + APART
        job.mean, job.mean_lo, job.rstd = ctx.memory, ctx.memory + k, ctx.memory + 2 * k
        ctx._x = work if residual is None else total
        ctx.sum = total
    job.x = <const char *> cnp.PyArray_DATA(work)
    job.y = <char *> cnp.PyArray_DATA(y)
    job.flags = memory_flags(cnp.PyArray_NBYTES(y)) & (-1 if residual is None or keep else ~FN_STREAM)
    if size > 0:
        with nogil:
            failed = rows_forward(job)
        if failed:
            raise MemoryError(f"{op}: no memory for partial results")
    if out is not None and out is not y:
        np.copyto(out, y)
        y = out
    return y, ctx


# Room for the gradient of a parameter as a vector, or None where there is none.
cdef cnp.ndarray gradient_of(cnp.ndarray parameter, const Rows *job, int dtype):
    cdef cnp.npy_intp size = job.len
    if parameter is None:
        return None
    return cnp.PyArray_SimpleNew(1, &size, cnp.NPY_FLOAT64 if dtype == FN_F64 else cnp.NPY_FLOAT32)


cdef inline object in_shape(cnp.ndarray gradient, cnp.ndarray parameter):
    return gradient if gradient is None or cnp.PyArray_NDIM(parameter) == 1 else gradient.reshape((<object> parameter).shape)


cdef object backward(RowsContext ctx, object dy, object out):
    cdef Rows job = ctx.job
    cdef int failed = 0
    cdef cnp.ndarray g = like(dy, "dy", ctx._x, ctx.dtype)
    if out is not None:
        dtype_of(out, "out")
        apart(out, ctx._x, "x" if ctx.sum is None else "ctx.sum", False)
        apart(out, ctx.weight, "weight", False)
        apart(out, dy, "dy", True)
    dx = output(out, ctx.x, ctx._x, ctx.dtype)
    cdef cnp.ndarray dgamma = gradient_of(ctx._gamma, &job, ctx.dtype), dbeta = gradient_of(ctx._beta, &job, ctx.dtype)
    if dgamma is not None:
        job.dgamma = <char *> cnp.PyArray_DATA(dgamma)
    if dbeta is not None:
        job.dbeta = <char *> cnp.PyArray_DATA(dbeta)
    job.x = <const char *> cnp.PyArray_DATA(ctx._x)
    job.dy = <const char *> cnp.PyArray_DATA(g)
    job.y = <char *> cnp.PyArray_DATA(dx)
    job.flags = memory_flags(cnp.PyArray_NBYTES(dx))
    if job.rows > 0:
        with nogil:
            failed = rows_backward(&job)
        if failed:
            raise MemoryError(f"{ctx.op}: no memory for partial results")
    else:
        for gradient in (dgamma, dbeta):
            if gradient is not None:
                gradient[...] = 0
    dweight, dbias = in_shape(dgamma, ctx._gamma), in_shape(dbeta, ctx._beta)
    if out is not None and out is not dx:
        np.copyto(out, dx)
        dx = out
    if ctx.has_residual:
        return named(ResidualNormGrads, (dx, dweight, dbias, dx))
    return named(NormGrads, (dx, dweight, dbias))
