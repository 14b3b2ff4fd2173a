"""The space of a search: each parameter's range on the scale of its meaning, grids over it, finer ranges in it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fastnorm.cli.common import need
from fastnorm.cli.training import Settings

__all__ = ["SPACE", "Parameter", "grid", "narrowed", "settings_for"]


@dataclass(frozen=True)
class Parameter:
    """One axis of the search: a range on a scale. `whole`: integers; `log`: uniform in the logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def inner(self, value: float) -> float:
        return math.log(value) if self.log else value

    def outer(self, value: float) -> float:
        value = math.exp(value) if self.log else value
        if self.whole:
            value = round(value)
        return min(max(value, self.low), self.high)

    def distribution(self) -> Any:
        distributions = need("optuna.distributions")
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)


# In the order of importance that experience assigns: the default of --params, to be compared with what a search
# measures.
SPACE = {
    "lr": Parameter(1e-4, 1e-1, log=True),
    "one_minus_momentum": Parameter(1e-2, 0.5, log=True),
    "batch_size": Parameter(16, 256, log=True, whole=True),
    "width": Parameter(8, 48, whole=True),
    "layers": Parameter(1, 6, whole=True),
    "weight_decay": Parameter(1e-6, 1e-2, log=True),
    "dropout": Parameter(0.0, 0.5),
}


def settings_for(base: Settings, params: dict[str, float]) -> Settings:
    """The settings of a trial: the base with what the search chose."""
    chosen: dict[str, Any] = {}
    for name, value in params.items():
        if name == "one_minus_momentum":
            chosen["momentum"] = 1 - value
        else:
            chosen[name] = int(value) if SPACE[name].whole else value
    return dataclasses.replace(base, **chosen)


def narrowed(space: dict[str, Parameter], trials: list[tuple[dict[str, float], float]]) -> dict[str, Parameter]:
    """The ranges of the best quarter of `trials` (at least three), widened by a tenth of the present range on each
    side.
    """
    best = sorted(trials, key=lambda trial: trial[1])[: max(3, len(trials) // 4)]
    result = {}
    for name, axis in space.items():
        values = [axis.inner(params[name]) for params, _ in best]
        margin = 0.1 * (axis.inner(axis.high) - axis.inner(axis.low))
        low, high = axis.outer(min(values) - margin), axis.outer(max(values) + margin)
        result[name] = dataclasses.replace(axis, low=low, high=high)
    return result


def grid(space: dict[str, Parameter], count: int) -> list[dict[str, float]]:
    """At most `count` points: levels are added one by one to the parameters in their order while the product allows."""
    levels = dict.fromkeys(space, 1)
    grew = True
    while grew:
        grew = False
        for name, axis in space.items():
            more = {**levels, name: levels[name] + 1}
            room = not axis.whole or more[name] <= axis.high - axis.low + 1
            if room and math.prod(more.values()) <= count:
                levels, grew = more, True
    points: list[dict[str, float]] = [{}]
    for name, axis in space.items():
        low, high, n = axis.inner(axis.low), axis.inner(axis.high), levels[name]
        # Cell centres: one level is the middle of the range, and no level lies on its edge.
        values = dict.fromkeys(axis.outer(low + (high - low) * (i + 0.5) / n) for i in range(n))
        points = [{**point, name: value} for point in points for value in values]
    return points
