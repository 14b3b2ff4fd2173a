"""Digests of everything that each function writes, forward and backward, for every path of its kernel and storage type.

The arguments are those of the tests. Two builds, processors or environments agree if this prints the same for both; which
instruction set and how many threads are used is left to the environment (FASTNORM_ISA, FASTNORM_NUM_THREADS).

    python tests/digests.py [--large]           the shapes that several threads share
    python tests/digests.py --write             pin both in digests.txt: a release's bits; say so in the changelog
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import support

from fastnorm._kernels import core

PINNED = Path(__file__).with_name("digests.txt")


def digest(path: str, dtype: str, large: bool) -> str:
    """One number for the bits of all that an operation gives or writes."""
    rng = np.random.default_rng(list(f"{path} {dtype}".encode()))
    call = support.OPERATIONS[path].call(rng, dtype, large=large)
    h = hashlib.sha256()
    for name, value in call.results(call.upstream(rng)).items():
        a: Any = np.asarray(value)
        h.update(name.encode() if value is None else f"{name}{a.dtype}{a.shape}".encode() + a.tobytes())
    return h.hexdigest()[:16]


def pinned() -> dict[tuple[str, str], list[str]]:
    """The digests of the small and the large shape by path and storage type."""
    lines = [line.split() for line in PINNED.read_text().splitlines() if line and not line.startswith("#")]
    return {(path, dtype): found for path, dtype, *found in lines}


def main() -> None:
    core.set_grain(32768)  # several threads for what one would do otherwise
    every = [(path, dtype) for path in support.OPERATIONS for dtype in support.DTYPES]
    if "--write" in sys.argv:
        lines = [
            " ".join([path, dtype, *(digest(path, dtype, large) for large in (False, True))]) for path, dtype in every
        ]
        PINNED.write_text(
            "# Bits of this release, by digests.py --write: operation, storage type, small and large shape.\n"
            + "\n".join(lines)
            + "\n"
        )
        return
    for path, dtype in every:
        print(path, dtype, digest(path, dtype, "--large" in sys.argv))


if __name__ == "__main__":
    main()
