"""The Cython storey: how a tensor is cut into blocks, scheduled on threads and merged. Private; use `fastnorm.functional`."""

import importlib as _importlib
import os as _os


def _load() -> None:
    """Load the kernels, and with them OpenMP, whose threads shall soon sleep when they wait.

    OpenMP's threads spin for milliseconds by default. On few cores they and BLAS's, which spin too, then keep each other from
    running: batch norm after a matrix product took 3 to 40 times as long on two threads as on one. A thousand turns bridge
    the gap between calls. OpenMP reads its environment once, when loaded; what the user has set stays.
    """
    if any(name in _os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        return
    brief = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}  # GNU's, in turns; LLVM's, in milliseconds
    _os.environ.update(brief)
    try:
        _importlib.import_module("fastnorm._kernels.core")
    finally:
        for name in brief:
            del _os.environ[name]


_load()
