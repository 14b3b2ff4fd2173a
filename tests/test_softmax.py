"""Softmax and log-softmax: values within 4 ULP of themselves however far the inputs are apart, gradients, and edges.

Method: extended precision on the data as given, mpmath where that has no more digits than double, the float64
reference and finite differences.
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
    check_slopes,
    draw,
    dtype_of,
    every_dtype,
    same_bits,
    same_layout,
    within,
)

import fastnorm as fn

BOTH = pytest.mark.parametrize("name", ["softmax", "log_softmax"])


def exactly(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """softmax and log-softmax with 64 bits."""
    z = x.astype(exact.LONG)
    z = z - z.max(axis, keepdims=True)
    e = np.exp(z)
    return e / e.sum(axis, keepdims=True), z - np.log(e.sum(axis, keepdims=True))


def check(x: np.ndarray, axis: int, what: str) -> None:
    p, log_p = exactly(x, axis)
    y, z = fn.softmax(x, axis), fn.log_softmax(x, axis)
    assert y.dtype == z.dtype == x.dtype and y.shape == z.shape == x.shape
    within(y, p, p, 4, f"softmax of {what}")
    # Where one class has it all, log p is tiny, and what a sum next to 1 can tell is asked for: two ULP of 1.
    within(z, log_p, np.maximum(np.abs(log_p), 0.5), 4, f"log_softmax of {what}")


@every_dtype
@pytest.mark.parametrize("n", LENGTHS)
def test_rows_of_awkward_length(n: int, dtype: str, rng: np.random.Generator) -> None:
    for spread in (0.1, 3.0, 30.0):
        check(draw(rng, (3, n), dtype_of(dtype), 5, spread), -1, f"{n} values, spread {spread}, {dtype}")


@every_dtype
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((5,), 0),
        ((5, 7), 0),
        ((5, 7), 1),
        ((3, 67, 5), 1),
        ((3, 4, 5, 6), 2),
        ((3, 4, 5, 6), -4),
        ((65, 1), 0),
        ((1, 65), 0),
    ],
)
def test_any_axis(shape: tuple[int, ...], axis: int, dtype: str, rng: np.random.Generator) -> None:
    check(draw(rng, shape, dtype_of(dtype), 0, 4), axis, f"{shape}, axis {axis}, {dtype}")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_far_apart_and_far_from_zero(dtype: str, rng: np.random.Generator) -> None:
    """Differences up to where exp underflows, around 1e4: x - max may not be rounded, nor the result flushed early."""
    limit = 700 if dtype == "float64" else 85
    x = rng.uniform(-limit, 0, (20, 33)).astype(dtype_of(dtype))
    x[:, 0] = 0
    check(x, 1, "values far apart")
    check((x.astype(np.float64) + 10000).astype(dtype_of(dtype)), 1, "values around 10000")


@every_dtype
@pytest.mark.parametrize(
    "most", [-1e4, -300, -256, -255.9, -88.1, -1, -0.3, 0, 1e-30, 0.3, 5, 90, 255.9, 256, 256.5, 300, 1e4]
)
def test_rows_whose_maximum_is_anywhere(most: float, dtype: str, rng: np.random.Generator) -> None:
    """Near zero x and its maximum are reduced apart, farther away x - max is. Equal values share alike, and one has all."""
    t = dtype_of(dtype)
    x = most - np.abs(rng.standard_normal((40, 150))) * 10.0 ** rng.integers(-6, 2, (40, 1))
    x[:, 3] = most
    check(x.astype(t), 1, f"values up to {most}")
    check((most - np.linspace(0, 110, 1000))[None].astype(t), 1, f"values down from {most}")
    for n in (1, 2, 3, 8, 33, 100, 600):
        same_bits(fn.softmax(np.full((2, n), most, t)), np.full((2, n), 1 / n).astype(t), f"{n} times {most}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_results(dtype: str) -> None:
    """exp's tail is gradual: results below the normal range to half a spacing of the subnormals, then zero."""
    low = -745.5 if dtype == "float64" else -104.5
    x = np.stack([np.zeros(400), np.linspace(low, 0.83 * low, 400)], axis=1).astype(dtype)
    p, _ = exactly(x, 1)
    within(fn.softmax(x), p, p, 4, "subnormal results")
    deep = np.array([[0, -1e4, -1e30]], dtype)
    same_bits(fn.softmax(deep), np.array([[1, 0, 0]], dtype))


@BOTH
@pytest.mark.parametrize(("shape", "axis"), [((7,), 0), ((4, 5), -1), ((4, 5), 0), ((3, 17, 5), 1), ((3, 1), 1)])
def test_gradients(name: str, shape: tuple[int, ...], axis: int, rng: np.random.Generator) -> None:
    call = Call(name, {"x": draw(rng, shape, np.float64, 0, 2), "axis": axis})
    check_against_reference(call, rng.standard_normal(shape), 1e-12)
    check_slopes(call, {"x": "dx"}, rng)


@every_dtype
@BOTH
@pytest.mark.parametrize("shape", [(9, 67), (3, 1000)])
def test_gradient_bounds(name: str, shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """dx within 8 ULP at the size of its terms, from the y that the forward returned."""
    x, dy = draw(rng, shape, dtype_of(dtype), 0, 2), draw(rng, shape, dtype_of(dtype))
    call = Call(name, {"x": x})
    y, ctx = call.forward()
    wide_y, wide_dy = y.astype(exact.LONG), dy.astype(exact.LONG)
    if name == "softmax":
        total = (wide_dy * wide_y).sum(-1, keepdims=True)
        spread = np.sqrt(((wide_dy * wide_y) ** 2).sum(-1, keepdims=True))
        expected, scale = wide_y * (wide_dy - total), np.abs(wide_y) * (np.abs(wide_dy) + np.abs(total) + spread)
    else:
        total = wide_dy.sum(-1, keepdims=True)
        p = np.exp(wide_y)
        expected, scale = wide_dy - p * total, np.abs(wide_dy) + p * np.abs(total)
    within(call.backward(dy, ctx).dx, expected, scale, 8, f"{name} dx in {dtype}")


@every_dtype
@BOTH
def test_output_may_be_the_input(name: str, dtype: str, rng: np.random.Generator) -> None:
    """The context keeps y, so `out=x` is allowed with a context too."""
    call = Call(name, {"x": draw(rng, (9, 67), dtype_of(dtype))})
    dy = call.upstream(rng)
    expected = call.results(dy)
    mine = call.fresh()
    y, ctx = mine.forward(out=mine.x)
    assert y is mine.x
    same_bits(y, expected["y"])
    same_bits(call.backward(dy, ctx).dx, expected["dx"])


@every_dtype
@BOTH
def test_layout_is_kept(name: str, dtype: str, rng: np.random.Generator) -> None:
    x = draw(rng, (3, 8, 9, 5), dtype_of(dtype))
    last = np.moveaxis(x, -1, 1)
    y, ctx = Call(name, {"x": last, "axis": 1}).forward()
    same_bits(np.moveaxis(y, 1, -1), Call(name, {"x": x}).plain())
    assert same_layout(y, last)


# ----------------------------------------------------------------------------------------------------------------- edges


@every_dtype
def test_equal_values_share_equally(dtype: str) -> None:
    for n in (1, 2, 4, 64, 256):
        y = fn.softmax(np.full((2, n), 3.5, dtype_of(dtype)))
        assert (y.astype(np.float64) == 1 / n).all()
    assert (fn.log_softmax(np.full((2, 1), 7, dtype_of(dtype))).astype(np.float64) == 0).all()


@every_dtype
@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_reach_their_row_alone(name: str, bad: float, dtype: str, rng: np.random.Generator) -> None:
    x = draw(rng, (5, 67), dtype_of(dtype))
    clean = Call(name, {"x": x}).plain()
    x = x.copy()
    x[2, 40] = bad
    y = Call(name, {"x": x}).plain()
    others = np.arange(5) != 2
    same_bits(y[others], clean[others])
    row = y[2].astype(np.float64)
    if np.isnan(bad):
        assert np.isnan(row).all()
    else:
        assert np.isnan(row[40])


@every_dtype
def test_minus_infinity_masks(dtype: str, rng: np.random.Generator) -> None:
    """A masked class has probability 0 and log-probability -Inf; the others are as if it were not there."""
    x = draw(rng, (5, 67), dtype_of(dtype))
    x[:, 40:] = -np.inf
    y, z = fn.softmax(x), fn.log_softmax(x)
    assert (y[:, 40:] == 0).all() and np.isneginf(z[:, 40:].astype(np.float64)).all()
    p, log_p = exactly(x[:, :40], 1)
    within(y[:, :40], p, p, 4, "softmax of what is left")
    within(z[:, :40], log_p, np.abs(log_p), 4, "log_softmax of what is left")
    x[3] = -np.inf
    assert np.isnan(fn.softmax(x)[3].astype(np.float64)).all()


@BOTH
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 4)])
def test_nothing(name: str, shape: tuple[int, ...]) -> None:
    call = Call(name, {"x": np.zeros(shape, np.float32), "axis": 1})
    y, ctx = call.forward()
    assert y.shape == shape and call.backward(np.zeros(shape, np.float32), ctx).dx.shape == shape


def test_probabilities_sum_to_one_and_a_shift_changes_nothing(rng: np.random.Generator) -> None:
    x: Any = rng.standard_normal((9, 1000))
    y = fn.softmax(x)
    np.testing.assert_allclose(y.sum(-1), 1, 1e-14)
    np.testing.assert_allclose(fn.softmax(x + 1000), y, 1e-12)
    np.testing.assert_allclose(np.exp(fn.log_softmax(x)), y, 1e-14)
