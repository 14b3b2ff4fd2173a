"""What the backward functions return: named tuples whose fields are gradients, None for a parameter that was None."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray

__all__ = ["InputGrad", "LogitsGrad", "NormGrads", "ResidualNormGrads", "SwitchableNormGrads", "WeightNormGrads"]


class NormGrads(NamedTuple):
    """Gradients of a norm with respect to x, weight and bias."""

    dx: Array
    dweight: Array | None
    dbias: Array | None

    @property
    def dresidual(self) -> None:
        """None: the forward had no residual."""
        return None


class ResidualNormGrads(NamedTuple):
    """Gradients of a norm with a residual input."""

    dx: Array
    dweight: Array | None
    dbias: Array | None
    dresidual: Array


class SwitchableNormGrads(NamedTuple):
    """Gradients of switchable norm."""

    dx: Array
    dweight: Array | None
    dbias: Array | None
    dmean_logits: Array
    dvar_logits: Array


class WeightNormGrads(NamedTuple):
    """Gradients of weight norm with respect to direction v and magnitude g."""

    dv: Array
    dg: Array


class InputGrad(NamedTuple):
    """Gradient with respect to the only input."""

    dx: Array


class LogitsGrad(NamedTuple):
    """Gradient of the cross-entropy cost with respect to the logits."""

    dlogits: Array
