"""The measuring engine: what a row of the comparison is (`problems`), how long each contender takes (`timing`), how
large its error is (`errors`).

Used by `python -m fastnorm compare` and by the benchmarks. Needs NumPy alone.
"""

from fastnorm.cli.measure.errors import error_of, ulp
from fastnorm.cli.measure.problems import BN_SHAPES, CHANNEL_OPS, DIRECTIONS, EPS, OPS, PANEL, Problem, Row, panel
from fastnorm.cli.measure.timing import Sample, alternate, ratio, using_threads

__all__ = [
    "BN_SHAPES",
    "CHANNEL_OPS",
    "DIRECTIONS",
    "EPS",
    "OPS",
    "PANEL",
    "Problem",
    "Row",
    "Sample",
    "alternate",
    "error_of",
    "panel",
    "ratio",
    "ulp",
    "using_threads",
]
