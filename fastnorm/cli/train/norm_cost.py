"""What the norm cost: seconds per step inside it, with the kernels and with the NumPy reference in their place."""

from __future__ import annotations

import statistics
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastnorm.cli.common import need
from fastnorm.cli.models import NORM_FUNCTIONS
from fastnorm.cli.training import Training

__all__ = ["measure_norm", "print_norm_times", "timed_norm"]

MEASURED_STEPS = 12


@contextmanager
def timed_norm(function: str, module: Any, spent: list[float]) -> Iterator[None]:
    """Let the layers use `module`'s forward and backward of `function` here, adding their seconds to spent[0]."""
    import fastnorm.functional as functional

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - start

        return timing

    names = [f"{function}_forward", f"{function}_backward"]
    before = {name: getattr(functional, name) for name in names}
    try:
        for name in names:
            setattr(functional, name, timed(getattr(module, name)))
        yield
    finally:
        for name, original in before.items():
            setattr(functional, name, original)


def measure_norm(training: Training, steps: int = MEASURED_STEPS) -> dict[str, tuple[float, float]] | None:
    """Median seconds per step, {"kernels" | "NumPy reference": (in the norm, in all)}; None without a norm.

    The two take turns step by step on a second network of the same build, so the trained one stays as it is.
    """
    import fastnorm.functional as functional
    from fastnorm import reference

    function = NORM_FUNCTIONS.get(training.settings.norm)
    if function is None:
        return None
    names = (f"{function}_forward", f"{function}_backward")
    sources = {
        "kernels": types.SimpleNamespace(**{name: getattr(functional, name) for name in names}),
        "NumPy reference": reference,
    }
    size = min(training.settings.batch_size, training.samples)
    x, y = training.data.x_train[:size], training.data.y_train[:size]
    twin = Training(training.settings, training.data)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for turn in range(steps + 2):
        for name, module in sources.items():
            spent = [0.0]
            with timed_norm(function, module, spent):
                start = time.perf_counter()
                twin.train_step(x, y)
                whole_step = time.perf_counter() - start
            if turn >= 2:
                times[name].append((spent[0], whole_step))
    return {
        name: (statistics.median(t[0] for t in both), statistics.median(t[1] for t in both))
        for name, both in times.items()
    }


def print_norm_times(console: Any, training: Training) -> None:
    measured = measure_norm(training)
    if measured is None:
        console.print("time per step in the norm: none, this network has no norm")
        return
    table = need("rich.table").Table(
        title=f"time per step, batch of {training.settings.batch_size}", title_justify="left"
    )
    table.add_column("")
    for name in (f"in the {training.settings.norm} norm", "whole step", "share"):
        table.add_column(name, justify="right")
    for name, (norm, step) in measured.items():
        table.add_row(name, f"{norm * 1e3:.3f} ms", f"{step * 1e3:.2f} ms", f"{norm / step:.0%}")
    console.print(table)
    console.print(
        f"the kernels take {measured['NumPy reference'][0] / measured['kernels'][0]:.1f} times less time than NumPy"
    )
