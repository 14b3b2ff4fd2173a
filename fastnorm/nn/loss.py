"""The cost at the end of a classifier. `loss(logits, targets)` gives the value, `loss.backward()` the gradient of the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnorm import functional as F

from ._common import Array
from .module import Module

__all__ = ["CrossEntropyLoss"]


class CrossEntropyLoss(Module):
    """loss = −log softmax(logits)[target], averaged. dlogits = (softmax − onehot)/n.

    logits: (N, K) or (N, K, …), targets: integers (N,) or (N, …) in [0, K). `weight`: (K,) class weights; samples whose target is
    `ignore_index` count neither in the sum nor in n; `reduction`: "mean", "sum" or "none"; `label_smoothing` in [0, 1].
    Constructor arguments and meaning as in torch.
    """

    weight: Array | None

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"CrossEntropyLoss: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"CrossEntropyLoss: label_smoothing must be in [0, 1], got {label_smoothing!r}")
        self.register_buffer("weight", None if weight is None else np.asarray(weight))
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, logits: Array, targets: Array) -> Any:
        """The loss: a scalar, or an array of the targets' shape with `reduction="none"`."""
        loss, ctx = F.cross_entropy_forward(
            logits, targets, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )
        self.save_for_backward(ctx)
        return loss

    def backward(self, dy: Any = 1.0) -> Array:
        """dlogits for `dy`, the gradient of the loss itself: 1 unless there is more after it."""
        return F.cross_entropy_backward(dy, self.saved_for_backward()).dlogits

    def extra_repr(self) -> str:
        """What is averaged."""
        return f"reduction={self.reduction!r}"
