"""Batch norm: values, gradients and running statistics, along spans and down columns, in training and evaluation.

Method: exact arithmetic for the bounds (y within 4 ULP at |gamma * xhat| + |beta|, dx within 8 at the size of its terms),
the float64 reference and finite differences for everything fused, the theory's identities for what they relate.
"""

from __future__ import annotations

import itertools
from typing import Any

import exact
import numpy as np
import pytest
from support import (
    CHANNEL_NORMS,
    LENGTHS,
    Call,
    check_against_reference,
    check_exactly,
    check_slopes,
    compute_type,
    draw,
    dtype_of,
    every_dtype,
    same_bits,
    same_layout,
    within,
)

import fastnorm as fn
from fastnorm._kernels import core

SHAPES = [
    *(((2, 3, n), 1) for n in LENGTHS),  # spans, or columns where n < 64
    *(((n, 3), 1) for n in LENGTHS if n > 1),  # columns, in several bands
    *(((2, n), 1) for n in LENGTHS if n < 5000),  # columns, in several tiles
    ((5, 6, 7, 7), 1),
    ((3, 4, 1, 1), 1),
    ((2, 1, 5), 1),
    ((4, 3, 2, 3, 5), 1),
    ((3, 2, 4, 4, 4), 1),
    ((2, 5, 3, 7), -1),
    ((3, 70, 7), 2),
    ((33, 4, 5), 0),
    ((19, 400, 3), 0),
    ((70, 130, 3, 3), 1),
    ((3, 2, 150, 450), 1),  # several slots of a span
]


def training(rng: np.random.Generator, shape: tuple[int, ...], axis: int, dtype: Any, **options: Any) -> Call:
    c, wide = shape[axis], compute_type(dtype)
    arguments = {"x": draw(rng, shape, dtype), "weight": draw(rng, (c,), wide), "bias": draw(rng, (c,), wide)}
    return Call("batch_norm", arguments | {"training": True, "axis": axis} | options)


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_training_values_and_gradients(shape: tuple[int, ...], axis: int, dtype: str, rng: np.random.Generator) -> None:
    if dtype != "float32" and np.prod(shape) > 100000:
        shape = (*shape[:-1], shape[-1] // 4) if axis % len(shape) != len(shape) - 1 else (shape[0] // 4, *shape[1:])
    call = training(rng, shape, axis, dtype_of(dtype))
    dy = draw(rng, shape, dtype_of(dtype), 0.1)
    check_exactly(call, exact.view("batch", shape, axis=axis), dy, 1e-5, f"{shape}, axis {axis}, {dtype}")


@every_dtype
@pytest.mark.parametrize("given", [("weight",), ("bias",), ()])
@pytest.mark.parametrize("shape", [(3, 5, 67), (35, 5)])
def test_with_some_parameters(
    shape: tuple[int, ...], given: tuple[str, ...], dtype: str, rng: np.random.Generator
) -> None:
    call = training(rng, shape, 1, dtype_of(dtype))
    call = call.replaced(**{name: None for name in ("weight", "bias") if name not in given})
    dy = draw(rng, shape, dtype_of(dtype))
    check_exactly(call, exact.view("batch", shape), dy, 1e-5, f"{given} in {dtype}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 5, 67), (35, 5)])
def test_parameters_of_a_half_type(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """Parameters may have x's half type; they are widened, and their gradients are float32 all the same."""
    half = dtype_of(dtype)
    call = training(rng, shape, 1, half)
    narrow = {name: call.arguments[name].astype(half) for name in ("weight", "bias")}
    dy = draw(rng, shape, half)
    one = call.replaced(**narrow).results(dy)
    two = call.replaced(**{name: a.astype(np.float32) for name, a in narrow.items()}).results(dy)
    for name, value in one.items():
        same_bits(value, two[name], name)
    assert one["dweight"].dtype == one["dbias"].dtype == np.float32


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 67), 1), ((35, 70), 1), ((4, 3, 7, 7), 1), ((2, 5, 3, 7), -1)])
def test_evaluation_values_and_gradients(
    shape: tuple[int, ...], axis: int, dtype: str, rng: np.random.Generator
) -> None:
    """Given statistics are constants: dx = gamma / sqrt(running_var + eps) * dy, and they stay as they are."""
    call = training(rng, shape, axis, dtype_of(dtype), training=False)
    x, c, eps = call.x, shape[axis], 1e-3
    mean = draw(rng, (c,), compute_type(x))
    var = np.abs(draw(rng, (c,), compute_type(x)))
    call = call.replaced(running_mean=mean, running_var=var, eps=eps)
    dy = draw(rng, shape, dtype_of(dtype))
    used = call.fresh()
    y, ctx = used.forward()
    grads = used.backward(dy, ctx)
    same_bits(used.arguments["running_mean"], mean)
    same_bits(used.arguments["running_var"], var)
    view = exact.view("batch", shape, axis=axis)
    f = exact.forward(view, x, call.arguments["weight"], call.arguments["bias"], eps, mean=mean, var=var)
    b = exact.backward(view, x, dy, call.arguments["weight"], eps, mean=mean, var=var)
    within(y, f.y, f.scale, 4, "y")
    within(grads.dx, b.dx, b.dx_scale, 8, "dx")
    within(grads.dweight, b.dweight, np.maximum(b.dweight_scale, np.abs(b.dweight)), 8, "dweight")
    within(grads.dbias, b.dbias, np.maximum(b.dbias_scale, np.abs(b.dbias)), 8, "dbias")
    np.testing.assert_array_equal(ctx.mean, mean)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "shape", [(3, 5, 16), (2, 7, 17), (3, 600, 19), (2, 3, 31), (2, 5, 7, 7), (1, 9, 67), (2, 3, 300)]
)
@every_dtype
def test_evaluation_of_each_channel_alone(
    shape: tuple[int, ...],
    wide: bool,
    streamed: bool,
    dtype: str,
    isa: str,
    n_threads: int,
    rng: np.random.Generator,
) -> None:
    """Vectors hold the ends of some channels and the beginnings of others: none takes another's numbers, nor its wider arithmetic."""
    kind, c = compute_type(dtype_of(dtype)), shape[1]
    x, residual = (draw(rng, shape, dtype) for _ in range(2))
    mean, weight, bias = (rng.standard_normal(c).astype(kind) for _ in range(3))
    var = rng.uniform(0.5, 1.5, c).astype(kind)
    if wide:
        weight[1::2] *= 1e-33
    grain, size = core.set_grain(64), core.set_stream_bytes(1 if streamed else 1 << 40)
    try:
        for add, activation in ((None, None), (residual, None), (residual, "relu")):
            y = fn.batch_norm(x, mean, var, weight, bias, residual=add, activation=activation)
            for k in range(0, c, 1 + c // 20):
                one = slice(k, k + 1)
                alone = fn.batch_norm(
                    np.ascontiguousarray(x[:, one]),
                    *(a[one] for a in (mean, var, weight, bias)),
                    residual=None if add is None else np.ascontiguousarray(add[:, one]),
                    activation=activation,
                )
                same_bits(np.ascontiguousarray(y[:, one]), alone)
    finally:
        core.set_grain(grain)
        core.set_stream_bytes(size)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 67), 1), ((35, 5), 1), ((3, 4, 5, 2), 1), ((3, 5, 2, 4), -1)])
def test_fused_gradients(
    shape: tuple[int, ...], axis: int, mode: str, activation: Any, residual: bool, rng: np.random.Generator
) -> None:
    """In float64, against the reference and against finite differences."""
    call = training(rng, shape, axis, np.float64, training=mode == "training", activation=activation)
    running = {"running_mean": rng.standard_normal(shape[axis]), "running_var": rng.uniform(0.5, 2, shape[axis])}
    call = call.replaced(**running)
    fields = {"x": "dx", "weight": "dweight", "bias": "dbias"}
    if residual:
        call = call.replaced(residual=rng.standard_normal(shape))
        fields["residual"] = "dresidual"
    check_against_reference(call, rng.standard_normal(shape))
    check_slopes(call, fields, rng)


# ---------------------------------------------------------------------------------------------------- running statistics


@every_dtype
@pytest.mark.parametrize("momentum", [0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(3, 5, 67), (35, 5)])
def test_running_statistics(shape: tuple[int, ...], momentum: float, dtype: str, rng: np.random.Generator) -> None:
    """running = (1 - momentum) * running + momentum * batch, from the unbiased variance, within an ULP or two."""
    call = training(rng, shape, 1, dtype_of(dtype), momentum=momentum)
    wide = compute_type(call.x)
    mean, var = draw(rng, (5,), wide), np.abs(draw(rng, (5,), wide))
    moved_mean, moved_var = mean.copy(), var.copy()
    call.replaced(running_mean=moved_mean, running_var=moved_var).plain()
    m = call.x.size // 5
    f = exact.forward(exact.view("batch", shape), call.x, None, None, 1e-5)
    for moved, old, batch, scale in (
        (moved_mean, mean, f.mean, np.maximum(np.abs(f.mean), np.sqrt(f.var))),
        (moved_var, var, f.var * m / (m - 1), f.var * m / (m - 1)),
    ):
        expected = (1 - exact.LONG(momentum)) * old.astype(exact.LONG) + exact.LONG(momentum) * batch
        within(moved, expected, np.abs(old.astype(exact.LONG)) + momentum * scale, 2, "running statistic")
    if momentum == 0:
        same_bits(moved_mean, mean)
        same_bits(moved_var, var)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_running_statistics_of_a_half_type(dtype: str, rng: np.random.Generator) -> None:
    """float32 statistics with half data, or statistics of the half type, which are the float32 ones rounded once."""
    half = dtype_of(dtype)
    x = draw(rng, (3, 5, 67), half)
    wide = [np.zeros(5, np.float32), np.ones(5, np.float32)]
    narrow = [a.astype(half) for a in wide]
    for running in (wide, narrow):
        fn.batch_norm(x, *running, training=True)
    for a, b in zip(wide, narrow, strict=True):
        assert b.dtype == half
        same_bits(a.astype(half), b)


def test_statistics_move_along_strided_views(rng: np.random.Generator) -> None:
    """Every second element of a longer array, backwards: only these move."""
    x = draw(rng, (3, 5, 67), np.float32)
    dense = [np.zeros(5, np.float32), np.ones(5, np.float32)]
    memory = [np.full(11, 7, np.float32) for _ in range(2)]
    views = [m[9:0:-2] for m in memory]
    for view, start in zip(views, dense, strict=True):
        view[...] = start
    weight = draw(rng, (10,), np.float32)[::-2]
    y = fn.batch_norm(x, *dense, weight.copy(), training=True)
    z = fn.batch_norm(x, *views, weight, training=True)
    same_bits(y, z)
    for view, start, whole in zip(views, dense, memory, strict=True):
        same_bits(view, start)
        assert (whole[::2] == 7).all()


def test_context_shows_its_statistics(rng: np.random.Generator) -> None:
    x = draw(rng, (3, 5, 67), np.float32)
    _, ctx = fn.batch_norm_forward(x, training=True, eps=1e-3)
    mean, var = x.astype(np.float64).mean((0, 2)), x.astype(np.float64).var((0, 2))
    assert ctx.mean.dtype == ctx.rstd.dtype == np.float64 and ctx.mean.shape == ctx.rstd.shape == (5,)
    np.testing.assert_allclose(ctx.mean, mean, 1e-13, 1e-13)
    np.testing.assert_allclose(ctx.rstd, 1 / np.sqrt(var + 1e-3), 1e-7)


# -------------------------------------------------------------------------------------------------------------- layouts


def layouts(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> dict[str, np.ndarray]:
    """The same values in memory of every kind."""
    x = draw(rng, shape, dtype)
    n = x.ndim
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    odd = np.empty((*shape[:-1], 2 * shape[-1] + 1), dtype)[..., 1::2]
    odd[...] = x
    found = {
        "contiguous": x,
        "channels last by strides": np.moveaxis(last, -1, 1),
        "Fortran": np.asfortranarray(x),
        "sliced": odd,
        "negative strides": np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
        "batch reversed": np.ascontiguousarray(x[::-1])[::-1],
        "axes turned": np.ascontiguousarray(x.transpose(n - 1, *range(n - 1))).transpose(*range(1, n), 0),
        "channels first": np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
    }
    for name, view in found.items():
        np.testing.assert_array_equal(view, x, err_msg=name)
    return found


LAYOUTS = ["channels last by strides", "Fortran", "sliced", "negative strides", "batch reversed", "axes turned"]


@pytest.mark.parametrize("layout", [*LAYOUTS, "channels first"])
@pytest.mark.parametrize("shape", [(3, 5, 8, 9), (2, 70, 3, 3), (3, 5, 67), (1, 5, 8, 9), (3, 1, 8, 9)])
@every_dtype
def test_layouts(shape: tuple[int, ...], layout: str, dtype: str, rng: np.random.Generator) -> None:
    """x, dy and residual in any memory give values within the bounds; a dense layout is kept in y and dx."""
    x = layouts(rng, shape, dtype_of(dtype))[layout]
    dy = layouts(rng, shape, dtype_of(dtype))[layout]
    wide = compute_type(x)
    call = Call("batch_norm", {"x": x, "weight": draw(rng, (shape[1],), wide), "training": True})
    view = exact.view("batch", shape)
    f = exact.forward(view, x, call.arguments["weight"], None, 1e-5)
    b = exact.backward(view, x, dy, call.arguments["weight"], 1e-5)
    y, ctx = call.forward()
    grads = call.backward(dy, ctx)
    within(y, f.y, f.scale, 4, f"{layout}: y")
    within(grads.dx, b.dx, b.dx_scale, 8, f"{layout}: dx")
    within(grads.dweight, b.dweight, np.maximum(b.dweight_scale, np.abs(b.dweight)), 8, f"{layout}: dweight")
    if layout in ("channels last by strides", "Fortran", "axes turned", "channels first"):
        assert same_layout(y, x) and same_layout(grads.dx, x)
    mixed = call.backward(np.ascontiguousarray(dy), ctx)
    same_bits(mixed.dx, grads.dx, f"{layout}: contiguous dy")


@pytest.mark.parametrize("shape", [(3, 5, 8, 9), (35, 5), (2, 3, 67)])
@every_dtype
def test_channels_last_axis_is_the_strided_view(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """axis=-1 on an NHWC array and an NCHW view of the same memory: the same bits."""
    last = draw(rng, (shape[0], *shape[2:], shape[1]), dtype_of(dtype))
    dy = draw(rng, last.shape, dtype_of(dtype))
    weight = draw(rng, (shape[1],), compute_type(last))
    one = Call("batch_norm", {"x": last, "weight": weight, "training": True, "axis": -1}).results(dy)
    two = Call("batch_norm", {"x": np.moveaxis(last, -1, 1), "weight": weight, "training": True})
    y, ctx = two.forward()
    grads = two.backward(np.moveaxis(dy, -1, 1), ctx)
    same_bits(np.moveaxis(y, 1, -1), one["y"])
    same_bits(np.moveaxis(grads.dx, 1, -1), one["dx"])
    same_bits(grads.dweight, one["dweight"])


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (1, 3, 4, 1), (3, 6, 1, 70), (1, 1, 2, 1)])
@pytest.mark.parametrize("name", CHANNEL_NORMS)
def test_every_order_of_axes_in_memory(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """All 24 orders of four axes, channels on each axis: the values and gradients of the contiguous array."""
    x, dy = rng.standard_normal((2, *shape))
    for axis in range(0 if name == "batch_norm" else 1, 4):
        c = shape[axis]
        arguments: dict[str, Any] = {"weight": rng.standard_normal(c), "bias": rng.standard_normal(c), "axis": axis}
        arguments |= (
            {"num_groups": c} if name == "group_norm" else {"training": True} if name != "instance_norm" else {}
        )
        if name == "switchable_norm":
            arguments |= {"mean_logits": rng.standard_normal(3), "var_logits": rng.standard_normal(3)}
        if x.size // c // (1 if name == "batch_norm" else shape[0]) < 2:
            continue
        call = Call(name, {"x": x, **arguments})
        check_against_reference(call, dy)
        expected = call.results(dy)
        for order in itertools.permutations(range(4)):
            back = np.argsort(order)
            view = np.ascontiguousarray(x.transpose(order)).transpose(back)
            y, ctx = call.replaced(x=view).forward()
            grads = call.backward(dy, ctx)
            what = f"{name} {shape} axis {axis} order {order}"
            for field, value in (("y", y), *grads._asdict().items()):
                np.testing.assert_allclose(value, expected[field], 1e-11, 1e-11, err_msg=f"{what}: {field}")
            if name == "batch_norm":
                assert same_layout(y, view) and same_layout(grads.dx, view), what


# ------------------------------------------------------------------------------------------------------------ identities


@every_dtype
@pytest.mark.parametrize("shape", [(4, 3, 65), (65, 3)])
def test_gamma_sigma_and_beta_mean_give_the_input_back(
    shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    """gamma = sqrt(var + eps) and beta = mean: the identity, to 4 ULP at |x - mean| + |mean| and the gammas' rounding."""
    x = draw(rng, shape, dtype_of(dtype))
    wide, axes = compute_type(x), tuple(a for a in range(x.ndim) if a != 1)
    gamma = np.sqrt(x.astype(np.float64).var(axes) + 1e-5).astype(wide)
    beta = x.astype(np.float64).mean(axes).astype(wide)
    y = fn.batch_norm(x, weight=gamma, bias=beta, training=True)
    size = [1 if a != 1 else 3 for a in range(x.ndim)]
    scale = np.abs(x.astype(exact.LONG) - beta.reshape(size)) + np.abs(beta.reshape(size))
    within(y, x.astype(exact.LONG), scale, 5.5, "identity")


def test_scale_and_shift_of_the_input_do_not_matter(rng: np.random.Generator) -> None:
    """BN(a * u + b) = BN(u) and the gradient is divided by a, for powers of two without any rounding: the same bits."""
    u = draw(rng, (8, 3, 67), np.float32, 0, 1)
    dy = draw(rng, u.shape, u.dtype)
    y, ctx = fn.batch_norm_forward(u, training=True, eps=0.0)
    dx = fn.batch_norm_backward(dy, ctx).dx
    for a in (np.float32(2.0**20), np.float32(2.0**-20)):
        z, scaled = fn.batch_norm_forward(a * u, training=True, eps=0.0)
        same_bits(z, y, f"{a}")
        same_bits(fn.batch_norm_backward(dy, scaled).dx * a, dx, f"dx, {a}")
    shifted, _ = fn.batch_norm_forward(u.astype(np.float64) + 1e6, training=True, eps=0.0)
    np.testing.assert_allclose(shifted, y, atol=1e-5)


def test_gradient_is_orthogonal_to_one_and_to_xhat(rng: np.random.Generator) -> None:
    x, dy = rng.standard_normal((2, 4, 5, 67))
    y, ctx = fn.batch_norm_forward(x, training=True, eps=0.0)
    dx = fn.batch_norm_backward(dy, ctx).dx
    for direction in (np.ones_like(y), y):
        assert np.abs((dx * direction).sum((0, 2))).max() < 1e-11


@pytest.mark.parametrize("shape", [(4, 3, 67), (35, 3)])
def test_evaluation_with_the_batchs_statistics_is_training(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = rng.standard_normal(shape)
    axes = (0, *range(2, x.ndim))
    y = fn.batch_norm(x, x.mean(axes), x.var(axes))
    np.testing.assert_allclose(y, fn.batch_norm(x, training=True), 1e-12, 1e-12)


def test_statistics_of_no_samples_are_nan() -> None:
    mean, var = np.zeros(6), np.ones(6)
    y, ctx = fn.batch_norm_forward(np.zeros((0, 6)), mean, var, training=True)
    assert y.shape == (0, 6)
    for statistic in (ctx.mean, ctx.var, ctx.rstd):
        np.testing.assert_array_equal(statistic, np.full(6, np.nan))
    np.testing.assert_array_equal([mean, var], [np.zeros(6), np.ones(6)], "running statistics changed")
