"""Softmax, log-softmax, and the log-likelihood cost (cross-entropy) on top of them."""
cimport numpy as cnp
import numpy as np
from libc.stdint cimport int64_t

from fastnorm._kernels.c cimport FN_F64, fn_dd, fn_dd_add
from fastnorm._kernels.core cimport fresh, memory_flags, ops_for
from fastnorm._kernels.likelihood cimport (
    Likelihood, cross_entropy_grad_rows, cross_entropy_rows, softmax_grad_rows, softmax_rows,
)
from fastnorm.functional._check cimport apart, axis_of, dtype_of, fetch, fraction_of, like, output, parameter
from fastnorm._types import InputGrad, LogitsGrad

cnp.import_array()

__all__ = [
    "cross_entropy", "cross_entropy_backward", "cross_entropy_forward",
    "log_softmax", "log_softmax_backward", "log_softmax_forward",
    "softmax", "softmax_backward", "softmax_forward",
]


cdef inline cnp.ndarray last(cnp.ndarray a, int axis):
    """A view with `axis` last."""
    return a if axis == cnp.PyArray_NDIM(a) - 1 else np.moveaxis(a, axis, -1)


cdef cnp.ndarray rows_last(cnp.ndarray a, int axis):
    """`a` in C order with `axis` last: a view of its memory where that is possible, else a copy."""
    cdef cnp.ndarray moved = last(a, axis)
    if cnp.PyArray_IS_C_CONTIGUOUS(moved) and cnp.PyArray_ISALIGNED(moved):
        return moved
    return cnp.PyArray_NewCopy(moved, cnp.NPY_CORDER)


cdef cnp.ndarray laid_out(cnp.ndarray x):
    """x, or an array (of no particular elements) with the layout that results for x have."""
    cdef cnp.ndarray y = fresh(x)
    cdef int i
    for i in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIM(x, i) > 1 and cnp.PyArray_STRIDE(x, i) != cnp.PyArray_STRIDE(y, i):
            return y
    return x if cnp.PyArray_ISALIGNED(x) else y


# ---- softmax, log-softmax ----

cdef class SoftmaxContext:
    """What the backward needs: a reference to y, the output."""
    cdef readonly object y
    cdef readonly str op
    cdef int axis, dtype

    def __repr__(self):
        return f"<fastnorm {self.op} context, y of shape {self.y.shape}>"


cdef tuple forward(str op, object x, object axis, object out):
    cdef SoftmaxContext ctx = SoftmaxContext.__new__(SoftmaxContext)
    cdef cnp.ndarray work, y
    cdef const char *source
    cdef char *target
    cdef Py_ssize_t len_, rows
    cdef int logarithm = op == "log_softmax", flags = 0
    ctx.op = op
    ctx.dtype = dtype_of(x, "x")
    if cnp.PyArray_NDIM(x) == 0:
        raise ValueError("x: expected at least 1 axis, got shape ()")
    ctx.axis = axis_of(axis, cnp.PyArray_NDIM(x), "axis")
    work = rows_last(x, ctx.axis)
    if out is not None:
        dtype_of(out, "out")
        apart(out, x, "x", True)
    result = output(out, x, x if out is None or cnp.PyArray_IS_C_CONTIGUOUS(x) else laid_out(x), ctx.dtype)
    # The rows of the result lie in its own memory when the axis is last there, else they come back through a copy.
    y = last(result, ctx.axis)
    direct = cnp.PyArray_IS_C_CONTIGUOUS(y) and cnp.PyArray_ISALIGNED(y)
    if direct:
        flags = memory_flags(cnp.PyArray_NBYTES(y))
    else:
        y = np.empty_like(work) if np.may_share_memory(work, x) else work  # a row is read before it is written
    len_ = cnp.PyArray_DIM(work, cnp.PyArray_NDIM(work) - 1)
    rows = cnp.PyArray_SIZE(work) // len_ if len_ > 0 else 0
    source, target = <const char *> cnp.PyArray_DATA(work), <char *> cnp.PyArray_DATA(y)
    if rows > 0:
        with nogil:
            softmax_rows(ops_for(ctx.dtype), source, target, rows, len_, logarithm, flags)
    if not direct:
        np.copyto(last(result, ctx.axis), y)
    if out is not None and result is not out:
        np.copyto(out, result)
        result = out
    ctx.y = result
    return result, ctx


cdef object backward(SoftmaxContext ctx, object dy, object out):
    cdef cnp.ndarray y, g, dx
    cdef const char *ys
    cdef const char *gs
    cdef char *target
    cdef Py_ssize_t len_, rows
    cdef int logarithm = ctx.op == "log_softmax", flags = 0
    like(dy, "dy", ctx.y, ctx.dtype)
    y, g = rows_last(ctx.y, ctx.axis), rows_last(dy, ctx.axis)
    if out is not None:
        dtype_of(out, "out")
        apart(out, ctx.y, "y", False)
        apart(out, dy, "dy", True)
    result = output(out, ctx.y, ctx.y, ctx.dtype)
    dx = last(result, ctx.axis)
    direct = cnp.PyArray_IS_C_CONTIGUOUS(dx)
    if direct:
        flags = memory_flags(cnp.PyArray_NBYTES(dx))
    else:
        dx = np.empty_like(g) if np.may_share_memory(g, dy) else g
    len_ = cnp.PyArray_DIM(y, cnp.PyArray_NDIM(y) - 1)
    rows = cnp.PyArray_SIZE(y) // len_ if len_ > 0 else 0
    ys, gs, target = <const char *> cnp.PyArray_DATA(y), <const char *> cnp.PyArray_DATA(g), <char *> cnp.PyArray_DATA(dx)
    if rows > 0:
        with nogil:
            softmax_grad_rows(ops_for(ctx.dtype), gs, ys, target, rows, len_, logarithm, flags)
    if not direct:
        np.copyto(last(result, ctx.axis), dx)
    return InputGrad(result)


def softmax(x, axis=-1, *, out=None):
    """y = exp(x - max) / Σexp(x - max), along `axis`.

    Subtracting the maximum keeps exp in range and changes nothing else. Bridle 1990, "Probabilistic interpretation of
    feedforward classification network outputs".

    Parameters
    ----------
    x : array of at least 1 axis, float32, float64, float16 or bfloat16
        Copied once unless C-contiguous with `axis` last.
    axis : int
    out : array of x's shape, dtype and layout, optional
        x itself is allowed.

    Returns
    -------
    y : array of x's shape, dtype and layout
        exp is within 2 ULP and has the same bits on every instruction set. A row with NaN or +Inf, or of -Inf alone, is NaN.

    Raises
    ------
    TypeError, ValueError
        For dtypes, axis and out, before anything is written.
    """
    return forward("softmax", x, axis, out)[0]


def softmax_forward(x, axis=-1, *, out=None):
    """(y, ctx): `softmax`, and what `softmax_backward` needs: a reference to y, which must not change before it. out may be x."""
    return forward("softmax", x, axis, out)


def softmax_backward(dy, ctx, *, out=None):
    """dx = y·(dy - Σdy·y), the sum along the axis.

    Parameters
    ----------
    dy : array of y's shape and dtype
    ctx
        From `softmax_forward`.
    out : array of y's shape, dtype and layout, optional
        Receives dx; dy itself is allowed.

    Returns
    -------
    (dx,) : named tuple

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match y, or a ctx of another function.
    """
    if type(ctx) is not SoftmaxContext or (<SoftmaxContext> ctx).op != "softmax":
        raise TypeError(f"ctx: expected the context of softmax_forward, got {ctx!r}")
    return backward(<SoftmaxContext> ctx, dy, out)


def log_softmax(x, axis=-1, *, out=None):
    """y = x - max - log Σexp(x - max), along `axis`: the logarithm of softmax without its underflow.

    Parameters
    ----------
    x : array of at least 1 axis, float32, float64, float16 or bfloat16
        Copied once unless C-contiguous with `axis` last.
    axis : int
    out : array of x's shape, dtype and layout, optional
        x itself is allowed.

    Returns
    -------
    y : array of x's shape, dtype and layout

    Raises
    ------
    TypeError, ValueError
        For dtypes, axis and out, before anything is written.
    """
    return forward("log_softmax", x, axis, out)[0]


def log_softmax_forward(x, axis=-1, *, out=None):
    """(y, ctx): `log_softmax`, and what `log_softmax_backward` needs: a reference to y, which must not change before it."""
    return forward("log_softmax", x, axis, out)


def log_softmax_backward(dy, ctx, *, out=None):
    """dx = dy - exp(y)·Σdy, the sum along the axis.

    Parameters
    ----------
    dy : array of y's shape and dtype
    ctx
        From `log_softmax_forward`.
    out : array of y's shape, dtype and layout, optional
        Receives dx; dy itself is allowed.

    Returns
    -------
    (dx,) : named tuple

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match y, or a ctx of another function.
    """
    if type(ctx) is not SoftmaxContext or (<SoftmaxContext> ctx).op != "log_softmax":
        raise TypeError(f"ctx: expected the context of log_softmax_forward, got {ctx!r}")
    return backward(<SoftmaxContext> ctx, dy, out)


# ---- cross-entropy ----

cdef class CrossEntropyContext:
    """What the backward needs: a reference to logits, and two numbers per row."""
    cdef readonly object logits, reduction
    cdef cnp.ndarray rows, target, weight, stat
    cdef Likelihood job
    cdef int axis, dtype
    cdef double total
    cdef object shape  # of the costs

    def __repr__(self):
        return f"<fastnorm cross_entropy context, logits of shape {self.logits.shape}>"


cdef object TWO_63 = int(1 << 62) * 2  # beyond what C holds


cdef cnp.ndarray classes_of(object targets, object logits, int axis, object ignore_index):
    """Targets as int64 in C order, -1 where they are ignored."""
    cdef Py_ssize_t i, classes = logits.shape[axis]
    cdef int64_t ignored = 0
    cdef int64_t *to
    cdef cnp.ndarray known
    cdef bint may_be_ignored
    if not isinstance(targets, np.ndarray):
        raise TypeError(f"targets: expected an array of integer class indices, got {type(targets).__name__}")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integer class indices, got {targets.dtype}")
    expected = logits.shape[:axis] + logits.shape[axis + 1:]
    if targets.shape != expected:
        raise ValueError(f"targets: expected shape {expected}, the logits' without the class axis, got {targets.shape}")
    if type(ignore_index) is not int:
        try:
            ignore_index = ignore_index.__index__()
        except (AttributeError, TypeError):
            raise TypeError(f"ignore_index: expected an integer, got {type(ignore_index).__name__}") from None
    known = np.array(targets, np.int64, order="C")
    to = <int64_t *> cnp.PyArray_DATA(known)
    # Those of 2⁶³ and more are negative now, and are ignored only where ignore_index is one of them.
    wide = targets.dtype.kind == "u" and targets.dtype.itemsize == 8
    least, end = (0, TWO_63 + TWO_63) if wide else (-TWO_63, TWO_63)
    may_be_ignored = least <= ignore_index < end
    if may_be_ignored:
        ignored = ignore_index if ignore_index < TWO_63 else ignore_index - TWO_63 - TWO_63
    for i in range(cnp.PyArray_SIZE(known)):
        if may_be_ignored and to[i] == ignored:
            to[i] = -1
        elif to[i] < 0 or to[i] >= classes:
            first = tuple([int(k) for k in np.unravel_index(i, targets.shape)])
            raise ValueError(f"targets: expected classes from 0 to {classes - 1} or ignore_index {ignore_index}, "
                             f"got {int(targets[first])} at index {first[0] if len(first) == 1 else first}")
    return known


cdef double total(const double *values, const int64_t *classes, Py_ssize_t count) noexcept nogil:
    """Σ values[i], or Σ values[classes[i]] over the classes that are not negative; in pairs, so that no rounding adds up.
    (Python's sum gives other bits from 3.12 on.)"""
    cdef fn_dd all, one
    cdef Py_ssize_t i
    all.hi = all.lo = one.lo = 0
    for i in range(count):
        if classes == NULL or classes[i] >= 0:
            one.hi = values[i if classes == NULL else classes[i]]
            all = fn_dd_add(all, one)
    return all.hi + all.lo


cdef tuple cost(object logits, object targets, object weight, object ignore_index, object reduction, object label_smoothing,
                object axis):
    cdef CrossEntropyContext ctx = CrossEntropyContext.__new__(CrossEntropyContext)
    cdef Likelihood *job = &ctx.job
    cdef Py_ssize_t classes, i
    cdef double[::1] w
    cdef double loss
    cdef cnp.ndarray losses
    ctx.logits, ctx.reduction = logits, reduction
    ctx.dtype = dtype_of(logits, "logits")
    if cnp.PyArray_NDIM(logits) == 0:
        raise ValueError("logits: expected at least 1 axis, got shape ()")
    ctx.axis = 0 if cnp.PyArray_NDIM(logits) == 1 and axis == 1 else axis_of(axis, cnp.PyArray_NDIM(logits), "axis")
    classes = cnp.PyArray_DIM(logits, ctx.axis)
    if not (isinstance(reduction, str) and reduction in ("mean", "sum", "none")):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    job.smoothing = fraction_of(label_smoothing, "label_smoothing")
    ctx.weight = np.ones(classes)
    w = ctx.weight
    if weight is not None:
        i = parameter(weight, "weight", classes, ctx.dtype)
        if classes > 0:
            fetch(weight, i, &w[0])
    ctx.target = classes_of(targets, logits, ctx.axis, ignore_index)
    ctx.rows = rows_last(logits, ctx.axis)
    job.ops = ops_for(ctx.dtype)
    job.len, job.rows = classes, ctx.target.size
    job.weight_sum = total(&w[0], NULL, classes) if classes > 0 else 0
    ctx.stat = np.empty(2 * job.rows)
    losses = np.zeros(job.rows)
    job.x, job.target = <const char *> cnp.PyArray_DATA(ctx.rows), <const int64_t *> cnp.PyArray_DATA(ctx.target)
    job.weight, job.stat = <const double *> cnp.PyArray_DATA(ctx.weight), <double *> cnp.PyArray_DATA(ctx.stat)
    job.loss = <double *> cnp.PyArray_DATA(losses)
    if classes > 0 and job.rows > 0:
        with nogil:
            cross_entropy_rows(job)
    ctx.rows = None  # where it was a copy, the backward makes it again rather than have it kept meanwhile
    ctx.total = total(job.weight, job.target, job.rows)
    ctx.shape = targets.shape
    compute = np.float64 if ctx.dtype == FN_F64 else np.float32
    if reduction == "none":
        return losses.astype(compute).reshape(targets.shape), ctx
    loss = total(job.loss, NULL, job.rows)
    if reduction == "mean":
        loss = loss / ctx.total if ctx.total != 0 else float("nan")
    return compute(loss), ctx


def cross_entropy(logits, targets, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, *, axis=1):
    """loss_i = -Σ_k q_ik·weight_k·log softmax(logits_i)_k with q = (1 - s)·onehot(target_i) + s/K: the log-likelihood cost.

    s is label_smoothing, K the number of classes. "mean" divides the sum by Σ_i weight[target_i] over the rows that count
    (NaN if there are none, as torch), "sum" does not divide, "none" returns the array of costs. Label smoothing: Szegedy et
    al. 2016, arXiv:1512.00567, section 7.

    Parameters
    ----------
    logits : array, float32, float64, float16 or bfloat16
        Classes on `axis` (on the only axis, if there is one).
    targets : integer array of the logits' shape without the class axis
        Class indices.
    weight : array (K,), optional
        The logits' dtype, or float32 with half types.
    ignore_index : int
        Rows with this target cost nothing.
    reduction : "mean", "sum" or "none"
    label_smoothing : float
        0 ≤ s ≤ 1.
    axis : int

    Returns
    -------
    loss : scalar, or array of targets' shape for "none"
        float32 (float64 for float64 logits).

    Raises
    ------
    TypeError, ValueError
        ValueError for a target out of range names the first bad index.
    """
    return cost(logits, targets, weight, ignore_index, reduction, label_smoothing, axis)[0]


def cross_entropy_forward(logits, targets, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, *, axis=1):
    """(loss, ctx): `cross_entropy`, and what `cross_entropy_backward` needs: a reference to logits, which must not change
    before it, a copy of the targets, and two numbers per row."""
    return cost(logits, targets, weight, ignore_index, reduction, label_smoothing, axis)


def cross_entropy_backward(dy, ctx, *, out=None):
    """dlogits_ik = dy_i·[(1 - s)·w_t·(p_ik - onehot_ik) + s/K·(p_ik·Σw - w_k)], p = softmax(logits).

    dy_i is dy for "sum", dy/Σ_i w_t for "mean", dy[i] for "none"; ignored rows get 0. Without weights and smoothing that is
    the familiar (p - onehot)/n.

    Parameters
    ----------
    dy : scalar, or array of targets' shape for "none"
        The upstream gradient: 1 for the gradient of the loss itself.
    ctx
        From `cross_entropy_forward`.
    out : array of the logits' shape, dtype and layout, optional
        Receives dlogits; must not overlap logits.

    Returns
    -------
    (dlogits,) : named tuple

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match, or a ctx of another function.
    """
    cdef int flags
    cdef CrossEntropyContext c
    cdef cnp.ndarray dx
    cdef const double *scales
    cdef char *target
    if type(ctx) is not CrossEntropyContext:
        raise TypeError(f"ctx: expected the context of cross_entropy_forward, got {ctx!r}")
    c = <CrossEntropyContext> ctx
    dy = np.asarray(dy)
    expected = c.shape if c.reduction == "none" else ()
    if dy.shape != expected:
        raise ValueError(f"dy: expected shape {expected} for reduction {c.reduction!r}, got {dy.shape}")
    if dy.dtype.kind not in "fiu" and dy.dtype.name != "bfloat16":
        raise TypeError(f"dy: expected real numbers, got {dy.dtype}")
    cdef cnp.ndarray scale
    if c.reduction == "none":
        scale = np.array(dy, np.float64, order="C")
    else:
        scale = np.full(c.shape, dy, np.float64)
    if c.reduction == "mean":
        scale /= c.total if c.total != 0 else float("nan")
    if out is not None:
        dtype_of(out, "out")
        apart(out, c.logits, "logits", False)
    result = output(out, c.logits, c.logits, c.dtype)
    cdef cnp.ndarray rows = rows_last(c.logits, c.axis)
    c.job.x = <const char *> cnp.PyArray_DATA(rows)
    dx = last(result, c.axis)
    direct = cnp.PyArray_IS_C_CONTIGUOUS(dx)
    if not direct:
        dx = np.empty_like(rows) if np.may_share_memory(rows, c.logits) else rows  # a row is read before it is written
    flags = memory_flags(cnp.PyArray_NBYTES(dx))
    scales, target = <const double *> cnp.PyArray_DATA(scale), <char *> cnp.PyArray_DATA(dx)
    if c.job.rows > 0 and c.job.len > 0:
        with nogil:
            cross_entropy_grad_rows(&c.job, scales, target, flags)
    if not direct:
        np.copyto(last(result, c.axis), dx)
    return LogitsGrad(result)
