"""Switchable normalization (Luo et al. 2018, arXiv:1806.10779): instance, layer and batch moments, mixed.

Design. One reduction gives the instance moments; everything after it is arithmetic on a number for each sample and channel
(csrc/mix.h). The mixed statistics are then given ones, as those of evaluation are.

    μ_ln = mean_c(μ_in),  var_ln = mean_c(var_in) + var_c(μ_in), and likewise BN over the samples
    μ = Σ_k w_k·μ_k,  var = Σ_k u_k·var_k,  w = softmax(mean_logits), u = softmax(var_logits), k = IN, LN, BN
"""
cimport numpy as cnp
import numpy as np
from libc.math cimport isfinite
from libc.stdlib cimport free, malloc

from fastnorm._kernels.c cimport FN_F64, fn_dd, fn_grad, fn_moments, fn_sums
from fastnorm._kernels.core cimport memory_flags, ops_for
from fastnorm._kernels.job cimport Job
from fastnorm._kernels.norm cimport norm_forward
from fastnorm._kernels.spans cimport spans_combine, spans_moments, spans_sums
from fastnorm.functional._channels cimport ChannelContext, check_out, check_running, prepare, run, update_running
from fastnorm.functional._check cimport apart, dtype_of, fetch, like, named, output, parameter, vector
from fastnorm.functional._pairs import softmax
from fastnorm._types import SwitchableNormGrads

cdef extern from "mix.h" nogil:
    ctypedef struct fn_mix:
        Py_ssize_t n, c
        double post
        int training
        fn_dd w[3]
        fn_dd u[3]
        double *mean
        double *mean_lo
        double *var
        double *mean_bn
        double *var_bn
    enum: FN_MIX_ARRAYS
    void fn_mix_place(fn_mix *m, double *memory)
    void fn_mix_moments(fn_mix *m, double eps, double *mean, double *mean_lo, double *var, double *rstd)
    void fn_mix_gradients(const fn_mix *m, const fn_sums *sums, const double *gamma, const double *rstd, double *room, fn_grad *g,
                          double *dgamma, double *dbeta, double *dmean_logits, double *dvar_logits)

cnp.import_array()

__all__ = ["switchable_norm", "switchable_norm_backward", "switchable_norm_forward"]


cdef class SwitchableContext:
    """What the backward needs: a reference to x, the weights, and the moments that were mixed."""
    cdef ChannelContext base
    cdef int copied_axis  # the channel axis, where x was copied; the copy is not kept
    cdef fn_mix mix
    cdef double *memory

    def __dealloc__(self):
        free(self.memory)

    @property
    def x(self):
        """The input."""
        return self.base.x

    @property
    def training(self):
        """Whether the batch's own moments were used."""
        return bool(self.mix.training)

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


cdef int weights_of(object logits, str name, int dtype, fn_dd *to) except -1:
    """softmax of three logits; to a pair's digits for float64."""
    cdef double values[3]
    cdef double weights[3]
    cdef int k
    if logits is None:
        raise TypeError(f"{name}: expected an array of shape (3,), got None")
    fetch(logits, parameter(logits, name, 3, dtype), values)
    ops_for(FN_F64).softmax(values, weights, 1, 3, 0, 0, NULL)  # NumPy's exp differs between processors
    for k in range(3):
        to[k] = fn_dd(weights[k], 0)
    if dtype == FN_F64 and isfinite(values[0]) and isfinite(values[1]) and isfinite(values[2]):
        for k, (hi, lo) in enumerate(softmax([values[0], values[1], values[2]])):
            to[k] = fn_dd(hi, lo)
    return 0


cdef tuple forward(object x, object mean_logits, object var_logits, object running_mean, object running_var, object weight,
                   object bias, bint training, object momentum, object eps, object axis, object out, bint keep):
    cdef ChannelContext ctx
    cdef SwitchableContext s = SwitchableContext.__new__(SwitchableContext)
    cdef fn_mix *mix = &s.mix
    cdef Py_ssize_t i, n, c
    cdef double step, size
    cdef int failed = 0, code
    cdef fn_moments *m
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
    s.base = ctx
    mix.n, mix.c, mix.post, mix.training = n, c, <double> ctx.job.post, training
    weights_of(mean_logits, "mean_logits", code, mix.w)
    weights_of(var_logits, "var_logits", code, mix.u)
    step = check_running(ctx, running_mean, running_var, momentum, training)
    if training and size == 1 and c > 0:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {x.shape}")
    check_out(out, weight, bias, running_mean, running_var)
    apart(out, mean_logits, "mean_logits", False)
    apart(out, var_logits, "var_logits", False)
    if x.size == 0:
        return run(ctx, out, keep), s

    m = <fn_moments *> malloc(n * c * sizeof(fn_moments))
    s.memory = <double *> malloc((FN_MIX_ARRAYS * n * c + n + 2 * c) * sizeof(double))
    if m == NULL or s.memory == NULL:
        free(m)
        raise MemoryError("switchable_norm: no memory for the statistics")
    fn_mix_place(mix, s.memory)
    with nogil:
        failed = spans_moments(&ctx.job, m)
    for i in range(n * c if not failed else 0):
        mix.mean[i], mix.mean_lo[i], mix.var[i] = m[i].mean, m[i].mean_lo, m[i].m2 / m[i].n
    free(m)
    if failed:
        raise MemoryError("switchable_norm: no memory for partial results")
    if not training:
        fetch(running_mean, dtype_of(running_mean, "running_mean"), mix.mean_bn)
        fetch(running_var, dtype_of(running_var, "running_var"), mix.var_bn)
    ctx.job.given = 1
    with nogil:
        fn_mix_moments(mix, ctx.job.eps, ctx.job.mean, ctx.job.mean_lo, ctx.job.var, ctx.job.rstd)
    y = evaluate(ctx, out, keep)
    if s.copied_axis >= 0:
        ctx._x = None
    if training and running_mean is not None:
        update_running(running_mean, step, mix.mean_bn, 1, c, 1)
        update_running(running_var, step, mix.var_bn, 1, c, size / (size - 1))
    return y, s


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
    cdef Py_ssize_t n = job.n, c = job.c
    cdef cnp.ndarray work = ctx._x if s.copied_axis < 0 else channels_first(ctx.x, s.copied_axis)
    cdef cnp.ndarray g = like(dy, "dy", work, ctx.dtype)
    cdef double[3] dmean_logits
    cdef double[3] dvar_logits
    cdef fn_sums *sums
    cdef fn_grad *numbers
    cdef double *room
    if out is not None:
        dtype_of(out, "out")
        apart(out, ctx.x, "x", False)
        apart(out, dy, "dy", True)
    dx = output(out, ctx.x, work, ctx.dtype)
    job.x = <const char *> cnp.PyArray_DATA(work)
    if ctx.x.size == 0:
        none = np.zeros(c, np.float64 if ctx.dtype == FN_F64 else np.float32)
        return SwitchableNormGrads(out if out is not None else dx, none if ctx.has_weight else None,
                                   none.copy() if ctx.has_bias else None, np.zeros(3, none.dtype), np.zeros(3, none.dtype))
    # Sums about the instance means, which lie nearest the data.
    job.mean, job.mean_lo = s.mix.mean, s.mix.mean_lo
    job.dy = <const char *> cnp.PyArray_DATA(g)
    job.y = <char *> cnp.PyArray_DATA(dx)
    job.flags |= memory_flags(cnp.PyArray_NBYTES(dx))
    sums = <fn_sums *> malloc(n * c * sizeof(fn_sums))
    numbers = <fn_grad *> malloc(n * c * sizeof(fn_grad))
    room = <double *> malloc((2 * n * c + 2 * n + 4 * c) * sizeof(double))
    try:
        if sums == NULL or numbers == NULL or room == NULL:
            raise MemoryError("switchable_norm: no memory for the gradients")
        with nogil:
            spans_sums(&job, sums)
            fn_mix_gradients(&s.mix, sums, ctx.job.gamma, ctx.job.rstd, room + 2 * c, numbers, room, room + c, dmean_logits, dvar_logits)
            spans_combine(&job, numbers)
        dweight = vector(room, c, ctx.dtype) if ctx.has_weight else None
        dbias = vector(room + c, c, ctx.dtype) if ctx.has_bias else None
    finally:
        free(sums)
        free(numbers)
        free(room)
    if out is not None and out is not dx:
        np.copyto(out, dx)
        dx = out
    return named(SwitchableNormGrads, (dx, dweight, dbias, vector(dmean_logits, 3, ctx.dtype), vector(dvar_logits, 3, ctx.dtype)))
