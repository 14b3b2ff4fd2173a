"""Learning-rate schedules. Each is one formula, lr(t) from the group's initial rate; `step()` advances t and sets the groups.

A formula of t, not a recurrence, so a schedule resumed or jumped to is exactly where it would have been, and schedules combine
by calling each other's formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .optimizer import Optimizer

__all__ = [
    "ChainedScheduler",
    "CosineAnnealingLR",
    "ExponentialLR",
    "InverseTime",
    "LinearWarmup",
    "Schedule",
    "SequentialLR",
    "StepLR",
]


class Schedule:
    """lr = `rate(t, base)` for each group, base being its rate when the first schedule was made (`initial_lr`).

    t starts at 0, which is set at once; each `step()`, once per epoch or per batch as the numbers are meant, adds 1.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: expected an optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.last_epoch = 0
        self._apply()

    def rate(self, t: int, base: float) -> float:
        """The learning rate at step `t` for the initial rate `base`."""
        raise NotImplementedError

    def step(self) -> None:
        """Go on to the next t."""
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The present rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """{"last_epoch": t}; the formula's constants are the constructor's."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to the t of `state_dict` and set the rates."""
        t = state_dict.get("last_epoch")
        if t is None or t != t // 1 or t < 0:  # NaN is not its own floor
            raise ValueError(f"{type(self).__name__}: last_epoch must be a whole number of at least 0, got {t!r}")
        self.last_epoch = int(t)
        self._apply()

    def _apply(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.last_epoch, group["initial_lr"])


class InverseTime(Schedule):
    """lr = base/(1 + decay·t)."""

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self.decay = _factor("InverseTime", "decay", decay)
        super().__init__(optimizer)

    def rate(self, t: int, base: float) -> float:
        """base/(1 + decay·t)."""
        return base / (1.0 + self.decay * t)


class ExponentialLR(Schedule):
    """lr = base·gammaᵗ."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = _factor("ExponentialLR", "gamma", gamma)
        super().__init__(optimizer)

    def rate(self, t: int, base: float) -> float:
        """base·gammaᵗ."""
        return base * self.gamma**t


class StepLR(Schedule):
    """lr = base·gamma^(t // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = _count("StepLR", "step_size", step_size), _factor("StepLR", "gamma", gamma)
        super().__init__(optimizer)

    def rate(self, t: int, base: float) -> float:
        """base·gamma^(t // step_size)."""
        return float(base * self.gamma ** (t // self.step_size))


class CosineAnnealingLR(Schedule):
    """lr = eta_min + (base − eta_min)·(1 + cos(π·t/T_max))/2; beyond T_max it rises again. Loshchilov and Hutter 2017."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = _count("CosineAnnealingLR", "T_max", T_max)
        self.eta_min = _factor("CosineAnnealingLR", "eta_min", eta_min)
        super().__init__(optimizer)

    def rate(self, t: int, base: float) -> float:
        """eta_min + (base − eta_min)·(1 + cos(π·t/T_max))/2."""
        return self.eta_min + (base - self.eta_min) * (1.0 + math.cos(math.pi * t / self.T_max)) / 2.0


class LinearWarmup(Schedule):
    """lr = base·(start_factor + (1 − start_factor)·t/steps), then base from t = steps on. Goyal et al. 2017."""

    def __init__(self, optimizer: Optimizer, steps: int, start_factor: float = 1.0 / 3.0) -> None:
        if not 0.0 <= start_factor <= 1.0:
            raise ValueError(f"LinearWarmup: start_factor must be in [0, 1], got {start_factor!r}")
        self.steps, self.start_factor = _count("LinearWarmup", "steps", steps), start_factor
        super().__init__(optimizer)

    def rate(self, t: int, base: float) -> float:
        """base·(start_factor + (1 − start_factor)·min(t, steps)/steps)."""
        return base * (self.start_factor + (1.0 - self.start_factor) * min(t, self.steps) / self.steps)


class SequentialLR(Schedule):
    """One schedule after another: `schedulers[i]` from `milestones[i − 1]` on, its own t counted from there.

    Step only this one. Raises ValueError unless there is one milestone fewer than schedules, whole numbers from 1 on in
    increasing order.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]) -> None:
        self.schedulers = list(schedulers)
        _same_optimizer("SequentialLR", optimizer, self.schedulers)
        self.milestones = [_count("SequentialLR", "each of milestones", milestone) for milestone in milestones]
        if len(self.milestones) != len(self.schedulers) - 1 or sorted(set(self.milestones)) != self.milestones:
            raise ValueError(
                f"SequentialLR: {len(self.schedulers)} schedules need {len(self.schedulers) - 1} increasing milestones, got "
                f"{milestones!r}"
            )
        super().__init__(optimizer)

    def rate(self, t: int, base: float) -> float:
        """The rate of the schedule whose turn it is."""
        turn = sum(t >= milestone for milestone in self.milestones)
        return self.schedulers[turn].rate(t - (self.milestones[turn - 1] if turn else 0), base)


class ChainedScheduler(Schedule):
    """Several schedules at once: each takes the rate of the one before as its base, so factors multiply. Step only this one."""

    def __init__(self, schedulers: Sequence[Schedule]) -> None:
        self.schedulers = list(schedulers)
        optimizer = getattr(self.schedulers[0], "optimizer", None) if self.schedulers else None
        _same_optimizer("ChainedScheduler", optimizer, self.schedulers)
        super().__init__(self.schedulers[0].optimizer)

    def rate(self, t: int, base: float) -> float:
        """Each schedule's rate on top of the one before."""
        for schedule in self.schedulers:
            base = schedule.rate(t, base)
        return base


def _same_optimizer(name: str, optimizer: Optimizer | None, schedulers: Sequence[Schedule]) -> None:
    if not schedulers:
        raise ValueError(f"{name}: schedulers is empty")
    for schedule in schedulers:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"{name}: schedulers must be schedules, got {type(schedule).__name__}")
    if any(schedule.optimizer is not optimizer for schedule in schedulers):
        raise ValueError(f"{name}: the schedules belong to different optimizers")


def _count(name: str, argument: str, value: int) -> int:
    """`value`, checked to be a whole number of at least 1."""
    if not 1 <= value < math.inf or value != int(value):
        raise ValueError(f"{name}: {argument} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _factor(name: str, argument: str, value: float) -> float:
    """`value`, checked to be finite and not negative."""
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name}: {argument} must be finite and at least 0, got {value!r}")
    return value
