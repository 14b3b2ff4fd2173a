"""The update rules, each as its paper writes it and with torch's formulas and defaults, so that the steps agree.

Notation: w the parameter, d its gradient with the penalties added, lr the learning rate. Penalties: `weight_decay` adds
weight_decay·w to the gradient (L2; AdamW shrinks w instead), `l1` adds l1·sign(w).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .optimizer import Array, Optimizer, Params, penalised, state_dtype

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]


class SGD(Optimizer):
    """b ← momentum·b + (1 − dampening)·d;  w ← w − lr·b, or with Nesterov w − lr·(d + momentum·b).

    The first step starts from b = d. Without momentum w ← w − lr·d. Raises ValueError for settings outside their range, and for
    Nesterov without momentum or with dampening. Sutskever et al. 2013.
    """

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        l1: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "l1": l1,
            },
        )

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        if not 0.0 <= group["dampening"] <= 1.0:
            raise ValueError(f"SGD: dampening must be in [0, 1], got {group['dampening']!r}")
        if group["nesterov"] and (group["momentum"] == 0.0 or group["dampening"] != 0.0):
            raise ValueError(
                f"SGD: nesterov needs momentum above 0 and dampening 0, got {group['momentum']!r} and "
                f"{group['dampening']!r}"
            )

    def _update(
        self, w: Array, grad: Array, state: dict[str, Any], group: dict[str, Any], work: Array, other: Array
    ) -> None:
        d = penalised(w, grad, group["weight_decay"], group["l1"], work, other)
        momentum = group["momentum"]
        if momentum != 0.0:
            b = state.get("momentum_buffer")
            if b is None:
                b = state["momentum_buffer"] = d.astype(state_dtype(w))
            else:
                b *= momentum
                np.multiply(d, 1.0 - group["dampening"], out=other)
                b += other
            if group["nesterov"]:
                np.multiply(b, momentum, out=other)
                d = np.add(d, other, out=other)
            else:
                d = b
        np.multiply(d, group["lr"], out=other)
        w -= other


class RMSprop(Optimizer):
    """s ← alpha·s + (1 − alpha)·d²;  w ← w − lr·d/(sqrt(s) + eps).

    `centered` takes sqrt(s − g²) with g the running mean of d; `momentum` gives b ← momentum·b + d/(sqrt(s) + eps), w ← w − lr·b.
    Tieleman and Hinton 2012; Graves 2013 for the centred one.
    """

    slots = ("step", "square_avg", "grad_avg", "momentum_buffer")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        l1: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "l1": l1,
            },
        )

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        if not 0.0 <= group["alpha"] < 1.0:
            raise ValueError(f"RMSprop: alpha must be in [0, 1), got {group['alpha']!r}")

    def _update(
        self, w: Array, grad: Array, state: dict[str, Any], group: dict[str, Any], work: Array, other: Array
    ) -> None:
        if "square_avg" not in state:
            state["step"] = 0
            state["square_avg"] = np.zeros(w.shape, state_dtype(w))
        if group["centered"] and "grad_avg" not in state:
            state["grad_avg"] = np.zeros(w.shape, state_dtype(w))
        if group["momentum"] != 0.0 and "momentum_buffer" not in state:
            state["momentum_buffer"] = np.zeros(w.shape, state_dtype(w))
        state["step"] += 1
        d = penalised(w, grad, group["weight_decay"], group["l1"], work, other)
        s = state["square_avg"]
        _average_of_squares(s, d, group["alpha"], other)
        if group["centered"]:
            g = state["grad_avg"]
            _average(g, d, group["alpha"], other)
            np.multiply(g, g, out=other)
            np.subtract(s, other, out=other)
            np.sqrt(other, out=other)
        else:
            np.sqrt(s, out=other)
        other += group["eps"]
        np.divide(d, other, out=other)
        if group["momentum"] != 0.0:
            b = state["momentum_buffer"]
            b *= group["momentum"]
            b += other
            np.multiply(b, group["lr"], out=other)
        else:
            other *= group["lr"]
        w -= other


class Adam(Optimizer):
    """m ← β1·m + (1 − β1)·d;  v ← β2·v + (1 − β2)·d²;  w ← w − lr·m̂/(sqrt(v̂) + eps).

    m̂ = m/(1 − β1ᵗ), v̂ = v/(1 − β2ᵗ) at step t. `weight_decay` is added to the gradient; AdamW decouples it. Kingma and Ba 2015.
    """

    _decoupled = False

    slots = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        l1: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "l1": l1})

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        betas = tuple(group["betas"]) if np.ndim(group["betas"]) == 1 else ()
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"{type(self).__name__}: betas must be two numbers in [0, 1), got {group['betas']!r}")

    def _update(
        self, w: Array, grad: Array, state: dict[str, Any], group: dict[str, Any], work: Array, other: Array
    ) -> None:
        if not state:
            state["step"] = 0
            state["exp_avg"] = np.zeros(w.shape, state_dtype(w))
            state["exp_avg_sq"] = np.zeros(w.shape, state_dtype(w))
        state["step"] += 1
        t, lr, (beta1, beta2) = state["step"], group["lr"], group["betas"]
        decay = group["weight_decay"]
        if self._decoupled:
            w *= 1.0 - lr * decay
            decay = 0.0
        d = penalised(w, grad, decay, group["l1"], work, other)
        m, v = state["exp_avg"], state["exp_avg_sq"]
        _average(m, d, beta1, other)
        _average_of_squares(v, d, beta2, other)
        np.sqrt(v, out=other)
        other /= math.sqrt(1.0 - beta2**t)
        other += group["eps"]
        np.divide(m, other, out=other)
        other *= lr / (1.0 - beta1**t)
        w -= other


class AdamW(Adam):
    """Adam whose weight decay is apart from the gradient: first w ← (1 − lr·weight_decay)·w. Loshchilov and Hutter 2019."""

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        l1: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, l1=l1)


def _average(mean: Array, d: Array, beta: float, work: Array) -> None:
    """mean ← beta·mean + (1 − beta)·d, as mean + (1 − beta)·(d − mean)."""
    np.subtract(d, mean, out=work)
    work *= 1.0 - beta
    mean += work


def _average_of_squares(mean: Array, d: Array, beta: float, work: Array) -> None:
    """mean ← beta·mean + (1 − beta)·d²."""
    mean *= beta
    np.multiply(d, d, out=work)
    work *= 1.0 - beta
    mean += work
