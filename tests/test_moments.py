"""Moments: mean within 1 ULP at max(|mean|, std) and variance within 2 ULP, over any axes of any memory.

Method: exact arithmetic on each set of values, and NumPy for shapes, `keepdims`, `ddof` and empty sets.
"""

from __future__ import annotations

from typing import Any

import exact
import numpy as np
import pytest
from support import LENGTHS, compute_type, draw, dtype_of, every_dtype, within

import fastnorm as fn


def check(x: np.ndarray, axis: Any, ddof: float = 0) -> None:
    """Against exact arithmetic on the values that share a mean, put into rows."""
    every = tuple(range(x.ndim))
    axes = every if axis is None else tuple(a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
    rest = tuple(a for a in every if a not in axes)
    m = int(np.prod([x.shape[a] for a in axes]))
    rows = np.ascontiguousarray(x.transpose(rest + axes)).reshape(-1, m)
    f = exact.forward(exact.view("layer", rows.shape), rows, None, None, 1.0)
    mean, var = fn.moments(x, axis, ddof=ddof)
    shape = tuple(x.shape[a] for a in rest)
    assert np.shape(mean) == np.shape(var) == shape and mean.dtype == var.dtype == compute_type(x)
    what = f"{x.shape} {x.dtype}, axis {axis}"
    within(np.ravel(mean), f.mean, np.maximum(np.abs(f.mean), np.sqrt(f.var)), 1, f"{what}: mean")
    if m > ddof:
        var_exact = f.var * (exact.LONG(m) / exact.LONG(m - ddof))
        within(np.ravel(var), var_exact, var_exact, 2, f"{what}: variance")


@every_dtype
@pytest.mark.parametrize("n", LENGTHS)
def test_rows_and_columns_of_awkward_length(n: int, dtype: str, rng: np.random.Generator) -> None:
    n = n // 4 if dtype != "float32" and n > 50000 else n
    x = draw(rng, (3, n), dtype_of(dtype), 100.0, 0.5)
    check(x, -1)
    check(np.ascontiguousarray(x.T), 0)
    check(x, None)
    if n < 5000:
        check(x, 0)
        check(np.ascontiguousarray(x.T), 1)


@every_dtype
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, (0, 1), (0, 2), (1, 2), (2, 0), (0, 1, 2), (-1, 0), ()])
@pytest.mark.parametrize("order", ["C", "F", "sliced", "reversed"])
def test_any_axes_of_any_memory(axis: Any, order: str, dtype: str, rng: np.random.Generator) -> None:
    x = draw(rng, (5, 7, 19), dtype_of(dtype))
    if order == "F":
        x = np.asfortranarray(x)
    elif order == "sliced":
        x = draw(rng, (10, 14, 39), dtype_of(dtype))[::2, 1::2, 1::2]
    elif order == "reversed":
        x = x[::-1, :, ::-1]
    check(x, axis)


@pytest.mark.parametrize("ddof", [0, 1, 2, 0.5])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 2)])
def test_as_numpy(axis: Any, keepdims: bool, ddof: float, rng: np.random.Generator) -> None:
    x = draw(rng, (5, 7, 19), np.float64)
    mean, var = fn.moments(x, axis, ddof=ddof, keepdims=keepdims)
    for got, expected in (
        (mean, x.mean(axis, keepdims=keepdims)),
        (var, x.var(axis, ddof=ddof, keepdims=keepdims)),
    ):
        assert np.shape(got) == np.shape(expected)
        np.testing.assert_allclose(got, expected, 1e-13)
    check(x, axis, ddof)


@every_dtype
def test_no_values_and_too_few(dtype: str) -> None:
    """As NumPy: the mean of nothing is NaN, and so is a variance with no degree of freedom left. No warning."""
    empty = np.zeros((3, 0), dtype_of(dtype))
    mean, var = fn.moments(empty, 1)
    assert np.isnan(mean).all() and np.isnan(var).all() and mean.shape == (3,)
    mean, var = fn.moments(empty, 0)
    assert mean.shape == var.shape == (0,)
    mean, var = fn.moments(np.ones((3, 1), dtype_of(dtype)), 1, ddof=1)
    assert (mean == 1).all() and np.isnan(var).all()
    mean, var = fn.moments(np.ones((), dtype_of(dtype)))
    assert mean == 1 and var == 0


@every_dtype
def test_one_bad_value_reaches_its_own_set(dtype: str, rng: np.random.Generator) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        for shape, axis in (((5, 300), 1), ((300, 5), 0)):
            x = draw(rng, shape, dtype_of(dtype))
            clean = fn.moments(x, axis)
            x[(2, 77) if axis else (77, 2)] = bad
            mean, var = fn.moments(x, axis)
            assert np.isnan(var[2]) and (np.isnan(mean[2]) if np.isnan(bad) else mean[2] == bad)
            others = np.arange(5) != 2
            np.testing.assert_array_equal(mean[others], clean[0][others])
            np.testing.assert_array_equal(var[others], clean[1][others])


@pytest.mark.parametrize("constant", [0.0, 14.0, -1e10, 1e30, 3e38, 1e-40, 1e-45])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_constants_have_no_variance(constant: float, dtype: str) -> None:
    """Variance exactly zero, at any length; the mean is exact in the compute type of narrower data, and within its ULP."""
    with np.errstate(over="ignore"):
        value = np.asarray(constant).astype(dtype_of(dtype))
    for n in (1, 2, 3, 7, 17, 100, 4097, 65537):
        for x, axis in ((np.full((2, n), value), 1), (np.full((n, 2), value), 0)):
            mean, var = fn.moments(x, axis)
            assert (var == 0).all(), n
            assert dtype == "float64" or (mean == value.astype(mean.dtype)).all(), n
            within(mean, np.broadcast_to(value.astype(exact.LONG), mean.shape), np.abs(value), 1, f"mean of {n}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [2, 3, 5, 8, 15, 16, 17, 33, 64, 65, 100])
def test_neighbouring_numbers(n: int, dtype: str, rng: np.random.Generator) -> None:
    """Values that differ in their last bits only, at any magnitude whose squares can be held."""
    low, high = (-60, 60) if dtype == "float32" else (-400, 400)
    base = rng.uniform(1, 2, (200, 1)) * 2.0 ** rng.integers(low, high, (200, 1))
    x = base.astype(dtype)
    x = x + rng.integers(0, 3, (200, n)).astype(dtype) * np.spacing(x)
    assert x.dtype == dtype
    check(x, 1)
    check(np.ascontiguousarray(x.T), 0)
    check(np.ascontiguousarray(x.reshape(2, 100, n).swapaxes(1, 2)), 1)


@every_dtype
@pytest.mark.parametrize(
    ("shape", "axis"), [((40, 300), 1), ((300, 40), 0), ((20, 40, 7, 7), (0, 2, 3)), ((3, 40, 5000), (0, 2))]
)
def test_means_that_outweigh_deviations(
    dtype: str, shape: tuple[int, ...], axis: Any, rng: np.random.Generator
) -> None:
    """Each set with its own ratio of mean to deviation, from 2 to 2^20: about zero or about the mean, alone or beside others."""
    apart = [1 if i in (axis if isinstance(axis, tuple) else (axis,)) else n for i, n in enumerate(shape)]
    ratio = np.repeat(2.0 ** np.arange(1, 21), 2) * np.tile([1, -1], 20)
    x = ((rng.standard_normal(shape) + rng.permutation(ratio).reshape(apart)) / 64).astype(dtype_of(dtype))
    check(x, axis)


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), [((500, 150), 1), ((150, 500), 0), ((20, 40, 7, 7), (0, 2, 3))])
def test_values_that_one_outweighs(dtype: str, shape: tuple[int, ...], axis: Any, rng: np.random.Generator) -> None:
    """Cauchy numbers: one square may be all of the variance, and its roundings have no others to cancel."""
    check(np.clip(rng.standard_cauchy(shape), -6e4, 6e4).astype(dtype_of(dtype)), axis)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("apart", [3, 10, 1000])
@pytest.mark.parametrize(("shape", "axis"), [((2, 65536), 1), ((65536, 2), 0), ((4, 2, 16384), (0, 2))])
def test_a_beginning_apart_from_the_rest(
    shape: tuple[int, ...], axis: Any, apart: float, dtype: str, rng: np.random.Generator
) -> None:
    """Blocks are merged without anything to be taken off again."""
    x = rng.standard_normal(shape)
    x[0 if axis != 1 else slice(None), ..., :2048] += apart
    check(x.astype(dtype), axis)


def test_sums_of_ten_million_values_keep_their_digits(rng: np.random.Generator) -> None:
    x = np.full(10**7, 0.1, np.float32)
    x[::2] = np.float32(0.3)
    mean, var = fn.moments(x)
    a, b = exact.LONG(np.float32(0.1)), exact.LONG(np.float32(0.3))
    within(mean, (a + b) / 2, (a + b) / 2, 1, "mean")
    within(var, ((b - a) / 2) ** 2, ((b - a) / 2) ** 2, 2, "variance")


def test_blocks_of_millions_of_doubles_keep_their_digits(rng: np.random.Generator) -> None:
    """Hundreds of partial variances, each near the others: merged in pairs, for their roundings would add up to 5 ULP."""
    x = rng.standard_normal(65536 * 100 + 77) + 0.1
    mean, var = fn.moments(x)
    wide = x.astype(exact.LONG)
    true_mean = wide.mean()
    true_var = np.square(wide - true_mean).mean()
    within(mean, true_mean, np.sqrt(true_var), 1, "mean")
    within(var, true_var, true_var, 2, "variance")


@pytest.mark.parametrize("large", [1e160, 1e200, 1e293, 1e308])
@pytest.mark.parametrize(("shape", "axis"), [((2, 7), 1), ((7, 2), 0), ((2, 7000), 1), ((7000, 2), 0)])
def test_squares_beyond_the_largest_double(large: float, shape: tuple[int, ...], axis: int) -> None:
    """An infinite variance, not NaN: the other numbers and the mean are known."""
    x = np.zeros(shape)
    x[(0, 3) if axis else (3, 0)] = large
    mean, var = fn.moments(x, axis)
    np.testing.assert_allclose(mean, [large / shape[axis], 0], 1e-15)
    assert np.array_equal(var, [np.inf, 0])
