"""Norms of a sample by its own statistics as layers: the same when training and afterwards, with nothing to track."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastnorm import functional as F

from ._common import Array, positive
from .normalization import _eps, _Norm

__all__ = ["GroupNorm", "LayerNorm", "RMSNorm"]


def _shape(name: str, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (normalized_shape,) if isinstance(normalized_shape, (int, np.integer)) else tuple(normalized_shape)
    if not sizes:
        raise ValueError(f"{name}: normalized_shape must have at least one axis, got {normalized_shape!r}")
    return tuple(positive(name, "normalized_shape", size) for size in sizes)


class LayerNorm(_Norm):
    """y = gamma·(x − mean)/sqrt(var + eps) + beta, mean and variance per sample over the trailing `normalized_shape`.

    weight, bias: of `normalized_shape`; `bias=False` leaves beta out, `elementwise_affine=False` both. `y, s = layer(x,
    residual=r)` normalises s = x + r in one pass, and backward takes the gradients of both. Ba et al. 2016.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = _shape("LayerNorm", normalized_shape)
        self.eps = _eps("LayerNorm", eps)
        self.elementwise_affine = bool(elementwise_affine)
        self._affine(self.normalized_shape, elementwise_affine, elementwise_affine and bias, dtype)

    def forward(self, x: Array, residual: Array | None = None) -> Any:
        """norm(x); with a residual (norm(s), s) where s = x + residual is what the next block adds to."""
        y, ctx = F.layer_norm_forward(x, self.normalized_shape, *self._gamma_beta(), self.eps, residual=residual)
        self.save_for_backward(ctx)
        return y if residual is None else (y, ctx.sum)

    def backward(self, dy: Array, dsum: Array | None = None) -> Array:
        """dx, which is dresidual too; `dsum` is the gradient that reaches s by the other way. Adds to those of the parameters."""
        dx = self._accumulate(F.layer_norm_backward(dy, self.saved_for_backward()))
        return dx if dsum is None else np.add(dx, dsum, out=dx)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(_Norm):
    """y = gamma·x/sqrt(mean(x²) + eps) over the trailing `normalized_shape`; `eps=None` is the type's own epsilon.

    weight: of `normalized_shape`. `residual` as in LayerNorm. Zhang and Sennrich 2019.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.normalized_shape = _shape("RMSNorm", normalized_shape)
        self.eps = None if eps is None else _eps("RMSNorm", eps)
        self.elementwise_affine = bool(elementwise_affine)
        self._affine(self.normalized_shape, elementwise_affine, False, dtype)

    def forward(self, x: Array, residual: Array | None = None) -> Any:
        """norm(x); with a residual (norm(s), s) where s = x + residual is what the next block adds to."""
        y, ctx = F.rms_norm_forward(x, self.normalized_shape, self._gamma_beta()[0], self.eps, residual=residual)
        self.save_for_backward(ctx)
        return y if residual is None else (y, ctx.sum)

    def backward(self, dy: Array, dsum: Array | None = None) -> Array:
        """dx, which is dresidual too; `dsum` is the gradient that reaches s by the other way. Adds to those of the parameters."""
        dx = self._accumulate(F.rms_norm_backward(dy, self.saved_for_backward()))
        return dx if dsum is None else np.add(dx, dsum, out=dx)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(_Norm):
    """y = gamma·(x − mean)/sqrt(var + eps) + beta, mean and variance per sample and group of C/num_groups channels.

    x: (N, C, …); weight, bias: (C,), one per channel. `activation="relu"` is fused. Raises ValueError unless num_groups divides
    num_channels. Wu and He 2018.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: str | None = None,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.num_groups = positive("GroupNorm", "num_groups", num_groups)
        self.num_channels = positive("GroupNorm", "num_channels", num_channels)
        if num_channels % num_groups:
            raise ValueError(f"GroupNorm: num_groups = {num_groups} must divide num_channels = {num_channels}")
        if activation not in (None, "relu"):
            raise ValueError(f"GroupNorm: activation must be None or 'relu', got {activation!r}")
        self.eps = _eps("GroupNorm", eps)
        self.affine = bool(affine)
        self.activation = activation
        self.axis = axis
        self._affine((num_channels,), affine, affine, dtype)

    def forward(self, x: Array) -> Array:
        """activation(norm(x))."""
        if not isinstance(x, np.ndarray):
            raise TypeError(f"GroupNorm: x must be a numpy array, got {type(x).__name__}")
        if not -x.ndim <= self.axis < x.ndim or x.shape[self.axis] != self.num_channels:
            raise ValueError(
                f"GroupNorm: x must have {self.num_channels} channels on axis {self.axis}, got shape {x.shape}"
            )
        gamma, beta = self._gamma_beta()
        y, ctx = F.group_norm_forward(
            x, self.num_groups, gamma, beta, self.eps, axis=self.axis, activation=self.activation
        )
        self.save_for_backward(ctx)
        return y

    def backward(self, dy: Array) -> Array:
        """dx; adds to the gradients of gamma and beta."""
        return self._accumulate(F.group_norm_backward(dy, self.saved_for_backward()))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
