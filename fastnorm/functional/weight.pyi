# The types of weight.pyx.

from typing import Any, SupportsIndex, final

from numpy import float64
from numpy.typing import NDArray

from fastnorm._types import WeightNormGrads

__all__ = ["weight_norm", "weight_norm_backward", "weight_norm_forward"]

@final
class WeightContext:
    @property
    def v(self) -> NDArray[Any]: ...
    @property
    def g(self) -> NDArray[Any]: ...
    @property
    def norm(self) -> NDArray[float64]: ...

def weight_norm(v: NDArray[Any], g: NDArray[Any], dim: SupportsIndex | None = 0) -> NDArray[Any]: ...
def weight_norm_forward(
    v: NDArray[Any], g: NDArray[Any], dim: SupportsIndex | None = 0
) -> tuple[NDArray[Any], WeightContext]: ...
def weight_norm_backward(
    dw: NDArray[Any], ctx: WeightContext, *, out: NDArray[Any] | None = None
) -> WeightNormGrads: ...
