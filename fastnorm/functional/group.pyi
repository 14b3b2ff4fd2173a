# The types of group.pyx.

from typing import Any, SupportsIndex

from numpy.typing import NDArray

from fastnorm._types import NormGrads
from fastnorm.functional._channels import ChannelContext

__all__ = [
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
]

def group_norm(
    x: NDArray[Any],
    num_groups: SupportsIndex,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    eps: float = 1e-5,
    *,
    axis: SupportsIndex = 1,
    activation: str | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def group_norm_forward(
    x: NDArray[Any],
    num_groups: SupportsIndex,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    eps: float = 1e-5,
    *,
    axis: SupportsIndex = 1,
    activation: str | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], ChannelContext]: ...
def group_norm_backward(dy: NDArray[Any], ctx: ChannelContext, *, out: NDArray[Any] | None = None) -> NormGrads: ...
def instance_norm(
    x: NDArray[Any],
    running_mean: NDArray[Any] | None = None,
    running_var: NDArray[Any] | None = None,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: SupportsIndex = 1,
    activation: str | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def instance_norm_forward(
    x: NDArray[Any],
    running_mean: NDArray[Any] | None = None,
    running_var: NDArray[Any] | None = None,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: SupportsIndex = 1,
    activation: str | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], ChannelContext]: ...
def instance_norm_backward(dy: NDArray[Any], ctx: ChannelContext, *, out: NDArray[Any] | None = None) -> NormGrads: ...
