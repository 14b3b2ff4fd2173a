"""Inverted dropout as a layer: each training forward draws one seed, and the kernel makes the mask from seed and position."""

from __future__ import annotations

import numpy as np

from fastnorm import functional as F

from ._common import Array
from .module import Module
from .rng import RngLike, resolve

__all__ = ["Dropout"]


class Dropout(Module):
    """y = x·mask/(1 − p) in training, where each element of the mask is 0 with probability p; y = x in evaluation.

    Seeds come from `rng`, a generator or a seed, or else from the generator that `manual_seed` starts. Raises ValueError unless
    0 ≤ p < 1. Srivastava et al. 2014.
    """

    def __init__(self, p: float = 0.5, *, rng: RngLike = None) -> None:
        if not 0.0 <= p < 1.0:
            raise ValueError(f"Dropout: p must satisfy 0 <= p < 1, got {p!r}")
        self.p = float(p)
        self._rng = None if rng is None else resolve(rng)

    def forward(self, x: Array) -> Array:
        """x·mask/(1 − p), or `x` itself where nothing is dropped."""
        if not self.training or self.p == 0.0:
            self.save_for_backward((None,))
            return x
        seed = int(resolve(self._rng).integers(0, 2**63, dtype=np.int64))
        y, ctx = F.dropout_forward(x, self.p, True, seed=seed)
        self.save_for_backward((ctx,))
        return y

    def backward(self, dy: Array) -> Array:
        """dy·mask/(1 − p) with the mask of the forward."""
        (ctx,) = self.saved_for_backward()
        return dy if ctx is None else F.dropout_backward(dy, ctx).dx

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"
