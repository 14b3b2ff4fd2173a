# The types of switchable.pyx.

from typing import Any, SupportsIndex, final

from numpy import float64
from numpy.typing import NDArray

from fastnorm._types import SwitchableNormGrads

__all__ = ["switchable_norm", "switchable_norm_backward", "switchable_norm_forward"]

@final
class SwitchableContext:
    @property
    def x(self) -> NDArray[Any]: ...
    @property
    def training(self) -> bool: ...
    @property
    def mean(self) -> NDArray[float64]: ...
    @property
    def rstd(self) -> NDArray[float64]: ...

def switchable_norm(
    x: NDArray[Any],
    mean_logits: NDArray[Any],
    var_logits: NDArray[Any],
    running_mean: NDArray[Any] | None = None,
    running_var: NDArray[Any] | None = None,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: SupportsIndex = 1,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
def switchable_norm_forward(
    x: NDArray[Any],
    mean_logits: NDArray[Any],
    var_logits: NDArray[Any],
    running_mean: NDArray[Any] | None = None,
    running_var: NDArray[Any] | None = None,
    weight: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: SupportsIndex = 1,
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], SwitchableContext]: ...
def switchable_norm_backward(
    dy: NDArray[Any], ctx: SwitchableContext, *, out: NDArray[Any] | None = None
) -> SwitchableNormGrads: ...
