"""Threads, instruction set and configuration, as the user sees them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastnorm._kernels import core
from fastnorm._version import __version__

__all__ = ["config", "get_num_threads", "set_num_threads", "set_output_cache", "show_config", "threads"]


def set_num_threads(n: int) -> None:
    """Use at most n threads (1 ≤ n ≤ 4096) in every call from now on; results keep their bits.

    Built without OpenMP, one thread is all there is. A forked process starts on one thread. TypeError or ValueError for anything
    else than a positive integer.
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


def set_output_cache(limit: int) -> None:
    """Keep at most `limit` bytes of released output buffers for the next outputs of their size; 0 keeps none.

    Pages that the system hands out for the first time cost more than normalizing what goes there, so outputs of 128 KiB and
    more come from this cache (256 MiB unless FASTNORM_OUTPUT_CACHE_MB says otherwise). A buffer enters it when the array that
    owned it is gone; the oldest leave it when the limit is passed. TypeError or ValueError for anything but such a number.
    """
    core.set_output_cache(limit)


def config() -> dict[str, Any]:
    """What `show_config` prints, as a dictionary."""
    why = core.reasons()
    cached, limit = core.output_cache()
    return {
        "version": __version__,
        "isa": core.isa(),
        "isa_available": core.available_isas(),
        "isa_chosen_by": why["isa"],
        "threads": core.get_num_threads(),
        "threads_chosen_by": why["threads"],
        "openmp": core.have_openmp(),
        "output_cache": cached,
        "output_cache_limit": limit,
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
    print(f"output cache: {c['output_cache'] / 2**20:.0f} of at most {c['output_cache_limit'] / 2**20:.0f} MiB")
    print(f"compiled by: {c['compiler']}")
