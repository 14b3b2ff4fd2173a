"""What the tests of the kernels share: every operation with arguments to match, and the measure of what is promised.

An operation appears here once per path that its kernel can take (along spans or down columns, training or evaluation,
fused or plain), in a small shape that leaves ragged ends everywhere and in a large one that is worth seven threads.
The promises (bits, memory, faults) then run over all of them, and a new operation is tested by one more entry.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import exact
import numpy as np
import pytest

from fastnorm import functional, reference
from fastnorm._kernels import core

Array = np.ndarray
DTYPES = ("float32", "float64", "float16", "bfloat16")
LENGTHS = (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 4095, 4097, 65537)
CHANNEL_NORMS = ("batch_norm", "group_norm", "instance_norm", "switchable_norm")
RUNNING = ("running_mean", "running_var")


def dtype_of(name: str) -> np.dtype[Any]:
    """A storage type by name; bfloat16 needs ml_dtypes."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)


def compute_type(x: Any) -> np.dtype[Any]:
    """The type of parameters' gradients and of the arithmetic, for an array or a type."""
    dtype = x.dtype if isinstance(x, Array) else np.dtype(x)
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, mean: float = 0.5, std: float = 1.5) -> Array:
    """N(mean, std^2) values, rounded to dtype: to bfloat16 by way of float32, as ml_dtypes before 0.7 did itself."""
    values = mean + std * rng.standard_normal(shape)
    return (values if np.dtype(dtype).kind == "f" else values.astype(np.float32)).astype(dtype)


# -------------------------------------------------------------------------------------------------------------- measures


def within(actual: Any, expected: Any, scale: Any, bound: float, what: str) -> None:
    """Every element within `bound` ULP (of the compute type, at `scale`) of the exact value, rounded once to storage."""
    actual = np.asarray(actual)
    assert actual.shape == np.shape(expected), what
    ratio = exact.excess(actual, expected, scale, bound)
    if ratio.size and not ratio.max() <= 1:
        at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        pytest.fail(
            f"{what}: {float(ratio[at]) * bound:.3g} ULP where {bound} are allowed, at {tuple(map(int, at))} of "
            f"{actual.shape} {actual.dtype}: got {actual[at]!r}, exact {np.asarray(expected)[at]!r}, "
            f"scale {np.broadcast_to(scale, ratio.shape)[at]!r}"
        )


def same_bits(a: Any, b: Any, what: str = "") -> None:
    """Equal types, shapes and bytes (None equals None)."""
    if a is None or b is None:
        assert a is b, what
        return
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape, what
    if a.tobytes() != b.tobytes():
        raw = [np.ascontiguousarray(t).view(f"u{t.itemsize}") for t in (a, b)]
        where = np.argwhere(raw[0] != raw[1])
        at = tuple(map(int, where[0]))
        pytest.fail(f"{what}: {len(where)} of {a.size} differ in their bits, first at {at}: {a[at]!r}, {b[at]!r}")


def machines() -> Iterator[str]:
    """Every instruction set with one thread and with seven, the widest with two and three, in use one after the other."""
    before = core.isa(), core.get_num_threads()
    every = core.available_isas()
    try:
        for isa, n in [*itertools.product(every, (1, 7)), (every[-1], 2), (every[-1], 3)]:
            core.set_isa(isa)
            core.set_num_threads(n)
            yield f"{isa}, {n} threads"
    finally:
        core.set_isa(before[0])
        core.set_num_threads(before[1])


# ----------------------------------------------------------------------------------------------------------------- calls


@dataclass
class Call:
    """A function of the package and its arguments, by name; the first one is the array that it differentiates."""

    name: str
    arguments: dict[str, Any]

    @property
    def first(self) -> str:
        return next(iter(self.arguments))

    @property
    def x(self) -> Array:
        return self.arguments[self.first]

    @property
    def differentiable(self) -> bool:
        return hasattr(reference, f"{self.name}_backward")

    def accepts(self, name: str) -> bool:
        """Whether the function has an argument of that name."""
        return name in inspect.signature(getattr(reference, self.name)).parameters

    def fresh(self, **changes: Any) -> Call:
        """The same with copies of all arrays (layouts kept), and some arguments replaced."""
        kept = {name: value for name, value in self.arguments.items() if name not in changes}
        return Call(
            self.name, {name: copy.copy(kept.get(name, changes.get(name))) for name in self.arguments | changes}
        )

    def replaced(self, **changes: Any) -> Call:
        """The same arrays, and some arguments replaced; nothing is copied."""
        return Call(self.name, self.arguments | changes)

    def plain(self, **more: Any) -> Any:
        return getattr(functional, self.name)(**self.arguments, **more)

    def forward(self, **more: Any) -> tuple[Any, Any]:
        return getattr(functional, f"{self.name}_forward")(**self.arguments, **more)

    def backward(self, dy: Any, ctx: Any, **more: Any) -> Any:
        return getattr(functional, f"{self.name}_backward")(dy, ctx, **more)

    def upstream(self, rng: np.random.Generator) -> Any:
        """A random gradient of the result: never ones, which every norm's gradient annihilates."""
        if self.name == "cross_entropy":
            if self.arguments.get("reduction", "mean") != "none":
                return np.asarray(rng.standard_normal(), compute_type(self.x))
            return draw(rng, self.arguments["targets"].shape, compute_type(self.x))
        dy = np.empty_like(self.x)
        dy[...] = draw(rng, self.x.shape, self.x.dtype, 0.1, 1.0)
        return dy

    def results(self, dy: Any, call: Callable[..., Any] | None = None) -> dict[str, Any]:
        """Everything that a forward and a backward on fresh arguments give or write, by name."""
        c = self.fresh()
        if not self.differentiable:
            return dict(zip(("mean", "var"), c.plain(), strict=True))
        y, ctx = c.forward()
        found = {"y": y, **{name: c.arguments[name] for name in RUNNING if c.arguments.get(name) is not None}}
        if getattr(ctx, "sum", None) is not None:
            found["sum"] = ctx.sum
        grads = c.backward(dy, ctx)
        return found | dict(zip(grads._fields, grads, strict=True))


Make = Callable[[np.random.Generator, np.dtype[Any], tuple[int, ...]], Call]


def _affine(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> dict[str, Array]:
    return {name: draw(rng, shape, compute_type(dtype), mean, 0.5) for name, mean in (("weight", 1.0), ("bias", 0.2))}


def _running(rng: np.random.Generator, dtype: np.dtype[Any], channels: int) -> dict[str, Array]:
    mean, var = draw(rng, (channels,), compute_type(dtype)), draw(rng, (channels,), compute_type(dtype))
    return {"running_mean": mean, "running_var": np.abs(var) + var.dtype.type(0.1)}


def channel_norm(name: str, *, axis: int = 1, running: bool = False, residual: bool = False, **options: Any) -> Make:
    """A norm with parameters per channel."""

    def make(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Call:
        c = shape[axis]
        arguments: dict[str, Any] = {"x": draw(rng, shape, dtype)}
        if name == "switchable_norm":
            arguments |= {f"{k}_logits": draw(rng, (3,), compute_type(dtype)) for k in ("mean", "var")}
        if running:
            arguments |= _running(rng, dtype, c)
        arguments |= _affine(rng, dtype, (c,)) | options | ({} if axis == 1 else {"axis": axis})
        if residual:
            arguments["residual"] = draw(rng, shape, dtype)
        return Call(name, arguments)

    return make


def row_norm(name: str, *, residual: bool = False, axes: int = 1) -> Make:
    """A norm over the trailing axes."""

    def make(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Call:
        affine = _affine(rng, dtype, shape[len(shape) - axes :])
        if name == "rms_norm":
            del affine["bias"]
        arguments = {"x": draw(rng, shape, dtype), "normalized_shape": shape[len(shape) - axes :], **affine}
        if residual:
            arguments["residual"] = draw(rng, shape, dtype)
        return Call(name, arguments)

    return make


def weight_norm(dim: int) -> Make:
    def make(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Call:
        wide = tuple(n if a == dim % len(shape) else 1 for a, n in enumerate(shape))
        return Call(
            "weight_norm", {"v": draw(rng, shape, dtype), "g": draw(rng, wide, compute_type(dtype)), "dim": dim}
        )

    return make


def along(name: str, axis: int) -> Make:
    return lambda rng, dtype, shape: Call(name, {"x": draw(rng, shape, dtype, 0, 3), "axis": axis})


def cross_entropy(**options: Any) -> Make:
    def make(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Call:
        targets = rng.integers(shape[1], size=shape[:1] + shape[2:])
        targets[targets == 1] = -100
        weight = np.abs(draw(rng, (shape[1],), compute_type(dtype)))
        arguments = {"logits": draw(rng, shape, dtype, 0, 3), "targets": targets, "weight": weight, **options}
        return Call("cross_entropy", arguments)

    return make


def dropout() -> Make:
    return lambda rng, dtype, shape: Call("dropout", {"x": draw(rng, shape, dtype), "p": 0.3, "seed": 2**40 + 5})


def reduction(axis: Any) -> Make:
    return lambda rng, dtype, shape: Call("moments", {"x": draw(rng, shape, dtype), "axis": axis})


@dataclass(frozen=True)
class Operation:
    """One path of one function: how its arguments are made, in a small and in a large shape."""

    make: Make
    small: tuple[int, ...]
    large: tuple[int, ...]

    def call(self, rng: np.random.Generator, dtype: str, *, large: bool = False) -> Call:
        return self.make(rng, dtype_of(dtype), self.large if large else self.small)


OPERATIONS = {
    "batch_norm_spans": Operation(channel_norm("batch_norm", running=True, training=True), (3, 5, 67), (5, 7, 7013)),
    "batch_norm_one_channel": Operation(channel_norm("batch_norm", training=True), (3, 1, 131), (2, 1, 150001)),
    "batch_norm_short": Operation(channel_norm("batch_norm", training=True), (5, 6, 7, 7), (65, 90, 7, 7)),
    "batch_norm_columns": Operation(channel_norm("batch_norm", training=True), (35, 19), (4099, 70)),
    "batch_norm_last": Operation(channel_norm("batch_norm", axis=-1, training=True), (3, 5, 4, 17), (5, 31, 33, 67)),
    "batch_norm_wide": Operation(channel_norm("batch_norm", training=True), (3, 1300), (131, 2101)),
    "batch_norm_relu": Operation(
        channel_norm("batch_norm", training=True, activation="relu"), (3, 5, 67), (5, 7, 7013)
    ),
    "batch_norm_residual": Operation(
        channel_norm("batch_norm", training=True, residual=True), (3, 5, 8, 9), (5, 70, 29, 31)
    ),
    "batch_norm_residual_relu": Operation(
        channel_norm("batch_norm", training=True, residual=True, activation="relu"), (3, 5, 67), (5, 7, 7013)
    ),
    "batch_norm_residual_relu_columns": Operation(
        channel_norm("batch_norm", training=True, residual=True, activation="relu"), (35, 19), (4099, 70)
    ),
    "batch_norm_evaluation": Operation(channel_norm("batch_norm", running=True), (3, 5, 67), (5, 7, 7013)),
    "batch_norm_evaluation_columns": Operation(
        channel_norm("batch_norm", running=True, residual=True, activation="relu"), (35, 19), (4099, 70)
    ),
    "group_norm": Operation(channel_norm("group_norm", num_groups=3), (3, 6, 67), (3, 6, 14009)),
    "group_norm_relu": Operation(
        channel_norm("group_norm", num_groups=2, activation="relu"), (3, 6, 8, 9), (8, 24, 37, 41)
    ),
    "group_norm_short": Operation(channel_norm("group_norm", num_groups=4), (3, 12, 5), (301, 96, 3, 3)),
    "group_norm_last": Operation(channel_norm("group_norm", num_groups=3, axis=-1), (3, 5, 7, 12), (3, 53, 47, 36)),
    "group_norm_vectors": Operation(channel_norm("group_norm", num_groups=5), (7, 35), (3001, 90)),
    "instance_norm": Operation(channel_norm("instance_norm", running=True), (3, 5, 67), (3, 5, 17011)),
    "instance_norm_short": Operation(channel_norm("instance_norm", activation="relu"), (3, 6, 3, 3), (301, 96, 3, 3)),
    "instance_norm_last": Operation(channel_norm("instance_norm", axis=-1), (3, 5, 4, 17), (3, 53, 47, 36)),
    "instance_norm_given": Operation(
        channel_norm("instance_norm", running=True, use_input_stats=False), (3, 5, 67), (3, 5, 17011)
    ),
    "switchable_norm": Operation(
        channel_norm("switchable_norm", running=True, training=True), (3, 5, 67), (3, 5, 17011)
    ),
    "switchable_norm_last": Operation(
        channel_norm("switchable_norm", axis=-1, training=True), (3, 5, 4, 17), (3, 53, 47, 36)
    ),
    "switchable_norm_evaluation": Operation(channel_norm("switchable_norm", running=True), (3, 5, 67), (5, 70, 29, 31)),
    "layer_norm": Operation(row_norm("layer_norm"), (5, 7, 67), (301, 1001)),
    "layer_norm_long": Operation(row_norm("layer_norm", axes=2), (3, 5, 67), (2, 11, 14009)),
    "layer_norm_short": Operation(row_norm("layer_norm"), (35, 5), (30011, 9)),
    "layer_norm_residual": Operation(row_norm("layer_norm", residual=True), (5, 7, 67), (301, 1001)),
    "rms_norm": Operation(row_norm("rms_norm"), (5, 7, 67), (301, 1001)),
    "rms_norm_long": Operation(row_norm("rms_norm", axes=2), (3, 5, 67), (2, 11, 14009)),
    "rms_norm_residual": Operation(row_norm("rms_norm", residual=True), (5, 7, 67), (301, 1001)),
    "weight_norm": Operation(weight_norm(0), (5, 67), (301, 1001)),
    "weight_norm_last": Operation(weight_norm(-1), (7, 5, 19), (1001, 301)),
    "softmax": Operation(along("softmax", -1), (5, 7, 67), (301, 1001)),
    "softmax_columns": Operation(along("softmax", 1), (3, 67, 5), (7, 301, 131)),
    "log_softmax": Operation(along("log_softmax", -1), (5, 7, 67), (301, 1001)),
    "log_softmax_columns": Operation(along("log_softmax", 1), (3, 67, 5), (7, 301, 131)),
    "cross_entropy": Operation(cross_entropy(), (35, 19), (3001, 100)),
    "cross_entropy_images": Operation(
        cross_entropy(reduction="none", label_smoothing=0.1), (3, 19, 5, 7), (5, 101, 25, 27)
    ),
    "cross_entropy_sum": Operation(cross_entropy(reduction="sum", label_smoothing=0.3), (35, 19), (3001, 100)),
    "dropout": Operation(dropout(), (3, 5, 67), (301, 1001)),
    "moments": Operation(reduction(None), (3, 5, 67), (301, 1001)),
    "moments_of_rows": Operation(reduction(-1), (3, 5, 67), (301, 1001)),
    "moments_of_columns": Operation(reduction(0), (35, 19), (4099, 70)),
}


def paths(where: Callable[[Call], bool] = lambda call: True, *accepts: str) -> Any:
    """Run a test for every operation whose call, in float32, meets a condition, and that accepts the arguments named."""
    rng = np.random.default_rng(0)
    calls = {path: operation.call(rng, "float32") for path, operation in OPERATIONS.items()}
    chosen = [path for path, call in calls.items() if where(call) and all(call.accepts(name) for name in accepts)]
    return pytest.mark.parametrize("path", chosen)


def differentiable(call: Call) -> bool:
    """Whether the function has a backward."""
    return call.differentiable


every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def same_layout(a: Array, b: Array) -> bool:
    """Whether memory is walked alike; the stride of an axis of length one means nothing."""
    return all(n < 2 or s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True))


# ------------------------------------------------------------------------------------------------- gradients, by slopes


def check_slopes(call: Call, fields: dict[str, str], rng: np.random.Generator) -> None:
    """d/dt sum(dy * f(a + t * u)) = sum(u * da) in float64: each argument a, a random direction u, a random dy."""
    y, ctx = call.fresh().forward()
    dy = np.asarray(rng.standard_normal(np.shape(y)))
    grads = call.backward(dy, ctx)
    for name, field in fields.items():
        value, gradient = call.arguments[name], getattr(grads, field)
        assert gradient.shape == value.shape and gradient.dtype == value.dtype, field
        u = np.empty_like(value)
        u[...] = rng.standard_normal(value.shape)
        t = 1e-5 * max(1.0, float(np.abs(value).max(initial=0)))
        ends = [float((dy * call.fresh(**{name: np.asarray(value + s * t * u)}).forward()[0]).sum()) for s in (1, -1)]
        rounding = 1e-10 * float(np.abs(dy * y).sum() + np.abs(dy).sum())
        error = abs((ends[0] - ends[1]) / (2 * t) - float((u * gradient).sum()))
        assert error <= 1e-6 * float(np.abs(u * gradient).sum()) + rounding, (name, error)


# ---------------------------------------------------------------------------------------------- values, by exact numbers


def strict_scales(
    view: exact.View, known: exact.Standard, dy: Array, weight: Array | None, shape: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """The scales of the promise, read literally: for dx |rstd| (|g| + |mean(g)| + |xhat * mean(g * xhat)|), however far
    the sums cancel, and for dweight and dbias the root of their terms' squares."""

    def size(values: Any) -> Array:
        return np.abs(exact.lower(values))

    def mean(values: Any) -> Any:
        return values.sum(axis=-1, keepdims=True) / exact.LONG(max(values.shape[-1], 1))

    upstream = exact.fit(view.rows(dy), known.xhat)
    g = upstream if weight is None else upstream * exact.fit(view.per_element(weight), known.xhat)
    scale = size(g)
    if known.own:
        scale = scale + size(known.xhat * mean(g * known.xhat)) + (size(mean(g)) if known.centred else 0)
    sums = (np.sqrt(view.parameter_sums(size(terms) ** 2)) for terms in (upstream * known.xhat, upstream))
    return view.unrows(scale * exact.lower(known.rstd), shape), *sums


def check_exactly(call: Call, view: exact.View, dy: Array, eps: float, what: str, *, centre: bool = True) -> None:
    """A norm with its own statistics within the promised bounds: y 4 ULP, dx 8 ULP at the sum of its terms' magnitudes.

    Sums over samples: 8 ULP at the larger of the sum and the root of its terms' squares.
    """
    x, weight, bias = call.x, call.arguments.get("weight"), call.arguments.get("bias")
    known = exact.standardise(view, x, eps, centre=centre)
    y, ctx = call.fresh().forward()
    f = exact.forward(view, x, weight, bias, eps, centre=centre, known=known)
    assert y.dtype == x.dtype, what
    within(y, f.y, f.scale, 4, f"{what}: y")
    grads = call.backward(dy, ctx)
    b = exact.backward(view, x, dy, weight, eps, centre=centre, known=known)
    dx_scale, dweight_scale, dbias_scale = strict_scales(view, known, dy, weight, x.shape)
    assert grads.dx.dtype == x.dtype, what
    within(grads.dx, b.dx, dx_scale, 8, f"{what}: dx")
    for name, value, scale in (("dweight", b.dweight, dweight_scale), ("dbias", b.dbias, dbias_scale)):
        got = getattr(grads, name)
        assert (got is None) == (call.arguments.get(name[1:]) is None), f"{what}: {name}"
        if got is not None:
            assert got.dtype == compute_type(x) and got.shape == call.arguments[name[1:]].shape, f"{what}: {name}"
            within(got.ravel(), value, np.maximum(scale, np.abs(value)), 8, f"{what}: {name}")


def check_against_reference(call: Call, dy: Any, tolerance: float = 1e-9) -> None:
    """float64 results agree with the reference's, all gradients and everything that is written included."""
    twin, ours = call.fresh(), call.results(dy)
    y, ctx = getattr(reference, f"{call.name}_forward")(**twin.arguments)
    grads = getattr(reference, f"{call.name}_backward")(dy, ctx)
    theirs = {"y": y, **{n: twin.arguments[n] for n in RUNNING if twin.arguments.get(n) is not None}}
    theirs |= dict(zip(grads._fields, grads, strict=True))
    assert set(theirs) == set(ours) - {"sum"}, (call.name, set(theirs), set(ours))
    for name, value in theirs.items():
        if value is None:
            assert ours[name] is None, name
            continue
        assert np.asarray(ours[name]).dtype == np.asarray(value).dtype, name
        # What is zero in theory is rounding noise of values around 1 in both.
        scale = max(float(np.abs(np.asarray(value, np.float64)).max(initial=0)), 1e-3)
        np.testing.assert_allclose(ours[name], value, rtol=tolerance, atol=tolerance * scale, err_msg=name)
