# The types of layer.pyx.

from collections.abc import Sequence
from typing import Any, SupportsIndex

from numpy.typing import NDArray

from fastnorm._types import NormGrads, ResidualNormGrads
from fastnorm.functional._rows import RowsContext

__all__ = [
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
]

def layer_norm(
    x: NDArray[Any],
    normalized_shape: SupportsIndex | Sequence[SupportsIndex],
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    eps: float = 1e-5,
    *,
    residual: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def layer_norm_forward(
    x: NDArray[Any],
    normalized_shape: SupportsIndex | Sequence[SupportsIndex],
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    eps: float = 1e-5,
    *,
    residual: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], RowsContext]: ...
def layer_norm_backward(
    dy: NDArray[Any], ctx: RowsContext, *, out: NDArray[Any] | None = None
) -> NormGrads | ResidualNormGrads: ...
def rms_norm(
    x: NDArray[Any],
    normalized_shape: SupportsIndex | Sequence[SupportsIndex],
    weight: NDArray[Any] | None = None,
    eps: float | None = None,
    *,
    residual: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def rms_norm_forward(
    x: NDArray[Any],
    normalized_shape: SupportsIndex | Sequence[SupportsIndex],
    weight: NDArray[Any] | None = None,
    eps: float | None = None,
    *,
    residual: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], RowsContext]: ...
def rms_norm_backward(
    dy: NDArray[Any], ctx: RowsContext, *, out: NDArray[Any] | None = None
) -> NormGrads | ResidualNormGrads: ...
