"""The arithmetic that the norms share: one mean and variance over a set of axes, one gradient, one affine map."""

from __future__ import annotations

import numpy as np

from ._shapes import _compute, _count
from ._types import Activation, Array


def _mean(values: Array, axes: tuple[int, ...]) -> Array:
    """sum / m with the axes kept; 0 for no values, so that an empty batch needs no branch."""
    return values.sum(axis=axes, keepdims=True) / values.dtype.type(max(_count(values, axes), 1))


def _moments(values: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and biased variance in two passes, axes kept."""
    mean = _mean(values, axes)
    return mean, _mean((values - mean) ** 2, axes)


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
