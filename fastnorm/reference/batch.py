"""Batch norm: one mean and variance per channel, over the samples and positions; and `moments`, over any axes.

In training the statistics are the batch's own and depend on x, so dx has terms through them; else they are constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arithmetic import _activate, _affine, _centred_gradient, _deactivate, _moments, _scale, _update_running
from ._checks import (
    _array,
    _axis,
    _channel_axis,
    _check_activation,
    _check_like,
    _check_out,
    _check_running,
    _check_scalars,
    _gradient,
    _parameter,
)
from ._shapes import _all_but, _broadcast, _compute, _count, _given, _statistic, _store
from ._types import Activation, Array, Axes, Context, NormGrads, ResidualNormGrads

__all__ = ["batch_norm", "batch_norm_backward", "batch_norm_forward", "moments"]


def batch_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """y = gamma * (x - mean_c) / sqrt(var_c + eps) + beta, one mean and variance per channel c, over all other axes.

    x has any rank, channels on `axis`; weight, bias and the running statistics have shape (C,). When training, the mean
    and the biased variance of the batch are used, and the running statistics, where given, move in place: running = (1
    - momentum) * running + momentum * batch, the variance from the unbiased m / (m - 1) * var. Otherwise the running
    statistics are used. Then `residual` is added, then the activation applied.

    dtypes: float32, float64; float16 and bfloat16 computed in float32, with float32 or same-type parameters.
    Errors: TypeError for a dtype; ValueError for a shape, `axis`, `momentum` outside [0, 1], `eps` negative or not
    finite, one value per channel when training, missing running statistics when not, a read-only array to be written.
    Source: Ioffe and Szegedy, "Batch Normalization", 2015, algorithms 1 and 2.
    """
    _check_out(out, _array("x", x))
    y, _ = batch_norm_forward(
        x, running_mean, running_var, weight, bias, training, momentum, eps,
        axis=axis, activation=activation, residual=residual,
    )  # fmt: skip
    return _store(y, y, out)


def batch_norm_forward(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, Context]:
    """`batch_norm`, and the context for `batch_norm_backward`; `out` may not overlap x, which the context keeps."""
    x = _array("x", x)
    channel = _channel_axis(axis, x.ndim, samples=None)
    axes = _all_but(x.ndim, channel)
    m = _count(x, axes)
    _check_scalars(eps, momentum)
    _check_activation(activation)
    per_channel = (x.shape[channel],)
    gamma = _parameter("weight", weight, x, per_channel)
    beta = _parameter("bias", bias, x, per_channel)
    _check_running(running_mean, running_var, x, per_channel, needed=not training, written=training)
    _check_like("residual", residual, x)
    _check_out(out, x, x)
    if training and m == 1:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {x.shape}")

    values = _compute(x)
    if training:
        mean, var = _moments(values, axes)
    else:
        assert running_mean is not None and running_var is not None
        mean = _broadcast(_compute(running_mean), x.ndim, channel)
        var = _broadcast(_compute(running_var), x.ndim, channel)
    rstd = 1 / np.sqrt(var + eps)
    xhat = (values - mean) * rstd
    y = _affine(xhat, _broadcast(gamma, x.ndim, channel), _broadcast(beta, x.ndim, channel))
    if residual is not None:
        y = y + _compute(residual)
    y = _store(_activate(y, activation), x, out)
    if training and x.size:
        _update_running(running_mean, mean, momentum)
        _update_running(running_var, var * (m / (m - 1)), momentum)
    ctx = Context(
        x=x, weight=weight, bias=bias, axis=channel, axes=axes, training=training, eps=eps,
        mean=_statistic(mean, per_channel), rstd=_statistic(rstd, per_channel),
        y=y if activation else None, residual=residual,
    )  # fmt: skip
    return y, ctx


def batch_norm_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> NormGrads | ResidualNormGrads:
    """dx = gamma * rstd * (dy - mean(dy) - xhat * mean(dy * xhat)); dgamma = sum(dy * xhat); dbeta = sum(dy).

    Means and sums over every axis but the channel's. Where the forward pass used running statistics these are
    constants, and dx = gamma * rstd * dy. dy is first masked by the activation (y > 0); masked, it is also the
    residual's gradient. `out` receives dx.
    """
    x, channel, axes = ctx.x, ctx.axis, ctx.axes
    dy = _gradient(dy, x)
    _check_out(out, x)
    dy = _deactivate(dy, ctx.y)
    g = _compute(dy)
    mean, rstd = (_broadcast(s.astype(g.dtype), x.ndim, channel) for s in (ctx.mean, ctx.rstd))
    xhat = (_compute(x) - mean) * rstd
    dbeta, dgamma = g.sum(axis=axes), (g * xhat).sum(axis=axes)
    g = _scale(g, _broadcast(_compute(ctx.weight), x.ndim, channel))
    dx = _centred_gradient(g, xhat, axes) * rstd if ctx.training else g * rstd
    dx = _store(dx, x, out)
    grads = (dx, _given(dgamma, ctx.weight), _given(dbeta, ctx.bias))
    return NormGrads(*grads) if ctx.residual is None else ResidualNormGrads(*grads, dy)


def moments(x: Array, axis: Axes = None, *, ddof: int = 0, keepdims: bool = False) -> tuple[Any, Any]:
    """mean = sum(x) / m, var = sum((x - mean)^2) / (m - ddof), over `axis`: an axis, several, or all (None).

    Both in the compute dtype. As in NumPy, the mean of no values, and the variance of at most ddof, are NaN.
    Errors: TypeError for a dtype, ValueError for `axis` or a negative ddof.
    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, the two-pass algorithm.
    """
    x = _array("x", x)
    chosen = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(_axis(a, x.ndim) for a in chosen)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis: expected distinct axes, got {axis!r}")
    if ddof < 0:
        raise ValueError(f"ddof: expected a number >= 0, got {ddof!r}")
    m = _count(x, axes)
    values = _compute(x)
    mean, var = _moments(values, axes)
    if m == 0:
        mean = np.full_like(mean, np.nan)
    var = var * (m / (m - ddof)) if m > ddof else np.full_like(var, np.nan)
    if not keepdims:
        mean, var = mean.squeeze(axis=axes), var.squeeze(axis=axes)
    return mean[()], var[()]
