"""Types and shapes: what is computed in which type, and where a parameter's axis lies among those of x."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._types import Array


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
