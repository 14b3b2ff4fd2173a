"""Switchable normalization (Luo et al. 2018, arXiv:1806.10779): instance, layer and batch moments, mixed.

Design. One reduction gives the instance moments; everything after it is arithmetic on (N, C) arrays, here in NumPy. The mixed
statistics are then given ones, as those of evaluation are. Means are handled as offsets δ from one of them, so that
nothing cancels when the mean is large: mean = base + δ; and in pairs of doubles, because x - μ may be far smaller than the
offsets that μ is mixed from.

    μ_ln = mean_c(μ_in),  var_ln = mean_c(var_in) + var_c(μ_in), and likewise BN over the samples
    μ = Σ_k w_k·μ_k,  var = Σ_k u_k·var_k,  w = softmax(mean_logits), u = softmax(var_logits), k = IN, LN, BN
"""
cimport numpy as cnp
import numpy as np
from libc.math cimport isfinite
from libc.stdlib cimport free, malloc

from fastnorm._kernels.c cimport FN_F64, fn_grad, fn_moments, fn_sums
from fastnorm._kernels.core cimport memory_flags, ops_for
from fastnorm._kernels.job cimport Job
from fastnorm._kernels.norm cimport norm_forward
from fastnorm._kernels.spans cimport spans_combine, spans_moments, spans_sums
from fastnorm.functional._channels cimport ChannelContext, check_out, check_running, prepare, run, update_running
from fastnorm.functional._check cimport apart, dtype_of, fetch, like, output, parameter
from fastnorm.functional._pairs import Pair, softmax
from fastnorm._types import SwitchableNormGrads

cnp.import_array()

__all__ = ["switchable_norm", "switchable_norm_backward", "switchable_norm_forward"]


cdef class SwitchableContext:
    """What the backward needs: a reference to x, and float64 arrays of statistics and weights."""
    cdef ChannelContext base
    cdef readonly bint training
    cdef int copied_axis  # the channel axis, where x was copied; the copy is not kept
    # (N, C) or broadcast to it: offsets of the three means from the instance means, the three variances, the weights.
    cdef readonly object offsets, variances, mean_weights, var_weights, in_mean, in_mean_lo

    @property
    def x(self):
        """The input."""
        return self.base.x

    @property
    def mean(self):
        """The mixed mean, shape (N, C)."""
        return self.base.mean

    @property
    def rstd(self):
        """1/sqrt(mixed variance + eps), shape (N, C)."""
        return self.base.rstd

    def __repr__(self):
        return f"<fastnorm switchable_norm context, x of shape {self.x.shape}>"


cdef object weights_of(object logits, str name, int dtype):
    """softmax of three logits, as Pairs; to a pair's digits for float64."""
    cdef double values[3]
    cdef double weights[3]
    if logits is None:
        raise TypeError(f"{name}: expected an array of shape (3,), got None")
    fetch(logits, parameter(logits, name, 3, dtype), values)
    ops_for(FN_F64).softmax(values, weights, 1, 3, 0, 0, NULL)  # NumPy's exp differs between processors
    if dtype == FN_F64 and isfinite(values[0]) and isfinite(values[1]) and isfinite(values[2]):
        return softmax([values[0], values[1], values[2]])
    return [Pair(weights[0]), Pair(weights[1]), Pair(weights[2])]


cdef int copy_in(object a, double *dst) except -1:
    cdef Py_ssize_t i
    cdef const double[::1] v = np.ascontiguousarray(a, dtype=np.float64).reshape(-1)
    for i in range(v.shape[0]):
        dst[i] = v[i]
    return 0


cdef tuple forward(object x, object mean_logits, object var_logits, object running_mean, object running_var, object weight,
                   object bias, bint training, object momentum, object eps, object axis, object out, bint keep):
    cdef ChannelContext ctx
    cdef SwitchableContext s = SwitchableContext.__new__(SwitchableContext)
    cdef Py_ssize_t i, n, c
    cdef double step, size
    cdef int failed = 0, code
    cdef fn_moments *m
    cdef double[:, ::1] lows
    dtype_of(x, "x")
    # The loops are those of instance norm over C-ordered samples; another order of the axes is copied once.
    ctx = prepare("switchable_norm", x, axis, 0, weight, bias, eps, None, None)
    s.copied_axis = -1
    if ctx.job.c == 1:  # one channel: whatever lies before or behind it is its space
        ctx.job.post, ctx.job.pre = ctx.job.pre * ctx.job.post, 1
    if ctx.job.pre > 1:
        s.copied_axis = axis if axis >= 0 else axis + x.ndim
        ctx = prepare("switchable_norm", channels_first(x, s.copied_axis), axis, 0, weight, bias, eps, None, None)
        ctx.x = x
    code = ctx.dtype
    n, c = ctx.job.n, ctx.job.c
    size = <double> (n * ctx.job.post)
    s.base, s.training = ctx, training
    mean_weights, var_weights = weights_of(mean_logits, "mean_logits", code), weights_of(var_logits, "var_logits", code)
    s.mean_weights, s.var_weights = (np.array([float(w.hi) for w in weights]) for weights in (mean_weights, var_weights))
    step = check_running(ctx, running_mean, running_var, momentum, training)
    if training and size == 1 and c > 0:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {x.shape}")
    check_out(out, weight, bias, running_mean, running_var)
    for name, a in (("mean_logits", mean_logits), ("var_logits", var_logits)):
        apart(out, a, name, False)
    if x.size == 0:
        return run(ctx, out, keep), s

    m = <fn_moments *> malloc(n * c * sizeof(fn_moments))
    if m == NULL:
        raise MemoryError("switchable_norm: no memory for the statistics")
    with nogil:
        failed = spans_moments(&ctx.job, m)
    if failed:
        free(m)
        raise MemoryError("switchable_norm: no memory for partial results")
    values = np.empty((3, n * c))
    lows = values
    for i in range(n * c):
        lows[0, i], lows[1, i], lows[2, i] = m[i].mean, m[i].mean_lo, m[i].m2 / m[i].n
    free(m)
    s.in_mean, s.in_mean_lo, var_in = values.reshape(3, n, c)

    with np.errstate(all="ignore"):  # NaN and Inf of the data spread to what shares their statistics, without a word
        instance, base = Pair(s.in_mean, s.in_mean_lo), Pair(s.in_mean[0, 0])
        delta = instance - base
        delta_ln, var_ln = merged(delta, var_in, 1)
        if training:
            delta_bn, var_bn = merged(delta, var_in, 0)
        else:
            bn, var_bn = np.empty((1, c)), np.empty((1, c))
            read_running(running_mean, bn)
            read_running(running_var, var_bn)
            delta_bn = Pair(bn) - base
        offset_ln, offset_bn = delta_ln - delta, delta_bn - delta
        s.offsets = (np.zeros((1, 1)), offset_ln.hi, offset_bn.hi)
        s.variances = (var_in, var_ln, var_bn)
        mean = instance + mean_weights[1] * offset_ln + mean_weights[2] * offset_bn
        var = mix(s.var_weights, s.variances)
        ctx.job.given = 1
        copy_in(np.broadcast_to(mean.hi, (n, c)), ctx.job.mean)
        copy_in(np.broadcast_to(mean.lo, (n, c)), ctx.job.mean_lo)
        copy_in(np.broadcast_to(var, (n, c)), ctx.job.var)
        copy_in(np.broadcast_to(1 / np.sqrt(var + ctx.job.eps), (n, c)), ctx.job.rstd)
        if training and running_mean is not None:
            batch = np.stack([(base + delta_bn).hi[0], np.broadcast_to(var_bn, (1, c))[0]])
    y = evaluate(ctx, out, keep)
    if s.copied_axis >= 0:
        ctx._x = None
    if training and running_mean is not None:
        lows = batch
        update_running(running_mean, step, &lows[0, 0], 1, c, 1)
        update_running(running_var, step, &lows[1, 0], 1, c, size / (size - 1))
    return y, s


cdef object average(object a, int axis):
    """The mean along an axis, kept. Contiguous there, so that NumPy adds pairwise and a long sum loses no digits."""
    return np.expand_dims(np.ascontiguousarray(np.moveaxis(a, axis, -1)).mean(-1), axis)


cdef tuple merged(object delta, object var, int axis):
    """Mean and variance of the union along an axis: μ = mean(δ), mean(var) + mean((δ - μ)²)."""
    mean = delta.mean(axis)
    return mean, average(var + (delta - mean).hi ** 2, axis)


cdef object mix(object weights, tuple parts):
    return weights[0] * parts[0] + weights[1] * parts[1] + weights[2] * parts[2]


cdef int read_running(object running, object into) except -1:
    cdef double[:, ::1] v = into
    fetch(running, dtype_of(running, "running"), &v[0, 0])
    return 0


cdef object channels_first(object x, int axis):
    """A copy in which each channel of a sample is one span, as a view with x's axes."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, axis, 1)), 1, axis)


cdef object evaluate(ChannelContext ctx, object out, bint keep):
    cdef Job job = ctx.job
    cdef int failed = 0
    apart(out, ctx.x, "x", not keep)
    y = output(out, ctx.x, ctx._x, ctx.dtype)
    job.y = <char *> cnp.PyArray_DATA(y)
    job.flags = memory_flags(cnp.PyArray_NBYTES(y))
    with nogil:
        failed = norm_forward(&job)
    if failed:
        raise MemoryError("switchable_norm: no memory for partial results")
    if out is not None and out is not y:
        np.copyto(out, y)
        return out
    return y


def switchable_norm(x, mean_logits, var_logits, running_mean=None, running_var=None, weight=None, bias=None, training=False,
                    momentum=0.1, eps=1e-5, *, axis=1, out=None):
    """y = (x - μ) / sqrt(var + eps) · weight + bias with μ = Σ_k w_k·μ_k, var = Σ_k u_k·var_k over k = IN, LN, BN.

    w = softmax(mean_logits), u = softmax(var_logits), in the order instance, layer, batch. The batch part follows `training`
    and the running statistics as `batch_norm` does. Luo et al. 2018, arXiv:1806.10779, equations 2 to 5.

    Parameters
    ----------
    x : array (N, C, ...), float32, float64, float16 or bfloat16
        Samples on axis 0. Channels-last memory is copied once.
    mean_logits, var_logits : array (3,)
    running_mean, running_var : array (C,), optional; needed when training is False
    weight, bias : array (C,), optional
        Parameters and statistics: x's dtype, or float32 with half types.
    training : bool
    momentum, eps : float
        0 ≤ momentum ≤ 1; eps ≥ 0 and finite.
    axis : int
        The channel axis, not 0; -1 for channels-last arrays.
    out : array of x's shape, dtype and layout, optional
        x itself is allowed.

    Returns
    -------
    y : array of x's shape and dtype

    Raises
    ------
    TypeError, ValueError
        Before anything is written; also for one value per channel when training.
    """
    return forward(x, mean_logits, var_logits, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
                   False)[0]


def switchable_norm_forward(x, mean_logits, var_logits, running_mean=None, running_var=None, weight=None, bias=None,
                            training=False, momentum=0.1, eps=1e-5, *, axis=1, out=None):
    """(y, ctx): `switchable_norm`, and what `switchable_norm_backward` needs: a reference to x, which must not change before
    the backward, and the statistics of each sample and channel. out must not overlap x."""
    return forward(x, mean_logits, var_logits, running_mean, running_var, weight, bias, training, momentum, eps, axis, out,
                   True)


def switchable_norm_backward(dy, ctx, *, out=None):
    """dx = weight·rstd·dy + Σ_k [w_k·S_k(dμ) + 2·u_k·S_k(dvar)·(x - μ_k)] / m_k, through all three moments.

    With dμ = -rstd·Σg and dvar = -½·rstd²·Σ(g·xhat) summed over space, g = dy·weight, and S_k the sum over what moment k
    shares beyond space: nothing (IN), channels (LN), samples (BN; absent when not training, when they are constants).
    dmean_logits_k = w_k·Σ dμ·(μ_k - μ), dvar_logits_k = u_k·Σ dvar·(var_k - var). Luo et al. 2018, appendix A.

    Parameters
    ----------
    dy : array of x's shape and dtype
    ctx
        From `switchable_norm_forward`.
    out : array of x's shape, dtype and layout, optional
        Receives dx; dy itself is allowed.

    Returns
    -------
    (dx, dweight, dbias, dmean_logits, dvar_logits) : named tuple
        Parameter gradients are float32 (float64 for float64 x), None where the parameter was None.

    Raises
    ------
    TypeError, ValueError
        For a dy or out that does not match x, or a ctx of another function.
    """
    if type(ctx) is not SwitchableContext:
        raise TypeError(f"ctx: expected the context of switchable_norm_forward, got {ctx!r}")
    return backward(<SwitchableContext> ctx, dy, out)


cdef object backward(SwitchableContext s, object dy, object out):
    cdef ChannelContext ctx = s.base
    cdef Job job = ctx.job
    cdef Py_ssize_t n = job.n, c = job.c, i
    cdef cnp.ndarray work = ctx._x if s.copied_axis < 0 else channels_first(ctx.x, s.copied_axis)
    cdef cnp.ndarray g = like(dy, "dy", work, ctx.dtype)
    cdef double m = <double> job.post
    cdef double[::1] view
    cdef const double[:, ::1] first, second, third
    cdef fn_grad *coefficients
    if out is not None:
        dtype_of(out, "out")
        apart(out, ctx.x, "x", False)
        apart(out, dy, "dy", True)
    dx = output(out, ctx.x, work, ctx.dtype)
    job.x = <const char *> cnp.PyArray_DATA(work)
    compute = np.float64 if ctx.dtype == FN_F64 else np.float32
    if ctx.x.size == 0:
        none = np.zeros(c, compute)
        return SwitchableNormGrads(out if out is not None else dx, none if ctx.has_weight else None,
                                   none.copy() if ctx.has_bias else None, np.zeros(3, compute), np.zeros(3, compute))
    # Sums about the instance means, which lie nearest the data.
    means = np.concatenate([s.in_mean.reshape(-1), s.in_mean_lo.reshape(-1)])
    view = means
    job.mean, job.mean_lo = &view[0], &view[n * c]
    job.dy = <const char *> cnp.PyArray_DATA(g)
    job.y = <char *> cnp.PyArray_DATA(dx)
    job.flags |= memory_flags(cnp.PyArray_NBYTES(dx))
    sums = np.empty((n, c, 4))
    view = sums.reshape(-1)
    with nogil:
        spans_sums(&job, <fn_sums *> &view[0])
    total, dot = sums[..., 0] + sums[..., 1], sums[..., 2] + sums[..., 3]

    with np.errstate(all="ignore"):
        w, u = s.mean_weights, s.var_weights
        shift = mix(w, s.offsets)  # μ - μ_in
        rstd = ctx.rstd
        gamma = np.array([ctx.job.gamma[i] for i in range(c)]) if ctx.has_weight else np.ones(c)
        dot_mixed = dot - shift * total  # Σdy·(x - μ)
        dmu = -rstd * gamma * total
        dvar = -0.5 * (rstd * rstd * rstd) * gamma * dot_mixed  # NumPy's power differs between processors
        a = np.broadcast_to(gamma * rstd, (n, c))
        b, k = 2 * u[0] * dvar / m, w[0] * dmu / m
        shared = [(1, c)] + ([(0, n)] if s.training else [])
        for part, (axis, count) in enumerate(shared, start=1):
            of_mean = w[part] * dmu.sum(axis, keepdims=True) / (m * count)
            of_var = 2 * u[part] * dvar.sum(axis, keepdims=True) / (m * count)
            b = b + of_var
            k = k + of_mean - of_var * s.offsets[part]  # x - μ_k = (x - μ_in) - (μ_k - μ_in)
        var = mix(u, s.variances)
        dmean_logits = np.array([w[part] * (dmu * (s.offsets[part] - shift)).sum() for part in range(3)])
        dvar_logits = np.array([u[part] * (dvar * (s.variances[part] - var)).sum() for part in range(3)])
        dweight = (dot_mixed * rstd).sum(0)
        dbias = total.sum(0)

    coefficients = <fn_grad *> malloc(n * c * sizeof(fn_grad))
    if coefficients == NULL:
        raise MemoryError("switchable_norm: no memory for the gradients")
    first, second, third = (np.ascontiguousarray(np.broadcast_to(z, (n, c))) for z in (a, b, k))
    for i in range(n * c):
        coefficients[i].a, coefficients[i].b, coefficients[i].c = first[i // c, i % c], second[i // c, i % c], third[i // c, i % c]
    with nogil:
        spans_combine(&job, coefficients)
    free(coefficients)
    if out is not None and out is not dx:
        np.copyto(out, dx)
        dx = out
    return SwitchableNormGrads(dx, dweight.astype(compute) if ctx.has_weight else None,
                               dbias.astype(compute) if ctx.has_bias else None,
                               dmean_logits.astype(compute), dvar_logits.astype(compute))
