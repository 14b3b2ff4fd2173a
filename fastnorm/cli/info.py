"""`info`: what this build is and what it chose: version, instruction set, threads, compiler. Needs NumPy alone."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fastnorm.cli.common import example_help

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info", **example_help("Show version, instruction set, threads and compiler, and how each was chosen.", "info")
    )
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import fastnorm as fn

    if args.json:
        print(json.dumps(fn.config(), indent=2, default=str))
    else:
        fn.show_config()
    return 0
