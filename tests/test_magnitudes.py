"""Every magnitude of float32 and bfloat16: squares and products that would leave float's range.

Method: statistics side by side whose data lie at every magnitude, all within the promised bounds of exact arithmetic; zeros
beside numbers; sums that only double can hold; small numbers among outliers, of which none may lose a bit.
"""

from __future__ import annotations

from typing import Any

import exact
import numpy as np
import pytest
from support import Array, Call, check_exactly, draw, dtype_of, same_bits, within

import fastnorm as fn

BOTH = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
#: Of x and of dy: where squares, and products, underflow or overflow in float.
MAGNITUDES = [
    *[(1e-37, 1e-8), (1e-30, 1e-8), (1e-22, 1e4), (1e-19, 1.0), (1e-10, 1e-30), (1.0, 1.0), (1.0, 3e37), (1e10, 1e37)],
    *[(1e18, 1e30), (1e20, 1.0), (1e30, 1e10), (3e37, 1e-10)],
]
COUNT = len(MAGNITUDES)
#: Name, shape, the statistics' axis, arguments.
NORMS: list[tuple[str, tuple[int, ...], int, dict[str, Any]]] = [
    ("batch_norm", (3, COUNT, 40, 43), 1, {"training": True}),
    ("batch_norm", (40, COUNT, 7, 7), 1, {"training": True}),
    ("batch_norm", (70, COUNT), 1, {"training": True}),
    ("group_norm", (2, 2 * COUNT, 9, 20), 1, {"num_groups": COUNT}),
    ("layer_norm", (COUNT, 300), 0, {"normalized_shape": 300}),
    ("layer_norm", (COUNT, 9000), 0, {"normalized_shape": 9000}),
    ("rms_norm", (COUNT, 300), 0, {"normalized_shape": 300}),
    ("rms_norm", (COUNT, 9000), 0, {"normalized_shape": 9000}),
]


def per_statistic(values: list[float], shape: tuple[int, ...], axis: int) -> Array:
    """One number for each statistic, as an array that multiplies data of this shape."""
    repeated = np.repeat(np.array(values), shape[axis] // COUNT)
    return repeated.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def view_of(norm: str, shape: tuple[int, ...]) -> exact.View:
    return exact.view(norm.removesuffix("_norm"), shape, groups=COUNT)


@BOTH
@pytest.mark.parametrize(("norm", "shape", "axis", "arguments"), NORMS)
def test_every_magnitude(
    norm: str, shape: tuple[int, ...], axis: int, arguments: dict[str, Any], dtype: str, rng: np.random.Generator
) -> None:
    """y within 4 ULP and dx within 8, the variance being all there is under the root."""
    t = dtype_of(dtype)
    sizes, upstream = zip(*MAGNITUDES, strict=True)
    x = (np.clip(rng.standard_normal(shape), -3, 3) * per_statistic(list(sizes), shape, axis)).astype(t)
    dy = (np.clip(rng.standard_normal(shape), -3, 3) * per_statistic(list(upstream), shape, axis)).astype(t)
    assert np.isfinite(x).all() and np.isfinite(dy).all()
    call = Call(norm, {"x": x, **arguments, "eps": 0.0})
    check_exactly(call, view_of(norm, shape), dy, 0.0, f"{norm} of {shape}", centre=norm != "rms_norm")


@BOTH
@pytest.mark.parametrize(("norm", "shape", "axis", "arguments"), NORMS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_beside_numbers(
    zero: float,
    norm: str,
    shape: tuple[int, ...],
    axis: int,
    arguments: dict[str, Any],
    dtype: str,
    rng: np.random.Generator,
) -> None:
    """A dead statistic: xhat is 0, dx rstd·(dy - mean(dy)), and its neighbours have the bits that they have beside numbers."""
    t = dtype_of(dtype)
    x, dy = draw(rng, shape, t), draw(rng, shape, t)
    dead = x.copy()
    at: Any = tuple(
        slice(shape[axis] // COUNT * 3, shape[axis] // COUNT * 4) if i == axis else slice(None)
        for i in range(len(shape))
    )
    dead[at] = zero
    others = np.ones(shape, bool)
    others[at] = False
    living, expected = (Call(norm, {"x": data, **arguments}).results(dy) for data in (dead, x))
    assert (living["y"][at] == 0).all()
    for field in ("y", "dx"):
        same_bits(np.where(others, living[field], 0), np.where(others, expected[field], 0), field)
    call = Call(norm, {"x": dead, **arguments, "eps": 1e-5})
    check_exactly(call, view_of(norm, shape), dy, 1e-5, f"{norm} of {shape}", centre=norm != "rms_norm")


@BOTH
def test_infinities_stay_infinities(dtype: str) -> None:
    """A sum that float cannot hold is no NaN in double; one that is infinite is NaN all the same."""
    x = np.full((8, 64), 3e38, dtype_of(dtype))
    x[:, ::2] *= x.dtype.type(-1)
    y = fn.layer_norm(x, 64)
    assert np.array_equal(np.abs(y.astype(float)), np.ones((8, 64)))
    dx = fn.layer_norm_backward(np.zeros_like(x), fn.layer_norm_forward(x, 64)[1]).dx
    assert not dx.astype(float).any()
    x[3, 5] = np.inf
    y = fn.layer_norm(x, 64).astype(float)
    assert np.isnan(y[3]).all() and np.array_equal(np.abs(np.delete(y, 3, 0)), np.ones((7, 64)))


@BOTH
@pytest.mark.parametrize("where", ["x", "dy", "both"])
@pytest.mark.parametrize(("norm", "shape", "axis", "arguments"), NORMS)
def test_outliers_take_no_bits(
    norm: str,
    shape: tuple[int, ...],
    axis: int,
    arguments: dict[str, Any],
    where: str,
    dtype: str,
    rng: np.random.Generator,
) -> None:
    """Two outliers a million times as large, of opposite signs: all that is left of the sums is what the others come to."""
    t = dtype_of(dtype)
    data = {name: 0.002 * rng.standard_normal(shape) for name in ("x", "dy")}
    for name in ("x", "dy") if where == "both" else (where,):
        if axis == 0:  # of a row: two columns
            data[name][:, [5, 40]] = [2000, -2000]
        else:
            data[name][0, :, ...] = 2000
            data[name][1, :, ...] = -2000
    call = Call(norm, {"x": data["x"].astype(t), **arguments, "eps": 1e-5})
    check_exactly(
        call, view_of(norm, shape), data["dy"].astype(t), 1e-5, f"{norm} of {shape}", centre=norm != "rms_norm"
    )


@BOTH
def test_small_squares_among_large(dtype: str) -> None:
    """Half of the values are 1.16, half 0.005, in the same places of every vector: the variance is within 2 ULP all the same."""
    values = np.full(64, 1.15625)
    values[1:32:2] = 0.004852294921875
    x = np.tile(values, 256).astype(dtype_of(dtype))
    for data, axis in ((x[None], -1), (np.repeat(x.reshape(-1, 1), 3, 1), 0)):
        mean, var = fn.moments(data, axis)
        wide = data.astype(np.longdouble)
        within(var, wide.var(axis), wide.var(axis), 2, "variance")
        within(mean, wide.mean(axis), np.maximum(np.abs(wide.mean(axis)), wide.std(axis)), 1, "mean")
