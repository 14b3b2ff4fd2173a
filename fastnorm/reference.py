"""Every function of the package in plain NumPy, to be read beside the formulas.

Method: each norm is one mean and one variance over a set of axes, `xhat = (x - mean) / sqrt(var + eps)`, and an affine
map; the norms differ only in the axes (`_moments`), and share one gradient (`_centred_gradient`). The variance is
two-pass, sum((x - mean)^2) / m, because the textbook's other form, E[x^2] - E[x]^2, cancels.

Why it exists: it is the textbook page, the twin that the compiled kernels are tested against, and the time that they
are compared with. float32 is computed in float32 and float64 in float64, so float64 input gives reference values;
float16 and bfloat16 are stored in their type and computed in float32. What it does not do is survive squares beyond the
range of the compute type: that is the kernels' promise. Nothing in the package imports this module.

Notation: x, y arrays; dx, dy gradients of the loss with respect to them; gamma = weight, beta = bias; m = number of
elements that share one mean; rstd = 1 / sqrt(var + eps).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Context",
    "InputGrad",
    "LogitsGrad",
    "NormGrads",
    "ResidualNormGrads",
    "SwitchableNormGrads",
    "WeightNormGrads",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout",
    "dropout_backward",
    "dropout_forward",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "log_softmax",
    "log_softmax_backward",
    "log_softmax_forward",
    "moments",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "softmax",
    "softmax_backward",
    "softmax_forward",
    "switchable_norm",
    "switchable_norm_backward",
    "switchable_norm_forward",
    "weight_norm",
    "weight_norm_backward",
    "weight_norm_forward",
]

Array = NDArray[Any]
Activation = Literal["relu"] | None
Reduction = Literal["mean", "sum", "none"]
Axes = int | tuple[int, ...] | None


class Context(SimpleNamespace):
    """What a forward pass keeps for its backward: references to its arguments, and the statistics.

    Norms expose `mean` and `rstd` in float64, one value per statistic: shape (C,) for batch norm, (N, C) for instance
    and switchable norm, (N, G) for group norm, the leading axes of x for layer and RMS norm (whose mean is None).
    """


class NormGrads(NamedTuple):
    """Gradients of a norm; None for a parameter that was None."""

    dx: Array
    dweight: Array | None
    dbias: Array | None

    @property
    def dresidual(self) -> None:
        """None: the forward pass had no residual."""
        return None


class ResidualNormGrads(NamedTuple):
    """Gradients of a norm that had a residual."""

    dx: Array
    dweight: Array | None
    dbias: Array | None
    dresidual: Array


class SwitchableNormGrads(NamedTuple):
    """Gradients of switchable norm, the two sets of logits included."""

    dx: Array
    dweight: Array | None
    dbias: Array | None
    dmean_logits: Array
    dvar_logits: Array


class WeightNormGrads(NamedTuple):
    """Gradients of weight norm: direction and length."""

    dv: Array
    dg: Array


class InputGrad(NamedTuple):
    """The gradient of a function of x alone."""

    dx: Array


class LogitsGrad(NamedTuple):
    """The gradient of the cross-entropy cost."""

    dlogits: Array


# ----------------------------------------------------------------------------------------------------------- batch norm


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


# --------------------------------------------------------------------------------------------------- layer and RMS norm


def layer_norm(
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, one mean and variance per sample, over the trailing axes.

    x has shape (..., *normalized_shape); weight and bias have shape normalized_shape. With `residual`, x + residual,
    rounded to the storage type, takes the place of x.

    dtypes and errors as `batch_norm`; ValueError where normalized_shape is not the end of x.shape.
    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016, equation 3.
    """
    _check_out(out, _array("x", x))
    y, _ = layer_norm_forward(x, normalized_shape, weight, bias, eps, residual=residual)
    return _store(y, y, out)


def layer_norm_forward(
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    residual: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, Context]:
    """`layer_norm`, and the context for `layer_norm_backward`; with a residual, `ctx.sum` is x + residual."""
    x = _array("x", x)
    shape, axes = _trailing(normalized_shape, x)
    _check_scalars(eps)
    gamma = _parameter("weight", weight, x, shape)
    beta = _parameter("bias", bias, x, shape)
    _check_like("residual", residual, x)
    _check_out(out, x, None if residual is not None else x)

    if residual is not None:
        x = _store(_compute(x) + _compute(residual), x, None)
    values = _compute(x)
    mean, var = _moments(values, axes)
    rstd = 1 / np.sqrt(var + eps)
    y = _store(_affine((values - mean) * rstd, gamma, beta), x, out)
    lead = x.shape[: x.ndim - len(shape)]
    ctx = Context(
        x=x, weight=weight, bias=bias, axes=axes, eps=eps, mean=_statistic(mean, lead), rstd=_statistic(rstd, lead),
        sum=None if residual is None else x,
    )  # fmt: skip
    return y, ctx


def layer_norm_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> NormGrads | ResidualNormGrads:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * gamma; dgamma = sum(dy * xhat); dbeta = sum(dy).

    Means over the normalized axes, sums over the leading ones. With a residual, its gradient is dx, the same array.
    `out` receives dx.
    """
    x, axes = ctx.x, ctx.axes
    dy = _gradient(dy, x)
    _check_out(out, x)
    g = _compute(dy)
    mean, rstd = (_trailing_ones(s.astype(g.dtype), x.ndim) for s in (ctx.mean, ctx.rstd))
    xhat = (_compute(x) - mean) * rstd
    lead = _all_but(x.ndim, *axes)
    dbeta, dgamma = g.sum(axis=lead), (g * xhat).sum(axis=lead)
    g = _scale(g, _compute(ctx.weight))
    dx = _store(_centred_gradient(g, xhat, axes) * rstd, x, out)
    grads = (dx, _given(dgamma, ctx.weight), _given(dbeta, ctx.bias))
    return NormGrads(*grads) if ctx.sum is None else ResidualNormGrads(*grads, dx)


def rms_norm(
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    eps: float | None = None,
    *,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """y = gamma * x / sqrt(mean(x^2) + eps), one mean of squares per sample, over the trailing axes.

    Shapes, dtypes, errors and `residual` as `layer_norm`; eps=None is the machine epsilon of the compute type.
    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.
    """
    _check_out(out, _array("x", x))
    y, _ = rms_norm_forward(x, normalized_shape, weight, eps, residual=residual)
    return _store(y, y, out)


def rms_norm_forward(
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    eps: float | None = None,
    *,
    residual: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, Context]:
    """`rms_norm`, and the context for `rms_norm_backward`; with a residual, `ctx.sum` is x + residual."""
    x = _array("x", x)
    shape, axes = _trailing(normalized_shape, x)
    eps = float(np.finfo(_compute_dtype(x)).eps) if eps is None else eps
    _check_scalars(eps)
    gamma = _parameter("weight", weight, x, shape)
    _check_like("residual", residual, x)
    _check_out(out, x, None if residual is not None else x)

    if residual is not None:
        x = _store(_compute(x) + _compute(residual), x, None)
    values = _compute(x)
    rstd = 1 / np.sqrt(_mean(values * values, axes) + eps)
    y = _store(_affine(values * rstd, gamma, None), x, out)
    ctx = Context(
        x=x, weight=weight, axes=axes, eps=eps, mean=None, rstd=_statistic(rstd, x.shape[: x.ndim - len(shape)]),
        sum=None if residual is None else x,
    )  # fmt: skip
    return y, ctx


def rms_norm_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> NormGrads | ResidualNormGrads:
    """dx = rstd * (g - xhat * mean(g * xhat)) with g = dy * gamma and xhat = x * rstd; dgamma = sum(dy * xhat).

    As `layer_norm_backward` without the mean: dbias is always None.
    """
    x, axes = ctx.x, ctx.axes
    dy = _gradient(dy, x)
    _check_out(out, x)
    g = _compute(dy)
    rstd = _trailing_ones(ctx.rstd.astype(g.dtype), x.ndim)
    xhat = _compute(x) * rstd
    dgamma = (g * xhat).sum(axis=_all_but(x.ndim, *axes))
    g = _scale(g, _compute(ctx.weight))
    dx = _store((g - xhat * _mean(g * xhat, axes)) * rstd, x, out)
    grads = (dx, _given(dgamma, ctx.weight), None)
    return NormGrads(*grads) if ctx.sum is None else ResidualNormGrads(*grads, dx)


# ---------------------------------------------------------------------------------------------- group and instance norm


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


# ------------------------------------------------------------------------------------------------------ switchable norm


def switchable_norm(
    x: Array,
    mean_logits: Array,
    var_logits: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """y = gamma * (x - mu) / sqrt(var + eps) + beta with mu = sum_k w_k mu_k, var = sum_k w'_k var_k, k in (IN, LN,
    BN).

    w = softmax(mean_logits), w' = softmax(var_logits), each of three logits, in the order instance, layer, batch. The
    instance moments are taken from x; the others follow from them without cancellation,

        mu_ln = mean_c(mu_in),  var_ln = mean_c(var_in) + mean_c((mu_in - mu_ln)^2),  and likewise BN over the samples.

    The batch part follows `training` as `batch_norm`, running statistics included (unbiased variance).

    x has samples on axis 0 and channels on `axis`; weight, bias and running statistics have shape (C,), the logits
    (3,). dtypes and errors as `batch_norm`.
    Source: Luo et al., "Differentiable Learning-to-Normalize via Switchable Normalization", 2018, equations 2 to 5.
    """
    _check_out(out, _array("x", x))
    y, _ = switchable_norm_forward(
        x, mean_logits, var_logits, running_mean, running_var, weight, bias, training, momentum, eps, axis=axis
    )
    return _store(y, y, out)


def switchable_norm_forward(
    x: Array,
    mean_logits: Array,
    var_logits: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
) -> tuple[Array, Context]:
    """`switchable_norm`, and the context for `switchable_norm_backward`; `out` may not overlap x."""
    x = _array("x", x)
    channel = _channel_axis(axis, x.ndim)
    space = _all_but(x.ndim, 0, channel)
    m = _count(x, (0, *space))
    _check_scalars(eps, momentum)
    per_channel = (x.shape[channel],)
    w_mean = _mixing_weights("mean_logits", mean_logits, x)
    w_var = _mixing_weights("var_logits", var_logits, x)
    gamma = _parameter("weight", weight, x, per_channel)
    beta = _parameter("bias", bias, x, per_channel)
    _check_running(running_mean, running_var, x, per_channel, needed=not training, written=training)
    _check_out(out, x, x)
    if training and m == 1:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {x.shape}")

    values = _compute(x)
    mu_in, var_in = _moments(values, space)
    mu_ln, var_ln = _merge_moments(mu_in, var_in, (channel,))
    if training:
        mu_bn, var_bn = _merge_moments(mu_in, var_in, (0,))
    else:
        assert running_mean is not None and running_var is not None
        mu_bn = _broadcast(_compute(running_mean), x.ndim, channel)
        var_bn = _broadcast(_compute(running_var), x.ndim, channel)
    means, variances = (mu_in, mu_ln, mu_bn), (var_in, var_ln, var_bn)
    mean = mu_in + w_mean[1] * (mu_ln - mu_in) + w_mean[2] * (mu_bn - mu_in)  # rounded weights do not add up to 1
    var = sum(w * v for w, v in zip(w_var, variances, strict=True))
    rstd = 1 / np.sqrt(var + eps)
    xhat = (values - mean) * rstd
    y = _store(_affine(xhat, _broadcast(gamma, x.ndim, channel), _broadcast(beta, x.ndim, channel)), x, out)
    if training and x.size:
        _update_running(running_mean, mu_bn, momentum)
        _update_running(running_var, var_bn * (m / (m - 1)), momentum)
    instances = (x.shape[0], x.shape[channel])
    ctx = Context(
        x=x, weight=weight, bias=bias, axis=channel, space=space, training=training, eps=eps,
        means=means, variances=variances, w_mean=w_mean, w_var=w_var,
        mean=_statistic(mean, instances), rstd=_statistic(rstd, instances),
    )  # fmt: skip
    return y, ctx


def switchable_norm_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> SwitchableNormGrads:
    """Through the mixed moments: with g = dy * gamma, summed over space,

        dmu = -rstd * sum(g),   dvar = -1/2 * rstd^2 * sum(g * xhat)                          per sample and channel,
        dx  = rstd * g + sum_k [ w_k S_k(dmu) + 2 * w'_k S_k(dvar) * (x - mu_k) ] / m_k,
        dmean_logits_k = w_k * sum(dmu * (mu_k - mu)),  dvar_logits_k = w'_k * sum(dvar * (var_k - var)),

    S_k summing over what moment k shares beyond space: nothing (IN), channels (LN), samples (BN). Not training, the
    batch moments are constants and their term of dx falls away. dgamma, dbeta as `batch_norm_backward`. `out` receives
    dx.
    """
    x, channel, space = ctx.x, ctx.axis, ctx.space
    dy = _gradient(dy, x)
    _check_out(out, x)
    dy = _compute(dy)
    values = _compute(x)
    mean, rstd = (_broadcast(s.astype(dy.dtype), x.ndim, 0, channel) for s in (ctx.mean, ctx.rstd))
    xhat = (values - mean) * rstd
    others = _all_but(x.ndim, channel)
    dbeta, dgamma = dy.sum(axis=others), (dy * xhat).sum(axis=others)
    g = _scale(dy, _broadcast(_compute(ctx.weight), x.ndim, channel))
    dmu = -rstd * g.sum(axis=space, keepdims=True)
    dvar = -0.5 * rstd**2 * (g * xhat).sum(axis=space, keepdims=True)

    dx = rstd * g
    shared: tuple[tuple[int, ...], ...] = ((), (channel,), (0,))
    for k in range(3 if ctx.training else 2):
        m_k = max(_count(x, (*space, *shared[k])), 1)
        dmu_k = ctx.w_mean[k] * dmu.sum(axis=shared[k], keepdims=True) / m_k
        dvar_k = ctx.w_var[k] * dvar.sum(axis=shared[k], keepdims=True) / m_k
        dx += dmu_k + 2 * dvar_k * (values - ctx.means[k])
    var = sum(w * v for w, v in zip(ctx.w_var, ctx.variances, strict=True))
    dmean_logits = np.array([w * (dmu * (mu - mean)).sum() for w, mu in zip(ctx.w_mean, ctx.means, strict=True)])
    dvar_logits = np.array([w * (dvar * (v - var)).sum() for w, v in zip(ctx.w_var, ctx.variances, strict=True)])
    return SwitchableNormGrads(
        _store(dx, x, out), _given(dgamma, ctx.weight), _given(dbeta, ctx.bias), dmean_logits, dvar_logits
    )


# ---------------------------------------------------------------------------------------------------------- weight norm


def weight_norm(v: Array, g: Array, dim: int | None = 0) -> Array:
    """w = g * v / ||v||, one Euclidean norm per index of axis `dim` (dim=None: one norm for the whole array).

    g has v's shape with every axis but `dim` of length 1, as in torch, or simply (v.shape[dim],); with dim=None, one
    element. A negative `dim` counts from the end.

    dtypes as `batch_norm`. Errors: TypeError for a dtype; ValueError for a shape, `dim`, or a v of norm zero.
    Source: Salimans and Kingma, "Weight Normalization", 2016, equation 2.
    """
    w, _ = weight_norm_forward(v, g, dim)
    return w


def weight_norm_forward(v: Array, g: Array, dim: int | None = 0) -> tuple[Array, Context]:
    """`weight_norm`, and the context for `weight_norm_backward`."""
    v = _array("v", v)
    kept = () if dim is None else (_axis(dim, v.ndim, "dim"),)
    axes = _all_but(v.ndim, *kept)
    wide = tuple(n if i in kept else 1 for i, n in enumerate(v.shape))
    g = _array("g", g)
    if g.shape not in (wide, tuple(v.shape[i] for i in kept)):
        raise ValueError(f"g: expected shape {wide}, got {g.shape}")
    _check_parameter_dtype("g", g, v)

    values = _compute(v)
    norm = np.sqrt((values * values).sum(axis=axes, keepdims=True))
    if v.size and not norm.all():
        raise ValueError(f"v: expected a norm above zero, got zero at index {int(np.argmin(norm))} of dim {dim}")
    w = _store(values * (_compute(g).reshape(wide) / norm) if v.size else values, v, None)
    return w, Context(v=v, g=g, axes=axes, norm=norm)


def weight_norm_backward(dw: Array, ctx: Context, *, out: Array | None = None) -> WeightNormGrads:
    """dg = sum(dw * v) / ||v||;  dv = g / ||v|| * (dw - dg * v / ||v||), as equation 3 of the paper. `out` receives
    dv."""
    v = ctx.v
    dw = _gradient(dw, v, "dw")
    _check_out(out, v)
    d = _compute(dw)
    unit = _compute(v) / ctx.norm if v.size else _compute(v)
    dg = (d * unit).sum(axis=ctx.axes, keepdims=True)
    dv = (d - dg * unit) * (_compute(ctx.g).reshape(ctx.norm.shape) / ctx.norm) if v.size else d
    return WeightNormGrads(_store(dv, v, out), dg.reshape(ctx.g.shape))


# ------------------------------------------------------------------------------------------- softmax and cross-entropy


def softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """y = exp(x - max) / sum(exp(x - max)), along `axis`; subtracting the maximum keeps exp in range and changes
    nothing.

    x has any rank above 0; dtypes as `batch_norm`. Errors: TypeError for a dtype, ValueError for `axis` or `out`.
    Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    """
    _check_out(out, _array("x", x))
    y, _ = softmax_forward(x, axis)
    return _store(y, y, out)


def softmax_forward(x: Array, axis: int = -1, *, out: Array | None = None) -> tuple[Array, Context]:
    """`softmax`, and the context for `softmax_backward`, which keeps y and not x: `out` may be x."""
    x = _array("x", x)
    axis = _axis(axis, x.ndim)
    _check_out(out, x)
    e = np.exp(_below_maximum(_compute(x), axis))
    y = _store(e / e.sum(axis=axis, keepdims=True), x, out)
    return y, Context(y=y, axis=axis)


def softmax_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> InputGrad:
    """dx = y * (dy - sum(dy * y)), the sum along the axis. `out` receives dx."""
    dy = _gradient(dy, ctx.y)
    _check_out(out, ctx.y)
    y, d = _compute(ctx.y), _compute(dy)
    dx = y * (d - (d * y).sum(axis=ctx.axis, keepdims=True))
    return InputGrad(_store(dx, ctx.y, out))


def log_softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """y = x - max - log(sum(exp(x - max))), along `axis`: the logarithm of `softmax`, finite where softmax underflows.

    Shapes, dtypes and errors as `softmax`.
    """
    _check_out(out, _array("x", x))
    y, _ = log_softmax_forward(x, axis)
    return _store(y, y, out)


def log_softmax_forward(x: Array, axis: int = -1, *, out: Array | None = None) -> tuple[Array, Context]:
    """`log_softmax`, and the context for `log_softmax_backward`, which keeps y and not x: `out` may be x."""
    x = _array("x", x)
    axis = _axis(axis, x.ndim)
    _check_out(out, x)
    y = _store(_log_probabilities(_compute(x), axis), x, out)
    return y, Context(y=y, axis=axis)


def log_softmax_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> InputGrad:
    """dx = dy - exp(y) * sum(dy), the sum along the axis. `out` receives dx."""
    dy = _gradient(dy, ctx.y)
    _check_out(out, ctx.y)
    d = _compute(dy)
    dx = d - np.exp(_compute(ctx.y)) * d.sum(axis=ctx.axis, keepdims=True)
    return InputGrad(_store(dx, ctx.y, out))


def cross_entropy(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int = 1,
) -> Any:
    """loss_i = -sum_c q_ic * weight_c * log softmax(logits_i)_c with q = (1 - s) * onehot(target_i) + s / C.

    logits have the C classes on `axis` (on the only axis, if there is one); targets are integers, of the logits' shape
    without it; weight has shape (C,); s is label_smoothing. Elements whose target is ignore_index cost nothing. "mean"
    divides the sum by sum_i weight[target_i] over the others (NaN if there are none, as torch), "sum" does not divide,
    "none" returns the array of costs. The loss is in the compute dtype: float64 for float64 logits, otherwise float32.

    Errors: TypeError for a dtype; ValueError for a shape, `axis`, `reduction`, label_smoothing outside [0, 1], or a
    target out of range, naming the first one.
    Source: Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.108; label smoothing: Szegedy et al.,
    "Rethinking the Inception Architecture", 2016, section 7.
    """
    loss, _ = cross_entropy_forward(logits, targets, weight, ignore_index, reduction, label_smoothing, axis=axis)
    return loss


def cross_entropy_forward(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: int = 1,
) -> tuple[Any, Context]:
    """`cross_entropy`, and the context for `cross_entropy_backward`."""
    logits = _array("logits", logits)
    axis = 0 if logits.ndim == 1 and axis == 1 else _axis(axis, logits.ndim)
    classes = logits.shape[axis]
    class_weight = _parameter("weight", weight, logits, (classes,))
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    counted, index = _class_indices(targets, logits, axis, ignore_index)

    log_p = _log_probabilities(_compute(logits), axis)
    w = np.ones(classes, log_p.dtype) if class_weight is None else class_weight
    w_target = np.where(counted, w[index] if classes else 1, log_p.dtype.type(0))
    loss = -w_target * _pick(log_p, index, axis)
    if label_smoothing:
        spread = -(log_p * _broadcast(w, logits.ndim, axis)).sum(axis=axis)
        loss = (1 - label_smoothing) * loss + label_smoothing / classes * spread
    loss = np.where(counted, loss, log_p.dtype.type(0))
    total = w_target.sum()
    if reduction != "none":
        loss = loss.sum()
        if reduction == "mean":
            with np.errstate(invalid="ignore", divide="ignore"):
                loss = loss / total
    ctx = Context(
        logits=logits, axis=axis, index=index, counted=counted, class_weight=w, reduction=reduction, total=total,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    return loss, ctx


def cross_entropy_backward(dy: Any, ctx: Context, *, out: Array | None = None) -> LogitsGrad:
    """dlogits_ic = dy_i * [(1 - s) * w_t * (p_ic - onehot_ic) + s / C * (p_ic * sum(w) - w_c)], p = softmax(logits).

    dy_i is dy for "sum", dy / sum_i w_t for "mean", dy[i] for "none"; ignored elements get 0. Unweighted and unsmoothed
    that is the familiar (p - onehot) / n. `out` receives dlogits.
    """
    logits, axis = ctx.logits, ctx.axis
    _check_out(out, logits)
    values = _compute(logits)
    classes = values.shape[axis]
    dy = np.asarray(dy, dtype=values.dtype)
    expected = ctx.index.shape if ctx.reduction == "none" else ()
    if dy.shape != expected:
        raise ValueError(f"dy: expected shape {expected} for reduction {ctx.reduction!r}, got {dy.shape}")
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(ctx.counted, dy / ctx.total if ctx.reduction == "mean" else dy, values.dtype.type(0))

    w = ctx.class_weight
    p = np.exp(_log_probabilities(values, axis))
    onehot = np.expand_dims(ctx.index, axis) == _broadcast(np.arange(classes), values.ndim, axis)
    w_target = np.expand_dims(w[ctx.index] if classes else ctx.index, axis)
    dlogits = w_target * (p - onehot)
    if ctx.label_smoothing:
        spread = p * w.sum() - _broadcast(w, values.ndim, axis)
        dlogits = (1 - ctx.label_smoothing) * dlogits + ctx.label_smoothing / classes * spread
    dlogits = np.where(np.expand_dims(ctx.counted, axis), dlogits * np.expand_dims(scale, axis), values.dtype.type(0))
    return LogitsGrad(_store(dlogits, logits, out))


# -------------------------------------------------------------------------------------------------------------- dropout


def dropout(
    x: Array, p: float = 0.5, training: bool = True, *, seed: int | None = None, out: Array | None = None
) -> Array:
    """y_i = x_i / (1 - p) if r_i >= floor(p * 2^32) else 0, r_i a 32-bit random word; not training, y = x.

    r is a function of the seed and the position alone: word i % 4 of Philox4x32-10 with the seed's low and high 32 bits
    as key and block i // 4 as counter, i being the flat index in C order. seed=None draws one. A dropped element is +0,
    also where x is not finite. 1 / (1 - p) is computed in float64 and rounded to the compute dtype.

    x has any shape; dtypes as `batch_norm`. Errors: TypeError for a dtype; ValueError unless 0 <= p < 1 and
    0 <= seed < 2^64.
    Source: Srivastava et al., "Dropout", 2014; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    _check_out(out, _array("x", x))
    y, _ = dropout_forward(x, p, training, seed=seed)
    return _store(y, y, out)


def dropout_forward(
    x: Array, p: float = 0.5, training: bool = True, *, seed: int | None = None, out: Array | None = None
) -> tuple[Array, Context]:
    """`dropout`, and the context for `dropout_backward`: one bit per element, `ctx.mask`, not x, so `out` may be x."""
    x = _array("x", x)
    if not 0 <= p < 1:
        raise ValueError(f"p: expected 0 <= p < 1, got {p!r}")
    if seed is None:
        seed = int(np.random.default_rng().integers(2**64, dtype=np.uint64))
    elif not 0 <= operator.index(seed) < 2**64:
        raise ValueError(f"seed: expected 0 <= seed < 2**64, got {seed!r}")
    _check_out(out, x)
    if not training:
        return _store(np.copy(x), x, out), Context(shape=x.shape, dtype=x.dtype, mask=None, scale=1.0, seed=seed)
    keep = _random_words(operator.index(seed), x.size) >= math.floor(p * 2**32)
    scale = _compute_dtype(x).type(1 / (1 - p))
    y = _store(_select(keep.reshape(x.shape), _compute(x) * scale), x, out)
    mask = np.packbits(keep, bitorder="little")
    return y, Context(shape=x.shape, dtype=x.dtype, mask=mask, scale=scale, seed=seed)


def dropout_backward(dy: Array, ctx: Context, *, out: Array | None = None) -> InputGrad:
    """dx_i = dy_i / (1 - p) where x_i was kept, else 0. `out` receives dx."""
    dy = _array("dy", dy)
    if dy.shape != ctx.shape or dy.dtype != ctx.dtype:
        raise ValueError(f"dy: expected {ctx.dtype} of shape {ctx.shape}, got {dy.dtype} of shape {dy.shape}")
    _check_out(out, dy)
    if ctx.mask is None:
        return InputGrad(_store(np.copy(dy), dy, out))
    keep = np.unpackbits(ctx.mask, count=dy.size, bitorder="little").astype(bool).reshape(dy.shape)
    return InputGrad(_store(_select(keep, _compute(dy) * ctx.scale), dy, out))


# -------------------------------------------------------------------------------------------------------------- moments


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


# ------------------------------------------------------------------------------------------- the arithmetic they share


def _mean(values: Array, axes: tuple[int, ...]) -> Array:
    """sum / m with the axes kept; 0 for no values, so that an empty batch needs no branch."""
    return values.sum(axis=axes, keepdims=True) / values.dtype.type(max(_count(values, axes), 1))


def _moments(values: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and biased variance in two passes, axes kept."""
    mean = _mean(values, axes)
    return mean, _mean((values - mean) ** 2, axes)


def _merge_moments(mean: Array, var: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Moments of the union of sets of equal size: the variance within plus the variance between."""
    merged, between = _moments(mean, axes)
    return merged, _mean(var, axes) + between


def _centred_gradient(g: Array, xhat: Array, axes: tuple[int, ...]) -> Array:
    """dx / rstd for g = dy * gamma: what is left of g after its projections on 1 and on xhat."""
    return g - _mean(g, axes) - xhat * _mean(g * xhat, axes)


def _affine(xhat: Array, gamma: Array | None, beta: Array | None) -> Array:
    y = _scale(xhat, gamma)
    return y if beta is None else y + beta


def _scale(values: Array, gamma: Array | None) -> Array:
    return values if gamma is None else values * gamma


def _activate(y: Array, activation: Activation) -> Array:
    """max(y, 0) with NaN kept and no -0."""
    return y if activation is None else np.where(y <= 0, y.dtype.type(0), y)


def _deactivate(dy: Array, y: Array | None) -> Array:
    return dy if y is None else _select(y > 0, dy)


def _select(keep: Array, values: Array) -> Array:
    return np.where(keep, values, values.dtype.type(0))


def _update_running(running: Array | None, batch: Array, momentum: float) -> None:
    if running is not None:
        running[...] = (1 - momentum) * _compute(running) + momentum * batch.reshape(running.shape)


def _below_maximum(values: Array, axis: int) -> Array:
    with np.errstate(invalid="ignore"):  # a row whose maximum is infinite is NaN
        return values - values.max(axis=axis, keepdims=True, initial=-np.inf)


def _log_probabilities(values: Array, axis: int) -> Array:
    z = _below_maximum(values, axis)
    return z - np.log(np.exp(z).sum(axis=axis, keepdims=True)) if z.size else z


def _mixing_weights(name: str, logits: Array, x: Array) -> Array:
    values = _parameter(name, logits, x, (3,))
    if values is None:
        raise TypeError(f"{name}: expected an array of shape (3,), got None")
    e = np.exp(_below_maximum(values, 0))
    return e / e.sum()


def _pick(log_p: Array, index: Array, axis: int) -> Array:
    """log_p at the target's class."""
    if not log_p.size:
        return np.zeros(index.shape, log_p.dtype)
    return np.take_along_axis(log_p, np.expand_dims(index, axis), axis).squeeze(axis)


def _random_words(seed: int, n: int) -> NDArray[np.uint64]:
    """The first n words of Philox4x32-10 under this seed, counting blocks of four from 0."""
    block = np.arange(-(-n // 4), dtype=np.uint64)
    zero = np.zeros_like(block)
    words = _philox4x32((block & _LOW, block >> 32, zero, zero), (seed & _LOW, seed >> 32))
    return np.stack(words, axis=-1).reshape(-1)[:n]


_LOW = 0xFFFFFFFF


def _philox4x32(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, Array, Array, Array]:
    """Ten rounds of two 32 x 32 -> 64 bit products; constants and order of Salmon et al. 2011, section 3.2 and table
    2."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (product1 >> 32) ^ c1 ^ k0, product1 & _LOW, (product0 >> 32) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


# ----------------------------------------------------------------------------------------------------- shapes and types


def _compute_dtype(x: Array) -> np.dtype[Any]:
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def _compute(x: Any) -> Any:
    """The values in the type that is computed in: half types widen to float32; None stays None."""
    return None if x is None else x.astype(_compute_dtype(x), copy=False)


def _store(values: Array, like: Array, out: Array | None) -> Array:
    """Round once to the storage type, into `out` if given; elementwise results already have the layout of x."""
    if out is None:
        return values.astype(like.dtype, copy=False)
    out[...] = values
    return out


def _statistic(values: Array, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """One float64 value per statistic, without the axes that were reduced; running statistics repeat over the
    samples."""
    full = values if values.size == math.prod(shape) else np.repeat(values, shape[0], axis=0)
    return full.astype(np.float64).reshape(shape)


def _given(gradient: Array, parameter: Array | None) -> Array | None:
    return None if parameter is None else gradient


def _count(x: Array, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[a] for a in axes)


def _all_but(ndim: int, *kept: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in kept)


def _broadcast(values: Any, ndim: int, *axes: int) -> Any:
    """Values along the given axes, in an ndim-dimensional shape with length 1 elsewhere; None stays None."""
    if values is None:
        return None
    shape = [1] * ndim
    for a, n in zip(axes, values.shape, strict=True):
        shape[a] = n
    return values.reshape(shape)


def _trailing_ones(values: Array, ndim: int) -> Array:
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _split(x: Array, axis: int, groups: int) -> Array:
    """Channels cut into (G, C / G), which is a view."""
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


# --------------------------------------------------------------------------------------------------------------- checks


def _array(name: str, x: Any) -> Array:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, got a masked array")
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: expected a numpy.ndarray, got {type(x).__name__}")
    if x.dtype.name not in ("float32", "float64", "float16", "bfloat16") or not x.dtype.isnative:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16 in native byte order, got {x.dtype}")
    return x


def _axis(axis: SupportsIndex, ndim: int, name: str = "axis") -> int:
    a = operator.index(axis)
    if not -ndim <= a < ndim:
        raise ValueError(f"{name}: expected a number from {-ndim} to {ndim - 1} for {ndim} axes, got {a}")
    return a % ndim


def _channel_axis(axis: SupportsIndex, ndim: int, samples: int | None = 0) -> int:
    """The channel axis, which is not the samples' where these keep statistics of their own."""
    if ndim < 2:
        raise ValueError(f"x: expected at least 2 axes (samples and channels), got {ndim}")
    channel = _axis(axis, ndim)
    if channel == samples:
        raise ValueError(f"axis: expected a channel axis other than {samples}, which is the samples', got {axis}")
    return channel


def _trailing(normalized_shape: int | Sequence[int], x: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The normalized shape as a tuple, and its axes."""
    given = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    shape = tuple(operator.index(n) for n in given)
    if not shape or x.shape[max(x.ndim - len(shape), 0) :] != shape:
        raise ValueError(f"normalized_shape: expected the last axes of x, of shape {x.shape}, got {shape}")
    return shape, tuple(range(x.ndim - len(shape), x.ndim))


def _groups(num_groups: SupportsIndex, channels: int) -> int:
    groups = operator.index(num_groups)
    if groups < 1 or channels % groups:
        raise ValueError(f"num_groups: expected a divisor of the {channels} channels, got {groups}")
    return groups


def _check_scalars(eps: float, momentum: float = 0.0) -> None:
    if not isinstance(eps, Real):
        raise TypeError(f"eps: expected a number, got {eps!r}")
    if momentum is None:
        raise ValueError(
            "momentum: expected a number, got None; a cumulative average needs a counter: pass 1 / batches"
        )
    if not isinstance(momentum, Real):
        raise TypeError(f"momentum: expected a number, got {momentum!r}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps: expected a finite number >= 0, got {eps!r}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum: expected a number in [0, 1], got {momentum!r}")


def _check_activation(activation: Any) -> None:
    if activation not in (None, "relu"):
        raise ValueError(f"activation: expected None or 'relu', got {activation!r}")


def _check_parameter_dtype(name: str, parameter: Array, x: Array) -> None:
    if parameter.dtype not in (x.dtype, _compute_dtype(x)):
        accepted = " or ".join(dict.fromkeys((x.dtype.name, _compute_dtype(x).name)))
        raise TypeError(f"{name}: expected {accepted} for {x.dtype} data, got {parameter.dtype}")


def _parameter(name: str, parameter: Any, x: Array, shape: tuple[int, ...]) -> Array | None:
    """The parameter in the compute dtype, checked."""
    if parameter is None:
        return None
    parameter = _array(name, parameter)
    _check_parameter_dtype(name, parameter, x)
    if parameter.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {parameter.shape}")
    return _compute(parameter)


def _check_running(
    running_mean: Any, running_var: Any, x: Array, shape: tuple[int, ...], *, needed: bool, written: bool
) -> None:
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is None:
            if needed or running_mean is not running_var:
                why = "without statistics of the batch" if needed else "beside the other running statistic"
                raise ValueError(f"{name}: expected an array of shape {shape} {why}, got None")
            continue
        _parameter(name, running, x, shape)
        if written and not (isinstance(running, np.ndarray) and running.flags.writeable):
            raise ValueError(f"{name}: expected a writable array, because it is updated, got a read-only one")


def _check_like(name: str, array: Any, x: Array) -> None:
    if array is None:
        return
    array = _array(name, array)
    if array.dtype != x.dtype:
        raise TypeError(f"{name}: expected {x.dtype} like x, got {array.dtype}")
    if array.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape} like x, got {array.shape}")


def _gradient(dy: Any, like: Array, name: str = "dy") -> Array:
    dy = _array(name, dy)
    if dy.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} like the output, got {dy.dtype}")
    if dy.shape != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape} like the output, got {dy.shape}")
    return dy


def _check_out(out: Any, like: Array, kept: Array | None = None) -> None:
    """`out` has the shape and dtype of `like`, can be written, and does not overlap what a context keeps."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an array, got {type(out).__name__}")
    if out.dtype != like.dtype:
        raise TypeError(f"out: expected {like.dtype}, got {out.dtype}")
    if out.shape != like.shape:
        raise ValueError(f"out: expected shape {like.shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")
    if kept is not None and np.shares_memory(out, kept):
        raise ValueError(
            "out: expected no overlap with x, which the context keeps for the backward pass; pass another array"
        )


def _class_indices(targets: Any, logits: Array, axis: int, ignore_index: int) -> tuple[Array, Array]:
    """Which targets count, and their classes (0 where ignored)."""
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets: expected integer class indices, got {targets.dtype}")
    expected = logits.shape[:axis] + logits.shape[axis + 1 :]
    if targets.shape != expected:
        raise ValueError(f"targets: expected shape {expected}, the logits' without the class axis, got {targets.shape}")
    counted = targets != ignore_index
    bad = counted & ((targets < 0) | (targets >= logits.shape[axis]))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"targets: expected 0 <= target < {logits.shape[axis]} or ignore_index {ignore_index}, "
            f"got {targets[where]} at index {where}"
        )
    return counted, np.where(counted, targets, 0)
