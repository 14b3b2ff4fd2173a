"""Arguments checked before anything is written: each error says which one, what was expected and what came."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, SupportsIndex

import numpy as np

from ._shapes import _compute, _compute_dtype
from ._types import Array


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
