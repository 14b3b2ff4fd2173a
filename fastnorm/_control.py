"""Threads, instruction set and configuration, as the user sees them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastnorm._kernels import core
from fastnorm._version import __version__

__all__ = ["config", "get_num_threads", "set_num_threads", "show_config", "threads"]


def set_num_threads(n: int) -> None:
    """Use at most n threads (1 ≤ n ≤ 4096) in every call from now on; results keep their bits.

    Built without OpenMP, one thread is all there is. TypeError or ValueError for anything else than a positive integer.
    """
    core.set_num_threads(n)


def get_num_threads() -> int:
    """The largest number of threads that a call uses."""
    return core.get_num_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """`with threads(n):` uses at most n threads inside the block and restores the number afterwards."""
    before = core.get_num_threads()
    core.set_num_threads(n)
    try:
        yield
    finally:
        core.set_num_threads(before)


def config() -> dict[str, Any]:
    """What `show_config` prints, as a dictionary."""
    why = core.reasons()
    return {
        "version": __version__,
        "isa": core.isa(),
        "isa_available": core.available_isas(),
        "isa_chosen_by": why["isa"],
        "threads": core.get_num_threads(),
        "threads_chosen_by": why["threads"],
        "openmp": core.have_openmp(),
        "compiler": core.compiler(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def show_config() -> None:
    """Print version, instruction set in use and available, threads and compiler, and how each was chosen."""
    c = config()
    print(f"fastnorm {c['version']} with NumPy {c['numpy']} on {c['machine']}")
    print(f"instruction set: {c['isa']} ({c['isa_chosen_by']}); available: {', '.join(c['isa_available'])}")
    print(f"threads: {c['threads']} ({c['threads_chosen_by']}); OpenMP: {'yes' if c['openmp'] else 'no'}")
    print(f"compiled by: {c['compiler']}")
