"""One row measured: the kernel with `out=` and without (fresh), reference, copy and peers in turns; peers in their best
form in a second process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from fastnorm.cli import measure, peers
from fastnorm.cli.common import CommandError

__all__ = ["Worker", "error_of_row", "measure_row", "serve"]


def measure_row(
    problem: measure.Problem, threads: int, seconds: float, names: list[str], *, best: bool = False
) -> dict[str, Any]:
    """Times of one row with `threads` threads, as plain numbers: what --json writes."""
    import fastnorm.functional
    from fastnorm import reference

    row = problem.row
    contenders = {"kernel": problem.kernel(fastnorm.functional), "copy": problem.copy(threads)}
    if not best:
        contenders["reference"] = problem.kernel(reference, out=False)
        contenders["fresh"] = problem.kernel(fastnorm.functional, out=False)
    contenders.update(peers.contenders(problem, names, threads, best=best))
    with measure.using_threads(threads):
        samples = measure.alternate(contenders, seconds, least=3)
    unit = samples["copy"]
    found: dict[str, Any] = {
        "op": row.op,
        "shape": list(row.shape),
        "direction": row.direction,
        "dtype": row.dtype,
        "layout": row.layout,
        "threads": threads,
        "gb_per_s": row.traffic / samples["kernel"].median / 1e9,
        "contenders": {},
    }
    for name, sample in samples.items():
        middle, low, high = measure.ratio(sample, unit)
        found["contenders"][name] = {
            "seconds": sample.median,
            "seconds_quartiles": list(sample.spread),
            "turns": len(sample.times),
            "copies": middle,
            "copies_quartiles": [low, high],
        }
    if not best:
        found["speed_up"], *found["speed_up_quartiles"] = measure.ratio(samples["reference"], samples["kernel"])
        found["fresh"], *found["fresh_quartiles"] = measure.ratio(samples["fresh"], samples["kernel"])
    return found


def error_of_row(problem: measure.Problem, chunks: int | None) -> dict[str, Any]:
    """The largest error of the kernels on a row, as `measure_row` gives its times."""
    import fastnorm.functional

    absolute, ulps = measure.error_of(problem, fastnorm.functional, chunks=chunks)
    return {"error": absolute, "error_ulp": ulps, "error_checked": "all" if chunks is None else f"{chunks} pieces"}


class Worker:
    """A second process whose allocator keeps its pages; it gets rows and gives times as lines of JSON."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastnorm", "compare", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=peers.best_environment(),
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
        )

    def measure(self, row: measure.Row, threads: int, seconds: float, names: list[str]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        question = {
            "op": row.op,
            "shape": row.shape,
            "direction": row.direction,
            "dtype": row.dtype,
            "layout": row.layout,
        }
        answer = ""
        with contextlib.suppress(BrokenPipeError):  # it is gone: no answer
            self.process.stdin.write(json.dumps([question, threads, seconds, names]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            raise CommandError("the process that measures the peers' best form ended early", status=1)
        found: dict[str, Any] = json.loads(answer)["contenders"]
        return found

    def close(self, force: bool) -> None:
        if force:
            self.process.terminate()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait()


def serve() -> int:
    """The worker's side: one row per line of stdin, answered on the stdout that libraries then cannot write into."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for line in sys.stdin:
            question, threads, seconds, names = json.loads(line)
            row = measure.Row(**{**question, "shape": tuple(question["shape"])})
            found = measure_row(measure.Problem(row), threads, seconds, names, best=True)
            answers.write(json.dumps(found) + "\n")
            answers.flush()
    except KeyboardInterrupt:
        return 130
    return 0
