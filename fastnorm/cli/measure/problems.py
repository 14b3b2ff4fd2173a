"""The rows of the comparison and their arrays: real shapes of real networks, and the calls that do a row's work."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIRECTIONS", "OPS", "PANEL", "Problem", "Row", "panel"]

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
