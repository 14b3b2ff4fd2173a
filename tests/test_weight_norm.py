"""Weight norm: values and gradients for every output axis, and what becomes of a direction of length zero.

Method: exact arithmetic for the bounds, the float64 reference and finite differences for direction and length.
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
    compute_type,
    draw,
    dtype_of,
    every_dtype,
    same_bits,
    within,
)

import fastnorm as fn
from fastnorm._kernels import core


@every_dtype
@pytest.mark.parametrize(
    "shape", [*((3, n) for n in LENGTHS), *((n, 5) for n in LENGTHS if n < 5000), (70, 67), (6, 5, 3, 3), (1, 70000)]
)
def test_values_and_gradients(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    """w within 4 ULP, dv within 8 at the size of its terms, dg within 8 at the root of its terms' squares."""
    if dtype != "float32" and np.prod(shape) > 100000:
        shape = (shape[0], shape[1] // 4)
    v, dw = draw(rng, shape, dtype_of(dtype)), draw(rng, shape, dtype_of(dtype))
    g = draw(rng, (shape[0],) + (1,) * (len(shape) - 1), compute_type(v))
    w, ctx = fn.weight_norm_forward(v, g)
    grads = fn.weight_norm_backward(dw, ctx)
    e = exact.weight_norm(v.reshape(shape[0], -1), g.ravel(), dw.reshape(shape[0], -1))
    assert w.dtype == grads.dv.dtype == v.dtype and grads.dg.dtype == compute_type(v) and grads.dg.shape == g.shape
    within(w, e.w.reshape(shape), np.abs(e.w).reshape(shape), 4, "w")
    within(grads.dv, e.dv.reshape(shape), e.dv_scale.reshape(shape), 8, "dv")
    within(grads.dg.ravel(), e.dg, np.maximum(e.dg_scale, np.abs(e.dg)), 8, "dg")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((3, 5), 0),
        ((3, 5), 1),
        ((3, 5), -1),
        ((4, 3, 2), 1),
        ((2, 3, 4, 5), 2),
        ((2, 3, 4, 5), -2),
        ((6,), 0),
        ((3, 5), None),
    ],
)
def test_gradients(shape: tuple[int, ...], dim: Any, flat: bool, rng: np.random.Generator) -> None:
    """Any output axis, or one norm for all; g with every other axis of length 1, or flat."""
    wide = tuple(n if dim is not None and a == dim % len(shape) else 1 for a, n in enumerate(shape))
    kept = () if dim is None else (shape[dim],)
    g = rng.standard_normal(kept if flat else wide)
    call = Call("weight_norm", {"v": rng.standard_normal(shape), "g": np.asarray(g), "dim": dim})
    check_against_reference(call, rng.standard_normal(shape))
    check_slopes(call, {"v": "dv", "g": "dg"}, rng)


@every_dtype
def test_any_memory_gives_the_same_bits(dtype: str, rng: np.random.Generator) -> None:
    v = draw(rng, (5, 7, 6), dtype_of(dtype))
    g = draw(rng, (7,), compute_type(v))
    expected = fn.weight_norm(v, g, 1)
    same_bits(fn.weight_norm(np.asfortranarray(v), g, 1), expected)
    same_bits(fn.weight_norm(np.ascontiguousarray(v[:, ::-1])[:, ::-1], g, 1), expected)
    first = fn.weight_norm(np.ascontiguousarray(v.swapaxes(0, 1)), g, 0)
    same_bits(first.swapaxes(0, 1), expected)


def test_rows_have_length_g(rng: np.random.Generator) -> None:
    v, g = rng.standard_normal((5, 70)), rng.standard_normal(5)
    w = fn.weight_norm(v, g)
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), np.abs(g), 1e-14)
    np.testing.assert_allclose(fn.weight_norm(3 * v, g), w, 1e-14)


def test_gradient_is_orthogonal_to_the_direction(rng: np.random.Generator) -> None:
    """Salimans and Kingma 2016, section 2.2: v grows, if anything, because its gradient has no part along it."""
    v, g, dw = rng.standard_normal((5, 70)), rng.standard_normal(5), rng.standard_normal((5, 70))
    _, ctx = fn.weight_norm_forward(v, g)
    dv = fn.weight_norm_backward(dw, ctx).dv
    assert np.abs((dv * v).sum(1)).max() < 1e-12


@every_dtype
def test_a_direction_of_length_zero_is_refused(dtype: str, rng: np.random.Generator) -> None:
    v = draw(rng, (5, 7), dtype_of(dtype))
    v[3] = 0
    with pytest.raises(ValueError, match="v.*3"):
        fn.weight_norm(v, np.ones(5, compute_type(v)))


@pytest.mark.parametrize(
    ("g", "v", "dw"),
    [(1e-250, 1e-100, 1), (1e-300, 1e-20, 1), (1e200, 1e120, 1), (1e300, 1e10, 1), (1e150, 1e150, 1e50)],
)
def test_length_and_direction_far_apart(g: float, v: float, dw: float, rng: np.random.Generator) -> None:
    """No product on the way to a gradient that float64 holds leaves its range."""
    direction, upstream = rng.standard_normal((2, 50)), rng.standard_normal((2, 50))
    _, ctx = fn.weight_norm_forward(v * direction, np.full(2, g))
    found = fn.weight_norm_backward(dw * upstream, ctx)
    _, plain = fn.weight_norm_forward(direction, np.ones(2))
    expected = fn.weight_norm_backward(upstream, plain)
    np.testing.assert_allclose(found.dv / (g / v * dw), expected.dv, 1e-12)
    np.testing.assert_allclose(found.dg / dw, expected.dg, 1e-12)


def test_a_unit_of_no_elements_has_length_zero() -> None:
    w, ctx = fn.weight_norm_forward(np.zeros((6, 0)), np.ones((6, 1)))
    assert w.shape == (6, 0)
    np.testing.assert_array_equal(ctx.norm, np.zeros(6))


@every_dtype
def test_gradients_reach_an_output_of_any_alignment(dtype: str, rng: np.random.Generator) -> None:
    """By way of a copy: past the cache only whole cache lines are written."""
    v, dw = draw(rng, (4, 400), dtype_of(dtype)), draw(rng, (4, 400), dtype_of(dtype))
    g = np.ones((4, 1), np.float64 if dtype == "float64" else np.float32)
    expected = fn.weight_norm_backward(dw, fn.weight_norm_forward(v, g)[1])[0]
    memory = np.zeros(v.nbytes + 1, np.uint8)
    out = memory[1:].view(v.dtype).reshape(v.shape)
    before = core.set_stream_bytes(1)
    try:
        fn.weight_norm_backward(dw, fn.weight_norm_forward(v, g)[1], out=out)
    finally:
        core.set_stream_bytes(before)
    same_bits(out.copy(), expected)
