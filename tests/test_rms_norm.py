"""RMS norm: values and gradients of rows short, long and cut into pieces, over any number of trailing axes.

Method: exact arithmetic for the bounds (y within 4 ULP at |gamma * xhat|, dx within 8 at the size of its terms), the
float64 reference and finite differences for all gradients, the residual included.
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
)

import fastnorm as fn

SHAPES = [
    *(((3, n), (n,)) for n in LENGTHS),
    *(((n, 5), (5,)) for n in LENGTHS if n < 5000),
    *(((n, 67), (67,)) for n in (7, 8, 9, 15, 16, 17)),  # rows are taken several at a time
    ((5,), (5,)),
    ((2, 3, 4, 5), (4, 5)),
    ((2, 3, 4, 5), (3, 4, 5)),
    ((2, 3, 2, 2, 3), (3, 2, 2, 3)),
    ((7, 1, 1), (1, 1)),
    ((3, 257, 17), (257, 17)),
    ((2, 300, 500), (300, 500)),  # a row cut into pieces
]


def trailing(
    rng: np.random.Generator, shape: tuple[int, ...], normalized: tuple[int, ...], dtype: Any, **options: Any
) -> Call:
    wide = compute_type(dtype)
    arguments = {"x": draw(rng, shape, dtype), "normalized_shape": normalized, "weight": draw(rng, normalized, wide)}
    return Call("rms_norm", arguments | {} | {"eps": 1e-5} | options)


@every_dtype
@pytest.mark.parametrize(("shape", "normalized"), SHAPES)
def test_values_and_gradients(
    shape: tuple[int, ...], normalized: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    if dtype != "float32" and np.prod(shape) > 100000:
        shape = (shape[0] // 2, *shape[1:])
    call = trailing(rng, shape, normalized, dtype_of(dtype))
    dy = draw(rng, shape, dtype_of(dtype), 0.1)
    view = exact.view("rms", shape, normalized=len(normalized))
    check_exactly(call, view, dy, 1e-5, f"{shape}, {dtype}", centre=False)


@every_dtype
@pytest.mark.parametrize("given", [("weight",), ()])
@pytest.mark.parametrize("shape", [(9, 67), (5, 4), (2, 70000)])
def test_with_some_parameters(
    shape: tuple[int, ...], given: tuple[str, ...], dtype: str, rng: np.random.Generator
) -> None:
    call = trailing(rng, shape, shape[1:], dtype_of(dtype))
    call = call.replaced(**{name: None for name in ("weight",) if name not in given})
    dy = draw(rng, shape, dtype_of(dtype))
    view = exact.view("rms", shape)
    check_exactly(call, view, dy, 1e-5, f"{given} in {dtype}", centre=False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_of_a_half_type(dtype: str, rng: np.random.Generator) -> None:
    """Parameters may have x's half type; they are widened, and their gradients are float32 all the same."""
    half = dtype_of(dtype)
    call = trailing(rng, (9, 67), (67,), half)
    narrow = {name: a.astype(half) for name, a in call.arguments.items() if name in ("weight", "bias")}
    dy = draw(rng, (9, 67), half)
    one = call.replaced(**narrow).results(dy)
    two = call.replaced(**{name: a.astype(np.float32) for name, a in narrow.items()}).results(dy)
    for name, value in one.items():
        same_bits(value, two[name], name)
    assert one["dweight"].dtype == np.float32


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("shape", "normalized"), [((5, 7), (7,)), ((3, 4, 5), (4, 5)), ((9, 67), (67,)), ((2, 3, 1), (1,)), ((6,), (6,))]
)
def test_gradients(
    shape: tuple[int, ...], normalized: tuple[int, ...], residual: bool, rng: np.random.Generator
) -> None:
    """In float64, against the reference and against finite differences."""
    call = trailing(rng, shape, normalized, np.float64)
    fields = {"x": "dx", "weight": "dweight"}
    if residual:
        call = call.replaced(residual=rng.standard_normal(shape))
        fields["residual"] = "dresidual"
    check_against_reference(call, rng.standard_normal(shape))
    check_slopes(call, fields, rng)


def test_normalized_shape_may_be_a_number_or_a_list(rng: np.random.Generator) -> None:
    x = draw(rng, (3, 4, 5), np.float32)
    same_bits(fn.rms_norm(x, 5), fn.rms_norm(x, (5,)))
    same_bits(fn.rms_norm(x, [4, 5]), fn.rms_norm(x, (4, 5)))
    same_bits(fn.rms_norm(x, np.int64(5)), fn.rms_norm(x, (5,)))


@every_dtype
def test_the_sum_is_returned(dtype: str, rng: np.random.Generator) -> None:
    """ctx.sum = x + residual in the storage type; the plain function normalizes it too, and x stays as it is."""
    x, r = (draw(rng, (9, 67), dtype_of(dtype)) for _ in range(2))
    before = x.copy(), r.copy()
    y, ctx = fn.rms_norm_forward(x, 67, residual=r)
    wide = compute_type(x)
    same_bits(ctx.sum, (x.astype(wide) + r.astype(wide)).astype(x.dtype))
    same_bits(fn.rms_norm(x, 67, residual=r), y)
    same_bits(fn.rms_norm(ctx.sum, 67), y)
    same_bits(x, before[0])
    same_bits(r, before[1])
    assert getattr(fn.rms_norm_forward(x, 67)[1], "sum", None) is None


@every_dtype
@pytest.mark.parametrize("layout", ["Fortran", "sliced", "rows reversed", "columns reversed", "leading axes turned"])
def test_layouts(layout: str, dtype: str, rng: np.random.Generator) -> None:
    call = trailing(rng, (4, 3, 67), (67,), dtype_of(dtype))
    x = call.x
    wide = np.zeros((4, 3, 135), x.dtype)
    wide[..., 1::2] = x
    view = {
        "Fortran": np.asfortranarray(x),
        "sliced": wide[..., 1::2],
        "rows reversed": np.ascontiguousarray(x[::-1])[::-1],
        "columns reversed": np.ascontiguousarray(x[..., ::-1])[..., ::-1],
        "leading axes turned": np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
    }[layout]
    dy = draw(rng, x.shape, x.dtype)
    expected = call.results(dy)
    y, ctx = call.replaced(x=view).forward()
    same_bits(y, expected["y"], layout)
    # Turned leading axes put the rows in another order in memory, and sums over rows follow memory.
    grads = call.backward(dy, ctx)
    same_bits(grads.dx, expected["dx"], layout)
    np.testing.assert_allclose(grads.dweight, expected["dweight"], 1e-5, 1e-5)


@every_dtype
def test_eps_none_is_the_machine_epsilon_of_the_compute_type(dtype: str, rng: np.random.Generator) -> None:
    x = draw(rng, (9, 67), dtype_of(dtype), 0, 1e-3)
    eps = float(np.finfo(compute_type(x)).eps)
    same_bits(fn.rms_norm(x, 67), fn.rms_norm(x, 67, None, eps))
    same_bits(fn.rms_norm(x, 67, eps=None), fn.rms_norm(x, 67, eps=eps))


def test_scale_of_a_row_does_not_matter(rng: np.random.Generator) -> None:
    """RMS(a * x) = RMS(x) for a power of two, without eps: the same bits, and dx divided by a."""
    x, dy = draw(rng, (9, 67), np.float32), draw(rng, (9, 67), np.float32)
    a = np.ldexp(np.float32(1), rng.integers(-9, 9, (9, 1))).astype(np.float32)
    y, ctx = fn.rms_norm_forward(x, 67, eps=0.0)
    z, scaled = fn.rms_norm_forward(a * x, 67, eps=0.0)
    same_bits(z, y)
    same_bits(fn.rms_norm_backward(dy, scaled).dx * a, fn.rms_norm_backward(dy, ctx).dx)


def test_squares_have_mean_one(rng: np.random.Generator) -> None:
    y = fn.rms_norm(draw(rng, (9, 67), np.float64), 67, eps=0.0)
    np.testing.assert_allclose((y * y).mean(-1), 1, 1e-14)


def test_bias_has_no_gradient(rng: np.random.Generator) -> None:
    x = draw(rng, (9, 67), np.float32)
    _, ctx = fn.rms_norm_forward(x, 67, draw(rng, (67,), np.float32))
    assert fn.rms_norm_backward(x, ctx).dbias is None
    np.testing.assert_allclose(ctx.rstd, 1 / np.sqrt((x.astype(np.float64) ** 2).mean(-1) + 2.0**-23), 1e-7)


@every_dtype
def test_an_infinite_gradient_reaches_what_it_multiplies(dtype: str) -> None:
    """dx = rstd·dy·gamma - ..., where the sum of dy·gamma itself, infinite here, has no place."""
    x = np.array([[1, 2, 3, 4]]).astype(dtype_of(dtype))
    dy = np.array([[np.inf, 1, 1, 1]]).astype(dtype_of(dtype))
    _, ctx = fn.rms_norm_forward(x, 4)
    with np.errstate(all="ignore"):
        dx = fn.rms_norm_backward(dy, ctx)[0].astype(np.float64)
    np.testing.assert_array_equal(dx, [[np.nan, -np.inf, -np.inf, -np.inf]])


def test_parameter_gradients_that_cancel_beyond_float() -> None:
    """Rows whose sums float cannot hold are taken one by one, in double: the first two overflow together."""
    x = np.array([[1, -1]], np.float32).repeat(3, 0)
    dy = np.array([[2e38, 2e38], [2e38, 2e38], [-2e38, -2e38]], np.float32)
    _, ctx = fn.rms_norm_forward(x, 2, np.ones(2, np.float32), 1e-5)
    np.testing.assert_allclose(fn.rms_norm_backward(dy, ctx)[1], [2e38, -2e38], rtol=2e-5)
