"""Weight norm around a layer: the weight is computed from v and g before each forward, and its gradient goes on to them.

The layer does not know. Its `weight` becomes a value that is computed rather than learned; where the layer adds a gradient to
it, the gradient passes through the kernel to v and g. The mapping of gradients is linear, so several may be added.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from fastnorm import functional as F

from .module import Array, Module, Parameter

__all__ = ["NormedWeight", "remove_weight_norm", "weight_norm"]

M = TypeVar("M", bound=Module)


class NormedWeight:
    """w = g·v/‖v‖ in place of a Parameter: `data` as of the last `refresh`, and a gradient that goes to v and g."""

    def __init__(self, v: Parameter, g: Parameter, dim: int | None) -> None:
        self.v, self.g, self.dim = v, g, dim
        self.refresh()

    def refresh(self) -> None:
        """Compute w from the present v and g."""
        self.data, self._ctx = F.weight_norm_forward(self.v.data, self.g.data, self.dim)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of w."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of w."""
        return self.data.dtype

    def accumulate(self, grad: Array | None) -> None:
        """Pass the gradient of w on to v and g."""
        if grad is not None:
            grads = F.weight_norm_backward(grad, self._ctx)
            self.v.accumulate(grads.dv)
            self.g.accumulate(grads.dg)

    def __getstate__(self) -> dict[str, Any]:
        return {"v": self.v, "g": self.g, "dim": self.dim}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.v, self.g, self.dim = state["v"], state["g"], state["dim"]
        self.refresh()

    def __repr__(self) -> str:
        return f"NormedWeight(shape={self.shape}, dim={self.dim})"


def weight_norm(module: M, name: str = "weight", dim: int | None = 0) -> M:
    """Replace the parameter `name` of `module` by g·v/‖v‖, one length per index of axis `dim` (None: one for all).

    The parameters are then `name`_g, of v's shape with 1 on every axis but `dim` (a single number for None), and `name`_v, as
    after `torch.nn.utils.weight_norm`; they start at ‖w‖ and w, which leaves the weight as it was. Returns the module. Make the
    optimiser afterwards: the parameters are new.

    Raises AttributeError where there is no such parameter, ValueError where a row has norm 0 or `dim` does not fit. Salimans and Kingma 2016.
    """
    parameter = getattr(module, name, None)
    if type(parameter) is not Parameter:
        already = " any more: it has weight norm already" if isinstance(parameter, NormedWeight) else ""
        raise AttributeError(f"weight_norm: {type(module).__name__} has no parameter {name!r}{already}")
    w = parameter.data
    if dim is not None and not 0 <= dim < w.ndim:
        raise ValueError(
            f"weight_norm: dim must be None or in [0, {w.ndim - 1}] for {name!r} of shape {w.shape}, got {dim!r}"
        )
    axes = tuple(axis for axis in range(w.ndim) if axis != dim)
    squares = np.square(w, dtype=np.float64).sum(axis=axes, keepdims=dim is not None)
    g, v = Parameter(np.asarray(np.sqrt(squares), w.dtype)), Parameter(w.copy())
    normed = NormedWeight(v, g, dim)
    delattr(module, name)
    setattr(module, name, normed)
    setattr(module, f"{name}_g", g)
    setattr(module, f"{name}_v", v)
    module._pre_forward = (*module._pre_forward, normed)
    return module


def remove_weight_norm(module: M, name: str = "weight") -> M:
    """Make `name` a plain parameter again, with the present value of g·v/‖v‖. Returns the module.

    Raises ValueError where there is no weight norm on it.
    """
    normed = next((hook for hook in module._pre_forward if hook is getattr(module, name, None)), None)
    if normed is None:
        raise ValueError(f"remove_weight_norm: {name!r} of this {type(module).__name__} has no weight norm")
    normed.refresh()
    module._pre_forward = tuple(hook for hook in module._pre_forward if hook is not normed)
    for attribute in (f"{name}_g", f"{name}_v", name):
        delattr(module, attribute)
    setattr(module, name, Parameter(normed.data))
    return module
