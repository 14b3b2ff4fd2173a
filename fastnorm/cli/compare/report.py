"""What was measured, as a table, as JSON, as a picture."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fastnorm.cli import peers
from fastnorm.cli.common import CommandError, atomic_path, draw, need

__all__ = ["plot", "print_table", "write_json"]

TIMES = "\N{MULTIPLICATION SIGN}"


def print_table(console: Any, results: list[dict[str, Any]]) -> None:
    """A line per row and thread count."""
    others = sorted({name for r in results for name in _peer_multiples(r)})
    table = need("rich.table").Table(
        title=f"fastnorm kernels; times are medians, {TIMES} copy with quartiles, without out= as multiples of with it",
        title_justify="left",
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
        "no out=",
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
            f"{r['fresh']:.2f}",
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


def write_json(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Every figure, and what they were measured on."""
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


def plot(path: Any, results: list[dict[str, Any]]) -> None:
    """A dot plot: one line per row, time in copies on a log axis, the kernel filled, the others hollow."""
    plt = need("matplotlib.pyplot")
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
