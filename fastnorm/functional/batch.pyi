# The types of batch.pyx.

from typing import Any, SupportsIndex

from numpy.typing import NDArray

from fastnorm._types import NormGrads, ResidualNormGrads
from fastnorm.functional._channels import ChannelContext

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "moments",
]

def batch_norm(
    x: NDArray[Any],
    running_mean: NDArray[Any] | None = None,
    running_var: NDArray[Any] | None = None,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: SupportsIndex = 1,
    activation: str | None = None,
    residual: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def batch_norm_forward(
    x: NDArray[Any],
    running_mean: NDArray[Any] | None = None,
    running_var: NDArray[Any] | None = None,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: SupportsIndex = 1,
    activation: str | None = None,
    residual: NDArray[Any] | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], ChannelContext]: ...
def batch_norm_backward(
    dy: NDArray[Any], ctx: ChannelContext, *, out: NDArray[Any] | None = None
) -> NormGrads | ResidualNormGrads: ...
def moments(
    x: NDArray[Any],
    axis: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
