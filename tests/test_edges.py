"""Promise 5: nothing breaks it. What is unusual and right in the contract's table of edges, for every operation that it fits.

Arrays amid others, read-only, empty, constant, enormous; values that are infinite, NaN or too small for their type. What is
refused is in test_faults.py.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from support import (
    CHANNEL_NORMS,
    OPERATIONS,
    RUNNING,
    Call,
    compute_type,
    draw,
    dtype_of,
    every_dtype,
    paths,
    same_bits,
)

import fastnorm as fn

# --------------------------------------------------------------------------------------------------- around the arrays


def amid(a: np.ndarray, filling: float, gap: int = 37) -> tuple[np.ndarray, np.ndarray]:
    """A copy of an array with `gap` elements of something else on either side, and all of that memory."""
    memory = np.full(a.size + 2 * gap, filling, a.dtype)
    view = memory[gap : gap + a.size].reshape(a.shape)
    view[...] = a
    return view, memory


@every_dtype
@paths(lambda call: call.differentiable and call.arguments.get("axis", 1) != -1)
def test_what_lies_beside_is_neither_read_nor_written(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Ragged ends of every length: NaN beside the inputs changes nothing, and what is beside the outputs stays."""
    operation = OPERATIONS[path]
    for n in (2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65):
        shape = (*operation.small[:-1], n)
        if path == "group_norm_vectors":
            shape = (*shape[:-1], 5 * n)
        call = operation.make(rng, dtype_of(dtype), shape)
        dy = call.upstream(rng)
        expected = call.results(dy)
        fenced = call.fresh()
        for name, a in call.arguments.items():
            if isinstance(a, np.ndarray) and a.dtype.kind != "i":
                fenced.arguments[name] = amid(a, np.nan)[0]
        more = {}
        if call.accepts("out"):
            more["out"], memory = amid(np.zeros_like(call.x), 7)
        y, ctx = fenced.forward(**more)
        same_bits(y, expected["y"], f"{path} {shape}: y")
        dx, beside = amid(np.zeros_like(call.x), 7)
        g = amid(dy, np.nan)[0] if np.ndim(dy) else dy
        grads = call.backward(g, ctx, out=dx)
        for name, value in grads._asdict().items():
            same_bits(value, expected[name], f"{path} {shape}: {name}")
        for m in (beside, *([memory] if more else [])):
            assert (m[:37] == 7).all() and (m[-37:] == 7).all(), f"{path} {shape} wrote beside its output"


# ---------------------------------------------------------------------------------------------- read-only, empty, constant


@every_dtype
@paths()
def test_read_only_arguments(path: str, dtype: str, rng: np.random.Generator) -> None:
    """x, dy, parameters and targets may be read-only."""
    call = OPERATIONS[path].call(rng, dtype)
    dy = call.upstream(rng)
    expected = call.results(dy)
    frozen = call.fresh()
    for name, a in frozen.arguments.items():
        if isinstance(a, np.ndarray) and not (name in RUNNING and "running_mean" in expected):
            a.flags.writeable = False
    if not call.differentiable:
        same_bits(frozen.plain()[0], expected["mean"])
        return
    y, ctx = frozen.forward()
    same_bits(y, expected["y"])
    if np.ndim(dy):
        dy.flags.writeable = False
    same_bits(call.backward(dy, ctx)[0], next(v for n, v in expected.items() if n in ("dx", "dv", "dlogits")))


@every_dtype
@paths(lambda call: call.differentiable and call.name != "cross_entropy")
def test_empty_arrays(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Any axis of length zero: empty output, zero gradients of the parameters, running statistics untouched. (Of no
    costs there is no mean.)"""
    operation = OPERATIONS[path]
    full = operation.call(rng, dtype)
    for gone in range(full.x.ndim):
        shape = tuple(0 if a == gone else n for a, n in enumerate(full.x.shape))
        call = operation.make(rng, dtype_of(dtype), shape)
        if call.name == "group_norm" and call.x.shape[call.arguments.get("axis", 1)] == 0:
            continue  # 0 channels are divisible by any number of groups, but mean nothing
        before = call.fresh()
        y, ctx = call.forward()
        assert y.shape == shape and y.dtype == call.x.dtype
        for name in RUNNING:
            if call.arguments.get(name) is not None:
                same_bits(call.arguments[name], before.arguments[name], name)
        grads = call.backward(np.zeros_like(y), ctx)
        assert grads[0].shape == shape
        for name in grads._fields[1:]:
            value = getattr(grads, name)
            assert value is None or not np.asarray(value, np.float64).any(), f"{name} of shape {shape}"
            if name in ("dweight", "dbias"):
                assert value is None or value.shape == call.arguments[name[1:]].shape
        out = np.zeros_like(call.x)
        if call.accepts("out"):
            assert call.plain(out=out) is out


@every_dtype
@pytest.mark.parametrize("size", [1e-40, 1e-20, 1.0, 1234.0, 1.0000001e10, 1e30, 3e38])
def test_constant_input_gives_exactly_beta(size: float, dtype: str, rng: np.random.Generator) -> None:
    """xhat is exactly zero at any magnitude, length and eps > 0."""
    wide = compute_type(dtype_of(dtype))
    with np.errstate(over="ignore"):
        value = np.asarray(size).astype(dtype_of(dtype))
    if not np.isfinite(value.astype(np.float64)):
        pytest.skip("beyond the type's range")
    for n in (2, 3, 7, 17, 33, 100, 4099):
        weight, bias = draw(rng, (3,), wide), draw(rng, (3,), wide)
        x = np.full((2, 3, n), value)
        long = {"weight": draw(rng, (n,), wide), "bias": draw(rng, (n,), wide)}
        logits = {"mean_logits": draw(rng, (3,), wide), "var_logits": draw(rng, (3,), wide)}
        for eps in (1e-12, 1e-5, 1.0):
            affine = {"weight": weight, "bias": bias, "eps": eps}
            for call in (
                Call("batch_norm", {"x": x, "training": True, **affine}),
                Call("batch_norm", {"x": np.full((n, 3), value), "training": True, **affine}),
                Call("batch_norm", {"x": np.full((2, n, 3), value), "training": True, "axis": -1, **affine}),
                Call("instance_norm", {"x": x, **affine}),
                Call("group_norm", {"x": x, "num_groups": 1, **affine}),
                Call("group_norm", {"x": np.full((2, n, 3), value), "num_groups": 3, "axis": 2, **affine}),
                Call("layer_norm", {"x": x, "normalized_shape": n, **long, "eps": eps}),
                Call("switchable_norm", {"x": x, **logits, "training": True, **affine}),
            ):
                y = call.plain()
                axis = -1 if call.name == "layer_norm" else call.arguments.get("axis", 1)
                beta = call.arguments["bias"].astype(y.dtype)
                beta = beta.reshape([-1 if a == axis % y.ndim else 1 for a in range(y.ndim)])
                what = f"{call.name}, {call.x.shape}, eps {eps}, axis {axis}"
                np.testing.assert_array_equal(y, np.broadcast_to(beta, y.shape), what)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_dtype
@paths(lambda call: True, "activation")
def test_relu_lets_nan_through(path: str, dtype: str, bad: float, rng: np.random.Generator) -> None:
    """A NaN is not hidden as 0: what is NaN without the ReLU is NaN with it. (Given statistics keep infinities.)"""
    call = OPERATIONS[path].call(rng, dtype)
    call = call.fresh(activation=None, **({"residual": None} if "residual" in call.arguments else {}))
    call.x[0, 0] = bad
    plain, relu = call.plain(), call.plain(activation="relu") if "activation" not in call.arguments else None
    if relu is None:
        relu = call.replaced(activation="relu").plain()
    given = not call.arguments.get("training", call.arguments.get("use_input_stats", call.name != "batch_norm"))
    assert np.isnan(plain.astype(np.float64)).any() != (given and np.isinf(bad))
    np.testing.assert_array_equal(np.isnan(relu.astype(np.float64)), np.isnan(plain.astype(np.float64)))


@paths(lambda call: call.name in (*CHANNEL_NORMS, "layer_norm", "rms_norm") and call.arguments.get("bias") is not None)
def test_a_bad_gradient_reaches_what_it_must(path: str, rng: np.random.Generator) -> None:
    """One NaN in dy: dbias of its channel or column is NaN, of no other."""
    call = OPERATIONS[path].call(rng, "float32")
    dy, (y, ctx) = call.upstream(rng), call.forward()
    at = tuple(n // 2 for n in dy.shape)
    if call.arguments.get("activation"):
        at = tuple(np.argwhere(y > 0)[7])
    clean = call.backward(dy, ctx)
    dy = dy.copy()
    dy[at] = np.nan
    grads = call.backward(dy, ctx)
    hit = at[-call.arguments["bias"].ndim :] if call.name == "layer_norm" else (at[call.arguments.get("axis", 1)],)
    expected = np.zeros(call.arguments["bias"].shape, bool)
    expected[hit] = True
    for name in ("dweight", "dbias"):
        got, wanted = getattr(grads, name), getattr(clean, name)
        np.testing.assert_array_equal(np.isnan(got), expected, name)
        np.testing.assert_allclose(got[~expected], wanted[~expected], 1e-6, 1e-6, err_msg=name)
    assert np.isnan(grads.dx[at])


@pytest.mark.skipif("FASTNORM_TEST_LARGE" not in os.environ, reason="set FASTNORM_TEST_LARGE to use 16 GB of memory")
@pytest.mark.parametrize("path", ["batch_norm_spans", "batch_norm_columns", "group_norm", "layer_norm", "softmax"])
def test_more_than_2_to_the_31_elements(path: str) -> None:
    """The last rows of more than 2^31 float16 elements are what they are in a small array, forward and backward."""
    with open("/proc/meminfo") as f:
        free = int(next(line for line in f if line.startswith("MemAvailable")).split()[1]) << 10
    if free < 16 << 30:
        pytest.skip("needs 16 GB of free memory")
    rng = np.random.default_rng(5)
    block = draw(rng, (64, 32768), np.float16)
    x = np.empty((1025, 64, 32768), np.float16)
    x[...] = block
    if path == "batch_norm_columns":
        x = x.reshape(-1, 64)
    call = {
        "batch_norm_spans": lambda a: Call("batch_norm", {"x": a, "training": True}),
        "batch_norm_columns": lambda a: Call("batch_norm", {"x": a, "training": True}),
        "group_norm": lambda a: Call("group_norm", {"x": a, "num_groups": 4}),
        "layer_norm": lambda a: Call("layer_norm", {"x": a, "normalized_shape": 32768}),
        "softmax": lambda a: Call("softmax", {"x": a}),
    }[path]
    n = len(x) // 1025
    expected, small = call(x[:n].copy()).forward()
    y, ctx = call(x).forward()
    tolerance = 2.0**-10  # batch statistics of repeated data are the same up to rounding
    for part in (y[:n], y[-n:]):
        np.testing.assert_allclose(part.astype(np.float32), expected.astype(np.float32), tolerance, tolerance)
    del y
    gradient = call(x).backward(x, ctx)[0]
    expected = call(x[:n].copy()).backward(x[:n], small)[0]
    for part in (gradient[:n], gradient[-n:]):
        np.testing.assert_allclose(part.astype(np.float32), expected.astype(np.float32), 4e-3, 4e-3)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 8), (4, 3, 100)])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_gradient_behind_given_statistics_does_not_depend_on_x(shape: tuple[int, ...], bad: float) -> None:
    """dx = gamma·dy/sqrt(running_var + eps), also where x is no number."""
    x, dy = np.ones(shape, np.float32), np.full(shape, 0.5, np.float32)
    x[1, 1] = bad
    _, ctx = fn.batch_norm_forward(x, np.zeros(3, np.float32), np.ones(3, np.float32))
    dx = fn.batch_norm_backward(dy, ctx).dx
    np.testing.assert_array_equal(dx, np.full(shape, np.float32(0.5 / np.sqrt(1 + 1e-5))))


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_too_small_for_a_half_type_become_zero(storage: str, sign: int) -> None:
    """Results between 0 and the least of the type: zeros, in outputs and in running statistics."""
    dtype = dtype_of(storage)
    mean, var = np.zeros(1, dtype), np.zeros(1, dtype)
    fn.batch_norm(np.array([[1.0], [3.0]]).astype(dtype) * dtype.type(sign), mean, var, training=True, momentum=1e-46)
    assert mean[0] == 0 and var[0] == 0
    x = (np.arange(4).reshape(4, 1) * (1e12 if storage == "bfloat16" else 1e4)).astype(dtype)
    _, ctx = fn.batch_norm_forward(x, training=True)
    tiny = 1e-36 if storage == "bfloat16" else 1e-7
    dy = (np.array([[1], [2], [-1], [3]]) * sign * tiny).astype(dtype)
    assert np.isfinite(fn.batch_norm_backward(dy, ctx).dx.astype(np.float32)).all()


def test_a_small_number_beside_large_ones_in_float16() -> None:
    """The mean of ±60000 and 5e-4 is known as well as float knows it, whatever the layout."""
    x = np.full(64, 5e-4, np.float16)
    x[:16:2], x[1:16:2] = 60000, -60000
    beta = np.full(64, 1e6, np.float32)
    wide = x.astype(np.float64)
    expected = (wide[20] - wide.mean()) / np.sqrt(wide.var() + 1e-5) * 1e6
    for y in (
        fn.layer_norm(x[None], 64, beta)[0],
        fn.group_norm(x[None, None], 1, beta[:1])[0, 0],
        fn.instance_norm(x[None, :, None], weight=beta[:1], axis=-1)[0, :, 0],
    ):
        assert abs(float(y[20]) - expected) <= np.spacing(np.float16(expected))
