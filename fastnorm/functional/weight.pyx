"""Weight normalization (Salimans and Kingma 2016, arXiv:1602.07868): a weight's direction and length, apart."""
cimport numpy as cnp
import numpy as np
from libc.stdlib cimport free, malloc

from fastnorm._kernels.core cimport fresh, memory_flags, ops_for
from fastnorm._kernels.job cimport Job
from fastnorm._kernels.spans cimport spans_backward, spans_forward
from fastnorm.functional._check cimport apart, axis_of, countable, dtype_of, fetch, overlap, parameter_dtype, vector
from fastnorm._types import WeightNormGrads

cnp.import_array()

__all__ = ["weight_norm", "weight_norm_backward", "weight_norm_forward"]


cdef class WeightContext:
    """What the backward needs: references to v and g, and ‖v‖ of each unit (`norm`, float64)."""
    cdef readonly object v, g
    cdef object axis
    cdef int dtype
    cdef Job job  # units as channels: mean 0, rstd 1/‖v‖, gamma g
    cdef double *memory

    def __dealloc__(self):
        free(self.memory)

    def __repr__(self):
        return f"<fastnorm weight_norm context, v of shape {self.v.shape}>"

    @property
    def norm(self):
        """‖v‖ of each unit."""
        cdef Py_ssize_t i
        return np.array([1 / self.job.rstd[i] for i in range(self.job.c)])


cdef object leading(object a, object axis):
    """`a` with the units' axis in front: mostly it is."""
    return a if axis is None or axis == 0 else np.moveaxis(a, axis, 0)


cdef cnp.ndarray units_first(object a, object axis):
    return np.ascontiguousarray(leading(a, axis))


cdef object units_back(object rows, object axis):
    return rows if axis is None or axis == 0 else np.moveaxis(rows, 0, axis)


cdef tuple forward(object v, object g, object dim):
    cdef WeightContext ctx = WeightContext.__new__(WeightContext)
    cdef Py_ssize_t i, units
    cdef int failed = 0, code
    cdef cnp.ndarray units_of_v, w
    ctx.v, ctx.g = v, g
    ctx.dtype = dtype_of(v, "v")
    ctx.axis = None if dim is None else axis_of(dim, v.ndim, "dim")
    units = 1 if dim is None else v.shape[ctx.axis]
    code = parameter_dtype(g, "g", ctx.dtype)
    wide = (1,) * v.ndim if dim is None else (1,) * ctx.axis + (units,) + (1,) * (v.ndim - ctx.axis - 1)
    if g.shape != wide and g.shape != ((units,) if dim is not None else ()):
        raise ValueError(f"g: expected shape {wide}, got {g.shape}")
    units_of_v = units_first(v, ctx.axis)
    countable(units, "weight_norm")
    ctx.memory = <double *> malloc((5 * units + 1) * sizeof(double))
    if ctx.memory == NULL:
        raise MemoryError("weight_norm: no memory for the norms")
    ctx.job.ops = ops_for(ctx.dtype)
    ctx.job.n = ctx.job.pre = 1
    ctx.job.c, ctx.job.groups, ctx.job.lengths = units, units, 1
    ctx.job.post = v.size // units if units > 0 else 0
    ctx.job.mean, ctx.job.mean_lo, ctx.job.var = ctx.memory, ctx.memory + units, ctx.memory + 2 * units
    ctx.job.rstd, ctx.job.gamma = ctx.memory + 3 * units, ctx.memory + 4 * units
    fetch(g.reshape(-1), code, ctx.memory + 4 * units)
    ctx.job.x = <const char *> cnp.PyArray_DATA(units_of_v)
    w = fresh(units_of_v)
    ctx.job.flags = memory_flags(cnp.PyArray_NBYTES(w))
    if v.size == 0:
        for i in range(units):
            ctx.job.rstd[i] = np.inf  # ‖v‖ = 0
    else:
        ctx.job.y = <char *> cnp.PyArray_DATA(w)
        with nogil:
            failed = spans_forward(&ctx.job)
        if failed:
            raise MemoryError("weight_norm: no memory for partial results")
        for i in range(units):
            if ctx.job.var[i] == 0:
                raise ValueError(f"v: expected a norm above zero, got zero at index {i} of dim {dim}")
    return units_back(w, ctx.axis), ctx


def weight_norm(v, g, dim=0):
    """w = g · v / ‖v‖, one Euclidean norm per index of axis `dim`.

    Salimans and Kingma 2016, arXiv:1602.07868, equation 2.

    Parameters
    ----------
    v : array, float32, float64, float16 or bfloat16
        The direction.
    g : array of v's shape with every axis but dim of length 1, or of shape (v.shape[dim],)
        The length: v's dtype, or float32 with half types.
    dim : int or None
        The axis of output units, as in torch; None: one norm for the whole array.

    Returns
    -------
    w : array of v's shape and dtype

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes; ValueError for a unit whose v is zero, which has no direction.
    """
    return forward(v, g, dim)[0]


def weight_norm_forward(v, g, dim=0):
    """(w, ctx): `weight_norm`, and what `weight_norm_backward` needs: references to v and g, and ‖v‖ (ctx.norm)."""
    return forward(v, g, dim)


def weight_norm_backward(dw, ctx, *, out=None):
    """dg = Σ dw·v / ‖v‖; dv = g/‖v‖·dw - g·dg/‖v‖²·v, the sum over each unit.

    Salimans and Kingma 2016, equation 3.

    Parameters
    ----------
    dw : array of v's shape and dtype
    ctx
        From `weight_norm_forward`.
    out : array of v's shape and dtype, optional
        Receives dv; must not overlap v.

    Returns
    -------
    (dv, dg) : named tuple
        dg has g's shape, and is float32 (float64 for float64 v).

    Raises
    ------
    TypeError, ValueError
        For a dw or out that does not match v, or a ctx of another function.
    """
    cdef WeightContext c
    cdef Job job
    cdef int failed = 0
    cdef double[::1] sums
    cdef cnp.ndarray rows, result, units_of_v
    if type(ctx) is not WeightContext:
        raise TypeError(f"ctx: expected the context of weight_norm_forward, got {ctx!r}")
    c = <WeightContext> ctx
    job = c.job
    if dtype_of(dw, "dw") != c.dtype:
        raise TypeError(f"dw: expected dtype {c.v.dtype}, as v has, got {dw.dtype}")
    if dw.shape != c.v.shape:
        raise ValueError(f"dw: expected shape {c.v.shape}, as v has, got {dw.shape}")
    if out is not None:
        if dtype_of(out, "out") != c.dtype:
            raise TypeError(f"out: expected dtype {c.v.dtype}, as v has, got {out.dtype}")
        if out.shape != c.v.shape:
            raise ValueError(f"out: expected shape {c.v.shape}, as v has, got {out.shape}")
        if not out.flags.writeable:
            raise ValueError("out: expected a writable array, got a read-only one")
        apart(out, c.v, "v", False)
        apart(out, c.g, "g", False)
    units_of_v, rows = units_first(c.v, c.axis), units_first(dw, c.axis)
    # Straight to out where it lies in memory as the units do, and dw is not in the way.
    place = None if out is None else leading(out, c.axis)
    straight = (place is not None and cnp.PyArray_IS_C_CONTIGUOUS(place) and cnp.PyArray_ISALIGNED(place)
                and (out is dw or not overlap(out, dw)))
    result = place if straight else fresh(rows)
    job.x = <const char *> cnp.PyArray_DATA(units_of_v)
    numbers = np.zeros(2 * job.c)
    sums = numbers
    if c.v.size > 0:
        job.dy = <const char *> cnp.PyArray_DATA(rows)
        job.y = <char *> cnp.PyArray_DATA(result)
        job.dgamma, job.dbeta = &sums[0], &sums[job.c]
        with nogil:
            failed = spans_backward(&job)
        if failed:
            raise MemoryError("weight_norm: no memory for the gradients")
    dg = vector(&sums[0], job.c, c.dtype).reshape(c.g.shape) if job.c > 0 else np.zeros(c.g.shape, c.g.dtype)
    dv = units_back(result, c.axis)
    if out is not None:
        if not straight:
            np.copyto(out, dv)
        dv = out
    return WeightNormGrads(dv, dg)
