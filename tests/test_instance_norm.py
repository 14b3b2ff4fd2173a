"""Instance norm: values, gradients, and running statistics where they are tracked.

Method: exact arithmetic for the bounds, the float64 reference and finite differences for what is fused. That the
kernel is group norm's with one channel per group is tested there, bit for bit.
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
    within,
)

import fastnorm as fn

SHAPES = [
    *(((2, 3, n), 1) for n in LENGTHS if n > 1),
    *(((2, n, 3), -1) for n in LENGTHS if 1 < n < 10000),
    ((5, 6, 7, 7), 1),
    ((2, 150, 3, 3), 1),
    ((4, 3, 2, 3, 5), 1),
    ((2, 5, 3, 7), -1),
    ((3, 70, 7), 2),
    ((3, 1, 2), 1),
    ((2, 2, 1030), -1),
    ((1, 2, 260, 270), 1),
]


def instances(rng: np.random.Generator, shape: tuple[int, ...], axis: int, dtype: Any, **options: Any) -> Call:
    c, wide = shape[axis], compute_type(dtype)
    arguments = {"x": draw(rng, shape, dtype), "weight": draw(rng, (c,), wide), "bias": draw(rng, (c,), wide)}
    return Call("instance_norm", arguments | {"axis": axis} | options)


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_values_and_gradients(shape: tuple[int, ...], axis: int, dtype: str, rng: np.random.Generator) -> None:
    if dtype != "float32" and np.prod(shape) > 100000:
        shape = (*shape[:-1], shape[-1] // 4)
    call = instances(rng, shape, axis, dtype_of(dtype))
    dy = draw(rng, shape, dtype_of(dtype), 0.1)
    check_exactly(call, exact.view("instance", shape, axis=axis), dy, 1e-5, f"{shape}, axis {axis}, {dtype}")


@every_dtype
@pytest.mark.parametrize("given", [("weight",), ("bias",), ()])
def test_with_some_parameters(given: tuple[str, ...], dtype: str, rng: np.random.Generator) -> None:
    for shape, axis in (((3, 5, 67), 1), ((3, 67, 5), 2), ((3, 5, 3), 1)):
        call = instances(rng, shape, axis, dtype_of(dtype))
        call = call.replaced(**{name: None for name in ("weight", "bias") if name not in given})
        dy = draw(rng, shape, dtype_of(dtype))
        check_exactly(call, exact.view("instance", shape, axis=axis), dy, 1e-5, f"{given} in {dtype}")


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 67), 1), ((4, 3, 7, 7), 1), ((2, 5, 3, 7), -1), ((4, 3), 1)])
def test_given_statistics(shape: tuple[int, ...], axis: int, dtype: str, rng: np.random.Generator) -> None:
    """use_input_stats=False: the running statistics of a channel, constant in the backward, for every sample."""
    call = instances(rng, shape, axis, dtype_of(dtype), use_input_stats=False)
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


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 67), 1), ((3, 4, 5, 2), 1), ((3, 5, 2, 4), -1), ((2, 3, 2), 1)])
def test_fused_gradients(
    shape: tuple[int, ...], axis: int, activation: Any, own: bool, rng: np.random.Generator
) -> None:
    call = instances(rng, shape, axis, np.float64, activation=activation, use_input_stats=own)
    running = {"running_mean": rng.standard_normal(shape[axis]), "running_var": rng.uniform(0.5, 2, shape[axis])}
    call = call.replaced(**running)
    check_against_reference(call, rng.standard_normal(shape))
    check_slopes(call, {"x": "dx", "weight": "dweight", "bias": "dbias"}, rng)


@every_dtype
@pytest.mark.parametrize("momentum", [0, 0.1, 1.0])
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 67), 1), ((3, 67, 5), -1)])
def test_running_statistics(
    shape: tuple[int, ...], axis: int, momentum: float, dtype: str, rng: np.random.Generator
) -> None:
    """They move towards the mean over the samples of their means and unbiased variances."""
    call = instances(rng, shape, axis, dtype_of(dtype), momentum=momentum)
    wide = compute_type(call.x)
    mean, var = draw(rng, (5,), wide), np.abs(draw(rng, (5,), wide))
    moved_mean, moved_var = mean.copy(), var.copy()
    call.replaced(running_mean=moved_mean, running_var=moved_var).plain()
    f = exact.forward(exact.view("instance", shape, axis=axis), call.x, None, None, 1e-5)
    batch_mean, batch_var = f.mean.reshape(3, 5).mean(0), f.var.reshape(3, 5).mean(0) * (exact.LONG(67) / 66)
    for moved, old, batch in ((moved_mean, mean, batch_mean), (moved_var, var, batch_var)):
        expected = (1 - exact.LONG(momentum)) * old.astype(exact.LONG) + exact.LONG(momentum) * batch
        scale = np.abs(old.astype(exact.LONG)) + momentum * np.maximum(np.abs(batch), np.sqrt(batch_var))
        within(moved, expected, scale, 2, "running statistic")
    if momentum == 0:
        same_bits(moved_mean, mean)
        same_bits(moved_var, var)


@every_dtype
@pytest.mark.parametrize("shape", [(3, 6, 8, 9), (2, 70, 3, 3), (1, 6, 8, 9)])
def test_channels_last_memory(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """A view whose memory is channels-last is used in place and gives axis=-1's bits; y and dx have its layout."""
    last, dy = (draw(rng, (shape[0], *shape[2:], shape[1]), dtype_of(dtype)) for _ in range(2))
    view = np.moveaxis(last, -1, 1)
    y, ctx = fn.instance_norm_forward(view)
    z, twin = fn.instance_norm_forward(last, axis=-1)
    dx = fn.instance_norm_backward(np.moveaxis(dy, -1, 1), ctx).dx
    same_bits(np.moveaxis(y, 1, -1), z)
    same_bits(np.moveaxis(dx, 1, -1), fn.instance_norm_backward(dy, twin).dx)
    assert same_layout(y, view) and same_layout(dx, view)


@pytest.mark.parametrize("shape", [(1, 5, 67), (1, 3, 8, 9)])
def test_one_sample_is_batch_norm(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    x = rng.standard_normal(shape)
    np.testing.assert_allclose(fn.instance_norm(x), fn.batch_norm(x, training=True), 1e-12, 1e-12)


def test_contrast_and_brightness_of_an_image_do_not_matter(rng: np.random.Generator) -> None:
    """IN(a * x + b) = IN(x) per image and channel, a a power of two: the same bits for b = 0."""
    x = draw(rng, (3, 4, 8, 9), np.float32)
    a = np.ldexp(np.float32(1), rng.integers(-9, 9, (3, 4, 1, 1)))
    y = fn.instance_norm(x, eps=0.0)
    same_bits(fn.instance_norm(a.astype(np.float32) * x, eps=0.0), y)
    np.testing.assert_allclose(fn.instance_norm(x.astype(np.float64) + 1e5, eps=0.0), y, atol=1e-5)
