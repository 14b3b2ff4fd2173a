"""Time: the contenders of a row take turns inside one process, in an order that rotates.

So a change of clock speed or of a neighbour's load meets all of them. A ratio is formed turn by turn, and its median
and quartiles are reported; a slow contender sits out turns in equal steps.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Sample", "alternate", "ratio", "using_threads"]


@dataclass(frozen=True)
class Sample:
    """Seconds per call, by the number of the turn in which they were measured."""

    times: Mapping[int, float]

    @property
    def median(self) -> float:
        return float(np.median(list(self.times.values())))

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles."""
        low, high = np.percentile(list(self.times.values()), [25, 75])
        return float(low), float(high)


def alternate(
    contenders: Mapping[str, Callable[[], Any]],
    seconds: float = 0.4,
    *,
    least: int = 5,
    most: int = 60,
    tick: Callable[[], None] | None = None,
) -> dict[str, Sample]:
    """Time the contenders in turns; each gets about `seconds`, at least `least` turns and at most `most`.

    A turn is a block of calls of at least 0.2 ms (the clock's grain and the loop then cost under 0.1 %), preceded by an
    unmeasured call that brings the contender's own data back into the caches that the one before it used.
    """
    block = 2e-4
    numbers, warms, turns = {}, {}, {}
    for name, call in contenders.items():
        call()
        cost = _timed(call, 1)
        if cost < block:
            cost = _timed(call, max(1, int(block / max(cost, 1e-8)) // 4))
        numbers[name] = max(1, math.ceil(block / max(cost, 1e-8)))
        warms[name] = cost < 5e-3
        each = cost * (numbers[name] + warms[name])
        turns[name] = min(most, max(least, int(seconds / each)))
    total = max(turns.values())
    names = list(contenders)
    times: dict[str, dict[int, float]] = {name: {} for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(total):
            for position in range(len(names)):
                name = names[(turn + position) % len(names)]
                if (turn + 1) * turns[name] // total == turn * turns[name] // total:
                    continue
                if warms[name]:
                    contenders[name]()
                times[name][turn] = _timed(contenders[name], numbers[name])
                if tick is not None:
                    tick()
    finally:
        if collecting:
            gc.enable()
    return {name: Sample(measured) for name, measured in times.items()}


def _timed(call: Callable[[], Any], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def ratio(sample: Sample, unit: Sample) -> tuple[float, float, float]:
    """Median and quartiles of `sample / unit`, formed within each turn that both took part in."""
    shared = [sample.times[turn] / unit.times[turn] for turn in sample.times if turn in unit.times]
    if not shared:
        shared = [sample.median / unit.median]
    low, middle, high = np.percentile(shared, [25, 50, 75])
    return float(middle), float(low), float(high)


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Run the kernels on `count` threads."""
    import fastnorm as fn

    with fn.threads(count):
        yield
