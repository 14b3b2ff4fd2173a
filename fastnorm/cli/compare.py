"""`compare`: the compiled kernels beside the NumPy reference, a plain copy and, with --peers, other libraries.

For each row of the panel: the largest error against float64, the time of kernel and reference, GB/s, and the time as a
multiple of copying an array of the same size, which is the floor that memory sets. With `--peers both` a second process
measures the peers in their best form, row by row in the same minute, because their allocator is chosen when a process
starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from fastnorm.cli import measure, peers
from fastnorm.cli.common import (
    CommandError,
    atomic_path,
    bounded,
    choice_list,
    draw,
    example_help,
    need,
    output_file,
    shape_list,
    whole,
)

__all__ = ["add_parser", "run"]

DTYPES = ("float32", "float64", "float16", "bfloat16")
TIMES = "\N{MULTIPLICATION SIGN}"


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
        return _serve()
    rich_table, rich_progress = need("rich.table"), need("rich.progress")
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
        _pyplot()
    names = peers.installed() if args.peers else []
    if args.peers and len(threads) == 1:
        peers.limit_threads(threads[0])
    worker = _Worker() if args.peers in ("best", "both") else None
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
                        error = _error(problem, chunks=2 if args.quick else None)
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
        _print_table(console, rich_table, results)
        if args.json:
            _write_json(args, results)
        if args.plot:
            _plot(args.plot, results)
    if interrupted:
        raise KeyboardInterrupt(f"interrupted after {len(results)} of {len(rows) * len(threads)} rows")
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


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
    return found


def _error(problem: measure.Problem, chunks: int | None) -> dict[str, Any]:
    import fastnorm.functional

    absolute, ulps = measure.error_of(problem, fastnorm.functional, chunks=chunks)
    return {"error": absolute, "error_ulp": ulps, "error_checked": "all" if chunks is None else f"{chunks} pieces"}


class _Worker:
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


def _serve() -> int:
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


# ---------------------------------------------------------------------------------------------------------------------
# Showing


def _print_table(console: Any, rich_table: Any, results: list[dict[str, Any]]) -> None:
    others = sorted({name for r in results for name in _peer_multiples(r)})
    table = rich_table.Table(
        title=f"fastnorm kernels; times are medians, {TIMES} copy with quartiles", title_justify="left"
    )
    for name in ("function", "shape", "pass"):
        table.add_column(name, no_wrap=True)
    for name in (
        "thr",
        "error ULP",
        "error abs",
        "kernel ms",
        "NumPy ms",
        "speed-up",
        "GB/s",
        f"{TIMES} copy",
        *others,
    ):
        table.add_column(name, justify="right", no_wrap=name == f"{TIMES} copy")
    for r in results:
        kernel, numpy_ = r["contenders"]["kernel"], r["contenders"]["reference"]
        low, high = kernel["copies_quartiles"]
        peer = _peer_multiples(r)
        kind = "".join(f" {word}" for word in (r["dtype"], r["layout"]) if word not in ("float32", "nchw"))
        table.add_row(
            r["op"] + kind,
            "x".join(map(str, r["shape"])),
            r["direction"],
            str(r["threads"]),
            f"{r['error_ulp']:.2f}",
            f"{r['error']:.1e}",
            _ms(kernel["seconds"]),
            _ms(numpy_["seconds"]),
            f"{r['speed_up']:.1f}",
            f"{r['gb_per_s']:.1f}",
            f"{kernel['copies']:.2f} ({low:.2f}-{high:.2f})",
            *(f"{peer[name]:.2f}" if name in peer else "-" for name in others),
        )
    if not console.is_terminal:
        console.width = 200  # a pipe or a file has no width: do not cut the columns
    console.print(table)
    if others:
        console.print(
            "Columns of the peers are multiples of a copy too; 'best' means kept pages and out= where they have it."
        )


def _peer_multiples(result: dict[str, Any]) -> dict[str, float]:
    """Peers' times as multiples of a copy, those of the best form measured against the copy of their own process."""
    found = {name: c["copies"] for name, c in result["contenders"].items() if name in peers.PEERS.values()}
    for name, c in result.get("best", {}).items():
        peer = name.removesuffix(", out")
        if peer in peers.PEERS.values():
            found[f"{peer}, best"] = min(c["copies"], found.get(f"{peer}, best", c["copies"]))
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds >= 1e-3 else f"{seconds * 1e3:.4f}"


def _write_json(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    import platform

    import numpy as np

    import fastnorm as fn

    about = {
        "config": fn.config(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "peers": peers.versions() if args.peers else {},
        "seconds_per_contender": args.seconds,
    }
    try:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps({"about": about, "rows": results}, indent=1, default=str))
    except OSError as error:
        raise CommandError(f"cannot write {args.json}: {error.strerror}", status=1) from error
    print(f"wrote {args.json}", file=sys.stderr)


def _pyplot() -> Any:
    need("matplotlib").use("Agg")
    return need("matplotlib.pyplot")


def _plot(path: Any, results: list[dict[str, Any]]) -> None:
    """A dot plot: one line per row, time in copies on a log axis, the kernel filled, the others hollow."""
    plt = _pyplot()
    labels = []
    series: dict[str, list[tuple[int, float]]] = {}
    many = len({r["threads"] for r in results}) > 1
    for line, r in enumerate(results):
        kind = "".join(f" {word}" for word in (r["dtype"], r["layout"]) if word not in ("float32", "nchw"))
        threads = f", {r['threads']} thr." if many else ""
        labels.append(f"{r['op']} {r['direction']}{kind} {TIMES.join(map(str, r['shape']))}{threads}")
        series.setdefault("fastnorm", []).append((line, r["contenders"]["kernel"]["copies"]))
        series.setdefault("NumPy reference", []).append((line, r["contenders"]["reference"]["copies"]))
        for name, value in _peer_multiples(r).items():
            series.setdefault(name, []).append((line, value))
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.24 * len(labels)))
    markers = iter("sD^vP*Xh<>")
    colours = iter(plt.get_cmap("tab10").colors)
    for name, points in series.items():
        own = name == "fastnorm"
        colour = next(colours)
        axes.scatter(
            [value for _, value in points],
            [line for line, _ in points],
            label=name,
            marker="o" if own else next(markers),
            s=46 if own else 26,
            facecolors=colour if own else "none",
            edgecolors=colour,
            zorder=3 if own else 2,
        )
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(y=0.6 / max(1, len(labels)))
    axes.grid(axis="both", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("time, in copies of the array (log scale; the line is one copy; left is faster)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=4, frameon=False, fontsize=8)
    draw(path, figure)
    plt.close(figure)
