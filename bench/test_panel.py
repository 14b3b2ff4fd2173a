"""Time of each kernel beside its NumPy reference, a plain copy and the other libraries, one group per row of the panel.

    pytest bench                                            small shapes, seconds
    pytest bench --panel full --ops batch_norm --threads 2  the shapes of real networks
    pytest bench --benchmark-json times.json

For ratios with their spread, the peers' best form and a picture, use `python -m fastnorm compare --peers both`, which takes
the contenders in turns: here each runs by itself, so that a change of clock speed between them shows.
"""

from __future__ import annotations

from typing import Any

import pytest

import fastnorm.functional
from fastnorm import reference
from fastnorm.cli import measure, peers


def test_panel(benchmark: Any, problem: measure.Problem, name: str, request: pytest.FixtureRequest) -> None:
    threads = request.config.getoption("--threads")
    match name:
        case "kernel":
            call = problem.kernel(fastnorm.functional)
        case "reference":
            call = problem.kernel(reference, out=False)
        case "copy":
            call = problem.copy(threads)
        case _:
            found = peers.contenders(problem, [name], threads)
            if not found:
                pytest.skip(f"{peers.PEERS[name]} has no such call")
            (call,) = found.values()
    benchmark.group = problem.row.label
    benchmark.name = peers.PEERS.get(name, name)
    benchmark.extra_info["bytes"] = problem.row.traffic
    benchmark(call)
