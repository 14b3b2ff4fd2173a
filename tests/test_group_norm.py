"""Group norm: values and gradients along spans of channels, in short channels, and in channels-last memory.

Method: exact arithmetic for the bounds, the float64 reference and finite differences for what is fused, the identities
that place group norm between layer and instance norm.
"""

from __future__ import annotations

from typing import Any

import exact
import numpy as np
import pytest
from support import (
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
)

import fastnorm as fn
from fastnorm._kernels import core

SHAPES = [
    *(((2, 4, n), 2, 1) for n in LENGTHS),
    *(((2, 6, n), 6, 1) for n in (2, 15, 16, 17, 63, 64, 65)),  # one channel to a group
    *(((2, 6, n), 1, 1) for n in (1, 2, 15, 16, 17, 63, 64, 65)),  # one group
    *(((3, n), 1, 1) for n in (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 4097)),  # vectors
    ((5, 12), 12, 1),  # groups of one element: y = beta
    ((7, 90), 9, 1),
    ((3, 8, 7, 7), 4, 1),
    ((2, 6, 2, 3, 5), 3, 1),
    ((2, 150, 1, 1), 5, 1),
    ((2, 4, 6, 3, 2), 2, 2),
    ((3, 7, 5, 12), 4, -1),
    ((2, 64, 40, 6), 2, -1),
    ((1, 300, 300, 4), 2, -1),  # several bands
    ((2, 5, 1030), 2, -1),  # several tiles
    ((1, 4, 260, 270), 2, 1),  # several slots of a group
]


def grouped(
    rng: np.random.Generator, shape: tuple[int, ...], groups: int, axis: int, dtype: Any, **options: Any
) -> Call:
    c, wide = shape[axis], compute_type(dtype)
    arguments = {"x": draw(rng, shape, dtype), "num_groups": groups, "weight": draw(rng, (c,), wide)}
    return Call("group_norm", arguments | {"bias": draw(rng, (c,), wide), "axis": axis} | options)


@every_dtype
@pytest.mark.parametrize(("shape", "groups", "axis"), SHAPES)
def test_values_and_gradients(
    shape: tuple[int, ...], groups: int, axis: int, dtype: str, rng: np.random.Generator
) -> None:
    if dtype != "float32" and np.prod(shape) > 100000:
        shape = (*shape[:2], shape[2] // 4, *shape[3:])
    call = grouped(rng, shape, groups, axis, dtype_of(dtype))
    dy = draw(rng, shape, dtype_of(dtype), 0.1)
    view = exact.view("group", shape, axis=axis, groups=groups)
    check_exactly(call, view, dy, 1e-5, f"{shape}, {groups} groups, axis {axis}, {dtype}")


@every_dtype
@pytest.mark.parametrize("given", [("weight",), ("bias",), ()])
@pytest.mark.parametrize("shape", [(3, 6, 67), (5, 6, 3), (4, 5, 6)])
def test_with_some_parameters(
    shape: tuple[int, ...], given: tuple[str, ...], dtype: str, rng: np.random.Generator
) -> None:
    axis = 2 if shape[1] == 5 else 1
    call = grouped(rng, shape, 3, axis, dtype_of(dtype))
    call = call.replaced(**{name: None for name in ("weight", "bias") if name not in given})
    dy = draw(rng, shape, dtype_of(dtype))
    check_exactly(call, exact.view("group", shape, axis=axis, groups=3), dy, 1e-5, f"{given} in {dtype}")


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(
    ("shape", "groups", "axis"), [((3, 4, 67), 2, 1), ((5, 6), 3, 1), ((3, 4, 5, 2), 2, 1), ((3, 5, 2, 4), 4, -1)]
)
def test_fused_gradients(
    shape: tuple[int, ...], groups: int, axis: int, activation: Any, rng: np.random.Generator
) -> None:
    call = grouped(rng, shape, groups, axis, np.float64, activation=activation)
    check_against_reference(call, rng.standard_normal(shape))
    check_slopes(call, {"x": "dx", "weight": "dweight", "bias": "dbias"}, rng)


@every_dtype
@pytest.mark.parametrize("shape", [(3, 6, 8, 9), (2, 6, 3, 3), (1, 6, 8, 9), (3, 6, 67)])
@pytest.mark.parametrize("layout", ["channels last", "Fortran", "space turned", "channels reversed"])
def test_layouts(layout: str, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """Any memory gives values within the bounds; channels-last memory is used and kept."""
    call = grouped(rng, shape, 3, 1, dtype_of(dtype))
    x = call.x
    view = {
        "channels last": lambda: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
        "Fortran": lambda: np.asfortranarray(x),
        "space turned": lambda: np.ascontiguousarray(x.swapaxes(2, -1)).swapaxes(2, -1),
        "channels reversed": lambda: np.ascontiguousarray(x[:, ::-1])[:, ::-1],
    }[layout]()
    np.testing.assert_array_equal(view, x)
    call = call.replaced(x=view)
    dy = draw(rng, shape, dtype_of(dtype))
    check_exactly(call, exact.view("group", shape, groups=3), dy, 1e-5, f"{layout} {shape} {dtype}")
    y, ctx = call.forward()
    if layout in ("channels last", "space turned"):
        assert same_layout(y, view) and same_layout(call.backward(dy, ctx).dx, view)


@pytest.mark.parametrize("shape", [(3, 6, 8, 9), (3, 6, 67), (3, 6, 3)])
@every_dtype
def test_channels_last_axis_is_the_strided_view(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    last = draw(rng, (shape[0], *shape[2:], shape[1]), dtype_of(dtype))
    one = fn.group_norm(last, 3, axis=-1)
    two = fn.group_norm(np.moveaxis(last, -1, 1), 3)
    same_bits(np.moveaxis(two, 1, -1), one)


# ------------------------------------------------------------------------------------------------------------ identities


@every_dtype
@pytest.mark.parametrize("shape", [(3, 6, 67), (3, 6, 8, 9), (2, 5, 4099)])
def test_one_channel_per_group_is_instance_norm(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """The same bits, forward and backward."""
    call = grouped(rng, shape, shape[1], 1, dtype_of(dtype))
    dy = draw(rng, shape, dtype_of(dtype))
    twin = Call("instance_norm", {name: a for name, a in call.arguments.items() if name != "num_groups"})
    other = twin.results(dy)
    for name, value in call.results(dy).items():
        same_bits(value, other[name], name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 6, 67), (4, 6, 3, 3), (5, 30)])
def test_one_group_is_layer_norm(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """Over everything but the samples, without parameters, to a few roundings."""
    x, dy = draw(rng, shape, dtype), draw(rng, shape, dtype)
    y, ctx = fn.group_norm_forward(x, 1)
    z, twin = fn.layer_norm_forward(x, shape[1:])
    tolerance = 32 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, z, tolerance, tolerance)
    dx, dz = fn.group_norm_backward(dy, ctx).dx, fn.layer_norm_backward(dy, twin).dx
    np.testing.assert_allclose(dx, dz, tolerance, tolerance)


def test_groups_of_one_element_give_beta(rng: np.random.Generator) -> None:
    call = grouped(rng, (4, 6), 6, 1, np.float32)
    y, ctx = call.forward()
    same_bits(y, np.broadcast_to(call.arguments["bias"], (4, 6)))
    assert not call.backward(draw(rng, (4, 6), np.float32), ctx).dweight.any()


def test_context_shows_its_statistics(rng: np.random.Generator) -> None:
    x = draw(rng, (3, 6, 67), np.float32)
    _, ctx = fn.group_norm_forward(x, 2, eps=1e-3)
    rows = x.astype(np.float64).reshape(3, 2, -1)
    assert ctx.mean.dtype == ctx.rstd.dtype == np.float64 and ctx.mean.shape == ctx.rstd.shape == (3, 2)
    np.testing.assert_allclose(ctx.mean, rows.mean(-1), 1e-13, 1e-13)
    np.testing.assert_allclose(ctx.rstd, 1 / np.sqrt(rows.var(-1) + 1e-3), 1e-7)


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 3), (4, 8, 16)])
def test_an_infinite_output_behind_a_relu_keeps_its_gradient(shape: tuple[int, ...]) -> None:
    """float16 cannot hold beta: y is infinite there, and dx is still finite."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(np.float16) for _ in range(2))
    bias = np.zeros(8, np.float32)
    bias[3] = 1e5
    y, ctx = fn.group_norm_forward(x, 2, np.ones(8, np.float32), bias, activation="relu")
    grads = fn.group_norm_backward(dy, ctx)
    assert np.isinf(y[:, 3]).all()
    assert all(np.isfinite(g).all() for g in (grads.dx, grads.dweight, grads.dbias))


@pytest.mark.parametrize("pixels", [1, 4, 15, 16, 20, 45, 63, 64, 100])
@pytest.mark.parametrize("outlier", [False, True])
def test_samples_have_the_bits_that_they_have_alone(pixels: int, outlier: bool, rng: np.random.Generator) -> None:
    """In few samples and many, in cache and streamed, also beside a value that outweighs all others."""
    x, dy = (rng.standard_normal((40, 6, pixels)).astype(np.float32) for _ in range(2))
    if outlier:
        x[:, 0, 0] = 1e30
    weight = rng.standard_normal(6).astype(np.float32)

    def both(part: slice) -> tuple[Any, Any]:
        y, ctx = fn.group_norm_forward(x[part], 2, weight)
        return y, fn.group_norm_backward(dy[part], ctx).dx

    alone = [both(slice(i, i + 1)) for i in range(len(x))]
    size = core.set_stream_bytes(1)
    try:
        streamed = both(slice(None))
    finally:
        core.set_stream_bytes(size)
    for what, (y, dx) in (("streamed", streamed), ("forty", both(slice(None))), ("seven", both(slice(0, 7)))):
        for i in range(len(y)):
            same_bits(y[i], alone[i][0][0], f"y of sample {i}, {what}")
            same_bits(dx[i], alone[i][1][0], f"dx of sample {i}, {what}")
