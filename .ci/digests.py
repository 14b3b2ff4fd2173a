"""Digests of everything that each function writes, forward and backward, for every path of its kernel and storage type.

The arguments are those of the tests. Two builds, processors or environments agree if this prints the same for both; which
instruction set and how many threads are used is left to the environment (FASTNORM_ISA, FASTNORM_NUM_THREADS).

    python .ci/digests.py [--large]   the shapes that are worth several threads
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import support  # noqa: E402


def digest(results: dict[str, Any]) -> str:
    """One number for the bits of several arrays."""
    h = hashlib.sha256()
    for name, value in results.items():
        a = np.asarray(value)
        h.update(name.encode() if value is None else f"{name}{a.dtype}{a.shape}".encode() + a.tobytes())
    return h.hexdigest()


for path, operation in support.OPERATIONS.items():
    for dtype in support.DTYPES:
        rng = np.random.default_rng(list(f"{path} {dtype}".encode()))
        call = operation.call(rng, dtype, large="--large" in sys.argv)
        print(path, dtype, digest(call.results(call.upstream(rng))))
