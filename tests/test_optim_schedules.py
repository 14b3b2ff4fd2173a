"""Schedules: their formulas, torch's where torch has them, combinations, and resuming."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastnorm import nn, optim


def optimizer(lr: float = 0.5) -> optim.SGD:
    return optim.SGD([{"params": nn.Parameter(np.ones(2))}, {"params": nn.Parameter(np.ones(2)), "lr": 0.1}], lr=lr)


def rates(schedule: optim.Schedule, steps: int) -> list[float]:
    """The first group's rate at t = 0, 1, …, steps."""
    result = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        schedule.step()
        result.append(schedule.get_last_lr()[0])
    return result


FORMULAS: list[tuple[Callable[[Any], optim.Schedule], Callable[[int], float]]] = [
    (lambda o: optim.InverseTime(o, 0.3), lambda t: 0.5 / (1 + 0.3 * t)),
    (lambda o: optim.ExponentialLR(o, 0.9), lambda t: 0.5 * 0.9**t),
    (lambda o: optim.StepLR(o, 3, 0.2), lambda t: 0.5 * 0.2 ** (t // 3)),
    (lambda o: optim.CosineAnnealingLR(o, 8, 0.05), lambda t: 0.05 + 0.45 * (1 + math.cos(math.pi * t / 8)) / 2),
    (lambda o: optim.LinearWarmup(o, 4, 0.2), lambda t: 0.5 * (0.2 + 0.8 * min(t, 4) / 4)),
    (
        lambda o: optim.SequentialLR(o, [optim.LinearWarmup(o, 4, 0.0), optim.ExponentialLR(o, 0.5)], [4]),
        lambda t: 0.5 * (t / 4 if t < 4 else 0.5 ** (t - 4)),
    ),
    (
        lambda o: optim.ChainedScheduler([optim.LinearWarmup(o, 4, 0.2), optim.InverseTime(o, 0.1)]),
        lambda t: 0.5 * (0.2 + 0.8 * min(t, 4) / 4) / (1 + 0.1 * t),
    ),
]


@pytest.mark.parametrize(("make", "formula"), FORMULAS)
def test_rates_follow_the_formula_in_every_group(make: Any, formula: Callable[[int], float]) -> None:
    rule = optimizer()
    schedule = make(rule)
    assert rates(schedule, 10) == pytest.approx([formula(t) for t in range(11)], rel=1e-12, abs=1e-15)
    assert rule.param_groups[1]["lr"] == pytest.approx(rule.param_groups[0]["lr"] / 5, rel=1e-12) or isinstance(
        schedule, optim.CosineAnnealingLR
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda o: optim.ExponentialLR(o, 0.9), lambda s, o: s.ExponentialLR(o, 0.9)),
        (lambda o: optim.StepLR(o, 3), lambda s, o: s.StepLR(o, 3)),
        (lambda o: optim.CosineAnnealingLR(o, 6, 0.01), lambda s, o: s.CosineAnnealingLR(o, 6, 0.01)),
        (lambda o: optim.LinearWarmup(o, 5), lambda s, o: s.LinearLR(o, total_iters=5)),
        (
            lambda o: optim.SequentialLR(o, [optim.LinearWarmup(o, 3, 0.1), optim.ExponentialLR(o, 0.8)], [3]),
            lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1, total_iters=3), s.ExponentialLR(o, 0.8)], [3]),
        ),
        (
            lambda o: optim.ChainedScheduler([optim.LinearWarmup(o, 5), optim.ExponentialLR(o, 0.9)]),
            lambda s, o: s.ChainedScheduler([s.LinearLR(o, total_iters=5), s.ExponentialLR(o, 0.9)]),
        ),
    ],
)
def test_agrees_with_torch(ours: Any, theirs: Any) -> None:
    torch = pytest.importorskip("torch")
    their_rule = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their_schedule = theirs(torch.optim.lr_scheduler, their_rule)
        expected = [their_rule.param_groups[0]["lr"]]
        for _ in range(10):
            their_rule.step()
            their_schedule.step()
            expected.append(their_rule.param_groups[0]["lr"])
    assert rates(ours(optimizer()), 10) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("make", "formula"), FORMULAS)
def test_a_resumed_schedule_is_where_it_would_have_been(make: Any, formula: Callable[[int], float]) -> None:
    rule = optimizer()
    schedule = make(rule)
    rates(schedule, 5)
    other = optimizer(lr=9.0)
    other.load_state_dict(rule.state_dict())
    resumed = make(other)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.get_last_lr() == schedule.get_last_lr()
    assert rates(resumed, 3) == rates(schedule, 3)


def test_wrong_settings_are_named() -> None:
    rule, other = optimizer(), optimizer()
    cases: list[tuple[Any, str]] = [
        (lambda: optim.InverseTime(rule, -1), "decay"),
        (lambda: optim.InverseTime(rule, math.nan), "decay must be finite and at least 0, got nan"),
        (lambda: optim.ExponentialLR(rule, -0.9), "ExponentialLR: gamma must be finite and at least 0, got -0.9"),
        (lambda: optim.ExponentialLR(rule, math.nan), "gamma"),
        (lambda: optim.ExponentialLR(rule, math.inf), "gamma"),
        (lambda: optim.StepLR(rule, 3, -0.1), "StepLR: gamma"),
        (lambda: optim.StepLR(rule, 2.5), "step_size must be a whole number of at least 1, got 2.5"),
        (lambda: optim.CosineAnnealingLR(rule, math.nan), "T_max"),
        (lambda: optim.CosineAnnealingLR(rule, math.inf), "T_max"),
        (lambda: optim.CosineAnnealingLR(rule, 5, -0.1), "eta_min must be finite and at least 0, got -0.1"),
        (lambda: optim.LinearWarmup(rule, math.nan), "steps"),
        (lambda: optim.LinearWarmup(rule, 5, math.nan), "start_factor"),
        (lambda: optim.SequentialLR(rule, [], []), "SequentialLR: schedulers is empty"),
        (lambda: optim.SequentialLR(rule, [optim.StepLR(rule, 2)] * 3, [3, 3]), "milestones"),
        (lambda: optim.SequentialLR(rule, [optim.StepLR(rule, 2)] * 2, [-3]), "milestones must be a whole .* got -3"),
        (lambda: optim.SequentialLR(rule, [optim.StepLR(rule, 2)] * 2, [2.5]), "milestones"),
        (lambda: optim.SequentialLR(other, [optim.StepLR(rule, 2)] * 2, [2]), "different optimizers"),
        (
            lambda: optim.StepLR(rule, 2).load_state_dict({}),
            "last_epoch must be a whole number of at least 0, got None",
        ),
        (lambda: optim.StepLR(rule, 2).load_state_dict({"last_epoch": -1}), "last_epoch"),
        (lambda: optim.StepLR(rule, 2).load_state_dict({"last_epoch": math.nan}), "last_epoch"),
        (lambda: optim.StepLR(rule, 0), "step_size"),
        (lambda: optim.CosineAnnealingLR(rule, 0), "T_max"),
        (lambda: optim.LinearWarmup(rule, 0), "steps"),
        (lambda: optim.LinearWarmup(rule, 5, 2.0), "start_factor"),
        (lambda: optim.SequentialLR(rule, [optim.StepLR(rule, 2)], [3]), "milestones"),
        (lambda: optim.SequentialLR(rule, [optim.StepLR(rule, 2)] * 3, [3, 2]), "milestones"),
        (lambda: optim.ChainedScheduler([]), "empty"),
        (lambda: optim.ChainedScheduler([optim.StepLR(rule, 2), optim.StepLR(other, 2)]), "different optimizers"),
    ]
    for make, words in cases:
        with pytest.raises(ValueError, match=words):
            make()
    assert [group["lr"] for group in rule.param_groups] == [0.5, 0.1], "what is refused moves no rate"
    with pytest.raises(TypeError, match="expected an optimizer"):
        optim.StepLR(3, 2)
    for combined in (lambda: optim.SequentialLR(rule, [3], []), lambda: optim.ChainedScheduler([3])):
        with pytest.raises(TypeError, match="schedulers must be schedules, got int"):
            combined()
