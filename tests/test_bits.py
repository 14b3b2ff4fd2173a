"""Promise 2: the same bits for any number of threads, at every instruction set, whatever is around the data in memory.

Method: everything that a forward and a backward produce or write (y, gradients, sums, running statistics) is compared
byte for byte between machines, repetitions, layouts, alignments, fused and unfused forms, and batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import (
    CHANNEL_NORMS,
    OPERATIONS,
    Call,
    compute_type,
    draw,
    dtype_of,
    every_dtype,
    machines,
    paths,
    same_bits,
)

import fastnorm as fn
from fastnorm._kernels import core


def check_machines(call: Call, dy: Any, what: str) -> None:
    """Every instruction set and number of threads gives the first one's bits."""
    first: dict[str, Any] = {}
    for machine in machines():
        found = call.results(dy)
        first = first or found
        for name, value in found.items():
            same_bits(value, first[name], f"{what}, {machine}: {name}")


@every_dtype
@paths()
def test_instruction_sets(path: str, dtype: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, dtype)
    check_machines(call, call.upstream(rng), f"{path} in {dtype}")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@paths()
def test_threads(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Arrays that are worth seven threads, with tails that no number of threads divides."""
    call = OPERATIONS[path].call(rng, dtype, large=True)
    check_machines(call, call.upstream(rng), f"{path} in {dtype}")


def normalizes_data(call: Call) -> bool:
    return call.name.endswith(("h_norm", "p_norm", "e_norm", "r_norm", "s_norm", "moments"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@paths(normalizes_data)
def test_extreme_values_on_every_machine(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Channels or rows whose squares overflow or underflow take another path through the kernels, on every machine."""
    call = OPERATIONS[path].call(rng, dtype)
    x = call.x
    factors = np.array([1, 1e30, 1e-30, 3e37, 1e-39, 0]).astype(np.float32)
    if path.startswith(CHANNEL_NORMS) and call.arguments.get("axis", 1) == 1:
        shape = (1, x.shape[1]) + (1,) * (x.ndim - 2)
    else:
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    x = (x.astype(np.float32) * np.resize(factors, shape)).astype(x.dtype)
    check_machines(call.replaced(**{call.first: x}), call.upstream(rng), path)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_signaling_nan_stays_nan(dtype: str, axis: int, rng: np.random.Generator) -> None:
    """Behind a ReLU dresidual is dy or 0, without arithmetic that would make its NaN quiet before it is rounded."""
    x, dy, residual = (draw(rng, (3, 50, 37), dtype_of(dtype)) for _ in range(3))
    exponent, quiet = {"float16": (0x7C00, 0x200), "bfloat16": (0x7F80, 0x40)}[dtype]
    words = dy.view(np.uint16).reshape(-1)[::7]
    words[...] = exponent | rng.integers(1, quiet, words.size) | rng.choice([0, 0x8000], words.size)
    mean, var = (np.ones(x.shape[axis], np.float32) for _ in range(2))
    for machine in machines():
        y, ctx = fn.batch_norm_forward(x, mean, var, axis=axis, residual=residual, activation="relu")
        got = fn.batch_norm_backward(dy, ctx).dresidual
        expected = np.where(y > 0, dy.astype(np.float32), 0)
        np.testing.assert_array_equal(got.astype(np.float32), expected, f"{machine}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_nan_of_any_payload_stays_nan(dtype: str, rng: np.random.Generator) -> None:
    """The largest payload, rounded up as a number is, would become -0."""
    weight = np.full(100, 0x7FFFFFFF, np.uint32).view(np.float32)
    for machine in machines():
        assert np.isnan(fn.layer_norm(draw(rng, (5, 100), dtype_of(dtype)), 100, weight).astype(np.float32)).all(), (
            machine
        )


@paths()
def test_run_after_run(path: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, "float32", large=True)
    dy = call.upstream(rng)
    one, two = call.results(dy), call.results(dy)
    for name, value in one.items():
        same_bits(value, two[name], f"{path}: {name}")


def shifted(a: np.ndarray, elements: int) -> np.ndarray:
    """A copy of an array that starts so many elements after an aligned address."""
    memory = np.empty(a.size + 64, a.dtype)
    start = (-memory.ctypes.data // a.itemsize) % (64 // a.itemsize) + elements
    view = memory[start : start + a.size].reshape(a.shape)
    view[...] = a
    return view


@every_dtype
@paths()
def test_alignment_does_not_matter(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Memory that starts in the middle of a vector, of a cache line, or (a copy's) at any byte."""
    call = OPERATIONS[path].call(rng, dtype)
    dy = call.upstream(rng)
    expected = call.results(dy)
    for elements in (0, 1, 3, 8):
        moved = call.replaced(
            **{
                n: shifted(a, elements)
                for n, a in call.arguments.items()
                if isinstance(a, np.ndarray) and n != "targets"
            }
        )
        g = shifted(dy, elements) if np.ndim(dy) else dy
        y, ctx = (moved.fresh(**{call.first: moved.x}).forward()) if call.differentiable else (None, None)
        if not call.differentiable:
            for got, name in zip(moved.plain(), ("mean", "var"), strict=True):
                same_bits(got, expected[name], f"{path}, {elements} elements on: {name}")
            continue
        same_bits(y, expected["y"], f"{path}, {elements} elements on: y")
        for name, got in moved.backward(g, ctx)._asdict().items():
            same_bits(got, expected[name], f"{path}, {elements} elements on: {name}")


@every_dtype
@paths(lambda call: True, "out")
def test_out_gives_the_same_bits(path: str, dtype: str, rng: np.random.Generator) -> None:
    """y and dx into a given array; y in place of x; dx in place of dy."""
    call = OPERATIONS[path].call(rng, dtype)
    dy = call.upstream(rng)
    expected = call.results(dy)
    for shift in (0, 1, 5):
        out = shifted(np.zeros_like(call.x), shift)
        assert call.fresh().plain(out=out) is out
        same_bits(out, expected["y"], f"{path}: out")
    c = call.fresh()
    assert c.plain(out=c.x) is c.x
    same_bits(c.x, expected["y"], f"{path}: out=x")
    y, ctx = call.fresh().forward(out=np.empty_like(call.x))
    same_bits(y, expected["y"], f"{path}: forward's out")
    out = np.empty_like(call.x)
    grads = call.backward(dy, ctx, out=out)
    assert grads[0] is out
    same_bits(out, expected[grads._fields[0]], f"{path}: backward's out")
    same_bits(call.fresh().plain(), expected["y"], f"{path}: without a context")


@every_dtype
@paths(lambda call: call.differentiable and call.name != "cross_entropy" and "residual" not in call.arguments)
def test_gradient_in_place_of_the_upstream_gradient(path: str, dtype: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, dtype)
    dy = call.upstream(rng)
    expected = call.results(dy)
    _, ctx = call.fresh().forward()
    mine = dy.copy()
    grads = call.backward(mine, ctx, out=mine)
    assert grads[0] is mine
    for name, got in grads._asdict().items():
        same_bits(got, expected[name], f"{path}, in place: {name}")


@every_dtype
@paths()
def test_copied_layouts_give_the_bits_of_contiguous_data(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Sliced, reversed, transposed and broadcast inputs: the values count, not the strides."""
    call = OPERATIONS[path].call(rng, dtype)
    dy = call.upstream(rng)
    expected = call.results(dy)
    x = call.x
    wide = np.zeros(tuple(2 * n + 1 for n in x.shape), x.dtype)
    every_other = wide[tuple(slice(1, None, 2) for _ in x.shape)]
    backwards = np.empty_like(x)[tuple(slice(None, None, -1) for _ in x.shape)]
    for what, view in (("every other element", every_other), ("backwards", backwards)):
        view[...] = x
        moved = call.fresh(**{call.first: x})
        moved.arguments[call.first] = view
        if not call.differentiable:
            for got, name in zip(moved.plain(), ("mean", "var"), strict=True):
                same_bits(got, expected[name], f"{path}, {what}: {name}")
            continue
        g = dy
        if np.shape(dy) == x.shape:
            g = np.empty_like(wide)[tuple(slice(0, -1, 2) for _ in x.shape)]
            g[...] = dy
        y, ctx = moved.forward()
        same_bits(y, expected["y"], f"{path}, {what}: y")
        for name, got in moved.backward(g, ctx)._asdict().items():
            same_bits(got, expected[name], f"{path}, {what}: {name}")


@pytest.mark.parametrize("layout", ["sliced", "reversed", "Fortran", "C"])
@paths(lambda call: call.differentiable, "out")
def test_out_like_y_fits_any_layout(path: str, layout: str, rng: np.random.Generator) -> None:
    """Whatever the memory of x, an `out` like the y that comes without one is accepted, and so it is for the gradient."""
    call = OPERATIONS[path].call(rng, "float32")
    x, dy = call.x, call.upstream(rng)
    if layout == "sliced":
        view = np.zeros(tuple(2 * n for n in x.shape), x.dtype)[tuple(slice(None, None, 2) for _ in x.shape)]
    elif layout == "reversed":
        view = np.zeros_like(x)[tuple(slice(None, None, -1) for _ in x.shape)]
    else:
        view = np.zeros(x.shape, x.dtype, order=layout[0])
    view[...] = x
    call = call.replaced(**{call.first: view})
    y, ctx = call.forward()
    dx = call.backward(dy, ctx)[0]
    out, gradient = np.empty_like(y), np.empty_like(dx)
    assert call.plain(out=out) is out
    same_bits(out, y, f"{path}, {layout}: y")
    assert call.backward(dy, ctx, out=gradient)[0] is gradient
    same_bits(gradient, dx, f"{path}, {layout}: dx")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@paths(lambda call: True, "residual")
def test_residual_is_the_unfused_sum(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Fused and unfused give the same bits: norm(x + r) for layer and RMS norm, norm(x) + r and ReLU for batch norm."""
    call = OPERATIONS[path].call(rng, dtype)
    r = draw(rng, call.x.shape, call.x.dtype)
    relu = call.arguments.get("activation") == "relu"
    fused, ctx = call.fresh(residual=r).forward()
    wide = compute_type(call.x)
    dy = call.upstream(rng)
    if call.name == "batch_norm":
        y = call.fresh(residual=None, activation=None).plain()
        y = (y.astype(wide) + r.astype(wide)).astype(y.dtype)
        y = np.where(y > 0, y, y.dtype.type(0)) if relu else y
        same_bits(fused, y, f"{path}: y")
        g = np.where(y > 0, dy, dy.dtype.type(0)) if relu else dy
        _, plain = call.fresh(residual=None, activation=None).forward()
        unfused = call.backward(g, plain)
        grads = call.backward(dy, ctx)
        same_bits(grads.dresidual, g, f"{path}: dresidual")
    else:
        total = (call.x.astype(wide) + r.astype(wide)).astype(call.x.dtype)
        same_bits(ctx.sum, total, f"{path}: sum")
        y, plain = call.replaced(x=total, residual=None).forward()
        same_bits(fused, y, f"{path}: y")
        unfused, grads = call.backward(dy, plain), call.backward(dy, ctx)
        assert grads.dresidual is grads.dx
    for name in ("dx", "dweight", "dbias"):
        same_bits(getattr(grads, name), getattr(unfused, name), f"{path}: {name}")


@every_dtype
@paths(lambda call: True, "activation")
def test_relu_is_the_unfused_relu(path: str, dtype: str, rng: np.random.Generator) -> None:
    call = OPERATIONS[path].call(rng, dtype)
    call = call.replaced(**({"residual": None} if "residual" in call.arguments else {}))
    dy = call.upstream(rng)
    y, plain = call.fresh(activation=None).forward()
    z, fused = call.fresh(activation="relu").forward()
    zero = y.dtype.type(0)
    same_bits(z, np.where(y > 0, y, zero), f"{path}: y")
    unfused = call.backward(np.where(y > 0, dy, zero), plain)
    for name, got in call.backward(dy, fused)._asdict().items():
        same_bits(got, getattr(unfused, name), f"{path}: {name}")


@every_dtype
@paths(lambda call: call.name in ("layer_norm", "rms_norm", "instance_norm", "group_norm", "softmax", "log_softmax"))
def test_a_sample_does_not_see_its_batch(path: str, dtype: str, rng: np.random.Generator) -> None:
    """Layer, RMS, instance and group norm, softmax: a sample's y and dx are those it has alone."""
    for large in {False, dtype == "float32"}:
        call = OPERATIONS[path].call(rng, dtype, large=large)
        dy = call.upstream(rng)
        every = call.results(dy)
        for i in {0, 1, len(dy) // 2, len(dy) - 1}:
            changes = {n: call.arguments[n][i : i + 1] for n in (call.first, "residual") if n in call.arguments}
            alone = call.replaced(**changes).results(dy[i : i + 1])
            for name in ("y", "dx"):
                same_bits(alone[name], every[name][i : i + 1], f"{path}: {name} of sample {i} of {call.x.shape}")


@every_dtype
@pytest.mark.parametrize("length", [17, 1024, 1025])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_gamma_of_many_rows_is_that_of_one(
    name: str, length: int, dtype: str, isa: str, rng: np.random.Generator
) -> None:
    """Gamma is widened once for many rows of up to 1024, anew for each of few or longer ones: dx has the same bits."""
    x, dy = (draw(rng, (9, length), dtype_of(dtype)) for _ in range(2))
    weight = draw(rng, (length,), dtype_of(dtype))
    forward, backward = getattr(fn, f"{name}_forward"), getattr(fn, f"{name}_backward")
    every = backward(dy, forward(x, length, weight)[1]).dx
    for i in (0, 8):
        alone = backward(dy[i : i + 1], forward(x[i : i + 1], length, weight)[1]).dx
        same_bits(alone, every[i : i + 1], f"row {i}")


@every_dtype
@pytest.mark.parametrize("name", ["batch_norm", "instance_norm"])
def test_a_channel_does_not_see_the_others(name: str, dtype: str, rng: np.random.Generator) -> None:
    """Where statistics are per channel, along spans: y and dx of a channel are those it has alone."""
    for shape in ((5, 7, 67), (5, 7, 8, 9), (3, 7, 4099)):
        x, dy = draw(rng, shape, dtype_of(dtype)), draw(rng, shape, dtype_of(dtype))
        call = Call(name, {"x": x} | ({"training": True} if name == "batch_norm" else {}))
        every = call.results(dy)
        for c in (0, 3, 6):
            alone = call.replaced(x=np.ascontiguousarray(x[:, c : c + 1])).results(
                np.ascontiguousarray(dy[:, c : c + 1])
            )
            for field in ("y", "dx"):
                same_bits(alone[field], every[field][:, c : c + 1], f"{name} {shape} channel {c}: {field}")


@pytest.mark.parametrize("shape", [(100, 200), (16, 129), (40, 1029), (32, 10, 49), (100, 3, 63), (32, 200, 5)])
def test_bits_of_columns_on_any_number_of_threads(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Narrow, ragged and short columns, with threads enough for a few of them each."""
    x, dy = draw(rng, shape, np.float32), draw(rng, shape, np.float32)
    call = Call("batch_norm", {"x": x, "training": True})
    grain, threads = core.set_grain(512), core.get_num_threads()
    try:
        core.set_num_threads(1)
        one = call.results(dy)
        for n in (2, 7):
            core.set_num_threads(n)
            for field, value in call.results(dy).items():
                if value is not None:
                    same_bits(np.asarray(value), np.asarray(one[field]), f"{field} on {n} threads")
    finally:
        core.set_grain(grain)
        core.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 7])
def test_a_sample_of_columns_alone(threads: int, rng: np.random.Generator) -> None:
    """Channels-last instance and group norm: a sample's bits are its own, however many samples and threads there are."""
    x = draw(rng, (9, 60, 200), np.float32)
    grain, before = core.set_grain(512), core.get_num_threads()
    core.set_num_threads(threads)
    try:
        for norm in (lambda a: fn.instance_norm(a, axis=-1), lambda a: fn.group_norm(a, 40, axis=-1)):
            same_bits(norm(x)[3], norm(x[3:4].copy())[0], "sample 3")
    finally:
        core.set_grain(grain)
        core.set_num_threads(before)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0)])
def test_a_sample_in_any_order_of_memory(order: tuple[int, ...], rng: np.random.Generator) -> None:
    """Alone and in the batch, also where samples are not the outermost axis of memory."""
    x = draw(rng, (4, 12, 15), np.float32)
    z = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))

    def both(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, ctx = fn.group_norm_forward(a, 3)
        return y, fn.group_norm_backward(a, ctx).dx

    whole = both(z)
    for i in range(4):
        for name, part, all_ in zip(("y", "dx"), both(z[i : i + 1]), whole, strict=True):
            same_bits(np.ascontiguousarray(part), np.ascontiguousarray(all_[i : i + 1]), f"{name} of sample {i}")
