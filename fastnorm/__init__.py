"""fastnorm: the normalization kernels of deep learning, forward and backward, for NumPy arrays.

As fast as copying the array, the same bits on every machine, and accurate where statistics usually are not. The functions
live in `fastnorm.functional` and are repeated here; layers are in `fastnorm.nn`, optimisers in `fastnorm.optim`, the same
formulas in plain NumPy in `fastnorm.reference`.
"""

from importlib import import_module
from typing import Any

from fastnorm import functional
from fastnorm._control import config, get_num_threads, set_num_threads, set_output_cache, show_config, threads
from fastnorm._version import __version__
from fastnorm.functional import *  # noqa: F403

__all__ = [
    "__version__",
    "config",
    "functional",
    "get_num_threads",
    "set_num_threads",
    "set_output_cache",
    "show_config",
    "threads",
    *functional.__all__,
]

_LAZY = ("convert", "nn", "optim", "preprocessing", "reference")


def __getattr__(name: str) -> Any:
    """`fastnorm.nn` and the like, imported when first looked at."""
    if name in _LAZY:
        return import_module(f"fastnorm.{name}")
    raise AttributeError(f"module 'fastnorm' has no attribute {name!r}")
