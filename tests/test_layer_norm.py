"""Layer norm: values and gradients of rows short, long and cut into pieces, over any number of trailing axes.

Method: exact arithmetic for the bounds (y within 4 ULP at |gamma * xhat| + |beta|, dx within 8 at the size of its terms), the
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
from fastnorm import reference

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
    return Call("layer_norm", arguments | {"bias": draw(rng, normalized, wide)} | {"eps": 1e-5} | options)


@every_dtype
@pytest.mark.parametrize(("shape", "normalized"), SHAPES)
def test_values_and_gradients(
    shape: tuple[int, ...], normalized: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    if dtype != "float32" and np.prod(shape) > 100000:
        shape = (shape[0] // 2, *shape[1:])
    call = trailing(rng, shape, normalized, dtype_of(dtype))
    dy = draw(rng, shape, dtype_of(dtype), 0.1)
    view = exact.view("layer", shape, normalized=len(normalized))
    check_exactly(call, view, dy, 1e-5, f"{shape}, {dtype}")


@every_dtype
@pytest.mark.parametrize("given", [("weight",), ("bias",), ()])
@pytest.mark.parametrize("shape", [(9, 67), (5, 4), (2, 70000)])
def test_with_some_parameters(
    shape: tuple[int, ...], given: tuple[str, ...], dtype: str, rng: np.random.Generator
) -> None:
    call = trailing(rng, shape, shape[1:], dtype_of(dtype))
    call = call.replaced(**{name: None for name in ("weight", "bias") if name not in given})
    dy = draw(rng, shape, dtype_of(dtype))
    view = exact.view("layer", shape)
    check_exactly(call, view, dy, 1e-5, f"{given} in {dtype}")


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
    fields = {"x": "dx", "weight": "dweight", "bias": "dbias"}
    if residual:
        call = call.replaced(residual=rng.standard_normal(shape))
        fields["residual"] = "dresidual"
    check_against_reference(call, rng.standard_normal(shape))
    check_slopes(call, fields, rng)


def test_normalized_shape_may_be_a_number_or_a_list(rng: np.random.Generator) -> None:
    x = draw(rng, (3, 4, 5), np.float32)
    same_bits(fn.layer_norm(x, 5), fn.layer_norm(x, (5,)))
    same_bits(fn.layer_norm(x, [4, 5]), fn.layer_norm(x, (4, 5)))
    for alike in (np.int64(5), (np.int64(5),), [5], np.array([5]), (k for k in [5]), range(5, 6)):
        same_bits(fn.layer_norm(x, alike), fn.layer_norm(x, (5,)))


@every_dtype
def test_the_sum_is_returned(dtype: str, rng: np.random.Generator) -> None:
    """ctx.sum = x + residual in the storage type; the plain function normalizes it too, and x stays as it is."""
    x, r = (draw(rng, (9, 67), dtype_of(dtype)) for _ in range(2))
    before = x.copy(), r.copy()
    y, ctx = fn.layer_norm_forward(x, 67, residual=r)
    wide = compute_type(x)
    same_bits(ctx.sum, (x.astype(wide) + r.astype(wide)).astype(x.dtype))
    same_bits(fn.layer_norm(x, 67, residual=r), y)
    same_bits(fn.layer_norm(ctx.sum, 67), y)
    same_bits(x, before[0])
    same_bits(r, before[1])
    assert getattr(fn.layer_norm_forward(x, 67)[1], "sum", None) is None


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


def test_gamma_sigma_and_beta_mean_give_the_input_back(rng: np.random.Generator) -> None:
    x = rng.standard_normal((1, 67)) + 3
    gamma, beta = np.full(67, np.sqrt(x.var() + 1e-5)), np.full(67, x.mean())
    np.testing.assert_allclose(fn.layer_norm(x, 67, gamma, beta), x, 1e-15, 4e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rms_norm_of_centred_rows_is_layer_norm(dtype: str, rng: np.random.Generator) -> None:
    x = draw(rng, (9, 68), dtype)
    x[:, 34:] = -x[:, :34]  # the mean is exactly zero
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(fn.layer_norm(x, 68, eps=1e-5), fn.rms_norm(x, 68, eps=1e-5), tolerance, tolerance)


@every_dtype
def test_rows_of_one_element_give_beta(dtype: str, rng: np.random.Generator) -> None:
    x, weight, bias = draw(rng, (9, 1), dtype_of(dtype)), np.ones(1), np.full(1, 0.75)
    weight, bias = weight.astype(compute_type(x)), bias.astype(compute_type(x))
    y, ctx = fn.layer_norm_forward(x, 1, weight, bias)
    assert (y.astype(np.float64) == 0.75).all()
    assert not fn.layer_norm_backward(draw(rng, (9, 1), x.dtype), ctx).dweight.any()


def test_context_shows_its_statistics(rng: np.random.Generator) -> None:
    x = draw(rng, (3, 4, 67), np.float32)
    _, ctx = fn.layer_norm_forward(x, 67, eps=1e-3)
    rows = x.astype(np.float64)
    assert ctx.mean.dtype == ctx.rstd.dtype == np.float64 and ctx.mean.shape == ctx.rstd.shape == (3, 4)
    np.testing.assert_allclose(ctx.mean, rows.mean(-1), 1e-13, 1e-13)
    np.testing.assert_allclose(ctx.rstd, 1 / np.sqrt(rows.var(-1) + 1e-3), 1e-7)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "group_norm"])
@pytest.mark.parametrize(
    ("size", "gamma", "upstream", "eps"),
    [(1e20, 1e20, 1e20, 1e-5), (1e10, 1e25, 1e15, 1e-5), (1e-25, 1e-25, 1e-25, 0.0)],
)
def test_gradients_whose_factors_leave_float32(
    norm: str, size: float, gamma: float, upstream: float, eps: float
) -> None:
    """dy·gamma overflows or vanishes where dx does not."""
    rng = np.random.default_rng(0)
    x, dy = ((rng.standard_normal((16, 8)) * s).astype(np.float32) for s in (size, upstream))
    weight = np.full(8, gamma, np.float32)
    arguments = (2, weight) if norm == "group_norm" else (8, weight)
    *_, ctx = getattr(fn, f"{norm}_forward")(x, *arguments, eps=eps)
    dx = getattr(fn, f"{norm}_backward")(dy, ctx).dx
    wide = (arguments[0], weight.astype(np.float64))
    _, exact = getattr(reference, f"{norm}_forward")(x.astype(np.float64), *wide, eps=eps)
    expected = getattr(reference, f"{norm}_backward")(dy.astype(np.float64), exact).dx
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
