"""Switchable norm: values and gradients of data, parameters and both sets of logits; its batch part in both modes.

Method: exact arithmetic for the bounds in training, the float64 reference and finite differences for every mode and
memory, one-hot logits for the norms that it mixes.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import exact
import numpy as np
import pytest
from support import (
    LENGTHS,
    Call,
    check_against_reference,
    check_slopes,
    compute_type,
    draw,
    dtype_of,
    every_dtype,
    same_bits,
    within,
)

import fastnorm as fn

SHAPES = [
    *((2, 3, n) for n in LENGTHS if n < 60000),
    (3, 4, 7, 7),
    (1, 5, 8, 9),
    (3, 1, 8, 9),
    (4, 3, 2, 3, 5),
    (5, 6),
    (35, 70),
    (2, 150, 3, 3),
    (2, 2, 150, 450),
]
FIELDS = {
    "x": "dx",
    "weight": "dweight",
    "bias": "dbias",
    "mean_logits": "dmean_logits",
    "var_logits": "dvar_logits",
}


def switchable(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, axis: int = 1, **options: Any) -> Call:
    c, wide = shape[axis], compute_type(dtype)
    arguments = {
        "x": draw(rng, shape, dtype),
        "mean_logits": draw(rng, (3,), wide, 0, 1),
        "var_logits": draw(rng, (3,), wide, 0, 1),
        "weight": draw(rng, (c,), wide),
        "bias": draw(rng, (c,), wide),
        "axis": axis,
    }
    return Call("switchable_norm", arguments | options)


def check(call: Call, dy: np.ndarray, what: str) -> None:
    a = call.arguments
    e = exact.switchable(call.x, dy, a["mean_logits"], a["var_logits"], a["weight"], a["bias"], 1e-5)
    y, ctx = call.forward()
    grads = call.backward(dy, ctx)
    assert y.dtype == grads.dx.dtype == call.x.dtype
    within(y, e.y, e.scale, 4, f"{what}: y")
    within(grads.dx, e.dx, e.dx_scale, 8, f"{what}: dx")
    for name, value, scale in (
        ("dmean_logits", e.dmean_logits, e.dmean_scale),
        ("dvar_logits", e.dvar_logits, e.dvar_scale),
    ):
        got = getattr(grads, name)
        assert got.dtype == compute_type(call.x) and got.shape == (3,)
        within(got, value, np.maximum(scale, np.abs(value)), 8, f"{what}: {name}")


@every_dtype
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_values_and_gradients(
    shape: tuple[int, ...], affine: bool, dtype: str, rng: np.random.Generator
) -> None:
    if dtype != "float32" and np.prod(shape) > 100000:
        shape = (*shape[:-1], shape[-1] // 4)
    call = switchable(rng, shape, dtype_of(dtype), training=True)
    if not affine:
        call = call.replaced(weight=None, bias=None)
    check(call, draw(rng, shape, dtype_of(dtype), 0.1), f"{shape} in {dtype}")


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 4, 67), 1), ((3, 4, 5, 2), 1), ((3, 5, 2, 4), -1), ((5, 3), 1), ((2, 1, 3), 1)]
)
def test_gradients(shape: tuple[int, ...], axis: int, mode: str, rng: np.random.Generator) -> None:
    """In float64, against the reference and against finite differences; in evaluation the batch part is a constant."""
    call = switchable(rng, shape, np.float64, axis, training=mode == "training")
    running = {"running_mean": rng.standard_normal(shape[axis]), "running_var": rng.uniform(0.5, 2, shape[axis])}
    call = call.replaced(**running)
    check_against_reference(call, rng.standard_normal(shape))
    check_slopes(call, FIELDS, rng)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_of_a_half_type(dtype: str, rng: np.random.Generator) -> None:
    half = dtype_of(dtype)
    call = switchable(rng, (3, 5, 67), half, training=True)
    narrow = {n: call.arguments[n].astype(half) for n in ("weight", "bias", "mean_logits", "var_logits")}
    dy = draw(rng, (3, 5, 67), half)
    one = call.replaced(**narrow).results(dy)
    two = call.replaced(**{name: a.astype(np.float32) for name, a in narrow.items()}).results(dy)
    for name, value in one.items():
        same_bits(value, two[name], name)


@every_dtype
@pytest.mark.parametrize("momentum", [0, 0.1, 1.0])
def test_running_statistics_are_batch_norms(dtype: str, momentum: float, rng: np.random.Generator) -> None:
    """They move as batch norm's: mean and unbiased variance over samples and space."""
    call = switchable(rng, (3, 5, 67), dtype_of(dtype), training=True, momentum=momentum)
    wide = compute_type(call.x)
    one = [np.full(5, 0.3, wide), np.full(5, 1.7, wide)]
    two = [a.copy() for a in one]
    call.replaced(running_mean=one[0], running_var=one[1]).plain()
    fn.batch_norm(call.x, *two, training=True, momentum=momentum)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, 4 * np.finfo(wide).eps, 2 * np.finfo(wide).eps)
    before = [a.copy() for a in one]
    call.replaced(running_mean=one[0], running_var=one[1], training=False).plain()
    for a, b in zip(one, before, strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chosen", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 5, 67), (4, 3, 5, 7)])
def test_one_hot_logits_choose_a_norm(
    chosen: int, shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    """Instance, layer or batch norm, forward and backward."""
    x, dy = draw(rng, shape, dtype), draw(rng, shape, dtype)
    logits = np.full(3, -1e3, dtype)
    logits[chosen] = 1e3
    y, ctx = fn.switchable_norm_forward(x, logits, logits, training=True)
    dx = fn.switchable_norm_backward(dy, ctx).dx
    forward, backward = (
        (lambda: fn.instance_norm_forward(x), fn.instance_norm_backward),
        (lambda: fn.layer_norm_forward(x, shape[1:]), fn.layer_norm_backward),
        (lambda: fn.batch_norm_forward(x, training=True), fn.batch_norm_backward),
    )[chosen]
    z, twin = forward()
    tolerance = 32 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, z, tolerance, tolerance)
    np.testing.assert_allclose(dx, backward(dy, twin).dx, tolerance, tolerance)


@every_dtype
@pytest.mark.parametrize("shape", [(3, 6, 8, 9), (2, 70, 3, 3)])
def test_channels_last(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """axis=-1 and the NCHW view of the same memory: the same bits."""
    last, dy = (draw(rng, (shape[0], *shape[2:], shape[1]), dtype_of(dtype)) for _ in range(2))
    logits = draw(rng, (3,), compute_type(last)), draw(rng, (3,), compute_type(last))
    y, ctx = fn.switchable_norm_forward(last, *logits, training=True, axis=-1)
    z, twin = fn.switchable_norm_forward(np.moveaxis(last, -1, 1), *logits, training=True)
    same_bits(np.moveaxis(z, 1, -1), y)
    dx = fn.switchable_norm_backward(np.moveaxis(dy, -1, 1), twin).dx
    same_bits(np.moveaxis(dx, 1, -1), fn.switchable_norm_backward(dy, ctx).dx)


def test_logits_are_softmax_invariant(rng: np.random.Generator) -> None:
    """A constant added to all logits changes nothing, and their gradients add up to zero."""
    call = switchable(rng, (3, 5, 67), np.float64, training=True)
    y, ctx = call.forward()
    shifted = call.replaced(mean_logits=call.arguments["mean_logits"] + 2, var_logits=call.arguments["var_logits"] - 3)
    np.testing.assert_allclose(shifted.plain(), y, 1e-13, 1e-13)
    grads = call.backward(rng.standard_normal(y.shape), ctx)
    assert abs(grads.dmean_logits.sum()) < 1e-11 and abs(grads.dvar_logits.sum()) < 1e-11


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("sample", [0, 2])
@pytest.mark.parametrize("channel", [0, 1])
def test_what_is_not_finite_stays_in_its_sample(
    dtype: str, bad: float, sample: int, channel: int, rng: np.random.Generator
) -> None:
    """In evaluation samples share nothing."""
    x, z = draw(rng, (3, 4, 5), np.dtype(dtype)), np.zeros(3, dtype)
    x[sample, channel, 2] = bad
    y, ctx = fn.switchable_norm_forward(x, z, z, np.zeros(4, dtype), np.ones(4, dtype))
    dx = fn.switchable_norm_backward(draw(rng, x.shape, x.dtype), ctx).dx
    others = [i for i in range(3) if i != sample]
    assert np.isfinite(y[others]).all()
    assert np.isfinite(dx[others]).all()
    alone = fn.switchable_norm(x[others], z, z, np.zeros(4, dtype), np.ones(4, dtype))
    same_bits(y[others], alone)


@pytest.mark.parametrize("sample", [0, 1])
def test_an_infinite_batch_mean(sample: int) -> None:
    x, z, mean, var = np.ones((3, 2, 2)), np.zeros(3), np.zeros(2), np.ones(2)
    x[sample, 1, 0] = -np.inf
    fn.switchable_norm(x, z, z, mean, var, training=True, momentum=1.0)
    np.testing.assert_array_equal(mean, [1, -np.inf])


def test_batch_means_that_cancel() -> None:
    """The mean of instance means, to its own last digits."""
    z, mean, var = np.zeros(3), np.zeros(1), np.ones(1)
    x = np.array([-1.1, 0.3, 0.8]).reshape(3, 1, 1)
    fn.switchable_norm(x, z, z, mean, var, training=True, momentum=1.0)
    exact = float(sum(Fraction(v) for v in x.reshape(-1)) / 3)
    np.testing.assert_allclose(mean, exact, 1e-15)
