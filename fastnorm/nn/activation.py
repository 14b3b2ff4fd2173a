"""Activations and the change of shape before a Linear: elementwise NumPy, each keeping one array by reference for backward."""

from __future__ import annotations

import numpy as np

from fastnorm import functional as F

from ._common import Array, require_gradient
from .module import Module

__all__ = ["Flatten", "ReLU", "Sigmoid", "Softmax", "Tanh"]


class ReLU(Module):
    """y = max(x, 0). dx = dy where y > 0, else 0. A NaN stays NaN."""

    def forward(self, x: Array) -> Array:
        """max(x, 0); keeps a reference to the output."""
        y: Array = np.maximum(x, x.dtype.type(0))
        self.save_for_backward(y)
        return y

    def backward(self, dy: Array) -> Array:
        """dy where the output was positive."""
        y: Array = self.saved_for_backward()
        require_gradient("ReLU", dy, y.shape, y.dtype)
        return np.where(y > 0, dy, dy.dtype.type(0))


class Sigmoid(Module):
    """y = 1/(1 + exp(−x)), computed from exp(−|x|) so that nothing overflows. dx = dy·y·(1 − y)."""

    def forward(self, x: Array) -> Array:
        """The logistic function; keeps a reference to the output."""
        small = np.abs(x)
        np.negative(small, out=small)
        np.exp(small, out=small)
        y = np.where(x < 0, small, x.dtype.type(1))
        small += 1
        y /= small
        self.save_for_backward(y)
        return y

    def backward(self, dy: Array) -> Array:
        """dy·y·(1 − y)."""
        y: Array = self.saved_for_backward()
        require_gradient("Sigmoid", dy, y.shape, y.dtype)
        dx = 1 - y
        dx *= y
        dx *= dy
        return dx


class Tanh(Module):
    """y = tanh(x). dx = dy·(1 − y²)."""

    def forward(self, x: Array) -> Array:
        """The hyperbolic tangent; keeps a reference to the output."""
        y: Array = np.tanh(x)
        self.save_for_backward(y)
        return y

    def backward(self, dy: Array) -> Array:
        """dy·(1 − y²), as (1 − y)(1 + y), which does not cancel near ±1."""
        y: Array = self.saved_for_backward()
        require_gradient("Tanh", dy, y.shape, y.dtype)
        dx = 1 - y
        dx *= 1 + y
        dx *= dy
        return dx


class Softmax(Module):
    """y = exp(x)/Σexp(x) along `dim`, the last axis by default. dx = y·(dy − Σ dy·y)."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, x: Array) -> Array:
        """The probabilities."""
        y, ctx = F.softmax_forward(x, self.dim)
        self.save_for_backward(ctx)
        return y

    def backward(self, dy: Array) -> Array:
        """y·(dy − Σ dy·y)."""
        return F.softmax_backward(dy, self.saved_for_backward()).dx

    def extra_repr(self) -> str:
        """The axis."""
        return f"dim={self.dim}"


class Flatten(Module):
    """y = x with the axes from `start_dim` to `end_dim` made one, in NCHW order whatever the memory."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Array) -> Array:
        """The reshaped array, a view where the memory allows."""
        start, end = (dim + x.ndim if dim < 0 else dim for dim in (self.start_dim, self.end_dim))
        if not 0 <= start <= end < x.ndim:
            raise ValueError(
                f"Flatten: start_dim {self.start_dim} and end_dim {self.end_dim} do not fit x of shape {x.shape}"
            )
        self.save_for_backward((x.shape,))
        merged = int(np.prod(x.shape[start : end + 1], dtype=np.int64))
        return x.reshape(*x.shape[:start], merged, *x.shape[end + 1 :])

    def backward(self, dy: Array) -> Array:
        """dy in the shape of the input."""
        (shape,) = self.saved_for_backward()
        return dy.reshape(shape)

    def extra_repr(self) -> str:
        """The axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
