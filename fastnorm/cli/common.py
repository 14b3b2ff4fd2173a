"""What every command shares: errors that become one line, lazy imports of the extras, argument types, deferred Ctrl-C.

The commands raise `CommandError` with a sentence for the user; `fastnorm.cli.main` prints it. Argument types are plain
functions that raise `argparse.ArgumentTypeError`, so that a wrong value is answered before any work begins.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any, NoReturn

__all__ = [
    "CommandError",
    "DeferredInterrupt",
    "Parser",
    "atomic_path",
    "bounded",
    "choice_list",
    "draw",
    "example_help",
    "need",
    "output_file",
    "plain_log",
    "shape_list",
    "whole",
]

# Import name of an extra -> what pip calls it.
EXTRAS = {"rich": "rich", "matplotlib": "matplotlib", "sklearn": "scikit-learn", "optuna": "optuna"}


class CommandError(Exception):
    """A sentence for the user and the exit status that goes with it (2: wrong input, 1: the work failed)."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line, without the usage block."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def example_help(what: str, example: str) -> dict[str, str]:
    """The description and closing example of a command's --help, and its line in the list of commands."""
    return {
        "description": textwrap.fill(what, 100),
        "epilog": f"example: python -m fastnorm {example}",
        "help": what.split(". ")[0].rstrip("."),
    }


def need(*names: str) -> ModuleType:
    """Import the extras a command stands on and return the last; say what to install when one is missing."""
    module = None
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            top = name.split(".")[0]
            missing = (error.name or top).split(".")[0]
            package = EXTRAS.get(missing, EXTRAS.get(top, top))
            raise CommandError(
                f'{package} is not installed; pip install "fastnorm-kernels[train]" brings it'
            ) from error
    assert module is not None
    return module


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Argument type: a whole number of at least `least`, at most `most`."""

    def convert(text: str) -> int:
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number {span}, got {text!r}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected a whole number {span}, got {value}")
        return value

    return convert


def bounded(
    low: float, high: float = math.inf, *, open_low: bool = True, open_high: bool = True
) -> Callable[[str], float]:
    """Argument type: a finite number between `low` and `high`, ends excluded when open."""

    def convert(text: str) -> float:
        span = f"above {low:g}" if open_low else f"of at least {low:g}"
        if high != math.inf:
            span += f" and below {high:g}" if open_high else f" and at most {high:g}"
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number {span}, got {text!r}") from None
        too_low = value <= low if open_low else value < low
        too_high = value >= high if open_high else value > high
        if not math.isfinite(value) or too_low or too_high:
            raise argparse.ArgumentTypeError(f"expected a number {span}, got {text}")
        return value

    return convert


def choice_list(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Argument type: names separated by commas, each one of `known`."""
    names = list(known)

    def convert(text: str) -> list[str]:
        chosen = [part.strip() for part in text.split(",") if part.strip()]
        for name in chosen:
            if name not in names:
                raise argparse.ArgumentTypeError(f"unknown {name!r}; known are {', '.join(names)}")
        if not chosen:
            raise argparse.ArgumentTypeError(f"expected one or more of {', '.join(names)}")
        return chosen

    return convert


def shape_list(text: str) -> list[tuple[int, ...]]:
    """Argument type: shapes such as 32x64x56x56, separated by commas."""
    shapes = []
    for part in text.split(","):
        try:
            shape = tuple(int(size) for size in part.strip().split("x"))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected shapes such as 32x64x56x56,128x1024, got {part!r}") from None
        if len(shape) < 2 or min(shape) < 1:
            raise argparse.ArgumentTypeError(f"expected at least two axes, each of at least 1, got {part!r}")
        shapes.append(shape)
    return shapes


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """Argument type: a file to write, with one of `suffixes`, in a folder that exists: said now, not after the work."""

    def convert(text: str) -> Path:
        path = Path(text)
        if suffixes and path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"expected a file name ending in {' or '.join(suffixes)}, got {text!r}")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} does not exist")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise argparse.ArgumentTypeError(f"cannot write {text!r}")
        return path

    return convert


class atomic_path:
    """Write to a temporary neighbour and rename: a reader, or a crash, never meets half a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


class DeferredInterrupt:
    """Hold Ctrl-C back until the loop asks, so that no step is cut in half; a second Ctrl-C takes effect at once.

    >>> with DeferredInterrupt() as interrupt:
    ...     for step in steps:
    ...         step()
    ...         if interrupt: break
    """

    def __init__(self) -> None:
        self.pending = False
        self.previous: Any = None

    def __bool__(self) -> bool:
        return self.pending

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True

    def __enter__(self) -> DeferredInterrupt:
        try:
            self.previous = signal.signal(signal.SIGINT, self.handle)
        except ValueError:  # not the main thread: Ctrl-C reaches the main thread anyway
            self.previous = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)


def plain_log(axis: Any) -> None:
    """Label a logarithmic matplotlib axis at 1, 2 and 5 of each decade with plain numbers."""
    ticker = need("matplotlib.ticker")
    low, high = axis.get_view_interval()
    # Over wider ranges the whole decades alone, or the labels run into each other.
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def draw(path: Path, figure: Any) -> None:
    """Save a matplotlib figure; the size in pixels is that of a README's column twice over."""
    try:
        figure.savefig(path, dpi=160, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot write {path}: {error}", status=1) from error
    print(f"wrote {path}", file=sys.stderr)
