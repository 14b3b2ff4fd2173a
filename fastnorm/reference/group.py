"""Group and instance norm: one mean and variance per sample and group of channels, in instance norm one channel each.

Channels are cut into (G, C / G), which is a view; then it is batch norm's arithmetic over other axes.
"""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np

from ._arithmetic import _activate, _affine, _centred_gradient, _deactivate, _mean, _moments, _scale, _update_running
from ._checks import (
    _array,
    _channel_axis,
    _check_activation,
    _check_out,
    _check_running,
    _check_scalars,
    _gradient,
    _parameter,
)
from ._shapes import _all_but, _broadcast, _compute, _count, _given, _statistic, _store
from ._types import Activation, Array, Context, NormGrads

__all__ = [
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
]


def group_norm(
    x: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, one mean and variance per sample and group of C / G channels.

    x has samples on axis 0 and channels on `axis`, any other axes being space; weight and bias have shape (C,). Then
    the activation applies.

    dtypes and errors as `batch_norm`; ValueError where num_groups does not divide C.
    Source: Wu and He, "Group Normalization", 2018, equations 1, 2 and 7.
    """
    _check_out(out, _array("x", x))
    y, _ = group_norm_forward(x, num_groups, weight, bias, eps, axis=axis, activation=activation)
    return _store(y, y, out)


def group_norm_forward(
    x: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    activation: Activation = None,
    out: Array | None = None,
) -> tuple[Array, Context]:
    """`group_norm`, and the context for `group_norm_backward`; `out` may not overlap x, which the context keeps."""
    x = _array("x", x)
    channel = _channel_axis(axis, x.ndim)
    channels = x.shape[channel]
    groups = _groups(num_groups, channels)
    _check_scalars(eps)
    _check_activation(activation)
    gamma = _parameter("weight", weight, x, (channels,))
    beta = _parameter("bias", bias, x, (channels,))
    _check_out(out, x, x)

    values = _split(_compute(x), channel, groups)
    axes = _all_but(values.ndim, 0, channel)
    mean, var = _moments(values, axes)
    rstd = 1 / np.sqrt(var + eps)
    xhat = ((values - mean) * rstd).reshape(x.shape)
    y = _affine(xhat, _broadcast(gamma, x.ndim, channel), _broadcast(beta, x.ndim, channel))
    y = _store(_activate(y, activation), x, out)
    per_group = (x.shape[0], groups)
    ctx = Context(
        x=x, weight=weight, bias=bias, axis=channel, num_groups=groups, eps=eps,
        mean=_statistic(mean, per_group), rstd=_statistic(rstd, per_group), y=y if activation else None,
    )  # fmt: skip
    return y, ctx


def group_norm_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> NormGrads:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * gamma; dgamma = sum(dy * xhat); dbeta = sum(dy).

    Means over a sample's group, sums over samples and space. dy is first masked by the activation. `out` receives dx.
    """
    x, channel = ctx.x, ctx.axis
    dy = _gradient(dy, x)
    _check_out(out, x)
    dy = _compute(_deactivate(dy, ctx.y))
    values = _split(_compute(x), channel, ctx.num_groups)
    axes = _all_but(values.ndim, 0, channel)
    mean, rstd = (_broadcast(s.astype(dy.dtype), values.ndim, 0, channel) for s in (ctx.mean, ctx.rstd))
    xhat = (values - mean) * rstd
    others = _all_but(x.ndim, channel)
    dbeta, dgamma = dy.sum(axis=others), (dy * xhat.reshape(x.shape)).sum(axis=others)
    g = _scale(dy, _broadcast(_compute(ctx.weight), x.ndim, channel))
    dx = _centred_gradient(_split(g, channel, ctx.num_groups), xhat, axes) * rstd
    dx = _store(dx.reshape(x.shape), x, out)
    return NormGrads(dx, _given(dgamma, ctx.weight), _given(dbeta, ctx.bias))


def instance_norm(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    activation: Activation = None,
    out: Array | None = None,
) -> Array:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, one mean and variance per sample and channel, over space.

    x has samples on axis 0 and channels on `axis`; weight, bias and the running statistics have shape (C,). With
    use_input_stats, running statistics, where given, move as in `batch_norm`, towards the mean over the samples of
    their means and unbiased variances; without, they are used in place of the input's own.

    dtypes and errors as `batch_norm`; ValueError for one element of space when use_input_stats, as torch.
    Source: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization", 2016, equation 2.
    """
    _check_out(out, _array("x", x))
    y, _ = instance_norm_forward(
        x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, axis=axis, activation=activation
    )
    return _store(y, y, out)


def instance_norm_forward(
    x: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    activation: Activation = None,
    out: Array | None = None,
) -> tuple[Array, Context]:
    """`instance_norm`, and the context for `instance_norm_backward`; `out` may not overlap x, which the context
    keeps."""
    x = _array("x", x)
    channel = _channel_axis(axis, x.ndim)
    axes = _all_but(x.ndim, 0, channel)
    m = _count(x, axes)
    _check_scalars(eps, momentum)
    _check_activation(activation)
    per_channel = (x.shape[channel],)
    gamma = _parameter("weight", weight, x, per_channel)
    beta = _parameter("bias", bias, x, per_channel)
    _check_running(running_mean, running_var, x, per_channel, needed=not use_input_stats, written=use_input_stats)
    _check_out(out, x, x)
    if use_input_stats and m == 1:
        raise ValueError(f"x: expected more than 1 spatial element when use_input_stats, got shape {x.shape}")

    values = _compute(x)
    if use_input_stats:
        mean, var = _moments(values, axes)
    else:
        assert running_mean is not None and running_var is not None
        mean = _broadcast(_compute(running_mean), x.ndim, channel)
        var = _broadcast(_compute(running_var), x.ndim, channel)
    rstd = 1 / np.sqrt(var + eps)
    y = _affine((values - mean) * rstd, _broadcast(gamma, x.ndim, channel), _broadcast(beta, x.ndim, channel))
    y = _store(_activate(y, activation), x, out)
    if use_input_stats and x.size:
        _update_running(running_mean, _mean(mean, (0,)), momentum)
        _update_running(running_var, _mean(var, (0,)) * (m / (m - 1)), momentum)
    instances = (x.shape[0], x.shape[channel])
    ctx = Context(
        x=x, weight=weight, bias=bias, axis=channel, axes=axes, use_input_stats=use_input_stats, eps=eps,
        mean=_statistic(mean, instances), rstd=_statistic(rstd, instances), y=y if activation else None,
    )  # fmt: skip
    return y, ctx


def instance_norm_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> NormGrads:
    """dx = gamma * rstd * (dy - mean(dy) - xhat * mean(dy * xhat)); dgamma = sum(dy * xhat); dbeta = sum(dy).

    Means over space, sums over samples and space. Where running statistics were used, dx = gamma * rstd * dy. dy is
    first masked by the activation. `out` receives dx.
    """
    x, channel, axes = ctx.x, ctx.axis, ctx.axes
    dy = _gradient(dy, x)
    _check_out(out, x)
    g = _compute(_deactivate(dy, ctx.y))
    mean, rstd = (_broadcast(s.astype(g.dtype), x.ndim, 0, channel) for s in (ctx.mean, ctx.rstd))
    xhat = (_compute(x) - mean) * rstd
    others = _all_but(x.ndim, channel)
    dbeta, dgamma = g.sum(axis=others), (g * xhat).sum(axis=others)
    g = _scale(g, _broadcast(_compute(ctx.weight), x.ndim, channel))
    dx = _centred_gradient(g, xhat, axes) * rstd if ctx.use_input_stats else g * rstd
    return NormGrads(_store(dx, x, out), _given(dgamma, ctx.weight), _given(dbeta, ctx.bias))


def _split(x: Array, axis: int, groups: int) -> Array:
    """Channels cut into (G, C / G), which is a view."""
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def _groups(num_groups: SupportsIndex, channels: int) -> int:
    groups = operator.index(num_groups)
    if groups < 1 or channels % groups:
        raise ValueError(f"num_groups: expected a divisor of the {channels} channels, got {groups}")
    return groups
