"""The README's table of speed, from what `python -m fastnorm compare --peers both --json times.json` wrote.

    python bench/table.py times.json [speed.png]

Times are multiples of copying the array, one number for each count of threads, and beside them what the project aims at; for each
peer the better of its two forms counts, as users run it and in its best form, and the fastest peer is named. Prints Markdown and,
below it, geometric means; draws the forward passes on the fewest threads.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from fastnorm.cli.compare import report

PEERS = ("PyTorch", "JAX", "ONNX Runtime")
NAMES = {
    "batch_norm": "BN",
    "layer_norm": "LN",
    "rms_norm": "RMS",
    "group_norm": "GN",
    "instance_norm": "IN",
    "switchable_norm": "SN",
    "weight_norm": "WN",
}
PASSES = ("forward", "backward", "eval")
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
# Multiples of a copy to aim at, forward / backward (/ evaluation), for tensors of at least so many bytes.
AIMS = {
    "batch_norm": ((64e6, "1.2 / 1.7 / 1.0"), (2e6, "1.6 / 2.3 / 1.2"), (0, "3 / 4 / 1.5")),
    "other": ((64e6, "1.25 / 1.8"), (2e6, "1.5 / 2.3"), (0, "3.5 / 4.5")),
}


def best_peer(row: dict[str, Any]) -> tuple[float, str] | None:
    """(multiple of a copy, name) of the fastest peer."""
    found = [(c["copies"], name) for name, c in row["contenders"].items() if name in PEERS]
    found += [(c["copies"], name.removesuffix(", out")) for name, c in row.get("best", {}).items()]
    return min((pair for pair in found if pair[1] in PEERS), default=None)


def aim(op: str, size: int) -> str:
    """Beyond the cache, in its last level, or in the second."""
    if op == "batch_norm" or op in ("layer_norm", "rms_norm", "group_norm", "instance_norm"):
        return next(text for least, text in AIMS.get(op, AIMS["other"]) if size >= least)
    return ""


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    with open(sys.argv[1]) as file:
        rows = json.load(file)["rows"]
    lines: dict[tuple[Any, ...], dict[tuple[str, int], dict[str, Any]]] = {}
    counts = sorted({row["threads"] for row in rows})
    for row in rows:
        key = (row["op"], tuple(row["shape"]), row["dtype"], row["layout"])
        lines.setdefault(key, {})[row["direction"], row["threads"]] = row
    print("| tensor | copy, ms | forward | backward | evaluation | aim | fastest peer: forward / backward |")
    print("|---|---:|---:|---:|---:|---|---|")
    for (op, shape, dtype, layout), cells in lines.items():
        kind = "".join(f" {word}" for word in (dtype, layout) if word not in ("float32", "nchw"))
        copy = cells["forward", counts[0]]["contenders"]["copy"]["seconds"]
        own = [
            " · ".join(f"{cells[p, n]['contenders']['kernel']['copies']:.2f}" for n in counts if (p, n) in cells)
            for p in PASSES
        ]
        peers = []
        for p in PASSES[:2]:
            best = [best_peer(cells[p, n]) for n in counts if (p, n) in cells]
            known = [pair for pair in best if pair]
            peers.append(f"{' · '.join(f'{pair[0]:.1f}' for pair in known)} {known[0][1]}" if known else "–")
        label = f"{NAMES.get(op, op.replace('_', '-'))} ({', '.join(map(str, shape))}){kind}"
        size = math.prod(shape) * ITEMSIZE[dtype]
        print(f"| {label} | {copy * 1e3:.3g} | {' | '.join(own)} | {aim(op, size)} | {' / '.join(peers)} |")
    print()
    fresh = [row["fresh"] for row in rows]
    print(f"without out=: {geometric_mean(fresh):.2f} of the time with it, {max(fresh):.2f} at most")
    if len(sys.argv) > 2:
        report.plot(sys.argv[2], [row for row in rows if row["direction"] == "forward" and row["threads"] == counts[0]])
    for p in PASSES:
        chosen = [row for row in rows if row["direction"] == p]
        against = [
            (row["contenders"]["PyTorch"]["copies"] / row["contenders"]["kernel"]["copies"])
            for row in chosen
            if "PyTorch" in row["contenders"]
        ]
        reference = [row["speed_up"] for row in chosen]
        if against:
            print(
                f"{p}: {geometric_mean(against):.1f} times PyTorch as run, {geometric_mean(reference):.1f} times NumPy"
            )


if __name__ == "__main__":
    main()
