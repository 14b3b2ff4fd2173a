"""The fully connected layer: one matrix product forward, two backward, all on NumPy's BLAS."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from ._common import Array, float_dtype, positive, require_gradient, require_input, uniform_parameter
from .module import Module, Parameter
from .rng import RngLike, resolve

__all__ = ["Linear"]


class Linear(Module):
    """y = x·Wᵀ + b.

    x: (…, in_features), float32 or float64 as `dtype` says; y: (…, out_features). weight: (out_features, in_features), bias:
    (out_features,), both from U(−1/sqrt(in_features), 1/sqrt(in_features)) as in torch. A Linear before a batch norm needs no
    bias: the norm removes it.

    Raises TypeError or ValueError when x has another type or number of features.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: RngLike = None,
    ) -> None:
        self.in_features = positive("Linear", "in_features", in_features)
        self.out_features = positive("Linear", "out_features", out_features)
        kind, generator = float_dtype("Linear", dtype), resolve(rng)
        self.weight = uniform_parameter((out_features, in_features), in_features, kind, generator)
        self.bias = uniform_parameter((out_features,), in_features, kind, generator) if bias else None

    def forward(self, x: Array) -> Array:
        """x·Wᵀ + b; keeps a reference to `x`."""
        require_input("Linear", x, self.weight, -1, self.in_features)
        y: Array = x @ self.weight.data.T
        if self.bias is not None:
            y += self.bias.data
        self.save_for_backward(x)
        return y

    def backward(self, dy: Array) -> Array:
        """dx = dy·W; adds dyᵀ·x to the weight's gradient and Σdy to the bias's."""
        x: Array = self.saved_for_backward()
        require_gradient("Linear", dy, (*x.shape[:-1], self.out_features), x.dtype)
        rows = dy.reshape(-1, self.out_features)
        self.weight.accumulate(rows.T @ x.reshape(-1, self.in_features))
        if self.bias is not None:
            self.bias.accumulate(rows.sum(axis=0))
        dx: Array = dy @ self.weight.data
        return dx

    def extra_repr(self) -> str:
        """Sizes and bias."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
