"""`experiments NAME`: small studies of why normalization works, each measured on the spot on the handwritten digits.

An experiment is a function `f(lab) -> Result` in one of the modules here: `rates` (how fast, how robust), `inside`
(what signals and gradients do) and `judgement` (what holds on data not seen). It trains small networks through the
loop of `fastnorm.cli.training`, is deterministic by seed, and reports what was measured, whether or not a textbook
agrees.
"""

from __future__ import annotations

import argparse
import csv
import textwrap
from pathlib import Path
from typing import Any

from fastnorm.cli.common import CommandError, atomic_path, draw, example_help, need, whole
from fastnorm.cli.experiments import inside, judgement, rates
from fastnorm.cli.experiments.lab import Lab, Result

__all__ = ["EXPERIMENTS", "add_parser", "run"]

EXPERIMENTS = {
    "speed": rates.speed,
    "learning-rate": rates.learning_rate,
    "init-scale": rates.init_scale,
    "saturation": rates.saturation,
    "weight-norm": rates.weight_norm,
    "gradients": inside.gradients,
    "distributions": inside.distributions,
    "switchable": inside.switchable,
    "batch-size": judgement.batch_size,
    "noise": judgement.noise,
    "statistics": judgement.statistics,
}


def add_parser(commands: Any) -> None:
    options = example_help(
        "Run a small study of why normalization works: writes a picture, the figures and three lines of what was seen.",
        "experiments batch-size --out results",
    )
    entries = (f"  {name:14} {_first_line(function)}" for name, function in EXPERIMENTS.items())
    options["epilog"] = "names:\n" + "\n".join(entries) + "\n\n" + options["epilog"]
    parser = commands.add_parser("experiments", **options)
    parser.add_argument("name", choices=[*EXPERIMENTS, "all"], metavar="NAME", help="one of the names below, or all")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("."),
        metavar="FOLDER",
        help="where NAME.png, NAME.csv and NAME.txt go (default: here)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--quick", action="store_true", help="few samples, epochs and settings: to see that it runs")
    parser.set_defaults(run=run)


def _first_line(function: Any) -> str:
    return str(function.__doc__).strip().splitlines()[0].rstrip(".")


def run(args: argparse.Namespace) -> int:
    need("rich", "sklearn")
    need("matplotlib").use("Agg")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {args.out}: {error.strerror}") from error
    console = need("rich.console").Console(highlight=False, soft_wrap=True)
    names = list(EXPERIMENTS) if args.name == "all" else [args.name]
    for name in names:
        with Lab(name, args.seed, args.quick, console) as lab:
            result = EXPERIMENTS[name](lab)
        write(args.out, name, result)
        console.print(f"{name}: {_first_line(EXPERIMENTS[name])}")
        for line in result.lines:
            console.print(textwrap.indent(textwrap.fill(line, 100), "  "))
    return 0


def write(folder: Path, name: str, result: Result) -> None:
    """NAME.csv: a row per measurement. NAME.txt: what was seen. NAME.png: the picture."""
    try:
        with atomic_path(folder / f"{name}.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, list(result.rows[0]))
            writer.writeheader()
            for row in result.rows:
                writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
        with atomic_path(folder / f"{name}.txt") as temporary:
            temporary.write_text("\n".join(result.lines) + "\n")
    except OSError as error:
        raise CommandError(f"cannot write into {folder}: {error.strerror}", status=1) from error
    draw(folder / f"{name}.png", result.figure)
    need("matplotlib.pyplot").close(result.figure)
