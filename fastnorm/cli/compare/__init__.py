"""`compare`: the compiled kernels beside the NumPy reference, a plain copy and, with --peers, other libraries.

For each row of the panel: the largest error against float64, the time of kernel and reference, GB/s, and the time as a
multiple of copying an array of the same size, which is the floor that memory sets. With `--peers both` a second process
measures the peers in their best form, row by row in the same minute, because their allocator is chosen when a process
starts.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from fastnorm.cli import measure, peers
from fastnorm.cli.common import (
    CommandError,
    bounded,
    choice_list,
    example_help,
    need,
    output_file,
    shape_list,
    whole,
)
from fastnorm.cli.compare.contest import Worker, error_of_row, measure_row, serve
from fastnorm.cli.compare.report import plot, print_table, write_json

__all__ = ["add_parser", "run"]

DTYPES = ("float32", "float64", "float16", "bfloat16")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        **example_help(
            "Compare the kernels with their NumPy reference and a plain copy: error, time, GB/s. The contenders take "
            "turns in one process; medians and quartiles of the ratios are shown.",
            "compare --ops batch_norm,layer_norm --peers run --json times.json --plot times.png",
        ),
    )
    parser.add_argument(
        "--ops",
        type=choice_list(measure.OPS),
        default=list(measure.OPS),
        metavar="OP,..",
        help=f"which functions: {', '.join(measure.OPS)} (default: all)",
    )
    parser.add_argument(
        "--shapes", type=shape_list, metavar="32x64x56x56,..", help="these shapes (NCHW order) in place of the panel's"
    )
    parser.add_argument(
        "--directions",
        type=choice_list(measure.DIRECTIONS),
        metavar="D,..",
        help="which of forward, backward, eval (default: all)",
    )
    parser.add_argument(
        "--dtypes",
        type=choice_list(DTYPES),
        default=["float32"],
        metavar="T,..",
        help=f"storage types: {', '.join(DTYPES)} (default: float32)",
    )
    parser.add_argument(
        "--layouts",
        type=choice_list(("nchw", "nhwc")),
        default=["nchw"],
        metavar="L,..",
        help="memory layouts: nchw, nhwc (default: nchw)",
    )
    parser.add_argument(
        "--threads", type=thread_list, metavar="N,..", help="thread counts to measure with (default: all CPUs)"
    )
    parser.add_argument(
        "--peers",
        nargs="?",
        const="run",
        choices=("run", "best", "both"),
        help="also PyTorch, JAX, ONNX Runtime where installed: as users run them (run, the default), in their "
        "best form with kept pages and out= (best), or both",
    )
    parser.add_argument("--quick", action="store_true", help="a small panel and few turns: seconds in place of minutes")
    parser.add_argument(
        "--seconds",
        type=bounded(0),
        metavar="S",
        help="measuring time per contender and row (default: 0.4; quick: 0.05)",
    )
    parser.add_argument("--json", type=output_file(".json"), metavar="FILE", help="write every figure to FILE")
    parser.add_argument(
        "--plot", type=output_file(".png", ".svg", ".pdf"), metavar="FILE", help="draw the multiples of a copy to FILE"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def thread_list(text: str) -> list[int]:
    """Argument type: thread counts separated by commas."""
    return [whole(1, 1024)(part) for part in text.split(",")]


def run(args: argparse.Namespace) -> int:
    if args.worker:
        return serve()
    rich_progress = need("rich.progress")
    console = need("rich.console").Console()
    if args.seconds is None:
        args.seconds = 0.05 if args.quick else 0.4
    rows = measure.panel(
        args.ops,
        args.shapes,
        quick=args.quick,
        dtypes=args.dtypes,
        layouts=args.layouts,
        directions=args.directions,
    )
    if not rows:
        raise CommandError("no row fits: the ops chosen cannot take these shapes, directions and layouts")
    threads = args.threads or [
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ]
    if args.plot:
        need("matplotlib").use("Agg")
    names = peers.installed() if args.peers else []
    if args.peers and len(threads) == 1:
        peers.limit_threads(threads[0])
    worker = Worker() if args.peers in ("best", "both") else None
    results: list[dict[str, Any]] = []
    screen = need("rich.console").Console(stderr=True)
    columns = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    interrupted = False
    try:
        with columns as progress:
            task = progress.add_task("", total=len(rows) * len(threads))
            for row in rows:
                problem = measure.Problem(row)
                error = None
                for count in threads:
                    progress.update(task, description=row.label)
                    found = measure_row(problem, count, args.seconds, names if args.peers in ("run", "both") else [])
                    if error is None:
                        error = error_of_row(problem, chunks=2 if args.quick else None)
                    found.update(error)
                    if worker is not None:
                        found["best"] = worker.measure(row, count, args.seconds, names)
                    results.append(found)
                    progress.advance(task)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if worker is not None:
            worker.close(force=interrupted)
    if results:
        print_table(console, results)
        if args.json:
            write_json(args, results)
        if args.plot:
            plot(args.plot, results)
    if interrupted:
        raise KeyboardInterrupt(f"interrupted after {len(results)} of {len(rows) * len(threads)} rows")
    return 0
