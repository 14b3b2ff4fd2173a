"""What a forward pass keeps and what a backward pass returns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]
Activation = Literal["relu"] | None
Reduction = Literal["mean", "sum", "none"]
Axes = int | tuple[int, ...] | None


class Context(SimpleNamespace):
    """What a forward pass keeps for its backward: references to its arguments, and the statistics.

    Norms expose `mean` and `rstd` in float64, one value per statistic: shape (C,) for batch norm, (N, C) for instance
    and switchable norm, (N, G) for group norm, the leading axes of x for layer and RMS norm (whose mean is None).
    """


class NormGrads(NamedTuple):
    """Gradients of a norm; None for a parameter that was None."""

    dx: Array
    dweight: Array | None
    dbias: Array | None

    @property
    def dresidual(self) -> None:
        """None: the forward pass had no residual."""
        return None


class ResidualNormGrads(NamedTuple):
    """Gradients of a norm that had a residual."""

    dx: Array
    dweight: Array | None
    dbias: Array | None
    dresidual: Array


class SwitchableNormGrads(NamedTuple):
    """Gradients of switchable norm, the two sets of logits included."""

    dx: Array
    dweight: Array | None
    dbias: Array | None
    dmean_logits: Array
    dvar_logits: Array


class WeightNormGrads(NamedTuple):
    """Gradients of weight norm: direction and length."""

    dv: Array
    dg: Array


class InputGrad(NamedTuple):
    """The gradient of a function of x alone."""

    dx: Array


class LogitsGrad(NamedTuple):
    """The gradient of the cross-entropy cost."""

    dlogits: Array
