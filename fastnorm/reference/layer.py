"""Layer and RMS norm: one mean and variance per sample, over its trailing axes; RMS norm has no mean.

gamma belongs to the axes that are averaged, so g = dy * gamma, and not dy, is what the backward pass projects.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from ._arithmetic import _affine, _centred_gradient, _mean, _moments, _scale
from ._checks import _array, _check_like, _check_out, _check_scalars, _gradient, _parameter
from ._shapes import _all_but, _compute, _compute_dtype, _given, _statistic, _store
from ._types import Array, Context, NormGrads, ResidualNormGrads

__all__ = [
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
]


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


def _trailing_ones(values: Array, ndim: int) -> Array:
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _trailing(normalized_shape: int | Sequence[int], x: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The normalized shape as a tuple, and its axes."""
    given = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    shape = tuple(operator.index(n) for n in given)
    if not shape or x.shape[max(x.ndim - len(shape), 0) :] != shape:
        raise ValueError(f"normalized_shape: expected the last axes of x, of shape {x.shape}, got {shape}")
    return shape, tuple(range(x.ndim - len(shape), x.ndim))
