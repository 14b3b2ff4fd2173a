"""The command line: `python -m fastnorm info | compare | train | tune | experiments`.

One module per command; each offers `add_parser(commands)` and `run(args) -> exit status` and imports what it needs
(rich, matplotlib, scikit-learn, Optuna) only when it runs, because the package itself needs NumPy alone. This file
dispatches, and is the one place that turns what goes wrong into one line and an exit status: 2 for wrong input, 1 for
work that failed, 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fastnorm.cli import compare, experiments, info, train, tune
from fastnorm.cli.common import CommandError, Parser

__all__ = ["main"]

COMMANDS = (info, compare, train, tune, experiments)


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m fastnorm",
        description="Normalization kernels over NumPy arrays: look at the build, compare the kernels with their NumPy "
        "reference, train networks on them.",
        epilog="example: python -m fastnorm train --norm batch --plot curves.png",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; `argv` defaults to the arguments of the process."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"fastnorm {args.command}: {error}", file=sys.stderr)
        return error.status
    except MemoryError as error:
        print(f"fastnorm {args.command}: not enough memory{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(
            f"fastnorm {args.command}: {interrupt}" if interrupt.args else f"fastnorm {args.command}: interrupted",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away: not an error. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
