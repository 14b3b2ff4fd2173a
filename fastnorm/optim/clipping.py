"""Gradient clipping, in place and without allocation: the usual guard against a rare huge step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fastnorm.nn.module import Parameter

__all__ = ["clip_grad_norm", "clip_grad_value"]


def clip_grad_norm(parameters: Parameter | Iterable[Parameter], max_norm: float, norm_type: float = 2.0) -> float:
    """Scale all gradients by min(1, max_norm/(norm + 1e-6)), norm being that of all of them as one vector; returns the norm.

    `norm_type`: 2, 1, inf or any other p > 0. Summed in float64. A norm that is not finite scales to NaN, as in torch: check what
    is returned. Raises ValueError for max_norm < 0 or a norm_type that is not positive. Pascanu et al. 2013.
    """
    if not max_norm >= 0.0:
        raise ValueError(f"clip_grad_norm: max_norm must be at least 0, got {max_norm!r}")
    if not norm_type > 0.0:
        raise ValueError(f"clip_grad_norm: norm_type must be positive, got {norm_type!r}")
    gradients = _gradients(parameters)
    if norm_type == math.inf:
        sizes = [max(abs(float(g.max())), abs(float(g.min()))) for g in gradients if g.size]
        norm = float(np.max(sizes, initial=0.0))  # NumPy's, which NaN does not pass unseen
    elif norm_type == 2.0:
        norm = math.sqrt(sum(_dot(g) for g in gradients))
    else:
        norm = sum(float((np.abs(g, dtype=np.float64) ** norm_type).sum()) for g in gradients) ** (1.0 / norm_type)
    scale = max_norm / (norm + 1e-6)
    if not scale >= 1.0:
        for g in gradients:
            g *= scale
    return norm


def clip_grad_value(parameters: Parameter | Iterable[Parameter], clip_value: float) -> None:
    """Limit every element of the gradients to [−clip_value, clip_value]. Raises ValueError for clip_value < 0."""
    if not clip_value >= 0.0:
        raise ValueError(f"clip_grad_value: clip_value must be at least 0, got {clip_value!r}")
    for g in _gradients(parameters):
        np.clip(g, -clip_value, clip_value, out=g)


def _gradients(parameters: Parameter | Iterable[Parameter]) -> list[np.ndarray]:
    each = [parameters] if isinstance(parameters, Parameter) else list(parameters)
    return [p.grad for p in each if p.grad is not None]


def _dot(g: np.ndarray) -> float:
    """Σg² in float64, through einsum's small buffers."""
    axes = list(range(g.ndim))
    return float(np.einsum(g, axes, g, axes, [], dtype=np.float64))
