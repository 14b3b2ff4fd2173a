# The types of regularization.pyx.

from typing import Any, final

from numpy.typing import NDArray

from fastnorm._types import InputGrad

__all__ = ["dropout", "dropout_backward", "dropout_forward"]

@final
class DropoutContext:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def mask(self) -> NDArray[Any] | None: ...

def dropout(
    x: NDArray[Any], p: float = 0.5, training: bool = True, *, seed: int | None = None, out: NDArray[Any] | None = None
) -> NDArray[Any]: ...
def dropout_forward(
    x: NDArray[Any], p: float = 0.5, training: bool = True, *, seed: int | None = None, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], DropoutContext]: ...
def dropout_backward(dy: NDArray[Any], ctx: DropoutContext, *, out: NDArray[Any] | None = None) -> InputGrad: ...
