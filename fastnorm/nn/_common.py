"""What several layers share: checks of arguments, the layout of 4-D arrays, and initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .module import Parameter
from .rng import RngLike, resolve

__all__ = ["as_pair", "empty_nchw", "float_dtype", "is_channels_last", "positive", "require_input", "uniform_parameter"]

Array = NDArray[Any]


def float_dtype(name: str, dtype: DTypeLike) -> np.dtype[Any]:
    """float32 or float64, the types that BLAS multiplies; TypeError for any other."""
    result = np.dtype(dtype)
    if result not in (np.float32, np.float64):
        raise TypeError(f"{name}: dtype must be float32 or float64, got {result}")
    return result.newbyteorder("=")


def positive(name: str, what: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: {what} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: {what} must be at least 1, got {value}")
    return int(value)


def as_pair(name: str, what: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """(height, width) from one integer or two, each at least `least`."""
    pair = (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, (int, np.integer)) for v in pair):
        raise TypeError(f"{name}: {what} must be an integer or two, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name}: {what} must be at least {least}, got {value!r}")
    return int(pair[0]), int(pair[1])


def require_input(name: str, x: Array, weight: Parameter, axis: int, size: int, ndim: int | None = None) -> None:
    """That `x` is an array of the weight's type with `size` elements along `axis`, and `ndim` axes where given."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: x must be a numpy array, got {type(x).__name__}")
    if x.dtype != weight.data.dtype:
        raise TypeError(
            f"{name}: x is {x.dtype}, the weights are {weight.data.dtype}; x.astype({weight.data.dtype}) fits"
        )
    if (ndim is not None and x.ndim != ndim) or x.ndim == 0 or x.shape[axis] != size:
        axes = f"{ndim} axes and " if ndim is not None else ""
        raise ValueError(f"{name}: x must have {axes}{size} features along axis {axis}, got shape {x.shape}")


def require_gradient(name: str, dy: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """That `dy` is an array of the output's shape and type."""
    if not isinstance(dy, np.ndarray):
        raise TypeError(f"{name}.backward: dy must be a numpy array, got {type(dy).__name__}")
    if dy.shape != shape:
        raise ValueError(f"{name}.backward: dy has shape {dy.shape}, the output had {shape}")
    if dy.dtype != dtype:
        raise TypeError(f"{name}.backward: dy is {dy.dtype}, the output was {dtype}")


def is_channels_last(x: Array) -> bool:
    """Whether the memory of the NCHW-shaped `x` is N, H, W, C; an array that is both counts as NCHW."""
    return not x.flags.c_contiguous and x.transpose(0, 2, 3, 1).flags.c_contiguous


def empty_nchw(shape: tuple[int, int, int, int], dtype: np.dtype[Any], channels_last: bool) -> Array:
    """A new NCHW-shaped array whose memory is N, C, H, W or N, H, W, C."""
    if not channels_last:
        return np.empty(shape, dtype)
    n, c, h, w = shape
    return np.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def uniform_parameter(shape: tuple[int, ...], fan_in: int, dtype: np.dtype[Any], rng: RngLike) -> Parameter:
    """U(−1/sqrt(fan_in), 1/sqrt(fan_in)), torch's start for weights and biases of Linear and Conv2d."""
    bound = 1.0 / math.sqrt(fan_in)
    return Parameter(resolve(rng).uniform(-bound, bound, shape).astype(dtype))
