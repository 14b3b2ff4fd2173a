"""Batch normalization (Ioffe and Szegedy 2015, arXiv:1502.03167) and the moments that it rests on."""
cimport numpy as cnp
import numpy as np
from libc.stdlib cimport free, malloc

from fastnorm._kernels.c cimport FN_STREAM, fn_moments
from fastnorm._kernels.core cimport memory_flags, ops_for
from fastnorm._kernels.job cimport Job, element_count, statistic_size
from fastnorm._kernels.norm cimport norm_moments
from fastnorm.functional._channels cimport (
    ChannelContext, check_out, check_running, give_back, prepare, run, update_running, use_running,
)
from fastnorm.functional._check cimport axis_of, countable, dense, dtype_of, vector

cnp.import_array()

__all__ = ["batch_norm", "batch_norm_backward", "batch_norm_forward", "moments"]


cdef tuple forward(object x, object running_mean, object running_var, object weight, object bias, bint training,
                   object momentum, object eps, object axis, object activation, object residual, object out, bint keep):
    cdef double step
    cdef ChannelContext ctx = prepare("batch_norm", x, axis, None, weight, bias, eps, activation, residual)
    cdef double size = statistic_size(&ctx.job)
    step = check_running(ctx, running_mean, running_var, momentum, training)
    if training and size == 1 and ctx.job.c > 0:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {x.shape}")
    check_out(out, weight, bias, running_mean, running_var)
    if not training:
        use_running(ctx, running_mean, running_var)
    y = run(ctx, out, keep)
    if training and running_mean is not None and element_count(&ctx.job) > 0:
        update_running(running_mean, step, ctx.job.mean, 1, ctx.job.c, 1)
        update_running(running_var, step, ctx.job.var, 1, ctx.job.c, size / (size - 1))
    return y, ctx


def batch_norm(x, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, *,
               axis=1, activation=None, residual=None, out=None):
    """y = act((x - mean) / sqrt(var + eps) · weight + bias + residual), one mean and variance per channel.

    Training: mean = Σx/m and var = Σ(x - mean)²/m over all m elements of the channel, in every other axis; and, when given,
    running ← (1 - momentum)·running + momentum·batch in place, with the unbiased m/(m - 1)·var. Otherwise the running
    statistics are used, and left alone.

    Ioffe and Szegedy 2015, arXiv:1502.03167.

    Parameters
    ----------
    x : array (N, C, ...), float32, float64, float16 or bfloat16
        Memory in any order of the axes is used in place; other strided views are copied once.
    running_mean, running_var : array (C,), optional; needed when training is False
    weight, bias : array (C,), optional
        gamma and beta. Parameters and statistics: x's dtype, or float32 with half types.
    training : bool
    momentum, eps : float
        0 ≤ momentum ≤ 1; eps ≥ 0 and finite.
    axis : int
        The channel axis; -1 for channels-last arrays.
    activation : None or "relu"
    residual : array of x's shape and dtype, optional
        Added before the activation.
    out : array of x's shape, dtype and layout, optional
        x itself is allowed.

    Returns
    -------
    y : array of x's shape, dtype and layout
        float32 results are within 4 ULP at the scale |gamma·xhat| + |beta|; the same bits for any number of threads and at
        every instruction set. An empty x gives an empty y and leaves the running statistics alone.

    Raises
    ------
    TypeError, ValueError
        Before anything is written: wrong types, dtypes, shapes, values, a read-only or overlapping out, or one value per
        channel when training.
    """
    return forward(x, running_mean, running_var, weight, bias, training, momentum, eps, axis, activation, residual, out,
                   False)[0]


def batch_norm_forward(x, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1,
                       eps=1e-5, *, axis=1, activation=None, residual=None, out=None):
    """(y, ctx): `batch_norm`, and what `batch_norm_backward` needs.

    ctx refers to x and residual, which must not change before the backward, and holds each channel's statistics (ctx.mean,
    ctx.var, ctx.rstd, float64); it copies no array of x's size. out must not overlap x or residual.
    """
    return forward(x, running_mean, running_var, weight, bias, training, momentum, eps, axis, activation, residual, out, True)


def batch_norm_backward(dy, ctx, *, out=None):
    """dx = gamma·rstd·(dy - Σdy/m - xhat·Σ(dy·xhat)/m), dweight = Σdy·xhat, dbias = Σdy.

    Sums run over all elements of the channel; with the ReLU, dy counts where y > 0. When the forward used running statistics
    they are constants: dx = gamma·rstd·dy. Ioffe and Szegedy 2015, section 3.

    Parameters
    ----------
    dy : array of x's shape and dtype
        The upstream gradient.
    ctx
        From `batch_norm_forward`.
    out : array of x's shape, dtype and layout, optional
        Receives dx; dy itself is allowed, unless it is also the gradient of residual.

    Returns
    -------
    (dx, dweight, dbias), and dresidual where there was a residual : named tuple
        dweight, dbias are float32 (float64 for float64 x), None where the parameter was None. Without a ReLU dresidual is dy.

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match x, or a ctx of another function.
    """
    if type(ctx) is not ChannelContext or (<ChannelContext> ctx).op != "batch_norm":
        raise TypeError(f"ctx: expected the context of batch_norm_forward, got {ctx!r}")
    return give_back(<ChannelContext> ctx, dy, out)


def moments(x, axis=None, *, ddof=0, keepdims=False):
    """mean = Σx/m and var = Σ(x - mean)²/(m - ddof) over the given axes (all of them by default).

    One pass over memory, without the cancellation of E[x²] - E[x]²: sums in double over each block, and where the mean outweighs
    the deviations a corrected two-pass (Chan, Golub and LeVeque 1983); blocks merged by Chan's formula.

    Parameters
    ----------
    x : array, float32, float64, float16 or bfloat16
    axis : int, tuple of int or None
        The axes to reduce.
    ddof : float
        m - ddof divides the squares: 1 for the unbiased variance.
    keepdims : bool
        Keep reduced axes with length 1.

    Returns
    -------
    (mean, var) : arrays of float32 (float64 for float64 x)
        Of a float32 x, mean within 1 ULP at the scale max(|mean|, std) and var within 2 ULP. NaN where m is 0.

    Raises
    ------
    TypeError, ValueError
        For dtypes and axes.
    """
    cdef Job job
    cdef int code = dtype_of(x, "x"), ndim = cnp.PyArray_NDIM(x), failed = 0
    cdef Py_ssize_t i, kept = 1, m = 1
    cdef double divisor, free_degrees
    if axis is None:
        axes = list(range(ndim))
    else:
        axes = sorted(axis_of(a, ndim, "axis") for a in (axis if isinstance(axis, tuple) else (axis,)))
        if len(set(axes)) != len(axes):
            raise ValueError(f"axis: expected each axis once, got {axis}")
    if isinstance(ddof, (str, bytes)) or not hasattr(ddof, "__float__"):
        raise TypeError(f"ddof: expected a real number, got {type(ddof).__name__}")
    free_degrees = ddof
    rest = [i for i in range(ndim) if i not in axes]
    # The kept axes are the channels: in front, or behind, if memory has them so; else a copy puts them in front.
    cdef cnp.ndarray w
    x_dense = dense(x, False)
    front, behind = x_dense.transpose(rest + axes), x_dense.transpose(axes + rest)
    if cnp.PyArray_IS_C_CONTIGUOUS(behind) and not cnp.PyArray_IS_C_CONTIGUOUS(front):
        w = behind
    else:
        w = np.ascontiguousarray(front)
    for i in rest:
        kept *= x.shape[i]
    for i in axes:
        m *= x.shape[i]
    job.ops = ops_for(code)
    job.x = <const char *> cnp.PyArray_DATA(w)
    job.n = job.pre = job.post = 1
    job.c, job.groups = kept, kept
    job.given = job.lengths = 0
    job.flags = memory_flags(cnp.PyArray_NBYTES(w)) & ~FN_STREAM  # nothing is written
    if w is behind:
        job.n, job.groups = m, 0
    else:
        job.post = m
    countable(kept, "moments")
    cdef fn_moments *results = <fn_moments *> malloc((kept + 1) * sizeof(fn_moments))
    cdef double *values = <double *> malloc((2 * kept + 1) * sizeof(double))
    try:
        if results == NULL or values == NULL:
            raise MemoryError("moments: no memory for the results")
        divisor = <double> m - free_degrees
        if kept > 0 and m > 0:
            with nogil:
                failed = norm_moments(&job, results)
            if failed:
                raise MemoryError("moments: no memory for partial results")
        for i in range(kept):
            values[i] = results[i].mean if m > 0 else float("nan")
            values[kept + i] = results[i].m2 / divisor if m > 0 and divisor > 0 else float("nan")
        shape = tuple((1 if i in axes else n) for i, n in enumerate(x.shape)) if keepdims else tuple(x.shape[i] for i in rest)
        return vector(values, kept, code).reshape(shape), vector(values + kept, kept, code).reshape(shape)
    finally:
        free(results)
        free(values)
