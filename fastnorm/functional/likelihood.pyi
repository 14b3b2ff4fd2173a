# The types of likelihood.pyx.

from typing import Any, SupportsIndex, final

from numpy.typing import NDArray

from fastnorm._types import InputGrad, LogitsGrad

__all__ = [
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "log_softmax",
    "log_softmax_backward",
    "log_softmax_forward",
    "softmax",
    "softmax_backward",
    "softmax_forward",
]

@final
class SoftmaxContext:
    @property
    def y(self) -> NDArray[Any]: ...
    @property
    def op(self) -> str: ...

@final
class CrossEntropyContext:
    @property
    def logits(self) -> NDArray[Any]: ...
    @property
    def reduction(self) -> str: ...

def softmax(x: NDArray[Any], axis: SupportsIndex = -1, *, out: NDArray[Any] | None = None) -> NDArray[Any]: ...
def softmax_forward(
    x: NDArray[Any], axis: SupportsIndex = -1, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], SoftmaxContext]: ...
def softmax_backward(dy: NDArray[Any], ctx: SoftmaxContext, *, out: NDArray[Any] | None = None) -> InputGrad: ...
def log_softmax(x: NDArray[Any], axis: SupportsIndex = -1, *, out: NDArray[Any] | None = None) -> NDArray[Any]: ...
def log_softmax_forward(
    x: NDArray[Any], axis: SupportsIndex = -1, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], SoftmaxContext]: ...
def log_softmax_backward(dy: NDArray[Any], ctx: SoftmaxContext, *, out: NDArray[Any] | None = None) -> InputGrad: ...
def cross_entropy(
    logits: NDArray[Any],
    targets: NDArray[Any],
    weight: NDArray[Any] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: SupportsIndex = 1,
) -> Any: ...
def cross_entropy_forward(
    logits: NDArray[Any],
    targets: NDArray[Any],
    weight: NDArray[Any] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    axis: SupportsIndex = 1,
) -> tuple[Any, CrossEntropyContext]: ...
def cross_entropy_backward(dy: Any, ctx: CrossEntropyContext, *, out: NDArray[Any] | None = None) -> LogitsGrad: ...
