"""The one place where arguments are judged: dtypes, shapes, axes, layouts, overlaps.

Design. Everything here works on array headers and touches no element, so a check costs nanoseconds. Each function raises
TypeError or ValueError before anything is written; the message names the argument, what was expected and what came.
"""
cimport numpy as cnp
import numpy as np
from libc.math cimport isfinite

from fastnorm._kernels.c cimport FN_BF16, FN_F16, FN_F32, FN_F64
from fastnorm._kernels.core cimport fresh, ops_for

cnp.import_array()

cdef type _array = np.ndarray  # looked up once: a call has a dozen checks and a microsecond for them
cdef type _masked = np.ma.MaskedArray
cdef int _bfloat16 = -1  # NumPy's number for ml_dtypes.bfloat16, once an array of it was seen
_ACCEPTED = "float32, float64, float16 or bfloat16 (ml_dtypes)"
_NAMES = {FN_F32: "float32", FN_F64: "float64", FN_F16: "float16", FN_BF16: "bfloat16"}


cdef int _code(cnp.ndarray a) noexcept:
    """FN_F32 ..., or -1."""
    global _bfloat16
    cdef int t = cnp.PyArray_TYPE(a)
    if t == cnp.NPY_FLOAT32:
        return FN_F32
    if t == cnp.NPY_FLOAT64:
        return FN_F64
    if t == cnp.NPY_FLOAT16:
        return FN_F16
    if t == _bfloat16:
        return FN_BF16
    if t >= 256 and a.dtype.name == "bfloat16":  # a user-defined type (NPY_USERDEF)
        _bfloat16 = t
        return FN_BF16
    return -1


cdef int dtype_of(object a, str name) except -1:
    """The storage type of array `a`."""
    cdef int code
    if type(a) is not _array:
        if not isinstance(a, _array):
            raise TypeError(f"{name}: expected a numpy.ndarray, got {type(a).__name__}; numpy.asarray converts")
        if isinstance(a, _masked):
            raise TypeError(f"{name}: masked arrays are not supported; fill or drop the masked elements first")
    code = _code(a)
    if code < 0:
        raise TypeError(f"{name}: expected dtype {_ACCEPTED}, got {a.dtype}")
    if not cnp.PyArray_ISNOTSWAPPED(a):
        raise TypeError(f"{name}: expected native byte order, got {a.dtype.str}; "
                        f"{name}.astype({name}.dtype.newbyteorder('=')) converts")
    return code


cdef int axis_of(object axis, int ndim, str name) except -1:
    cdef int i
    if type(axis) is int and -ndim <= <object> axis < ndim:
        i = axis
        return i + ndim if i < 0 else i
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(axis).__name__}")
    try:
        i = axis.__index__()
    except OverflowError:
        i = ndim
    if i < -ndim or i >= ndim:
        raise ValueError(f"{name}: expected {-ndim} to {ndim - 1} for an array of {ndim} axes, got {axis}")
    return i + ndim if i < 0 else i


cdef double _real(object value, str name) except? -1:
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{name}: expected a real number, got {type(value).__name__}")
    try:
        return value
    except TypeError:
        raise TypeError(f"{name}: expected a real number, got {type(value).__name__}") from None


cdef double eps_of(object eps) except? -1:
    cdef double e = eps if type(eps) is float else _real(eps, "eps")
    if not isfinite(e) or e < 0:
        raise ValueError(f"eps: expected a finite number of at least 0, got {eps!r}")
    return e


cdef double fraction_of(object value, str name) except? -1:
    cdef double f = value if type(value) is float else _real(value, name)
    if not 0 <= f <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
    return f


cdef int activation_of(object activation) except -1:
    """1 for ReLU, 0 for none."""
    if activation is None:
        return 0
    if isinstance(activation, str):
        if activation == "relu":
            return 1
        raise ValueError(f"activation: expected None or 'relu', got {activation!r}")
    raise TypeError(f"activation: expected None or 'relu', got {type(activation).__name__}")


cdef int parameter_dtype(object p, str name, int dtype) except -1:
    """The storage type of parameters that go with data of storage type `dtype`: the same, or float32 with half types."""
    cdef int code = dtype_of(p, name)
    if code != dtype and not (code == FN_F32 and dtype != FN_F64):
        expected = _NAMES[dtype] if dtype in (FN_F32, FN_F64) else f"float32 or {_NAMES[dtype]}"
        raise TypeError(f"{name}: expected dtype {expected} with x of {_NAMES[dtype]}, got {p.dtype}")
    return code


cdef int parameter(object p, str name, Py_ssize_t size, int dtype) except -1:
    """The storage type of a vector of `size` parameters."""
    cdef int code = parameter_dtype(p, name, dtype)
    if cnp.PyArray_NDIM(p) != 1 or cnp.PyArray_DIM(p, 0) != size:
        raise ValueError(f"{name}: expected shape ({size},), got {p.shape}")
    return code


cdef int countable(Py_ssize_t count, str op) except -1:
    """Refuse so many statistics or parameters (beside empty data there may be) that their bytes are beyond counting."""
    if count >= <Py_ssize_t> 1 << 52:
        raise MemoryError(f"{op}: no memory for {count} statistics")
    return 0


# ---- layouts ----

cdef int _memory_order(cnp.ndarray a, int *order) noexcept:
    """Axes longer than 1 by falling stride into `order`; their number, or -1 where memory has gaps or overlaps."""
    cdef int i, j, k, count = 0
    cdef Py_ssize_t step
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, i) == 1:
            continue
        j = count
        while j > 0 and cnp.PyArray_STRIDE(a, order[j - 1]) < cnp.PyArray_STRIDE(a, i):
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
        count += 1
    step = cnp.PyArray_ITEMSIZE(a)
    for k in range(count - 1, -1, -1):
        if cnp.PyArray_STRIDE(a, order[k]) != step:
            return -1
        step *= cnp.PyArray_DIM(a, order[k])
    return count


cdef bint _is_dense(cnp.ndarray a, int first_axis_leads) noexcept:
    cdef int order[64]
    cdef int count
    if not cnp.PyArray_ISALIGNED(a):
        return False
    if cnp.PyArray_IS_C_CONTIGUOUS(a):
        return True
    count = _memory_order(a, order)
    if count < 0:
        return False
    return not first_axis_leads or cnp.PyArray_DIM(a, 0) == 1 or count == 0 or order[0] == 0


cdef cnp.ndarray dense(cnp.ndarray a, int first_axis_leads):
    """`a` itself where its memory is without gaps in some order of its axes (and axis 0 comes first, if asked), else a copy."""
    if _is_dense(a, first_axis_leads):
        return a
    cdef cnp.ndarray c = cnp.PyArray_NewCopy(a, cnp.NPY_KEEPORDER)
    if _is_dense(c, first_axis_leads):
        return c
    # Samples first, the other axes in the order that they have: as if each sample were copied alone.
    axes = sorted(range(1, cnp.PyArray_NDIM(c)), key=(<object> c).strides.__getitem__, reverse=True)
    return np.ascontiguousarray((<object> c).transpose([0, *axes])).transpose(np.argsort([0, *axes]))


cdef Layout layout_of(cnp.ndarray a, int axis, int samples_apart) noexcept:
    """Where the channel axis of a dense array lies in memory."""
    cdef Layout at
    cdef int order[64]
    cdef int k, i, count = 0
    cdef bint before = True
    at.n = at.pre = at.post = 1
    at.c = cnp.PyArray_DIM(a, axis)
    if cnp.PyArray_IS_C_CONTIGUOUS(a):
        count = cnp.PyArray_NDIM(a)
        for k in range(count):
            order[k] = k
    else:
        count = _memory_order(a, order)
        if at.c == 1:  # any place is right; in front of the space is the cheapest
            order[count] = axis
            if samples_apart and count > 0 and order[0] == 0:
                k = 1
            else:
                k = 0
            for i in range(count, k, -1):
                order[i] = order[i - 1]
            order[k] = axis
            count += 1
    for k in range(count):
        i = order[k]
        if i == axis:
            before = False
        elif i == 0 and samples_apart:
            at.n = cnp.PyArray_DIM(a, i)
        elif before:
            at.pre *= cnp.PyArray_DIM(a, i)
        else:
            at.post *= cnp.PyArray_DIM(a, i)
    if at.c == 1 and at.post == 1:  # a single column is a single span
        at.post, at.pre = at.pre, 1
    elif not samples_apart:
        at.n, at.pre = at.pre, 1
    return at


cdef bint _same_layout(cnp.ndarray a, cnp.ndarray b) noexcept:
    cdef int i
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, i) > 1 and cnp.PyArray_STRIDE(a, i) != cnp.PyArray_STRIDE(b, i):
            return False
    return True


cdef cnp.ndarray like(object a, str name, cnp.ndarray x, int dtype):
    """Array `a` in the layout of x: itself, or a copy where its layout differs. Same dtype and shape required."""
    if dtype_of(a, name) != dtype:
        raise TypeError(f"{name}: expected dtype {x.dtype}, as x has, got {a.dtype}")
    if not cnp.PyArray_SAMESHAPE(a, x):
        raise ValueError(f"{name}: expected shape {(<object> x).shape}, as x has, got {a.shape}")
    if cnp.PyArray_ISALIGNED(a) and _same_layout(a, x):
        return a
    c = fresh(x)
    np.copyto(c, a)
    return c


cdef cnp.ndarray output(object out, object x, cnp.ndarray work, int dtype):
    """Where results for `work` (x, or the dense copy of x) go: `out`, if one is given, else a new array of its layout.

    When x had to be copied, an `out` laid out like x or in C order is served through a temporary: then the array returned is
    not `out`, and the caller copies it back."""
    if out is None:
        return fresh(work)
    if dtype_of(out, "out") != dtype:
        raise TypeError(f"out: expected dtype {work.dtype}, as x has, got {out.dtype}")
    if not cnp.PyArray_SAMESHAPE(out, work):
        raise ValueError(f"out: expected shape {(<object> work).shape}, as x has, got {out.shape}")
    if not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError("out: expected a writable array, got a read-only one")
    if cnp.PyArray_ISALIGNED(out) and _same_layout(out, work):
        return out
    if x is not work and (_same_layout(out, x) or cnp.PyArray_IS_C_CONTIGUOUS(out)):
        return fresh(work)
    if not cnp.PyArray_ISALIGNED(out):
        raise ValueError("out: expected an aligned array, got one whose elements lie between their natural places in memory")
    raise ValueError(f"out: expected strides {(<object> work).strides}, as x has, got {out.strides}")


# ---- overlap ----

cdef void _bounds(cnp.ndarray a, char **low, char **high) noexcept:
    cdef int i
    cdef Py_ssize_t reach
    low[0] = high[0] = cnp.PyArray_BYTES(a)
    for i in range(cnp.PyArray_NDIM(a)):
        if cnp.PyArray_DIM(a, i) == 0:
            high[0] = low[0]
            return
        reach = cnp.PyArray_STRIDE(a, i) * (cnp.PyArray_DIM(a, i) - 1)
        if reach < 0:
            low[0] += reach
        else:
            high[0] += reach
    high[0] += cnp.PyArray_ITEMSIZE(a)


cdef bint overlap(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether the memory between the first and the last element of each has bytes in common."""
    cdef char *low
    cdef char *high
    cdef char *b_low
    cdef char *b_high
    _bounds(a, &low, &high)
    _bounds(b, &b_low, &b_high)
    return low < b_high and b_low < high


cdef int apart(object out, object a, str name, int may_be_same) except -1:
    """Refuse an `out` that shares memory with argument `a`, unless it is that very array and that is allowed."""
    cdef char *low
    cdef char *high
    cdef char *a_low
    cdef char *a_high
    if out is None or a is None or (out is a and may_be_same):
        return 0
    _bounds(out, &low, &high)
    _bounds(a, &a_low, &a_high)
    if low >= a_high or a_low >= high:
        return 0
    if may_be_same and low == a_low and high == a_high and _same_layout(out, a):
        return 0
    if may_be_same:
        raise ValueError(f"out: overlaps {name} in part; give {name} itself or an array of its own")
    raise ValueError(f"out: overlaps {name}, which is still needed; give an array of its own")


# ---- parameter vectors ----

cdef void fetch(object p, int dtype, double *dst) noexcept:
    """A checked parameter vector, as doubles."""
    ops_for(dtype).get(cnp.PyArray_DATA(p), cnp.PyArray_STRIDE(p, 0), cnp.PyArray_DIM(p, 0), dst)


cdef object vector(const double *values, Py_ssize_t n, int dtype):
    """A new vector of float64 for FN_F64 data, else of float32."""
    cdef cnp.npy_intp size = n
    cdef cnp.ndarray a = cnp.PyArray_SimpleNew(1, &size, cnp.NPY_FLOAT64 if dtype == FN_F64 else cnp.NPY_FLOAT32)
    ops_for(FN_F64 if dtype == FN_F64 else FN_F32).put(values, n, cnp.PyArray_DATA(a), cnp.PyArray_ITEMSIZE(a))
    return a


cdef object named(object kind, tuple values):
    """A named tuple, without the Python function that its constructor is."""
    return tuple.__new__(kind, values)
