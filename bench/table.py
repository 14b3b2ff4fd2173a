"""The README's table of speed, from what `python -m fastnorm compare --peers both --json times.json` wrote.

    python bench/table.py times.json

Times are multiples of copying the array; for each peer the better of its two forms counts, as users run it and in its best
form, and the fastest peer is named. Prints Markdown and, below it, geometric means.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

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


def best_peer(row: dict[str, Any]) -> tuple[float, str] | None:
    """(multiple of a copy, name) of the fastest peer."""
    found = [(c["copies"], name) for name, c in row["contenders"].items() if name in PEERS]
    found += [(c["copies"], name.removesuffix(", out")) for name, c in row.get("best", {}).items()]
    return min((pair for pair in found if pair[1] in PEERS), default=None)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    with open(sys.argv[1]) as file:
        rows = json.load(file)["rows"]
    lines: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = (row["op"], tuple(row["shape"]), row["dtype"], row["layout"], row["threads"])
        lines.setdefault(key, {})[row["direction"]] = row
    print(
        "| float32 unless said | threads | copy, ms | forward | backward | evaluation | fastest peer: forward / backward |"
    )
    print("|---|---:|---:|---:|---:|---:|---|")
    for (op, shape, dtype, layout, threads), passes in lines.items():
        kind = "".join(f" {word}" for word in (dtype, layout) if word not in ("float32", "nchw"))
        copy = next(iter(passes.values()))["contenders"]["copy"]["seconds"] * 1e3
        own = [f"{passes[p]['contenders']['kernel']['copies']:.2f}" if p in passes else "" for p in PASSES]
        peers = []
        for p in PASSES[:2]:
            best = best_peer(passes[p]) if p in passes else None
            peers.append(f"{best[0]:.1f} {best[1]}" if best else "–")
        label = f"{NAMES.get(op, op.replace('_', '-'))} ({', '.join(map(str, shape))}){kind}"
        print(f"| {label} | {threads} | {copy:.3g} | {' | '.join(own)} | {' / '.join(peers)} |")
    print()
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
