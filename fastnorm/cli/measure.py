"""The measuring engine: what a row of the comparison is, how long each contender takes, how large its error is.

Times: the contenders of a row (kernel, NumPy reference, plain copy, peers) take turns inside one process, in an order
that rotates, so that a change of clock speed or of a neighbour's load meets all of them. A ratio is formed turn by turn
and its median and quartiles are reported; a slow contender sits out turns in equal steps.

Errors: the float64 reference on the very same input, compared in units in the last place (ULP) of the storage type at
the scale of the terms: |gamma * xhat| + |beta| forward, the three terms of the gradient formula backward. It runs
over chunks that share no statistic, so that its memory stays small.

Used by `python -m fastnorm compare` and by the benchmarks. Needs NumPy alone.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIRECTIONS", "OPS", "PANEL", "Problem", "Row", "Sample", "alternate", "error_of", "panel", "ratio", "ulp"]

Array = NDArray[Any]

BN_SHAPES = (
    (32, 64, 112, 112),
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 2048, 7, 7),
    (128, 64, 32, 32),
    (1, 64, 56, 56),
    (8, 16, 14, 14),
    (128, 1024),
    (8192, 512),
)

# Layer shapes of ResNet-50 and small image networks, of transformers, diffusion and style networks.
PANEL: dict[str, tuple[tuple[int, ...], ...]] = {
    "batch_norm": BN_SHAPES,
    "layer_norm": ((4096, 768), (2048, 4096), (65536, 64), (32, 128), (1, 768)),
    "rms_norm": ((2048, 4096), (1, 4096)),
    "group_norm": ((8, 256, 56, 56), (2, 512, 64, 64), (1, 512, 8, 8)),
    "instance_norm": ((4, 64, 256, 256),),
    "switchable_norm": ((32, 64, 56, 56),),
    "weight_norm": ((512, 512, 3, 3),),
    "softmax": ((4096, 1000), (64, 50257)),
    "log_softmax": ((4096, 1000),),
    "cross_entropy": ((4096, 1000),),
    "dropout": ((32, 256, 56, 56),),
}

QUICK: dict[str, tuple[tuple[int, ...], ...]] = {
    "batch_norm": ((128, 64, 32, 32), (8, 16, 14, 14), (128, 1024)),
    "layer_norm": ((4096, 768), (32, 128)),
    "rms_norm": ((1, 4096),),
    "group_norm": ((1, 512, 8, 8),),
    "instance_norm": ((4, 64, 64, 64),),
    "switchable_norm": ((8, 64, 28, 28),),
    "weight_norm": ((128, 128, 3, 3),),
    "softmax": ((256, 1000),),
    "log_softmax": ((256, 1000),),
    "cross_entropy": ((256, 1000),),
    "dropout": ((8, 64, 28, 28),),
}

OPS = tuple(PANEL)
DIRECTIONS = ("forward", "backward", "eval")
CHANNEL_OPS = ("batch_norm", "group_norm", "instance_norm", "switchable_norm")
EVAL_OPS = ("batch_norm",)
NO_FORWARD_OUT = ("weight_norm", "cross_entropy")
EPS = 1e-5


@dataclass(frozen=True)
class Row:
    """One line of the comparison. `shape` is in NCHW order whatever the layout; `direction` is one of `DIRECTIONS`."""

    op: str
    shape: tuple[int, ...]
    direction: str = "forward"
    dtype: str = "float32"
    layout: str = "nchw"

    @property
    def label(self) -> str:
        extra = "".join(f" {word}" for word in (self.dtype, self.layout) if word not in ("float32", "nchw"))
        return f"{self.op} {self.direction} {'x'.join(map(str, self.shape))}{extra}"

    @property
    def axis(self) -> int:
        return -1 if self.layout == "nhwc" else 1

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def groups(self) -> int:
        """32 groups, as the paper found best, or the largest smaller number that divides the channels."""
        return next(g for g in range(min(32, self.channels), 0, -1) if self.channels % g == 0)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize

    @property
    def traffic(self) -> int:
        """The bytes that must move: x and y forward; x, dy and dx backward (y for x where that is what ctx keeps)."""
        return self.nbytes * (3 if self.direction == "backward" and self.op != "dropout" else 2)


def panel(
    ops: tuple[str, ...] | list[str] = OPS,
    shapes: list[tuple[int, ...]] | None = None,
    *,
    quick: bool = False,
    dtypes: list[str] | None = None,
    layouts: list[str] | None = None,
    directions: list[str] | None = None,
) -> list[Row]:
    """The rows to measure: the panel's shapes for `ops`, or `shapes` wherever an op can take them."""
    table = QUICK if quick else PANEL
    rows = []
    for op in ops:
        for shape in shapes or table[op]:
            for layout in layouts or ["nchw"]:
                if layout == "nhwc" and (op not in CHANNEL_OPS or len(shape) < 3):
                    continue
                if (op in ("instance_norm", "switchable_norm") and len(shape) < 3) or (
                    op == "cross_entropy" and len(shape) > 2
                ):
                    continue
                for dtype in dtypes or ["float32"]:
                    for direction in directions or DIRECTIONS:
                        if direction != "eval" or op in EVAL_OPS:
                            rows.append(Row(op, tuple(shape), direction, dtype, layout))
    return rows


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Problem:
    """The arrays of one row and the calls on them.

    `arguments` are the positional and keyword arguments of `<op>` and `<op>_forward`; `kernel(module)` is a call
    without arguments that does the row's work with `fastnorm.functional`, or with `fastnorm.reference`.
    """

    def __init__(self, row: Row, seed: int = 0, mean: float = 0.5, std: float = 1.5) -> None:
        self.row = row
        rng = np.random.default_rng(seed)
        dtype = dtype_of(row.dtype)
        parameter = np.dtype(np.float64 if row.dtype == "float64" else np.float32)
        shape = row.shape if row.layout == "nchw" else (row.shape[0], *row.shape[2:], row.shape[1])
        x = rng.standard_normal(shape, dtype=np.float32)
        x *= std
        x += mean
        self.x: Array = x.astype(dtype, copy=False)
        self.dy: Array = rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)
        count = row.channels if row.op in CHANNEL_OPS else row.shape[-1]
        if row.op == "weight_norm":
            count = row.shape[0]
        self.weight: Array = rng.uniform(0.5, 1.5, count).astype(parameter)
        self.bias: Array = rng.standard_normal(count).astype(parameter)
        self.running_mean: Array = rng.standard_normal(count).astype(parameter)
        self.running_var: Array = rng.uniform(0.5, 1.5, count).astype(parameter)
        self.mean_logits: Array = rng.standard_normal(3).astype(parameter)
        self.var_logits: Array = rng.standard_normal(3).astype(parameter)
        self.targets: Array = rng.integers(0, row.shape[-1], row.shape[0])
        if row.op == "cross_entropy":
            self.dy = np.ones((), parameter)
        self.out: Array = np.empty_like(self.x)
        self.out.fill(0)  # touch the pages now

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        row, training = self.row, self.row.direction != "eval"
        stats, affine = (self.running_mean, self.running_var), (self.weight, self.bias)
        match row.op:
            case "batch_norm":
                return (self.x, *stats, *affine, training, 0.1, EPS), {"axis": row.axis}
            case "layer_norm":
                return (self.x, row.shape[-1:], *affine, EPS), {}
            case "rms_norm":
                return (self.x, row.shape[-1:], self.weight, EPS), {}
            case "group_norm":
                return (self.x, row.groups, *affine, EPS), {"axis": row.axis}
            case "instance_norm":
                return (self.x, None, None, *affine, True, 0.1, EPS), {"axis": row.axis}
            case "switchable_norm":
                logits = (self.mean_logits, self.var_logits)
                return (self.x, *logits, *stats, *affine, training, 0.1, EPS), {"axis": row.axis}
            case "weight_norm":
                return (self.x, self.weight.reshape(-1, *[1] * (len(row.shape) - 1))), {}
            case "softmax" | "log_softmax":
                return (self.x, -1), {}
            case "cross_entropy":
                return (self.x, self.targets), {}
            case "dropout":
                return (self.x, 0.5, True), {"seed": 1}
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {row.op!r}")

    def kernel(self, module: ModuleType, *, out: bool = True) -> Callable[[], Any]:
        """The row's work as `module` does it, into a preallocated array unless `out=False`. Returns y, or the
        gradients."""
        row = self.row
        args, kwargs = self.arguments
        forward = getattr(module, f"{row.op}_forward")
        if row.direction == "backward":
            backward = getattr(module, f"{row.op}_backward")
            _, ctx = forward(*args, **kwargs)
            dy = self.dy
            if out:
                target = self.out
                return lambda: backward(dy, ctx, out=target)
            return lambda: backward(dy, ctx)
        if out and row.op not in NO_FORWARD_OUT:
            kwargs = {**kwargs, "out": self.out}
        if row.direction == "eval":
            forward = getattr(module, row.op)
        return lambda: forward(*args, **kwargs)

    def result(self, module: ModuleType) -> Array:
        """One fresh call: y, or dx, as an array."""
        answer = self.kernel(module, out=False)()
        if self.row.direction == "eval":
            return np.asarray(answer)
        return np.asarray(answer[0])

    def copy(self, threads: int = 1) -> Callable[[], Any]:
        """A plain copy of x into a preallocated array; on several threads each copies its share of a large one."""
        # As plain bytes of the same width: NumPy copies bfloat16, a type foreign to it, element by element.
        plain = (
            f"u{self.x.dtype.itemsize}" if self.x.dtype.kind == "V" or self.row.dtype == "bfloat16" else self.x.dtype
        )
        source = self.x.reshape(-1).view(plain)
        target = np.zeros_like(source)
        if threads == 1 or source.nbytes < 1 << 20:
            return lambda: np.copyto(target, source)
        cuts = np.linspace(0, source.size, threads + 1).astype(int)
        parts = [(target[a:b], source[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        pool = ThreadPoolExecutor(threads - 1)

        def copy() -> None:
            waiting = [pool.submit(np.copyto, *part) for part in parts[1:]]
            np.copyto(*parts[0])
            for done in waiting:
                done.result()

        return copy


# ---------------------------------------------------------------------------------------------------------------------
# Time


@dataclass(frozen=True)
class Sample:
    """Seconds per call, by the number of the turn in which they were measured."""

    times: Mapping[int, float]

    @property
    def median(self) -> float:
        return float(np.median(list(self.times.values())))

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles."""
        low, high = np.percentile(list(self.times.values()), [25, 75])
        return float(low), float(high)


def alternate(
    contenders: Mapping[str, Callable[[], Any]],
    seconds: float = 0.4,
    *,
    least: int = 5,
    most: int = 60,
    tick: Callable[[], None] | None = None,
) -> dict[str, Sample]:
    """Time the contenders in turns; each gets about `seconds`, at least `least` turns and at most `most`.

    A turn is a block of calls of at least 0.2 ms (the clock's grain and the loop then cost under 0.1 %), preceded by an
    unmeasured call that brings the contender's own data back into the caches that the one before it used.
    """
    block = 2e-4
    numbers, warms, turns = {}, {}, {}
    for name, call in contenders.items():
        call()
        cost = _timed(call, 1)
        if cost < block:
            cost = _timed(call, max(1, int(block / max(cost, 1e-8)) // 4))
        numbers[name] = max(1, math.ceil(block / max(cost, 1e-8)))
        warms[name] = cost < 5e-3
        each = cost * (numbers[name] + warms[name])
        turns[name] = min(most, max(least, int(seconds / each)))
    total = max(turns.values())
    names = list(contenders)
    times: dict[str, dict[int, float]] = {name: {} for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(total):
            for position in range(len(names)):
                name = names[(turn + position) % len(names)]
                if (turn + 1) * turns[name] // total == turn * turns[name] // total:
                    continue
                if warms[name]:
                    contenders[name]()
                times[name][turn] = _timed(contenders[name], numbers[name])
                if tick is not None:
                    tick()
    finally:
        if collecting:
            gc.enable()
    return {name: Sample(measured) for name, measured in times.items()}


def _timed(call: Callable[[], Any], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def ratio(sample: Sample, unit: Sample) -> tuple[float, float, float]:
    """Median and quartiles of `sample / unit`, formed within each turn that both took part in."""
    shared = [sample.times[turn] / unit.times[turn] for turn in sample.times if turn in unit.times]
    if not shared:
        shared = [sample.median / unit.median]
    low, middle, high = np.percentile(shared, [25, 50, 75])
    return float(middle), float(low), float(high)


@contextlib.contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Run the kernels on `count` threads."""
    import fastnorm as fn

    with fn.threads(count):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Error

# Explicit mantissa bits and smallest normal exponent.
FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}


def ulp(scale: Array, dtype: str) -> Array:
    """The distance between neighbouring numbers of `dtype` at the magnitude `scale` (float64)."""
    bits, smallest = FORMATS[dtype]
    exponent = np.frexp(scale)[1] - 1
    return np.ldexp(1.0, np.maximum(np.where(scale > 0, exponent, smallest), smallest) - bits)


def error_of(problem: Problem, module: ModuleType, *, chunks: int | None = None) -> tuple[float, float]:
    """Largest error of `module` on the row, (absolute, in ULP at the scale of the terms), against the float64
    reference.

    `chunks` limits how many pieces of about a million elements are looked at (evenly spaced); None looks at all.
    """
    running = problem.running_mean.copy(), problem.running_var.copy()
    got = problem.result(module)
    # The call has moved the running statistics; evaluation is judged by those it read.
    problem.running_mean[:], problem.running_var[:] = running
    absolute = relative = 0.0
    pieces = list(_pieces(problem))
    if chunks is not None and chunks < len(pieces):
        pieces = [pieces[i] for i in np.linspace(0, len(pieces) - 1, chunks).astype(int)]
    for where in pieces:
        exact, scale = _exact(problem, where)
        difference = np.abs(got[where].astype(np.float64) - exact)
        absolute = max(absolute, float(difference.max(initial=0.0)))
        relative = max(relative, float((difference / ulp(scale, problem.row.dtype)).max(initial=0.0)))
    return absolute, relative


def _pieces(problem: Problem) -> Iterator[tuple[Any, ...]]:
    """Index expressions that cut x where no statistic is shared: BN by channels, the others by samples or rows."""
    row, shape = problem.row, problem.x.shape
    if row.op in ("switchable_norm", "dropout", "cross_entropy"):
        yield (...,)
        return
    axis = (row.axis % len(shape)) if row.op == "batch_norm" else 0
    step = max(1, int(1e6 * shape[axis] / problem.x.size))
    for start in range(0, shape[axis], step):
        yield (*[slice(None)] * axis, slice(start, start + step))


def _exact(problem: Problem, where: tuple[Any, ...]) -> tuple[Array, Array]:
    """(float64 result, scale of its terms) on one piece."""
    from fastnorm import reference

    row = problem.row
    cut = where[-1] if row.op in ("batch_norm", "weight_norm") else slice(None)
    piece = object.__new__(Problem)
    piece.row = row
    piece.x = problem.x[where].astype(np.float64)
    piece.dy = problem.dy[where].astype(np.float64) if problem.dy.ndim else problem.dy.astype(np.float64)
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(piece, name, getattr(problem, name)[cut].astype(np.float64))
    piece.mean_logits, piece.var_logits = problem.mean_logits.astype(np.float64), problem.var_logits.astype(np.float64)
    piece.targets = problem.targets
    exact = piece.result(reference)
    if row.direction == "backward":
        return exact, _backward_scale(piece, exact)
    if row.op in ("weight_norm", "softmax", "log_softmax", "cross_entropy", "dropout"):
        return exact, np.abs(exact)
    bias = 0.0 if row.op == "rms_norm" else _spread(piece, piece.bias)
    return exact, np.abs(exact - bias) + np.abs(bias)


def _spread(problem: Problem, parameter: Array) -> Array:
    """A parameter shaped to broadcast against x."""
    if problem.row.op not in CHANNEL_OPS or problem.row.layout == "nhwc":
        return parameter
    return parameter.reshape(-1, *[1] * (problem.x.ndim - 2))


def _backward_scale(piece: Problem, exact: Array) -> Array:
    """The sum of the magnitudes of the terms that the gradient formula subtracts from each other."""
    row, x, dy = piece.row, piece.x, piece.dy
    if row.op == "dropout":
        return np.abs(exact)
    if row.op == "weight_norm":
        axes = tuple(range(1, x.ndim))
        norm = np.sqrt(np.sum(x * x, axis=axes, keepdims=True))
        g = piece.weight.reshape(norm.shape) / norm
        return np.abs(g * dy) + np.abs(g * x * np.sum(dy * x, axis=axes, keepdims=True) / norm**2)
    if row.op in ("softmax", "log_softmax", "cross_entropy"):
        # The context keeps p rounded, so each term of a sum brings its own error: magnitudes inside the sums.
        shifted = np.exp(x - x.max(axis=-1, keepdims=True))
        p = shifted / shifted.sum(axis=-1, keepdims=True)
        if row.op == "softmax":
            return p * (np.abs(dy) + np.sum(np.abs(dy) * p, axis=-1, keepdims=True))
        if row.op == "log_softmax":
            return np.abs(dy) + p * np.sum(np.abs(dy), axis=-1, keepdims=True)
        p[np.arange(len(p)), piece.targets] += 1
        return p / len(p)

    # The norms: dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = gamma * dy, each mean over one statistic's
    # elements.
    g = dy * _spread(piece, piece.weight)
    shape = x.shape
    if row.layout == "nhwc":
        x, g = np.moveaxis(x, -1, 1), np.moveaxis(g, -1, 1)
    if row.op == "group_norm":
        x, g = (a.reshape(a.shape[0], row.groups, -1, *a.shape[2:]) for a in (x, g))
    spatial = tuple(range(2, x.ndim))
    axes = {"batch_norm": (0, *spatial), "layer_norm": (-1,), "rms_norm": (-1,)}.get(row.op, spatial)
    mean = 0.0 if row.op == "rms_norm" else x.mean(axis=axes, keepdims=True)
    var = np.mean((x - mean) ** 2, axis=axes, keepdims=True)
    if row.op == "switchable_norm":
        # Its terms are those of three norms, weighted; the instance norm's, the largest, stand for them.
        var = np.maximum(var, var.mean())
    rstd = 1 / np.sqrt(var + EPS)
    xhat = (x - mean) * rstd
    middle = 0.0 if row.op == "rms_norm" else np.abs(g.mean(axis=axes, keepdims=True))
    scale = rstd * (np.abs(g) + middle + np.abs(xhat * np.mean(g * xhat, axis=axes, keepdims=True)))
    if row.layout == "nhwc":
        scale = np.moveaxis(scale.reshape(shape[0], shape[-1], *shape[1:-1]), 1, -1)
    return scale.reshape(shape)
